"""Featurize molecules as they come, in order, with a bounded number of them in memory."""

import functools
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from rdkit import Chem

from rmat_hf.data.feature_cache import FeaturizedMolecule
from rmat_hf.data.featurization import build_death, featurize_molecules, find_item_time_limit
from rmat_hf.data.worker_pool import WorkerPool
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.model.processing_rmat import RMatProcessor


@dataclass(frozen=True)
class InputRow:
    """A molecule of the input.

    Args:
        row (`int`): Position in the input, from 0.
        smiles (`str`): As given; empty where there is none.
        mol (`bytes`, *optional*): Binary form of a molecule that brings its own atoms.
    """

    row: int
    smiles: str
    mol: bytes | None = None


Chunk = Sequence[InputRow]
FeaturizedChunk = tuple[Chunk, list[FeaturizedMolecule]]


def iterate_featurized(
    chunks: Iterable[Chunk], processor: RMatProcessor, *, num_workers: int
) -> Generator[FeaturizedChunk, None, None]:
    """Yield every chunk with the outcomes of its molecules, in the order of the chunks.

    Close the iterator, by `contextlib.closing`, if it is not used up: the workers end then.

    Args:
        chunks (`Iterable[Chunk]`): Molecules, a few dozen each.
        processor (`RMatProcessor`): Decides the geometry.
        num_workers (`int`): Processes; 0 and 1 are this one.

    Raises:
        WorkerError: Workers cannot start, or end before they compute anything. A molecule that
            kills a worker is a failure like any other.
    """
    if num_workers <= 1:
        for chunk in chunks:
            yield chunk, [_featurize(row, processor) for row in chunk]
        return
    pool = WorkerPool(
        functools.partial(_featurize_rows, processor=processor),
        build_death,
        num_workers=num_workers,
        item_time_limit_s=find_item_time_limit(processor),
    )
    yield from pool.iterate_outcomes(chunks)


def _featurize_rows(
    rows: Iterable[InputRow], *, processor: RMatProcessor
) -> list[FeaturizedMolecule]:
    return [_featurize(row, processor) for row in rows]


def _featurize(row: InputRow, processor: RMatProcessor) -> FeaturizedMolecule:
    molecule: Molecule = row.smiles
    if row.mol is not None:
        molecule = Chem.Mol(row.mol)  # type: ignore[call-overload]  # typed str
    return featurize_molecules([molecule], processor)[0]
