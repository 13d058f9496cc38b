"""Tell what is wrong with a file in one line that names it and says the way out."""

import csv
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from rmat_hf.output_folder import OutputError

# What the libraries raise for damaged files; OverflowError is for a date beyond the calendar.
READING_ERRORS = (
    *(csv.Error, pa.ArrowException, zlib.error),
    *(OSError, EOFError, ValueError, OverflowError),
)


class TableError(ValueError):
    """A mistake in the user's data or file names, told in one line that says the way out."""


@contextmanager
def explained_reading(path: Path | str) -> Iterator[None]:
    """Turn what reading a file raises into a `TableError` that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise TableError(f"{path}: no such file. Check the path.") from error
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except (TableError, OutputError):  # the latter is of whoever takes the rows
        raise
    except READING_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TableError(f"{path} cannot be read: {reason}") from error
