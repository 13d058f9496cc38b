from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_checks import assert_is_partition, assert_keeps_together, list_names

from rmat_hf.data.splits.column_splits import (
    TimeColumn,
    log_leaking_groups,
    parse_split_cells,
    parse_times,
    split_by_column,
    split_by_time,
    validate_split_values,
)
from rmat_hf.errors import UserError


def parse(*values: object) -> list[float]:
    return parse_times(values, rows=range(len(values)), column="day")


def test_split_from_a_column() -> None:
    split = split_by_column(["train", "test", "train", "valid"])
    assert (split.train.tolist(), split.valid.tolist(), split.test.tolist()) == ([0, 2], [3], [1])
    assert_is_partition(split, 4)


def test_column_without_valid_gives_an_empty_valid_part() -> None:
    assert split_by_column(["train", "test"]).valid.tolist() == []


@pytest.mark.parametrize("value", ["validation", "Train", "", None, 0, " test"])
def test_other_words_in_a_split_column_are_refused(value: object) -> None:
    with pytest.raises(UserError) as caught:
        validate_split_values(["train", "test", value], rows=[4, 5, 8], column="fold")
    assert str(caught.value) == (
        f"Row 8 (counted from 0): column 'fold' holds {value!r}. "
        "A split column holds the words train, valid, test only."
    )


@pytest.mark.parametrize(
    ("values", "part"), [(["train", "valid"], "test"), (["test", "valid"], "train"), ([], "train")]
)
def test_empty_part_of_a_split_column_is_refused(values: list[str], part: str) -> None:
    with pytest.raises(UserError, match=f"Column 'fold' puts no usable row into {part}"):
        split_by_column(values, column="fold")


def test_molecules_in_two_parts_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    log_leaking_groups(["a", "a", "b", "b"], splits=["train", "train", "test", "test"])
    assert caplog.text == ""
    log_leaking_groups(["a", "a", "b"], splits=["train", "test", "test"])
    assert "1 molecules stand in more than one part" in caplog.text


def test_cells_become_the_column_that_their_kind_says() -> None:
    rows, groups = [0, 1], ["a", "b"]
    assert parse_split_cells(None, [None, None], rows=rows, groups=groups) == {}
    words = parse_split_cells("fold", ["train", "test"], rows=rows, groups=groups)
    assert words == {"split": ["train", "test"]}
    times = parse_split_cells(TimeColumn("year"), ["2001", "1999"], rows=rows, groups=groups)
    assert times == {"time": [2001.0, 1999.0]}


@pytest.mark.parametrize(
    "values",
    [
        ["1999", " 2001.5 ", "20010601"],
        [-3, 0.25, Decimal("7.5")],
        ["1969-12-31", "1970-01-01T12:00", "2019-05-31 23:59:59"],
        ["20190531T010203", "2020-W01-1"],
        [date(1999, 1, 2), datetime(1999, 1, 2, 3), date(1999, 1, 3)],
        ["2019-05-31T12:00:00+02:00", "2019-05-31T10:00:01Z"],
        [datetime(2019, 5, 31, tzinfo=UTC), "2019-05-31T00:00:01Z"],
    ],
)
def test_times_of_each_kind_become_growing_numbers(values: list[object]) -> None:
    assert (np.diff(parse(*values)) > 0).all()


