import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from split_checks import assert_is_partition, assert_keeps_together, find_parts, list_names

from rmat_hf.data.splits.molecule_splits import (
    split_by_balanced_scaffold,
    split_by_fold,
    split_by_scaffold,
    split_randomly,
)
from rmat_hf.errors import UserError

RINGS = ["c1ccccc1", "c1ccncc1", "C1CCCC1", "C1CCNCC1", "c1ccc2ccccc2c1", "C1CC1", "c1ccsc1"]
SMILES = ["CCO", "CC", "N"] + [ring + "C" * length for ring in RINGS for length in range(3)]


@given(
    st.lists(st.integers(0, 200), min_size=30, max_size=120, unique=True).flatmap(
        lambda groups: st.lists(st.sampled_from(groups), max_size=20).map(
            lambda more: groups + more
        )
    ),
    st.integers(0, 5),
)
def test_random_split_is_a_partition_that_keeps_equal_molecules_together(
    groups: list[int], seed: int
) -> None:
    names = [str(group) for group in groups]
    split = split_randomly(names, seed=seed)
    assert_is_partition(split, len(names))
    parts = find_parts(split, len(names))
    for name in set(names):
        assert len({part for part, other in zip(parts, names, strict=True) if other == name}) == 1
    assert min(len(split.train), len(split.valid), len(split.test)) > 0


def test_random_split_of_different_molecules_has_exact_sizes() -> None:
    split = split_randomly([str(i) for i in range(642)], seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (514, 64, 64)


def test_random_split_depends_on_the_seed_only() -> None:
    names = [str(i) for i in range(100)]
    first, again, other = (split_randomly(names, seed=seed) for seed in (1, 1, 2))
    assert all(
        (a == b).all() for a, b in zip(vars(first).values(), vars(again).values(), strict=True)
    )
    assert first.test.tolist() != other.test.tolist()


def test_random_split_leaves_the_global_random_state_alone() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is the point
    split_randomly([str(i) for i in range(20)], seed=3)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@pytest.mark.parametrize("seed", range(6))
def test_molecule_with_most_rows_is_in_train(seed: int) -> None:
    split = split_randomly(["a"] * 50 + ["b", "c", "d"], seed=seed)
    assert set(range(50)) <= set(split.train.tolist())


def test_valid_part_may_be_left_out() -> None:
    split = split_randomly([str(i) for i in range(10)], fractions=(0.8, 0.0, 0.2), seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (8, 0, 2)


@pytest.mark.parametrize(
    "fractions", [(0.8, 0.1, 0.2), (1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (1.2, -0.4, 0.2)]
)
def test_impossible_fractions_are_refused(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="must add up to 1"):
        split_randomly([str(i) for i in range(10)], fractions=fractions, seed=0)


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "b"], ["a"] * 50, ["a"] * 50 + ["b"]])
def test_too_few_molecules_are_refused(groups: list[str]) -> None:
    with pytest.raises(UserError, match=r"too few|cannot be divided"):
        split_randomly(groups, seed=0)


def test_scaffold_split_is_a_partition_that_keeps_scaffolds_together() -> None:
    split = split_by_scaffold(SMILES)
    assert_is_partition(split, len(SMILES))
    parts = find_parts(split, len(SMILES))
    assert len(set(parts[:3])) == 1
    for first in range(3, len(SMILES), 3):
        assert len(set(parts[first : first + 3])) == 1


@given(st.permutations(range(len(SMILES))))
def test_scaffold_split_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    expected = {SMILES[i] for i in split_by_scaffold(SMILES).test}
    shuffled = [SMILES[i] for i in order]
    assert {shuffled[i] for i in split_by_scaffold(shuffled).test} == expected


def test_frequent_scaffolds_are_in_train_and_rare_ones_in_test() -> None:
    smiles = ["C1CC1", "c1ccsc1"] + ["c1ccccc1" + "C" * i for i in range(8)]
    split = split_by_scaffold(smiles)
    assert split.train.tolist() == list(range(2, 10))
    assert sorted([*split.valid, *split.test]) == [0, 1]


def test_chirality_makes_no_other_scaffold() -> None:
    smiles = ["C[C@H]1CCCO1", "C[C@@H]1CCCO1", "c1ccccc1", "C1CC1"]
    split = split_by_scaffold(smiles, fractions=(0.5, 0.25, 0.25))
    assert split.train.tolist() == [0, 1]


