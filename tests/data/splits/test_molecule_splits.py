import logging
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, DataStructs
from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from rdkit.ML.Cluster.Butina import ClusterData
from split_checks import assert_is_partition, assert_keeps_together, read_freesolv

from rmat_hf.data.splits import molecule_splits
from rmat_hf.data.splits.molecule_splits import (
    assign_folds,
    compute_butina_centers,
    split_by_balanced_scaffold,
    split_by_cluster,
    split_by_fold,
    split_by_scaffold,
    split_randomly,
    validate_fold,
)
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.errors import UserError


def test_random_split_of_different_molecules_has_exact_sizes() -> None:
    names = [str(i) for i in range(642)]
    for fractions, sizes in (((0.8, 0.1, 0.1), [514, 64, 64]), ((0.8, 0.0, 0.2), [514, 0, 128])):
        split = split_randomly(names, fractions=fractions, seed=0)
        assert [len(rows) for rows in vars(split).values()] == sizes


@pytest.mark.parametrize("seed", range(6))
def test_molecule_with_most_rows_is_in_train(seed: int) -> None:
    split = split_randomly(["a"] * 50 + ["b", "c", "d"], seed=seed)
    assert set(range(50)) <= set(split.train.tolist())


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.2), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (1.2, -0.4, 0.2)]
)
def test_impossible_fractions_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="must add up to 1"):
        split_randomly([str(i) for i in range(10)], fractions=fractions, seed=0)


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "b"], ["a"] * 50, ["a"] * 50 + ["b"]])
def test_too_few_molecules_are_refused(groups: list[str]) -> None:
    with pytest.raises(UserError, match="rows"):
        split_randomly(groups, seed=0)


@given(
    st.lists(st.integers(0, 40), min_size=20, max_size=80).filter(lambda rows: len(set(rows)) > 7),
    st.integers(3, 7),
    st.integers(0, 3),
)
def test_folds_are_partitions_that_keep_equal_molecules_together(
    groups: list[int], num_folds: int, seed: int
) -> None:
    names = [str(group) for group in groups]
    turns = [
        split_by_fold(names, num_folds=num_folds, fold=fold, seed=seed) for fold in range(num_folds)
    ]
    for turn in turns:
        assert_is_partition(turn, len(names))
        assert_keeps_together(turn, names)
        assert min(len(turn.train), len(turn.valid), len(turn.test)) > 0
    assert sorted(row for turn in turns for row in turn.test) == list(range(len(names)))
    for turn, after in zip(turns, [*turns[1:], turns[0]], strict=True):
        assert turn.valid.tolist() == after.test.tolist()


def test_folds_of_different_molecules_differ_by_one_row_at_most() -> None:
    folds = assign_folds([str(i) for i in range(102)], num_folds=5, seed=0)
    assert sorted((folds == idx).sum() for idx in range(5)) == [20, 20, 20, 21, 21]


@pytest.mark.parametrize(("num_folds", "fold"), [(2, 0), (5, 5), (5, -1)])
def test_fold_that_does_not_exist_is_refused(num_folds: int, fold: int) -> None:
    with pytest.raises(UserError, match=f"Fold {fold} of {num_folds} does not exist"):
        validate_fold(fold, num_folds=num_folds)
    with pytest.raises(UserError, match=f"Fold {fold} of {num_folds} does not exist"):
        split_by_fold(["a", "b", "c"] * 5, num_folds=num_folds, fold=fold, seed=0)


# 200 molecules of 40 scaffolds: one of them large, the others small
MANY_SCAFFOLDS = ["c1ccccc1" + "C" * length for length in range(44)] + [
    f"C1CC{'C' * ring}1" + "C" * length for ring in range(39) for length in range(4)
]


def test_frequent_scaffolds_are_in_train_and_rare_ones_in_test(
    caplog: pytest.LogCaptureFixture,
) -> None:
    smiles = ["C1CC1", "c1ccsc1"] + ["c1ccccc1" + "C" * i for i in range(8)]
    split = split_by_scaffold(smiles)
    assert split.train.tolist() == list(range(2, 10))
    assert sorted([*split.valid, *split.test]) == [0, 1]
    smiles = ["C[C@H]1CCCO1", "C[C@@H]1CCCO1", "c1ccccc1", "CC"]  # chirality is none of a scaffold
    with caplog.at_level(logging.INFO):
        split = split_by_scaffold(smiles, fractions=(0.5, 0.25, 0.25))
    assert split.train.tolist() == [0, 1]
    assert "1 of 4 molecules have no ring" in caplog.text


@pytest.mark.parametrize("seed", range(3))
def test_balanced_split_keeps_scaffolds_together_and_the_sizes(seed: int) -> None:
    split = split_by_balanced_scaffold(MANY_SCAFFOLDS, seed=seed)
    assert_is_partition(split, 200)
    assert_keeps_together(split, [MurckoScaffoldSmiles(smiles) for smiles in MANY_SCAFFOLDS])
    assert [len(rows) for rows in vars(split).values()] == [160, 20, 20]
    assert set(range(44)) <= set(split.train.tolist())


def test_scaffold_larger_than_half_a_part_is_large() -> None:
    rings = [f"C1CC{'C' * size}1" for size in range(1, 29)]
    smiles = ["c1ccccc1" + "C" * length for length in range(3)] + rings[:27]
    trains = [
        set(split_by_balanced_scaffold(smiles, fractions=(0.6, 0.2, 0.2), seed=seed).train.tolist())
        for seed in range(10)
    ]
    assert not all({0, 1, 2} <= train for train in trains)
    smiles = ["c1ccccc1" + "C" * length for length in range(4)] + rings[:26]
    for seed in range(10):
        split = split_by_balanced_scaffold(smiles, fractions=(0.6, 0.2, 0.2), seed=seed)
        assert {0, 1, 2, 3} <= set(split.train.tolist())


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


@pytest.mark.parametrize("cutoff", [0.2, 0.6])
def test_clusters_are_those_of_rdkit(cutoff: float) -> None:
    smiles = sorted(set(read_freesolv()))
    clusters: dict[int, set[int]] = {}
    for row, center in enumerate(find_centers(smiles, cutoff)):
        clusters.setdefault(center, set()).add(row)
    assert clusters == cluster_with_rdkit(smiles, cutoff)


def test_too_many_molecules_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(molecule_splits, "MAX_CLUSTERED_MOLECULES", 42)
    split_by_cluster(SMILES[:42] * 2, fractions=(0.6, 0.2, 0.2), seed=0)
    with pytest.raises(UserError, match=r"43 molecules .* 42\. Choose a scaffold split"):
        split_by_cluster(SMILES, seed=0)


@pytest.mark.parametrize(
    "divide",
    [
        split_by_scaffold,
        partial(split_by_balanced_scaffold, seed=0),
        partial(split_by_cluster, seed=0),
    ],
)
def test_one_group_cannot_be_divided_and_a_bad_row_is_named(
    divide: Callable[[list[str]], SplitIndices],
) -> None:
    with pytest.raises(UserError, match=r"20, 0 and 0 rows: .*scaffold or cluster"):
        divide(["C" * length for length in range(20, 40)])
    with pytest.raises(UserError, match=r"Row 1: .*'C1CC'"):
        divide(["c1ccccc1", "C1CC", "CC"])
