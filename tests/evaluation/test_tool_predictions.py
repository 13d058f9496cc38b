from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_evaluation import build_rows, load_tiny_protocol
from tiny_finetuning import TABLE_SMILES, write_table

from rmat_hf.errors import UserError
from rmat_hf.evaluation.protocol import Fold
from rmat_hf.evaluation.row_predictions import RowPredictions
from rmat_hf.evaluation.tool_predictions import (
    ToolPredictions,
    align_tool_predictions,
    load_tool_predictions,
)

FOLD = Fold("numbers", "part_0", 0)


def load(folder: Path, **changes: list[Any] | None) -> dict[Fold, ToolPredictions]:
    columns = {"dataset": ["numbers"] * 2, "split": ["part_0"] * 2, "seed": [0, 0]}
    columns |= {"row": [10, 11], "prediction": [1.5, -2], **changes}
    columns = {name: values for name, values in columns.items() if values is not None}
    path = write_table(folder / "tool.csv", columns)
    return load_tool_predictions(path, protocol=load_tiny_protocol(folder))


def align(tool: ToolPredictions, **changes: Any) -> RowPredictions:
    return align_tool_predictions(tool, build_rows(**changes), where="tool")


def test_rows_are_found_by_number(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found == {FOLD: {10: [1.5], 11: [-2.0]}}
    aligned = align(found[FOLD])
    assert aligned.predictions[10:, 0].tolist() == [1.5, -2.0]
    assert np.isnan(aligned.predictions[:10]).all()


def test_rows_are_found_by_molecule_however_it_is_written(tmp_path: Path) -> None:
    smiles = ["N1CCCCC1", "s1cccc1"]
    assert smiles != TABLE_SMILES[10:]
    found = load(tmp_path, row=None, smiles=smiles)
    assert align(found[FOLD]).predictions[10:, 0].tolist() == [1.5, -2.0]


def test_column_may_have_the_name_of_the_label(tmp_path: Path) -> None:
    found = load(tmp_path, prediction=None, prediction_y=[3, 4])
    assert found == {FOLD: {10: [3.0], 11: [4.0]}}


def test_missing_rows_are_named(tmp_path: Path) -> None:
    tool = {10: [1.5]}
    with pytest.raises(UserError, match=r"tool: 1 rows of test .* row 11 \('c1ccsc1'\)"):
        align(tool)
    with pytest.raises(UserError, match=r"tool: 1 rows of valid .* row 9"):
        align({**tool, 11: [0.0], 8: [0.0]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": ["numbers", "words"]}, "line 2 below the header: .* no data set 'words'"),
        ({"split": ["part_0", "part_9"]}, "the split 'part_9'"),
        ({"seed": [0, 7]}, "the seed '7'"),
        ({"prediction": [1.0, ""]}, "line 2 below the header: prediction is '', not a finite"),
        ({"prediction": ["nan", 1.0]}, "line 1 below the header: prediction is 'nan'"),
        ({"row": ["10", "x"]}, "line 2 below the header: row is 'x'"),
        ({"row": [10, 10]}, "row 10 of numbers, part_0, seed 0 has two predictions"),
        ({"row": None, "smiles": ["C1CC", "C"]}, "line 1 below the header: smiles is 'C1CC': "),
        ({"row": None}, "tool.csv has no column 'smiles'"),
        ({"seed": None}, "tool.csv has no column 'seed'"),
        ({"prediction": None}, "has no column 'prediction_y'"),
    ],
)
def test_bad_file_is_an_error_that_names_the_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, **changes)
