"""What holds for every way to split, and the rows that each gives."""

import hashlib
import json
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from split_checks import assert_is_partition, assert_keeps_together, list_names, read_freesolv

from rmat_hf.data.splits.molecule_splits import group_by_cluster, group_by_scaffold
from rmat_hf.data.splits.registry import (
    SPLITS,
    find_split_options,
    split_dataset,
    split_into_folds,
    split_rows,
    validate_split,
)
from rmat_hf.errors import UserError

OPTIONS: dict[str, dict[str, Any]] = {
    "time": {"time_column": "day"},
    "kfold": {"num_folds": 5, "fold": 2},
    "column": {"split_column": "part"},
}
WITH_SEED = ["random", "scaffold_balanced", "cluster", "kfold"]


def build_table(smiles: list[str]) -> dict[str, list[Any]]:
    times = [float(len(text) * 7 % 23) + i % 3 for i, text in enumerate(smiles)]
    words = ["test" if i % 5 == 0 else "train" for i in range(len(smiles))]
    return {"canonical_smiles": smiles, "time": times, "split": words}


def split(table: dict[str, list[Any]], name: str, seed: int = 3) -> Any:
    return split_rows(table, name, seed=seed, **OPTIONS.get(name, {}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("random", "1d55e46d43097deb"),
        ("scaffold", "b0e2e4fffa5244c2"),
        ("scaffold_balanced", "05a646acc554160b"),
        ("cluster", "507c1b9fc06a5e2a"),
        ("time", "4ed64bca8d9da3da"),
        ("kfold", "16b96285e93de374"),
    ],
)
def test_one_seed_gives_the_rows_of_earlier_versions(name: str, expected: str) -> None:
    parts = [rows.tolist() for rows in vars(split(build_table(read_freesolv()), name)).values()]
    assert hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16] == expected


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_is_a_partition_with_rows_in_train_and_test(name: str) -> None:
    table = build_table(read_freesolv()[:120])
    found = split(table, name)
    assert_is_partition(found, len(table["split"]))
    assert len(found.train) and len(found.test)


@pytest.mark.parametrize("name", [name for name in SPLITS if name != "column"])
def test_equal_molecules_stay_together(name: str) -> None:
    smiles = [*read_freesolv()[:60], *read_freesolv()[:30]]
    assert_keeps_together(split(build_table(smiles), name), smiles)


@pytest.mark.parametrize("name", ["scaffold", "scaffold_balanced", "cluster", "kfold", "time"])
def test_the_order_of_the_rows_does_not_matter(name: str) -> None:
    table = build_table(read_freesolv()[:80])
    expected = list_names(split(table, name), table["canonical_smiles"])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(80)
        shuffled = {column: [cells[i] for i in order] for column, cells in table.items()}
        assert list_names(split(shuffled, name), shuffled["canonical_smiles"]) == expected


