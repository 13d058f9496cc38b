"""Open the molecules of a corpus or a screen: one file, many of a kind or data on the Hub."""

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from rdkit import Chem

from rmat_hf.data.featurization_stream import InputRow
from rmat_hf.data.joined_tables import join_tables
from rmat_hf.data.parquet_rows import HUB_PREFIX, read_footer
from rmat_hf.data.row_ranges import iterate_chunk_bounds
from rmat_hf.data.smi import SMI_EXTENSIONS, open_smi
from rmat_hf.data.sources import HUB_SPLIT_NAMES, list_bundled_datasets, open_source
from rmat_hf.data.tables import Table, TableChunk, open_table, read_parquet, validate_columns
from rmat_hf.data.text_input import validate_regular_file
from rmat_hf.errors import UserError, explained_reading

_CHUNK_SIZE = 1000

# Extensions of one kind of file; those of different kinds are not read together.
_KINDS = ((".csv", ".csv.gz"), (".parquet",), (".sdf", ".sdf.gz"), SMI_EXTENSIONS)
_EXTENSIONS = tuple(extension for kind in _KINDS for extension in kind)


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
    with_all_columns: bool = False,
) -> Table:
    """Return the molecules as a table whose chunks have at least the column of SMILES.

    Args:
        source (`str` or `os.PathLike`):
            A .csv, .smi (SMILES, then anything after a blank; no header), .sdf, .csv.gz, .smi.gz,
            .sdf.gz or .parquet file; a folder or a glob of files of one of these kinds, in the
            order of their names; a bundled data set; or a data set on the Hub, or a folder with a
            copy of one. Parquet files on the Hub are read where they are, others are downloaded.
        smiles_column (`str`): Column of SMILES; `"smiles"` in .smi and .sdf files.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        split (`str`, *optional*): Split of a data set on the Hub that has several.
        with_all_columns (`bool`, *optional*, defaults to `False`):
            Whether the chunks have every column; by default those of Parquet have one.

    Raises:
        UserError: It cannot be read, or has no such column.
    """
    name = os.fspath(source)
    local = _find_local_files(name)
    columns = None if with_all_columns else [smiles_column]
    if not local and name not in list_bundled_datasets():
        table = _open_hub_split(name, revision=revision, split=split, columns=columns)
    elif revision is not None or split is not None:
        raise UserError(f"{name} is not on the Hub: leave --revision and --split out.")
    elif not local:
        table, _ = open_source(name, revision=None)
    else:
        table = _open_files(local, source=name, columns=columns)
    validate_columns(table.column_names, [smiles_column], source=table.source)
    kind = table.schema.field(smiles_column).type
    if pa.types.is_primitive(kind) and not pa.types.is_null(kind):  # before anything is written
        raise UserError(
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
        if not any(path.iterdir()):
            raise UserError(f"{name} is a folder without files. Name one with molecules.")
        return _find_files_of_folder(path)
    if path.is_file():
        return [path]
    found = sorted(Path(match) for match in glob.glob(name, recursive=True))
    is_elsewhere = not glob.has_magic(name) and not name.lower().endswith(_EXTENSIONS)
    if found or (is_elsewhere and not path.is_absolute()):
        return found
    raise UserError(f"{name}: no such file. Check the path.")


def _find_files_of_folder(folder: Path) -> list[Path]:
    """Return the files to read; none if there is none, or if it is a copy of a Hub data set."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(_EXTENSIONS) and not path.name.startswith(".")
    )
    kinds = {_find_kind(path) for path in files}
    if (".parquet",) in kinds:
        return [path for path in files if _find_kind(path) == (".parquet",)]
    is_copy = (folder / "README.md").is_file() or any(
        path.name.split(".")[0] in HUB_SPLIT_NAMES for path in files
    )
    return [] if is_copy else files


def _find_kind(path: Path) -> tuple[str, ...] | None:
    name = path.name.lower()
    return next((kind for kind in _KINDS if name.endswith(kind)), None)


def _open_files(paths: Sequence[Path], *, source: str, columns: Sequence[str] | None) -> Table:
    kinds = {_find_kind(path) for path in paths}
    if len(kinds) > 1:
        found = ", ".join(sorted({path.suffix for path in paths}))
        raise UserError(
            f"{source} names files of several kinds ({found}), which do not go together. Name "
            f"those of one kind, for example {Path(source) / '*.csv'}."
        )
    (kind,) = kinds
    if kind == (".parquet",):
        return _open_parquet_files(list(map(str, paths)), source=source, columns=columns)
    tables = [open_smi(path) if kind == SMI_EXTENSIONS else open_table(path) for path in paths]
    return join_tables(tables, source=source, with_all_columns=kind != _KINDS[0])


def _open_parquet_files(
    paths: Sequence[str], *, source: str, columns: Sequence[str] | None
) -> Table:
    tables = []
    for path in paths:
        with explained_reading(path):
            if not path.startswith(HUB_PREFIX):
                validate_regular_file(Path(path))
            footer = read_footer(path)
        validate_columns(footer.schema.names, columns or [], source=path)
        schema = footer.schema
        if columns is not None:
            schema = pa.schema([schema.field(name) for name in columns])
        read_chunks = partial(read_parquet, footer, columns)
        tables.append(Table(path, schema, footer.num_rows, read_chunks, (path,)))
    return join_tables(tables, source=source, with_all_columns=False)


def _open_hub_split(
    name: str, *, revision: str | None, split: str | None, columns: Sequence[str] | None
) -> Table:
    try:
        splits = datasets.get_dataset_split_names(name, revision=revision)
        if split is None and len(splits) > 1:
            raise UserError(f"{name} has the splits {', '.join(splits)}. Choose --split.")
        if split is not None and split not in splits:
            raise UserError(f"{name} has no split {split!r}, but {', '.join(splits)}.")
        split = split or splits[0]
        builder = datasets.load_dataset_builder(name, revision=revision)
        files = tuple(str(file) for file in (builder.config.data_files or {}).get(split, []))
        if files and all(_is_remote_parquet(file) for file in files):
            return _open_parquet_files(files, source=name, columns=columns)
        rows = datasets.load_dataset(name, revision=revision, split=split)
    except (DatasetsError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} is neither a file ({', '.join(_EXTENSIONS)}), a folder of such files nor "
            f"a bundled data set, and the Hub gives: {reason}"
        ) from error
    if columns is not None:
        validate_columns(rows.column_names, columns, source=name)
        rows = rows.select_columns(columns)
    rows = rows.with_format("arrow")
    schema = rows.features.arrow_schema.remove_metadata()
    return Table(name, schema, len(rows), partial(_read_dataset, rows, name), files)


def _is_remote_parquet(file: str) -> bool:
    return file.startswith(HUB_PREFIX) and file.endswith(".parquet")


def _read_dataset(  # noqa: PLR0917 - tables call it by position
    rows: datasets.Dataset, name: str, chunk_size: int, ranges: Iterable[range]
) -> Iterator[TableChunk]:
    for wanted in ranges:
        for start, stop in iterate_chunk_bounds(wanted, chunk_size=chunk_size):
            chunk = rows[start:stop]
            yield TableChunk(name, chunk.to_pydict(), chunk.num_rows)
