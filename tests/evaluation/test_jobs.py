import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_evaluation import (
    build_job,
    build_rows,
    build_tiny_protocol,
    end_as_named,
    load_tiny_protocol,
)
from tiny_finetuning import write_json, write_table

from rmat_hf.evaluation.jobs import (
    SETTING_FILE,
    Job,
    build_baseline_jobs,
    build_finetuning_jobs,
    describe_choices,
    hide_places,
    list_versions,
    run_job,
    run_jobs,
)
from rmat_hf.evaluation.predictions import load_predictions
from rmat_hf.evaluation.protocol import Fold, Protocol
from rmat_hf.training import baselines

FOLD = Fold("numbers", "part_0", 0)


def build(protocol: Protocol, output_dir: Path = Path("out")) -> list[Job]:
    return build_finetuning_jobs(protocol, output_dir=output_dir, feature_cache="none")


def list_folders(folder: Path, **sections: Any) -> list[str]:
    return [job.folder.name for job in build(load_tiny_protocol(folder, **sections))]


def test_every_fold_and_model_is_a_run_in_a_folder_of_its_own(tmp_path: Path) -> None:
    jobs = build(load_tiny_protocol(tmp_path))
    assert [str(job) for job in jobs] == [
        f"{model}, numbers, {split}, seed 0"
        for split in ("part_0", "part_1")
        for model in ("tiny", "tiny fast")
    ]
    assert len({job.folder for job in jobs}) == 4
    assert jobs[1].folder.name.startswith("numbers-tiny_fast-part_0-seed_0-")
    assert jobs[1].task.learning_rate == 0.01  # type: ignore[union-attr]  # a model's
    # an interrupted run continues
    assert all(job.task.resume for job in jobs)  # type: ignore[union-attr]  # a model's
    assert not any(job.is_finished for job in jobs)


def test_names_do_not_lead_out_of_the_output_folder(tmp_path: Path) -> None:
    protocol = build_tiny_protocol(tmp_path)
    models = {"../../model": protocol["models"]["tiny"], "/etc/passwd": protocol["models"]["tiny"]}
    datasets = {"../..": protocol["datasets"]["numbers"]}
    jobs = build(load_tiny_protocol(tmp_path, models=models, datasets=datasets), tmp_path / "out")
    assert len({job.folder for job in jobs}) == 4
    for job in jobs:
        assert job.folder.resolve().parent == tmp_path / "out" / "runs"
        assert job.log_file.resolve().parent == tmp_path / "out" / "runs"


def test_folder_depends_on_arguments_data_and_weights_only(tmp_path: Path) -> None:
    before = list_folders(tmp_path)
    assert list_folders(tmp_path) == before
    models = build_tiny_protocol(tmp_path)["models"]
    models["tiny"]["weight_decay"] = 0.5
    after = list_folders(tmp_path, models=models)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True] * 2
    protocol = load_tiny_protocol(tmp_path)
    changed = replace(protocol.datasets["numbers"], checksum="other")
    jobs = build(replace(protocol, datasets={"numbers": changed}))
    assert not {job.folder.name for job in jobs} & set(before)


def test_contradictory_fields_are_an_error_that_names_the_model(tmp_path: Path) -> None:
    models = build_tiny_protocol(tmp_path)["models"]
    models["tiny"]["dropout"] = 2.0
    with pytest.raises(
        ValueError, match=r"Model 'tiny' on numbers, part_0, seed 0: --dropout 2\.0"
    ):
        list_folders(tmp_path, models=models)


def test_baseline_is_fitted_on_the_given_rows_in_a_folder_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = baselines.Baseline("forest", (baselines.COUNTS,), {"num_trees": (5,)})
    monkeypatch.setitem(baselines.BASELINES, baselines.FOREST, small)
    protocol = load_tiny_protocol(tmp_path)
    rows = build_rows().loc[[0, 1, 2, 3, 5, 6, 8, 9, 10, 11]]
    (job,) = build_baseline_jobs(protocol, {FOLD: rows}, output_dir=tmp_path)
    for change, is_same in (({"prediction_y": 0.0}, True), ({"y": 1.0}, False)):
        (other,) = build_baseline_jobs(protocol, {FOLD: rows.assign(**change)}, output_dir=tmp_path)
        assert (other.folder == job.folder) == is_same
    run_job(job)
    assert job.is_finished
    loaded = load_predictions(job.folder)
    columns = ["split", "smiles", "y"]
    pd.testing.assert_frame_equal(loaded[columns], rows[columns], check_index_type=False)
    assert np.isfinite(loaded["prediction_y"]).all()
    setting = json.loads((job.folder / SETTING_FILE).read_text())
    assert setting == {"part": None, "setting": {"y": {"num_trees": 5, "num_train_rows": 6}}}
    record = json.loads(job.record_file.read_text())
    assert record["versions"] == list_versions()
    assert record["seconds"] > 0


