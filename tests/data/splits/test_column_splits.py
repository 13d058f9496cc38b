from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_checks import assert_is_partition, assert_keeps_together

from rmat_hf.data.splits.column_splits import (
    TimeColumn,
    parse_split_cells,
    split_by_column,
    split_by_time,
)
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.errors import UserError


def parse(column: str, cells: Sequence[object]) -> dict[str, list[Any]]:
    """Parse cells of rows 4, 8, 12 and so on, each of another molecule."""
    rows = range(4, 4 + 4 * len(cells), 4)
    return parse_split_cells(column, cells, rows=rows, groups=[str(row) for row in rows])


def parse_times(*cells: object) -> list[float]:
    return parse(TimeColumn("day"), cells)["time"]


def split_in_time(times: list[float], smiles: list[str], **options: Any) -> SplitIndices:
    return split_by_time(times, smiles=smiles, time_column="day", **options)


def test_split_from_a_column() -> None:
    split = split_by_column(["train", "test", "train", "valid"], split_column="part")
    assert (split.train.tolist(), split.valid.tolist(), split.test.tolist()) == ([0, 2], [3], [1])
    assert_is_partition(split, 4)
    assert split_by_column(["train", "test"], split_column="part").valid.tolist() == []


@pytest.mark.parametrize("value", ["validating", "Tr", "", None, 0, "test 1"])
def test_other_words_in_a_split_column_are_refused_by_their_row(value: object) -> None:
    with pytest.raises(UserError) as caught:
        parse("fold", ["train", "test", value])
    for fact in ("Row 12 ", "'fold'", repr(value), "train, valid, test"):
        assert fact in str(caught.value)


@pytest.mark.parametrize("values", [["train", "valid"], ["test", "valid"], []])
def test_empty_part_of_a_split_column_is_refused(values: list[str]) -> None:
    with pytest.raises(UserError, match=r"\b0\b.*column 'fold' says so"):
        parse("fold", values)


def test_cells_become_the_column_that_their_kind_says() -> None:
    assert parse("", [None, None]) == {}
    assert parse("fold", ["train", "test"]) == {"split": ["train", "test"]}
    assert parse(TimeColumn("year"), ["2001", "1999"]) == {"time": [2001.0, 1999.0]}


@pytest.mark.parametrize(
    "values",
    [
        ["1999", " 2001.5 ", "20010601"],
        [-3, 0.25, Decimal("7.5")],
        ["1969-12-31", "1970-01-01T12:00", "2019-05-31 23:59:59"],
        ["20190531T010203", "2020-W01-1"],
        ["1.2.2023", "31.05.2023", "31.05.2023 12:00", "2023-06-01", "01.12.2023"],
        ["2023/1/31", "2023/02/01", "2023-02-02"],
        ["30-Nov-2019", "1-dec-19", "02 Dec 2019", "3 December 2019 10:00"],
        # one day above 12 tells the order of all
        ["11/30/2019", "12/01/2019", "12/2/19 10:00"],
        ["30/11/2019", "01/12/2019"],
        [date(1999, 1, 2), datetime(1999, 1, 2, 3), date(1999, 1, 3)],
        ["2019-05-31T12:00:00+02:00", "2019-05-31T10:00:01Z"],
        [datetime(2019, 5, 31, tzinfo=UTC), "2019-05-31T00:00:01Z"],
    ],
)
def test_times_of_each_kind_become_growing_numbers(values: list[object]) -> None:
    assert (np.diff(parse_times(*values)) > 0).all()


