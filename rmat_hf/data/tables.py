"""Read any table of molecules (CSV, SMILES, SDF, Parquet; here or on the Hub) as Arrow columns.

CSV goes through Python's reader: pyarrow's takes the rest of a file after a stray quote for one
cell, without a word.
"""

import csv
import gzip
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rmat_hf.data.sdf import (
    MAX_LENGTH,
    compute_record_smiles,
    iterate_sdf_records,
    parse_mol_block,
)
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.model.features_rmat import Molecule, MoleculeError

HUB_PREFIX = "hf://"
SMILES_COLUMN = "smiles"
SDF_TITLE_COLUMN = "sdf_title"
SMI_NAME_COLUMN = "smi_name"
# Bytes of a SMILES, and of a column of text in a batch; a small Parquet file can expand to more
# than any memory.
MAX_SMILES_BYTES = 2**17
MAX_BATCH_BYTES = 2**26
_BATCH_ROWS = 1024
_SDF_BATCH_ROWS = 64
# Bytes of a column of Parquet that wait to be decoded; without a limit all of a row group.
_BUFFER_SIZE = 2**20
# How files of other kinds start, and what to do with them.
_SIGNATURES = {
    b"PK\x03\x04": "it is a ZIP archive or an Excel workbook. Save the table as CSV",
    b"\xd0\xcf\x11\xe0": "it is an old Excel workbook. Save the table as CSV",
    b"\x1f\x8b": "it is compressed with gzip. Name it .csv.gz or decompress it",
    b"PAR1": "it is a Parquet file. Name it .parquet",
    b"\xff\xfe": "it is UTF-16 and not UTF-8 text. Save it as UTF-8",
    b"\xfe\xff": "it is UTF-16 and not UTF-8 text. Save it as UTF-8",
}


@dataclass(frozen=True)
class TableChunk:
    """Consecutive rows of a table.

    Args:
        source (`str`): Name of the file, for messages.
        table (`pa.Table`): The rows.
        mols (`list`, *optional*): The structures of an SDF file.
    """

    source: str
    table: pa.Table
    mols: Sequence[Molecule] | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    @property
    def columns(self) -> dict[str, pa.ChunkedArray]:
        """The columns by name, as Arrow has them."""
        return dict(zip(self.table.column_names, self.table.columns, strict=True))

    def molecules(self, smiles_column: str) -> list[Molecule]:
        """Return one molecule per row, or the error of one that cannot be read.

        Args:
            smiles_column (`str`):
                Column of SMILES. In an SDF file, `"smiles"` stands for the structures themselves,
                with their coordinates.
        """
        if self.mols is not None and smiles_column == SMILES_COLUMN:
            return list(self.mols)
        validate_smiles_column(self.table.schema, smiles_column, source=self.source)
        texts = self.table.column(smiles_column).cast(pa.large_string())
        is_long = pc.greater(pc.binary_length(texts), MAX_SMILES_BYTES)
        molecules: list[Molecule] = pc.if_else(is_long, None, texts).to_pylist()
        for idx in pc.indices_nonzero(is_long).to_pylist():
            molecules[idx] = MoleculeError(f"the SMILES has more than {MAX_SMILES_BYTES} bytes")
        return molecules

    def slice(self, start: int, length: int) -> "TableChunk":
        """Return some of the rows."""
        mols = None if self.mols is None else self.mols[start : start + length]
        return TableChunk(self.source, self.table.slice(start, length), mols)


# Yields rows with the columns of a schema; a column that a file lacks is empty there.
_ReadFile = Callable[[str, pa.Schema], Iterator[TableChunk]]
# The columns of a file, its number of rows, and how they are read.
_Opened = tuple[pa.Schema, int, _ReadFile]


