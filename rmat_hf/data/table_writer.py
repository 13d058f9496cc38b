"""Write a table of results chunk by chunk, all or nothing."""

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rmat_hf.data.csv_formulas import FormulaEscaper, FormulaHandling
from rmat_hf.data.csv_rows import build_csv_writer
from rmat_hf.errors import UserError

ColumnKind = Literal["text", "integer", "number", "vector"]
ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "vector": pa.list_(pa.float32()),
}
OUTPUT_EXTENSIONS = (".csv", ".parquet")


def validate_output_path(
    path: str | os.PathLike[str], *, extensions: Sequence[str] = OUTPUT_EXTENSIONS
) -> None:
    """Raise a `UserError` when a table cannot be written there, before any work is done."""
    path = Path(path)
    if path.suffix.lower() not in extensions:
        raise UserError(f"{path}: cannot write this kind of file. Use {' or '.join(extensions)}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: the folder {path.parent} is not writable.")


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
            front, as do names of input columns; the log tells how often. `"keep"`: it does not.
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
        self._escaper = FormulaEscaper(csv_formulas)
        self._input_names = set((input_schema or pa.schema([])).names)
        self.path = Path(path)
        self.schema = build_output_schema(input_schema, added_columns or {})
        self.temporary_path = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.tmp")
        self._stream: TextIO | None = None
        self._parquet_writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "TableWriter":
        try:
            with self._explained_writing():
                if self.path.suffix.lower() == ".parquet":
                    self._parquet_writer = pq.ParquetWriter(self.temporary_path, self.schema)
                else:
                    self._stream = self.temporary_path.open("w", encoding="utf-8", newline="")
                    header = [
                        self._escaper.escape(name) if name in self._input_names else name
                        for name in self.schema.names
                    ]
                    build_csv_writer(self._stream).writerow(header)
        except UserError:
            self.temporary_path.unlink(missing_ok=True)
            raise
        return self

    def write(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Append rows: exactly the announced columns, in any order, all of one length."""
        if set(columns) != set(self.schema.names):
            raise ValueError(f"Got columns {list(columns)}, expected {self.schema.names}.")
        with self._explained_writing():
            if self._parquet_writer is not None:
                arrays = [pa.array(columns[field.name], type=field.type) for field in self.schema]
                self._parquet_writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
            elif self._stream is not None:
                cells = [
                    [self._escaper.escape(_build_csv_cell(value)) for value in columns[name]]
                    for name in self.schema.names
                ]
                rows = zip(*cells, strict=True)
                build_csv_writer(self._stream).writerows(rows)
            else:
                raise ValueError("Use TableWriter in a with statement.")

    def __exit__(self, error_type: type[BaseException] | None, *details: object) -> None:
        try:
            with self._explained_writing():
                for file in (self._parquet_writer, self._stream):
                    if file is not None:
                        file.close()
                if error_type is None:
                    with self.temporary_path.open("rb+") as file:
                        os.fsync(file.fileno())  # the content is on the disk before the name is
                    os.replace(self.temporary_path, self.path)
                    self._escaper.log_count(self.path)
        finally:
            self._parquet_writer = self._stream = None
            self.temporary_path.unlink(missing_ok=True)

    @contextmanager
    def _explained_writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{self.path} cannot be written: {reason}.") from error
        except pa.ArrowException as error:
            raise UserError(f"{self.path} cannot be written: {error}") from error


def _build_csv_cell(value: object) -> object:
    return None if isinstance(value, float | np.floating) and np.isnan(value) else value