@pytest.mark.parametrize("name", WITH_SEED)
def test_the_seed_alone_decides(name: str) -> None:
    table = build_table(read_freesolv()[:120])
    before = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is the point
    first, again, other = (split(table, name, seed=seed).test.tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002 - as above


@pytest.mark.parametrize(
    ("name", "options", "facts"),
    [
        ("magic", {}, r"'magic' is unknown.*'scaffold'"),
        ("column", {}, "--split column needs --split-column"),
        ("time", {}, "--split time needs --time-column"),
        ("kfold", {"num_folds": 4}, "--split kfold needs --fold"),
        ("kfold", {"fold": 4}, "--split kfold needs --num-folds"),
        ("random", {"cluster_cutoff": 0.5}, "--cluster-cutoff 0.5 needs --split cluster"),
        ("cluster", {"fold": 0}, "--fold 0 needs --split kfold, not cluster"),
    ],
)
def test_missing_and_foreign_options_are_named(
    name: str, options: dict[str, Any], facts: str
) -> None:
    with pytest.raises(UserError, match=facts):
        validate_split(name, options)
    with pytest.raises(UserError, match=facts):
        split_rows(build_table(["CC", "CO", "CN"]), name, **options)


def test_options_are_the_fields_that_are_given() -> None:
    arguments = SimpleNamespace(fold=0, num_folds=5, cluster_cutoff=None, seed=3, split="kfold")
    assert find_split_options(arguments) == {"fold": 0, "num_folds": 5}
    validate_split("kfold", find_split_options(arguments))


def test_a_data_set_is_divided_as_its_rows_are_with_or_without_features() -> None:
    smiles = [f"C{'C' * size}O" for size in range(20)]
    table = Dataset.from_dict({"text": smiles, "year": [*range(20)]})
    for name, options in {
        "random": {},
        "kfold": {"num_folds": 5, "fold": 1},
        "time": {"time_column": "year"},
    }.items():
        parts = split_dataset(table, name, seed=3, smiles_column="text", **options)
        columns = {"canonical_smiles": smiles, "time": [*range(20)]}
        rows = split_rows(columns, name, seed=3, **options)
        assert {part: found["year"][:] for part, found in parts.items()} == {
            part: found.tolist() for part, found in vars(rows).items()
        }


def test_a_data_set_with_no_molecule_in_a_row_is_not_divided() -> None:
    with pytest.raises(UserError, match="Row 1"):
        split_dataset(Dataset.from_dict({"smiles": ["CC", "C1"]}))


@pytest.mark.parametrize("name", [*SPLITS])
def test_folds_keep_together_what_their_split_does(name: str) -> None:
    smiles = read_freesolv()[:200]
    table = build_table([*smiles, *smiles[:20]])
    smiles = table["canonical_smiles"]
    folds = split_into_folds(table, name, most_folds=5, **OPTIONS.get(name, {}))
    assert folds.dtype == np.int64 and {*folds} == {*range(5)}
    groups: dict[str, Any] = {"scaffold": group_by_scaffold(smiles)}
    groups |= {"scaffold_balanced": groups["scaffold"], "cluster": group_by_cluster(smiles)}
    together = [rows for rows in groups.get(name, {}).values() if len(rows) > 1]
    together += [[row, 200 + row] for row in range(20)]
    assert all(len({*folds[rows]}) == 1 for rows in together)
    sizes = np.bincount(folds)
    if name not in groups:
        assert sizes.max() - sizes.min() <= 25
    if name == "time":
        days: dict[str, float] = {}
        for text, day in zip(smiles, table["time"], strict=True):
            days[text] = min(day, days.get(text, day))
        spans = [[days[smiles[row]] for row in np.flatnonzero(folds == it)] for it in range(5)]
        spans.sort()
        assert all(max(a) < min(b) for a, b in pairwise(spans))


def test_there_are_as_many_folds_as_groups_at_most() -> None:
    table = build_table(["C1CCCCC1", "C1CCCCC1C", "c1ccccc1", "Cc1ccccc1", "Oc1ccccc1"])
    assert len({*split_into_folds(table, "scaffold", most_folds=5)}) == 2


FORMS = ("OC(=O)c1ccccc1", "[O-]C(=O)c1ccccc1.[Na+]", "[O-]C(=O)c1ccccc1")


@pytest.mark.parametrize("name", ["random", "scaffold", "scaffold_balanced", "cluster", "kfold"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_split_parts_a_parent_from_its_salts_and_ions(name: str, seed: int) -> None:
    chains = ["C" * size for size in range(1, 25)]
    smiles = [*chains, *FORMS, *FORMS, "Oc1ccccn1", "O=c1cccc[nH]1"]
    options = {"num_folds": 4, "fold": seed} if name == "kfold" else {}
    parts = split_rows({"canonical_smiles": smiles}, name, seed=seed, **options)
    part_of_row = {row: part for part, rows in vars(parts).items() for row in rows.tolist()}
    assert len({part_of_row[row] for row in range(24, 30)}) == 1
    assert part_of_row[30] == part_of_row[31]


@pytest.mark.parametrize("family", ["column", "random", "scaffold"])
def test_valid_is_taken_of_train_where_a_column_has_none(family: str) -> None:
    rings = [f"{'C' * size}C1{'C' * ring}C1" for ring in range(1, 12) for size in (0, 1)]
    table = Dataset.from_dict({"smiles": rings, "set": ["Training"] * 18 + ["TEST"] * 4})
    parts = split_dataset(table, family, seed=1, split_column="set")
    assert {*parts["test"]["set"]} == {"TEST"} and len(parts["test"]) == 4
    assert {*parts["valid"]["set"], *parts["train"]["set"]} == {"Training"}
    assert not {*parts["valid"]["smiles"]} & {*parts["train"]["smiles"]}
    words = ["train"] * 16 + ["dev"] * 2 + ["test"] * 4
    parts = split_dataset(table.add_column("own", words), family, split_column="own")
    assert parts["valid"]["own"] == ["dev"] * 2


def test_rows_of_a_group_and_of_what_links_groups_stay_together() -> None:
    smiles = ["C" * size for size in range(1, 31)]
    groups = [f"project {row // 3}" for row in range(30)]
    smiles[4] = smiles[6]  # joins the projects 1 and 2
    table = Dataset.from_dict({"smiles": smiles, "project": groups})
    parts = split_dataset(table, "random", seed=0, group_column="project")
    seen = [{*rows["project"]} for rows in parts.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert any({"project 1", "project 2"} <= projects for projects in seen)
    with pytest.raises(UserError, match="--group-column project needs --split random or kfold"):
        split_dataset(table, "scaffold", group_column="project")
