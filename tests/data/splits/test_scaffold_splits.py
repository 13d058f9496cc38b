import logging

import pytest
from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles
from split_checks import assert_is_partition, assert_keeps_together

from rmat_hf.data.splits.scaffold_splits import split_by_balanced_scaffold, split_by_scaffold
from rmat_hf.errors import UserError

# 200 molecules of 40 scaffolds: one of them large, the others small
MANY_SCAFFOLDS = ["c1ccccc1" + "C" * length for length in range(44)] + [
    f"C1CC{'C' * ring}1" + "C" * length for ring in range(39) for length in range(4)
]


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


def test_one_scaffold_cannot_be_divided_and_a_bad_row_is_named() -> None:
    for options in ({}, {"seed": 0}):
        split = split_by_balanced_scaffold if options else split_by_scaffold
        with pytest.raises(UserError, match=r"29, 0 and 0 rows.*scaffold"):
            split(["C" * i for i in range(1, 30)], **options)  # type: ignore[operator]  # either
        with pytest.raises(UserError, match=r"Row 1: .*'C1CC'"):
            split(["CC", "C1CC", "c1ccccc1"], **options)  # type: ignore[operator]  # either
