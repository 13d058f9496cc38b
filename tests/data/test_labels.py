import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from rdkit import Chem

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.labels import (
    arrange_atom_labels,
    describe_recoding,
    describe_words,
    find_label_conflicts,
    is_missing,
    list_class_names,
    parse_binary,
    parse_class,
    parse_label,
    parse_number,
)
from rmat_hf.data.stored_features import expand_features
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.processing_rmat import RMatProcessor

PROCESSOR = RMatProcessor(geometry="bounds")
MISSING = ["", "  ", None, math.nan, "nan", "NaN"]
NUMBERS = [("1.5", 1.5), (" -2e-3 ", -0.002), (3, 3.0), (Decimal("0.1"), 0.1), ("+4", 4.0)]
NO_NUMBERS = ["high", ">10", "1,5", "1_000", "inf", "-inf", math.inf, "1e39", 1e39, "1e999", [1.0]]
CLASSES = [("1", "1"), ("1.0", "1"), (1, "1"), (1.0, "1"), (" active ", "active"), (True, "True")]


@pytest.mark.parametrize(
    ("parse", "labels", "missing", "others"),
    [
        (parse_number, NUMBERS, ["NA", "n/a", "None", "null"], NO_NUMBERS),
        (
            parse_binary,
            [("1", 1.0), ("0.0", 0.0), (1, 1.0), (True, 1.0), ("yes", 1.0), ("inactive", 0.0)],
            ["NA", "null"],
            ["2", "0.5", -1, "maybe"],
        ),
        (parse_class, [*CLASSES, ("NA", "NA"), ("None", "None")], [], ["0.5", 0.5, [1], math.inf]),
    ],
)
def test_cells_are_labels_missing_or_refused(
    parse: Any, labels: list[tuple[Any, Any]], missing: list[str], others: list[Any]
) -> None:
    assert [parse(value) for value, _ in labels] == [label for _, label in labels]
    assert all(is_missing(parse(value)) for value in [*MISSING, *missing])
    assert [parse(value) for value in others] == [None] * len(others)
    assert not any(map(is_missing, (0.0, "")))


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


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("Toxic", "Non-toxic nontoxic NON_TOXIC non–toxic not\u00a0toxic"),
        ("ACTIVE", "inactive non-active"),
        ("positive", "negative"),
        ("pass", "fail"),
        ("permeable", "impermeable non-permeable"),
        ("soluble", "insoluble"),
        ("inhibitor", "non-inhibitor"),
    ],
)
def test_words_that_negate_each_other_are_1_and_0(yes: str, no: str) -> None:
    assert parse_binary(f" {yes} ") == 1
    assert [parse_binary(word) for word in no.split(" ")] == [0] * len(no.split(" "))
    assert describe_words(["", "1", yes, no.split(" ")[0], yes.lower()]) == (
        f"{yes!r} is 1, {no.split(' ')[0]!r} is 0"
    )


def test_words_that_nobody_can_order_are_no_label_and_have_a_way_out() -> None:
    words = ["low", "high", "non-low", "Equivocal", "agonist", "antagonist", "non-", "not"]
    assert [parse_binary(word) for word in words] == [None] * len(words)
    advice = describe_recoding("Call", ["low", "", "n.d.", "high", "low"])
    assert "table['Call'].map({'low': 1, 'high': 0})" in advice
    assert describe_recoding("Call", ["yes", "0", ""]) == describe_words(["yes", "no"]) == ""


@pytest.mark.parametrize(
    ("cells", "mapping"),
    [
        (["low", "High", " high"], {"low": 1, "High": 0, " high": 0}),
        (["inactive", "weak"], {"weak": 1, "inactive": 0}),
        (["weak", "active"], {"active": 1, "weak": 0}),
        (["inhibitor", "substrate", None], {"inhibitor": 1, "substrate": 0}),
    ],
)
def test_advice_for_two_words_maps_every_cell(
    cells: list[str | None], mapping: dict[str, int]
) -> None:
    assert f".map({mapping})" in describe_recoding("Call", cells)


@pytest.mark.parametrize(
    "cells",
    [
        ["active", "weak", "moderate", "strong", "active"],
        ["inhibitor", "substrate", "non-inhibitor"],
        ["0", "1", "weak", "unclear"],
    ],
)
def test_advice_for_other_words_names_them_and_erases_none(cells: list[str]) -> None:
    advice = describe_recoding("Call", cells)
    assert ".map" not in advice and "write 1 or 0 in the place of each of" in advice
    assert all((repr(word) in advice) is not word.isdigit() for word in cells)


@pytest.mark.parametrize(
    "cells", [["0", "1", "2"], ["4.99", "5.79", ">10"], ["[0, 0]", "[0, 0, 0]"], [[0, 1], [1]]]
)
def test_numbers_and_labels_of_atoms_have_no_advice_for_words(cells: list[object]) -> None:
    assert describe_recoding("y", cells) == ""


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


# Labels of atoms


@pytest.mark.parametrize("smiles", ["OC(=O)c1ccccc1", "c1ccccc1C(=O)O", "[Cl-].CC[NH3+]", "N[Pt]"])
def test_labels_of_atoms_follow_them_into_the_order_of_stored_features(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    numbers = [[atom.GetAtomicNum(), atom.GetDegree()] for atom in mol.GetAtoms()]
    (outcome,) = featurize_molecules([smiles], PROCESSOR)
    nodes = expand_features([outcome.features])["node_features"][0, 1:]
    columns = ATOM_FEATURES.columns["num_neighbors"]
    arranged = arrange_atom_labels(numbers, smiles, processor=PROCESSOR)
    assert nodes[:, columns].argmax(1).tolist() == arranged[:, 1].tolist()
    canonical = Chem.MolFromSmiles(outcome.canonical_smiles)
    assert [atom.GetAtomicNum() for atom in canonical.GetAtoms()] == arranged[:, 0].tolist()
    # an RDKit molecule keeps its order, and loses the labels of its hydrogens
    hydrated = Chem.AddHs(mol)
    of_mol = arrange_atom_labels(numbers, mol, processor=PROCESSOR)
    assert of_mol.tolist() == numbers
    everywhere = [[atom.GetAtomicNum(), 7] for atom in hydrated.GetAtoms()]
    of_hydrated = arrange_atom_labels(everywhere, hydrated, processor=PROCESSOR)
    assert of_hydrated[:, 0].tolist() == of_mol[:, 0].tolist()


def test_a_label_of_an_atom_may_be_missing_and_too_few_are_refused() -> None:
    arranged = arrange_atom_labels([None, 1.0, math.nan], "OCC", processor=PROCESSOR)
    np.testing.assert_array_equal(arranged, [[math.nan], [1.0], [math.nan]])
    with pytest.raises(ValueError, match=r"\(2, 1\) for 3 heavy atoms"):
        arrange_atom_labels([1.0, 2.0], "CCO", processor=PROCESSOR)
