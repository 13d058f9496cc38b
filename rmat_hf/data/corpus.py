"""Read a featurized corpus: a folder of `rmat featurize`, some of its shards, or the Hub's."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError
from huggingface_hub import HfFileSystem

from rmat_hf.data.corpus_format import (
    FAILED_ROWS_FILE,
    PROCESSOR_FILE,
    REQUIRED_COLUMNS,
    SHARD_SCHEMA,
    ShardHeader,
    build_processor,
    find_difference,
    read_shard_header,
)
from rmat_hf.data.corpus_location import HUB_PREFIX, NOT_FEATURIZED, find_shards
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

# Footers of a corpus on the Hub that are asked for at a time.
NUM_CONNECTIONS = 16


@dataclass(frozen=True)
class Corpus:
    """Featurized molecules and the processor that made them.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Columns `smiles`, `features` (as from `pack_features`), `num_nodes`, and where the
            shards have them `row` (position in the input) and `geometry_source`.
        processor (`RMatProcessor`): Decided the geometry and the molecule descriptors.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    processor: RMatProcessor


def load_corpus(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    split: str = "train",
    streaming: bool = False,
) -> Corpus:
    """Load a featurized corpus after checking the footer of every shard.

    Args:
        source (`str` or `os.PathLike`):
            A folder written by `rmat featurize`, one of its shards, a glob of shards, or a data
            set on the Hub that consists of shards.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a data set on the Hub; local shards are all `"train"`.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the shards while iterating. By default the data set is memory-mapped: `datasets`
            writes an uncompressed copy to its cache, once.

    Returns:
        `Corpus`.

    Raises:
        UserError: The molecules are not featurized, a shard is missing, damaged or made by
            another processor, or there is no molecule.
    """
    name = os.fspath(source)
    paths, saved_options = find_shards(
        name, revision=revision, split=split, with_download=not streaming
    )
    headers = _read_headers(paths)
    columns = _validate_columns(headers)
    options = _validate_processors(headers, saved_options=saved_options)
    if not any(header.num_rows for header in headers):
        raise UserError(f"{name} has no molecule. {FAILED_ROWS_FILE} tells why.")
    processor = build_processor(options, source=name)
    filled = [path for path, header in zip(paths, headers, strict=True) if header.num_rows]
    return Corpus(_load_shards(filled, columns=columns, streaming=streaming), processor)


def _read_headers(paths: Sequence[str]) -> list[ShardHeader]:
    if not paths[0].startswith(HUB_PREFIX):
        try:
            return [read_shard_header(path, name=path) for path in paths]
        except OSError as error:
            raise UserError(f"{error}. Copy the shard anew, or make it readable.") from error
    files = HfFileSystem()

    def read_remote_header(path: str) -> ShardHeader:
        with files.open(path) as file:
            return read_shard_header(file, name=path)

    with ThreadPoolExecutor(NUM_CONNECTIONS) as executor:
        return list(executor.map(read_remote_header, paths))


def _validate_columns(headers: Sequence[ShardHeader]) -> list[str]:
    """Return the columns that every shard has; raise if it lacks a required one."""
    for header in headers:
        if "features" not in header.schema.names:
            raise UserError(f"{header.name} has no column 'features'. {NOT_FEATURIZED}")
        for column in REQUIRED_COLUMNS:
            if column not in header.schema.names:
                raise UserError(
                    f"{header.name} has no column {column!r}. Delete the file and repeat the "
                    "`rmat featurize` command that made it, or copy it anew."
                )
        found = header.schema.field("features").type
        if not (pa.types.is_binary(found) or pa.types.is_large_binary(found)):
            raise UserError(
                f"{header.name}: the column 'features' holds {found}, not the bytes of `rmat "
                f"featurize`. {NOT_FEATURIZED}"
            )
    return [
        name
        for name in SHARD_SCHEMA.names
        if all(name in header.schema.names for header in headers)
    ]


def _validate_processors(
    headers: Sequence[ShardHeader], *, saved_options: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the options of the one processor that has made every shard."""
    first = headers[0]
    for header in headers[1:]:
        difference = find_difference(first.processor or {}, header.processor or {})
        if difference:
            raise UserError(
                f"{first.name} and {header.name} were made by different processors: "
                f"{difference}. Load them as two corpora, or featurize one of them anew."
            )
    if first.processor is None and saved_options is None:
        raise UserError(
            f"{first.name} does not say which processor made it, and there is no "
            f"{PROCESSOR_FILE} beside it. Run `rmat featurize`, and load its folder."
        )
    if first.processor is not None and saved_options is not None:
        known = {name: saved_options.get(name) for name in first.processor}
        if difference := find_difference(first.processor, known):
            raise UserError(
                f"{first.name} and {PROCESSOR_FILE} contradict each other: {difference}. Restore "
                f"{PROCESSOR_FILE}, or delete it: the shards say the same."
            )
    return first.processor or saved_options or {}


def _load_shards(
    paths: list[str], *, columns: list[str], streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    features = datasets.Features.from_arrow_schema(
        pa.schema([SHARD_SCHEMA.field(name) for name in columns])
    )
    try:
        return datasets.load_dataset(
            "parquet",
            data_files={"train": paths},
            split="train",
            columns=columns,
            features=features,
            streaming=streaming,
        )
    except (DatasetsError, pa.ArrowException, OSError) as error:
        _validate_pages(paths, columns=columns)
        # datasets wraps what the disk says
        raise UserError(f"The corpus cannot be loaded: {error.__cause__ or error}") from error


def _validate_pages(paths: list[str], *, columns: list[str]) -> None:
    """Raise for the first shard whose content cannot be decompressed."""
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                for _ in file.iter_batches(columns=columns):
                    pass
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} is damaged: {error}. Delete it and repeat the `rmat featurize` command "
                "that made it, or copy it anew."
            ) from error
