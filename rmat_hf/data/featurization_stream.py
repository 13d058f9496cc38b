"""Featurize molecules as they come, in order, with a bounded number of them in memory."""

import os
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from rdkit import Chem

from rmat_hf.data.feature_cache import FeaturizedMolecule
from rmat_hf.data.featurization import FeaturizationWorkerError, featurize_molecules
from rmat_hf.molecule_features_rmat import Molecule
from rmat_hf.processing_rmat import RMatProcessor

# Chunks of a worker that are on their way: enough to go on while another molecule takes long.
_CHUNKS_PER_WORKER = 16
_STOP_FILE = "stop"


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
        FeaturizationWorkerError: A worker process died; the message names the molecules in hand.
    """
    if num_workers <= 1:
        for chunk in chunks:
            yield chunk, [_featurize(row, processor) for row in chunk]
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            num_workers, initializer=_start_worker, initargs=(os.getpid(),)
        ) as executor,
    ):
        waiting: deque[tuple[Chunk, Future[list[FeaturizedMolecule]]]] = deque()
        try:
            for chunk in chunks:
                future = executor.submit(_featurize_chunk, chunk, processor, folder=folder)
                waiting.append((chunk, future))
                if len(waiting) >= num_workers * _CHUNKS_PER_WORKER:
                    yield _take_first(waiting)
            while waiting:
                yield _take_first(waiting)
        except BrokenProcessPool as error:
            notes = sorted(Path(folder).iterdir())
            in_hand = ", ".join(note.read_text(encoding="utf-8") for note in notes)
            raise FeaturizationWorkerError(
                f"A process that featurizes died. Molecules in hand: {in_hand or 'none'}. It ran "
                "out of memory, or RDKit crashed: use fewer processes, or drop the molecule."
            ) from error
        finally:
            (Path(folder) / _STOP_FILE).touch()
            executor.shutdown(cancel_futures=True)


def _take_first(
    waiting: deque[tuple[Chunk, Future[list[FeaturizedMolecule]]]],
) -> FeaturizedChunk:
    chunk, future = waiting.popleft()
    return chunk, future.result()


def _start_worker(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _featurize_chunk(
    chunk: Chunk, processor: RMatProcessor, *, folder: str
) -> list[FeaturizedMolecule]:
    """Featurize in a worker, which notes down the molecule in hand in case that it dies."""
    outcomes = []
    with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8") as note:
        for row in chunk:
            if (Path(folder) / _STOP_FILE).exists():
                break
            note.seek(0)
            note.write(f"row {row.row} {row.smiles!r}")
            note.truncate()
            note.flush()
            outcomes.append(_featurize(row, processor))
    return outcomes


def _featurize(row: InputRow, processor: RMatProcessor) -> FeaturizedMolecule:
    molecule: Molecule = row.smiles
    if row.mol is not None:
        molecule = Chem.Mol(row.mol)  # type: ignore[call-overload]  # typed str
    return featurize_molecules([molecule], processor)[0]
