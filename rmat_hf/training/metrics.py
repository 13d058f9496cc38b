"""Regression and classification metrics; NaN is a missing label, `None` an undefined metric."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    matthews_corrcoef,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)

logger = logging.getLogger(__name__)

Metrics = dict[str, float | None]
REGRESSION_METRICS = ("rmse", "mae", "r2", "spearman")
CLASSIFICATION_METRICS = ("roc_auc", "pr_auc", "accuracy", "mcc")
DECISION_THRESHOLD = 0.5


def compute_regression_metrics(
    predictions: np.ndarray, labels: np.ndarray, *, label_names: Sequence[str]
) -> dict[str, Any]:
    """Return RMSE, MAE, R² and Spearman's rank correlation over the known labels.

    Args:
        predictions (`np.ndarray` of shape `(num_rows, num_labels)`):
            Predictions, in the units of the labels.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): Labels, NaN where missing.
        label_names (`Sequence[str]`): Name of each label.

    Returns:
        `dict` with `rmse`, `mae`, `r2`, `spearman`; of several labels the mean over those where the
        metric is defined, and `per_label`, the same by name. An undefined metric (too few rows,
        constant labels or predictions) is `None`, with a warning.
    """
    return _compute_per_label(
        predictions, labels, label_names=label_names, compute=_compute_one_regression
    )


def compute_classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, *, label_names: Sequence[str]
) -> dict[str, Any]:
    """Return ROC AUC, PR AUC, accuracy and Matthews correlation of yes/no labels.

    PR AUC is the average precision. Accuracy and Matthews correlation take a probability of at
    least 0.5 as a yes; the Matthews correlation of a constant prediction is 0.

    Args:
        probabilities (`np.ndarray` of shape `(num_rows, num_labels)`): Probability of a yes.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): 0 or 1, NaN where missing.
        label_names (`Sequence[str]`): Name of each label.

    Returns:
        `dict` with `roc_auc`, `pr_auc`, `accuracy`, `mcc`, averaged and undefined as in
        `compute_regression_metrics`; a label of one class has an accuracy only.
    """
    return _compute_per_label(
        probabilities, labels, label_names=label_names, compute=_compute_one_classification
    )


def compute_multi_class_metrics(probabilities: np.ndarray, labels: np.ndarray) -> Metrics:
    """Return ROC AUC, PR AUC, accuracy and Matthews correlation of exclusive classes.

    With two classes the areas are those of class 1; with more they are the mean over the classes,
    each against the rest. Classes without a row are left out, with a warning.

    Args:
        probabilities (`np.ndarray` of shape `(num_rows, num_classes)`): Probability of each class.
        labels (`np.ndarray` of shape `(num_rows,)` or `(num_rows, 1)`):
            Index of the class, NaN where missing.

    Returns:
        `dict` with `roc_auc`, `pr_auc`, `accuracy`, `mcc`; undefined ones are `None`.
    """
    labels = np.asarray(labels, dtype=np.float64).reshape(-1)
    probabilities = _validate_finite(probabilities)
    if probabilities.shape != (len(labels), probabilities.shape[-1]):
        raise ValueError(f"{len(labels)} labels do not fit {probabilities.shape} probabilities.")
    known = ~np.isnan(labels)
    classes, probabilities = labels[known].astype(np.int64), probabilities[known]
    num_classes = probabilities.shape[1]
    if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
        raise ValueError(f"Class indices must be 0 to {num_classes - 1}; found {set(classes)}.")
    present = np.unique(classes)
    result: Metrics = dict.fromkeys(CLASSIFICATION_METRICS)
    if classes.size:
        result["accuracy"] = float(accuracy_score(classes, probabilities.argmax(axis=1)))
    if len(present) >= 2:
        scored = [1] if num_classes == 2 else present
        areas = [_compute_areas(classes == idx, probabilities[:, idx]) for idx in scored]
        result["roc_auc"], result["pr_auc"] = np.mean(areas, axis=0).tolist()
        result["mcc"] = float(matthews_corrcoef(classes, probabilities.argmax(axis=1)))
    if len(present) < num_classes:
        logger.warning("Only %d of %d classes have a label here.", len(present), num_classes)
    return result


def compute_metrics_for_problem(
    problem_type: str, logits: np.ndarray, *, labels: np.ndarray, label_names: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a model's outputs.

    Args:
        problem_type (`str`): As in the model's config.
        logits (`np.ndarray` of shape `(num_rows, num_outputs)`):
            Outputs of the head; for a regression already in the units of the labels.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Labels, NaN where missing; the class index for a single-label classification.
        label_names (`Sequence[str]`): Name of each label column.

    Returns:
        `dict` of the function for that problem type.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if problem_type == "regression":
        return compute_regression_metrics(logits, labels, label_names=label_names)
    if problem_type == "multi_label_classification":
        return compute_classification_metrics(expit(logits), labels, label_names=label_names)
    if problem_type == "single_label_classification":
        return dict(compute_multi_class_metrics(softmax(logits, axis=-1), labels))
    raise ValueError(f"There are no metrics for the problem type {problem_type!r}.")


def _compute_per_label(
    predictions: np.ndarray,
    labels: np.ndarray,
    *,
    label_names: Sequence[str],
    compute: Callable[[np.ndarray, np.ndarray], Metrics],
) -> dict[str, Any]:
    predictions = _validate_finite(predictions)
    labels = np.asarray(labels, dtype=np.float64)
    if predictions.shape != labels.shape or labels.shape[1:] != (len(label_names),):
        raise ValueError(
            f"Predictions {predictions.shape} and labels {labels.shape} must both have the shape "
            f"(num_rows, {len(label_names)}), one column for each of {list(label_names)}."
        )
    per_label: dict[str, Metrics] = {}
    for idx, name in enumerate(label_names):
        known = ~np.isnan(labels[:, idx])
        per_label[name] = compute(predictions[known, idx], labels[known, idx])
        undefined = [metric for metric, value in per_label[name].items() if value is None]
        if undefined:
            logger.warning("Undefined for %r on these rows: %s.", name, ", ".join(undefined))
    if len(label_names) == 1:
        return dict(per_label[label_names[0]])
    averages: dict[str, Any] = {}
    for metric in per_label[label_names[0]]:
        values = [value for found in per_label.values() if (value := found[metric]) is not None]
        averages[metric] = float(np.mean(values)) if values else None
    return {**averages, "per_label": per_label}


def _validate_finite(predictions: np.ndarray) -> np.ndarray:
    predictions = np.asarray(predictions, dtype=np.float64)
    if not np.isfinite(predictions).all():
        raise ValueError("Some predictions are NaN or infinite. A lower learning rate may help.")
    return predictions


def _compute_one_regression(predictions: np.ndarray, labels: np.ndarray) -> Metrics:
    result: Metrics = dict.fromkeys(REGRESSION_METRICS)
    if labels.size == 0:
        return result
    result["rmse"] = float(root_mean_squared_error(labels, predictions))
    result["mae"] = float(mean_absolute_error(labels, predictions))
    if np.ptp(labels) > 0:
        result["r2"] = float(r2_score(labels, predictions))
        if np.ptp(predictions) > 0:
            result["spearman"] = float(spearmanr(labels, predictions).statistic)
    return result


def _compute_one_classification(probabilities: np.ndarray, labels: np.ndarray) -> Metrics:
    result: Metrics = dict.fromkeys(CLASSIFICATION_METRICS)
    if labels.size == 0:
        return result
    decisions = probabilities >= DECISION_THRESHOLD
    result["accuracy"] = float(accuracy_score(labels == 1, decisions))
    if np.ptp(labels) > 0:
        result["roc_auc"], result["pr_auc"] = _compute_areas(labels == 1, probabilities)
        result["mcc"] = float(matthews_corrcoef(labels == 1, decisions))
    return result


def _compute_areas(is_class: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    return (
        float(roc_auc_score(is_class, probabilities)),
        float(average_precision_score(is_class, probabilities)),
    )
