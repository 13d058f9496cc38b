import logging

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from rdkit.ML.Cluster.Butina import ClusterData
from split_checks import assert_is_partition, assert_keeps_together, read_freesolv

from rmat_hf.data.splits import cluster_splits
from rmat_hf.data.splits.cluster_splits import compute_butina_centers, split_by_cluster
from rmat_hf.errors import UserError

HEADS = ["c1ccccc1C(=O)N", "c1ccncc1S(=O)(=O)N", "C1CCNCC1OC", "FC(F)(F)c1ccsc1", "OC(=O)CCN"]
SMILES = [head + "C" * length for head in HEADS for length in range(1, 9)] + ["N#N", "OO", "ClCl"]
GENERATOR = GetMorganGenerator(radius=2, fpSize=2048)


def build_fingerprints(smiles: list[str]) -> list[DataStructs.ExplicitBitVect]:
    return [GENERATOR.GetFingerprint(Chem.MolFromSmiles(text)) for text in smiles]


def find_centers(smiles: list[str], cutoff: float) -> list[int]:
    bits = np.array([list(fingerprint) for fingerprint in build_fingerprints(smiles)])
    return compute_butina_centers(bits, cutoff=cutoff).tolist()


def cluster_with_rdkit(smiles: list[str], cutoff: float) -> dict[int, set[int]]:
    """RDKit takes the last of two centers with equally many neighbors, so it gets them reversed."""
    fingerprints = build_fingerprints(smiles)[::-1]
    last = len(smiles) - 1
    distances = [
        distance
        for i in range(1, len(smiles))
        for distance in DataStructs.BulkTanimotoSimilarity(
            fingerprints[i], fingerprints[:i], returnDistance=True
        )
    ]
    clusters = ClusterData(distances, len(smiles), cutoff, isDistData=True)
    return {last - rows[0]: {last - row for row in rows} for rows in clusters}


@pytest.mark.parametrize("cutoff", [0.2, 0.4, 0.6, 0.8])
def test_clusters_are_those_of_rdkit(cutoff: float) -> None:
    smiles = sorted(set(read_freesolv()))
    clusters: dict[int, set[int]] = {}
    for row, center in enumerate(find_centers(smiles, cutoff)):
        clusters.setdefault(center, set()).add(row)
    assert clusters == cluster_with_rdkit(smiles, cutoff)


def test_every_member_is_near_its_center_and_every_center_is_its_own() -> None:
    fingerprints = build_fingerprints(SMILES)
    centers = find_centers(SMILES, 0.5)
    for row, center in enumerate(centers):
        assert centers[center] == center
        assert 1 - DataStructs.TanimotoSimilarity(fingerprints[row], fingerprints[center]) <= 0.5


@pytest.mark.parametrize("seed", range(3))
def test_cluster_split_keeps_clusters_together_and_the_sizes(seed: int) -> None:
    smiles = sorted(set(read_freesolv()))
    split = split_by_cluster(smiles, seed=seed)
    assert_is_partition(split, len(smiles))
    assert_keeps_together(split, find_centers(smiles, 0.6))
    sizes = np.array([len(rows) for rows in vars(split).values()])
    np.testing.assert_allclose(sizes / len(smiles), [0.8, 0.1, 0.1], atol=0.01)


def test_rows_of_one_molecule_and_its_stereoisomers_stay_together() -> None:
    smiles = [*SMILES, *SMILES[::2], "C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"]
    split = split_by_cluster(smiles, fractions=(0.6, 0.2, 0.2), seed=1)
    assert_is_partition(split, len(smiles))
    assert_keeps_together(split, [text.replace("@", "") for text in smiles])


def test_smaller_cutoff_gives_more_clusters(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for cutoff in (0.3, 0.7):
            split_by_cluster(SMILES, cluster_cutoff=cutoff, fractions=(0.6, 0.2, 0.2), seed=0)
    counts = [int(record.message.split()[3]) for record in caplog.records]
    assert counts[0] > counts[1]
    assert caplog.records[0].message.startswith("43 molecules form")


def test_too_many_molecules_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_splits, "MAX_CLUSTERED_MOLECULES", 42)
    split_by_cluster(SMILES[:42] * 2, fractions=(0.6, 0.2, 0.2), seed=0)
    with pytest.raises(UserError, match=r"43 molecules .* 42\. Choose a scaffold split"):
        split_by_cluster(SMILES, seed=0)


def test_one_cluster_and_no_molecule_cannot_be_divided_and_a_bad_row_is_named() -> None:
    with pytest.raises(UserError, match=r"20, 0 and 0 rows: .*cluster"):
        split_by_cluster(["C" * length for length in range(20, 40)], seed=0)
    with pytest.raises(UserError, match="0 rows"):
        split_by_cluster([], seed=0)
    with pytest.raises(UserError, match=r"Row 1: .*'C1CC'"):
        split_by_cluster(["c1ccccc1", "C1CC", "CC"], seed=0)
