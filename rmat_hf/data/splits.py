"""Divide rows into a train, a valid and a test part."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem
from rdkit.Chem.Scaffolds import MurckoScaffold

from rmat_hf.data.tables import TableError

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


def validate_split_values(values: Sequence[object], *, rows: Sequence[int], column: str) -> None:
    """Raise a `TableError` that names the first value other than train, valid and test.

    Args:
        values (`Sequence[object]`):
            The cells.
        rows (`Sequence[int]`):
            Their positions in the source, counted from 0, for the message.
        column (`str`):
            Name of the column, for the message.
    """
    for row, value in zip(rows, values, strict=True):
        if value not in SPLIT_NAMES:
            raise TableError(
                f"Row {row} (counted from 0): column {column!r} holds {value!r}. "
                f"A split column holds the words {', '.join(SPLIT_NAMES)} only."
            )
    for name in ("train", "test"):
        if name not in values:
            raise TableError(
                f"Column {column!r} puts no usable row into {name}. "
                "Fill the column, or choose a random or scaffold split."
            )


def log_leaking_groups(groups: Sequence[str], *, splits: Sequence[object]) -> None:
    """Warn when rows of one molecule stand in different parts of a given split."""
    parts: dict[str, set[object]] = {}
    for group, part in zip(groups, splits, strict=True):
        parts.setdefault(group, set()).add(part)
    num_leaking = sum(len(found) > 1 for found in parts.values())
    if num_leaking:
        logger.warning(
            "%d molecules stand in more than one part of the split: their labels leak.", num_leaking
        )


def split_by_column(values: Sequence[str], *, column: str = "split") -> SplitIndices:
    """Return the split that a column of the words train, valid and test gives.

    The valid part may be empty; the others may not.

    Args:
        values (`Sequence[str]`):
            One word per row.
        column (`str`, *optional*, defaults to `"split"`):
            Name of the column, for messages.

    Returns:
        `SplitIndices`.
    """
    validate_split_values(values, rows=range(len(values)), column=column)
    return _build_split_indices(np.array([SPLIT_NAMES.index(value) for value in values]))


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
    rows_by_group = _group_rows(groups)
    order = np.random.default_rng(seed).permutation(len(rows_by_group))
    row_lists = list(rows_by_group.values())
    return _fill_parts([row_lists[i] for i in order], fractions)


def split_by_scaffold(
    smiles: Sequence[str], *, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
) -> SplitIndices:
    """Return the deterministic scaffold split: largest groups to train, rare ones to test.

    Molecules of one Bemis-Murcko scaffold (doi 10.1021/jm9602928; chirality ignored) stay together.
    All molecules without a ring share the empty scaffold and therefore stand in one part, train
    unless other scaffolds are more frequent; their number is logged. The order of the rows does not
    matter: groups of one size are taken in the order of their scaffold SMILES.

    Args:
        smiles (`Sequence[str]`):
            One valid SMILES per row.
        fractions (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, valid and test. A share of 0 leaves valid empty.

    Returns:
        `SplitIndices`.
    """
    rows_by_scaffold = _group_rows(
        [_compute_scaffold(text, row=row) for row, text in enumerate(smiles)]
    )
    if "" in rows_by_scaffold:
        logger.info(
            "%d of %d molecules have no ring; a scaffold split keeps them in one part.",
            len(rows_by_scaffold[""]),
            len(smiles),
        )
    scaffolds = sorted(rows_by_scaffold, key=lambda name: (-len(rows_by_scaffold[name]), name))
    return _fill_parts([rows_by_scaffold[scaffold] for scaffold in scaffolds], fractions)


def _compute_scaffold(smiles: str, *, row: int) -> str:
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise TableError(f"Row {row}: RDKit cannot parse the SMILES {smiles!r}. Drop the row.")
    return str(MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False))


def _group_rows(groups: Iterable[str]) -> dict[str, list[int]]:
    rows_by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_by_group.setdefault(group, []).append(row)
    return rows_by_group


def _fill_parts(
    row_lists: Sequence[list[int]], fractions: tuple[float, float, float]
) -> SplitIndices:
    """Put each group into the first part with room for it, else into the part that lacks most.

    Groups larger than the smallest part come first, so that they find their room in train; the last
    groups go to parts that would stay empty.
    """
    targets = _compute_part_sizes(sum(map(len, row_lists)), fractions)
    if len(row_lists) < np.count_nonzero(targets):
        raise TableError(
            f"{targets.sum()} rows in {len(row_lists)} groups of equal molecules or scaffolds "
            "cannot be divided into train, valid and test. Add rows or give a split column."
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
    return _build_split_indices(part_of_row)


def _compute_part_sizes(num_rows: int, fractions: tuple[float, float, float]) -> np.ndarray:
    train, valid, test = fractions
    if min(train, test) <= 0 or valid < 0 or abs(sum(fractions) - 1) > FRACTION_SUM_TOLERANCE:
        raise TableError(
            f"The fractions {tuple(fractions)} of train, valid and test must add up to 1; "
            "train and test must be more than 0."
        )
    num_valid = max(1, round(valid * num_rows)) if valid > 0 else 0
    num_test = max(1, round(test * num_rows))
    num_train = num_rows - num_valid - num_test
    if num_train < 1:
        raise TableError(f"{num_rows} rows are too few to divide into train, valid and test.")
    return np.array([num_train, num_valid, num_test])


def _build_split_indices(part_of_row: np.ndarray) -> SplitIndices:
    return SplitIndices(*(np.flatnonzero(part_of_row == part) for part in range(len(SPLIT_NAMES))))
