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
from rmat_hf.training.metrics import (
    CLASSIFICATION,
    METRICS,
    compute_metrics,
    draw_weights,
    list_metrics,
    select_known,
)

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
    """Score all methods on a data set, and compare the models with every other method."""
    metric = list_metrics(dataset.options["problem_type"])[0].name
    scores: dict[str, Scores] = {}
    resamples: dict[str, dict[Fold, np.ndarray]] = {}
    for name in [*models, *references]:
        frames = {it.fold: it.methods[name] for it in outcomes if name in it.methods}
        scores[name] = {
            fold: {part: compute_part_metrics(dataset, frame, part=part) for part in SCORED_PARTS}
            for fold, frame in frames.items()
        }
        if not dataset.is_regression:
            resamples[name] = {
                fold: _resample(dataset, frame, number=num_resamples)
                for fold, frame in frames.items()
            }
    methods: dict[str, dict[str, Any]] = {}
    for name, found in scores.items():
        methods[name] = {
            "kind": "model" if name in models else "reference",
            "metrics": [{"split": it.split, "seed": it.seed, **found[it]} for it in found],
        }
        for part in SCORED_PARTS:
            values = _list_values(found, part=part, metric=metric)
            methods[name][part] = compute_spread(list(values.values()))
        if name in resamples:
            error = compute_bootstrap_error(list(resamples[name].values()))
            methods[name]["bootstrap_standard_error"] = error
    return {
        "problem_type": dataset.options["problem_type"],
        "metric": metric,
        "lower_is_better": dataset.is_regression,
        "folds": list(map(_describe_fold, outcomes)),
        "methods": methods,
        "comparisons": [
            _compare(method, reference, scores=scores, resamples=resamples, metric=metric)
            for idx, method in enumerate(models)
            for reference in [*references, *models[idx + 1 :]]
        ],
    }


def _compare(
    method: str,
    reference: str,
    *,
    scores: Mapping[str, Scores],
    resamples: Mapping[str, Mapping[Fold, np.ndarray]],
    metric: str,
) -> dict[str, Any]:
    own, other = (
        _list_values(scores[name], part="test", metric=metric) for name in (method, reference)
    )
    is_error = not METRICS[metric].greater_is_better
    compared = compute_paired_difference(own, other, lower_is_better=is_error)
    if method in resamples:
        drawn, others = resamples[method], resamples[reference]
        differences = [drawn[fold] - others[fold] for fold in drawn if fold in others]
        compared["bootstrap_standard_error"] = compute_bootstrap_error(differences)
    return {"method": method, "reference": reference, **compared}


