import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data import featurization_stream
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.featurization_stream import InputRow, iterate_featurized
from rmat_hf.data.worker_pool import CHUNKS_PER_WORKER
from rmat_hf.model.processing_rmat import RMatProcessor

ROWS = [InputRow(i, smiles) for i, smiles in enumerate([*TINY_SMILES, "C1CC", ""])]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_outcomes_are_those_of_the_molecules_in_order(num_workers: int) -> None:
    processor = RMatProcessor(geometry="bounds")
    chunks = [ROWS[:3], ROWS[3:4], ROWS[4:]]
    featurized = list(iterate_featurized(chunks, processor, num_workers=num_workers))
    assert [chunk for chunk, _ in featurized] == chunks
    outcomes = [outcome for _, outcomes in featurized for outcome in outcomes]
    assert outcomes == featurize_molecules([row.smiles for row in ROWS], processor)
    assert [bool(outcome.failure) for outcome in outcomes] == [False] * 6 + [True] * 2


def test_molecule_with_atoms_of_its_own_keeps_them() -> None:
    processor = RMatProcessor(geometry="bounds")
    mol = Chem.MolFromSmiles("OCC")
    rows = [InputRow(0, "OCC", mol.ToBinary())]
    ((_, outcomes),) = iterate_featurized([rows], processor, num_workers=1)
    assert outcomes == featurize_molecules([mol], processor)
    assert outcomes != featurize_molecules(["OCC"], processor)


def test_few_chunks_are_taken_ahead() -> None:
    taken = 0

    def iterate_chunks() -> Iterator[list[InputRow]]:
        nonlocal taken
        while True:
            taken += 1
            yield [InputRow(taken, "C")]

    processor = RMatProcessor(geometry="2d")
    with closing(iterate_featurized(iterate_chunks(), processor, num_workers=2)) as featurized:
        for _ in range(3):
            next(featurized)
    assert taken <= 3 + 2 * CHUNKS_PER_WORKER


def test_row_that_kills_its_worker_fails_and_the_others_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = RMatProcessor(geometry="2d")
    compute = featurization_stream._featurize

    def die(row: InputRow, processor: RMatProcessor) -> Any:
        if row.smiles == "CCN":
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(row, processor)

    monkeypatch.setattr(featurization_stream, "_featurize", die)
    chunk = [InputRow(7, "CCO"), InputRow(8, "CCN"), InputRow(9, "CCC")]
    ((rows, outcomes),) = iterate_featurized([chunk], processor, num_workers=2)
    assert rows == chunk
    expected = featurize_molecules(["CCO", "CCC"], processor)
    assert [outcomes[0], outcomes[2]] == expected
    assert "was killed by signal 9 (Killed)" in outcomes[1].failure
