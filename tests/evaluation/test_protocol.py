import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_evaluation import FOREST, build_tiny_protocol, load_tiny_protocol, save_protocol

from rmat_hf.evaluation.jobs import build_finetuning_jobs
from rmat_hf.evaluation.protocol import (
    Fold,
    compute_file_checksum,
    compute_model_checksum,
    load_protocol,
)
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.arguments import RECIPES, FinetuningArguments, load_json_fields
from rmat_hf.training.recipe import compute_num_epochs

TINY = ("models", "tiny")
NUMBERS = ("datasets", "numbers")


@pytest.mark.parametrize(
    ("options", "folds"),
    [
        (
            {"seeds": [0, 3]},
            [("part_0", 0), ("part_0", 3), ("part_1", 0), ("part_1", 3)],
        ),
        ({"splits": "scaffold"}, [("scaffold", 0)]),
        ({"splits": "kfold", "num_folds": 2}, [("fold_0", 0), ("fold_1", 0)]),
    ],
)
def test_protocol_lists_every_split_with_every_seed(
    tmp_path: Path, options: dict[str, Any], folds: list[tuple[str, int]]
) -> None:
    content = build_tiny_protocol(tmp_path)
    content["datasets"]["numbers"] |= options
    protocol = load_protocol(save_protocol(tmp_path, content), data=tmp_path / "data")
    assert protocol.list_folds() == [Fold("numbers", *fold) for fold in folds]
    dataset = protocol.datasets["numbers"]
    assert dataset.splits[folds[-1][0]] in (
        {"split": "column", "split_column": "part_1"},
        {"split": "scaffold"},
        {"split": "kfold", "fold": 1},
    )
    assert dataset.checksum == compute_file_checksum(tmp_path / "data" / "table.csv")


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
        (("models",), {}, "'models' is missing"),
        (TINY, 3, "tiny.*dict"),
        ((*TINY, "lr"), 1e-3, "'tiny': unknown field 'lr'. Known: .*learning_rate"),
        ((*TINY, "seed"), 1, "'tiny': unknown field 'seed'"),
        ((*TINY, "learning_rate"), "high", "'tiny': .*learning_rate.*'high'"),
        ((*TINY, "batch_size"), True, "batch_size.*int.*True"),
        ((*TINY, "geometry"), "4d", "geometry.*'4d'"),
        ((*TINY, "grid"), {"batch_size": []}, "'tiny': a field of the grid has no value"),
        ((*TINY, "grid"), {"batch_size": [4, "8"]}, "'tiny', grid: .*batch_size.*int.*'8'"),
        ((*TINY, "grid"), {"seed": [0, 1]}, "'tiny', grid: unknown field 'seed'"),
        ((*TINY, "grid"), {"batch_size": 4}, "'tiny': .*grid"),
        ((*NUMBERS, "file"), "x.csv", "'numbers': unknown field 'file'. Known: .*dataset"),
        ((*NUMBERS, "dataset"), None, "'numbers': .*'dataset' is missing"),
        ((*NUMBERS, "dataset"), "none.csv", "'none.csv' is no file in the data folder"),
        ((*NUMBERS, "dataset"), "me/solubility", "set dataset_revision to a commit"),
        ((*NUMBERS, "label_columns"), ["z"], "table.csv has no column 'z'. Its columns are"),
        ((*NUMBERS, "label_columns"), "y", "'numbers': .*label_columns.*list"),
        ((*NUMBERS, "splits"), ["part_7"], "has no column 'part_7'"),
        ((*NUMBERS, "splits"), "magic", "splits.*'magic'.*scaffold"),
        ((*NUMBERS, "splits"), [], "'splits' is missing or empty"),
        ((*NUMBERS, "splits"), "kfold", "kfold needs num_folds"),
        ((*NUMBERS, "seeds"), [0, 0], "numbers.*: 0 is there twice"),
        ((*NUMBERS, "seeds"), [0.5], "seeds.*int.*0.5"),
        ((*NUMBERS, "problem_type"), "single_label_classification", "problem_type.*regression"),
        (("baselines",), ["magic"], "baselines.*random_forest.*magic"),
        (("baselines",), [FOREST, FOREST], "is there twice"),
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


def test_protocol_of_the_mat_sets_is_one_for_them(repo_root: Path, shared_dir: Path) -> None:
    path = repo_root / "scripts" / "protocols" / "mat_benchmark.json"
    protocol = load_protocol(path, data=shared_dir / "data" / "mat_benchmark")
    assert len(protocol.list_folds()) == 18
    assert list(protocol.models) == [
        *("default", "kernel", "rmat-small", "rmat-small, 3 members"),
        *("rmat-small + descriptors", "rmat-small + descriptors, 3 members", "random weights"),
    ]
    assert {options["geometry"] for options in protocol.models.values()} == {"bounds"}


@pytest.mark.parametrize(
    ("name", "num_runs"),
    [
        ("paper_small_budget", 18 * 2 * 7),
        ("paper_large_budget", 18 * 2),
        ("attention_ablation", 72),
    ],
)
def test_protocols_of_the_publication_are_runs_that_can_be(
    name: str, num_runs: int, repo_root: Path, shared_dir: Path, tmp_path: Path
) -> None:
    path = repo_root / "scripts" / "protocols" / f"{name}.json"
    protocol = load_protocol(path, data=shared_dir / "data" / "mat_benchmark")
    jobs = build_finetuning_jobs(protocol, output_dir=tmp_path, feature_cache="none")
    assert len({job.folder for job in jobs}) == len(jobs) == num_runs
    for job in jobs:
        fields = load_json_fields(
            job.task.model_config, known=RMatConfig.list_architecture_fields()
        )
        RMatConfig(**fields)


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
            usual = compute_num_epochs(
                arguments.problem_type,
                num_train_rows=num_train_rows,
                batch_size=RECIPES[arguments.recipe]["per_device_train_batch_size"],
                is_pretrained=arguments.model != "scratch",
            )
            epochs.append(arguments.num_train_epochs or usual)
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
