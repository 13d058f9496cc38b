import logging
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from rmat_hf.data.splits.column_splits import TimeColumn
from rmat_hf.data.training_table import DroppedRow, LoadedData, load_training_table
from rmat_hf.errors import UserError


def load(path: Path, content: str, problem_type: str = "regression", **options: Any) -> LoadedData:
    path = path / "data.csv"
    path.write_text(content)
    options = {"smiles_column": "smiles", "label_columns": ["y"], **options}
    return load_training_table(path, problem_type=problem_type, **options)


def test_regression_rows_keep_position_and_text(tmp_path: Path) -> None:
    loaded = load(tmp_path, "smiles,y\nOCC,1.5\nbad,2\nc1ccccc1,-1\n")
    assert loaded.dataset.to_dict() == {
        "row": [0, 2],
        "smiles": ["OCC", "c1ccccc1"],
        "canonical_smiles": ["CCO", "c1ccccc1"],
        "labels": [[1.5], [-1.0]],
    }
    assert loaded.dataset.features["labels"] == datasets.List(datasets.Value("float64"))
    assert loaded.class_names is None


def test_several_labels_keep_missing_ones_as_nan(tmp_path: Path) -> None:
    loaded = load(tmp_path, "smiles,a,b\nC,1,\nN,,2\nO,3,4\nF,,\n", label_columns=["b", "a"])
    labels = np.array(loaded.dataset["labels"])
    np.testing.assert_array_equal(labels, [[math.nan, 1], [2, math.nan], [4, 3]])
    assert loaded.dropped == [DroppedRow(3, "F", "no label")]


def test_dropped_rows_have_reasons_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = "smiles,y\nC1CC,1\n,2\nCCO,3\nN,\n*C,4\n[H][H],5\nCCC,6\n" + "C" * 12 + ",7\n"
    loaded = load(tmp_path, content, max_atoms=10)
    assert loaded.dataset["row"][:] == [2, 6]
    assert [row.row for row in loaded.dropped] == [0, 1, 3, 4, 5, 7]
    assert [row.smiles for row in loaded.dropped][:3] == ["C1CC", "", "N"]
    assert all(row.reason for row in loaded.dropped)
    assert "ring" in loaded.dropped[0].reason
    assert "max_atoms=10" in loaded.dropped[-1].reason
    assert "Dropped 6 of 8 rows" in caplog.text


def test_every_row_is_kept_or_dropped(tmp_path: Path) -> None:
    cells = ["CCO,1", "OCC,9", "bad,1", "C,2", "C,2", "N,", "CCC,4", ",", "C#N,3"]
    content = "smiles,y\n" + "\n".join(cells) + "\n"
    loaded = load(tmp_path, content)
    rows = [*loaded.dataset["row"], *(row.row for row in loaded.dropped)]
    assert sorted(rows) == list(range(len(cells)))


