"""Ensembles of finetuning: members are runs of their own, and what is finished is not repeated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_finetuning import build_tiny_arguments
from transformers.trainer import Trainer

from rmat_hf.inference import predict
from rmat_hf.training import members as members_module
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning

SMILES = ["CCO", "c1ccccc1C", "C1CCNCC1"]
# the columns of a table are rounded to float32
TOLERANCE = 1e-6


def build_arguments(folder: Path, **options: Any) -> FinetuningArguments:
    folder.mkdir(exist_ok=True)
    part = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
    columns = {"y": range(12), "part": part}
    return build_tiny_arguments(folder, columns, **{"num_train_epochs": 2.0, **options})


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble")
    return run_finetuning(build_arguments(folder, num_members=2, seed=5)).output_dir


def test_every_member_is_the_run_of_its_seed(ensemble: Path, tmp_path: Path) -> None:
    alone = [
        predict(
            run_finetuning(build_arguments(tmp_path / str(seed), seed=seed)).output_dir, SMILES
        ).values
        for seed in (5, 6)
    ]
    together = predict(ensemble, SMILES)
    np.testing.assert_allclose(together.values, np.mean(alone, axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(together.spread, np.std(alone, axis=0), rtol=0, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).min() > 1e-3


def test_the_folder_tells_what_members_and_ensemble_are_worth(ensemble: Path) -> None:
    metrics = json.loads((ensemble / "metrics.json").read_text())
    alone = json.loads((ensemble / "member_metrics.json").read_text())
    assert [set(entry) for entry in alone] == [{"train", "valid", "test"}] * 2
    # the error of a mean is at most the mean of the errors
    worst = np.mean([entry["train"]["rmse"] for entry in alone])
    assert metrics["train"]["rmse"] <= worst
    log = json.loads((ensemble / "training_log.json").read_text())
    assert {entry["member"] for entry in log} == {0, 1}
    card = (ensemble / "README.md").read_text()
    assert "ensemble of 2 models" in card
    rows = (ensemble / "predictions.csv").read_text().splitlines()
    assert rows[0] == "row,smiles,split,y,prediction_y,spread_y"


def test_the_table_of_the_run_agrees_with_predictions(ensemble: Path) -> None:
    rows = [line.split(",") for line in (ensemble / "predictions.csv").read_text().splitlines()]
    smiles = [row[1] for row in rows[1:]]
    expected = predict(ensemble, smiles)
    saved = np.array([[float(row[4]), float(row[5])] for row in rows[1:]])
    np.testing.assert_allclose(saved[:, 0], expected.values[:, 0], rtol=TOLERANCE, atol=1e-5)
    np.testing.assert_allclose(saved[:, 1], expected.spread[:, 0], rtol=TOLERANCE, atol=1e-5)


def test_a_finished_member_is_not_trained_again(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_members = members_module.train_members
    trained: list[int] = []

    def train_and_stop(arguments: FinetuningArguments, *, work_dir: Path, train: Any) -> Any:
        def train_one(chosen: FinetuningArguments, folder: Path) -> Trainer:
            if chosen.seed == 6 and not trained[1:]:
                trained.append(chosen.seed)
                raise KeyboardInterrupt
            trained.append(chosen.seed)
            return train(chosen, folder)

        return train_members(arguments, work_dir=work_dir, train=train_one)

    monkeypatch.setattr("rmat_hf.training.finetuning.train_members", train_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run_finetuning(build_arguments(tmp_path, num_members=2, seed=5))
    resumed = run_finetuning(build_arguments(tmp_path, num_members=2, seed=5, resume=True))
    assert trained == [5, 6, 6]
    np.testing.assert_array_equal(
        predict(resumed.output_dir, SMILES).values, predict(ensemble, SMILES).values
    )


def test_a_search_chooses_the_setting_of_all_members(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    run = run_finetuning(build_arguments(tmp_path, num_members=2, hpo_trials=2)).output_dir
    assert (run / "hpo_trials.csv").is_file()
    assert json.loads((run / "config.json").read_text())["num_members"] == 2


def test_no_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--num-members 0 is too small"):
        build_arguments(tmp_path, num_members=0)