# Running them


@pytest.mark.slow
def test_dying_and_failing_processes_are_reported_and_others_go_on(tmp_path: Path) -> None:
    jobs = [build_job(tmp_path, method) for method in ("die", "fail", "good")]
    lines: list[str] = []
    failures = run_jobs(jobs, num_proc=2, report_progress=lines.append, run=end_as_named)
    assert {job.method for job in failures} == {"die", "fail"}
    assert "killed by signal 9" in failures[jobs[0]]
    # without the folder, which tells about the machine
    assert failures[jobs[1]] == "Row 3 of table.csv is bad."
    assert jobs[2].is_finished
    assert [job.log_file.exists() for job in jobs] == [True, True, False]
    assert sorted(lines) == [
        "Failed: die, numbers, part_0, seed 0",
        "Failed: fail, numbers, part_0, seed 0",
        "Finished: good, numbers, part_0, seed 0",
    ]


@pytest.mark.parametrize(
    ("reason", "hidden"),
    [
        ("Row 3 of {folder}/table.csv is bad.", "Row 3 of table.csv is bad."),
        ("Row 3 of {folder}/runs/x/table.csv is bad.", "Row 3 of table.csv is bad."),
        ("No model '{folder}/some model'.", "No model 'some model'."),
        ("No model '/data/my models/a'; see /opt/b.", "No model 'a'; see b."),
        ("No https://me:secret@host/a/b.", "No https://***@host/a/b."),
        ("SMILES C/C=C/C, 3/4 of chemist/model", "SMILES C/C=C/C, 3/4 of chemist/model"),
    ],
)
def test_a_reason_names_files_but_no_folder_and_no_password(
    reason: str, hidden: str, tmp_path: Path
) -> None:
    folder = tmp_path / "with a space"
    assert hide_places(reason.format(folder=folder), build_job(folder, "x")) == hidden


# What they chose

ERRORS = ((1, 0.9), (2, 0.5), (3, 0.7))


@pytest.mark.parametrize(
    ("log", "arguments", "choices"),
    [
        (
            [
                {"loss": 1.0},
                *({"epoch": i, "eval_rmse": e} for i, e in ((1, 0.9), (2, 0.5), (3, 0.7))),
            ],
            {},
            {"part": "valid", "metric": "rmse", "epochs": [2.0], "num_epochs": [3.0]},
        ),
        (
            [
                *({"member": 0, "epoch": i, "eval_rmse": e} for i, e in ((1, 0.9), (2, 0.5))),
                *({"member": 1, "epoch": i, "eval_rmse": e} for i, e in ((1, 0.4), (2, 0.6))),
            ],
            {"member_folds": True},
            {
                **{"part": "own folds of train and valid", "metric": "rmse"},
                **{"epochs": [2.0, 1.0], "num_epochs": [2.0, 2.0]},
            },
        ),
        (
            [{"epoch": 1, "eval_r2": 0.5}, {"epoch": 2, "eval_r2": 0.1}],
            {"training_arguments": {"metric_for_best_model": "eval_r2"}},
            {"part": "valid", "metric": "r2", "epochs": [1.0], "num_epochs": [2.0]},
        ),
    ],
)
def test_the_best_epoch_of_every_member_is_told(
    tmp_path: Path, log: list[dict[str, Any]], arguments: dict[str, Any], choices: dict[str, Any]
) -> None:
    write_json(tmp_path / "finetuning_arguments.json", {"problem_type": "regression", **arguments})
    write_json(tmp_path / "training_log.json", log)
    assert describe_choices(tmp_path) == choices


def test_searched_values_and_the_setting_of_a_baseline_are_told(tmp_path: Path) -> None:
    chosen = {"learning_rate": 1e-3, "dropout": 0.1, "weight_decay": 0.01, "batch_size": 16}
    write_json(tmp_path / "finetuning_arguments.json", {"problem_type": "regression", **chosen})
    write_table(tmp_path / "hpo_trials.csv", {"trial": [0, 1]})
    choices = {"part": "valid", "metric": "rmse", "hpo_trials": 2, **chosen}
    assert describe_choices(tmp_path) == choices
    last = {"problem_type": "regression", "recipe": "authors", **chosen}
    write_json(tmp_path / "finetuning_arguments.json", last)
    setting = {"last epoch": {"learning_rate": 1e-3}}
    searched = {"part": "valid", "setting": setting, "hpo_trials": 2, **chosen}
    assert describe_choices(tmp_path) == searched
    (tmp_path / "hpo_trials.csv").unlink()
    assert describe_choices(tmp_path) == {"part": None, "setting": setting}
    setting = {"part": "valid", "setting": {"y": {"penalty": 3.0}}}
    write_json(tmp_path / "setting.json", setting)
    assert describe_choices(tmp_path) == setting