def test_dates_are_seconds_since_1970() -> None:
    assert parse("1970-01-02", date(1969, 12, 31)) == [86400.0, -86400.0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "which is no time"),
        (None, "which is no time"),
        (float("nan"), "which is no time"),
        ("NA", "which is no time"),
        ("31.05.2019", "neither a number nor an ISO date"),
        ("2019-05", "neither a number nor an ISO date"),
        ("2019-02-30", "neither a number nor an ISO date"),
        ("inf", "neither a number nor an ISO date"),
        ("May 2019", "neither a number nor an ISO date"),
    ],
)
@pytest.mark.parametrize("first", ["2019", "2019-05-31"])
def test_cell_without_a_time_is_refused_by_its_row(first: str, value: object, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_times([first, value], rows=[4, 8], column="day")
    assert str(caught.value) == (
        f"Row 8 (counted from 0): column 'day' holds {value!r}, {reason}. "
        "Write numbers or ISO dates such as 2019-05-31, or drop the row."
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["2019-05-31", "2019"], "'2019', a number, but row 4 holds '2019-05-31', a date"),
        (["2019", "2019-05-31"], "'2019-05-31', a date, but row 4 holds '2019', a number"),
        (["2019-05-31", "2019-05-31T00:00Z"], "a date with a time zone, but row 4 .*, a date"),
    ],
)
def test_times_of_two_kinds_are_refused_by_their_rows(values: list[str], words: str) -> None:
    with pytest.raises(UserError, match=rf"Row 8 .*{words}"):
        parse_times(values, rows=[4, 8], column="day")


def test_oldest_rows_are_train_and_newest_test() -> None:
    times = [float(i) for i in np.random.default_rng(0).permutation(100)]
    split = split_by_time(times, groups=[str(i) for i in range(100)])
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
    split = split_by_time(times, groups=groups)
    assert_is_partition(split, len(rows))
    assert_keeps_together(split, groups)
    moments = [first[group] for group in groups]
    assert_keeps_together(split, moments)
    assert max(moments[row] for row in split.train) < min(moments[row] for row in split.valid)
    assert max(moments[row] for row in split.valid) < min(moments[row] for row in split.test)


@given(st.permutations(range(30)))
def test_time_split_does_not_depend_on_the_order_of_rows(order: list[int]) -> None:
    names, times = [str(i % 20) for i in range(30)], [float(i // 2) for i in range(30)]
    expected = list_names(split_by_time(times, groups=names), names)
    shuffled = [names[i] for i in order]
    split = split_by_time([times[i] for i in order], groups=shuffled)
    assert list_names(split, shuffled) == expected


def test_molecule_measured_again_belongs_to_its_first_time() -> None:
    times = [*map(float, range(20)), 19.0]
    split = split_by_time(times, groups=[*map(str, range(20)), "0"])
    assert 20 in split.train
    assert 20 not in split.test


def test_rows_of_one_time_go_where_parts_are_closest_to_their_shares(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = [1.0] * 70 + [2.0] * 12 + [3.0] * 9 + [4.0] * 9
    split = split_by_time(times, groups=[str(i) for i in range(100)])
    assert [len(rows) for rows in vars(split).values()] == [82, 9, 9]
    assert caplog.text == ""


def test_parts_far_from_their_shares_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    times = [1.0] * 30 + [2.0] * 30 + [3.0] * 40
    split = split_by_time(times, groups=[str(i) for i in range(100)])
    assert [len(rows) for rows in vars(split).values()] == [30, 30, 40]
    assert "share their time: 30 are in train, 30 in valid, 40 in test" in caplog.text


def test_time_split_may_leave_valid_out() -> None:
    groups = [str(i) for i in range(10)]
    split = split_by_time([float(i) for i in range(10)], groups=groups, fractions=(0.8, 0.0, 0.2))
    assert [rows.tolist() for rows in vars(split).values()] == [list(range(8)), [], [8, 9]]
    split = split_by_time([1.0] * 9 + [2.0], groups=groups, fractions=(0.5, 0.0, 0.5))
    assert [len(rows) for rows in vars(split).values()] == [9, 0, 1]


def test_too_few_times_are_refused() -> None:
    with pytest.raises(UserError, match=r"Column 'year' has 2 different times .* for 3 parts"):
        split_by_time([1.0, 2.0] * 10, groups=[str(i) for i in range(20)], column="year")
    with pytest.raises(UserError, match="has 1 different times of new molecules"):
        split_by_time([float(i) for i in range(20)], groups=["a"] * 20)