def test_molecules_without_a_ring_are_counted_and_go_to_train(
    caplog: pytest.LogCaptureFixture,
) -> None:
    smiles = ["C" * i for i in range(1, 10)] + ["c1ccccc1", "C1CC1"]
    with caplog.at_level(logging.INFO):
        split = split_by_scaffold(smiles)
    assert split.train.tolist() == list(range(9))
    assert "9 of 11 molecules have no ring" in caplog.text


def test_one_scaffold_cannot_be_divided() -> None:
    with pytest.raises(UserError, match="cannot be divided"):
        split_by_scaffold(["C" * i for i in range(1, 30)])


def test_scaffold_of_an_invalid_smiles_names_the_row() -> None:
    with pytest.raises(UserError, match="Row 1: RDKit cannot parse the SMILES 'C1CC'"):
        split_by_scaffold(["CC", "C1CC", "c1ccccc1"])


# 200 molecules of 40 scaffolds: one of them large, the others small
MANY_SCAFFOLDS = ["c1ccccc1" + "C" * length for length in range(44)] + [
    f"C1CC{'C' * ring}1" + "C" * length for ring in range(39) for length in range(4)
]


@pytest.mark.parametrize("seed", range(3))
def test_balanced_scaffold_split_is_a_partition_that_keeps_scaffolds_together(seed: int) -> None:
    split = split_by_balanced_scaffold(MANY_SCAFFOLDS, seed=seed)
    assert_is_partition(split, 200)
    assert_keeps_together(split, [MurckoScaffoldSmiles(smiles) for smiles in MANY_SCAFFOLDS])
    assert [len(rows) for rows in vars(split).values()] == [160, 20, 20]


def test_large_scaffolds_are_in_train_of_every_balanced_split() -> None:
    for seed in range(10):
        train = split_by_balanced_scaffold(MANY_SCAFFOLDS, seed=seed).train
        assert set(range(44)) <= set(train.tolist())


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


def test_balanced_scaffold_split_depends_on_the_seed_only() -> None:
    first, again, other = (
        list_names(split_by_balanced_scaffold(MANY_SCAFFOLDS, seed=seed), MANY_SCAFFOLDS)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first["test"] != other["test"]


def test_scaffold_families_differ() -> None:
    deterministic = split_by_scaffold(MANY_SCAFFOLDS).test.tolist()
    tests = [split_by_balanced_scaffold(MANY_SCAFFOLDS, seed=seed).test for seed in range(3)]
    assert all(test.tolist() != deterministic for test in tests)


@given(st.permutations(range(len(SMILES))))
def test_seeded_splits_do_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    shuffled = [SMILES[i] for i in order]
    for smiles in (SMILES, shuffled):
        balanced = list_names(split_by_balanced_scaffold(smiles, seed=4), smiles)
        folds = list_names(split_by_fold(smiles, num_folds=4, fold=2, seed=4), smiles)
        if smiles is SMILES:
            expected = balanced, folds
    assert (balanced, folds) == expected


def test_one_scaffold_cannot_be_divided_at_random_either() -> None:
    with pytest.raises(UserError, match="1 groups of equal molecules, scaffolds or clusters"):
        split_by_balanced_scaffold(["C" * i for i in range(1, 30)], seed=0)


def test_balanced_scaffold_of_an_invalid_smiles_names_the_row() -> None:
    with pytest.raises(UserError, match="Row 2: RDKit cannot parse the SMILES 'C1CC'"):
        split_by_balanced_scaffold(["CC", "C1CCC1", "C1CC"], seed=0)


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


@pytest.mark.parametrize("fold", range(5))
def test_folds_of_different_molecules_differ_by_one_row_at_most(fold: int) -> None:
    split = split_by_fold([str(i) for i in range(102)], num_folds=5, fold=fold, seed=0)
    assert {len(split.valid), len(split.test)} <= {20, 21}


def test_folds_depend_on_the_seed_only() -> None:
    names = [str(i) for i in range(60)]
    first, again, other = (
        split_by_fold(names, num_folds=5, fold=1, seed=seed).test.tolist() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize(("num_folds", "fold"), [(2, 0), (5, 5), (5, -1)])
def test_fold_that_does_not_exist_is_refused(num_folds: int, fold: int) -> None:
    with pytest.raises(UserError, match=f"Fold {fold} of {num_folds} does not exist"):
        split_by_fold(["a", "b", "c"] * 5, num_folds=num_folds, fold=fold, seed=0)


def test_more_folds_than_molecules_are_refused() -> None:
    with pytest.raises(UserError, match="3 different molecules cannot be divided into 4 folds"):
        split_by_fold(["a", "b", "c"] * 5, num_folds=4, fold=0, seed=0)
