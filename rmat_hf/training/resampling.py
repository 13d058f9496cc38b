"""Metrics of many bootstrap resamples at a time.

A resample is a row of `weights`, `(num_resamples, num_rows)`: how often each row was drawn. Every
function returns `(num_resamples,)`, NaN where a resample leaves the metric undefined.
"""

import numpy as np


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
