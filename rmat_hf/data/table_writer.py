"""Write a table of results chunk by chunk, all or nothing."""

import csv
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from rmat_hf.errors import UserError
from rmat_hf.output_folder import open_atomically

logger = logging.getLogger(__name__)

# What to do with text that starts like a formula: an apostrophe in front, or nothing.
FormulaHandling = Literal["escape", "keep"]
ColumnKind = Literal["text", "integer", "number", "vector"]
ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "vector": pa.list_(pa.float32()),
}
OUTPUT_EXTENSIONS = (".csv", ".parquet")
# The starts that OWASP lists, after any blanks, tabs and line breaks; full-width ones count in
# Japanese spreadsheets.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠].*\w", re.DOTALL)
# A number, also with another decimal point or grouping, and a percent sign
_NUMBER = re.compile(
    r"\s*[+-]\s*(\d[\d.,' ]*|[.,]\d+)(e[+-]?\d+)?\s*%?\s*|\s*[+-](inf|infinity|nan)\s*"
)


def validate_output_path(
    path: str | os.PathLike[str], *, extensions: Sequence[str] = OUTPUT_EXTENSIONS
) -> None:
    """Raise a `UserError` when a table cannot be written there, before any work is done."""
    path = Path(path)
    if path.suffix.lower() not in extensions:
        raise UserError(f"{path}: cannot write this kind of file. Use {' or '.join(extensions)}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file.")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise UserError(
            f"{path}: the folder {path.parent} does not exist or is not writable. Create it first, "
            "or choose another."
        )


def build_output_schema(
    input_schema: pa.Schema | None, added_columns: Mapping[str, ColumnKind]
) -> pa.Schema:
    """Return the columns of a table of results, as [`TableWriter`] takes them.

    Raises:
        UserError: The input has a column that is to be added.
    """
    fields = list(input_schema or [])
    for name, kind in added_columns.items():
        if any(field.name == name for field in fields):
            raise UserError(
                f"The input already has a column {name!r}, which the output adds. "
                "Rename or drop it in the input."
            )
        fields.append(pa.field(name, ARROW_TYPES[kind]))
    return pa.schema(fields)


class TableWriter:
    """Write a .csv or .parquet file chunk by chunk; the file appears only when all went well.

    Use it as a context manager. Until the end the rows go to a hidden temporary file in the same
    folder, which an error removes; an older file of the same name stays untouched until then.

    Args:
        path (`str` or `os.PathLike`):
            The file to write.
        input_schema (`pa.Schema`, *optional*):
            Columns carried over from an input table (`Table.schema`), with their types.
        added_columns (`Mapping[str, ColumnKind]`, *optional*):
            Columns that follow: `"text"`, `"integer"`, `"number"` or `"vector"` (a list of
            float32). In a CSV file `None` and NaN become an empty cell.
        csv_formulas (`str`, *optional*, defaults to `"escape"`):
            In a CSV file text that a spreadsheet would run as a formula gets an apostrophe in
            front, as do names of columns; the log tells how often. `"keep"`: it does not.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        input_schema: pa.Schema | None = None,
        added_columns: Mapping[str, ColumnKind] | None = None,
        csv_formulas: FormulaHandling = "escape",
    ) -> None:
        validate_output_path(path)
        self.path = Path(path)
        self.schema = build_output_schema(input_schema, added_columns or {})
        self._escaper = FormulaEscaper(csv_formulas)
        self._stack = ExitStack()

    def __enter__(self) -> "TableWriter":
        stream = self._stack.enter_context(open_atomically(self.path))
        if self.path.suffix.lower() == ".parquet":
            parquet = self._stack.enter_context(pq.ParquetWriter(stream, self.schema))
            self._write_rows = parquet.write_table
        else:
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            self._stack.callback(text.detach)  # what waits is written; the stream stays open
            self._csv_writer = build_csv_writer(text)
            self._write_rows = self._write_csv_rows
            self._csv_writer.writerow(map(self._escaper.escape, self.schema.names))
        return self

    def write(self, columns: Mapping[str, pa.ChunkedArray | Sequence[Any]]) -> None:
        """Append rows: the announced columns, in any order, as Arrow has them or as lists."""
        self._write_rows(pa.Table.from_pydict(dict(columns), schema=self.schema))

    def __exit__(self, error_type: type[BaseException] | None, *details: Any) -> None:
        self._stack.__exit__(error_type, *details)
        if error_type is None:
            self._escaper.log_count(self.path)

    def _write_csv_rows(self, rows: pa.Table) -> None:
        columns = [map(self._escaper.escape, _list_csv_cells(column)) for column in rows.columns]
        self._csv_writer.writerows(zip(*columns, strict=True))


def _list_csv_cells(column: pa.ChunkedArray) -> list[Any]:
    """Return the cells of a column, empty for NaN. Times stay in Arrow, which knows them all."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))  # a zone may be unknown here
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        column = column.cast(pa.string())
    if pa.types.is_floating(kind):
        return [None if cell != cell else cell for cell in column.to_pylist()]
    return list(column.to_pylist())


def starts_like_formula(text: str) -> bool:
    """Tell whether a spreadsheet may run a cell: it starts with =, +, - or @ and is no number.

    No valid SMILES does. Signs alone, as in a cell for "none", are no formula.
    """
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text.lower())


class FormulaEscaper:
    """Puts an apostrophe in front of text that starts like a formula, and counts it.

    Numbers and all other text stay as they are. Without the apostrophe in front of `=`, `+`, `-` or
    `@` a cell is the original again.

    Args:
        handling (`str`, *optional*, defaults to `"escape"`): `"keep"` leaves everything as it is.
    """

    def __init__(self, handling: FormulaHandling = "escape") -> None:
        self.handling = handling
        self.num_escaped = 0

    def escape(self, value: object) -> object:
        """Return a cell as it is to be written."""
        if self.handling == "keep" or not isinstance(value, str) or not starts_like_formula(value):
            return value
        self.num_escaped += 1
        return "'" + value

    def log_count(self, path: Path) -> None:
        """Tell how many cells of a file got an apostrophe, if any did."""
        if self.num_escaped:
            logger.warning(
                "%s: %d cells start like a formula; an apostrophe in front keeps spreadsheets from "
                "running them.",
                path,
                self.num_escaped,
            )


def build_csv_writer(stream: TextIO) -> Any:
    r"""Return a `csv.writer` whose rows end with `\n`.

    A writer with that line terminator does not quote a lone `\r` before Python 3.13, and a cell
    with one would come back as two rows.
    """
    lines = SimpleNamespace(write=lambda row: stream.write(row.removesuffix("\r\n") + "\n"))
    return csv.writer(lines, lineterminator="\r\n")
