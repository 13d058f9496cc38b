"""What a user is told about an error, by whichever library it comes."""

import csv
import errno
import importlib
import io
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from full_disks import small_files
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from rmat_hf.errors import (
    MAX_MESSAGE,
    ConsoleHandler,
    MessageFormatter,
    UserError,
    describe_error,
    escape_message,
    explained_reading,
    explained_writing,
    get_reason,
    hide_credentials,
    is_out_of_memory,
    list_reading_errors,
    list_user_errors,
)

NUM_FLOATS = 100_000
MORE_THAN_THERE_IS = 2**46
TOKEN = "hf_" + "aBcD1234" * 4


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://user:secret@host/model", "https://***@host/model"),
        ("at 'https://secret@host:8080/a@b'.", "at 'https://***@host:8080/a@b'."),
        ("https:/user:secret@host/table.csv", "https:/***@host/table.csv"),
        (f"token {TOKEN}, rejected", "token hf_***, rejected"),
        (f"https://{TOKEN}@host/{TOKEN}", "https://***@host/hf_***"),
        ("chemist/model@v1 from https://host/a", "chemist/model@v1 from https://host/a"),
        ("C@H](O)C hf_small", "C@H](O)C hf_small"),
    ],
)
def test_credentials_are_hidden_and_nothing_else(text: str, hidden: str) -> None:
    assert hide_credentials(text) == hidden
    assert str(UserError(text)) == hidden
    assert str(pickle.loads(pickle.dumps(UserError(text)))) == hidden
    assert describe_error(OSError(text)) == hidden


# Describing


def test_mistake_of_the_user_is_its_message_in_one_line() -> None:
    assert describe_error(ValueError("Row 3:\n  no label.")) == "Row 3: no label."
    assert describe_error(OSError()) == "OSError"


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.empty(MORE_THAN_THERE_IS),
        lambda: np.empty(MORE_THAN_THERE_IS),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")),
    ],
)
def test_memory_that_does_not_suffice_comes_with_a_way_out(build: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        next(build())  # the first two raise before `next`
    assert is_out_of_memory(caught.value)
    line = str(describe_error(caught.value))
    assert "not enough memory" in line and "--batch-size" in line and "\n" not in line


@pytest.mark.parametrize("name", ["ReadTimeout", "RemoteProtocolError", "ConnectError"])
def test_broken_connection_comes_with_a_way_out(name: str) -> None:
    library = importlib.import_module(HTTPError.__module__.partition(".")[0])
    error = getattr(library, name)("it broke")
    assert isinstance(error, list_user_errors())
    line = str(describe_error(error))
    assert "it broke" in line and "Repeat the command" in line


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
    assert ("HTTP 429" in line and "Wait a few minutes" in line) == (status == 429)


def test_file_that_cannot_be_written_comes_with_a_way_out() -> None:
    error = RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    assert "Make room on the disk" in str(describe_error(error))


def test_bug_is_not_explained_away() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert describe_error(error) is None
    assert not is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of memory"))


# Reading and writing


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "gone"), "a.csv is not there: no such file. Check the path."),
        (
            csv.Error("line contains NUL\nand more"),
            "a.csv cannot be read: line contains NUL and more",
        ),
        (pa.ArrowInvalid("no magic bytes"), "a.csv cannot be read: no magic bytes"),
        (SafetensorError("cut off"), "a.csv cannot be read: cut off"),
        (EOFError(), "a.csv cannot be read: EOFError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"), "a.csv is not UTF-8 text"),
    ],
)
def test_what_libraries_raise_becomes_one_line(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as found, explained_reading(Path("a.csv")):
        raise error
    assert str(found.value).startswith(message) and "\n" not in str(found.value)
    assert isinstance(error, list_reading_errors())
    assert get_reason(error) == (" ".join(str(error).split()) or type(error).__name__)


@pytest.mark.parametrize("error", [UserError("told"), KeyError("bug")])
def test_what_is_told_already_and_bugs_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as found, explained_reading("a.csv"):
        raise error
    assert found.value is error


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
        pytest.raises(UserError, match=r"/run cannot be written: .+\. Make room\.$") as caught,
        explained_writing(tmp_path / "run", way_out="Make room."),
    ):
        save(tmp_path / "file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_error_of_the_system_gives_its_reason(tmp_path: Path, number: int) -> None:
    with (
        pytest.raises(UserError, match=os.strerror(number)),
        explained_writing(tmp_path, way_out="Make room."),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        RuntimeError("shapes do not fit"),
        SafetensorError("invalid header"),
        UserError("The output folder is not empty."),
        KeyError("name"),
    ],
)
def test_other_errors_pass_through(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained_writing(tmp_path, way_out="Make room."):
        raise error
    assert caught.value is error


# Text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.csv: no such file", "a.csv: no such file"),
        ("é 分子 ångström", "é 分子 ångström"),
        ("x\x1b[31m\x07.csv", r"x\x1b[31m\x07.csv"),
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("\u202egnp.csv", r"\u202egnp.csv"),
        ("\udcff.csv", r"\udcff.csv"),
        ("nul\0", r"nul\x00"),
    ],
)
def test_a_message_is_one_line_without_power_over_the_terminal(text: str, shown: str) -> None:
    assert escape_message(text) == shown
    assert shown.isprintable()


def test_a_long_message_keeps_both_its_ends() -> None:
    shown = escape_message("start " + "C" * 10_000_000 + " end")
    assert shown.startswith("start CCC")
    assert shown.endswith("CCC end")
    assert "[... 9998010 characters ...]" in shown
    assert len(shown) < MAX_MESSAGE + 50


def test_log_records_are_escaped() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "%s: bad", ("a\n\x1b[2J.csv",), None)
    line = MessageFormatter("%(levelname)s: %(message)s").format(record)
    assert line == r"WARNING: a \x1b[2J.csv: bad"


def test_a_warning_stands_on_a_line_of_its_own_beside_a_progress_bar() -> None:
    screen = io.StringIO()
    with tqdm(total=3, file=screen) as bar:
        bar.update(2)
        record = logging.LogRecord("x", logging.WARNING, "f", 1, "two cells", None, None)
        ConsoleHandler(screen).handle(record)
    assert "two cells" in screen.getvalue().replace("\r", "\n").split("\n")