@pytest.mark.parametrize(
    "value",
    [
        "",
        None,
        float("nan"),
        "NA",
        "13/31/2019",
        "01/02/2019",
        "30-Nix-2019",
        "31.13.2019",
        "2019/13/31",
        "2019-05",
        "2019-02-30",
        "inf",
        "May 2019",
    ],
)
@pytest.mark.parametrize("first", ["2019", "2019-05-31"])
def test_cell_without_a_time_is_refused_by_its_row(first: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        parse_times(first, value)
    for fact in ("Row 8 ", "'day'", repr(value), "2019-05-31", "drop the row"):
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["2019-05-31", "2019"], "a number"),
        (["2019", "2019-05-31"], "a date"),
        (["2019-05-31", "2019-05-31T00:00Z"], "a date with a time zone"),
    ],
)
def test_times_of_two_kinds_are_refused_by_their_rows(values: list[str], kind: str) -> None:
    with pytest.raises(UserError, match=f"Row 8 .*{values[1]}', {kind}; row 4 .*'{values[0]}'"):
        parse_times(*values)


def test_oldest_rows_are_train_and_newest_test() -> None:
    times = [float(i) for i in np.random.default_rng(0).permutation(100)]
    split = split_in_time(times, [str(i) for i in range(100)])
    assert_is_partition(split, 100)
    assert sorted(times[row] for row in split.train) == list(range(80))
    assert sorted(times[row] for row in split.valid) == list(range(80, 90))
    assert sorted(times[row] for row in split.test) == list(range(90, 100))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), min_size=10, max_size=90).filter(
        lambda rows: len({time for time, _ in rows}) > 8
    )
)
def test_time_split_never_divides_a_molecule_or_a_time(rows: list[tuple[int, int]]) -> None:
    times, groups = [float(time) for time, _ in rows], [str(group) for _, group in rows]
    first = {
        group: min(t for t, g in zip(times, groups, strict=True) if g == group) for group in groups
    }
    if len(set(first.values())) < 3:
        return
    split = split_in_time(times, groups)
    assert_is_partition(split, len(rows))
    assert_keeps_together(split, groups)
    moments = [first[group] for group in groups]
    assert_keeps_together(split, moments)
    assert max(moments[row] for row in split.train) < min(moments[row] for row in split.valid)
    assert max(moments[row] for row in split.valid) < min(moments[row] for row in split.test)


def test_rows_that_are_later_than_their_part_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    names = [str(idx) for idx in range(20)]
    split_in_time([float(idx) for idx in range(20)], names)
    assert not caplog.text
    # measured again: two of train in the time of test, one in that of train
    split = split_in_time([*map(float, range(20)), 19.0, 25.0, 5.0], [*names, "0", "1", "2"])
    assert {20, 21, 22} < {*split.train}
    assert "2 of 23 rows were measured later" in caplog.text
    assert "--replicates" in caplog.text


def test_time_split_may_leave_valid_out() -> None:
    groups = [str(i) for i in range(10)]
    split = split_in_time([float(i) for i in range(10)], groups, fractions=(0.8, 0.0, 0.2))
    assert [rows.tolist() for rows in vars(split).values()] == [list(range(8)), [], [8, 9]]
    split = split_in_time([1.0] * 9 + [2.0], groups, fractions=(0.5, 0.0, 0.5))
    assert [len(rows) for rows in vars(split).values()] == [9, 0, 1]


def test_too_few_times_are_refused() -> None:
    with pytest.raises(UserError, match="column 'day' has 2 different times"):
        split_in_time([1.0, 2.0] * 10, [str(i) for i in range(20)])
    with pytest.raises(UserError, match="column 'day' has 1 different times"):
        split_in_time([float(i) for i in range(20)], ["a"] * 20)


def test_parts_end_where_they_are_closest_to_their_shares(caplog: pytest.LogCaptureFixture) -> None:
    names = [str(i) for i in range(100)]
    split = split_in_time([1.0] * 70 + [2.0] * 12 + [3.0] * 9 + [4.0] * 9, names)
    assert [len(rows) for rows in vars(split).values()] == [82, 9, 9]
    assert caplog.text == ""
    split = split_in_time([1.0] * 30 + [2.0] * 30 + [3.0] * 40, names)
    assert [len(rows) for rows in vars(split).values()] == [30, 30, 40]
    assert "share their time: 30 are in train, 30 in valid, 40 in test" in caplog.text
