import csv
import json
from pathlib import Path
from typing import Any

from rmat_hf.evaluation.choices import describe_choices


def write(folder: Path, *, log: list[dict[str, Any]], **arguments: Any) -> None:
    fields = {"problem_type": "regression", "training_arguments": {}, **arguments}
    (folder / "finetuning_arguments.json").write_text(json.dumps(fields))
    (folder / "training_log.json").write_text(json.dumps(log))


def test_epoch_is_the_one_with_the_best_valid_metric(tmp_path: Path) -> None:
    errors = [0.9, 0.5, 0.7]
    log = [{"epoch": i + 1.0, "eval_rmse": error} for i, error in enumerate(errors)]
    write(tmp_path, log=[{"loss": 1.0, "epoch": 1.0}, *log])
    assert describe_choices(tmp_path) == {
        "part": "valid",
        "metric": "rmse",
        "epochs": [2.0],
        "num_epochs": [3.0],
    }


def test_every_member_of_an_ensemble_has_its_own_epoch(tmp_path: Path) -> None:
    errors = [[0.9, 0.5, 0.7], [0.4, 0.6]]
    log = [
        {"member": member, "epoch": i + 1.0, "eval_rmse": error}
        for member, found in enumerate(errors)
        for i, error in enumerate(found)
    ]
    write(tmp_path, log=log)
    choices = describe_choices(tmp_path)
    assert choices["epochs"] == [2.0, 1.0] and choices["num_epochs"] == [3.0, 2.0]


def test_metric_may_be_another_one_that_is_largest_for_the_best(tmp_path: Path) -> None:
    log = [{"epoch": 1.0, "eval_r2": 0.5}, {"epoch": 2.0, "eval_r2": 0.1}]
    write(tmp_path, log=log, training_arguments={"metric_for_best_model": "eval_r2"})
    choices = describe_choices(tmp_path)
    assert (choices["metric"], choices["epochs"]) == ("r2", [1.0])


def test_searched_values_are_told(tmp_path: Path) -> None:
    chosen = {"learning_rate": 1e-3, "dropout": 0.1, "weight_decay": 0.01, "batch_size": 16}
    write(tmp_path, log=[], **chosen)
    with (tmp_path / "hpo_trials.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["trial"], [0], [1]])
    choices = describe_choices(tmp_path)
    assert choices == {"part": "valid", "metric": "rmse", "hpo_trials": 2, **chosen}


def test_setting_of_a_baseline_is_told(tmp_path: Path) -> None:
    setting = {"part": "valid", "setting": {"y": {"penalty": 3.0}}}
    (tmp_path / "setting.json").write_text(json.dumps(setting))
    assert describe_choices(tmp_path) == setting
