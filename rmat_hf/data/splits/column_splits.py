"""Divide rows by a column of their table: words that name the part, or the time of each row."""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from rmat_hf.data.labels import parse_number
from rmat_hf.data.splits.parts import (
    DEFAULT_FRACTIONS,
    PART_WORDS,
    SPLIT_NAMES,
    SplitIndices,
    build_split_indices,
    compute_part_sizes,
    group_rows,
)
from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

_DAY_FIRST = re.compile(r"^(\d{1,2})\.(\d{1,2})\.(\d{4})")
_YEAR_FIRST = re.compile(r"^(\d{4})/(\d{1,2})/(\d{1,2})\b")
_SLASHES = re.compile(r"^(\d{1,2})/(\d{1,2})/(\d{4}|\d{2})\b")
_NAMED_MONTH = re.compile(r"^(\d{1,2})[- ]([A-Za-z]{3})[a-z]*[- ](\d{4}|\d{2})\b")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
AMBIGUOUS = "which may have the day or the month first"
EPOCH = datetime(1970, 1, 1)


class TimeColumn(str):
    """Name of a column of dates or numbers, by which rows are divided from oldest to newest."""


def parse_split_cells(
    column: str | None, cells: Sequence[object], *, rows: Sequence[int], groups: Sequence[str]
) -> dict[str, list[object]]:
    """Return the checked column that carries a split: `split` with words or `time` with numbers.

    Times are numbers (years, say), dates, with or without a time of day, or dates with a time zone,
    all of them alike. Dates are written as in ISO 8601, with dots and the day first, `31.05.2019`,
    with the month's English name, `31-May-2019`, or with slashes: the year first, `2019/05/31`, or
    day and month in the order that other cells of the column leave no doubt of, `05/31/2019`. What
    looks like a number is one: `20190501`. Dates become seconds since 1970.

    Args:
        column: A `TimeColumn` holds times, any other the words of a split; none gives nothing.
        groups: Name of the parent of each row; one that stands in several parts is warned of.
    """
    if not column:
        return {}
    if isinstance(column, TimeColumn):
        parse = build_time_parser(cells)
        return {"time": list(_parse_cells(cells, parse, rows=rows, column=column))}
    numbers = _parse_cells(cells, _parse_word, rows=rows, column=column)
    words: list[Any] = [SPLIT_NAMES[int(number)] for number in numbers]
    split_by_column(words, split_column=column)
    if num_leaking := len(set(zip(groups, words, strict=True))) - len(set(groups)):
        logger.warning(
            "%d molecules stand in more than one part of %r: their labels leak. --split kfold has "
            "parts of its own.",
            num_leaking,
            column,
        )
    return {"split": words}


def validate_split_cells(column: str | None, cells: Mapping[int, object]) -> None:
    """Raise a `UserError` if no row has a part, or a time, in the column of a split."""
    is_time = isinstance(column, TimeColumn)
    parse = build_time_parser(cells.values()) if is_time else _parse_word
    if column and cells and all(math.isnan(parse(cell)[1]) for cell in cells.values()):
        row = next((row for row, cell in cells.items() if str(cell or "").strip()), *[*cells][:1])
        _parse_cells([cells[row]], parse, rows=[row], column=column)


def find_unread_cells(column: str, cells: Mapping[int, object]) -> dict[int, str]:
    """Return why rows have no part or no time, by row; nothing where no row has one."""
    is_time = isinstance(column, TimeColumn)
    parse = build_time_parser(cells.values()) if is_time else _parse_word
    parsed = {row: parse(cell) for row, cell in cells.items()}
    kinds = Counter(kind for kind, number in parsed.values() if not math.isnan(number))
    if not kinds:
        return {}
    usual = kinds.most_common(1)[0][0]
    return {
        row: f"column {column!r} holds {cells[row]!r}, {kind}"
        for row, (kind, number) in parsed.items()
        if kind != usual or math.isnan(number)
    }


def split_by_column(words: Sequence[str], *, split_column: str) -> SplitIndices:
    """Return the split that the words of a column give; valid may be empty."""
    parts = _parse_cells(words, _parse_word, rows=range(len(words)), column=split_column)
    return build_split_indices(np.array(parts), reason=f"column {split_column!r} says so")


def split_by_time(
    times: Sequence[float],
    *,
    smiles: Sequence[str],
    time_column: str,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
) -> SplitIndices:
    """Return the split in which train is oldest, then comes valid, and test is newest.

    A molecule belongs to its earliest time with all of its rows, so that valid and test hold only
    molecules that were new; rows that are later than their part are warned of. Molecules of one
    time stay together: each part ends at the time that brings it closest to its share. The order of
    the rows does not matter.

    Args:
        smiles: Canonical SMILES, or another name, of each row. Rows of one name stay together.
        fractions: As in `split_randomly`.
    """
    targets = compute_part_sizes(len(times), fractions)
    moments, idx_of_row, num_rows = _group_by_time(times, smiles)
    reason = f"column {time_column!r} has {len(moments)} different times of new molecules"
    num_parts = np.count_nonzero(targets)
    if len(moments) < num_parts:
        return build_split_indices(idx_of_row, reason=reason)
    num_older = np.concatenate([[0], np.cumsum(num_rows)])
    end = len(moments) - num_parts + 2
    valid_idx = 1 + np.abs(num_older[1:end] - targets[0]).argmin()
    test_idx = valid_idx
    if targets[1] > 0:
        test_idx += 1 + np.abs(num_older[valid_idx + 1 : -1] - targets[:2].sum()).argmin()
    part_of_row = (idx_of_row >= valid_idx).astype(np.int64) + (idx_of_row >= test_idx)
    sizes = np.bincount(part_of_row, minlength=len(SPLIT_NAMES))
    if (np.abs(sizes - targets) > 0.1 * len(times)).any():
        logger.warning(
            "Many rows share their time: %d are in train, %d in valid, %d in test.", *sizes
        )
    own_idx = np.searchsorted(moments, times, side="right") - 1
    own_part = (own_idx >= valid_idx).astype(np.int64) + (own_idx >= test_idx)
    if num_later := np.count_nonzero(own_part > part_of_row):
        logger.warning(
            "%d of %d rows were measured later than their part ends: their molecules had been "
            "measured before, and stay in the part of the first time. --replicates median merges "
            "the rows of a molecule.",
            num_later,
            len(times),
        )
    return build_split_indices(part_of_row, reason=reason)


