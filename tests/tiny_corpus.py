"""A featurized corpus of a few molecules, written without `rmat featurize`."""

from collections.abc import Mapping
from pathlib import Path

from tiny import TINY_SMILES

from rmat_hf.data import corpus
from rmat_hf.data.assay_labels import AssayLabels
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.model.processing_rmat import RMatProcessor


def write_shard(
    path: Path,
    smiles: list[str],
    *,
    processor: RMatProcessor | None = None,
    first_row: int = 0,
    labels: Mapping[str, AssayLabels] | None = None,
) -> None:
    """Write one shard; molecules that fail are in its metadata."""
    processor = processor or RMatProcessor(geometry="bounds")
    outcomes = featurize_molecules(smiles, processor)
    rows = list(zip(range(first_row, first_row + len(smiles)), smiles, outcomes, strict=True))
    corpus.write_shard(path, rows, processor=processor, labels=labels)


def write_corpus(
    folder: Path,
    smiles: list[str] | None = None,
    *,
    shard_size: int = 4,
    processor: RMatProcessor | None = None,
    labels: Mapping[str, AssayLabels] | None = None,
) -> Path:
    """Write a folder of shards and the processor beside them, unfinished: no `corpus.json`."""
    smiles = smiles or TINY_SMILES
    processor = processor or RMatProcessor(geometry="bounds")
    folder.mkdir(parents=True, exist_ok=True)
    for idx, start in enumerate(range(0, len(smiles), shard_size)):
        path = folder / f"part-{idx:05}.parquet"
        chunk = smiles[start : start + shard_size]
        write_shard(path, chunk, first_row=start, processor=processor, labels=labels)
    processor.to_json_file(folder / corpus.PROCESSOR_FILE)
    return folder
