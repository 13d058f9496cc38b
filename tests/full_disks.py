"""Disks that are full, nearly so or read-only, and files that cannot grow."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """No file may grow over a size, as on a disk that fills up."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def mounted_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a disk in memory on a new folder, or skip the test where that is not permitted.

    Args:
        folder (`Path`): Where.
        options (`str`): Of the mount: `size=12k`, or `ro` for one that nobody may write.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if done.returncode != 0:
        pytest.skip("needs the permission to mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def resize_disk(folder: Path, size: str) -> None:
    """Change the size of a mounted disk, for example to `1m`."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)