def compute_average_ranks(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rank the methods on each data set by their mean on test, and average the ranks."""
    complete = [
        {name for name, it in found["methods"].items() if it["test"]["num_values"] == num_folds}
        for found in summaries.values()
        if (num_folds := len(found["folds"]))
    ]
    if len(complete) < len(summaries):
        return {}
    methods = next(iter(summaries.values()))["methods"]
    names = [name for name in methods if all(name in known for known in complete)]
    ranks: dict[str, dict[str, float]] = {name: {} for name in names}
    for dataset, found in summaries.items():
        sign = 1 if found["lower_is_better"] else -1
        means = [sign * found["methods"][name]["test"]["mean"] for name in names]
        for name, rank in zip(names, rankdata(means), strict=True):
            ranks[name][dataset] = float(rank)
    return {
        name: {"mean": float(np.mean(list(own.values()))), "ranks": own}
        for name, own in ranks.items()
    }


def select_part(
    dataset: DatasetProtocol, frame: pd.DataFrame, *, part: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and labels of a part, both `(num_rows, num_labels)`."""
    rows, names = frame[frame["split"] == part], dataset.options["label_columns"]
    predictions = rows[[f"{PREDICTION_PREFIX}{name}" for name in names]]
    return predictions.to_numpy(dtype=float), rows[names].to_numpy(dtype=float)


def compute_part_metrics(
    dataset: DatasetProtocol, frame: pd.DataFrame, *, part: str
) -> dict[str, Any] | None:
    """Return the metrics of a part; `None` without predictions."""
    predictions, labels = select_part(dataset, frame, part=part)
    if not len(labels) or np.isnan(predictions).any():
        return None
    names, problem_type = dataset.options["label_columns"], dataset.options["problem_type"]
    return compute_metrics(problem_type, predictions, labels=labels, label_names=names)


def compute_spread(values: Sequence[float]) -> dict[str, Any]:
    """Return `mean`, population standard deviation `std` and `num_values`; `None` for no values."""
    return {
        "mean": float(np.mean(values)) if values else None,
        "std": float(np.std(values)) if values else None,
        "num_values": len(values),
    }


def compute_paired_difference(
    values: Mapping[Any, float], reference_values: Mapping[Any, float], *, lower_is_better: bool
) -> dict[str, Any]:
    """Compare the metrics of a method with a reference's, by split, on those that both have.

    Returns:
        `dict` with `mean_difference` (method minus reference), its `standard_error` (sample
        standard deviation over the root of the number; `None` for fewer than two splits),
        `num_wins` and `num_ties` of the method, and `num_values`.
    """
    shared = [split for split in values if split in reference_values]
    differences = np.array([values[split] - reference_values[split] for split in shared])
    number = len(differences)
    gains = -differences if lower_is_better else differences
    return {
        "mean_difference": float(differences.mean()) if number else None,
        "standard_error": float(differences.std(ddof=1) / number**0.5) if number > 1 else None,
        "num_wins": int(np.sum(gains > 0)),
        "num_ties": int(np.sum(gains == 0)),
        "num_values": number,
    }


def resample_mean_roc_auc(
    probabilities: np.ndarray, labels: np.ndarray, *, num_resamples: int, seed: int
) -> np.ndarray:
    """Return the ROC AUC of bootstrap resamples of the rows.

    The rows that are drawn depend on seed and number of rows only: methods that are resampled with
    one seed are resampled alike, so that their differences are paired.

    Args:
        probabilities, labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Of a yes; 0 or 1, NaN where missing.

    Returns:
        `np.ndarray` of shape `(num_resamples,)`: mean over the labels; NaN where a label has one
        class only.
    """
    weights = draw_weights(len(labels), num_resamples=num_resamples, seed=seed)
    known = ~np.isnan(labels)
    areas = []
    for idx, column in enumerate(labels.T):
        rows = select_known(CLASSIFICATION[0], probabilities, labels=column, label_idx=idx)
        areas.append(METRICS["roc_auc"].resample(rows, weights[:, known[:, idx]]))
    return np.asarray(np.mean(areas, axis=0))


def compute_bootstrap_error(resamples: Sequence[np.ndarray]) -> float | None:
    """Return the standard error of a mean over splits that the choice of test rows causes.

    `None` if fewer than two resamples are defined.
    """
    if not len(resamples):
        return None
    means = np.mean(resamples, axis=0)
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if len(means) > 1 else None


def _describe_fold(outcome: FoldOutcome) -> dict[str, Any]:
    return {
        "split": outcome.fold.split,
        "seed": outcome.fold.seed,
        "num_rows": {part: int((outcome.rows["split"] == part).sum()) for part in SPLIT_NAMES},
        "num_dropped": outcome.num_dropped,
        "sha256": compute_part_hashes(outcome.rows),
    }


def _resample(dataset: DatasetProtocol, frame: pd.DataFrame, *, number: int) -> np.ndarray:
    # equal test rows have one seed: repetitions of a split share their resamples
    seed = int(compute_part_hashes(frame)["test"][:8], 16)
    predictions, labels = select_part(dataset, frame, part="test")
    return resample_mean_roc_auc(predictions, labels, num_resamples=number, seed=seed)


def _list_values(found: Scores, *, part: str, metric: str) -> dict[Fold, float]:
    values = {fold: (parts[part] or {}).get(metric) for fold, parts in found.items()}
    return {fold: value for fold, value in values.items() if value is not None}
