"""Divide rows by a column of their table: words that name the part, or the time of each row."""

import logging
import math
from collections.abc import Sequence
from datetime import date, datetime, time

import numpy as np

from rmat_hf.data.labels import parse_number
from rmat_hf.data.splits.molecule_splits import (
    DEFAULT_FRACTIONS,
    SPLIT_NAMES,
    SplitIndices,
    build_split_indices,
    compute_part_sizes,
)
from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

EPOCH = datetime(1970, 1, 1)
LARGEST_SHIFT = 0.1


class TimeColumn(str):
    """Name of a column of dates or numbers, by which rows are divided from oldest to newest."""


def parse_split_cells(
    column: str | None, cells: Sequence[object], *, rows: Sequence[int], groups: Sequence[str]
) -> dict[str, list[object]]:
    """Return the checked column that carries a split: `split` with words or `time` with numbers.

    Args:
        column (`str`, *optional*):
            Name of the column; a `TimeColumn` holds times, any other the words of a split. Without
            a column nothing is returned.
        cells (`Sequence[object]`):
            Its cells.
        rows (`Sequence[int]`):
            Their positions in the source, counted from 0, for messages.
        groups (`Sequence[str]`):
            The canonical SMILES of each row.
    """
    if not column:
        return {}
    if isinstance(column, TimeColumn):
        return {"time": list(parse_times(cells, rows=rows, column=column))}
    validate_split_values(cells, rows=rows, column=column)
    log_leaking_groups(groups, splits=cells)
    return {"split": list(cells)}


def validate_split_values(values: Sequence[object], *, rows: Sequence[int], column: str) -> None:
    """Raise a `UserError` that names the first value other than train, valid and test.

    Args:
        values (`Sequence[object]`):
            The cells.
        rows (`Sequence[int]`):
            Their positions in the source, counted from 0, for the message.
        column (`str`):
            Name of the column, for the message.
    """
    for row, value in zip(rows, values, strict=True):
        if value not in SPLIT_NAMES:
            raise UserError(
                f"Row {row} (counted from 0): column {column!r} holds {value!r}. "
                f"A split column holds the words {', '.join(SPLIT_NAMES)} only."
            )
    for name in ("train", "test"):
        if name not in values:
            raise UserError(
                f"Column {column!r} puts no usable row into {name}. "
                "Fill the column, or choose a random or scaffold split."
            )


def log_leaking_groups(groups: Sequence[str], *, splits: Sequence[object]) -> None:
    """Warn when rows of one molecule stand in different parts of a given split."""
    parts: dict[str, set[object]] = {}
    for group, part in zip(groups, splits, strict=True):
        parts.setdefault(group, set()).add(part)
    num_leaking = sum(len(found) > 1 for found in parts.values())
    if num_leaking:
        logger.warning(
            "%d molecules stand in more than one part of the split: their labels leak.", num_leaking
        )


def split_by_column(values: Sequence[str], *, column: str = "split") -> SplitIndices:
    """Return the split that a column of the words train, valid and test gives.

    The valid part may be empty; the others may not.

    Args:
        values (`Sequence[str]`):
            One word per row.
        column (`str`, *optional*, defaults to `"split"`):
            Name of the column, for messages.

    Returns:
        `SplitIndices`.
    """
    validate_split_values(values, rows=range(len(values)), column=column)
    return build_split_indices(np.array([SPLIT_NAMES.index(value) for value in values]))


def parse_times(values: Sequence[object], *, rows: Sequence[int], column: str) -> list[float]:
    """Return dates or numbers as numbers, or raise a `UserError` that names the first bad row.

    Args:
        values (`Sequence[object]`):
            The cells: all numbers (years, say), all ISO 8601 dates, with or without a time of day,
            or all ISO 8601 dates with a time zone. What looks like a number is one: `20190501`.
        rows (`Sequence[int]`):
            Their positions in the source, counted from 0, for the message.
        column (`str`):
            Name of the column, for the message.

    Returns:
        `list[float]`: dates are seconds since 1970.
    """
    times: list[float] = []
    first_kind = None
    for row, value in zip(rows, values, strict=True):
        try:
            kind, number = _parse_time(value)
        except ValueError as error:
            raise UserError(
                f"Row {row} (counted from 0): column {column!r} holds {value!r}, {error}. Write "
                "numbers or ISO dates such as 2019-05-31, or drop the row."
            ) from error
        first_kind = first_kind or kind
        if kind != first_kind:
            raise UserError(
                f"Row {row} (counted from 0): column {column!r} holds {value!r}, a {kind}, but "
                f"row {rows[0]} holds {values[0]!r}, a {first_kind}. Write all of them alike."
            )
        times.append(number)
    return times


def _parse_time(value: object) -> tuple[str, float]:
    """Return what a cell holds, in words, and its number."""
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        try:
            number = parse_number(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(str(value))
            except ValueError:
                raise ValueError("neither a number nor an ISO date") from None
        else:
            if math.isnan(number):
                raise ValueError("which is no time")
            return "number", number
    if value.tzinfo is not None:
        return "date with a time zone", value.timestamp()
    return "date", (value - EPOCH).total_seconds()


def split_by_time(
    times: Sequence[float],
    *,
    groups: Sequence[str],
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    column: str = "time",
) -> SplitIndices:
    """Return the split in which train is oldest, then comes valid, and test is newest.

    A molecule belongs to its earliest time with all of its rows, so that valid and test hold only
    molecules that were new. Molecules of one time stay together: each part ends at the time that
    brings it closest to its share. The order of the rows does not matter.

    Args:
        times (`Sequence[float]`):
            One number per row.
        groups (`Sequence[str]`):
            One name per row, the canonical SMILES; rows of one name stay together.
        fractions (`tuple[float, float, float]`, *optional*, defaults to `(0.8, 0.1, 0.1)`):
            Shares of train, valid and test. A share of 0 leaves valid empty.
        column (`str`, *optional*, defaults to `"time"`):
            Name of the column, for messages.

    Returns:
        `SplitIndices`.
    """
    targets = compute_part_sizes(len(times), fractions)
    first_times: dict[str, float] = {}
    for group, moment in zip(groups, times, strict=True):
        first_times[group] = min(moment, first_times.get(group, moment))
    moments, idx_of_row, num_rows = np.unique(
        [first_times[group] for group in groups], return_inverse=True, return_counts=True
    )
    num_parts = np.count_nonzero(targets)
    if len(moments) < num_parts:
        raise UserError(
            f"Column {column!r} has {len(moments)} different times of new molecules, too few for "
            f"{num_parts} parts. Give finer times or choose another split."
        )
    num_older = np.concatenate([[0], np.cumsum(num_rows)])
    end = len(moments) - num_parts + 2
    valid_idx = 1 + np.abs(num_older[1:end] - targets[0]).argmin()
    test_idx = valid_idx
    if targets[1] > 0:
        test_idx += 1 + np.abs(num_older[valid_idx + 1 : -1] - targets[:2].sum()).argmin()
    part_of_row = (idx_of_row >= valid_idx).astype(np.int64) + (idx_of_row >= test_idx)
    sizes = np.bincount(part_of_row, minlength=len(SPLIT_NAMES))
    if (np.abs(sizes - targets) > LARGEST_SHIFT * len(times)).any():
        logger.warning(
            "Many rows share their time: %d are in train, %d in valid, %d in test.", *sizes
        )
    return build_split_indices(part_of_row)
