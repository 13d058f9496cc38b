"""What holds for every split of rows."""

from collections.abc import Sequence

import numpy as np

from rmat_hf.data.splits.molecule_splits import SplitIndices


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


def find_parts(split: SplitIndices, num_rows: int) -> np.ndarray:
    """The part of each row."""
    parts = np.empty(num_rows, dtype=object)
    for name, rows in vars(split).items():
        parts[rows] = name
    return parts


def list_names(split: SplitIndices, names: Sequence[str]) -> dict[str, list[str]]:
    """The names in each part, in an order that is not that of the rows."""
    return {part: sorted(names[row] for row in rows) for part, rows in vars(split).items()}
