from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tiny_evaluation import build_class_dataset, build_class_rows, build_rows, load_tiny_protocol

from rmat_hf.evaluation.protocol import Fold
from rmat_hf.evaluation.summary import (
    FoldOutcome,
    compute_average_ranks,
    compute_bootstrap_error,
    compute_paired_difference,
    compute_part_metrics,
    resample_mean_roc_auc,
    select_part,
    summarize_dataset,
)


def summarize_numbers(folder: Path, outcomes: list[FoldOutcome]) -> dict[str, Any]:
    dataset = load_tiny_protocol(folder).datasets["numbers"]
    return summarize_dataset(
        dataset, outcomes, models=["a", "b"], references=["c"], num_resamples=10
    )


def build_outcome(split: str, **errors: float) -> FoldOutcome:
    methods = {
        name: build_rows(prediction_y=np.arange(12.0) + error) for name, error in errors.items()
    }
    return FoldOutcome(Fold("numbers", split, 0), methods, num_dropped=3)


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
    assert summary["folds"][0]["num_dropped"] == 3


def test_ranks_follow_the_mean_on_test_where_a_method_has_every_split(tmp_path: Path) -> None:
    outcomes = [build_outcome(f"part_{idx}", a=1.0, b=3.0, c=3.0) for idx in (0, 1)]
    errors = summarize_numbers(tmp_path, outcomes)
    others = [build_outcome("part_0", a=2.0, b=1.0, c=3.0)]
    ranks = compute_average_ranks({"first": errors, "second": summarize_numbers(tmp_path, others)})
    assert ranks["a"] == {"mean": 1.5, "ranks": {"first": 1.0, "second": 2.0}}
    assert ranks["b"]["ranks"] == {"first": 2.5, "second": 1.0}
    assert ranks["c"]["mean"] == 2.75
    # of areas the largest is the best
    areas = {**errors, "lower_is_better": False}
    assert compute_average_ranks({"areas": areas})["a"]["mean"] == 3.0
    incomplete = [*outcomes, build_outcome("part_2", a=1.0, c=1.0)]
    assert set(compute_average_ranks({"x": summarize_numbers(tmp_path, incomplete)})) == {"a", "c"}
    assert compute_average_ranks({"x": summarize_numbers(tmp_path, [])}) == {}


def test_classes_have_the_error_of_their_test_rows(tmp_path: Path) -> None:
    datasets = {"classes": build_class_dataset()}
    dataset = load_tiny_protocol(tmp_path, datasets=datasets).datasets["classes"]
    parts = ["train"] * 3 + ["valid"] + ["test"] * 8
    noisy = np.random.default_rng(0).random(12)
    methods = {"a": build_class_rows(noisy, split=parts), "b": build_class_rows(split=parts)}
    outcomes = [FoldOutcome(Fold("classes", "part_0", seed), methods) for seed in (0, 1)]
    summary = summarize_dataset(dataset, outcomes, models=["a"], references=["b"], num_resamples=50)
    assert summary["methods"]["b"]["bootstrap_standard_error"] == 0.0
    error = summary["methods"]["a"]["bootstrap_standard_error"]
    assert error > 0.05
    assert summary["comparisons"][0]["bootstrap_standard_error"] == pytest.approx(error)
    assert summary["methods"]["a"]["valid"]["mean"] is None  # one class


def test_part_without_predictions_is_not_scored(tmp_path: Path) -> None:
    dataset = load_tiny_protocol(tmp_path).datasets["numbers"]
    rows = build_rows()
    rows.loc[8, "prediction_y"] = np.nan
    assert compute_part_metrics(dataset, rows, part="valid") is None
    found = compute_part_metrics(dataset, rows, part="test")
    assert found is not None and found["rmse"] == 0.0
    predictions, labels = select_part(dataset, rows, part="valid")
    np.testing.assert_array_equal(predictions, [[np.nan], [9.0]])
    assert labels.tolist() == [[8.0], [9.0]]


def test_paired_difference_agrees_with_one_by_hand() -> None:
    # differences -0.1, -0.3, +0.1, 0: mean -0.075; squared deviations .000625 + .050625 + .030625
    # + .005625 = .0875; / 3 = .0291667; root .170783; / 2 = .0853913
    own, other = [1.0, 2.0, 3.0, 4.0, 9.0], [1.1, 2.3, 2.9, 4.0]
    found = compute_paired_difference(
        dict(enumerate(own)), dict(enumerate(other)), lower_is_better=True
    )
    assert found["mean_difference"] == pytest.approx(-0.075)
    assert found["standard_error"] == pytest.approx(0.0853913, abs=1e-7)
    assert (found["num_wins"], found["num_ties"], found["num_values"]) == (2, 1, 4)
    found = compute_paired_difference({0: 1.0, 1: 2.0}, {0: 1.5, 1: 1.0}, lower_is_better=False)
    assert (found["mean_difference"], found["num_wins"]) == (0.25, 1)
    found = compute_paired_difference({0: 1.0}, {0: 2.0}, lower_is_better=True)
    assert (found["mean_difference"], found["standard_error"]) == (-1.0, None)
    assert compute_paired_difference({}, {}, lower_is_better=True)["mean_difference"] is None


@pytest.fixture
def labels() -> np.ndarray:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(60, 2)).astype(float)
    labels[rng.random((60, 2)) < 0.2] = np.nan
    return labels


def test_resampled_area_is_that_of_the_drawn_rows(labels: np.ndarray) -> None:
    probabilities = np.random.default_rng(1).random((60, 2)).round(1)  # with ties
    areas = resample_mean_roc_auc(probabilities, labels, num_resamples=5, seed=3)
    drawn = np.random.default_rng(3).integers(60, size=(5, 60))
    for area, rows in zip(areas, drawn, strict=True):
        expected = []
        for idx in range(2):
            known = rows[~np.isnan(labels[rows, idx])]
            expected.append(roc_auc_score(labels[known, idx], probabilities[known, idx]))
        assert area == pytest.approx(np.mean(expected), abs=1e-12)


def test_one_class_has_no_area() -> None:
    areas = resample_mean_roc_auc(np.ones((4, 1)), np.ones((4, 1)), num_resamples=3, seed=0)
    assert compute_bootstrap_error([areas]) is compute_bootstrap_error([]) is None


def test_bootstrap_error_is_near_that_of_theory(labels: np.ndarray) -> None:
    """Hanley and McNeil (1982) for an area of 0.5: sqrt((m + n + 1) / (12 m n))."""
    known = labels[~np.isnan(labels[:, 0]), :1]
    probabilities = np.random.default_rng(2).random(known.shape)
    areas = resample_mean_roc_auc(probabilities, known, num_resamples=2000, seed=0)
    num_yes = int(known.sum())
    num_no = len(known) - num_yes
    expected = ((num_yes + num_no + 1) / (12 * num_yes * num_no)) ** 0.5
    error = compute_bootstrap_error([areas])
    assert error == pytest.approx(expected, rel=0.25)
    # repetitions of one split are no independent splits
    assert compute_bootstrap_error([areas, areas]) == pytest.approx(error)
    assert compute_bootstrap_error([areas - areas]) == 0.0
