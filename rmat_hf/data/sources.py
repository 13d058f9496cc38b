"""Find the table behind a name: a file, a bundled data set or a data set on the Hub."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError

from rmat_hf.data.tables import Table, TableChunk, open_table
from rmat_hf.errors import UserError

TABLE_EXTENSIONS = (".csv", ".parquet", ".sdf")
HUB_SPLIT_COLUMN = "split"
HUB_SPLIT_NAMES = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}


def list_bundled_datasets() -> list[str]:
    """Return the names of the data sets that come with the package."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*/*.csv"))


def open_source(
    dataset: str | os.PathLike[str], *, revision: str | None
) -> tuple[Table, str | None]:
    """Return the table behind a name, and the column with its own split if it has one.

    Args:
        dataset (`str` or `os.PathLike`):
            A .csv, .parquet or .sdf file, a name of `list_bundled_datasets`, or a data set on the
            Hub (or a folder with a copy of one). The train, validation and test splits of a Hub
            data set follow each other, with a column `split` added.
        revision (`str`, *optional*):
            Branch, tag or commit of a Hub data set.

    Returns:
        `tuple[Table, str | None]`.
    """
    path = Path(dataset)
    is_bundled = str(dataset) in list_bundled_datasets()
    if not is_bundled and not path.is_file() and path.suffix.lower() not in TABLE_EXTENSIONS:
        return _open_hub_dataset(str(dataset), revision=revision)
    if revision is not None:
        raise UserError(f"{dataset} is not on the Hub, so it has no revision {revision!r}.")
    if is_bundled:
        path = Path(__file__).parent / path / f"{path}.csv"
    return open_table(path), None


def _open_hub_dataset(name: str, *, revision: str | None) -> tuple[Table, str | None]:
    try:
        parts = datasets.load_dataset(name, revision=revision)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} is neither a file nor a bundled data set "
            f"({', '.join(list_bundled_datasets())}), and the Hub gives: {reason}"
        ) from error
    tables = {str(split): part.with_format("arrow")[:] for split, part in parts.items()}
    own_split_column = None
    if len(tables) > 1 and HUB_SPLIT_COLUMN not in next(iter(tables.values())).column_names:
        for split, part in tables.items():
            words = pa.array([HUB_SPLIT_NAMES.get(split, split)] * part.num_rows, pa.string())
            tables[split] = part.append_column(HUB_SPLIT_COLUMN, words)
        is_complete = {"train", "test"} <= set(tables) <= set(HUB_SPLIT_NAMES)
        own_split_column = HUB_SPLIT_COLUMN if is_complete else None
    whole = pa.concat_tables(tables.values())

    def read_chunks(chunk_size: int, ranges: Iterable[range]) -> Iterator[TableChunk]:
        for wanted in ranges:
            rows = whole.slice(wanted.start, len(wanted))
            for batch in rows.to_batches(max_chunksize=chunk_size):
                yield TableChunk(name, batch.to_pydict(), batch.num_rows)

    return Table(name, whole.schema, whole.num_rows, read_chunks), own_split_column
