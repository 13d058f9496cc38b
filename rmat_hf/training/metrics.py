"""The metrics: what each is, for which problem types, and whether more of it is better.

`METRICS` is the only list. The first metric of a problem type chooses the best checkpoint; cards,
reports and comparisons show them in this order. NaN is a missing label, `None` an undefined metric.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    matthews_corrcoef,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)
from transformers.trainer_utils import EvalPrediction

from rmat_hf.data.measurements import unpack_exact_labels
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.losses_rmat import compute_probabilities

logger = logging.getLogger(__name__)

# What a Trainer writes where the outputs of a batch have fewer nodes than those of another.
PADDING = -100

REGRESSION = ("regression",)
CLASSIFICATION = ("multi_label_classification", "single_label_classification")
DECISION_THRESHOLD = 0.5


@dataclass(frozen=True)
class ScoredRows:
    """The rows of one label that have a value, at least one.

    Args:
        labels, predictions (`np.ndarray` of shape `(num_rows,)`): Values, or indices of classes.
        probabilities (`np.ndarray` of shape `(num_rows, num_classes)`, *optional*):
            Of every class; a yes/no label has the classes 0 and 1. `None` for a regression.
    """

    labels: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray | None = None


Compute = Callable[["ScoredRows"], float | None]
# rows, weights of the resamples
Resample = Callable[["ScoredRows", np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """An entry of `METRICS`; the fields are the arguments of [`register_metric`]."""

    name: str
    title: str
    problem_types: tuple[str, ...]
    greater_is_better: bool
    compute: Compute
    resample: Resample


METRICS: dict[str, Metric] = {}


def register_metric(
    name: str,
    *,
    title: str,
    problem_types: tuple[str, ...],
    greater_is_better: bool,
    resample: Resample | None = None,
) -> Callable[[Compute], Compute]:
    """Return a decorator that makes a function of [`ScoredRows`] a metric.

    Args:
        resample (`Callable`, *optional*):
            Takes the rows and the weights of bootstrap resamples, `(num_resamples, num_rows)`, how
            often each row was drawn, and returns the metric of each of them, NaN where undefined.
            By default the function itself is called with the rows of each: right, but slow.
    """

    def register(compute: Compute) -> Compute:
        found = resample or partial(_resample_one_by_one, compute=compute)
        METRICS[name] = Metric(name, title, problem_types, greater_is_better, compute, found)
        return compute

    return register


# Metrics of many bootstrap resamples at a time. A resample is a row of `weights`, `(num_resamples,
# num_rows)`: how often each row was drawn. Every function returns `(num_resamples,)`, NaN where a
# resample leaves the metric undefined.


def draw_weights(num_rows: int, *, num_resamples: int, seed: int) -> np.ndarray:
    """Return the weights of resamples, the same for equal arguments.

    What is resampled with one seed is therefore resampled alike, and differences are paired.
    """
    rows = np.random.default_rng(seed).integers(num_rows, size=(num_resamples, num_rows))
    rows += num_rows * np.arange(num_resamples)[:, None]
    counts = np.bincount(rows.ravel(), minlength=num_resamples * num_rows)
    return counts.reshape(num_resamples, num_rows).astype(np.float64)


def resample_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of values `(num_rows,)`."""
    return _divide(weights @ values, weights.sum(axis=1))


