"""The files of a featurized corpus: Parquet shards that say what made them.

A shard is self-contained. The metadata of its schema hold the options of the processor, those of
the corpus and the rows that have no features, so that a file that is there is complete.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rmat_hf.data.feature_cache import FeaturizedMolecule
from rmat_hf.data.training_table import DroppedRow
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

CORPUS_FILE = "corpus.json"
FAILED_ROWS_FILE = "failed_rows.csv"
PROCESSOR_FILE = "preprocessor_config.json"
MAX_SHARDS = 100_000

# large_binary: the features of a shard may take more than 2 GiB.
SHARD_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("smiles", pa.string()),
        ("features", pa.large_binary()),
        ("num_nodes", pa.int32()),
        ("geometry_source", pa.string()),
    ]
)
REQUIRED_COLUMNS = ("smiles", "features", "num_nodes")

_PROCESSOR_KEY = b"rmat_hf.processor"
_OPTIONS_KEY = b"rmat_hf.corpus"
_FAILURES_KEY = b"rmat_hf.failures"
# What a saved processor holds beside its options: where its code is.
_CODE_KEYS = ("auto_map", "custom_pipelines")
_COMPRESSION_LEVEL = 9
# Molecules that a reader holds at a time.
_ROW_GROUP_SIZE = 8192


@dataclass(frozen=True)
class ShardHeader:
    """What the footer of a shard tells.

    Args:
        name (`str`): Of the file, for messages.
        schema (`pa.Schema`): Columns.
        num_rows (`int`): Molecules.
        processor (`dict`, *optional*): Options of the processor; `None` in a foreign file.
        options (`dict`, *optional*): Options of the corpus; `None` in a foreign file.
    """

    name: str
    schema: pa.Schema
    num_rows: int
    processor: dict[str, Any] | None
    options: dict[str, Any] | None

    @property
    def failures(self) -> list[DroppedRow]:
        """Rows of the input that belong here and have no features."""
        metadata = self.schema.metadata or {}
        return [DroppedRow(*values) for values in json.loads(metadata.get(_FAILURES_KEY, b"[]"))]


def name_shard(idx: int) -> str:
    """Return the file name of a shard."""
    return f"part-{idx:05}.parquet"


def describe_processor(processor: RMatProcessor) -> dict[str, Any]:
    """Return the options of a processor as `preprocessor_config.json` holds them."""
    options = json.loads(processor.to_json_string())
    return {name: value for name, value in options.items() if name not in _CODE_KEYS}


def build_processor(options: dict[str, Any], *, source: str) -> RMatProcessor:
    """Return the processor with the options that a corpus holds.

    Raises:
        UserError: Another version of the package has written it.
    """
    try:
        return RMatProcessor(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: {error} Or repeat `rmat featurize` in a new folder.") from (
            error
        )


def encode_shard(
    rows: Sequence[DroppedRow],
    outcomes: Sequence[FeaturizedMolecule],
    *,
    num_nodes: Sequence[int],
    processor: dict[str, Any],
    options: dict[str, Any],
) -> bytes:
    """Return the bytes of a shard; equal arguments give equal bytes.

    Args:
        rows (`Sequence[DroppedRow]`): Position and SMILES of every row, with the reason if it
            failed and an empty one otherwise.
        outcomes (`Sequence[FeaturizedMolecule]`): Of the same rows.
        num_nodes (`Sequence[int]`): Of the rows that did not fail.
        processor (`dict`): As from [`describe_processor`].
        options (`dict`): What else decides the content.
    """
    failures = [[row.row, row.smiles, row.reason] for row in rows if row.reason]
    kept = [(row, outcome) for row, outcome in zip(rows, outcomes, strict=True) if not row.reason]
    columns = {
        "row": [row.row for row, _ in kept],
        "smiles": [row.smiles for row, _ in kept],
        "features": [outcome.features for _, outcome in kept],
        "num_nodes": num_nodes,
        "geometry_source": [outcome.geometry_source for _, outcome in kept],
    }
    metadata = {_PROCESSOR_KEY: processor, _OPTIONS_KEY: options, _FAILURES_KEY: failures}
    schema = SHARD_SCHEMA.with_metadata(
        {key: json.dumps(value, sort_keys=True) for key, value in metadata.items()}
    )
    stream = io.BytesIO()
    with pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        compression_level=_COMPRESSION_LEVEL,
        use_dictionary=["geometry_source"],
        write_statistics=["row", "num_nodes"],
    ) as writer:
        # datasets cannot read an empty row group, but a file without any
        if kept:
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_ROW_GROUP_SIZE)
    return stream.getvalue()


def read_shard_header(file: str | IO[bytes], *, name: str) -> ShardHeader:
    """Read the footer of a Parquet file.

    Args:
        file (`str` or `IO[bytes]`): The file or its path.
        name (`str`): What messages call it.

    Raises:
        UserError: It is no Parquet file, or a damaged one.
        OSError: It cannot be read.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
        metadata = schema.metadata or {}
        processor, options = (
            json.loads(metadata[key]) if key in metadata else None
            for key in (_PROCESSOR_KEY, _OPTIONS_KEY)
        )
        header = ShardHeader(name, schema, num_rows, processor, options)
        _ = header.failures
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise UserError(
            f"{name} is damaged: {error}. Delete it and repeat the `rmat featurize` command that "
            "made it, or copy it anew."
        ) from error
    return header


def find_difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return the first option that differs with both values; empty if there is none."""
    for name in sorted({*first, *second}):
        values = [json.dumps(options.get(name)) for options in (first, second)]
        if values[0] != values[1]:
            short = [value if len(value) < 60 else f"{value[:57]}..." for value in values]
            return f"{name} is {short[0]} in one and {short[1]} in the other"
    return ""


def generalize_reason(reason: str) -> str:
    """Return a reason without the numbers and quotations of one molecule, for counts."""
    general = re.sub(r"'[^']*'", "'…'", reason.split("\n")[0])
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"(while parsing|for input): .*", r"\1 …", general))
