"""Open any file of molecules (CSV, Excel, SMILES, SDF, Parquet; here or on the Hub) as a table."""

import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rmat_hf.data.excel import SHEET_MARK, read_workbook
from rmat_hf.data.sdf import compute_record_smiles, iterate_sdf_records, parse_mol_block
from rmat_hf.data.tables import SMILES_COLUMN, Table, TableChunk, is_text
from rmat_hf.data.text_files import (
    find_dialect,
    find_encoding,
    iterate_csv_rows,
    iterate_lines,
)
from rmat_hf.errors import UserError, explained_reading

HUB_PREFIX = "hf://"
SDF_TITLE_COLUMN = "sdf_title"
SMI_NAME_COLUMN = "smi_name"
# Bytes of a column of text in a batch; a small Parquet file can expand to more than any memory.
MAX_BATCH_BYTES = 2**26
_BATCH_ROWS = 1024
_SDF_BATCH_ROWS = 64
# Bytes of a column of Parquet that wait to be decoded; without a limit all of a row group.
_BUFFER_SIZE = 2**20

# Yields rows with the columns of a schema; a column that a file lacks is empty there.
_ReadFile = Callable[[str, pa.Schema], Iterator[TableChunk]]
# The columns of a file, its number of rows, how they are read, and what that is called.
_Opened = tuple[pa.Schema, int, _ReadFile, str]


def open_file(path: str | Path) -> Table:
    """Open one file; all of it is checked before the first row is used.

    Encoding and separator of CSV are found, its cells are kept as their exact text. A Parquet file
    keeps its column types. The columns of an SDF file are `"smiles"`, the title line
    (`"sdf_title"`, when there is one) and every property; those of a .smi file (a SMILES, then
    anything after a blank; no header) `"smiles"` and, where there is more, `"smi_name"`.

    Args:
        path (`str` or `Path`):
            A .csv, .tsv, .txt, .smi, .sdf (each also .gz), .xlsx, .parquet or .arrow file, as
            `save_to_disk` of `datasets` writes; Parquet also at an `hf://` address. Sheets of a
            workbook with one header follow each other; `"file.xlsx#name"` is one of them.
    """
    path = str(path)
    with explained_reading(path):
        kind = find_kind(path)
        is_endless = not path.startswith(HUB_PREFIX) and not stat.S_ISREG(
            os.stat(find_workbook(path)).st_mode
        )
        if is_endless or kind is None:
            raise UserError(
                f"{path} is a folder, a pipe or a device, or a file of another kind. Use "
                f"{', '.join(KINDS)} files, text also with .gz."
            )
        schema, num_rows, read, description = KINDS[kind](path)
    name, count = Counter(schema.names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: two columns are called {reprlib.repr(name)}. Rename one of them.")
    return Table(
        path,
        schema,
        num_rows,
        partial(_read_file, path, read=read),
        (path,),
        may_lack_columns=kind in (".sdf", ".smi"),
        description=description,
    )


def find_workbook(path: str) -> str:
    """Return the file of a path, which may name a sheet of it."""
    file, mark, _ = path.rpartition(SHEET_MARK)
    return file if mark and file.lower().endswith(".xlsx") else path


def find_kind(name: str) -> str | None:
    """Return which of `KINDS` a file is by its name, `None` if none."""
    name = find_workbook(name).lower()
    found = re.search(r"(\.csv|\.tsv|\.txt|\.sdf|\.smi)(\.gz)?$|(\.xlsx|\.parquet|\.arrow)$", name)
    return found and (found[1] or found[3])


def _read_file(path: str, schema: pa.Schema, *, read: _ReadFile) -> Iterator[TableChunk]:
    with explained_reading(path):
        yield from read(path, schema)


def _iterate_smi_rows(path: str, encoding: str) -> Iterator[list[str | None]]:
    yield [SMILES_COLUMN, SMI_NAME_COLUMN]
    for line in iterate_lines(path, encoding):
        if parts := line.split(maxsplit=1):
            yield [parts[0], parts[1].rstrip() if len(parts) > 1 else None]


def _open_csv(path: str) -> _Opened:
    dialect = find_dialect(path)
    iterate_rows = partial(iterate_csv_rows, dialect=dialect)
    rows = iterate_rows(path)
    header = next(rows)
    if not any(name.strip() for name in header) or "\0" in "".join(header):
        raise UserError(
            f"{path} is not a CSV table: its first line is blank or binary. It must hold the "
            "column names."
        )
    schema = pa.schema([(name, pa.string()) for name in header])
    read = partial(_read_rows, iterate_rows=iterate_rows)
    return schema, sum(1 for _ in rows), read, str(dialect)


def _open_smi(path: str) -> _Opened:
    iterate_rows = partial(_iterate_smi_rows, encoding=find_encoding(path))
    counts = Counter(name is not None for _, name in islice(iterate_rows(path), 1, None))
    names = [SMILES_COLUMN, SMI_NAME_COLUMN][: 1 + (counts[True] > 0)]
    schema = pa.schema([(name, pa.string()) for name in names])
    return schema, counts.total(), partial(_read_rows, iterate_rows=iterate_rows), "SMILES file"


def _open_excel(path: str) -> _Opened:
    file = find_workbook(path)
    sheet = path[len(file) + len(SHEET_MARK) :] or None
    rows, description = read_workbook(file, sheet=sheet)
    return rows.schema, rows.num_rows, partial(_read_memory, rows=rows), description


def _read_memory(path: str, schema: pa.Schema, *, rows: pa.Table) -> Iterator[TableChunk]:
    yield TableChunk(path, rows.select(schema.names))


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
    encoding = find_encoding(path)
    for record in iterate_sdf_records(iterate_lines(path, encoding)):
        names.update(dict.fromkeys(record.properties))
        num_rows += 1
        num_blocks += bool(record.mol_block)
        num_titles += bool(record.title.strip())
    if num_blocks == 0:
        raise UserError(f"{path} is not an SDF file: no record has an 'M  END' line.")
    generated = [SMILES_COLUMN] + [SDF_TITLE_COLUMN] * (num_titles > 0)
    column_names = [name for name in generated if name not in names] + list(names)
    schema = pa.schema([(name, pa.string()) for name in column_names])
    read = partial(_read_sdf, properties=frozenset(names), encoding=encoding)
    return schema, num_rows, read, "SDF"


def _read_sdf(
    path: str, schema: pa.Schema, *, properties: frozenset[str], encoding: str
) -> Iterator[TableChunk]:
    records = iterate_sdf_records(iterate_lines(path, encoding))
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
    return schema.remove_metadata(), num_rows, _read_parquet, "Parquet"


def _read_parquet(path: str, schema: pa.Schema) -> Iterator[TableChunk]:
    text_columns = [field.name for field in schema if is_text(field.type)]
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
    return schema.remove_metadata(), num_rows, _read_arrow, "Arrow"


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
    ".tsv": _open_csv,
    ".txt": _open_csv,
    ".xlsx": _open_excel,
    ".parquet": _open_parquet,
    ".sdf": _open_sdf,
    ".smi": _open_smi,
    ".arrow": _open_arrow,
}
