import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments

from rmat_hf.inference.prediction import predict
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import build_finetuning_report, save_run_folder
from rmat_hf.training.recipe import (
    PARTS,
    FinetuningTask,
    build_finetuning_model,
    build_finetuning_task,
    build_training_arguments,
)
from rmat_hf.training.report import FinetuningReport
from rmat_hf.training.trainer import RMatDataCollator, RMatTrainer

FILES = {
    ".gitignore",
    "README.md",
    "config.json",
    "dropped_rows.csv",
    "finetuning_arguments.json",
    "metrics.json",
    "model.safetensors",
    "predictions.csv",
    "preprocessor_config.json",
    "report.md",
    "split.csv",
    "training_log.json",
    "worst_molecules.svg",
}
NUM_MEMBERS = 3
LOG = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 1.0, "eval_rmse": 2.0}]


@dataclass(frozen=True)
class SavedRun:
    """A run folder and what it was written from."""

    folder: Path
    task: FinetuningTask
    logits: dict[str, np.ndarray]

    def read_table(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def read_json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def build_report(
    arguments: FinetuningArguments, task: FinetuningTask, models: list[Any]
) -> FinetuningReport:
    model = models[0]
    if len(models) > 1:
        model = RMatEnsembleForSequenceClassification.from_members(models)
    trainer = RMatTrainer(
        model=model,
        args=build_training_arguments(arguments, Path(arguments.output_dir)),
        data_collator=RMatDataCollator(task.processor),
        eval_dataset=task.select("valid"),
    )
    return build_finetuning_report(arguments, task, trainer=trainer)


def compute_logits(model: Any, task: FinetuningTask, part: str) -> np.ndarray:
    with torch.no_grad():
        return model(**RMatDataCollator(task.processor)(list(task.select(part)))).logits.numpy()


def save_untrained_run(path: Path, columns: dict[str, Any], **options: Any) -> SavedRun:
    """Write the folder of a model that was not trained."""
    arguments = build_tiny_arguments(path, columns, **options)
    task = build_finetuning_task(arguments)
    torch.manual_seed(0)
    model = build_finetuning_model(arguments, task).eval()
    report = build_report(arguments, task, [model])
    folder = path / "written"
    folder.mkdir()
    save_run_folder(folder, model=model, task=task, report=report, log_history=LOG)
    return SavedRun(folder, task, report.predictions)


@pytest.fixture(scope="module")
def regression_run(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """Two labels with gaps; row 1 cannot be parsed and row 4 has no label."""
    smiles = ["CCO", "C1CC", *TABLE_SMILES[2:]]
    a = [1.5, 2, 3, None, None, 6, 7, 8, 9, 10, 11, None]
    b = [0.25, 2, None, 4, None, 6, 7, 8, 9, 10, 11, 12]
    columns = {"smiles": smiles, "a": a, "b": b, "part": TABLE_PARTS}
    return save_untrained_run(tmp_path_factory.mktemp("regression"), columns)


@pytest.fixture(scope="module")
def multi_label_run(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """Two yes/no labels, one of them with a gap in test."""
    a, b = [0, 1] * 6, [1, 1, 0] * 4
    columns = {"a": a, "b": [*b[:11], None], "part": TABLE_PARTS}
    return save_untrained_run(
        tmp_path_factory.mktemp("multi_label"), columns, problem_type="multi_label_classification"
    )


@pytest.fixture(scope="module")
def three_class_run(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """One label with three classes."""
    columns = {"y": ["low", "high", "medium"] * 4, "part": TABLE_PARTS}
    return save_untrained_run(
        tmp_path_factory.mktemp("three_class"), columns, problem_type="single_label_classification"
    )


def read_numbers(rows: list[dict[str, str]], names: list[str]) -> np.ndarray:
    return np.array([[float(row[name] or "nan") for name in names] for row in rows])


def stack(parts: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([parts[part] for part in PARTS])


def list_files(run: SavedRun) -> set[str]:
    """The files of a folder but the code that makes it load without the package."""
    return {path.name for path in run.folder.iterdir() if path.suffix != ".py"}


def test_regression_folder_has_every_file_and_no_other(regression_run: SavedRun) -> None:
    assert list_files(regression_run) == {*FILES, "parity.png"}


def test_every_row_of_the_table_is_in_a_part_or_dropped(regression_run: SavedRun) -> None:
    split = regression_run.read_table("split.csv")
    dropped = regression_run.read_table("dropped_rows.csv")
    assert sorted(int(row["row"]) for row in [*split, *dropped]) == list(range(12))
    assert list(split[0]) == ["row", "smiles", "split"]
    for row in split:
        assert row["split"] == TABLE_PARTS[int(row["row"])]
    assert [row["smiles"] for row in split] == ["CCO", *TABLE_SMILES[2:4], *TABLE_SMILES[5:]]


def test_regression_table_has_labels_and_predictions_in_the_users_units(
    regression_run: SavedRun,
) -> None:
    rows = regression_run.read_table("predictions.csv")
    assert list(rows[0]) == ["row", "smiles", "split", "a", "b", "prediction_a", "prediction_b"]
    task = regression_run.task
    labels = np.concatenate([task.labels(part) for part in PARTS])
    np.testing.assert_array_equal(read_numbers(rows, ["a", "b"]), labels)
    predictions = read_numbers(rows, ["prediction_a", "prediction_b"]).astype(np.float32)
    np.testing.assert_array_equal(predictions, stack(regression_run.logits))
    assert rows[-1]["a"] == "" and rows[-1]["b"] == "12.0"
    keys = ("row", "smiles", "split")
    split = regression_run.read_table("split.csv")
    assert [[row[key] for key in keys] for row in rows] == [[r[key] for key in keys] for r in split]


def test_multi_label_table_has_probabilities(multi_label_run: SavedRun) -> None:
    rows = multi_label_run.read_table("predictions.csv")
    assert list(rows[0]) == ["row", "smiles", "split", "a", "b", "prediction_a", "prediction_b"]
    probabilities = read_numbers(rows, ["prediction_a", "prediction_b"])
    expected = expit(stack(multi_label_run.logits).astype(np.float64))
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(read_numbers(rows, ["a"])[:, 0], [0, 1] * 6)
    assert rows[-1]["b"] == ""


def test_three_classes_have_names_and_one_probability_each(three_class_run: SavedRun) -> None:
    rows = three_class_run.read_table("predictions.csv")
    classes = ["high", "low", "medium"]
    names = [f"probability_y_{name}" for name in classes]
    assert list(rows[0]) == ["row", "smiles", "split", "y", "prediction_y", *names]
    assert [row["y"] for row in rows] == ["low", "high", "medium"] * 4
    probabilities = read_numbers(rows, names)
    expected = softmax(stack(three_class_run.logits).astype(np.float64), axis=1)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
    best = [classes[idx] for idx in expected.argmax(axis=1)]
    assert [row["prediction_y"] for row in rows] == best


@pytest.mark.parametrize("name", ["regression", "multi_label", "three_class"])
def test_saved_folder_predicts_what_its_table_says(
    request: pytest.FixtureRequest, name: str
) -> None:
    run: SavedRun = request.getfixturevalue(f"{name}_run")
    rows = run.read_table("predictions.csv")
    predictions = predict(run.folder, [row["smiles"] for row in rows], trust=False)
    assert predictions.errors == [None] * len(rows)
    columns = predictions.to_columns()
    numeric = [c for c in columns if c != "error" and isinstance(columns[c][0], float)]
    again = np.array([columns[column] for column in numeric]).T
    np.testing.assert_allclose(read_numbers(rows, numeric), again, rtol=1e-5, atol=1e-6)


def test_an_ensemble_reports_itself_and_every_member_alone(tmp_path: Path) -> None:
    columns = {"y": range(12), "part": TABLE_PARTS}
    arguments = build_tiny_arguments(tmp_path, columns, num_members=NUM_MEMBERS)
    task = build_finetuning_task(arguments)
    models = [build_finetuning_model(arguments, task).eval() for _ in range(NUM_MEMBERS)]
    report = build_report(arguments, task, models)
    assert report.member_predictions is not None
    for part in PARTS:
        alone = [compute_logits(model, task, part) for model in models]
        scored = [(report.predictions[part], np.mean(alone, axis=0), report.metrics[part])]
        for idx, logits in enumerate(alone):
            ours = report.member_predictions[part][:, idx]
            scored.append((ours, logits, report.member_metrics[idx][part]))
        for ours, expected, metrics in scored:
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)
            rmse = np.sqrt(np.mean((expected - task.labels(part)) ** 2))
            assert metrics["rmse"] == pytest.approx(rmse, abs=1e-5)
