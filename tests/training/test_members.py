"""Ensembles of finetuning: members are runs of their own, and what is finished is not repeated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_finetuning import build_tiny_arguments
from transformers.trainer import Trainer

from rmat_hf.errors import UserError
from rmat_hf.evaluation.jobs import describe_choices
from rmat_hf.inference.prediction import predict
from rmat_hf.loading import load_predictor
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import predict_out_of_fold, run_finetuning
from rmat_hf.training.recipe import build_finetuning_task, split_for_members

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_finished_member_is_not_trained_again(
    ensemble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = Trainer.train
    trained: list[int] = []

    def train_or_stop(trainer: Trainer, **options: Any) -> Any:
        trained.append(trainer.args.seed)
        if trained == [5, 6]:
            raise KeyboardInterrupt
        return train(trainer, **options)

    monkeypatch.setattr(Trainer, "train", train_or_stop)
    with pytest.raises(KeyboardInterrupt):
        run_finetuning(build_arguments(tmp_path, num_members=2, seed=5))
    resumed = run_finetuning(build_arguments(tmp_path, num_members=2, seed=5, resume=True))
    assert trained == [5, 6, 6]
    np.testing.assert_array_equal(
        predict(resumed.output_dir, SMILES).values, predict(ensemble, SMILES).values
    )


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinetuningArguments]:
    arguments = build_arguments(
        tmp_path_factory.mktemp("folds"), num_members=2, member_folds=True, seed=5
    )
    return run_finetuning(arguments).output_dir, arguments


def test_every_member_holds_out_another_fold_and_no_one_learns_from_test(tmp_path: Path) -> None:
    arguments = build_arguments(tmp_path, num_members=3, member_folds=True)
    task = build_finetuning_task(arguments)
    splits = split_for_members(arguments, task)
    pool = [*task.split.train, *task.split.valid]
    assert sorted(row for split in splits for row in split.valid) == sorted(pool)
    for split in splits:
        assert sorted([*split.train, *split.valid]) == sorted(pool)
        np.testing.assert_array_equal(split.test, task.split.test)
    alike = build_arguments(tmp_path / "seeds", num_members=3)
    assert split_for_members(alike, task) == [task.split] * 3


def test_valid_is_predicted_out_of_fold(folds: tuple[Path, FinetuningArguments]) -> None:
    run, arguments = folds
    task = build_finetuning_task(arguments)
    splits = split_for_members(arguments, task)
    smiles = task.select("valid")["smiles"][:]
    ensemble, _ = load_predictor(run, device="cpu")
    outputs = np.stack(
        [predict(member, smiles, processor=task.processor).values for member in ensemble.members],
        axis=1,
    )
    expected = predict_out_of_fold(outputs, task.split.valid, splits=splits)
    for row, value in zip(task.split.valid, expected, strict=True):
        (member,) = [idx for idx, split in enumerate(splits) if row in split.valid]
        place = task.split.valid.tolist().index(row)
        assert value == outputs[place, member]
    rows = [line.split(",") for line in (run / "predictions.csv").read_text().splitlines()]
    saved = {row[1]: float(row[4]) for row in rows if row[2] == "valid"}
    np.testing.assert_allclose([saved[text] for text in smiles], expected[:, 0], rtol=0, atol=1e-5)
    metrics = json.loads((run / "metrics.json").read_text())
    rmse = np.sqrt(np.mean((expected - task.labels("valid")) ** 2))
    assert metrics["valid"]["rmse"] == pytest.approx(rmse, abs=1e-5)
    assert "held out another fold" in (run / "README.md").read_text()
    assert describe_choices(run)["part"] == "own folds of train and valid"


def test_a_member_is_scored_on_its_own_fold(folds: tuple[Path, FinetuningArguments]) -> None:
    run, arguments = folds
    task = build_finetuning_task(arguments)
    ensemble, _ = load_predictor(run, device="cpu")
    alone = json.loads((run / "member_metrics.json").read_text())
    smiles, labels = task.dataset["smiles"][:], np.array(task.dataset["labels"][:])
    for idx, split in enumerate(split_for_members(arguments, task)):
        held_out = [smiles[row] for row in split.valid]
        values = predict(ensemble.members[idx], held_out, processor=task.processor).values
        rmse = np.sqrt(np.mean((values - labels[split.valid]) ** 2))
        assert alone[idx]["valid"]["rmse"] == pytest.approx(rmse, abs=1e-5)


def test_more_folds_than_molecules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"have 10 folds of what .* too few for 11 members"):
        run_finetuning(build_arguments(tmp_path, num_members=11, member_folds=True))
