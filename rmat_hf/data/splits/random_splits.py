"""Divide molecules at random: once, or in the folds of a cross-validation."""

from collections.abc import Sequence

import numpy as np

from rmat_hf.data.splits.parts import (
    DEFAULT_FRACTIONS,
    SplitIndices,
    build_split_indices,
    fill_parts,
    group_rows,
    shuffle_groups,
)
from rmat_hf.errors import UserError


def split_randomly(
    smiles: Sequence[str],
    *,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int,
) -> SplitIndices:
    """Return a random split that never puts equal molecules into different parts.

    Args:
        smiles: Canonical SMILES, or another name, of each row. Rows of one name stay together.
        fractions: Shares of train, valid and test. A share of 0 leaves valid empty.
        seed: Seed of the shuffle.
    """
    row_lists = list(group_rows(smiles).values())
    order = np.random.default_rng(seed).permutation(len(row_lists))
    return fill_parts([row_lists[i] for i in order], fractions)


def split_by_fold(smiles: Sequence[str], *, num_folds: int, fold: int, seed: int) -> SplitIndices:
    """Return one turn of a cross-validation: a fold is test, the next one valid, the rest train.

    One seed gives the same folds at every turn, so that each row is in test once. The order of the
    rows does not matter.

    Args:
        smiles, seed: As in `split_randomly`.
        num_folds: Number of folds, at least 3.
        fold: Which one is test, from 0; the fold after the last is the first.
    """
    validate_fold(fold, num_folds=num_folds)
    fold_of_row = assign_folds(smiles, num_folds=num_folds, seed=seed)
    test, valid = fold_of_row == fold, fold_of_row == (fold + 1) % num_folds
    return build_split_indices(np.where(test, 2, np.where(valid, 1, 0)))


def validate_fold(fold: int, *, num_folds: int) -> None:
    """Raise a `UserError` if there is no such fold, from 0, or there are fewer than three."""
    if num_folds < 3 or not 0 <= fold < num_folds:
        raise UserError(
            f"Fold {fold} of {num_folds} does not exist. Take 3 folds or more, and count from 0."
        )


def assign_folds(smiles: Sequence[str], *, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row, int64 `(num_rows,)`: two or more, of about one size."""
    row_lists = shuffle_groups(group_rows(smiles), seed=seed)
    if len(row_lists) < num_folds:
        raise UserError(
            f"{len(row_lists)} different molecules cannot be divided into {num_folds} folds. "
            "Take fewer folds or add molecules."
        )
    sizes = np.zeros(num_folds, dtype=np.int64)
    fold_of_row = np.empty(len(smiles), dtype=np.int64)
    # not `GroupKFold`: its sort is not stable, so that other processors may give other folds
    for rows in sorted(row_lists, key=len, reverse=True):
        smallest = sizes.argmin()
        fold_of_row[rows] = smallest
        sizes[smallest] += len(rows)
    return fold_of_row
