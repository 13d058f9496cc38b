"""From the predictions of all methods to the numbers of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rmat_hf.data.splits.parts import SPLIT_NAMES
from rmat_hf.evaluation.predictions import PREDICTION_PREFIX, compute_part_hashes
from rmat_hf.evaluation.protocol import DatasetProtocol, Fold
from rmat_hf.training.metrics import compute_metrics, list_metrics

SCORED_PARTS = ("valid", "test")
Scores = dict[Fold, dict[str, Any]]


@dataclass(frozen=True)
class FoldOutcome:
    """What the methods predict on one fold."""

    fold: Fold
    methods: dict[str, pd.DataFrame]
    num_dropped: int = 0

    @property
    def rows(self) -> pd.DataFrame:
        """The rows, with the predictions of the first method."""
        return next(iter(self.methods.values()))


def summarize_dataset(
    dataset: DatasetProtocol,
    outcomes: Sequence[FoldOutcome],
    *,
    models: Sequence[str],
    references: Sequence[str],
    num_resamples: int,
) -> dict[str, Any]:
    """Score all methods on a data set, and compare the models with every other method.

    Returns:
        `dict` with `problem_type`, `metric`, `lower_is_better`, `folds`, `methods` and
        `comparisons` (on test).
    """
    metric = list_metrics(dataset.options["problem_type"])[0].name
    scores: dict[str, Scores] = {name: {} for name in [*models, *references]}
    resamples: dict[str, dict[Fold, np.ndarray]] = {name: {} for name in scores}
    for outcome in outcomes:
        for name, frame in outcome.methods.items():
            scores[name][outcome.fold] = {
                part: compute_part_metrics(dataset, frame, part=part) for part in SCORED_PARTS
            }
            if not dataset.is_regression:
                resamples[name][outcome.fold] = _resample(
                    dataset, frame, num_resamples=num_resamples
                )
    methods: dict[str, dict[str, Any]] = {}
    for name, found in scores.items():
        methods[name] = {
            "kind": "model" if name in models else "reference",
            "metrics": [
                {"split": fold.split, "seed": fold.seed, **parts} for fold, parts in found.items()
            ],
            **{
                part: compute_spread(list(_list_values(found, part=part, metric=metric).values()))
                for part in SCORED_PARTS
            },
        }
        if not dataset.is_regression:
            error = compute_bootstrap_error(list(resamples[name].values()))
            methods[name]["bootstrap_standard_error"] = error
    comparisons = []
    for idx, method in enumerate(models):
        for reference in [*references, *models[idx + 1 :]]:
            own, other = (
                _list_values(scores[name], part="test", metric=metric)
                for name in (method, reference)
            )
            shared = [fold for fold in own if fold in other]
            metrics = ([values[fold] for fold in shared] for values in (own, other))
            difference = compute_paired_difference(*metrics, lower_is_better=dataset.is_regression)
            if not dataset.is_regression:
                pairs = [resamples[method][fold] - resamples[reference][fold] for fold in shared]
                difference["bootstrap_standard_error"] = compute_bootstrap_error(pairs)
            comparisons.append({"method": method, "reference": reference, **difference})
    return {
        "problem_type": dataset.options["problem_type"],
        "metric": metric,
        "lower_is_better": dataset.is_regression,
        "folds": [_describe_fold(outcome) for outcome in outcomes],
        "methods": methods,
        "comparisons": comparisons,
    }


def select_part(
    frame: pd.DataFrame, part: str, *, label_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and labels of a part, both `(num_rows, num_labels)`."""
    rows = frame[frame["split"] == part]
    predictions = rows[[f"{PREDICTION_PREFIX}{name}" for name in label_names]]
    return predictions.to_numpy(dtype=float), rows[list(label_names)].to_numpy(dtype=float)


def compute_part_metrics(
    dataset: DatasetProtocol, frame: pd.DataFrame, *, part: str
) -> dict[str, Any] | None:
    """Return the metrics of a part; `None` without predictions."""
    label_names = dataset.options["label_columns"]
    predictions, labels = select_part(frame, part, label_names=label_names)
    if not len(labels) or np.isnan(predictions).any():
        return None
    problem_type = dataset.options["problem_type"]
    return compute_metrics(problem_type, predictions, labels=labels, label_names=label_names)


