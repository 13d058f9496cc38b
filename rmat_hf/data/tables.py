"""Read a table of molecules (CSV, Parquet, SDF) chunk by chunk, in order, cells as they are."""

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from rdkit import Chem

from rmat_hf.data.parquet_rows import ParquetFooter, read_footer, read_parquet_ranges
from rmat_hf.data.row_ranges import take_ranges
from rmat_hf.data.sdf import compute_record_smiles, iterate_sdf_records, parse_mol_block
from rmat_hf.data.text_input import iterate_lines, open_text, validate_regular_file
from rmat_hf.errors import MAX_VALUE, UserError, describe_value, explained_reading

SDF_SMILES_COLUMN = "smiles"
SDF_TITLE_COLUMN = "sdf_title"
MAX_COLUMNS_SHOWN = 30


@dataclass(frozen=True)
class TableChunk:
    """Consecutive rows of a table; `mols` is set for the structures of an SDF file only."""

    source: str
    columns: dict[str, list[Any]]
    num_rows: int
    mols: list[Chem.Mol | None] | None = None

    def molecules(self, smiles_column: str) -> list[str | Chem.Mol | None]:
        """Return one molecule per row.

        Args:
            smiles_column (`str`):
                Column of SMILES. In an SDF file, `"smiles"` stands for the structures themselves,
                with their coordinates; a record that cannot be read is `None`.

        Returns:
            `list[str | Chem.Mol | None]`, as long as the chunk.
        """
        if self.mols is not None and smiles_column == SDF_SMILES_COLUMN:
            return list(self.mols)
        validate_columns(self.columns, [smiles_column], source=self.source)
        values = self.columns[smiles_column]
        for value in values:
            if value is not None and not isinstance(value, str):
                raise UserError(
                    f"{self.source}: column {smiles_column!r} holds {describe_value(value)}, "
                    "which is not text. Name the column of SMILES."
                )
        return list(values)


