"""Divide molecules into a train, a valid and a test part, at random, by scaffold or in folds."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "valid", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
FRACTION_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True)
class SplitIndices:
    """Row indices of the three parts: sorted int64 arrays, disjoint, together all rows."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split_randomly(
    groups: Sequence[str],
    *,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int,
) -> SplitIndices:
    """Return a random split that never puts equal molecules into different parts.

    Args:
        groups (`Sequence[str]`):
            One name per row, the canonical SMILES; rows of one name stay together.
        fractions (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, valid and test. A share of 0 leaves valid empty.
        seed (`int`):
            Seed of the shuffle.

    Returns:
        `SplitIndices`.
    """
    rows_by_group = group_rows(groups)
    order = np.random.default_rng(seed).permutation(len(rows_by_group))
    row_lists = list(rows_by_group.values())
    return fill_parts([row_lists[i] for i in order], fractions)


def split_by_scaffold(
    smiles: Sequence[str], *, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
) -> SplitIndices:
    """Return the deterministic scaffold split: largest groups to train, rare ones to test.

    The family of MoleculeNet and DeepChem. Never compare its metrics with those of
    `split_by_balanced_scaffold`, which is easier. Molecules of one Bemis-Murcko scaffold (doi
    10.1021/jm9602928; chirality ignored) stay together. All molecules without a ring share the
    empty scaffold and therefore stand in one part, train unless other scaffolds are more frequent;
    their number is logged. The order of the rows does not matter: groups of one size are taken in
    the order of their scaffold SMILES.

    Args:
        smiles (`Sequence[str]`):
            One valid SMILES per row.
        fractions (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, valid and test. A share of 0 leaves valid empty.

    Returns:
        `SplitIndices`.
    """
    rows_by_scaffold = _group_by_scaffold(smiles)
    scaffolds = sorted(rows_by_scaffold, key=lambda name: (-len(rows_by_scaffold[name]), name))
    return fill_parts([rows_by_scaffold[scaffold] for scaffold in scaffolds], fractions)


def split_by_balanced_scaffold(
    smiles: Sequence[str],
    *,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int,
) -> SplitIndices:
    """Return a random scaffold split: large groups to train, the others shuffled.

    The family of chemprop (doi 10.1021/acs.jcim.9b00237): a group larger than half of valid or of
    test is large. Easier than `split_by_scaffold`, whose test part has the rarest scaffolds: never
    compare metrics of the two. Scaffolds are the same. The order of the rows does not matter.

    Args:
        smiles (`Sequence[str]`):
            One valid SMILES per row.
        fractions (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, valid and test. A share of 0 leaves valid empty.
        seed (`int`):
            Seed of the shuffle.

    Returns:
        `SplitIndices`.
    """
    row_lists = shuffle_groups(_group_by_scaffold(smiles), seed=seed)
    targets = compute_part_sizes(len(smiles), fractions)
    half = targets[targets > 0].min() / 2
    return fill_parts(sorted(row_lists, key=lambda rows: len(rows) <= half), fractions)


def split_by_fold(groups: Sequence[str], *, num_folds: int, fold: int, seed: int) -> SplitIndices:
    """Return one turn of a cross-validation: a fold is test, the next one valid, the rest train.

    One seed gives the same folds at every turn, so that each row is in test once. The order of the
    rows does not matter.

    Args:
        groups (`Sequence[str]`):
            One name per row, the canonical SMILES; rows of one name stay together.
        num_folds (`int`):
            Number of folds, at least 3.
        fold (`int`):
            Which one is test, from 0; the fold after the last is the first.
        seed (`int`):
            Seed of the folds.

    Returns:
        `SplitIndices`.
    """
    if num_folds < 3 or not 0 <= fold < num_folds:
        raise UserError(
            f"Fold {fold} of {num_folds} does not exist. Take 3 folds or more, and count from 0."
        )
    fold_of_row = assign_folds(groups, num_folds=num_folds, seed=seed)
    test, valid = fold_of_row == fold, fold_of_row == (fold + 1) % num_folds
    return build_split_indices(np.where(test, 2, np.where(valid, 1, 0)))


def assign_folds(groups: Sequence[str], *, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row, int64 `(num_rows,)`: folds of about one size.

    Args:
        groups, num_folds, seed: As in `split_by_fold`, but two folds are enough.
    """
    row_lists = shuffle_groups(group_rows(groups), seed=seed)
    if len(row_lists) < num_folds:
        raise UserError(
            f"{len(row_lists)} different molecules cannot be divided into {num_folds} folds. "
            "Take fewer folds or add molecules."
        )
    sizes = np.zeros(num_folds, dtype=np.int64)
    fold_of_row = np.empty(len(groups), dtype=np.int64)
    # not `GroupKFold`: its sort is not stable, so that other processors may give other folds
    for rows in sorted(row_lists, key=len, reverse=True):
        smallest = sizes.argmin()
        fold_of_row[rows] = smallest
        sizes[smallest] += len(rows)
    return fold_of_row


def parse_row(smiles: str, *, row: int) -> Chem.Mol:
    """Return the molecule of a row, or raise a `UserError` that names the row."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise UserError(f"Row {row}: RDKit cannot parse the SMILES {smiles!r}. Drop the row.")
    return mol


def _group_by_scaffold(smiles: Sequence[str]) -> dict[str, list[int]]:
    mols = (parse_row(text, row=row) for row, text in enumerate(smiles))
    rows_by_scaffold = group_rows(
        MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False) for mol in mols
    )
    if "" in rows_by_scaffold:
        logger.info(
            "%d of %d molecules have no ring; a scaffold split keeps them in one part.",
            len(rows_by_scaffold[""]),
            len(smiles),
        )
    return rows_by_scaffold


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
    if len(row_lists) < np.count_nonzero(targets):
        raise UserError(
            f"{targets.sum()} rows in {len(row_lists)} groups of equal molecules, scaffolds or "
            "clusters cannot be divided into train, valid and test. Add rows, choose a random "
            "split or give a split column."
        )
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


def compute_part_sizes(num_rows: int, fractions: tuple[float, float, float]) -> np.ndarray:
    """Return the wanted numbers of rows of train, valid and test, `(3,)`, at least 1 unless 0."""
    train, valid, test = fractions
    if min(train, test) <= 0 or valid < 0 or abs(sum(fractions) - 1) > FRACTION_SUM_TOLERANCE:
        raise UserError(
            f"The fractions {tuple(fractions)} of train, valid and test must add up to 1; "
            "train and test must be more than 0."
        )
    num_valid = max(1, round(valid * num_rows)) if valid > 0 else 0
    num_test = max(1, round(test * num_rows))
    num_train = num_rows - num_valid - num_test
    if num_train < 1:
        raise UserError(f"{num_rows} rows are too few to divide into train, valid and test.")
    return np.array([num_train, num_valid, num_test])


def build_split_indices(part_of_row: np.ndarray) -> SplitIndices:
    """Return the rows of each part from the part of each row: 0 train, 1 valid, 2 test."""
    return SplitIndices(*(np.flatnonzero(part_of_row == part) for part in range(len(SPLIT_NAMES))))
