"""One run at a time writes an output folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rmat_hf.errors import UserError


@contextmanager
def lock_output(folder: str | Path, *, is_needed: bool = True) -> Iterator[None]:
    """Keep a second run from writing a folder until the block ends.

    The lock is the kernel's on a hidden file beside the folder, `.NAME.lock`. It ends with the
    process, however that ends: the file that a killed run leaves locks nothing.

    Args:
        folder (`str` or `Path`): The output folder, which need not exist.
        is_needed (`bool`, *optional*, defaults to `True`):
            False does nothing: of the processes of one run, the first one locks.

    Raises:
        UserError: Another run is writing it, or the lock cannot be made.
    """
    if not is_needed:
        yield
        return
    folder = Path(folder).resolve()
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"Another run is writing {str(folder)!r}. Wait until it ends, or choose another "
            "output folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"Cannot write {str(path)!r}: {error.strerror}. Choose another output folder."
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked, so that it is ours
        lock.release()
