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
from typing import Any, Literal

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


def validate_output_path(path: str | os.PathLike[str]) -> None:
    """Raise a `UserError` when a table cannot be written there, before any work is done."""
    path, obstacle = Path(path), ""
    if path.suffix.lower() not in OUTPUT_EXTENSIONS:
        obstacle = f"cannot be written as this kind of file. Use {' or '.join(OUTPUT_EXTENSIONS)}"
    elif path.is_dir():
        obstacle = "is a folder. Name a file"
    elif not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        obstacle = "lies in a folder that does not exist or is not writable. Create it first"
    if obstacle:
        raise UserError(f"{path} {obstacle}.")


def build_output_schema(
    input_schema: pa.Schema | None, added_columns: Mapping[str, ColumnKind]
) -> pa.Schema:
    """Return the columns of a table of results, as [`TableWriter`] takes them.

    Raises:
        UserError: The input has a column that is to be added.
    """
    schema = input_schema or pa.schema([])
    for name, kind in added_columns.items():
        if name in schema.names:
            raise UserError(
                f"The input already has a column {name!r}, which the output adds. "
                "Rename or drop it in the input."
            )
        schema = schema.append(pa.field(name, ARROW_TYPES[kind]))
    return schema


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
        self._csv_formulas = csv_formulas
        self._num_escaped = 0
        self._stack = ExitStack()

    def __enter__(self) -> "TableWriter":
        stream = self._stack.enter_context(open_atomically(self.path))
        if self.path.suffix.lower() == ".parquet":
            parquet = self._stack.enter_context(pq.ParquetWriter(stream, self.schema))
            self._write_rows = parquet.write_table
        else:
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            self._stack.callback(text.detach)  # what waits is written; the stream stays open
            # A writer of rows that end with "\n" does not quote a lone "\r" before Python 3.13, and
            # a cell with one would come back as two rows.
            lines = SimpleNamespace(write=lambda row: text.write(row.removesuffix("\r\n") + "\n"))
            self._csv_writer = csv.writer(lines, lineterminator="\r\n")
            self._write_rows = self._write_csv_rows
            self._csv_writer.writerow(map(self._escape, self.schema.names))
        return self

    def write(self, columns: Mapping[str, pa.ChunkedArray | Sequence[Any]]) -> None:
        """Append rows: the announced columns, in any order, as Arrow has them or as lists."""
        self._write_rows(pa.Table.from_pydict(dict(columns), schema=self.schema))

    def __exit__(self, error_type: type[BaseException] | None, *details: Any) -> None:
        self._stack.__exit__(error_type, *details)
        if error_type is None and self._num_escaped:
            logger.warning(
                "%s: %d cells start like a formula; an apostrophe in front keeps spreadsheets from "
                "running them.",
                self.path,
                self._num_escaped,
            )

    def _write_csv_rows(self, rows: pa.Table) -> None:
        columns = [map(self._escape, _list_csv_cells(column)) for column in rows.columns]
        self._csv_writer.writerows(zip(*columns, strict=True))

    def _escape(self, cell: object) -> object:
        is_kept = self._csv_formulas == "keep" or not isinstance(cell, str)
        if is_kept or not starts_like_formula(str(cell)):
            return cell
        self._num_escaped += 1
        return f"'{cell}"


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
