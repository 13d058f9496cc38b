"""Open the molecules of a corpus: one file, many Parquet files or a data set on the Hub."""

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError
from rdkit import Chem

from rmat_hf.data.featurization_stream import InputRow
from rmat_hf.data.sources import list_bundled_datasets, open_source
from rmat_hf.data.tables import (
    Table,
    TableChunk,
    TableError,
    explained_reading,
    open_table,
    validate_columns,
)
from rmat_hf.data.text_input import iterate_lines, open_text, validate_regular_file

SMI_COLUMN = "smiles"

_CHUNK_SIZE = 1000

_SMI_EXTENSIONS = (".smi", ".smi.gz")
_EXTENSIONS = (".csv", ".csv.gz", ".parquet", ".sdf", *_SMI_EXTENSIONS)


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Which molecules a corpus has, and how they are divided.

    Args:
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column of SMILES.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        split (`str`, *optional*): Split of a data set on the Hub.
        shard_size (`int`, *optional*, defaults to 8192): Rows of the input per shard.
        max_rows (`int`, *optional*): First rows of the input to take. By default all.
    """

    smiles_column: str = "smiles"
    revision: str | None = None
    split: str | None = None
    shard_size: int = 8192
    max_rows: int | None = None

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a count that is too small."""
        for name in ("shard_size", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}. Choose at least 1.")


def open_corpus_input(
    source: str | os.PathLike[str],
    *,
    smiles_column: str,
    revision: str | None = None,
    split: str | None = None,
) -> Table:
    """Return the molecules as a table whose chunks have at least the column of SMILES.

    Args:
        source (`str` or `os.PathLike`):
            A .csv, .csv.gz, .smi (SMILES, then anything after a blank; no header), .smi.gz,
            .parquet or .sdf file; a folder or a glob of Parquet files with equal columns; a
            bundled data set; or a data set on the Hub.
        smiles_column (`str`): Column of SMILES; `"smiles"` in .smi and .sdf files.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        split (`str`, *optional*): Split of a data set on the Hub that has several.

    Raises:
        TableError: It cannot be read, or has no such column.
    """
    name = os.fspath(source)
    local = _find_local_files(name)
    if not local and name not in list_bundled_datasets():
        table = _open_hub_split(name, revision=revision, split=split, smiles_column=smiles_column)
    elif revision is not None or split is not None:
        raise TableError(f"{name} is not on the Hub: leave --revision and --split out.")
    elif local and all(path.suffix == ".parquet" for path in local):
        table = _open_parquet_files(local, source=name, smiles_column=smiles_column)
    elif len(local) > 1:
        raise TableError(f"{name} names several files. Only Parquet files go together.")
    elif not local:
        table, _ = open_source(name, revision=None)
    elif local[0].name.lower().endswith(_SMI_EXTENSIONS):
        table = _open_smi(local[0])
    else:
        table = open_table(local[0])
    validate_columns(table.column_names, [smiles_column], source=table.source)
    kind = table.schema.field(smiles_column).type
    if pa.types.is_primitive(kind) and not pa.types.is_null(kind):  # before anything is written
        raise TableError(
            f"{table.source}: column {smiles_column!r} holds {kind}, which is not text. Name the "
            "column of SMILES."
        )
    return table


def iterate_input_rows(table: Table, *, smiles_column: str) -> Iterator[InputRow]:
    """Yield every row of a table with its position and its molecule."""
    position = itertools.count()
    for chunk in table.iterate_chunks(_CHUNK_SIZE):
        molecules = chunk.molecules(smiles_column)
        for smiles, molecule in zip(chunk.columns[smiles_column], molecules, strict=True):
            mol = molecule.ToBinary() if isinstance(molecule, Chem.Mol) else None
            yield InputRow(next(position), smiles or "", mol)


def _find_local_files(name: str) -> list[Path]:
    """Return the files behind a name, in order; none if it is to be found elsewhere."""
    path = Path(name)
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    if path.is_file():
        return [path]
    found = sorted(Path(match) for match in glob.glob(name, recursive=True))
    is_elsewhere = not glob.has_magic(name) and not name.lower().endswith(_EXTENSIONS)
    if found or (is_elsewhere and not path.is_absolute()):
        return found
    raise TableError(f"{name}: there is no such file.")


def _open_parquet_files(paths: Sequence[Path], *, source: str, smiles_column: str) -> Table:
    num_rows = 0
    for path in paths:
        with explained_reading(path):
            validate_regular_file(path)
        with explained_reading(path), pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            num_rows += file.metadata.num_rows
        validate_columns(schema.names, [smiles_column], source=str(path))

    def read_chunks(chunk_size: int) -> Iterator[TableChunk]:
        for path in paths:
            with explained_reading(path), pq.ParquetFile(path) as file:
                batches = file.iter_batches(batch_size=chunk_size, columns=[smiles_column])
                for batch in batches:
                    yield TableChunk(str(path), batch.to_pydict(), batch.num_rows)

    return Table(source, pa.schema([schema.field(smiles_column)]), num_rows, read_chunks)


def _open_smi(path: Path) -> Table:
    def iterate_smiles(stream: TextIO) -> Iterator[str]:
        return (line.split(maxsplit=1)[0] for line in iterate_lines(stream) if line.strip())

    def read_chunks(chunk_size: int) -> Iterator[TableChunk]:
        with explained_reading(path), open_text(path) as stream:
            all_smiles = iterate_smiles(stream)
            while smiles := list(itertools.islice(all_smiles, chunk_size)):
                yield TableChunk(str(path), {SMI_COLUMN: smiles}, len(smiles))

    with explained_reading(path), open_text(path) as stream:
        num_rows = sum(1 for _ in iterate_smiles(stream))
    return Table(str(path), pa.schema([(SMI_COLUMN, pa.string())]), num_rows, read_chunks)


def _open_hub_split(
    name: str, *, revision: str | None, split: str | None, smiles_column: str
) -> Table:
    try:
        splits = datasets.get_dataset_split_names(name, revision=revision)
        if split is None and len(splits) > 1:
            raise TableError(f"{name} has the splits {', '.join(splits)}. Choose --split.")
        if split is not None and split not in splits:
            raise TableError(f"{name} has no split {split!r}, but {', '.join(splits)}.")
        rows = datasets.load_dataset(name, revision=revision, split=split or splits[0])
    except (DatasetsError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(
            f"{name!r} is neither a file ({', '.join(_EXTENSIONS)}), a folder of Parquet files nor "
            f"a bundled data set, and the Hub gives: {reason}"
        ) from error
    validate_columns(rows.column_names, [smiles_column], source=name)
    rows = rows.select_columns([smiles_column]).with_format("arrow")

    def read_chunks(chunk_size: int) -> Iterator[TableChunk]:
        for batch in rows.iter(batch_size=chunk_size):
            yield TableChunk(name, batch.to_pydict(), batch.num_rows)

    return Table(name, rows.features.arrow_schema, len(rows), read_chunks)
