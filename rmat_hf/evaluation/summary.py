"""From the predictions of all methods to the numbers of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rmat_hf.data.splits.parts import SPLIT_NAMES
from rmat_hf.evaluation.comparisons import (
    compute_bootstrap_error,
    compute_paired_difference,
    compute_spread,
    resample_roc_auc,
)
from rmat_hf.evaluation.protocol import DatasetProtocol, Fold
from rmat_hf.evaluation.row_predictions import RowPredictions, compute_part_hashes
from rmat_hf.training.metrics import compute_metrics

SCORED_PARTS = ("valid", "test")


@dataclass(frozen=True)
class FoldOutcome:
    """What the methods predict on one fold.

    Args:
        fold (`Fold`): Data set, split and seed.
        rows (`RowPredictions`): The rows that all methods share; its predictions are one method's.
        predictions (`dict[str, np.ndarray]`):
            By method, `(num_rows, num_labels)`; NaN where another tool has none.
        spreads (`dict[str, np.ndarray]`): The spread of those that are ensembles, alike.
    """

    fold: Fold
    rows: RowPredictions
    predictions: dict[str, np.ndarray]
    spreads: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Scores:
    """Metrics by part, and resampled areas, of each method on each fold."""

    metrics: dict[str, dict[Fold, dict[str, Any]]]
    resamples: dict[str, dict[Fold, np.ndarray]]


def summarize_dataset(
    dataset: DatasetProtocol,
    outcomes: Sequence[FoldOutcome],
    *,
    models: Sequence[str],
    references: Sequence[str],
    num_resamples: int,
) -> dict[str, Any]:
    """Score all methods on a data set, and compare the models with every other method.

    Args:
        dataset (`DatasetProtocol`): Labels and problem type.
        outcomes (`Sequence[FoldOutcome]`): Of its folds.
        models (`Sequence[str]`): Methods to compare with the references and with later models.
        references (`Sequence[str]`): Baselines and other tools.
        num_resamples (`int`): Bootstrap resamples behind the standard error of an area.

    Returns:
        `dict` with `problem_type`, `metric`, `lower_is_better`, `folds`, `methods` and
        `comparisons` (on test).
    """
    metric = "rmse" if dataset.is_regression else "roc_auc"
    scores = _score(dataset, outcomes, num_resamples=num_resamples)
    methods: dict[str, dict[str, Any]] = {}
    for name in [*models, *references]:
        found = scores.metrics.get(name, {})
        methods[name] = {
            "kind": "model" if name in models else "reference",
            "metrics": [
                {"split": fold.split, "seed": fold.seed, **parts} for fold, parts in found.items()
            ],
            **{
                part: compute_spread(_list_values(found, part=part, metric=metric))
                for part in SCORED_PARTS
            },
        }
        if not dataset.is_regression:
            resamples = list(scores.resamples.get(name, {}).values())
            methods[name]["bootstrap_standard_error"] = compute_bootstrap_error(resamples)
    comparisons = [
        _compare(scores, method, reference=reference, metric=metric)
        for idx, method in enumerate(models)
        for reference in [*references, *models[idx + 1 :]]
    ]
    return {
        "problem_type": dataset.options["problem_type"],
        "metric": metric,
        "lower_is_better": dataset.is_regression,
        "folds": [_describe_fold(outcome) for outcome in outcomes],
        "methods": methods,
        "comparisons": comparisons,
    }


def compute_part_metrics(
    dataset: DatasetProtocol, rows: RowPredictions, *, predictions: np.ndarray, part: str
) -> dict[str, Any] | None:
    """Return the metrics of a part, as in `rmat_hf.training.metrics`; `None` without predictions.

    Args:
        dataset (`DatasetProtocol`): Labels and problem type.
        rows (`RowPredictions`): Rows with their parts and labels.
        predictions (`np.ndarray` of shape `(num_rows, num_labels)`): To score.
        part (`str`): valid or test.
    """
    selected = rows.is_in(part)
    if not selected.any() or np.isnan(predictions[selected]).any():
        return None
    return compute_metrics(
        # of exclusive classes, there is the probability of class 1 only
        "regression" if dataset.is_regression else "multi_label_classification",
        predictions[selected],
        labels=rows.labels[selected],
        label_names=dataset.options["label_columns"],
    )


def _score(
    dataset: DatasetProtocol, outcomes: Sequence[FoldOutcome], *, num_resamples: int
) -> _Scores:
    scores = _Scores({}, {})
    for outcome in outcomes:
        rows, test = outcome.rows, outcome.rows.is_in("test")
        # equal test rows have one seed: repetitions of a split share their resamples
        seed = int(compute_part_hashes(rows)["test"][:8], 16)
        for name, predictions in outcome.predictions.items():
            scores.metrics.setdefault(name, {})[outcome.fold] = {
                part: compute_part_metrics(dataset, rows, predictions=predictions, part=part)
                for part in SCORED_PARTS
            }
            if not dataset.is_regression:
                scores.resamples.setdefault(name, {})[outcome.fold] = resample_roc_auc(
                    predictions[test], rows.labels[test], num_resamples=num_resamples, seed=seed
                )
    return scores


def _describe_fold(outcome: FoldOutcome) -> dict[str, Any]:
    return {
        "split": outcome.fold.split,
        "seed": outcome.fold.seed,
        "num_rows": {part: int(outcome.rows.is_in(part).sum()) for part in SPLIT_NAMES},
        "num_dropped": outcome.rows.num_dropped,
        "sha256": compute_part_hashes(outcome.rows),
    }


def _list_values(found: Mapping[Fold, dict[str, Any]], *, part: str, metric: str) -> list[float]:
    values = [(parts[part] or {}).get(metric) for parts in found.values()]
    return [value for value in values if value is not None]


def _compare(scores: _Scores, method: str, *, reference: str, metric: str) -> dict[str, Any]:
    own, other = (scores.metrics.get(name, {}) for name in (method, reference))
    pairs: dict[Fold, list[Any]] = {}
    for fold in [fold for fold in own if fold in other]:
        pair = [(found[fold]["test"] or {}).get(metric) for found in (own, other)]
        if None not in pair:
            pairs[fold] = pair
    result: dict[str, Any] = {"method": method, "reference": reference}
    result |= compute_paired_difference(
        [pair[0] for pair in pairs.values()],
        [pair[1] for pair in pairs.values()],
        lower_is_better=metric == "rmse",
    )
    if scores.resamples:
        result["bootstrap_standard_error"] = compute_bootstrap_error(
            [scores.resamples[method][fold] - scores.resamples[reference][fold] for fold in pairs]
        )
    return result
