import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.data.top_rows import TopRows, TopRowsCollector

VALUES = st.lists(
    st.one_of(st.none(), st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf])),
    max_size=40,
)


def collect(values: list[Any], top_rows: TopRows, *, chunk_size: int = 7) -> TopRowsCollector:
    collector = TopRowsCollector(top_rows, column="y", column_names=["y", "name"])
    for start in range(0, len(values), chunk_size):
        rows = range(start, min(start + chunk_size, len(values)))
        columns = {"y": [values[row] for row in rows], "name": [f"#{row}" for row in rows]}
        collector.add(columns, rows=rows)
    return collector


@given(VALUES, st.integers(1, 50), st.sampled_from(["descending", "ascending"]))
def test_best_rows_are_the_first_of_the_sorted_ones(
    values: list[float | None], num_rows: int, order: Any
) -> None:
    sign = -1 if order == "descending" else 1
    numbers = [
        (sign * y, row) for row, y in enumerate(values) if y is not None and math.isfinite(y)
    ]
    expected = [row for _, row in sorted(numbers)][:num_rows]
    columns = collect(values, TopRows(num_rows, order=order)).to_columns()
    assert columns["row"] == expected
    assert columns["y"] == [values[row] for row in expected]
    assert columns["name"] == [f"#{row}" for row in expected]


@given(VALUES, st.integers(1, 9))
def test_best_of_the_best_of_parts_are_the_best(values: list[float | None], num_rows: int) -> None:
    whole = collect(values, TopRows(num_rows)).to_columns()
    merged = TopRowsCollector(TopRows(num_rows), column="y", column_names=["y", "name"])
    for start in range(0, len(values), 5):
        part = [value if start <= row < start + 5 else None for row, value in enumerate(values)]
        best = collect(part, TopRows(num_rows)).to_columns()
        merged.add(best, rows=best["row"])
    assert merged.to_columns() == whole


def test_label_or_column_decides() -> None:
    columns = ["prediction_logS", "spread_logS"]
    assert TopRows(1, label="logS").choose_column(columns) == "prediction_logS"
    assert TopRows(1, label="spread_logS").choose_column(columns) == "spread_logS"
    assert TopRows(1).choose_column(columns[:1]) == "prediction_logS"
    with pytest.raises(ValueError, match="Say which: choose one of prediction_logS, spread_logS"):
        TopRows(1).choose_column(columns)
    with pytest.raises(ValueError, match="There is no 'logP'"):
        TopRows(1, label="logP").choose_column(columns)


def test_wrong_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="--top-k 0 is too small"):
        TopRows(0)
    with pytest.raises(ValueError, match=r"'up' is unknown\. Known: \['descending'"):
        TopRows(1, order="up")  # type: ignore[arg-type]
