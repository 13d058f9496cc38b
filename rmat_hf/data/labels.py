"""Turn the label cells of a table into numbers and find contradictions between them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from rmat_hf.errors import UserError, describe_value

MISSING_NUMBERS = frozenset({"", "nan", "na", "n/a", "null", "none"})
MISSING_CLASSES = frozenset({"", "nan"})
LARGEST_LABEL = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class LabelConflict:
    """Rows of one molecule with contradictory labels, and the two that lie farthest apart."""

    rows: list[int]
    label_idx: int
    low_row: int
    high_row: int


def parse_number(value: object) -> float:
    """Return a regression label, NaN for an empty cell; raise a `ValueError` with the reason."""
    number = _parse_float(value, missing=MISSING_NUMBERS)
    if number is None or abs(number) > LARGEST_LABEL:
        raise ValueError("not a number")
    return number


def parse_binary(value: object) -> float:
    """Return a label 0 or 1, NaN for an empty cell; raise a `ValueError` with the reason."""
    number = _parse_float(value, missing=MISSING_NUMBERS)
    if number is None or (number not in (0.0, 1.0) and not math.isnan(number)):
        raise ValueError("neither 0 nor 1")
    return number


def parse_class(value: object) -> str | None:
    """Return the name of a class, `None` for an empty cell; raise a `ValueError` with the reason.

    Integers have one spelling: `1`, `"1"` and `"1.0"` are the class `"1"`.
    """
    if isinstance(value, bool):
        return str(value)
    number = _parse_float(value, missing=MISSING_CLASSES)
    if number is None and isinstance(value, str):
        return value.strip()
    if number is None or not (math.isnan(number) or number.is_integer()):
        raise ValueError("neither an integer nor a word (for other numbers choose regression)")
    return None if math.isnan(number) else str(int(number))


def _parse_float(value: object, *, missing: frozenset[str]) -> float | None:
    """Return NaN where missing and `None` where the value is no finite number."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in missing:
            return math.nan
        try:
            # Python reads "1_000" as a number, which no table means.
            number = math.inf if "_" in text else float(text)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    if isinstance(value, bool | int | float | Decimal):
        number = float(value)
        return None if math.isinf(number) else number
    return None


LABEL_PARSERS: dict[str, Callable[[object], float | str | None]] = {
    "regression": parse_number,
    "multi_label_classification": parse_binary,
    "single_label_classification": parse_class,
}


def validate_label_columns(label_columns: Sequence[str], *, problem_type: str) -> None:
    """Raise a `UserError` when the problem type does not exist or does not fit the columns."""
    if problem_type not in LABEL_PARSERS:
        raise UserError(f"problem_type is {problem_type!r}. Use one of {', '.join(LABEL_PARSERS)}.")
    if not label_columns:
        raise UserError("No label column is given. Name at least one.")
    if len(set(label_columns)) != len(label_columns):
        raise UserError(f"A label column is named twice: {', '.join(label_columns)}.")
    if problem_type == "single_label_classification" and len(label_columns) > 1:
        raise UserError(
            f"single_label_classification takes one label column, not {', '.join(label_columns)}. "
            "For several yes/no labels use multi_label_classification."
        )


def parse_label(value: object, *, problem_type: str, row: int, column: str) -> float | str | None:
    """Return the label in a cell, or raise a `UserError` that names row, column and value.

    Args:
        value (`object`):
            The cell: text or a number; empty, `None` and NaN are a missing label.
        problem_type (`str`):
            A key of `LABEL_PARSERS`.
        row (`int`):
            Position in the source, counted from 0.
        column (`str`):
            Name of the label column.

    Returns:
        A float (NaN where missing), or the name of a class (`None` where missing).
    """
    try:
        return LABEL_PARSERS[problem_type](value)
    except ValueError as error:
        raise UserError(
            f"Row {row} (counted from 0): label {column!r} is {describe_value(value)}, {error}. "
            "Fix the cell, or leave it empty when the value is not known."
        ) from error


def is_missing(label: float | str | None) -> bool:
    """Tell whether a parsed label is missing."""
    return label is None or (isinstance(label, float) and math.isnan(label))


def list_class_names(labels: Sequence[object]) -> list[str]:
    """Return the classes there are: integers by value, otherwise words in alphabetical order."""
    names = {label for label in labels if isinstance(label, str)}
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)


def find_label_conflicts(
    groups: Sequence[str], labels: np.ndarray, *, tolerance: float
) -> list[LabelConflict]:
    """Find the molecules whose labels contradict each other.

    Args:
        groups (`Sequence[str]`):
            One canonical SMILES per row.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Labels, NaN where missing.
        tolerance (`float`):
            Largest difference that is no contradiction, in standard deviations of the label column.

    Returns:
        `list[LabelConflict]`, at most one per molecule, by first appearance.
    """
    rows_by_group: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows_by_group.setdefault(group, []).append(row)
    conflicts: list[LabelConflict] = []
    known = ~np.isnan(labels)
    for rows in rows_by_group.values():
        for label_idx in range(labels.shape[1]):
            known_rows = [row for row in rows if known[row, label_idx]]
            if len(known_rows) < 2:
                continue
            values = labels[known_rows, label_idx]
            limit = tolerance * labels[known[:, label_idx], label_idx].std() if tolerance else 0.0
            if np.ptp(values) > limit:
                low, high = known_rows[int(values.argmin())], known_rows[int(values.argmax())]
                conflicts.append(LabelConflict(rows, label_idx, low, high))
                break
    return conflicts
