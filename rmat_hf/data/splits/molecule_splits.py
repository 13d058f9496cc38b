"""Divide molecules at random, in folds, by their Bemis-Murcko scaffold or by Butina clusters."""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from rdkit import Chem
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold

from rmat_hf.data.splits.parts import (
    DEFAULT_FRACTIONS,
    SplitIndices,
    build_split_indices,
    compute_part_sizes,
    fill_parts,
    group_rows,
    shuffle_groups,
)
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import silence_rdkit
from rmat_hf.model.standardization_rmat import compute_parent_key

logger = logging.getLogger(__name__)

MAX_CLUSTERED_MOLECULES = 50_000
CLUSTER_CUTOFF = 0.6  # that of DeepChem's ButinaSplitter
_CHUNK_SIZE = 100
_FINGERPRINT_SIZE = 2048


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
    """
    row_lists = list(group_rows(smiles).values())
    order = np.random.default_rng(seed).permutation(len(row_lists))
    return fill_parts([row_lists[i] for i in order], fractions)


def split_by_fold(smiles: Sequence[str], *, num_folds: int, fold: int, seed: int) -> SplitIndices:
    """Return one turn of a cross-validation: a fold is test, the next one valid, the rest train.

    One seed gives the same folds at every turn, so that each row is in test once. The order of the
    rows does not matter.
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
    """Return the fold of every row, int64 `(num_rows,)`: two or more, of about one size.

    Rows of one name, as the canonical SMILES of a molecule, stand in one fold.
    """
    groups = group_rows(smiles)
    if len(groups) < num_folds:
        raise UserError(
            f"{len(groups)} different molecules cannot be divided into {num_folds} folds. "
            "Take fewer folds or add molecules."
        )
    return fill_folds(groups, num_folds=num_folds, seed=seed)


def fill_folds(groups: dict[str, list[int]], *, num_folds: int, seed: int) -> np.ndarray:
    """Return the fold of every row, with no group in two; fewer folds if there are fewer groups."""
    num_folds = min(num_folds, len(groups))
    row_lists = shuffle_groups(groups, seed=seed)
    sizes = np.zeros(num_folds, dtype=np.int64)
    fold_of_row = np.empty(sum(map(len, row_lists)), dtype=np.int64)
    # not `GroupKFold`: its sort is not stable, so that other processors may give other folds
    for rows in sorted(row_lists, key=len, reverse=True):
        smallest = sizes.argmin()
        fold_of_row[rows] = smallest
        sizes[smallest] += len(rows)
    return fold_of_row


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
        fractions: As in `split_randomly`.
    """
    rows_by_scaffold = group_by_scaffold(smiles)
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
        fractions, seed: As in `split_randomly`.
    """
    row_lists = shuffle_groups(group_by_scaffold(smiles), seed=seed)
    targets = compute_part_sizes(len(smiles), fractions)
    half = targets[targets > 0].min() / 2
    return fill_parts(sorted(row_lists, key=lambda rows: len(rows) <= half), fractions)


def group_by_molecule(smiles: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of every canonical SMILES."""
    return group_rows(smiles)


def group_by_scaffold(smiles: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of every Bemis-Murcko scaffold; as in [`split_by_scaffold`]."""
    mols = (_parse_row(text, row=row) for row, text in enumerate(smiles))
    rows_by_scaffold = group_rows(
        MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False) for mol in mols
    )
    logger.info(
        "%d of %d molecules have no ring; a scaffold split keeps them in one part.",
        len(rows_by_scaffold.get("", [])),
        len(smiles),
    )
    return rows_by_scaffold


def split_by_cluster(
    smiles: Sequence[str],
    *,
    cluster_cutoff: float = CLUSTER_CUTOFF,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int,
) -> SplitIndices:
    """Return a random split that never divides a Butina cluster of similar molecules.

    Large clusters go to train, the others are shuffled. Two molecules in different parts can still
    be closer than the cutoff, because it holds between a molecule and the center of its cluster.
    The order of the rows does not matter.

    Args:
        smiles: One valid SMILES per row, of at most 50,000 different molecules: time grows with
            the square of their number.
        cluster_cutoff: Largest Tanimoto distance to the center of a cluster, between 0 and 1.
        fractions, seed: As in `split_randomly`.
    """
    rows_by_cluster = group_by_cluster(smiles, cluster_cutoff=cluster_cutoff)
    return fill_parts(shuffle_groups(rows_by_cluster, seed=seed), fractions)


