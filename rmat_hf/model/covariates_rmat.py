"""What a model knows of a measurement beside its molecule: pH, temperature, the assay."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def count_covariates(kinds: Sequence[Mapping[str, Any]] | None) -> int:
    """Return how many numbers stand for the covariates of a row."""
    return sum(len(it.get("categories") or [0]) for it in kinds or [])


def encode_covariates(
    kinds: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[Any]], *, num_rows: int
) -> np.ndarray:
    """Return covariates as numbers, `(num_rows, num_covariates)`, float32.

    A number stands for itself, a category for a 1 among zeros. What is missing, no number, or a
    category that nobody learned is NaN, for which the model takes the mean of its training rows.

    Args:
        kinds: `covariates` of [`RMatConfig`].
        columns: Cells by the name of the covariate; a column that is not there is missing.
        num_rows: Of the table.
    """
    blocks = [np.empty((num_rows, 0))]
    for kind in kinds:
        cells = list(columns.get(kind["name"], [None] * num_rows))
        categories = kind.get("categories")
        if categories is None:
            blocks.append(np.array([[_read_number(it)] for it in cells]).reshape(num_rows, 1))
            continue
        texts = [None if it is None or it != it else str(it).strip() for it in cells]
        is_category = np.array([[it == name for name in categories] for it in texts], dtype=float)
        is_category[[it not in categories for it in texts]] = np.nan
        blocks.append(is_category.reshape(num_rows, len(categories)))
    return np.concatenate(blocks, axis=1).astype(np.float32)


def _read_number(cell: Any) -> float:
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return np.nan
    return number if np.isfinite(number) else np.nan


__all__ = ["count_covariates", "encode_covariates"]