def resample_r2(labels: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Return the share of the variance that is explained."""
    # around the mean of all rows nothing cancels
    centered = labels - labels.mean()
    variance = resample_mean(centered**2, weights) - resample_mean(centered, weights) ** 2
    is_constant = variance <= 1e-12 * np.var(labels)
    error = resample_mean((labels - predictions) ** 2, weights)
    return 1.0 - _divide(error, np.where(is_constant, 0.0, variance))


def resample_spearman(
    labels: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray
) -> np.ndarray:
    """Return the rank correlation; equal values share the mean of their ranks."""
    sides = []
    for values in (labels, predictions):
        counts, group = _count_by_value(values, weights)
        ranks = (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, group]
        sides.append(ranks - _average(ranks, weights)[:, None])
    products = [np.sum(weights * a * b, axis=1) for a, b in (sides, sides[:1] * 2, sides[1:] * 2)]
    return _divide(products[0], np.sqrt(products[1] * products[2]))


def resample_roc_auc(is_yes: np.ndarray, scores: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Return the share of pairs of a yes and a no that stand in the right order, ties as half."""
    yes, _ = _count_by_value(scores, weights * is_yes)
    no, _ = _count_by_value(scores, weights * ~is_yes)
    num_right = np.sum(yes * (np.cumsum(no, axis=1) - no / 2), axis=1)
    return _divide(num_right, yes.sum(axis=1) * no.sum(axis=1))


def resample_pr_auc(is_yes: np.ndarray, scores: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Return the average precision, as scikit-learn has it."""
    # from the highest score down
    yes, drawn = (_count_by_value(scores, it)[0][:, ::-1] for it in (weights * is_yes, weights))
    num_drawn = np.cumsum(drawn, axis=1)
    precision = np.cumsum(yes, axis=1) / np.maximum(num_drawn, 1.0)
    return _divide(np.sum(yes * precision, axis=1), yes.sum(axis=1))


def resample_mcc(labels: np.ndarray, predictions: np.ndarray, *, weights: np.ndarray) -> np.ndarray:
    """Return Matthews correlation of classes, 0 for a constant prediction."""
    classes = np.unique(np.concatenate([labels, predictions]))
    actual, called = (
        np.stack([weights @ (values == it) for it in classes]) for values in (labels, predictions)
    )
    total = weights.sum(axis=1)
    covariance = (weights @ (labels == predictions)) * total - np.sum(actual * called, axis=0)
    spreads = [total**2 - np.sum(it**2, axis=0) for it in (actual, called)]
    found = np.where(spreads[1] == 0, 0.0, _divide(covariance, np.sqrt(spreads[0] * spreads[1])))
    return np.where(spreads[0] == 0, np.nan, found)


def _count_by_value(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each value there is, rising, and which value every row has."""
    order = np.argsort(values, kind="stable")
    _, starts = np.unique(values[order], return_index=True)
    _, group = np.unique(values, return_inverse=True)
    return np.add.reduceat(weights[:, order], starts, axis=1), group


def _average(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean of values that differ by resample, `(num_resamples, num_rows)`."""
    return _divide(np.sum(values * weights, axis=1), weights.sum(axis=1))


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)


def _resample_one_by_one(rows: ScoredRows, weights: np.ndarray, *, compute: Compute) -> np.ndarray:
    found = []
    for counts in weights.astype(np.int64):
        drawn = np.repeat(np.arange(len(counts)), counts)
        probabilities = None if rows.probabilities is None else rows.probabilities[drawn]
        values = ScoredRows(rows.labels[drawn], rows.predictions[drawn], probabilities)
        found.append(compute(values) if len(drawn) else None)
    return np.array(found, dtype=np.float64)


def _resample_errors(rows: ScoredRows, weights: np.ndarray, *, power: int) -> np.ndarray:
    errors = np.abs(rows.predictions - rows.labels) ** power
    return np.asarray(resample_mean(errors, weights) ** (1 / power))


@register_metric(
    "rmse",
    title="RMSE",
    problem_types=REGRESSION,
    greater_is_better=False,
    resample=partial(_resample_errors, power=2),
)
def compute_rmse(rows: ScoredRows) -> float:
    """Return the root of the mean squared error, in the units of the label."""
    errors = rows.predictions - rows.labels
    # the same digits in every order of the rows; a Trainer scores them from large to small
    return math.sqrt(math.fsum(errors * errors) / len(errors))


@register_metric(
    "mae",
    title="MAE",
    problem_types=REGRESSION,
    greater_is_better=False,
    resample=partial(_resample_errors, power=1),
)
def compute_mae(rows: ScoredRows) -> float:
    """Return the mean absolute error, in the units of the label."""
    return float(mean_absolute_error(rows.labels, rows.predictions))


@register_metric(
    "r2",
    title="R²",
    problem_types=REGRESSION,
    greater_is_better=True,
    resample=lambda rows, weights: resample_r2(rows.labels, rows.predictions, weights=weights),
)
def compute_r2(rows: ScoredRows) -> float | None:
    """Return the share of the variance that is explained; undefined for constant labels."""
    return float(r2_score(rows.labels, rows.predictions)) if np.ptp(rows.labels) > 0 else None


@register_metric(
    "spearman",
    title="Spearman ρ",
    problem_types=REGRESSION,
    greater_is_better=True,
    resample=lambda rows, weights: resample_spearman(
        rows.labels, rows.predictions, weights=weights
    ),
)
def compute_spearman(rows: ScoredRows) -> float | None:
    """Return the rank correlation; undefined for constant labels or predictions."""
    if np.ptp(rows.labels) == 0 or np.ptp(rows.predictions) == 0:
        return None
    return float(spearmanr(rows.labels, rows.predictions).statistic)


def _resample_areas(
    rows: ScoredRows, weights: np.ndarray, *, resample_area: Callable[..., np.ndarray]
) -> np.ndarray:
    """Return of each resample what [`_average_over_classes`] returns of all rows."""
    probabilities, present = np.asarray(rows.probabilities), np.unique(rows.labels)
    scored = [1] if probabilities.shape[1] == 2 else present
    areas = np.array(
        [
            resample_area(rows.labels == idx, probabilities[:, idx], weights=weights)
            for idx in scored
        ]
    )
    num_defined = np.sum(~np.isnan(areas), axis=0)
    means = np.nansum(areas, axis=0) / np.maximum(num_defined, 1)
    # undefined where all rows are of one class
    num_present = sum((weights @ (rows.labels == idx)) > 0 for idx in present)
    return np.where((num_defined > 0) & (num_present > 1), means, np.nan)


@register_metric(
    "roc_auc",
    title="ROC AUC",
    problem_types=CLASSIFICATION,
    greater_is_better=True,
    resample=partial(_resample_areas, resample_area=resample_roc_auc),
)
def compute_roc_auc(rows: ScoredRows) -> float | None:
    """Return the area under the ROC curve, as [`_average_over_classes`] takes it."""
    return _average_over_classes(rows, roc_auc_score)


@register_metric(
    "pr_auc",
    title="PR AUC",
    problem_types=CLASSIFICATION,
    greater_is_better=True,
    resample=partial(_resample_areas, resample_area=resample_pr_auc),
)
def compute_pr_auc(rows: ScoredRows) -> float | None:
    """Return the average precision, as [`_average_over_classes`] takes it."""
    return _average_over_classes(rows, average_precision_score)


@register_metric(
    "accuracy",
    title="accuracy",
    problem_types=CLASSIFICATION,
    greater_is_better=True,
    resample=lambda rows, weights: resample_mean(rows.labels == rows.predictions, weights),
)
def compute_accuracy(rows: ScoredRows) -> float:
    """Return the share of right classes; a yes is a probability of at least 0.5."""
    return float(accuracy_score(rows.labels, rows.predictions))


@register_metric(
    "mcc",
    title="MCC",
    problem_types=CLASSIFICATION,
    greater_is_better=True,
    resample=lambda rows, weights: resample_mcc(rows.labels, rows.predictions, weights=weights),
)
def compute_mcc(rows: ScoredRows) -> float | None:
    """Return Matthews correlation, 0 for a constant prediction; undefined for one class."""
    if np.ptp(rows.labels) == 0:
        return None
    return float(matthews_corrcoef(rows.labels, rows.predictions))


def list_metrics(problem_type: str) -> list[Metric]:
    """Return the metrics of a problem type; the first one chooses the best checkpoint."""
    return [metric for metric in METRICS.values() if problem_type in metric.problem_types]


def compute_metrics(
    problem_type: str,
    predictions: np.ndarray,
    *,
    labels: np.ndarray,
    label_names: Sequence[str],
    types: Sequence[str] | None = None,
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Return every metric of the problem type over the known labels.

    Args:
        predictions (`np.ndarray` of shape `(num_rows, num_outputs)`):
            Values in the units of the labels, or probabilities: of a yes for each label, or of
            each class of a single-label classification.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Labels, NaN where missing; the class index for a single-label classification.

    Returns:
        `dict`: metrics by name; of several labels the mean over those which it is for and where it
        is defined, and `per_label`, the same by label. An undefined metric (too few rows, one
        class, constant labels or predictions) is `None`, with a warning.
    """
    predictions = np.asarray(predictions, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.float64).reshape(-1, len(label_names))
    if not np.isfinite(predictions).all():
        raise ValueError("Some predictions are NaN or infinite. A lower learning rate may help.")
    per_label: dict[str, dict[str, float | None]] = {}
    kinds = types or [problem_type] * len(label_names)
    for idx, (name, kind) in enumerate(zip(label_names, kinds, strict=True)):
        rows = select_known(kind, predictions, labels=labels[:, idx], label_idx=idx)
        has_rows = len(rows.labels) > 0
        found = {it.name: it.compute(rows) if has_rows else None for it in list_metrics(kind)}
        if not is_quiet:
            _warn_of_gaps(name, rows, found=found)
        per_label[name] = found
    if len(label_names) == 1:
        return dict(per_label[label_names[0]])
    averages: dict[str, Any] = {}
    for name in dict.fromkeys(name for found in per_label.values() for name in found):
        values = [it for found in per_label.values() if (it := found.get(name)) is not None]
        averages[name] = float(np.mean(values)) if values else None
    return {**averages, "per_label": per_label}


def _warn_of_gaps(label_name: str, rows: ScoredRows, *, found: dict[str, float | None]) -> None:
    if undefined := [name for name, value in found.items() if value is None]:
        logger.warning("Undefined for %r on these rows: %s.", label_name, ", ".join(undefined))
    num_classes = 0 if rows.probabilities is None else rows.probabilities.shape[1]
    num_found = len(np.unique(rows.labels))
    if num_found < num_classes:
        logger.warning("Only %d of %d classes have a label here.", num_found, num_classes)


def compute_metrics_for_problem(
    problem_type: str, logits: np.ndarray, **options: Any
) -> dict[str, Any]:
    """Return the metrics of a head's outputs; `options` are those of [`compute_metrics`]."""
    outputs = compute_probabilities(torch.as_tensor(logits, dtype=torch.float64), problem_type)
    return compute_metrics(problem_type, outputs.numpy(), **options)


def build_compute_metrics(
    config: RMatConfig, *, best_metric: str | None = None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a `Trainer`: the metrics of a model's labels.

    RMSE, MAE, R² and Spearman's ρ of a regression, in the units of the labels; ROC AUC, PR AUC,
    accuracy and Matthews correlation of classes. Of several labels the means, over the known ones.

    Args:
        config ([`RMatConfig`]): Of the model; its `problem_type` decides.
        best_metric (`str`, *optional*): Chooses the checkpoint, so it has to be defined.

    Returns:
        `Callable`: takes the predictions `(num_rows, num_outputs)` and labels
        `(num_rows, num_labels)` of a `Trainer`, of atoms with an axis of nodes between them,
        returns the metrics that are defined.

    Raises:
        UserError: When it is called and `best_metric` is undefined: too few rows, or one class.

    Example:
    ```python
    >>> import numpy as np
    >>> from transformers import EvalPrediction
    >>> from rmat_hf import RMatConfig, build_compute_metrics
    >>> compute = build_compute_metrics(RMatConfig(num_labels=1, problem_type="regression"))
    >>> logits, labels = np.array([[1.0], [2.0], [5.0]]), np.array([[1.0], [np.nan], [2.0]])
    >>> compute(EvalPrediction(logits, labels))["mae"]
    1.5

    ```
    """
    problem_type, label_names = config.problem_type or "regression", config.label_columns
    # of a model that was configured by hand: its outputs are the classes of one label
    if problem_type == "single_label_classification" and config.label_name is None:
        label_names = ["label"]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = prediction.predictions, np.asarray(prediction.label_ids)
        # those of an ensemble come with its members'
        logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
        if logits.ndim == 3:
            # of atoms; a Trainer fills up with this number where batches have fewer nodes
            is_node = (logits != PADDING).any(axis=-1)
            logits, labels = logits[is_node], labels[is_node]
        labels = unpack_exact_labels(labels, num_labels=len(label_names))
        metrics = compute_metrics_for_problem(
            problem_type, logits, labels=labels, label_names=label_names, types=config.label_types
        )
        if best_metric is not None and metrics.get(best_metric, 0.0) is None:
            raise UserError(
                f"{best_metric} is undefined on the valid part, which has too few rows or only one "
                "class, so no checkpoint can be chosen. Use another split."
            )
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    return compute


def format_metric(value: float | None, *, decimals: int = 3) -> str:
    """Return a metric as text: with so many decimals, or digits where decimals would hide it."""
    if value is None:
        return "–"
    is_hidden = value != 0 and not 10.0 ** (1 - decimals) <= abs(value) < 1e6
    return f"{value:.{decimals}{'g' if is_hidden else 'f'}}"


def select_known(
    problem_type: str, predictions: np.ndarray, *, labels: np.ndarray, label_idx: int
) -> ScoredRows:
    """Return the rows that have a label `(num_rows,)`, the one with an index."""
    known = ~np.isnan(labels)
    labels, predictions = labels[known], predictions[known]
    if problem_type in REGRESSION:
        return ScoredRows(labels, predictions[:, label_idx])
    classes = labels.astype(np.int64)
    if problem_type == "single_label_classification":
        return ScoredRows(classes, predictions.argmax(axis=1), predictions)
    positive = predictions[:, label_idx]
    decisions = (positive >= DECISION_THRESHOLD).astype(np.int64)
    return ScoredRows(classes, decisions, np.stack([1 - positive, positive], axis=1))


def _average_over_classes(
    rows: ScoredRows, compute_area: Callable[[np.ndarray, np.ndarray], float]
) -> float | None:
    """Return an area of class 1, or, of more than two classes, the mean of each against the rest.

    Classes without a row are left out; with fewer than two it is undefined.
    """
    probabilities, present = rows.probabilities, np.unique(rows.labels)
    if probabilities is None or len(present) < 2:
        return None
    scored = [1] if probabilities.shape[1] == 2 else present
    areas = [compute_area(rows.labels == idx, probabilities[:, idx]) for idx in scored]
    return float(np.mean(areas))
