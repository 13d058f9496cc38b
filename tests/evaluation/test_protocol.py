import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_evaluation import build_tiny_protocol, load_tiny_protocol, save_protocol

from rmat_hf.evaluation.protocol import (
    Fold,
    compute_file_checksum,
    compute_model_checksum,
    load_protocol,
)
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.recipe import choose_num_epochs

TINY = ("models", "tiny")
NUMBERS = ("datasets", "numbers")


def test_protocol_lists_every_split_with_every_seed(tmp_path: Path) -> None:
    content = build_tiny_protocol(tmp_path)
    content["datasets"]["numbers"]["seeds"] = [0, 3]
    protocol = load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")
    assert protocol.list_folds() == [
        Fold("numbers", split, seed) for split in ("part_0", "part_1") for seed in (0, 3)
    ]
    dataset = protocol.datasets["numbers"]
    assert dataset.build_split_fields("part_1") == {"split": "column", "split_column": "part_1"}
    assert dataset.checksum == compute_file_checksum(tmp_path / "data" / "table.csv")
    assert dataset.is_regression


def test_name_of_a_split_takes_the_place_of_columns(tmp_path: Path) -> None:
    content = build_tiny_protocol(tmp_path)
    content["datasets"]["numbers"]["splits"] = "scaffold"
    protocol = load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")
    assert protocol.list_folds() == [Fold("numbers", "scaffold", 0)]
    assert protocol.datasets["numbers"].build_split_fields("scaffold") == {"split": "scaffold"}


def test_every_fold_of_a_kfold_split_is_test_once(tmp_path: Path) -> None:
    content = build_tiny_protocol(tmp_path)
    content["datasets"]["numbers"] |= {"splits": "kfold", "num_folds": 4}
    protocol = load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")
    assert protocol.list_folds() == [Fold("numbers", f"fold_{idx}", 0) for idx in range(4)]
    dataset = protocol.datasets["numbers"]
    assert dataset.options["num_folds"] == 4
    assert dataset.build_split_fields("fold_2") == {"split": "kfold", "fold": 2}


def test_bundled_data_set_needs_no_file(tmp_path: Path) -> None:
    dataset = {
        "dataset": "freesolv",
        "label_columns": ["hydration_free_energy"],
        "problem_type": "regression",
    }
    datasets = {"freesolv": {**dataset, "splits": "random", "seeds": [0]}}
    protocol = load_tiny_protocol(tmp_path, datasets=datasets)
    assert len(protocol.datasets["freesolv"].checksum) == 64


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("modles",), {}, "protocol.json: unknown field 'modles'. Known: datasets, models"),
        (("models",), {}, "'models' must be an object with one entry per name"),
        (TINY, 3, "models: tiny: must be an object"),
        ((*TINY, "lr"), 1e-3, "models: tiny: unknown field 'lr'. Known: .*learning_rate"),
        ((*TINY, "seed"), 1, "models: tiny: unknown field 'seed'"),
        ((*TINY, "label_columns"), ["y"], "models: tiny: unknown field 'label_columns'"),
        ((*TINY, "learning_rate"), "high", "models: tiny: learning_rate.*'high'"),
        ((*TINY, "batch_size"), True, "models: tiny: batch_size.*int.*True"),
        ((*TINY, "geometry"), "4d", "models: tiny: geometry.*'4d'"),
        ((*NUMBERS, "file"), "x.csv", "datasets: numbers: unknown field 'file'. Known: .*dataset"),
        ((*NUMBERS, "dataset"), "none.csv", "there is no file 'none.csv' in the data folder"),
        ((*NUMBERS, "dataset"), "me/solubility", "set dataset_revision to a commit"),
        ((*NUMBERS, "label_columns"), ["z"], "table.csv has no column 'z'. Its columns are"),
        ((*NUMBERS, "label_columns"), "y", "numbers: label_columns.*list"),
        ((*NUMBERS, "label_columns"), [], "label_columns is empty"),
        ((*NUMBERS, "smiles_column"), "S", "has no column 'S'"),
        ((*NUMBERS, "splits"), ["part_7"], "has no column 'part_7'"),
        ((*NUMBERS, "splits"), "magic", "splits is 'magic'. Give a list of columns, or one of"),
        ((*NUMBERS, "splits"), [], "splits is empty"),
        ((*NUMBERS, "splits"), "kfold", "kfold needs num_folds"),
        ((*NUMBERS, "seeds"), [0, 0], "numbers.*: 0 is there twice"),
        ((*NUMBERS, "seeds"), [0.5], "numbers: seeds.*int.*0.5"),
        ((*NUMBERS, "problem_type"), "single_label_classification", "cannot be benchmarked"),
        (("baselines",), ["magic"], "baselines: 'magic' is unknown. Known: random_forest"),
        (("predictions",), {"tool": "none.csv"}, "'tool': there is no file 'none.csv'"),
    ],
)
def test_mistake_is_one_line_that_names_the_field(
    tmp_path: Path, place: tuple[str, ...], value: Any, message: str
) -> None:
    content = build_tiny_protocol(tmp_path)
    section = content
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    with pytest.raises(ValueError, match=message) as error:
        load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["dataset", "label_columns", "problem_type", "splits", "seeds"])
