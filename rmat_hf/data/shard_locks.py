"""Locks that keep two runs from writing one shard; the system drops those of a dead process."""

import errno
import fcntl
import logging
from pathlib import Path

from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)


class ShardLocks:
    """Locks on the shards of a folder, until the `with` block ends.

    They are record locks on bytes of a file, also where there are none: they hold between
    processes, and between machines that share the folder.

    Args:
        path (`Path`): A file of the folder that is not replaced meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._works = True

    def __enter__(self) -> "ShardLocks":
        self._stream = self.path.open("rb+")
        return self

    def __exit__(self, *exception_info: object) -> None:
        self._stream.close()

    def lock(self, idx: int, *, waits: bool = False) -> None:
        """Lock a shard.

        Args:
            idx (`int`): Of the shard; the one after the last stands for the folder as a whole.
            waits (`bool`, *optional*, defaults to `False`): Wait for another run to end.

        Raises:
            UserError: Another run writes it.
        """
        if not self._works:
            return
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB), 1, idx)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f"Another run is writing {self.path.parent}. Wait for it, or end it first."
                ) from error
            self._works = False
            logger.warning(
                "%s is on a disk without locks (%s): start no second run on it.",
                self.path.parent,
                error.strerror,
            )