def compute_spread(values: Sequence[float]) -> dict[str, Any]:
    """Return `mean`, population standard deviation `std` and `num_values`; `None` for no values."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values)) if values else None,
        "num_values": len(values),
    }


def compute_paired_difference(
    values: Sequence[float], reference_values: Sequence[float], *, lower_is_better: bool
) -> dict[str, Any]:
    """Compare a method with another one on the same splits.

    Args:
        values (`Sequence[float]`): Metric of the method, one per split.
        reference_values (`Sequence[float]`): Metric of the other one on the same splits.
        lower_is_better (`bool`): Whether the metric is an error.

    Returns:
        `dict` with `mean_difference` (method minus reference), its `standard_error` (sample
        standard deviation over the root of the number; `None` for fewer than two splits),
        `num_wins` and `num_ties` of the method, and `num_values`.
    """
    differences = np.subtract(values, reference_values)
    number = len(differences)
    gains = -differences if lower_is_better else differences
    return {
        "mean_difference": float(differences.mean()) if number else None,
        "standard_error": float(differences.std(ddof=1) / number**0.5) if number > 1 else None,
        "num_wins": int(np.sum(gains > 0)),
        "num_ties": int(np.sum(gains == 0)),
        "num_values": number,
    }


def resample_roc_auc(
    probabilities: np.ndarray, labels: np.ndarray, *, num_resamples: int, seed: int
) -> np.ndarray:
    """Return the ROC AUC of bootstrap resamples of the rows.

    The rows that are drawn depend on seed and number of rows only: methods that are resampled with
    one seed are resampled alike, so that their differences are paired.

    Args:
        probabilities (`np.ndarray` of shape `(num_rows, num_labels)`): Of a yes.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): 0 or 1, NaN where missing.
        num_resamples (`int`): Number of resamples.
        seed (`int`): Seed of the draw.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`: mean over the labels; NaN where a label has one
        class only.
    """
    num_rows = len(labels)
    rows = np.random.default_rng(seed).integers(num_rows, size=(num_resamples, num_rows))
    areas = np.empty((labels.shape[1], num_resamples))
    for idx, column in enumerate(labels.T):
        drawn, scores = column[rows], probabilities[:, idx][rows]
        # unknown rows take the lowest ranks, which are then subtracted
        is_known = ~np.isnan(drawn)
        ranks = rankdata(np.where(is_known, scores, -np.inf), axis=1)
        ranks -= np.sum(~is_known, axis=1, keepdims=True)
        num_yes, num_no = np.sum(drawn == 1, axis=1), np.sum(drawn == 0, axis=1)
        # the area is the share of pairs of a yes and a no that stand in the right order
        sum_of_ranks = np.where(drawn == 1, ranks, 0.0).sum(axis=1)
        num_right = sum_of_ranks - num_yes * (num_yes + 1) / 2
        num_pairs = (num_yes * num_no).astype(np.float64)
        areas[idx] = num_right / np.where(num_pairs > 0, num_pairs, np.nan)
    return np.asarray(areas.mean(axis=0))


def compute_bootstrap_error(resamples: Sequence[np.ndarray]) -> float | None:
    """Return the standard error of a mean over splits that the choice of test rows causes.

    Returns:
        `float`; `None` if fewer than two resamples are defined.
    """
    if not len(resamples):
        return None
    means = np.mean(resamples, axis=0)
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _resample(dataset: DatasetProtocol, frame: pd.DataFrame, *, num_resamples: int) -> np.ndarray:
    # equal test rows have one seed: repetitions of a split share their resamples
    seed = int(compute_part_hashes(frame)["test"][:8], 16)
    label_names = dataset.options["label_columns"]
    predictions, labels = select_part(frame, "test", label_names=label_names)
    return resample_roc_auc(predictions, labels, num_resamples=num_resamples, seed=seed)


def _describe_fold(outcome: FoldOutcome) -> dict[str, Any]:
    return {
        "split": outcome.fold.split,
        "seed": outcome.fold.seed,
        "num_rows": {part: int((outcome.rows["split"] == part).sum()) for part in SPLIT_NAMES},
        "num_dropped": outcome.num_dropped,
        "sha256": compute_part_hashes(outcome.rows),
    }


def _list_values(
    found: Mapping[Fold, dict[str, Any]], *, part: str, metric: str
) -> dict[Fold, float]:
    values = {fold: (parts[part] or {}).get(metric) for fold, parts in found.items()}
    return {fold: value for fold, value in values.items() if value is not None}