def group_by_cluster(
    smiles: Sequence[str], *, cluster_cutoff: float = CLUSTER_CUTOFF
) -> dict[str, list[int]]:
    """Return the rows of every Butina cluster, by its center; as in [`split_by_cluster`]."""
    rows_by_smiles = group_rows(smiles)
    # sorted, because of centers with equally many neighbors the first is taken
    distinct = sorted(rows_by_smiles)
    if len(distinct) > MAX_CLUSTERED_MOLECULES:
        raise UserError(
            f"{len(distinct)} molecules are too many to cluster; the most is "
            f"{MAX_CLUSTERED_MOLECULES}. Choose a scaffold split, or cluster with a tool for large "
            "libraries and give its split in a column."
        )
    generator = GetMorganGenerator(radius=2, fpSize=_FINGERPRINT_SIZE)
    mols = (_parse_row(text, row=rows_by_smiles[text][0]) for text in distinct)
    bits = np.array([generator.GetFingerprintAsNumPy(mol) for mol in mols], dtype=np.uint8)
    centers = compute_butina_centers(bits.reshape(-1, _FINGERPRINT_SIZE), cutoff=cluster_cutoff)
    center_of_smiles = dict(zip(distinct, (distinct[center] for center in centers), strict=True))
    rows_by_cluster = group_rows(center_of_smiles[text] for text in smiles)
    logger.info("%d molecules form %d clusters.", len(distinct), len(rows_by_cluster))
    return rows_by_cluster


def compute_butina_centers(fingerprints: np.ndarray, *, cutoff: float) -> np.ndarray:
    """Return the center of the Butina cluster of each fingerprint.

    Fingerprints with most neighbors within the cutoff are centers first, the earlier one of two
    with equally many; a cluster has all neighbors that no other one has yet (Butina 1999, J. Chem.
    Inf. Comput. Sci. 39:747, doi 10.1021/ci9803381). Unlike `rdkit.ML.Cluster.Butina`, which has
    eight bytes and more for each pair of molecules, this keeps one bit for each.

    Args:
        fingerprints (`np.ndarray` of shape `(num_molecules, num_bits)`): 0 or 1.
        cutoff: Largest Tanimoto distance of neighbors, between 0 and 1.

    Returns:
        `np.ndarray` of shape `(num_molecules,)`, int64: positions in `fingerprints`.
    """
    from scipy.sparse import csr_array

    num_molecules = len(fingerprints)
    bits = csr_array(fingerprints, dtype=np.int32)
    num_on = fingerprints.sum(axis=1, dtype=np.int64)
    packed = []
    for start in range(0, num_molecules, _CHUNK_SIZE):
        num_common = (bits[start : start + _CHUNK_SIZE] @ bits.T).toarray()
        num_either = num_on[start : start + _CHUNK_SIZE, None] + num_on - num_common
        packed += list(np.packbits(1 - num_common / num_either <= cutoff, axis=1))
    num_neighbors = [int(np.bitwise_count(neighbors).sum()) for neighbors in packed]
    centers = np.arange(num_molecules)
    is_free = np.ones(num_molecules, dtype=bool)
    for center in np.argsort(np.negative(num_neighbors), kind="stable"):
        if is_free[center]:
            neighbors = np.unpackbits(packed[center], count=num_molecules).astype(bool)
            centers[neighbors & is_free] = center
            is_free[neighbors] = False
    return centers


def _parse_row(smiles: str, *, row: int) -> Chem.Mol:
    """Return the molecule of a row, or raise a `UserError` that names the row."""
    mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise UserError(f"Row {row}: RDKit cannot parse the SMILES {smiles!r}. Drop the row.")
    return mol


# Rows that are one substance: a molecule with its salts, charges and tautomers


def name_by_parent(
    smiles: Sequence[str],
    *,
    groups: Sequence[object] | None = None,
    mols: Mapping[str, Chem.Mol | None] | None = None,
) -> list[str]:
    """Return for each row a SMILES that it shares with all rows of its parent, and with no other.

    It is the shortest of theirs, so a molecule without salts or tautomers keeps its own.

    Args:
        groups (`Sequence`, *optional*):
            What else rows have in common, such as a project: rows of one group, and of one parent,
            share the name, and so do those that are linked by others. Empty cells are no group.
    """
    distinct = dict.fromkeys(smiles)
    with silence_rdkit():
        keys = {text: _compute_key(text, mols[text] if mols else None) for text in distinct}
    names = _choose_names([keys[text] for text in smiles], smiles)
    while groups is not None:
        of_groups = [str(group or name) for group, name in zip(groups, names, strict=True)]
        linked = _choose_names(of_groups, names)
        linked = _choose_names(names, linked)
        if linked == names:
            break
        names = linked
    return names


def _choose_names(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return for each row the shortest name of the rows with its key."""
    chosen = [""] * len(keys)
    for rows in group_rows(keys).values():
        name = min((names[row] for row in rows), key=lambda text: (len(text), text))
        for row in rows:
            chosen[row] = name
    return chosen


def _compute_key(smiles: str, mol: Chem.Mol | None) -> str:
    mol = mol or Chem.MolFromSmiles(smiles)
    try:
        return smiles if mol is None else compute_parent_key(mol)
    except (RuntimeError, ValueError):  # of a molecule that RDKit cannot uncharge
        return smiles