@dataclass(frozen=True)
class Table:
    """A table that is read in chunks, so that memory does not grow with the file.

    Args:
        source (`str`):
            Name of the file or data set, for messages.
        schema (`pa.Schema`):
            Columns and their types.
        num_rows (`int`):
            Exact number of rows.
        read_chunks (`Callable[[int, Iterable[range]], Iterator[TableChunk]]`):
            Yields the rows of the ranges, at most so many at a time, as `take_ranges` does.
            Functions of a module, so that a table can be sent to another process.
        files (`tuple[str, ...]`, *optional*):
            Paths, or addresses on the Hub with their commit, that decide the rows.
    """

    source: str
    schema: pa.Schema
    num_rows: int
    read_chunks: Callable[[int, Iterable[range]], Iterator[TableChunk]]
    files: tuple[str, ...] = ()

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in the order of the source."""
        return list(self.schema.names)

    def iterate_chunks(
        self, chunk_size: int, *, ranges: Iterable[range] | None = None
    ) -> Iterator[TableChunk]:
        """Yield the rows in order, `chunk_size` at a time; each call starts at the first row.

        Args:
            chunk_size (`int`): Most rows of a chunk.
            ranges (`Iterable[range]`, *optional*):
                Rows to read, ascending, none twice; a chunk lies within one of them. By default
                all rows.
        """
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1.")
        if ranges is None:
            ranges = [range(self.num_rows)] if self.num_rows else []
        return self._iterate_counted(chunk_size, ranges)

    def _iterate_counted(self, chunk_size: int, ranges: Iterable[range]) -> Iterator[TableChunk]:
        num_rows = num_expected = 0

        def take() -> Iterator[range]:
            nonlocal num_expected
            for wanted in ranges:
                num_expected += len(wanted)
                yield wanted

        for chunk in self.read_chunks(chunk_size, take()):
            num_rows += chunk.num_rows
            yield chunk
        if num_rows != num_expected:
            raise UserError(
                f"{self.source}: {num_rows} rows were read of {num_expected}. The file is damaged "
                "or has changed meanwhile: repair it and repeat the command."
            )


def validate_columns(columns: Iterable[str], required: Iterable[str], *, source: str) -> None:
    """Raise a `UserError` that lists the columns there are when a required one is missing."""
    columns = list(columns)
    missing = [name for name in required if name not in columns]
    if not missing:
        return
    shown = ", ".join(name[:MAX_VALUE] for name in columns[:MAX_COLUMNS_SHOWN])
    shown += f" and {len(columns) - MAX_COLUMNS_SHOWN} more" * (len(columns) > MAX_COLUMNS_SHOWN)
    message = f"{source} has no column {missing[0]!r}. Its columns are: {shown}."
    for name in columns:
        if name.strip().lower() == missing[0].strip().lower():
            message += f" Did you mean {name!r}?"
    raise UserError(message + _describe_separator(columns))


def _describe_separator(columns: Sequence[str]) -> str:
    """Return a hint if a header looks like one with another separator than the comma."""
    if len(columns) == 1 and any(separator in columns[0] for separator in ";\t|"):
        return (
            " It seems to have another separator than the comma: save it with commas between "
            "cells and points in numbers."
        )
    return ""


def open_table(path: str | os.PathLike[str]) -> Table:
    """Open a .csv, .parquet or .sdf file; the whole file is checked before the first row is used.

    CSV cells are kept as their exact text. A Parquet file keeps its column types. The columns of an
    SDF file are `"smiles"`, the title line (`"sdf_title"`, when there is one) and every property.

    Args:
        path (`str` or `os.PathLike`):
            The file. CSV and SDF, also as .csv.gz and .sdf.gz, are UTF-8 text.

    Returns:
        `Table`.
    """
    path = Path(path)
    openers = {".csv": _open_csv, ".csv.gz": _open_csv}
    openers |= {".parquet": _open_parquet, ".sdf": _open_sdf, ".sdf.gz": _open_sdf}
    is_compressed = path.suffix.lower() == ".gz"
    opener = openers.get("".join(path.suffixes[-2 if is_compressed else -1 :]).lower())
    if opener is None:
        raise UserError(f"{path}: cannot read this kind of file. Use .csv, .parquet or .sdf.")
    with explained_reading(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder. Name a .csv, .parquet or .sdf file.")
        validate_regular_file(path)
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty. Expected at least a header line.")
        return opener(path)


def _validate_unique(names: Sequence[str], path: Path) -> None:
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        name = describe_value(duplicates[0])
        raise UserError(f"{path}: two columns are called {name}. Rename one of them.")


def _iterate_csv_rows(path: Path) -> Iterator[list[str]]:
    """Yield the header, then the rows. Blank lines count in the middle of one-column files only."""
    with open_text(path) as stream:
        reader = csv.reader(iterate_lines(stream), strict=True)
        try:
            header = next(reader, [])
            yield header
            num_blank = 0
            for cells in reader:
                if not cells:
                    num_blank += 1
                    continue
                if len(header) == 1:
                    yield from ([""] for _ in range(num_blank))
                num_blank = 0
                if len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} cells, but the header has "
                        f"{len(header)}. Quote cells that contain commas."
                        + _describe_separator(header)
                    )
                yield cells
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {error}. Correct or drop the row."
            ) from error


def _open_csv(path: Path) -> Table:
    rows = _iterate_csv_rows(path)
    header = next(rows)
    if not any(name.strip() for name in header):
        raise UserError(f"{path}: the first line is blank. It must hold the column names.")
    if "\0" in "".join(header):
        raise UserError(f"{path} is not a CSV table: its first line holds binary data.")
    _validate_unique(header, path)

    schema = pa.schema([(name, pa.string()) for name in header])
    num_rows = sum(1 for _ in rows)
    read_chunks = partial(_read_csv, path, header, num_rows)
    return Table(str(path), schema, num_rows, read_chunks, (str(path),))


def _read_csv(  # noqa: PLR0917 - tables call it by position
    path: Path, header: list[str], num_rows: int, chunk_size: int, ranges: Iterable[range]
) -> Iterator[TableChunk]:
    with explained_reading(path):
        rows = _iterate_csv_rows(path)
        next(rows)
        for chunk in take_ranges(rows, ranges, chunk_size=chunk_size, num_items=num_rows):
            columns = dict(zip(header, map(list, zip(*chunk, strict=True)), strict=True))
            yield TableChunk(str(path), columns, len(chunk))


def _open_parquet(path: Path) -> Table:
    footer = read_footer(str(path))
    _validate_unique(footer.schema.names, path)
    read_chunks = partial(read_parquet, footer, None)
    return Table(str(path), footer.schema, footer.num_rows, read_chunks, (str(path),))


def read_parquet(  # noqa: PLR0917 - tables call it by position
    footer: ParquetFooter, columns: Sequence[str] | None, chunk_size: int, ranges: Iterable[range]
) -> Iterator[TableChunk]:
    """Yield the rows of a Parquet file as `Table.read_chunks` does; all columns if `None`."""
    with explained_reading(footer.path):
        chunks = read_parquet_ranges(footer, ranges, chunk_size=chunk_size, columns=columns)
        for chunk in chunks:
            yield TableChunk(footer.path, chunk.to_pydict(), chunk.num_rows)


def _open_sdf(path: Path) -> Table:
    names: dict[str, None] = {}
    num_rows = num_blocks = num_titles = 0
    for record in iterate_sdf_records(path):
        names.update(dict.fromkeys(record.properties))
        num_rows += 1
        num_blocks += bool(record.mol_block)
        num_titles += bool(record.title.strip())
    if num_blocks == 0:
        raise UserError(f"{path} is not an SDF file: no record has an 'M  END' line.")
    generated = [SDF_SMILES_COLUMN] + [SDF_TITLE_COLUMN] * (num_titles > 0)
    column_names = [name for name in generated if name not in names] + list(names)
    schema = pa.schema([(name, pa.string()) for name in column_names])
    read_chunks = partial(_read_sdf, path, list(names), column_names, num_rows)
    return Table(str(path), schema, num_rows, read_chunks, (str(path),))


def _read_sdf(  # noqa: PLR0917 - tables call it by position
    path: Path,
    properties: list[str],
    column_names: list[str],
    num_rows: int,
    chunk_size: int,
    ranges: Iterable[range],
) -> Iterator[TableChunk]:
    with explained_reading(path):
        records_of_file = iterate_sdf_records(path)
        for records in take_ranges(
            records_of_file, ranges, chunk_size=chunk_size, num_items=num_rows
        ):
            mols = [parse_mol_block(record.mol_block) for record in records]
            columns: dict[str, list[Any]] = {
                SDF_SMILES_COLUMN: [compute_record_smiles(mol) for mol in mols],
                SDF_TITLE_COLUMN: [record.title for record in records],
            }
            for name in properties:
                columns[name] = [record.properties.get(name) for record in records]
            columns = {name: columns[name] for name in column_names}
            yield TableChunk(str(path), columns, len(records), mols)
