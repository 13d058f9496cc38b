import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.data.splits import (
    SplitIndices,
    log_leaking_groups,
    split_by_column,
    split_by_scaffold,
    split_randomly,
    validate_split_values,
)
from rmat_hf.data.tables import TableError

RINGS = ["c1ccccc1", "c1ccncc1", "C1CCCC1", "C1CCNCC1", "c1ccc2ccccc2c1", "C1CC1", "c1ccsc1"]
SMILES = ["CCO", "CC", "N"] + [ring + "C" * length for ring in RINGS for length in range(3)]


def assert_is_partition(split: SplitIndices, num_rows: int) -> None:
    for rows in vars(split).values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    together = np.concatenate([split.train, split.valid, split.test])
    assert sorted(together.tolist()) == list(range(num_rows))


def find_parts(split: SplitIndices, num_rows: int) -> np.ndarray:
    parts = np.empty(num_rows, dtype=object)
    for name, rows in vars(split).items():
        parts[rows] = name
    return parts


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
    with pytest.raises(TableError, match="must add up to 1"):
        split_randomly([str(i) for i in range(10)], fractions=fractions, seed=0)


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "b"], ["a"] * 50, ["a"] * 50 + ["b"]])
def test_too_few_molecules_are_refused(groups: list[str]) -> None:
    with pytest.raises(TableError, match=r"too few|cannot be divided"):
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
    with pytest.raises(TableError, match="cannot be divided"):
        split_by_scaffold(["C" * i for i in range(1, 30)])


def test_scaffold_of_an_invalid_smiles_names_the_row() -> None:
    with pytest.raises(TableError, match="Row 1: RDKit cannot parse the SMILES 'C1CC'"):
        split_by_scaffold(["CC", "C1CC", "c1ccccc1"])


def test_split_from_a_column() -> None:
    split = split_by_column(["train", "test", "train", "valid"])
    assert (split.train.tolist(), split.valid.tolist(), split.test.tolist()) == ([0, 2], [3], [1])
    assert_is_partition(split, 4)


def test_column_without_valid_gives_an_empty_valid_part() -> None:
    assert split_by_column(["train", "test"]).valid.tolist() == []


@pytest.mark.parametrize("value", ["validation", "Train", "", None, 0, " test"])
def test_other_words_in_a_split_column_are_refused(value: object) -> None:
    with pytest.raises(TableError) as caught:
        validate_split_values(["train", "test", value], rows=[4, 5, 8], column="fold")
    assert str(caught.value) == (
        f"Row 8 (counted from 0): column 'fold' holds {value!r}. "
        "A split column holds the words train, valid, test only."
    )


@pytest.mark.parametrize(
    ("values", "part"), [(["train", "valid"], "test"), (["test", "valid"], "train"), ([], "train")]
)
def test_empty_part_of_a_split_column_is_refused(values: list[str], part: str) -> None:
    with pytest.raises(TableError, match=f"Column 'fold' puts no usable row into {part}"):
        split_by_column(values, column="fold")


def test_molecules_in_two_parts_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    log_leaking_groups(["a", "a", "b", "b"], splits=["train", "train", "test", "test"])
    assert caplog.text == ""
    log_leaking_groups(["a", "a", "b"], splits=["train", "test", "test"])
    assert "1 molecules stand in more than one part" in caplog.text
