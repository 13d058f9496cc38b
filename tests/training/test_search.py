"""A search over four settings, chosen on valid."""

import csv
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments, write_json
from transformers.trainer import Trainer

from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.search import SEARCHED_FLAGS, validate_search


def build_search(folder: Path, **options: Any) -> FinetuningArguments:
    folder.mkdir(exist_ok=True)
    columns = {"y": [len(smiles) for smiles in TABLE_SMILES], "part": TABLE_PARTS}
    options = {"hpo_trials": 2, "num_train_epochs": 3, "batch_size": 4, "seed": 3, **options}
    return build_tiny_arguments(folder, columns, **options)


def read_trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "hpo_trials.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_the_run_after_a_search_repeats_its_best_trial(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    result = run_finetuning(build_search(tmp_path))
    trials = read_trials(tmp_path / "run")
    assert list(trials[0]) == ["trial", "is_best", "valid_metric", *SEARCHED_FLAGS]
    assert len(trials) == 2
    # the first trial is the arguments as they were given
    first = {name: float(trials[0][name]) for name in SEARCHED_FLAGS}
    assert first == pytest.approx(
        {"learning_rate": 5e-4, "dropout": 0.1, "weight_decay": 0.01, "batch_size": 4}
    )
    assert trials[0]["learning_rate"] != trials[1]["learning_rate"]
    (best,) = [trial for trial in trials if trial["is_best"] == "1"]
    assert float(best["valid_metric"]) == min(float(trial["valid_metric"]) for trial in trials)
    assert result.metrics["valid"]["rmse"] == pytest.approx(float(best["valid_metric"]), rel=1e-6)
    saved = json.loads((tmp_path / "run" / "finetuning_arguments.json").read_text())
    assert {name: saved[name] for name in SEARCHED_FLAGS} == pytest.approx(
        {name: float(best[name]) for name in SEARCHED_FLAGS}
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == pytest.approx(float(best["dropout"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *["architecture.json", "run", "table.csv"]
    ]


@pytest.mark.slow
def test_a_search_with_the_authors_recipe_judges_the_last_epoch(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    result = run_finetuning(build_search(tmp_path, recipe="authors", learning_rate=0.1))
    (best,) = [trial for trial in read_trials(tmp_path / "run") if trial["is_best"] == "1"]
    assert result.metrics["valid"]["rmse"] == pytest.approx(float(best["valid_metric"]), rel=1e-6)
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    errors = [entry["eval_rmse"] for entry in log if "eval_rmse" in entry]
    assert errors[-1] == pytest.approx(float(best["valid_metric"]), rel=1e-6)
    assert len(errors) == 3


@pytest.mark.slow
def test_an_interrupted_search_goes_on_to_the_trials_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    undisturbed = build_search(tmp_path / "a", hpo_trials=3, num_train_epochs=1)
    interrupted = build_search(tmp_path / "b", hpo_trials=3, num_train_epochs=1)
    run_finetuning(undisturbed)
    trained: list[int] = []
    train = Trainer.train

    def train_or_crash(trainer: Trainer, **options: Any) -> Any:
        trained.append(trainer.args.per_device_train_batch_size)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(trainer, **options)

    monkeypatch.setattr(Trainer, "train", train_or_crash)
    with pytest.raises(KeyboardInterrupt):
        run_finetuning(interrupted)
    run_finetuning(replace(interrupted, resume=True))
    # two trials, the one that was cut off, that again, and the run itself
    assert len(trained) == 5
    assert read_trials(tmp_path / "b" / "run") == read_trials(tmp_path / "a" / "run")
    weights, again = (load_file(tmp_path / name / "run" / "model.safetensors") for name in "ab")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    # other arguments: nothing of it is used
    search_again = replace(interrupted, overwrite=True, warmup_ratio=0.2)
    run_finetuning(search_again)
    assert len(trained) == 5 + 4


def test_a_missing_optuna_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--hpo-trials needs optuna: pip install") as error:
        run_finetuning(build_search(tmp_path))
    assert "'rmat-hf[hpo]'" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run.in_progress").exists()


def test_a_file_that_fixes_what_is_searched_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    overrides = write_json(tmp_path / "overrides.json", {"learning_rate": 1e-3, "seed": 1})
    with pytest.raises(ValueError, match=r"searches learning_rate, which .*overrides.json sets"):
        validate_search(build_search(tmp_path, training_arguments=overrides))
