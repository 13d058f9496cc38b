"""Lines and cells of files of text, however their program writes them.

CSV goes through Python's reader: pyarrow's takes the rest of a file after a stray quote for one
cell, without a word.
"""

import codecs
import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from rmat_hf.data.sdf import MAX_LENGTH
from rmat_hf.errors import UserError

UTF_8 = "utf-8-sig"
# What is no UTF-8 is Windows' Western European, or Latin-1, which has a letter for every byte.
_OTHER_ENCODINGS = (UTF_8, "cp1252", "latin-1")
_BLOCK_SIZE = 2**16
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Lines that tell the separator, and the one that Excel writes to tell it.
_NUM_SAMPLE_LINES = 100
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)
# How files of other kinds start, and what to do with them.
_SIGNATURES = {
    b"PK\x03\x04": "it is a ZIP archive or an Excel workbook. Name a workbook .xlsx",
    b"\xd0\xcf\x11\xe0": "it is an old Excel workbook. Save it as .xlsx or CSV",
    b"\x1f\x8b": "it is compressed with gzip. Name it .csv.gz or decompress it",
    b"PAR1": "it is a Parquet file. Name it .parquet",
}


@dataclass(frozen=True)
class Dialect:
    """How a file of cells is written.

    Args:
        encoding (`str`): Of its text.
        delimiter (`str`): Between cells.
    """

    encoding: str = UTF_8
    delimiter: str = ","

    def __str__(self) -> str:
        encoding = "" if self.encoding == UTF_8 else f", {self.encoding} text"
        return f"CSV with {DELIMITERS.get(self.delimiter, repr(self.delimiter))}{encoding}"


def find_encoding(path: str | Path) -> str:
    """Return the encoding of a file of text, also one that ends in .gz."""
    is_compressed = str(path).lower().endswith(".gz")
    with open(path, "rb") as stream:
        start = b"" if is_compressed else stream.read(4)
    for signature, explanation in _SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(explanation)
    with _open_bytes(path) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    return next(it for it in _OTHER_ENCODINGS if it == "latin-1" or _is_in(path, it))


def _open_bytes(path: str | Path) -> BinaryIO:
    if str(path).lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def _is_in(path: str | Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with _open_bytes(path) as stream:
        try:
            while block := stream.read(_BLOCK_SIZE):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def iterate_lines(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a file of text, also one that ends in .gz, with their ends."""
    encoding = encoding or find_encoding(path)
    open_text = gzip.open if str(path).lower().endswith(".gz") else open
    with open_text(path, "rt", encoding=encoding, newline="") as text:
        number = 0
        while line := text.readline(MAX_LENGTH):
            number += 1
            if len(line) == MAX_LENGTH:
                raise ValueError(f"line {number} has more than {MAX_LENGTH} characters")
            yield line


def find_dialect(path: str | Path) -> Dialect:
    """Return the encoding of a file, and the separator that its first line and rows agree on."""
    encoding = find_encoding(path)
    lines = list(islice(iterate_lines(path, encoding), _NUM_SAMPLE_LINES))
    if lines and (told := _SEPARATOR_LINE.fullmatch(lines[0])):
        return Dialect(encoding, told[1])
    scores = {delimiter: _score_delimiter(lines, delimiter) for delimiter in DELIMITERS}
    return Dialect(encoding, max(scores, key=lambda delimiter: scores[delimiter]))


def _score_delimiter(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """Return the share of rows as wide as the header, and that width; nothing of one column."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:  # of a cell without end, which is reported when it is read
        rows = [lines[0].split(delimiter)]
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    return (1 + sum(len(row) == width for row in rows[1:])) / len(rows), width


def iterate_csv_rows(path: str, dialect: Dialect) -> Iterator[list[str]]:
    """Yield the header, then the rows. Blank lines count in the middle of one-column files only.

    Cells without text or name behind the last named column, which spreadsheets write, are left out.
    """
    lines = iterate_lines(path, dialect.encoding)
    reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    try:
        header = next(reader, [])
        if _SEPARATOR_LINE.fullmatch(dialect.delimiter.join(header)):
            header = next(reader, [])
        has_one_column = len(header) == 1
        while len(header) > 1 and not header[-1].strip():
            header.pop()
        yield header
        num_blank = 0
        for cells in reader:
            if not cells:
                num_blank += 1
                continue
            if has_one_column:
                yield from ([""] for _ in range(num_blank))
            num_blank = 0
            if len(cells) != len(header):
                if len(cells) < len(header) or any(map(str.strip, cells[len(header) :])):
                    raise csv.Error(
                        f"{len(cells)} cells, but the header has {len(header)}. Quote cells that "
                        f"contain {DELIMITERS.get(dialect.delimiter, 'separators')}."
                    )
                cells = cells[: len(header)]
            yield cells
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error} Correct or drop the row."
        ) from error