@dataclass(frozen=True)
class Table:
    """A table that is read in chunks, so that memory does not grow with the file.

    Args:
        source (`str`): Name of the file or data set, for messages.
        schema (`pa.Schema`): Columns and their types; those that are read.
        num_rows (`int`): Exact number of rows.
        read (`Callable`): Takes the schema, yields all rows, some at a time. It can be pickled.
        files (`tuple[str, ...]`, *optional*): Paths, or addresses on the Hub with their commit.
        split_column (`str`, *optional*): Column with the data set's own train and test.
    """

    source: str
    schema: pa.Schema
    num_rows: int
    read: Callable[[pa.Schema], Iterator[TableChunk]]
    files: tuple[str, ...] = ()
    split_column: str | None = None

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in the order of the source."""
        return list(self.schema.names)

    def select(self, names: Iterable[str]) -> "Table":
        """Return the table with some of its columns; the others are not read.

        Raises:
            UserError: There is no such column; the message lists those there are.
        """
        names = list(dict.fromkeys(names))
        validate_columns(self.column_names, names, source=self.source)
        return replace(self, schema=pa.schema([self.schema.field(name) for name in names]))

    def iterate_chunks(self, chunk_size: int) -> Iterator[TableChunk]:
        """Yield the rows in order, `chunk_size` at a time; each call starts at the first row.

        Raises:
            UserError: The source has other rows than when it was opened, or is damaged.
        """
        num_rows = 0
        for chunk in _resize(self.read(self.schema), chunk_size):
            num_rows += chunk.num_rows
            if num_rows > self.num_rows:
                break
            yield chunk
        if num_rows != self.num_rows:
            raise UserError(
                f"{self.source} has other rows than the {self.num_rows} that it had at first, it "
                "has changed meanwhile. Repeat the command."
            )


def _resize(chunks: Iterator[TableChunk], size: int) -> Iterator[TableChunk]:
    """Yield the same rows, `size` at a time, whatever the sizes they come in."""
    rest = TableChunk("", pa.table({}))
    for chunk in chunks:
        if rest.num_rows:
            rows = pa.concat_tables([rest.table, chunk.table])
            mols = [*(rest.mols or []), *(chunk.mols or [])]
            chunk = TableChunk(rest.source, rows, mols or None)
        for start in range(0, chunk.num_rows - size + 1, size):
            yield chunk.slice(start, size)
        rest = chunk.slice(chunk.num_rows // size * size, size)
    if rest.num_rows:
        yield rest


def build_table(rows: pa.Table, *, source: str) -> Table:
    """Return rows in memory as a table."""
    return Table(source, rows.schema, rows.num_rows, partial(_read_memory, rows, source=source))


def _read_memory(rows: pa.Table, schema: pa.Schema, *, source: str) -> Iterator[TableChunk]:
    yield TableChunk(source, rows.select(schema.names))


def validate_columns(columns: Iterable[str], required: Iterable[str], *, source: str) -> None:
    """Raise a `UserError` that lists the columns there are when a required one is missing."""
    columns = list(columns)
    for name in required:
        if name not in columns:
            meant = [other for other in columns if other.strip().lower() == name.strip().lower()]
            raise UserError(
                f"{source} has no column {name!r}. Its columns are: {', '.join(columns)}."
                + "".join(f" Did you mean {other!r}?" for other in meant)
                + _describe_separator(columns)
            )


def validate_smiles_column(schema: pa.Schema, smiles_column: str, *, source: str) -> None:
    """Raise a `UserError` when there is no such column, or when it holds no text."""
    validate_columns(schema.names, [smiles_column], source=source)
    kind = schema.field(smiles_column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (_is_text(value_kind) or pa.types.is_null(kind)):
        raise UserError(
            f"{source}: column {smiles_column!r} holds {kind}, which is not text. Name the column "
            "of SMILES."
        )


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _describe_separator(columns: Sequence[str]) -> str:
    """Return a hint if a header looks like one with another separator than the comma."""
    hint = (
        " It seems to have another separator than the comma: save it with commas between cells and "
        "points in numbers."
    )
    return hint if len(columns) == 1 and re.search(r"[;\t|]", columns[0]) else ""


def open_file(path: str | Path) -> Table:
    """Open one file; all of it is checked before the first row is used.

    CSV cells are kept as their exact text. A Parquet file keeps its column types. The columns of an
    SDF file are `"smiles"`, the title line (`"sdf_title"`, when there is one) and every property;
    those of a .smi file (a SMILES, then anything after a blank; no header) `"smiles"` and, where
    there is more, `"smi_name"`.

    Args:
        path (`str` or `Path`):
            A .csv, .smi, .sdf (each also .gz), .parquet or .arrow file, as `save_to_disk` of
            `datasets` writes; Parquet also at an `hf://` address.

    Raises:
        UserError: It cannot be read; names the file, and the line or record if there is one.
    """
    path = str(path)
    with explained_reading(path):
        kind = find_kind(path)
        is_endless = not path.startswith(HUB_PREFIX) and not stat.S_ISREG(os.stat(path).st_mode)
        if is_endless or kind is None:
            raise UserError(
                f"{path} is a folder, a pipe or a device, or a file of another kind. Use "
                f"{', '.join(KINDS)} files, text also with .gz."
            )
        schema, num_rows, read = KINDS[kind](path)
    name, count = Counter(schema.names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: two columns are called {reprlib.repr(name)}. Rename one of them.")
    return Table(path, schema, num_rows, partial(_read_file, path, read=read), (path,))


def find_kind(name: str) -> str | None:
    """Return which of `KINDS` a file is by its name, `None` if none."""
    found = re.search(r"(\.csv|\.sdf|\.smi)(\.gz)?$|(\.parquet|\.arrow)$", name.lower())
    return found and (found[1] or found[3])


def _read_file(path: str, schema: pa.Schema, *, read: _ReadFile) -> Iterator[TableChunk]:
    with explained_reading(path):
        yield from read(path, schema)


def iterate_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a file of UTF-8 text, also one that ends in .gz, with their ends.

    Raises:
        ValueError: The file starts like one of another kind, or a line is endless.
    """
    is_compressed = str(path).lower().endswith(".gz")
    with open(path, "rb") as stream:
        start = b"" if is_compressed else stream.read(4)
    for signature, explanation in _SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(explanation)
    open_text = gzip.open if is_compressed else open
    with open_text(path, "rt", encoding="utf-8-sig", newline="") as text:
        number = 0
        while line := text.readline(MAX_LENGTH):
            number += 1
            if len(line) == MAX_LENGTH:
                raise ValueError(f"line {number} has more than {MAX_LENGTH} characters")
            yield line