def test_contradictory_duplicates_are_dropped_and_equal_ones_kept(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,0\nC,2\nOCC,10\nC,2\nN,5.0\nN,5.3\nO,0\n"
    loaded = load(tmp_path, content)
    assert loaded.dataset["row"][:] == [1, 3, 4, 5, 6]
    reason = "rows 0 and 2 hold the same molecule with contradictory labels: y is 0.0 and 10.0"
    assert loaded.dropped == [DroppedRow(0, "CCO", reason), DroppedRow(2, "OCC", reason)]


def test_conflict_tolerance_is_an_argument(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,0\nC,2\nOCC,10\nN,5.0\nN,5.3\nO,0\n"
    strict = load(tmp_path, content, conflict_tolerance=0.0)
    assert strict.dataset["row"][:] == [1, 5]
    lenient = load(tmp_path, content, conflict_tolerance=math.inf)
    assert (len(lenient.dataset), lenient.dropped) == (6, [])


def test_class_labels_of_one_molecule_must_agree(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,0\nOCC,1\nC,0\nC,0\nN,1\n"
    loaded = load(tmp_path, content, "multi_label_classification", conflict_tolerance=math.inf)
    assert loaded.dataset["row"][:] == [2, 3, 4]


def test_words_become_sorted_classes(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,weak\nC,none\nN,\nO,strong\nCC,none\n"
    loaded = load(tmp_path, content, "single_label_classification")
    assert loaded.class_names == ["none", "strong", "weak"]
    assert loaded.dataset["labels"][:] == [[2.0], [0.0], [1.0], [0.0]]


def test_integer_classes_may_be_written_as_floats(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,10\nC,2.0\nN,2\n"
    loaded = load(tmp_path, content, "single_label_classification")
    assert loaded.class_names == ["2", "10"]
    assert loaded.dataset["labels"][:] == [[1.0], [0.0], [0.0]]


def test_class_without_a_usable_row_is_no_class(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,a\nOCC,rare\nC,a\nN,b\nbad,c\n"
    loaded = load(tmp_path, content, "single_label_classification")
    assert loaded.class_names == ["a", "b"]
    assert "y is a and rare" in loaded.dropped[0].reason


@pytest.mark.parametrize(
    ("problem_type", "cell", "words"),
    [
        ("regression", "high", "is 'high', not a number"),
        ("multi_label_classification", "yes", "is 'yes', neither 0 nor 1"),
        ("multi_label_classification", "0.3", "is '0.3', neither 0 nor 1"),
        ("single_label_classification", "0.3", "is '0.3', neither an integer nor a word"),
    ],
)
def test_label_of_the_wrong_kind_is_an_error(
    tmp_path: Path, problem_type: str, cell: str, words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(tmp_path, f"smiles,y\nC,1\nN,0\nbad,{cell}\n", problem_type)
    assert str(caught.value).startswith("Row 2 (counted from 0): label 'y'")
    assert "Fix the cell" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("smiles,y\n", "has no usable row. Add labeled molecules"),
        ("smiles,y\nbad,1\n", r"has no usable row. Row 0: .*bad"),
        ("smiles,y\nC,\n", r"Row 0: no label"),
        ("smiles,y\nC,1\nN,1\n", r"label 'y' is 1.0 in every usable row: nothing to learn"),
    ],
)
def test_data_without_anything_to_learn_is_an_error(
    tmp_path: Path, content: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, content)


def test_label_without_a_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label 'z' has no usable value"):
        load(tmp_path, "smiles,y,z\nC,1,\nN,2,\n", label_columns=["y", "z"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"smiles_column": "SMILES"}, "no column 'SMILES'. Its columns are: smiles, y, fold"),
        ({"label_columns": ["y", "z"]}, "no column 'z'"),
        ({"split_column": "split_0"}, "no column 'split_0'"),
        ({"split_column": TimeColumn("day")}, "no column 'day'"),
        ({"label_columns": ["smiles"]}, "no column twice"),
        ({"label_columns": ["y", "y"]}, "no column twice"),
        ({"label_columns": []}, "at least one label"),
        (
            {"label_columns": ["y", "fold"], "problem_type": "single_label_classification"},
            "takes one label column, not y, fold",
        ),
        ({"revision": "main"}, "is not on the Hub"),
    ],
)
def test_impossible_choice_is_an_error(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, "smiles,y,fold\nC,1,train\nN,2,test\n", **options)


def test_split_column_is_carried_over(tmp_path: Path) -> None:
    content = "smiles,y,fold\nC,1,train\nN,2,test\nbad,2,nonsense\nO,3,valid\n"
    loaded = load(tmp_path, content, split_column="fold")
    assert loaded.dataset["split"][:] == ["train", "test", "valid"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["train", "validation", "test"], "Row 1 .*'fold' holds 'validation'.*train, valid, test"),
        (["train", "", "test"], "Row 1 .*'fold' holds ''"),
        (["train", "valid", "train"], "2, 1 and 0 rows: column 'fold'"),
        (["valid", "valid", "test"], "0, 2 and 1 rows: column 'fold'"),
    ],
)
def test_unusable_split_column_is_an_error(tmp_path: Path, cells: list[str], words: str) -> None:
    rows = [
        f"{smiles},{i},{cell}" for i, (smiles, cell) in enumerate(zip("CNO", cells, strict=True))
    ]
    content = "\n".join(["smiles,y,fold", *rows]) + "\n"
    with pytest.raises(UserError, match=words):
        load(tmp_path, content, split_column="fold")


def test_time_column_is_carried_over_as_numbers(tmp_path: Path) -> None:
    content = "smiles,y,day\nC,1,1970-01-03\nbad,2,\nN,2,1970-01-01T12:00\n"
    loaded = load(tmp_path, content, split_column=TimeColumn("day"))
    assert loaded.dataset["time"][:] == [172800.0, 43200.0]
    assert "split" not in loaded.dataset.column_names


@pytest.mark.parametrize(
    ("cell", "words"),
    [("", "Row 2 .*'day' holds '', which is no time"), ("May", "Row 2 .*'May', neither a number")],
)
def test_row_without_a_time_is_an_error(tmp_path: Path, cell: str, words: str) -> None:
    content = f"smiles,y,day\nC,1,2001\nbad,2,\nN,2,{cell}\n"
    with pytest.raises(UserError, match=words):
        load(tmp_path, content, split_column=TimeColumn("day"))


def test_molecule_in_two_parts_of_the_split_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = "smiles,y,fold\nC,1,train\nC,1,test\nN,2,train\n"
    with caplog.at_level(logging.WARNING):
        load(tmp_path, content, split_column="fold")
    assert "1 molecules stand in more than one part" in caplog.text


def test_sdf_structures_come_with_their_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "mols.sdf"
    mols = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in ("CCO", "CCN", "C")]
    with Chem.SDWriter(str(path)) as writer:
        for i, mol in enumerate(mols):
            rdDistGeom.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("y", str(i) if i < 2 else "")
            writer.write(mol)
    loaded = load_training_table(
        path, smiles_column="smiles", label_columns=["y"], problem_type="regression"
    )
    assert loaded.dropped == [DroppedRow(2, "C", "no label")]
    assert loaded.dataset["canonical_smiles"][:] == ["CCO", "CCN"]
    for binary, mol in zip(loaded.dataset["mol"], mols, strict=False):
        read = Chem.Mol(binary)
        assert Chem.MolToSmiles(read) == Chem.MolToSmiles(mol)
        np.testing.assert_allclose(
            read.GetConformer().GetPositions(), mol.GetConformer().GetPositions(), atol=1e-4
        )


def test_bundled_data_set_loads_with_its_split() -> None:
    loaded = load_training_table(
        "freesolv",
        smiles_column="smiles",
        label_columns=["hydration_free_energy"],
        problem_type="regression",
        split_column="split_0",
    )
    assert (len(loaded.dataset), loaded.dropped) == (642, [])
    assert loaded.dataset["split"][:].count("train") == 513


def test_benchmark_with_salts_and_contradictions_loads(shared_dir: Path) -> None:
    loaded = load_training_table(
        shared_dir / "data" / "mat_benchmark" / "bbbp.csv",
        smiles_column="smiles",
        label_columns=["y"],
        problem_type="single_label_classification",
        split_column="split_0",
    )
    assert loaded.class_names == ["0", "1"]
    assert len(loaded.dataset) + len(loaded.dropped) == 2039
    assert all("contradictory" in row.reason for row in loaded.dropped)
    assert len({row.reason for row in loaded.dropped}) == 10
