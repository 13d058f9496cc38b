"""Open an input file only if it is what its name says, and read it line by line."""

import gzip
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# Characters of a line; a file that decompresses to one endless line must not fill the memory.
MAX_LINE_LENGTH = 2**26

# How other files start, and what to do with them.
_SIGNATURES = {
    b"PK\x03\x04": "it is a ZIP archive or an Excel workbook. Save the table as CSV",
    b"\x1f\x8b": "it is compressed with gzip. Name it .csv.gz or decompress it",
    b"PAR1": "it is a Parquet file. Name it .parquet",
    b"\xff\xfe": "it is UTF-16 and not UTF-8 text. Save it as UTF-8",
    b"\xfe\xff": "it is UTF-16 and not UTF-8 text. Save it as UTF-8",
    b"\xd0\xcf\x11\xe0": "it is an old Excel workbook. Save the table as CSV",
}


def validate_regular_file(path: Path) -> None:
    """Raise a `ValueError` for a pipe, a device or a socket, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a pipe or a device, not a file. Save its content to a file")


def open_text(path: Path) -> TextIO:
    """Open a file of UTF-8 text, compressed if its name ends in .gz.

    Raises:
        ValueError: It starts like a file of another kind.
    """
    validate_regular_file(path)
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    with path.open("rb") as stream:
        start = stream.read(4)
    for signature, explanation in _SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(explanation)
    if start in (b"\xef", b"\xef\xbb"):  # Python would read it as no text at all
        raise ValueError("it ends within its byte order mark")
    return path.open(encoding="utf-8-sig", newline="")


def iterate_lines(stream: TextIO) -> Iterator[str]:
    """Yield the lines with their ends; a `ValueError` names one that is endless."""
    number = 0
    while line := stream.readline(MAX_LINE_LENGTH):
        number += 1
        if len(line) == MAX_LINE_LENGTH:
            raise ValueError(f"line {number} has more than {MAX_LINE_LENGTH} characters")
        yield line
