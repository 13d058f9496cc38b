import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disks import small_files
from safetensors import SafetensorError
from safetensors.torch import save_file

from rmat_hf.output_folder import OutputError
from rmat_hf.write_errors import explained_writing

NUM_FLOATS = 100_000


def save_with_torch(path: Path) -> None:
    torch.save({"weight": torch.zeros(NUM_FLOATS)}, path)


def save_with_safetensors(path: Path) -> None:
    save_file({"weight": torch.zeros(NUM_FLOATS)}, path)


def save_with_python(path: Path) -> None:
    path.write_bytes(bytes(4 * NUM_FLOATS))


@pytest.mark.parametrize("save", [save_with_torch, save_with_safetensors, save_with_python])
def test_file_that_cannot_grow_is_one_error(tmp_path: Path, save: Callable[[Path], None]) -> None:
    with (
        small_files(2**16),
        pytest.raises(OutputError, match=r"/run cannot be written: .+\. Make room\.$") as caught,
        explained_writing(tmp_path / "run", way_out="Make room."),
    ):
        save(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_error_of_the_system_gives_its_reason(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(OutputError, match=os.strerror(number)),
        explained_writing(tmp_path, way_out="Make room."),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("shapes do not fit"),
        SafetensorError("invalid header"),
        OutputError("The output folder is not empty."),
        KeyError("name"),
    ],
)
def test_other_errors_pass_through(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained_writing(tmp_path, way_out="Make room."):
        raise error
    assert caught.value is error
