"""Features as typed columns beside the same molecules as bytes: time of a batch, size on the disk.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_columns.py TABLE.parquet [ROWS]

Both read the same random batches in turns in one process; ratios are medians over the rounds, of
processor time. The batches are compared first.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from rdkit import RDLogger
from versions import write_rows

from rmat_hf.data.corpus import write_shard
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    build_features_column,
    expand_features,
    pack_column,
)
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.trainer import FeaturizedRows, RMatDataCollator

NUM_ROUNDS = 15
ZSTD: dict[str, Any] = {"compression": "zstd", "compression_level": 9, "use_dictionary": False}
Read = Callable[[list[int]], dict[str, Any]]


def take_turns(variants: dict[str, Read], *, batch_size: int, num_rows: int) -> dict[str, float]:
    """Return microseconds per molecule, and the median ratio to the first variant."""
    order = np.random.default_rng(0).permutation(num_rows).tolist()
    batches = [order[start : start + batch_size] for start in range(0, num_rows, batch_size)]
    first, *others = (read(batches[0]) for read in variants.values())
    for other in others:
        assert all(np.array_equal(array, other[name]) for name, array in first.items())
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(NUM_ROUNDS):
        for name, read in variants.items():
            start = time.process_time()
            for batch in batches:
                read(batch)
            seconds[name].append(time.process_time() - start)
    base = np.array(next(iter(seconds.values())))
    found = {}
    for name, values in seconds.items():
        found[f"{name}, µs"] = float(np.median(values)) / num_rows * 1e6
        found[f"{name}, ratio"] = float(np.median(np.array(values) / base))
    return found


def measure_times(packed: list[bytes], processor: RMatProcessor) -> dict[str, float]:
    """Compare the batches of a finetuning, of Python rows, and of a pretraining."""
    labels = [[0.0]] * len(packed)
    as_bytes = Dataset.from_dict({FEATURES_COLUMN: packed, "labels": labels})
    columns = {FEATURES_COLUMN: build_features_column(packed), "labels": labels}
    as_columns = Dataset.from_dict(columns)
    rows, collate = FeaturizedRows(as_columns), RMatDataCollator(processor)
    table = as_columns.with_format("arrow")

    def read_bytes(batch: list[int]) -> dict[str, Any]:
        found = as_bytes.__getitems__(batch)
        arrays = expand_features([row[FEATURES_COLUMN] for row in found])
        arrays["labels"] = np.array([row["labels"] for row in found], dtype=np.float32)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    finetuning: dict[str, Read] = {
        "bytes": read_bytes,
        "columns": lambda batch: collate(rows.__getitems__(batch)),
        "columns by Python": lambda batch: collate(as_columns.__getitems__(batch)),
    }
    pretraining: dict[str, Read] = {
        "bytes": lambda batch: expand_features(as_bytes[batch][FEATURES_COLUMN]),
        "columns": lambda batch: expand_features(pack_column(table[batch][FEATURES_COLUMN])),
    }
    found = take_turns(finetuning, batch_size=32, num_rows=len(packed))
    of_corpus = take_turns(pretraining, batch_size=128, num_rows=len(packed))
    return found | {f"pretraining, {name}": value for name, value in of_corpus.items()}


def measure_sizes(
    smiles: list[str], outcomes: list[Any], processor: RMatProcessor
) -> dict[str, float]:
    """Return bytes per molecule: shards of `rmat featurize`, what a push writes, in memory."""
    packed = [outcome.features for outcome in outcomes]
    column = build_features_column(packed)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / name for name in ("shard", "old shard", "push", "old push")}
        rows = list(zip(range(len(smiles)), smiles, outcomes, strict=True))
        write_shard(files["shard"], rows, processor=processor)
        old = {"smiles": smiles, FEATURES_COLUMN: pa.array(packed, pa.large_binary())}
        pq.write_table(pa.table(old), files["old shard"], **ZSTD)
        Dataset.from_dict({FEATURES_COLUMN: packed}).to_parquet(files["old push"])
        Dataset.from_dict({FEATURES_COLUMN: column}).to_parquet(files["push"])
        sizes = {name: file.stat().st_size / len(smiles) for name, file in files.items()}
    old_size = float(np.mean([len(it) for it in packed]))
    return {**sizes, "memory": column.nbytes / len(smiles), "old memory": old_size}


def main() -> None:
    """Print a table for distances and one for coordinates."""
    RDLogger.DisableLog("rdApp.*")
    num_rows = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    smiles = pq.read_table(sys.argv[1]).slice(0, num_rows).column("smiles").to_pylist()
    for geometry in ("bounds", "conformer"):
        processor = RMatProcessor(geometry=geometry, on_conformer_failure="bounds")
        outcomes = featurize_molecules(smiles, processor)
        figures = measure_times([outcome.features for outcome in outcomes], processor)
        figures |= measure_sizes(smiles, outcomes, processor)
        write_rows([(geometry, ""), *((name, f"{it:.2f}") for name, it in figures.items())])
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
