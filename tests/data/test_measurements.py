"""What stands beside a label: bounds, transforms, weights and replicates, as a table has them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from rmat_hf import RMatProcessor, check_table, featurize_dataset
from rmat_hf.data.labels import Bound, parse_label, parse_measurement
from rmat_hf.data.measurements import LabelOptions, propose_label_transform
from rmat_hf.data.splits.column_splits import TimeColumn
from rmat_hf.data.training_table import load_training_table
from rmat_hf.errors import UserError

PROCESSOR = RMatProcessor(geometry="2d")


def load(folder: Path, rows: dict[str, list[Any]], **options: Any) -> Any:
    path = folder / "table.csv"
    lines = [
        ",".join(rows),
        *(",".join(map(str, cells)) for cells in zip(*rows.values(), strict=True)),
    ]
    path.write_text("\n".join(lines) + "\n")
    label_columns = options.pop("label_columns", ["y"])
    fields = {"smiles_column": "smiles", "label_columns": label_columns, "num_workers": 0}
    fields |= {"problem_type": "regression", "label_options": LabelOptions(**options)}
    return load_training_table(str(path), PROCESSOR, **fields)


@pytest.mark.parametrize(
    ("cell", "number", "relation"),
    [
        *((">10000", 1e4, ">"), (" >= 5.5 ", 5.5, ">"), (">>3", 3, ">"), ("≥2", 2, ">")),
        *(("<0.1", 0.1, "<"), ("<=-3", -3, "<"), ("≤ 1e-3", 1e-3, "<")),
        *(("~7", 7, None), ("= 7", 7, None), ("≈7", 7, None), ("7", 7, None), (7, 7, None)),
    ],
)
def test_a_sign_in_front_of_a_number_makes_it_a_bound_or_nothing(
    cell: Any, number: float, relation: str | None
) -> None:
    parsed = parse_measurement(cell)
    assert parsed == number
    assert getattr(parsed, "relation", None) == relation


@pytest.mark.parametrize("cell", [">", "<nan", "> high", "><3", ">1e99", "3>"])
def test_a_sign_without_a_number_is_no_label(cell: str) -> None:
    with pytest.raises(UserError, match="not a number"):
        parse_label(cell, problem_type="regression", row=0, column="y")


def test_bounds_stand_beside_the_labels_and_contradict_nothing(tmp_path: Path) -> None:
    rows = {"smiles": ["C", "C", "CC", "CCC"], "y": ["5", ">3", "<-1", "~2"]}
    loaded = load(tmp_path, rows)
    assert loaded.dropped == []
    assert loaded.dataset["labels"][:] == [[5], [3], [-1], [2]]
    assert loaded.dataset["label_bounds"][:] == [[0], [1], [-1], [0]]
    assert "2 of 4 labels are bounds" in loaded.notes[0]


def test_labels_without_bounds_have_no_such_column(tmp_path: Path) -> None:
    dataset = load(tmp_path, {"smiles": ["C", "CC"], "y": ["1", "2"]}).dataset
    assert not {"label_bounds", "weight"} & {*dataset.column_names}


def test_concentrations_become_pic50_and_their_bounds_turn_around(tmp_path: Path) -> None:
    rows = {"smiles": ["C", "CC", "CCC"], "y": ["1000", ">10000", "<1"]}
    options = {"label_transforms": ["pIC50"], "label_units": ["nM"]}
    dataset = load(tmp_path, rows, **options).dataset
    np.testing.assert_allclose(dataset["labels"][:], [[6], [5], [9]], rtol=1e-12)
    assert dataset["label_bounds"][:] == [[0], [-1], [1]]


def test_a_number_without_a_logarithm_is_a_missing_label_with_a_reason(tmp_path: Path) -> None:
    rows = {"smiles": ["C", "CC", "CCC"], "y": ["0", "10", "1"]}
    loaded = load(tmp_path, rows, label_transforms=["log10"])
    assert [row.row for row in loaded.dropped] == [0]
    assert "logarithm" in loaded.dropped[0].reason


def test_replicates_become_one_row_with_their_mean_or_median(tmp_path: Path) -> None:
    rows = {"smiles": ["CCO", "OCC", "OCC", "C", "C", "N", "N"]}
    rows["y"] = ["1", "2", "9", ">5", ">7", "<1", "3"]
    for rule, value in (("mean", 4.0), ("median", 2.0)):
        loaded = load(tmp_path, rows, replicates=rule)
        assert loaded.dataset["row"][:] == [0, 3, 5]
        assert loaded.dataset["labels"][:] == [[value], [7], [3]]
        assert loaded.dataset["label_bounds"][:] == [[0], [1], [0]]
        assert loaded.dropped[0].reason == f"merged into row 0, the {rule}"
        spread = math.sqrt(np.var([1, 2, 9]) * 3 / 2)
        assert any(f"standard deviation of {spread:.3g}" in note for note in loaded.notes)


def test_replicates_of_other_days_are_one_row_of_the_first_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = {"smiles": ["C", "CCO", "OCC"], "y": ["5", "2", "4"]}
    rows["day"] = ["2020-01-01", "2021-05-02", "2019-03-04"]
    path = tmp_path / "rows.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    fields: dict[str, Any] = {"label_columns": ["y"], "smiles_column": "smiles"}
    fields |= {"problem_type": "regression", "num_workers": 0}
    loaded = load_training_table(
        str(path),
        PROCESSOR,
        split_column=TimeColumn("day"),
        label_options=LabelOptions(replicates="median"),
        **fields,
    )
    assert loaded.dataset["row"][:] == [0, 2]
    assert loaded.dataset["labels"][:] == [[5], [3]]
    assert np.diff(loaded.dataset["time"][:])[0] < 0
    (merged,) = loaded.dropped
    assert (merged.row, merged.is_merged) == (1, True)
    # it is no row that was lost
    assert "Dropped" not in caplog.text


def test_replicates_of_concentrations_are_compared_and_told_as_logarithms(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chains = ["C" * size for size in range(1, 9)]
    rows: dict[str, list[Any]] = {"smiles": ["CCO", "OCC", *chains]}
    rows["IC50"] = [600, 1000, *(10**it for it in range(8))]
    fields: dict[str, Any] = {"label_columns": ["IC50"], "label_units": ["nM"]}
    fields["label_transforms"] = ["pIC50"]
    loaded = load(tmp_path, rows, replicates="median", **fields)
    spread = np.std(np.log10([600, 1000]), ddof=1)
    note = f"replicates of pIC50 of IC50 have a standard deviation of {spread:.3g} log units"
    assert note in loaded.notes
    # of the numbers themselves they do not differ by a tenth of the deviation
    assert not load(tmp_path, rows, label_columns=["IC50"]).dropped
    assert "--replicates" not in caplog.text
    rows["IC50"][0] = 60
    loaded = load(tmp_path, rows, **fields)
    assert "pIC50 of IC50 is 6.0 and 7.2" in loaded.dropped[0].reason
    assert "--replicates median" in caplog.text and "--conflict-tolerance" in caplog.text
    # the check counts what the command that it proposes would drop
    found = check_table(pd.DataFrame(rows)).findings
    (finding,) = (it for it in found if "contradict" in it.message)
    assert finding.rows == (0, 1)


def test_replicates_of_a_class_that_disagree_are_dropped_whatever_the_rule(tmp_path: Path) -> None:
    rows = {"smiles": ["C", "C", "CC", "CCC"], "y": [1, 2, 3, 4], "active": [0, 1, 1, 0]}
    options = {"label_columns": ["y", "active"], "class_columns": ["active"]}
    loaded = load(tmp_path, rows, replicates="mean", **options)
    assert [row.row for row in loaded.dropped] == [0, 1]
    assert "'active'" in loaded.dropped[0].reason or "active" in loaded.dropped[0].reason


def test_a_column_of_weights_is_read_and_a_bad_one_refused(tmp_path: Path) -> None:
    rows = {"smiles": ["C", "CC", "CCC"], "y": [1, 2, 3], "w": ["0.5", "", "2"]}
    loaded = load(tmp_path, rows, weight_column="w")
    assert loaded.dataset["weight"][:] == [0.5, 1.0, 2.0]
    for bad in ("0", "-1", "heavy"):
        with pytest.raises(UserError, match=r"Row 1 .*weight in 'w'.*above 0"):
            load(tmp_path, {**rows, "w": ["0.5", bad, "2"]}, weight_column="w")


def test_a_data_set_takes_the_same_options() -> None:
    table = Dataset.from_dict({"smiles": ["C", "CC"], "y": [">10", "100"], "w": [1.0, 2.0]})
    options: dict[str, Any] = {"label_transforms": ["log10"], "weight_column": "w"}
    rows = featurize_dataset(table, PROCESSOR, label_columns=["y"], **options)
    assert rows["labels"][:] == [[1.0], [2.0]]
    assert (rows["label_bounds"][:], rows["weight"][:]) == ([[1], [0]], [1.0, 2.0])
    with pytest.raises(TypeError, match="weigth_column"):
        featurize_dataset(table, PROCESSOR, label_columns=["y"], weigth_column="w")


@pytest.mark.parametrize(
    ("values", "unit", "proposed"),
    [
        ([1.0, 10.0, 100.0, 1e4, 1e6], "nM", "pIC50"),
        ([1.0, 10.0, 100.0, 1e4, 1e6], "mg/l", "log10"),
        ([1.0, 2.0, 3.0], "nM", "none"),
        ([-1.0, 10.0, 100.0, 1e6], "nM", "none"),
        ([], "nM", "none"),
    ],
)
def test_a_logarithm_is_proposed_for_positive_values_over_decades(
    values: list[float], unit: str, proposed: str
) -> None:
    assert propose_label_transform(values, unit) == proposed
    assert propose_label_transform([*values, math.nan], unit) == proposed


def test_a_bound_is_a_number() -> None:
    bound = Bound(3.0, relation=">")
    assert bound + 1 == 4.0 and np.array([bound]).dtype == np.float64
