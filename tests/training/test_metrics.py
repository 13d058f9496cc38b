import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.training.metrics import (
    compute_classification_metrics,
    compute_metrics_for_problem,
    compute_multi_class_metrics,
    compute_regression_metrics,
)

NAN = float("nan")
FINITE = st.floats(-100, 100).map(lambda value: round(value, 3))


def as_column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def test_regression_of_one_label_by_hand() -> None:
    metrics = compute_regression_metrics(
        as_column(1.0, 2.0, 5.0), as_column(1.0, 3.0, 4.0), label_names=["y"]
    )
    # errors 0, -1, 1; labels deviate from their mean 8/3 by 42/9 in all squares
    assert metrics == pytest.approx(
        {"rmse": np.sqrt(2 / 3), "mae": 2 / 3, "r2": 1 - 2 / (42 / 9), "spearman": 1.0}, abs=1e-12
    )


def test_several_labels_are_averaged_and_listed() -> None:
    predictions = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 40.0]])
    labels = np.array([[1.0, 10.0], [2.0, 30.0], [4.0, 40.0]])
    metrics = compute_regression_metrics(predictions, labels, label_names=["a", "b"])
    assert list(metrics) == ["rmse", "mae", "r2", "spearman", "per_label"]
    assert list(metrics["per_label"]) == ["a", "b"]
    alone = compute_regression_metrics(predictions[:, 1:], labels[:, 1:], label_names=["b"])
    assert metrics["per_label"]["b"] == alone
    parts = [metrics["per_label"][name]["rmse"] for name in "ab"]
    assert metrics["rmse"] == pytest.approx(np.mean(parts), abs=1e-12)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=3, max_size=20), st.integers(0, 5))
def test_missing_labels_do_not_change_a_metric(
    pairs: list[tuple[float, float]], num_missing: int
) -> None:
    predictions, labels = (np.array(column)[:, None] for column in zip(*pairs, strict=True))
    more_predictions = np.vstack([np.full((num_missing, 1), 1e6), predictions])
    more_labels = np.vstack([np.full((num_missing, 1), NAN), labels])
    assert compute_regression_metrics(
        more_predictions, more_labels, label_names=["y"]
    ) == compute_regression_metrics(predictions, labels, label_names=["y"])


