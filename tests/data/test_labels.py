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
    assert parse_number(value) is None


@pytest.mark.parametrize(
    ("value", "label"), [("1", 1.0), ("0.0", 0.0), (1, 1.0), (True, 1.0), (False, 0.0)]
)
def test_binary_label_is_read(value: object, label: float) -> None:
    assert parse_binary(value) == label


@pytest.mark.parametrize("value", ["2", "0.5", -1, "yes", "True"])
def test_what_is_neither_0_nor_1_is_refused(value: object) -> None:
    assert parse_binary(value) is None


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
def test_missing_class_is_nan(value: object) -> None:
    assert math.isnan(parse_class(value))


@pytest.mark.parametrize("value", ["0.5", 0.5, [1], math.inf])
def test_fraction_is_no_class(value: object) -> None:
    assert parse_class(value) is None


@pytest.mark.parametrize(
    ("problem_type", "value", "words"),
    [
        ("regression", "high", "not a number"),
        ("multi_label_classification", "2", "neither 0 nor 1"),
        ("single_label_classification", "0.5", "choose regression"),
    ],
)
def test_bad_label_names_row_column_value_and_the_way_out(
    problem_type: str, value: str, words: str
) -> None:
    with pytest.raises(UserError, match=f"Row 7 .*'y' is '{value}', .*{words}.* Fix the cell"):
        parse_label(value, problem_type=problem_type, row=7, column="y")


def test_is_missing_knows_nan_only() -> None:
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
    assert conflicts == {4: (0, 4, 5), 5: (0, 4, 5)}
    assert find_label_conflicts(groups, labels, tolerance=np.inf) == {}
    assert list(find_label_conflicts(groups, labels, tolerance=0.0)) == [2, 3, 4, 5]


def test_missing_labels_contradict_nothing() -> None:
    labels = np.array([[1.0, np.nan], [np.nan, 1.0], [1.0, np.nan]])
    assert find_label_conflicts(["a", "a", "a"], labels, tolerance=0.0) == {}


def test_conflict_names_the_label_that_differs_and_all_rows_of_the_molecule() -> None:
    labels = np.array([[1.0, 1.0], [0.0, 0.0], [np.nan, 0.0], [1.0, np.nan]])
    conflicts = find_label_conflicts(["a", "b", "a", "a"], labels, tolerance=0.0)
    assert conflicts == dict.fromkeys([0, 2, 3], (1, 2, 0))
