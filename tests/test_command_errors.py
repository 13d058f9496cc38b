import importlib

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError

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


@pytest.mark.parametrize("status", [429, 500])
def test_limit_of_requests_comes_with_a_way_out_whatever_was_made_of_it(status: int) -> None:
    library = importlib.import_module(HTTPError.__module__.partition(".")[0])
    request = library.Request("GET", "https://example.org/file")
    response = library.Response(status, request=request)
    with pytest.raises(ValueError, match="Server Disconnected") as caught:
        try:
            raise HfHubHTTPError("Too Many Requests", response=response)
        except HfHubHTTPError as error:
            raise ValueError("The Hub gives:\nServer Disconnected.") from error
    line = str(describe_error(caught.value))
    assert line.startswith("The Hub gives: Server Disconnected.")
    assert ("HTTP 429" in line and "Wait a few minutes and repeat" in line) == (status == 429)


def test_file_that_cannot_be_written_comes_with_a_way_out() -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert "Make room on the disk" in str(describe_error(error))


def test_bug_is_not_explained_away() -> None:
    assert describe_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
