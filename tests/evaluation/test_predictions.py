import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_evaluation import build_rows, load_tiny_protocol
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, write_table

from rmat_hf.errors import UserError
from rmat_hf.evaluation.predictions import (
    align_tool_predictions,
    compute_canonical_smiles,
    compute_part_hashes,
    count_table_rows,
    find_common_rows,
    load_predictions,
    load_tool_predictions,
)
from rmat_hf.evaluation.protocol import Fold

FOLD = Fold("numbers", "part_0", 0)


def test_rows_come_in_order_with_empty_cells_as_nan_and_numbers_exactly(tmp_path: Path) -> None:
    columns = {"row": [2, 0], "smiles": ["C", "CC"], "split": ["test", "train"]}
    columns |= {"y": ["", 0.1 + 0.2], "prediction_y": [2.5, 3.5], "spread_y": [0.25, 0.5]}
    write_table(tmp_path / "predictions.csv", columns)
    frame = load_predictions(tmp_path)
    assert frame.index.tolist() == [0, 2]
    assert frame["smiles"].tolist() == ["CC", "C"]
    np.testing.assert_array_equal(frame["y"], [0.1 + 0.2, np.nan])
    assert frame["prediction_y"].tolist() == [3.5, 2.5]
    assert frame.loc[[2], "spread_y"].tolist() == [0.25]
    assert count_table_rows(tmp_path, frame) == 2
    write_table(tmp_path / "dropped_rows.csv", {"row": [1], "smiles": ["?"], "reason": ["bad"]})
    assert count_table_rows(tmp_path, frame) == 3


def test_common_rows_are_those_of_all_methods_in_order() -> None:
    rows = build_rows()
    first, second = rows.loc[[0, 1, 2, 3, 8, 10]], rows.loc[[1, 2, 3, 4, 8, 10, 11]]
    common = find_common_rows({"a": first, "b": second}, where="here")
    pd.testing.assert_frame_equal(common, rows.loc[[1, 2, 3, 8, 10]])


def test_row_in_two_parts_is_an_error_that_names_it() -> None:
    other = build_rows(split=[*TABLE_PARTS[:5], "test", *TABLE_PARTS[6:]])
    message = "here: row 5 stands in train for 'a', test for 'b'.*Use split columns"
    with pytest.raises(UserError, match=message):
        find_common_rows({"a": build_rows(), "b": other}, where="here")


def test_hash_of_a_part_does_not_depend_on_order_or_spelling() -> None:
    hashes = compute_part_hashes(build_rows())
    reverse = build_rows(smiles=TABLE_SMILES[::-1], split=TABLE_PARTS[::-1])
    assert compute_part_hashes(reverse) == hashes
    spelled = build_rows(smiles=["OCC", *TABLE_SMILES[1:]])
    assert compute_part_hashes(spelled) == hashes
    assert compute_canonical_smiles("OCC") == compute_canonical_smiles("CCO")
    assert compute_part_hashes(build_rows(smiles=["C", *TABLE_SMILES[1:]])) != hashes
    expected = hashlib.sha256(b"C1CCNCC1\nc1ccsc1").hexdigest()
    assert hashes["test"] == expected


# Other tools


def load(folder: Path, **changes: list[Any] | None) -> dict[Fold, pd.DataFrame]:
    columns = {"dataset": ["numbers"] * 2, "split": ["part_0"] * 2, "seed": [0, 0]}
    columns |= {"row": [10, 11], "prediction": [1.5, -2], **changes}
    columns = {name: values for name, values in columns.items() if values is not None}
    path = write_table(folder / "tool.csv", columns)
    return load_tool_predictions(path, protocol=load_tiny_protocol(folder))


def align(tool: pd.DataFrame) -> pd.DataFrame:
    return align_tool_predictions(tool, build_rows(spread_y=1.0), where="tool")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"row": None, "smiles": ["N1CCCCC1", "s1cccc1"]},
        {"prediction": None, "prediction_y": [1.5, -2]},
    ],
)
def test_rows_are_found_by_number_or_by_molecule_however_it_is_written(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    (found,) = load(tmp_path, **changes).items()
    assert found[0] == FOLD
    aligned = align(found[1])
    assert aligned["prediction_y"].tolist()[10:] == [1.5, -2.0]
    assert aligned["prediction_y"][:10].isna().all()
    assert "spread_y" not in aligned


def test_a_parquet_file_is_one_too(tmp_path: Path) -> None:
    protocol = load_tiny_protocol(tmp_path)
    columns = {"dataset": ["numbers"], "split": ["part_0"], "seed": [0], "row": [10]}
    pd.DataFrame({**columns, "prediction": [0.1 + 0.2]}).to_parquet(tmp_path / "tool.parquet")
    found = load_tool_predictions(tmp_path / "tool.parquet", protocol=protocol)
    # pandas 2 reads a number off a text but for its last bit
    assert found[FOLD].to_dict() == {"prediction_y": {10: pytest.approx(0.1 + 0.2, rel=1e-15)}}


@pytest.mark.parametrize(("lines", "row"), [([10], 11), ([8, 10, 11], 9)])
def test_missing_rows_are_named(tmp_path: Path, lines: list[int], row: int) -> None:
    count = len(lines)
    folds = {"dataset": ["numbers"] * count, "split": ["part_0"] * count, "seed": [0] * count}
    (tool,) = load(tmp_path, **folds, row=lines, prediction=lines).values()
    with pytest.raises(UserError, match=f"tool: 1 rows .* row {row} "):
        align(tool)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["numbers", "words"]}, "line 2 below the header: .* no data set 'words'"),
        ({"split": ["part_0", "part_9"]}, "line 2 .* the split 'part_9'"),
        ({"prediction": [1.0, ""]}, "line 2 below the header: .* finite number in prediction"),
        ({"row": ["10", "x"]}, "line 2 below the header: .*'row': 'x'"),
        ({"row": [10, 10]}, "line 2 below the header: .*'row': '10'.* only one"),
        ({"row": None, "smiles": ["C1CC", "C"]}, "line 1 below the header: .*'C1CC'"),
        ({"row": None}, "tool.csv has no column 'smiles'"),
        ({"prediction": None}, "has no column 'prediction_y'"),
    ],
)
def test_bad_file_is_an_error_that_names_the_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)