def test_constant_labels_have_no_r2_and_no_spearman(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = compute_regression_metrics(
            as_column(1.0, 3.0), as_column(2.0, 2.0), label_names=["y"]
        )
    assert metrics == {"rmse": 1.0, "mae": 1.0, "r2": None, "spearman": None}
    assert "Undefined for 'y' on these rows: r2, spearman" in caplog.text


def test_constant_predictions_have_no_spearman() -> None:
    metrics = compute_regression_metrics(
        as_column(2.0, 2.0), as_column(1.0, 3.0), label_names=["y"]
    )
    assert metrics == {"rmse": 1.0, "mae": 1.0, "r2": 0.0, "spearman": None}


@pytest.mark.parametrize("labels", [[], [NAN, NAN]])
def test_no_known_label_leaves_everything_undefined(labels: list[float]) -> None:
    column = np.array(labels).reshape(-1, 1)
    for compute in (compute_regression_metrics, compute_classification_metrics):
        metrics = compute(np.zeros_like(column), column, label_names=["y"])
        assert set(metrics.values()) == {None}
        assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_average_leaves_out_undefined_labels() -> None:
    labels = np.array([[0.0, 1.0], [1.0, 1.0]])
    metrics = compute_classification_metrics(
        np.array([[0.2, 0.9], [0.8, 0.9]]), labels, label_names=["a", "b"]
    )
    assert metrics["per_label"]["b"]["roc_auc"] is None
    assert metrics["roc_auc"] == metrics["per_label"]["a"]["roc_auc"] == 1.0


def test_metric_undefined_for_every_label_has_no_average() -> None:
    labels = np.ones((2, 2))
    metrics = compute_classification_metrics(labels / 2, labels, label_names=["a", "b"])
    assert metrics["roc_auc"] is None
    assert metrics["accuracy"] == 1.0


def test_binary_metrics_by_hand() -> None:
    probabilities = as_column(0.9, 0.6, 0.4, 0.5, 0.1)
    labels = as_column(1, 0, 1, NAN, 0)
    metrics = compute_classification_metrics(probabilities, labels, label_names=["y"])
    # ranked 1 0 1 0: three of four pairs in order; precision 1 at recall 1/2, 2/3 at recall 1
    assert metrics == pytest.approx(
        {"roc_auc": 0.75, "pr_auc": (1 + 2 / 3) / 2, "accuracy": 0.5, "mcc": 0.0}, abs=1e-12
    )


def test_one_class_has_an_accuracy_only() -> None:
    metrics = compute_classification_metrics(
        as_column(0.9, 0.2), as_column(1, 1), label_names=["y"]
    )
    assert metrics == {"roc_auc": None, "pr_auc": None, "accuracy": 0.5, "mcc": None}


def test_two_exclusive_classes_have_the_areas_of_class_1() -> None:
    positive = np.array([0.9, 0.6, 0.4, 0.1])
    labels = as_column(1, 0, 1, 0)
    probabilities = np.stack([1 - positive, positive], axis=1)
    expected = compute_classification_metrics(positive[:, None], labels, label_names=["y"])
    assert compute_multi_class_metrics(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_more_classes_are_averaged_each_against_the_rest() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    labels = np.array([0, 1, 0, 2])
    metrics = compute_multi_class_metrics(probabilities, labels)
    assert metrics["roc_auc"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["accuracy"] == 0.75
    per_class = [
        compute_classification_metrics(
            probabilities[:, [idx]], (labels == idx).astype(float)[:, None], label_names=["y"]
        )
        for idx in range(3)
    ]
    assert metrics["pr_auc"] == pytest.approx(np.mean([m["pr_auc"] for m in per_class]), abs=1e-12)


def test_class_without_a_row_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    metrics = compute_multi_class_metrics(probabilities, np.array([0.0, 1.0]))
    assert metrics["roc_auc"] == 1.0
    assert "Only 2 of 3 classes" in caplog.text


@pytest.mark.parametrize("labels", [[1.0, 1.0], [1.0, NAN]])
def test_single_class_present_has_an_accuracy_only(labels: list[float]) -> None:
    metrics = compute_multi_class_metrics(np.array([[0.2, 0.8], [0.2, 0.8]]), np.array(labels))
    assert metrics == {"roc_auc": None, "pr_auc": None, "accuracy": 1.0, "mcc": None}


def test_no_known_class_leaves_everything_undefined() -> None:
    metrics = compute_multi_class_metrics(np.ones((1, 2)) / 2, np.array([NAN]))
    assert set(metrics.values()) == {None}


def test_class_index_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="must be 0 to 1"):
        compute_multi_class_metrics(np.ones((1, 2)) / 2, np.array([2.0]))


@pytest.mark.parametrize("value", [NAN, np.inf])
def test_predictions_that_are_not_finite_are_refused(value: float) -> None:
    bad = as_column(1.0, value)
    for compute in (compute_regression_metrics, compute_classification_metrics):
        with pytest.raises(ValueError, match="NaN or infinite"):
            compute(bad, as_column(1.0, 0.0), label_names=["y"])
    with pytest.raises(ValueError, match="NaN or infinite"):
        compute_multi_class_metrics(np.hstack([bad, bad]), np.array([1.0, 0.0]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\) and labels \(2, 1\)"):
        compute_regression_metrics(np.zeros((3, 1)), np.zeros((2, 1)), label_names=["y"])
    with pytest.raises(ValueError, match="one column for each of"):
        compute_regression_metrics(np.zeros((2, 1)), np.zeros((2, 1)), label_names=["y", "z"])
    with pytest.raises(ValueError, match="2 labels do not fit"):
        compute_multi_class_metrics(np.zeros((3, 2)), np.zeros(2))


def test_logits_are_turned_into_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 3)).astype(np.float32)
    binary = rng.integers(0, 2, size=(20, 3)).astype(float)
    names = ["a", "b", "c"]
    assert compute_metrics_for_problem(
        "multi_label_classification", logits, labels=binary, label_names=names
    ) == compute_classification_metrics(
        1 / (1 + np.exp(-logits.astype(float))), binary, label_names=names
    )
    exponentials = np.exp(logits.astype(float))
    classes = rng.integers(0, 3, size=(20, 1)).astype(float)
    assert compute_metrics_for_problem(
        "single_label_classification", logits, labels=classes, label_names=["y"]
    ) == pytest.approx(
        compute_multi_class_metrics(exponentials / exponentials.sum(1, keepdims=True), classes),
        abs=1e-12,
    )
    assert compute_metrics_for_problem(
        "regression", logits, labels=binary, label_names=names
    ) == compute_regression_metrics(logits, binary, label_names=names)


def test_unknown_problem_type_is_refused() -> None:
    with pytest.raises(ValueError, match="'ranking'"):
        compute_metrics_for_problem(
            "ranking", np.zeros((1, 1)), labels=np.zeros((1, 1)), label_names=["y"]
        )
