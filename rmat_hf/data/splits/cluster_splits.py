"""Divide molecules so that whole clusters of similar ones stay in one part."""

import logging
from collections.abc import Sequence

import numpy as np
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from scipy.sparse import csr_array

from rmat_hf.data.splits.molecule_splits import (
    DEFAULT_FRACTIONS,
    SplitIndices,
    fill_parts,
    group_rows,
    parse_row,
    shuffle_groups,
)
from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

# that of DeepChem's ButinaSplitter
DEFAULT_CLUSTER_CUTOFF = 0.6
MAX_CLUSTERED_MOLECULES = 50_000
FINGERPRINT_SIZE = 2048
# pairs of molecules in hand at a time: about 200 MB
CHUNK_PAIRS = 4_000_000


def split_by_cluster(
    smiles: Sequence[str],
    *,
    cutoff: float = DEFAULT_CLUSTER_CUTOFF,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int,
) -> SplitIndices:
    """Return a random split that never divides a Butina cluster of similar molecules.

    Large clusters go to train, the others are shuffled. Two molecules in different parts can still
    be closer than the cutoff, because it holds between a molecule and the center of its cluster.
    The order of the rows does not matter.

    Args:
        smiles (`Sequence[str]`):
            One valid SMILES per row, of at most 50,000 different molecules: time grows with the
            square of their number.
        cutoff (`float`, *optional*, defaults to 0.6):
            Largest Tanimoto distance to the center of a cluster, between 0 and 1.
        fractions (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, valid and test. A share of 0 leaves valid empty.
        seed (`int`):
            Seed of the shuffle.

    Returns:
        `SplitIndices`.
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
    on_bits = [
        list(generator.GetFingerprint(parse_row(text, row=rows_by_smiles[text][0])).GetOnBits())
        for text in distinct
    ]
    centers = compute_butina_centers(on_bits, cutoff=cutoff)
    center_of_smiles = {
        text: distinct[center] for text, center in zip(distinct, centers, strict=True)
    }
    rows_by_cluster = group_rows(center_of_smiles[text] for text in smiles)
    logger.info(
        "%d molecules form %d clusters; the largest has %d of %d rows.",
        len(distinct),
        len(rows_by_cluster),
        max(map(len, rows_by_cluster.values()), default=0),
        len(smiles),
    )
    return fill_parts(shuffle_groups(rows_by_cluster, seed=seed), fractions)


def compute_butina_centers(on_bits: Sequence[Sequence[int]], *, cutoff: float) -> np.ndarray:
    """Return the center of the Butina cluster of each fingerprint.

    Fingerprints with most neighbors within the cutoff are centers first, the earlier one of two
    with equally many; a cluster has all neighbors that no other one has yet (Butina 1999, J. Chem.
    Inf. Comput. Sci. 39:747, doi 10.1021/ci9803381). Unlike `rdkit.ML.Cluster.Butina`, which has
    eight bytes and more for each pair of molecules, this keeps one bit for each.

    Args:
        on_bits (`Sequence[Sequence[int]]`):
            The bits that are set in each fingerprint, each once.
        cutoff (`float`):
            Largest Tanimoto distance of neighbors, between 0 and 1.

    Returns:
        `np.ndarray` of shape `(num_fingerprints,)`, int64: positions in `on_bits`.
    """
    if not 0 < cutoff < 1:
        raise UserError(f"The cluster cutoff {cutoff} is no Tanimoto distance between 0 and 1.")
    num_neighbors, packed_neighbors = _find_neighbors(on_bits, cutoff=cutoff)
    centers = np.arange(len(on_bits))
    is_free = np.ones(len(on_bits), dtype=bool)
    for center in np.argsort(-num_neighbors, kind="stable"):
        if is_free[center]:
            neighbors = np.unpackbits(packed_neighbors[center], count=len(on_bits)).astype(bool)
            centers[neighbors & is_free] = center
            is_free[neighbors] = False
    return centers


def _find_neighbors(
    on_bits: Sequence[Sequence[int]], *, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many neighbors each fingerprint has, and which, as rows of packed bits."""
    num_on = np.array([len(bits) for bits in on_bits], dtype=np.int64)
    total = int(num_on.sum())
    fingerprints = csr_array(
        (
            np.ones(total, dtype=np.int32),
            np.fromiter((bit for bits in on_bits for bit in bits), dtype=np.int32, count=total),
            np.concatenate([[0], np.cumsum(num_on)]),
        ),
        shape=(len(on_bits), FINGERPRINT_SIZE),
    )
    transposed = fingerprints.T.tocsr()
    num_neighbors = np.empty(len(on_bits), dtype=np.int64)
    packed_neighbors = np.empty((len(on_bits), -(-len(on_bits) // 8)), dtype=np.uint8)
    chunk_size = max(1, CHUNK_PAIRS // max(1, len(on_bits)))
    for start in range(0, len(on_bits), chunk_size):
        common = (fingerprints[start : start + chunk_size] @ transposed).tocoo()
        num_either = num_on[start + common.row] + num_on[common.col] - common.data
        is_near = 1 - common.data / num_either <= cutoff
        neighbors = np.zeros(common.shape, dtype=bool)
        neighbors[common.row[is_near], common.col[is_near]] = True
        num_neighbors[start : start + chunk_size] = neighbors.sum(axis=1)
        packed_neighbors[start : start + chunk_size] = np.packbits(neighbors, axis=1)
    return num_neighbors, packed_neighbors
