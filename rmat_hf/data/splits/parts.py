"""The three parts of a table, and how groups of rows fill them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rmat_hf.errors import UserError

SPLIT_NAMES = ("train", "valid", "test")
# Words, in small letters, that people give the parts.
PART_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), "test"),
}
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class SplitIndices:
    """Row indices of the three parts: sorted int64 arrays, disjoint, together all rows."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def build_split_indices(
    part_of_row: np.ndarray,
    *,
    reason: str = "rows of one molecule, scaffold or cluster stay together",
) -> SplitIndices:
    """Return the rows of each part (0 train, 1 valid, 2 test); valid may be empty."""
    rows = [np.flatnonzero(part_of_row == part) for part in range(len(SPLIT_NAMES))]
    if not (rows[0].size and rows[2].size):
        raise UserError(
            f"Train, valid and test would have {rows[0].size}, {rows[1].size} and {rows[2].size} "
            f"rows: {reason}. Add rows, choose another split, or give one in a column."
        )
    return SplitIndices(*rows)


def compute_part_sizes(num_rows: int, fractions: tuple[float, float, float]) -> np.ndarray:
    """Return the wanted numbers of rows of train, valid and test, `(3,)`, at least 1 unless 0."""
    train, valid, test = fractions
    num_valid = max(1, round(valid * num_rows)) if valid > 0 else 0
    num_test = max(1, round(test * num_rows))
    num_train = num_rows - num_valid - num_test
    if num_train < 1 or min(train, test) <= 0 or valid < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise UserError(
            f"{num_rows} rows cannot be divided into train, valid and test by the fractions "
            f"{tuple(fractions)}: these must add up to 1, train and test must be more than 0, and "
            "each part takes at least one row."
        )
    return np.array([num_train, num_valid, num_test])


def group_rows(groups: Iterable[str]) -> dict[str, list[int]]:
    """Return the rows of every name, in order."""
    rows_by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_by_group.setdefault(group, []).append(row)
    return rows_by_group


def shuffle_groups(rows_by_group: dict[str, list[int]], *, seed: int) -> list[list[int]]:
    """Return the rows of every name, in a random order that no order of the rows changes."""
    names = sorted(rows_by_group)
    return [rows_by_group[names[i]] for i in np.random.default_rng(seed).permutation(len(names))]


def fill_parts(
    row_lists: Sequence[list[int]], fractions: tuple[float, float, float]
) -> SplitIndices:
    """Put each group into the first part with room for it, else into the part that lacks most.

    Groups larger than the smallest part come first, so that they find their room in train; the last
    groups go to parts that would stay empty.
    """
    targets = compute_part_sizes(sum(map(len, row_lists)), fractions)
    smallest = targets[targets > 0].min()
    sizes = np.zeros(len(SPLIT_NAMES), dtype=np.int64)
    part_of_row = np.empty(targets.sum(), dtype=np.int64)
    for num_placed, rows in enumerate(sorted(row_lists, key=lambda rows: len(rows) <= smallest)):
        room = targets - sizes
        fitting = np.flatnonzero(room >= len(rows))
        empty = np.flatnonzero((targets > 0) & (sizes == 0))
        if len(row_lists) - num_placed <= empty.size:
            part = empty[0]
        else:
            part = fitting[0] if fitting.size else np.argmax(room)
        part_of_row[rows] = part
        sizes[part] += len(rows)
    return build_split_indices(part_of_row)
