import math
from decimal import Decimal

import numpy as np
import pytest

from rmat_hf.data.labels import (
    find_label_conflicts,
    is_missing,
    list_class_names,
    parse_binary,
    parse_class,
    parse_label,
    parse_number,
    validate_label_columns,
)
from rmat_hf.errors import UserError

MISSING = ["", "  ", None, math.nan, "nan", "NaN"]


@pytest.mark.parametrize(
    ("value", "number"),
    [("1.5", 1.5), (" -2e-3 ", -0.002), (3, 3.0), (2.5, 2.5), (Decimal("0.1"), 0.1), ("+4", 4.0)],
)
def test_number_is_read(value: object, number: float) -> None:
    assert parse_number(value) == number


@pytest.mark.parametrize("value", [*MISSING, "NA", "n/a", "None", "null"])
def test_missing_number_is_nan(value: object) -> None:
    assert math.isnan(parse_number(value))
    assert math.isnan(parse_binary(value))


@pytest.mark.parametrize(
    "value", ["high", ">10", "1,5", "1_000", "inf", "-inf", math.inf, "1e39", 1e39, "1e999", [1.0]]
)
def test_what_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not a number"):
        parse_number(value)


@pytest.mark.parametrize(
    ("value", "label"), [("1", 1.0), ("0.0", 0.0), (1, 1.0), (True, 1.0), (False, 0.0)]
)
def test_binary_label_is_read(value: object, label: float) -> None:
    assert parse_binary(value) == label


@pytest.mark.parametrize("value", ["2", "0.5", -1, "yes", "True"])
def test_what_is_neither_0_nor_1_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        parse_binary(value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("1", "1"),
        ("1.0", "1"),
        (1, "1"),
        (1.0, "1"),
        (" active ", "active"),
        ("None", "None"),
        ("NA", "NA"),
        (True, "True"),
    ],
)
def test_class_is_read(value: object, name: str) -> None:
    assert parse_class(value) == name


@pytest.mark.parametrize("value", MISSING)
def test_missing_class_is_none(value: object) -> None:
    assert parse_class(value) is None


@pytest.mark.parametrize("value", ["0.5", 0.5, [1], math.inf])
def test_fraction_is_no_class(value: object) -> None:
    with pytest.raises(ValueError, match="choose regression"):
        parse_class(value)


def test_bad_label_names_row_column_value_and_the_way_out() -> None:
    with pytest.raises(UserError) as caught:
        parse_label("high", problem_type="regression", row=7, column="y")
    assert str(caught.value) == (
        "Row 7 (counted from 0): label 'y' is 'high', not a number. "
        "Fix the cell, or leave it empty when the value is not known."
    )


@pytest.mark.parametrize(
    ("columns", "problem_type", "words"),
    [
        (["y"], "classification", "Use one of regression, multi_label"),
        ([], "regression", "No label column"),
        (["y", "y"], "regression", "named twice"),
        (["y", "z"], "single_label_classification", "takes one label column, not y, z"),
    ],
)
def test_label_columns_must_fit_the_problem(
    columns: list[str], problem_type: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        validate_label_columns(columns, problem_type=problem_type)


def test_is_missing_knows_nan_and_none_only() -> None:
    assert is_missing(None)
    assert is_missing(math.nan)
    assert not is_missing(0.0)
    assert not is_missing("")


def test_integer_classes_are_sorted_by_value_and_words_by_letter() -> None:
    assert list_class_names(["10", "9", None, "-1", "9"]) == ["-1", "9", "10"]
    assert list_class_names(["weak", "10", "9"]) == ["10", "9", "weak"]


def test_conflict_is_a_difference_beyond_the_tolerance() -> None:
    labels = np.array([[0.0], [10.0], [0.0], [0.3], [0.0], [0.6]])
    groups = ["a", "b", "c", "c", "d", "d"]
    std = labels.std()
    conflicts = find_label_conflicts(groups, labels, tolerance=0.5 / std)
    assert [(c.rows, c.low_row, c.high_row) for c in conflicts] == [([4, 5], 4, 5)]
    assert find_label_conflicts(groups, labels, tolerance=np.inf) == []
    assert len(find_label_conflicts(groups, labels, tolerance=0.0)) == 2


def test_missing_labels_contradict_nothing() -> None:
    labels = np.array([[1.0, np.nan], [np.nan, 1.0], [1.0, np.nan]])
    assert find_label_conflicts(["a", "a", "a"], labels, tolerance=0.0) == []


def test_conflict_names_the_label_that_differs_and_all_rows_of_the_molecule() -> None:
    labels = np.array([[1.0, 1.0], [0.0, 0.0], [np.nan, 0.0], [1.0, np.nan]])
    (conflict,) = find_label_conflicts(["a", "b", "a", "a"], labels, tolerance=0.0)
    assert (conflict.rows, conflict.label_idx) == ([0, 2, 3], 1)
    assert (conflict.low_row, conflict.high_row) == (2, 0)


def test_no_rows_have_no_conflict() -> None:
    assert find_label_conflicts([], np.empty((0, 2)), tolerance=0.1) == []