def _iterate_csv_rows(path: str) -> Iterator[list[str]]:
    """Yield the header, then the rows. Blank lines count in the middle of one-column files only."""
    reader = csv.reader(iterate_lines(path), strict=True)
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
                raise csv.Error(
                    f"{len(cells)} cells, but the header has {len(header)}. Quote cells that "
                    f"contain commas.{_describe_separator(header)}"
                )
            yield cells
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error} Correct or drop the row."
        ) from error


def _iterate_smi_rows(path: str) -> Iterator[list[str | None]]:
    yield [SMILES_COLUMN, SMI_NAME_COLUMN]
    for line in iterate_lines(path):
        if parts := line.split(maxsplit=1):
            yield [parts[0], parts[1].rstrip() if len(parts) > 1 else None]


def _open_csv(path: str) -> _Opened:
    rows = _iterate_csv_rows(path)
    header = next(rows)
    if not any(name.strip() for name in header) or "\0" in "".join(header):
        raise UserError(
            f"{path} is not a CSV table: its first line is blank or binary. It must hold the "
            "column names."
        )
    schema = pa.schema([(name, pa.string()) for name in header])
    return schema, sum(1 for _ in rows), partial(_read_rows, iterate_rows=_iterate_csv_rows)


def _open_smi(path: str) -> _Opened:
    counts = Counter(name is not None for _, name in islice(_iterate_smi_rows(path), 1, None))
    names = [SMILES_COLUMN, SMI_NAME_COLUMN][: 1 + (counts[True] > 0)]
    schema = pa.schema([(name, pa.string()) for name in names])
    return schema, counts.total(), partial(_read_rows, iterate_rows=_iterate_smi_rows)


def _read_rows(
    path: str, schema: pa.Schema, *, iterate_rows: Callable[[str], Iterator[Sequence[str | None]]]
) -> Iterator[TableChunk]:
    rows = iterate_rows(path)
    header = next(rows)
    while batch := list(islice(rows, _BATCH_ROWS)):
        cells = dict(zip(header, zip(*batch, strict=True), strict=True))
        yield TableChunk(path, pa.table({name: cells.get(name) for name in schema.names}, schema))


def _open_sdf(path: str) -> _Opened:
    names: dict[str, None] = {}
    num_rows = num_blocks = num_titles = 0
    for record in iterate_sdf_records(iterate_lines(path)):
        names.update(dict.fromkeys(record.properties))
        num_rows += 1
        num_blocks += bool(record.mol_block)
        num_titles += bool(record.title.strip())
    if num_blocks == 0:
        raise UserError(f"{path} is not an SDF file: no record has an 'M  END' line.")
    generated = [SMILES_COLUMN] + [SDF_TITLE_COLUMN] * (num_titles > 0)
    column_names = [name for name in generated if name not in names] + list(names)
    schema = pa.schema([(name, pa.string()) for name in column_names])
    return schema, num_rows, partial(_read_sdf, properties=frozenset(names))


def _read_sdf(path: str, schema: pa.Schema, *, properties: frozenset[str]) -> Iterator[TableChunk]:
    records = iterate_sdf_records(iterate_lines(path))
    while batch := list(islice(records, _SDF_BATCH_ROWS)):
        mols = [parse_mol_block(record.mol_block) for record in batch]
        columns = {name: [record.properties.get(name) for record in batch] for name in schema.names}
        if SMILES_COLUMN in columns and SMILES_COLUMN not in properties:
            columns[SMILES_COLUMN] = [compute_record_smiles(mol) for mol in mols]
        if SDF_TITLE_COLUMN in columns and SDF_TITLE_COLUMN not in properties:
            columns[SDF_TITLE_COLUMN] = [record.title for record in batch]
        yield TableChunk(path, pa.table(columns, schema=schema), mols)


