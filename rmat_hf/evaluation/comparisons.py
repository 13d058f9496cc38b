"""Means over splits, paired differences, and what the choice of test rows adds to them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata


def compute_spread(values: Sequence[float]) -> dict[str, Any]:
    """Return `mean`, population standard deviation `std` and `num_values`; `None` for no values."""
    if not values:
        return {"mean": None, "std": None, "num_values": 0}
    return {
        "mean": float(np.mean(values)),
        "std": float(np.std(values)),
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

    Args:
        resamples (`Sequence[np.ndarray]`):
            For each split `(num_resamples,)`: an area or a difference of two areas. Splits with the
            same test rows were resampled with the same seed, so that they do not count as many.

    Returns:
        `float`; `None` if fewer than two resamples are defined.
    """
    if not len(resamples):
        return None
    means = np.mean(resamples, axis=0)
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if len(means) > 1 else None
