import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_checks import assert_is_partition, assert_keeps_together

from rmat_hf.data.splits.random_splits import (
    assign_folds,
    split_by_fold,
    split_randomly,
    validate_fold,
)
from rmat_hf.errors import UserError


@given(st.lists(st.integers(0, 40), min_size=30, max_size=120), st.integers(0, 5))
def test_random_split_is_a_partition_that_keeps_equal_molecules_together(
    groups: list[int], seed: int
) -> None:
    names = [*map(str, groups), "a", "b"]
    split = split_randomly(names, seed=seed)
    assert_is_partition(split, len(names))
    assert_keeps_together(split, names)
    assert min(len(split.train), len(split.valid), len(split.test)) > 0


def test_random_split_of_different_molecules_has_exact_sizes() -> None:
    split = split_randomly([str(i) for i in range(642)], seed=0)
    assert (len(split.train), len(split.valid), len(split.test)) == (514, 64, 64)


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


def test_more_folds_than_molecules_are_refused() -> None:
    with pytest.raises(UserError, match="3 different molecules cannot be divided into 4 folds"):
        split_by_fold(["a", "b", "c"] * 5, num_folds=4, fold=0, seed=0)
