"""Keep the best rows of a table of any size, in the memory of those rows."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

ROW_COLUMN = "row"
Order = Literal["descending", "ascending"]


@dataclass(frozen=True)
class TopRows:
    """Which rows are the best.

    Args:
        num_rows (`int`): How many to keep.
        label (`str`, *optional*): Label, or column of numbers, that decides. By default the only
            one there is.
        order (`str`, *optional*, defaults to `"descending"`):
            `"descending"`: the largest numbers are the best; `"ascending"`: the smallest.
    """

    num_rows: int
    label: str | None = None
    order: Order = "descending"

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a count that is too small or an unknown order."""
        if self.num_rows < 1:
            raise ValueError(f"--top-k {self.num_rows} is too small. The least is 1.")
        if self.order not in get_args(Order):
            raise ValueError(
                f"--top-k-order {self.order!r} is unknown. Known: {list(get_args(Order))}."
            )

    def choose_column(self, columns: Sequence[str]) -> str:
        """Return the column that decides.

        Args:
            columns (`Sequence[str]`): Those with numbers.

        Raises:
            ValueError: There is no such column, or there are several to choose from.
        """
        if self.label is None and len(columns) == 1:
            return columns[0]
        for name in (self.label, f"prediction_{self.label}"):
            if self.label is not None and name in columns:
                return str(name)
        found = "Say which" if self.label is None else f"There is no {self.label!r}"
        raise ValueError(f"--top-k-label: {found}: choose one of {', '.join(columns)}.")


class TopRowsCollector:
    """Collects rows and keeps the best; of equal ones the first, and none without a number.

    Args:
        top_rows (`TopRows`): How many, and in which order.
        column (`str`): Column of numbers that decides.
        column_names (`Sequence[str]`): All columns to keep, beside `row`.
    """

    def __init__(self, top_rows: TopRows, *, column: str, column_names: Sequence[str]) -> None:
        self._num_rows = top_rows.num_rows
        self._sign = 1.0 if top_rows.order == "descending" else -1.0
        self._column = column
        self._names = list(column_names)
        # the worst first; no two rows are the same, so that the cells are never compared
        self._heap: list[tuple[float, int, tuple[Any, ...]]] = []

    def add(self, columns: Mapping[str, Sequence[Any]], *, rows: Sequence[int]) -> None:
        """Take rows into account.

        Args:
            columns (`Mapping[str, Sequence]`): Values of every column.
            rows (`Sequence[int]`): Positions in the input.
        """
        for idx, (value, row) in enumerate(zip(columns[self._column], rows, strict=True)):
            if value is None or not math.isfinite(value):
                continue
            key = (self._sign * value, -row)
            if len(self._heap) == self._num_rows and key < self._heap[0][:2]:
                continue
            entry = (*key, tuple(columns[name][idx] for name in self._names))
            if len(self._heap) < self._num_rows:
                heapq.heappush(self._heap, entry)
            else:
                heapq.heapreplace(self._heap, entry)

    def to_columns(self) -> dict[str, list[Any]]:
        """Return the rows from the best to the worst, with their positions as `row`."""
        entries = sorted(self._heap, reverse=True)
        columns: dict[str, list[Any]] = {ROW_COLUMN: [-entry[1] for entry in entries]}
        for idx, name in enumerate(self._names):
            columns[name] = [entry[2][idx] for entry in entries]
        return columns
