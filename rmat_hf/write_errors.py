"""Turn what libraries raise when a disk is full into one error that names the place."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from rmat_hf.output_folder import OutputError

_WRITE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE),
)
# PyTorch's writer of ZIP archives, which does not tell the reason, and safetensors, which does.
_WRITE_WORDS = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|os error \d+")


@contextmanager
def explained_writing(folder: str | Path, *, way_out: str) -> Iterator[None]:
    """Raise an [`OutputError`] with the folder where the block fails to write a file.

    Args:
        folder (`str` or `Path`): Where the block writes.
        way_out (`str`): A sentence: what to do when there is space, or permission, again.

    Raises:
        OutputError: A disk is full, a quota is reached, a folder is read-only.
    """
    try:
        yield
    except OutputError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = find_write_failure(error)
        if reason is None:
            raise
        raise OutputError(f"{folder} cannot be written: {reason}. {way_out}") from error


def find_write_failure(error: BaseException) -> str | None:
    """Return why a file could not be written; `None` if it is another error.

    Args:
        error (`BaseException`): Of Python, PyTorch or safetensors.
    """
    if isinstance(error, OSError):
        return error.strerror if error.errno in _WRITE_ERRORS else None
    if not _WRITE_WORDS.search(str(error)):
        return None
    if isinstance(error, SafetensorError):
        return str(error).removeprefix("Error while serializing: ").rstrip(".")
    return "the disk is full, or a file there may not grow"
