import hashlib
from pathlib import Path

import numpy as np
import pytest
from tiny_evaluation import build_rows
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, write_table

from rmat_hf.errors import UserError
from rmat_hf.evaluation.row_predictions import (
    compute_canonical_smiles,
    compute_part_hashes,
    find_common_rows,
    load_row_predictions,
)


def test_rows_come_in_order_with_empty_cells_as_nan(tmp_path: Path) -> None:
    columns = {"row": [2, 0], "smiles": ["C", "CC"], "split": ["test", "train"]}
    columns |= {"y": ["", 1.5], "prediction_y": [2.5, 3.5]}
    write_table(tmp_path / "predictions.csv", columns)
    write_table(tmp_path / "dropped_rows.csv", {"row": [1], "smiles": ["?"], "reason": ["bad"]})
    rows = load_row_predictions(tmp_path, label_names=["y"])
    assert rows.rows.tolist() == [0, 2]
    assert rows.smiles == ["CC", "C"]
    np.testing.assert_array_equal(rows.labels, [[1.5], [np.nan]])
    assert rows.predictions.tolist() == [[3.5], [2.5]]
    assert rows.num_dropped == 1 and rows.spread is None
    assert rows.is_in("test").tolist() == [False, True]


def test_an_ensemble_has_a_spread(tmp_path: Path) -> None:
    columns = {"row": [2, 0], "smiles": ["C", "CC"], "split": ["test", "train"]}
    columns |= {"y": [1, 2], "prediction_y": [2.5, 3.5], "spread_y": [0.25, 0.5]}
    write_table(tmp_path / "predictions.csv", columns)
    spread = load_row_predictions(tmp_path, label_names=["y"]).select(np.array([2])).spread
    assert spread is not None and spread.tolist() == [[0.25]]


def test_common_rows_are_those_of_all_and_the_others_count_as_dropped() -> None:
    first = build_rows().select(np.array([0, 1, 2, 3, 8, 10]))
    second = build_rows().select(np.array([1, 2, 3, 4, 8, 10, 11]))
    common = find_common_rows({"a": first, "b": second}, where="here")
    assert common.rows.tolist() == [1, 2, 3, 8, 10]
    assert common.smiles == [TABLE_SMILES[row] for row in common.rows]
    assert common.num_dropped == 7
    assert common.labels[:, 0].tolist() == [1, 2, 3, 8, 10]


def test_row_in_two_parts_is_an_error_that_names_it() -> None:
    other = build_rows(parts=[*TABLE_PARTS[:5], "test", *TABLE_PARTS[6:]])
    message = "here: row 5 stands in train for 'a' and in test for 'b'.*Use split columns"
    with pytest.raises(UserError, match=message):
        find_common_rows({"a": build_rows(), "b": other}, where="here")


def test_hash_of_a_part_does_not_depend_on_order_or_spelling() -> None:
    hashes = compute_part_hashes(build_rows())
    reverse = build_rows(smiles=TABLE_SMILES[::-1], parts=TABLE_PARTS[::-1])
    assert compute_part_hashes(reverse) == hashes
    spelled = build_rows(smiles=["OCC", *TABLE_SMILES[1:]])
    assert compute_part_hashes(spelled) == hashes
    assert compute_part_hashes(build_rows(smiles=["C", *TABLE_SMILES[1:]])) != hashes
    expected = hashlib.sha256(b"C1CCNCC1\nc1ccsc1").hexdigest()
    assert hashes["test"] == expected


def test_smiles_that_cannot_be_parsed_is_an_error() -> None:
    with pytest.raises(UserError, match=r"C1CC.*Fix or drop the row"):
        compute_canonical_smiles("C1CC")
