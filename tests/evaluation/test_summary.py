from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_evaluation import CLASSES, build_class_dataset, build_rows, load_tiny_protocol

from rmat_hf.evaluation.protocol import Fold
from rmat_hf.evaluation.summary import FoldOutcome, compute_part_metrics, summarize_dataset


def summarize_numbers(folder: Path, outcomes: list[FoldOutcome]) -> dict[str, Any]:
    dataset = load_tiny_protocol(folder).datasets["numbers"]
    return summarize_dataset(
        dataset, outcomes, models=["a", "b"], references=["c"], num_resamples=10
    )


def build_outcome(split: str, **errors: float) -> FoldOutcome:
    rows = build_rows()
    predictions = {name: rows.labels + error for name, error in errors.items()}
    return FoldOutcome(Fold("numbers", split, 0), rows, predictions)


def test_methods_are_compared_on_the_splits_that_both_have(tmp_path: Path) -> None:
    outcomes = [
        build_outcome("part_0", a=1.0, b=3.0, c=2.0),
        build_outcome("part_1", a=2.0, c=5.0),
    ]
    summary = summarize_numbers(tmp_path, outcomes)
    assert summary["metric"] == "rmse"
    assert summary["methods"]["a"]["test"] == {"mean": 1.5, "std": 0.5, "num_values": 2}
    assert summary["methods"]["b"]["test"]["num_values"] == 1
    pairs = {(found["method"], found["reference"]): found for found in summary["comparisons"]}
    assert list(pairs) == [("a", "c"), ("a", "b"), ("b", "c")]
    assert pairs["a", "c"]["mean_difference"] == pytest.approx(-2.0)
    assert pairs["a", "c"]["standard_error"] == pytest.approx(1.0)
    assert pairs["a", "c"]["num_wins"] == 2
    assert (pairs["b", "c"]["num_values"], pairs["b", "c"]["num_wins"]) == (1, 0)
    assert summary["folds"][0]["num_rows"] == {"train": 8, "valid": 2, "test": 2}


def test_data_set_without_outcomes_has_empty_scores(tmp_path: Path) -> None:
    summary = summarize_numbers(tmp_path, [])
    assert summary["folds"] == []
    assert summary["methods"]["a"]["test"]["mean"] is None
    assert summary["comparisons"][0]["mean_difference"] is None


def test_classes_have_the_error_of_their_test_rows(tmp_path: Path) -> None:
    datasets = {"classes": build_class_dataset()}
    dataset = load_tiny_protocol(tmp_path, datasets=datasets).datasets["classes"]
    parts = ["train"] * 3 + ["valid"] + ["test"] * 8
    rows = build_rows(labels=np.array(CLASSES, dtype=float)[:, None], parts=parts)
    noisy = np.random.default_rng(0).random((12, 1))
    predictions = {"a": noisy, "b": rows.labels}
    outcomes = [FoldOutcome(Fold("classes", "part_0", seed), rows, predictions) for seed in (0, 1)]
    summary = summarize_dataset(dataset, outcomes, models=["a"], references=["b"], num_resamples=50)
    assert summary["methods"]["b"]["bootstrap_standard_error"] == 0.0
    error = summary["methods"]["a"]["bootstrap_standard_error"]
    assert error > 0.05
    assert summary["comparisons"][0]["bootstrap_standard_error"] == pytest.approx(error)
    assert summary["methods"]["a"]["valid"]["mean"] is None  # one class


def test_part_without_predictions_is_not_scored(tmp_path: Path) -> None:
    dataset = load_tiny_protocol(tmp_path).datasets["numbers"]
    rows = build_rows()
    missing = rows.predictions.copy()
    missing[8] = np.nan
    assert compute_part_metrics(dataset, rows, predictions=missing, part="valid") is None
    found = compute_part_metrics(dataset, rows, predictions=missing, part="test")
    assert found is not None and found["rmse"] == 0.0
