"""Labels of atoms are learned from real molecules, far better than by the mean of an element."""

from pathlib import Path

import pytest
from bench_atoms import LABELS, run

import rmat_hf

FREESOLV = Path(rmat_hf.__file__).parent / "data" / "freesolv" / "freesolv.csv"


@pytest.mark.slow
def test_the_stock_trainer_learns_labels_of_atoms() -> None:
    scores = run(str(FREESOLV))["R2"]
    for label in LABELS:
        assert scores[label, "rmat-small, finetuned"] > 0.97
        assert scores[label, "mean of its features"] < 0.9
        assert scores[label, "mean of its element"] < 0.7