def open_parquet(path: str, *, text_columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a file, on the disk or on the Hub; text stays as the words of its dictionary."""
    options: dict[str, Any] = {"read_dictionary": text_columns, "buffer_size": _BUFFER_SIZE}
    if path.startswith(HUB_PREFIX):
        from huggingface_hub import HfFileSystem

        options["filesystem"] = HfFileSystem()
    return pq.ParquetFile(path, **options)


def _open_parquet(path: str) -> _Opened:
    schema, num_rows = read_header(path)
    # its metadata describe the old set of columns, wrong as soon as one is added
    return schema.remove_metadata(), num_rows, _read_parquet


def _read_parquet(path: str, schema: pa.Schema) -> Iterator[TableChunk]:
    text_columns = [field.name for field in schema if _is_text(field.type)]
    with open_parquet(path, text_columns=text_columns) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=schema.names):
            columns = [_expand(batch.column(field.name), field) for field in schema]
            yield TableChunk(path, pa.Table.from_arrays(columns, schema=schema))


def _expand(column: pa.Array, field: pa.Field) -> pa.Array:
    """Return a column with its own type, unless its text would not fit into memory."""
    if column.type == field.type:
        return column
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    num_bytes = pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0
    if num_bytes > MAX_BATCH_BYTES:
        raise ValueError(
            f"{len(column)} cells of column {field.name!r} expand to {num_bytes} bytes, more than "
            f"{MAX_BATCH_BYTES}. Drop the longest"
        )
    return column.dictionary_decode().cast(field.type)


@contextmanager
def _open_stream(path: str) -> Iterator[pa.RecordBatchReader]:
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        yield batches


def _open_arrow(path: str) -> _Opened:
    schema, num_rows = read_header(path)
    return schema.remove_metadata(), num_rows, _read_arrow


def _read_arrow(path: str, schema: pa.Schema) -> Iterator[TableChunk]:
    with _open_stream(path) as batches:
        for batch in batches:
            batch.validate()
            yield TableChunk(path, pa.Table.from_batches([batch]).select(schema.names))


def read_header(path: str) -> tuple[pa.Schema, int]:
    """Return columns, with all metadata, and number of rows of a .parquet or .arrow file."""
    if find_kind(path) == ".arrow":
        with _open_stream(path) as batches:
            return batches.schema, sum(batch.num_rows for batch in batches)
    with open_parquet(path) as file:
        return file.schema_arrow, file.metadata.num_rows


# How a file of each kind is opened; files of different kinds are not read together.
KINDS: dict[str, Callable[[str], _Opened]] = {
    ".csv": _open_csv,
    ".parquet": _open_parquet,
    ".sdf": _open_sdf,
    ".smi": _open_smi,
    ".arrow": _open_arrow,
}


def join_tables(
    tables: Sequence[Table], *, source: str, words: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """Return tables as one, in the order given.

    A property that some SDF files lack is empty there; files of other kinds have the same columns.

    Args:
        tables (`Sequence[Table]`): At least one.
        source (`str`): Name of all of them, for messages.
        words (`Mapping`, *optional*): Columns to add, with one word for each of the tables.

    Raises:
        UserError: The columns or their types differ; the message names both files.
    """
    fields = {field.name: field for table in tables for field in table.schema}
    may_lack = all(find_kind(file) in (".sdf", ".smi") for table in tables for file in table.files)
    for table in tables:
        own = {field.name: field.type for field in table.schema}
        for name, field in fields.items():
            found = own.get(name, field.type if may_lack else "missing")
            if found != field.type:
                raise UserError(
                    f"{table.source}: column {name!r} is {found}, but {field.type} in other files "
                    f"of {source}. Files that are read together need the same columns."
                )
    words = dict(words or {})
    schema = pa.schema([*fields.values(), *(pa.field(name, pa.string()) for name in words)])
    read = partial(_read_joined, list(tables), words=words)
    files = tuple(file for table in tables for file in table.files)
    return Table(source, schema, sum(table.num_rows for table in tables), read, files)


def _read_joined(
    tables: list[Table], schema: pa.Schema, *, words: Mapping[str, Sequence[str]]
) -> Iterator[TableChunk]:
    own = pa.schema([field for field in schema if field.name not in words])
    for idx, table in enumerate(tables):
        for chunk in table.read(own):
            rows = chunk.table
            for name, word in words.items():
                rows = rows.append_column(name, pa.array([word[idx]] * rows.num_rows, pa.string()))
            yield TableChunk(chunk.source, rows.select(schema.names), chunk.mols)
