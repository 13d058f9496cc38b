"""Output folders and files that appear whole or not at all."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from rmat_hf.errors import UserError


def validate_output_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise if `folder` cannot be created, or has files in it and `overwrite` is false.

    Raises:
        UserError: With the way out.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file. Choose another output folder.")
    if folder.is_dir() and (folder.is_mount() or Path.cwd().is_relative_to(folder.resolve())):
        raise UserError(
            f"{str(folder)!r} is the current folder, one above it or a mounted one, which cannot "
            "be replaced. Choose a folder inside it."
        )
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(
            f"The output folder {str(folder)!r} is not empty. "
            "Choose another one, or pass --overwrite to replace it."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot create {str(folder.parent)!r}: {error.strerror}.") from error
    if not os.access(folder.parent, os.W_OK):
        raise UserError(f"{str(folder.parent)!r} is not writable. Choose another output folder.")


@contextmanager
def create_folder_atomically(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends without an error.

    After an error the temporary folder is gone, and what was at `folder` before is untouched.

    Args:
        folder (`str` or `Path`): The folder to create.
        overwrite (`bool`, *optional*, defaults to `False`): Replace a folder that has files.

    Raises:
        UserError: If `folder` has files and `overwrite` is false, or cannot be created.
    """
    folder = Path(folder).resolve()  # a link stays, what it points to is replaced
    validate_output_folder(folder, overwrite=overwrite)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        _share_with_umask(temporary)
        replaced = temporary.with_name(temporary.name + ".replaced")
        if folder.exists():
            os.replace(folder, replaced)
        try:
            os.replace(temporary, folder)
        except OSError:
            if replaced.exists():
                os.replace(replaced, folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_json(path: str | Path, content: Any, *, indent: int | None = 2) -> None:
    """Write JSON: the whole file or none.

    Args:
        path (`str` or `Path`): The file.
        content: What `json` can write.
        indent (`int`, *optional*, defaults to 2): Spaces of a level; `None` for one line.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a stream that becomes the file when the block ends without an error.

    The content is on the disk before the name is: a file that is there is whole, whatever
    interrupts the program. A kill leaves a hidden `.NAME.….tmp` behind, nothing else does.

    Args:
        path (`str` or `Path`): The file; an older one is replaced.

    Raises:
        UserError: It cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # on a disk that cannot be written there is nothing to remove
            temporary.unlink(missing_ok=True)


def _share_with_umask(folder: Path) -> None:
    """Give folder and files the permissions of new ones; temporary files are the owner's only."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
