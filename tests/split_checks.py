"""What holds for every split of rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem

import rmat_hf
from rmat_hf.data.splits.parts import SplitIndices


def assert_is_partition(split: SplitIndices, num_rows: int) -> None:
    for rows in vars(split).values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    together = np.concatenate([split.train, split.valid, split.test])
    assert sorted(together.tolist()) == list(range(num_rows))


def assert_keeps_together(split: SplitIndices, names: Sequence[object]) -> None:
    """No name stands in two parts."""
    parts = [{names[row] for row in rows} for rows in vars(split).values()]
    assert sum(map(len, parts)) == len(set(names))


def list_names(split: SplitIndices, names: Sequence[str]) -> dict[str, list[str]]:
    """The names in each part, in an order that is not that of the rows."""
    return {part: sorted(names[row] for row in rows) for part, rows in vars(split).items()}


def read_freesolv() -> list[str]:
    """The canonical SMILES of the bundled table, in the order of its rows."""
    table = pd.read_csv(Path(rmat_hf.__file__).parent / "data" / "freesolv" / "freesolv.csv")
    return [Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) for smiles in table["smiles"]]
