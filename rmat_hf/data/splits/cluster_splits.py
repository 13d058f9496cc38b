"""Divide molecules so that whole clusters of similar ones stay in one part."""

import logging
from collections.abc import Sequence

import numpy as np
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

from rmat_hf.data.splits.parts import (
    DEFAULT_FRACTIONS,
    SplitIndices,
    fill_parts,
    group_rows,
    parse_row,
    shuffle_groups,
)
from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

MAX_CLUSTERED_MOLECULES = 50_000
CHUNK_SIZE = 100
FINGERPRINT_SIZE = 2048


def split_by_cluster(
    smiles: Sequence[str],
    *,
    cluster_cutoff: float = 0.6,  # that of DeepChem's ButinaSplitter
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
    rows_by_smiles = group_rows(smiles)
    # sorted, because of centers with equally many neighbors the first is taken
    distinct = sorted(rows_by_smiles)
    if len(distinct) > MAX_CLUSTERED_MOLECULES:
        raise UserError(
            f"{len(distinct)} molecules are too many to cluster; the most is "
            f"{MAX_CLUSTERED_MOLECULES}. Choose a scaffold split, or cluster with a tool for large "
            "libraries and give its split in a column."
        )
    generator = GetMorganGenerator(radius=2, fpSize=FINGERPRINT_SIZE)
    mols = (parse_row(text, row=rows_by_smiles[text][0]) for text in distinct)
    bits = np.array([generator.GetFingerprintAsNumPy(mol) for mol in mols], dtype=np.uint8)
    centers = compute_butina_centers(bits.reshape(-1, FINGERPRINT_SIZE), cutoff=cluster_cutoff)
    center_of_smiles = dict(zip(distinct, (distinct[center] for center in centers), strict=True))
    rows_by_cluster = group_rows(center_of_smiles[text] for text in smiles)
    logger.info("%d molecules form %d clusters.", len(distinct), len(rows_by_cluster))
    return fill_parts(shuffle_groups(rows_by_cluster, seed=seed), fractions)


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
    for start in range(0, num_molecules, CHUNK_SIZE):
        num_common = (bits[start : start + CHUNK_SIZE] @ bits.T).toarray()
        num_either = num_on[start : start + CHUNK_SIZE, None] + num_on - num_common
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
