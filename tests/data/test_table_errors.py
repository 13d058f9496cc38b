import csv
from pathlib import Path

import pyarrow as pa
import pytest

from rmat_hf.data.table_errors import READING_ERRORS, TableError, explained_reading
from rmat_hf.output_folder import OutputError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "gone"), "a.csv: no such file. Check the path."),
        (csv.Error("line contains NUL\nand more"), "a.csv cannot be read: line contains NUL"),
        (pa.ArrowInvalid("no magic bytes"), "a.csv cannot be read: no magic bytes"),
        (EOFError(), "a.csv cannot be read: EOFError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"), "a.csv is not UTF-8 text"),
    ],
)
def test_what_libraries_raise_becomes_one_line(error: Exception, message: str) -> None:
    with pytest.raises(TableError) as found, explained_reading(Path("a.csv")):
        raise error
    assert str(found.value).startswith(message) and "\n" not in str(found.value)
    assert isinstance(error, READING_ERRORS)


@pytest.mark.parametrize("error", [TableError("told"), OutputError("full"), KeyError("bug")])
def test_what_is_told_already_and_bugs_stay(error: Exception) -> None:
    with pytest.raises(type(error)) as found, explained_reading("a.csv"):
        raise error
    assert found.value is error