def group_by_period(
    times: Sequence[float], *, smiles: Sequence[str], num_folds: int
) -> dict[str, list[int]]:
    """Return the rows of every period, these being of about one number of rows.

    A molecule belongs to its earliest time, as in [`split_by_time`]. Rows of one time stay
    together, so that there may be fewer periods than asked for.
    """
    moments, idx_of_row, num_rows = _group_by_time(times, smiles)
    centers = np.cumsum(num_rows) - num_rows / 2
    periods = (centers * min(num_folds, len(moments)) / len(times)).astype(np.int64)
    return group_rows(map(str, periods[idx_of_row]))


def _group_by_time(
    times: Sequence[float], smiles: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the earliest times of molecules, which of them each row has, and how many rows do."""
    first_times: dict[str, float] = {}
    for name, moment in zip(smiles, times, strict=True):
        first_times[name] = min(moment, first_times.get(name, moment))
    return np.unique(
        [first_times[name] for name in smiles], return_inverse=True, return_counts=True
    )


def _parse_cells(
    cells: Sequence[object],
    parse: Callable[[object], tuple[str, float]],
    *,
    rows: Sequence[int],
    column: str,
) -> list[float]:
    """Return the cells as numbers, or raise a `UserError` that names the first bad row."""
    numbers: list[float] = []
    first_kind = None
    for row, value in zip(rows, cells, strict=True):
        kind, number = parse(value)
        first_kind = first_kind or kind
        if math.isnan(number) or kind != first_kind:
            first = f"; row {rows[0]} holds {cells[0]!r}" if row != rows[0] else ""
            raise UserError(
                f"Row {row} (counted from 0): column {column!r} holds {value!r}, {kind}{first}. "
                f"Fill all rows of the column alike: with {', '.join(SPLIT_NAMES)}, or for a time "
                "split with numbers, or dates such as 2019-05-31 or 31.05.2019. Or drop the row."
            )
        numbers.append(number)
    return numbers


def _parse_word(value: object) -> tuple[str, float]:
    """Return what a cell holds, in words, and its part as a number; NaN if it is none."""
    part = PART_WORDS.get(str(value).strip().lower())
    if part is not None:
        return "a part", SPLIT_NAMES.index(part)
    return "no part of a split", math.nan


def build_time_parser(cells: Iterable[object]) -> Callable[[object], tuple[str, float]]:
    """Return what reads the cells of a column of times, as all of them are written.

    A number above 12 tells where the day is in dates such as `05/31/2019`; two that contradict each
    other, or none, tell nothing.
    """
    found = [match for it in cells if (match := _SLASHES.match(str(it).strip()))]
    orders = {order for it in found for order in (1, 2) if int(it[order]) > 12}
    return partial(_parse_time, day_at=orders.pop() if len(orders) == 1 else 0)


def _parse_time(value: object, *, day_at: int) -> tuple[str, float]:
    """Return what a cell holds, in words, and its number; NaN if it is no time.

    Args:
        day_at: Whether the day is first or second where there are slashes; 0 if nobody knows.
    """
    number = parse_number(value)
    if number is not None:
        return ("which is no time" if math.isnan(number) else "a number"), number
    text = str(value).strip()
    if _SLASHES.match(text) and not day_at:
        return AMBIGUOUS, math.nan
    try:
        text = _YEAR_FIRST.sub(r"\3.\2.\1", text)
        text = _SLASHES.sub(partial(_write_dots, day_at=day_at), text)
        text = _NAMED_MONTH.sub(partial(_write_dots, day_at=1), text)
        value = datetime.fromisoformat(_DAY_FIRST.sub(_write_iso, text, count=1))
    except ValueError:
        return "neither a number nor a date", math.nan
    if value.tzinfo is not None:
        return "a date with a time zone", value.timestamp()
    return "a date", (value - EPOCH).total_seconds()


def _write_dots(found: re.Match[str], *, day_at: int) -> str:
    day, month, year = found[day_at], found[3 - day_at], found[3]
    if month.isalpha():
        month = str(_MONTHS.index(month.lower()) + 1)
    # of two digits as POSIX and Python read them
    century = ("19" if int(year) > 68 else "20") * (len(year) == 2)
    return f"{day}.{month}.{century}{year}"


def _write_iso(day_first: re.Match[str]) -> str:
    day, month, year = day_first.groups()
    return f"{year}-{int(month):02}-{int(day):02}"
