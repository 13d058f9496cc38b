import importlib

import pytest
import torch
from huggingface_hub.errors import HTTPError

from rmat_hf.command_errors import COMMAND_ERRORS, describe_error


def test_mistake_of_the_user_is_its_message_in_one_line() -> None:
    assert describe_error(ValueError("Row 3:\n  no label.")) == "Row 3: no label."
    assert describe_error(OSError()) == "OSError"


def test_memory_that_does_not_suffice_comes_with_a_way_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    for error in (caught.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")):
        line = str(describe_error(error))
        assert line.startswith("There is not enough memory: ")
        assert "smaller --batch-size" in line
        assert "\n" not in line


@pytest.mark.parametrize("name", ["ReadTimeout", "RemoteProtocolError", "ConnectError"])
def test_broken_connection_comes_with_a_way_out(name: str) -> None:
    library = importlib.import_module(HTTPError.__module__.partition(".")[0])
    error = getattr(library, name)("it broke")
    assert isinstance(error, COMMAND_ERRORS)
    line = str(describe_error(error))
    assert line.startswith(f"The connection to the Hub failed: {error}. Repeat the command")


def test_file_that_cannot_be_written_comes_with_a_way_out() -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert "Make room on the disk" in str(describe_error(error))


def test_bug_is_not_explained_away() -> None:
    assert describe_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