def test_missing_field_is_named(tmp_path: Path, name: str) -> None:
    content = build_tiny_protocol(tmp_path)
    del content["datasets"]["numbers"][name]
    with pytest.raises(ValueError, match=f"the field '{name}' is missing"):
        load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")


def test_methods_need_names_of_their_own(tmp_path: Path) -> None:
    content = build_tiny_protocol(tmp_path)
    (tmp_path / "tool.csv").write_text("dataset\n")
    content["predictions"] = {"tiny": str(tmp_path / "tool.csv")}
    with pytest.raises(ValueError, match="'tiny' is there twice"):
        load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")


def test_protocol_of_the_mat_sets_is_one_for_them(repo_root: Path, shared_dir: Path) -> None:
    path = repo_root / "scripts" / "protocols" / "mat_benchmark.json"
    protocol = load_protocol(path, data=shared_dir / "data" / "mat_benchmark")
    assert len(protocol.list_folds()) == 18
    assert list(protocol.models) == [
        *("rmat-small", "rmat-small, 3 members"),
        *("rmat-small + descriptors", "rmat-small + descriptors, 3 members", "random weights"),
    ]
    assert {options["geometry"] for options in protocol.models.values()} == {"bounds"}


@pytest.mark.parametrize("name", ["pretraining_effect", "pretraining_effect_classes"])
def test_protocols_of_the_effect_give_random_weights_as_many_epochs(
    name: str, repo_root: Path, shared_dir: Path, tmp_path: Path
) -> None:
    folder = shared_dir / "data" / "mat_benchmark"
    path = repo_root / "scripts" / "protocols" / f"{name}.json"
    protocol = load_protocol(path, data=folder)
    assert list(protocol.models) == ["rmat-small", "random weights, as many epochs"]
    for key, dataset in protocol.datasets.items():
        num_train_rows = (pd.read_csv(folder / f"{key}.csv")["split_0"] == "train").sum()
        epochs = []
        for options in protocol.models.values():
            fields = dataset.options | options | {"output_dir": str(tmp_path)}
            arguments = FinetuningArguments(**fields)
            epochs.append(choose_num_epochs(arguments, num_train_rows=num_train_rows))
        pretrained, random = epochs
        # one number for both sets of classes
        assert random - pretrained in (0, 1)


def test_checksum_of_a_model_changes_with_its_files(tmp_path: Path) -> None:
    assert compute_model_checksum("scratch") == ""
    assert len(compute_model_checksum("rmat-small")) == 64
    (tmp_path / "config.json").write_text("{}")
    before = compute_model_checksum(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 1}))
    assert compute_model_checksum(str(tmp_path)) != before
