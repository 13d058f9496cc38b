"""Metrics by hand, of missing labels, of one class; a metric is one function."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.training.metrics import (
    METRICS,
    REGRESSION,
    ScoredRows,
    compute_metrics,
    compute_metrics_for_problem,
    format_metric,
    list_metrics,
    register_metric,
)

NAN = float("nan")
FINITE = st.floats(-100, 100).map(lambda value: round(value, 3))
KINDS = {
    "regression": "regression",
    "multi_label": "multi_label_classification",
    "single_label": "single_label_classification",
}


def as_column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


def score(kind: str, predictions: Any, labels: Any, names: str = "y") -> dict[str, Any]:
    return compute_metrics(
        KINDS[kind], np.asarray(predictions), labels=np.asarray(labels), label_names=list(names)
    )


def test_regression_of_one_label_by_hand() -> None:
    metrics = score("regression", as_column(1.0, 2.0, 5.0), as_column(1.0, 3.0, 4.0))
    # errors 0, -1, 1; labels deviate from their mean 8/3 by 42/9 in all squares
    assert metrics == pytest.approx(
        {"rmse": np.sqrt(2 / 3), "mae": 2 / 3, "r2": 1 - 2 / (42 / 9), "spearman": 1.0}, abs=1e-12
    )


def test_several_labels_are_averaged_and_listed() -> None:
    predictions = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 40.0]])
    labels = np.array([[1.0, 10.0], [2.0, 30.0], [4.0, 40.0]])
    metrics = score("regression", predictions, labels, "ab")
    assert list(metrics) == ["rmse", "mae", "r2", "spearman", "per_label"]
    assert metrics["per_label"]["b"] == score("regression", predictions[:, 1:], labels[:, 1:])
    parts = [metrics["per_label"][name]["rmse"] for name in "ab"]
    assert metrics["rmse"] == pytest.approx(np.mean(parts), abs=1e-12)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=3, max_size=20), st.integers(0, 5))
def test_missing_labels_do_not_change_a_metric(
    pairs: list[tuple[float, float]], num_missing: int
) -> None:
    predictions, labels = (np.array(column)[:, None] for column in zip(*pairs, strict=True))
    more_predictions = np.vstack([np.full((num_missing, 1), 1e6), predictions])
    more_labels = np.vstack([np.full((num_missing, 1), NAN), labels])
    expected = score("regression", predictions, labels)
    assert score("regression", more_predictions, more_labels) == expected


@pytest.mark.parametrize(
    ("predictions", "labels", "undefined"),
    [((1.0, 3.0), (2.0, 2.0), {"r2", "spearman"}), ((2.0, 2.0), (1.0, 3.0), {"spearman"})],
)
def test_constants_leave_metrics_undefined_with_a_warning(
    predictions: Any, labels: Any, undefined: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = score("regression", as_column(*predictions), as_column(*labels))
    assert metrics["rmse"] == metrics["mae"] == 1.0
    assert {name for name, value in metrics.items() if value is None} == undefined
    assert "'y'" in caplog.text and all(name in caplog.text for name in undefined)


@pytest.mark.parametrize("labels", [[], [NAN, NAN]])
@pytest.mark.parametrize("kind", KINDS)
def test_no_known_label_leaves_everything_undefined(kind: str, labels: list[float]) -> None:
    metrics = score(kind, np.zeros((len(labels), 2)), np.array(labels).reshape(-1, 1))
    assert set(metrics.values()) == {None}
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_average_leaves_out_undefined_labels() -> None:
    labels = [[0.0, 1.0], [1.0, 1.0]]
    metrics = score("multi_label", [[0.2, 0.9], [0.8, 0.9]], labels, "ab")
    assert metrics["per_label"]["b"]["roc_auc"] is None
    assert metrics["roc_auc"] == metrics["per_label"]["a"]["roc_auc"] == 1.0
    metrics = score("multi_label", np.ones((2, 2)) / 2, np.ones((2, 2)), "ab")
    assert (metrics["roc_auc"], metrics["accuracy"]) == (None, 1.0)


def test_binary_metrics_by_hand() -> None:
    metrics = score("multi_label", as_column(0.9, 0.6, 0.4, 0.5, 0.1), as_column(1, 0, 1, NAN, 0))
    # ranked 1 0 1 0: three of four pairs in order; precision 1 at recall 1/2, 2/3 at recall 1
    assert metrics == pytest.approx(
        {"roc_auc": 0.75, "pr_auc": (1 + 2 / 3) / 2, "accuracy": 0.5, "mcc": 0.0}, abs=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "probabilities", "labels", "accuracy"),
    [
        ("multi_label", [[0.9], [0.2]], [1.0, 1.0], 0.5),
        ("single_label", [[0.2, 0.8]] * 2, [1.0, 1.0], 1.0),
        ("single_label", [[0.2, 0.8]] * 2, [1.0, NAN], 1.0),
    ],
)
def test_one_class_has_an_accuracy_only(
    kind: str, probabilities: Any, labels: list[float], accuracy: float
) -> None:
    metrics = score(kind, probabilities, as_column(*labels))
    assert metrics == {"roc_auc": None, "pr_auc": None, "accuracy": accuracy, "mcc": None}


def test_more_classes_are_averaged_each_against_the_rest() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7]])
    labels = np.array([0, 1, 0, 2])
    metrics = score("single_label", probabilities, labels)
    assert metrics["roc_auc"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["accuracy"] == 0.75
    per_class = [
        score("multi_label", probabilities[:, [idx]], labels[:, None] == idx) for idx in range(3)
    ]
    assert metrics["pr_auc"] == pytest.approx(np.mean([m["pr_auc"] for m in per_class]), abs=1e-12)


@pytest.mark.parametrize("value", [NAN, np.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_that_are_not_finite_are_refused(kind: str, value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(kind, [[1.0, 1.0], [value, 1.0]], as_column(1.0, 0.0))


def test_logits_are_turned_into_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 3)).astype(np.float32)
    binary = rng.integers(0, 2, size=(20, 3)).astype(float)
    classes = rng.integers(0, 3, size=(20, 1)).astype(float)
    exponentials = np.exp(logits.astype(float))
    expected = {
        "regression": (logits, binary, "abc"),
        "multi_label": (1 / (1 + np.exp(-logits.astype(float))), binary, "abc"),
        "single_label": (exponentials / exponentials.sum(1, keepdims=True), classes, "y"),
    }
    for kind, (predictions, labels, names) in expected.items():
        metrics = compute_metrics_for_problem(
            KINDS[kind], logits, labels=labels, label_names=list(names)
        )
        ours = score(kind, predictions, labels, names)
        for values in (metrics, ours):
            values.pop("per_label", None)
        assert metrics == pytest.approx(ours, abs=1e-12)


def test_the_first_metric_of_a_problem_chooses_and_errors_are_smaller_when_better() -> None:
    firsts = [list_metrics(KINDS[kind])[0] for kind in KINDS]
    assert [metric.name for metric in firsts] == ["rmse", "roc_auc", "roc_auc"]
    assert [metric.title for metric in firsts] == ["RMSE", "ROC AUC", "ROC AUC"]
    errors = {name for name, metric in METRICS.items() if not metric.greater_is_better}
    assert errors == {"rmse", "mae"}


def test_a_metric_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rmat_hf.training.metrics.METRICS", dict(METRICS))

    @register_metric("worst", title="worst", problem_types=REGRESSION, greater_is_better=False)
    def compute_worst(rows: ScoredRows) -> float:
        return float(np.abs(rows.labels - rows.predictions).max())

    assert score("regression", as_column(1.0, 5.0), as_column(1.0, 2.0))["worst"] == 3.0
    assert "worst" not in score("multi_label", as_column(0.1, 0.9), as_column(0.0, 1.0))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8891, "0.889"), (0.0, "0.000"), (1e-40, "1e-40"), (-2e9, "-2e+09"), (None, "–")],
)
def test_a_metric_is_shown_with_digits_where_decimals_would_hide_it(
    value: float | None, text: str
) -> None:
    assert format_metric(value) == text


def test_the_order_of_the_rows_changes_no_digit_of_the_rmse() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.normal(size=(2, 65))
    orders = [rng.permutation(65) for _ in range(50)]
    found = {METRICS["rmse"].compute(ScoredRows(labels[it], predictions[it])) for it in orders}
    assert len(found) == 1
    assert found.pop() == pytest.approx(np.sqrt(np.mean((labels - predictions) ** 2)), rel=1e-15)
