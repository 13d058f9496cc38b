import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, List, Value, concatenate_datasets
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from rmat_hf.data import training_table
from rmat_hf.data.featurization import find_processor
from rmat_hf.data.splits.column_splits import TimeColumn
from rmat_hf.data.stored_features import (
    build_features_column,
    expand_features,
    pack_dataset,
    pack_features,
    unpack_features,
)
from rmat_hf.data.training_table import (
    DroppedRow,
    LoadedData,
    featurize_dataset,
    load_training_table,
)
from rmat_hf.errors import UserError
from rmat_hf.model import features_rmat
from rmat_hf.model.processing_rmat import RMatProcessor

PROCESSOR = RMatProcessor(geometry="bounds")


def load(path: Path, content: str, problem_type: str = "regression", **options: Any) -> LoadedData:
    path = path / "data.csv"
    path.write_text(content)
    options = {"smiles_column": "smiles", "label_columns": ["y"], **options}
    processor = options.pop("processor", PROCESSOR)
    return load_training_table(path, processor, problem_type=problem_type, **options)


def test_rows_keep_position_and_text_and_have_features(tmp_path: Path) -> None:
    loaded = load(tmp_path, "smiles,y\nOCC,1.5\nbad,2\nc1ccccc1,-1\n")
    packed = [pack_features(PROCESSOR.featurize_compactly(text)) for text in ("CCO", "c1ccccc1")]
    assert loaded.dataset.to_dict() == {
        "row": [0, 2],
        "smiles": ["OCC", "c1ccccc1"],
        "canonical_smiles": ["CCO", "c1ccccc1"],
        "features": build_features_column(packed).to_pylist(),
        "num_nodes": [4, 7],
        "geometry_source": ["bounds", "bounds"],
        "processor": [0, 0],
        "labels": [[1.5], [-1.0]],
    }
    assert loaded.dataset.features["labels"] == List(Value("float64"))
    assert loaded.class_names is None


def test_a_canonical_smiles_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(smiles: str) -> Chem.Mol:
        parsed.append(smiles)
        return Chem.MolFromSmiles(smiles)

    monkeypatch.setattr(
        features_rmat, "Chem", SimpleNamespace(**{**vars(Chem), "MolFromSmiles": parse})
    )
    load(tmp_path, "smiles,y\nCCO,1\nC,\nN,2\nN,2\nF,\n")
    assert sorted(parsed) == ["CCO", "N"]


def test_several_labels_keep_missing_ones_as_nan(tmp_path: Path) -> None:
    loaded = load(tmp_path, "smiles,a,b\nC,1,\nN,,2\nO,3,4\nF,,\n", label_columns=["b", "a"])
    labels = np.array(loaded.dataset["labels"])
    np.testing.assert_array_equal(labels, [[math.nan, 1], [2, math.nan], [4, 3]])
    assert loaded.dropped == [DroppedRow(3, "F", "no label")]


def test_dropped_rows_have_reasons_and_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = "smiles,y\nC1CC,1\n,2\nCCO,3\nN,\n*C,4\n[H][H],5\nCCC,6\n" + "C" * 12 + ",7\n"
    processor = RMatProcessor(geometry="bounds", max_atoms=10)
    loaded = load(tmp_path, content, processor=processor)
    assert loaded.dataset["row"][:] == [2, 6]
    assert [row.row for row in loaded.dropped] == [0, 1, 3, 4, 5, 7]
    assert [row.smiles for row in loaded.dropped][:3] == ["C1CC", "", "N"]
    assert all(row.reason for row in loaded.dropped)
    assert "ring" in loaded.dropped[0].reason
    assert "max_atoms=10" in loaded.dropped[5].reason
    # each kind with its first row and what is wrong there
    assert "Dropped 6 of 8 rows" in caplog.text and "row 0: " in caplog.text
    assert "unclosed ring for input: 'C1CC'" in caplog.text
    with caplog.at_level(logging.WARNING):
        rows = Dataset.from_dict({"smiles": ["CCO", "CCN", "CCF"], "y": ["1", "2", "?"]})
        featurize_dataset(rows, PROCESSOR, label_columns=["y"])
    assert "1 of 3 rows of the data set: row 2: no label" in caplog.text


def test_a_cell_that_is_no_label_costs_itself_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = "smiles,a,b\nC,1,2\nN,12 mg?,3\nO,see note,\nF,0,\n"
    loaded = load(tmp_path, content, label_columns=["a", "b"])
    labels = np.array(loaded.dataset["labels"])
    np.testing.assert_array_equal(labels, [[1, 2], [math.nan, 3], [0, math.nan]])
    assert loaded.dropped == [DroppedRow(2, "O", "label 'a' is 'see note', not a number")]
    assert "1 cells count as missing labels. Row 1" in caplog.text and "'12 mg?'" in caplog.text


def test_contradictory_duplicates_are_dropped_and_equal_ones_kept(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,0\nC,2\nOCC,10\nC,2\nN,5.0\nN,5.3\nO,0\n"
    loaded = load(tmp_path, content)
    assert loaded.dataset["row"][:] == [1, 3, 4, 5, 6]
    reason = "rows 0 and 2 hold the same molecule with contradictory labels: y is 0.0 and 10.0"
    assert loaded.dropped == [DroppedRow(0, "CCO", reason), DroppedRow(2, "OCC", reason)]
    assert load(tmp_path, content, conflict_tolerance=0.0).dataset["row"][:] == [1, 3, 6]
    assert load(tmp_path, content, conflict_tolerance=math.inf).dropped == []


def test_contradictory_molecule_without_a_geometry_has_the_contradiction_as_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # four trans double bonds in one small ring cannot be embedded
    impossible = "C1/C=C/C=C/C=C/C=C/1"
    content = f"smiles,y\n{impossible},0\nCCO,1\n{impossible},9\nCCN,2\n"
    options = {"max_conformer_attempts": 1}
    loaded = load(tmp_path, content, processor=RMatProcessor(**options))
    assert [row.row for row in loaded.dropped] == [0, 2]
    assert "rows 0 and 2 hold the same molecule" in loaded.dropped[0].reason
    content = content.replace(",9", ",0")
    loaded = load(tmp_path, content, processor=RMatProcessor(**options))
    assert [row.row for row in loaded.dropped] == [0, 2]
    assert "same molecule" not in loaded.dropped[0].reason
    processor = RMatProcessor(on_conformer_failure="bounds", **options)
    sources = load(tmp_path, content, processor=processor).dataset["geometry_source"]
    assert sources[1] == "etkdg_v3" and sources[0].startswith("bounds (step down")
    assert "2 molecules stepped down" in caplog.text


@pytest.mark.parametrize(
    ("cells", "names", "labels"),
    [
        (["weak", "none", "", "strong", "none"], ["none", "strong", "weak"], [2, 0, 1, 0]),
        (["10", "2.0", "2"], ["2", "10"], [1, 0, 0]),
    ],
)
def test_words_and_integers_become_sorted_classes(
    tmp_path: Path, cells: list[str], names: list[str], labels: list[int]
) -> None:
    rows = [f"{'C' * i},{cell}\n" for i, cell in enumerate(cells, start=1)]
    loaded = load(tmp_path, "smiles,y\n" + "".join(rows), "single_label_classification")
    assert loaded.class_names == names
    assert loaded.dataset["labels"][:] == [[label] for label in labels]


def test_class_without_a_usable_row_is_no_class(tmp_path: Path) -> None:
    content = "smiles,y\nCCO,a\nOCC,rare\nC,a\nN,b\nbad,c\n"
    loaded = load(tmp_path, content, "single_label_classification")
    assert loaded.class_names == ["a", "b"]
    assert "y is a and rare" in loaded.dropped[0].reason


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("smiles,y\n", "label 'y' has no usable value.* Add labeled molecules"),
        ("smiles,y\nbad,1\n", r"label 'y' has no usable value.* Row 0: .*bad"),
        ("smiles,y\nC,\n", r"Row 0: no label"),
        ("smiles,y\nC,>1\nN,>1\n", r"label 'y' has bounds alone.* a column of 0 and 1"),
        ("smiles,y\nC,>1\nN,<2\nO,\n", r"label 'y' has bounds alone"),
        ("smiles,y\nC,1\nN,1\n", r"label 'y' is 1.0 in every usable row: nothing to learn"),
        (
            "smiles,y\nC,high\nN,high\n",
            r"no usable value.* Row 0: label 'y' is 'high', not a number",
        ),
    ],
)
def test_data_without_anything_to_learn_is_an_error(
    tmp_path: Path, content: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, content)


def test_words_of_yes_and_no_are_learned_and_named_and_others_have_a_way_out(
    tmp_path: Path,
) -> None:
    options = {"problem_type": "multi_label_classification"}
    loaded = load(tmp_path, "smiles,y\nC,Toxic\nN,non-toxic\nO,\n", **options)
    assert np.array(loaded.dataset["labels"]).tolist() == [[1.0], [0.0]]
    assert loaded.notes == ["In y, 'Toxic' is 1, 'non-toxic' is 0"]
    with pytest.raises(UserError, match=r"In 'y' replace 'high' by 1 and 'low' by 0") as found:
        load(tmp_path, "smiles,y\nC,high\nN,low\n", **options)
    assert "--problem-type" not in str(found.value)


def test_words_of_yes_and_no_beside_numbers_are_told_their_flag(tmp_path: Path) -> None:
    content = "smiles,the call,y\nC,active,1.5\nN,inactive,2.5\n"
    with pytest.raises(UserError, match=r"--class-columns 'the call'\.") as found:
        load(tmp_path, content, label_columns=["the call", "y"])
    assert "drop that label" not in str(found.value)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_numbers_that_are_no_classes_are_not_told_the_flag_that_was_given(
    kind: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="numbers are learned without --problem-type") as found:
        load(tmp_path, "smiles,y\nC,-10\nN,-11.01\nO,3.5\n", problem_type=kind)
    assert "--problem-type classification" not in str(found.value)


def test_words_that_say_yes_to_different_things_are_not_learned_as_yes(tmp_path: Path) -> None:
    content = "smiles,y\nC,inhibitor\nN,substrate\nO,non-inhibitor\n"
    with pytest.raises(UserError, match=r"'y' write 1 or 0 .*'substrate'.* single_label_class"):
        load(tmp_path, content, problem_type="multi_label_classification")
    loaded = load(tmp_path, content, problem_type="single_label_classification")
    assert loaded.class_names == ["inhibitor", "non-inhibitor", "substrate"]


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
            "takes one label column",
        ),
        ({"revision": "main"}, "is not on the Hub"),
    ],
)
def test_impossible_choice_is_an_error(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(tmp_path, "smiles,y,fold\nC,1,train\nN,2,test\n", **options)


def test_split_and_time_columns_are_carried_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = "smiles,y,fold,day\nC,1,train,1970-01-03\nN,2,test,1970-01-01T12:00\nbad,2,x,\n"
    content += "O,3,valid,1970-01-01\nC,1,test,1970-01-02\n"
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path, content, split_column="fold")
    assert loaded.dataset["split"][:] == ["train", "test", "valid", "test"]
    assert "1 molecules stand in more than one part" in caplog.text
    loaded = load(tmp_path, content, split_column=TimeColumn("day"))
    assert loaded.dataset["time"][:] == [172800.0, 43200.0, 0.0, 86400.0]
    assert "split" not in loaded.dataset.column_names


@pytest.mark.parametrize(("column", "cell"), [("fold", "train"), (TimeColumn("fold"), "2001")])
def test_cell_that_is_no_part_or_time_costs_its_row(
    tmp_path: Path, column: str, cell: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "test" if cell == "train" else "2002"
    rows = f"bad,1,\nC,2,{cell}\nN,3,May\nO,4,{other}\nF,5,{cell}\n"
    loaded = load(tmp_path, f"smiles,y,fold\n{rows}", split_column=column)
    assert loaded.dataset["row"][:] == [1, 3, 4]
    assert "'fold' holds 'May'" in loaded.dropped[1].reason
    caplog.clear()
    with pytest.raises(UserError, match=r"Row 1 .*'fold' holds 'May'"):
        load(tmp_path, "smiles,y,fold\nbad,1,\nC,2,May\nN,3,June\n", split_column=column)
    # which is found before molecules are looked at
    assert "Dropped" not in caplog.text


def test_sdf_structures_come_with_their_coordinates(tmp_path: Path) -> None:
    mols = [Chem.MolFromSmiles(smiles) for smiles in ("CCO", "CCN", "C")]
    with Chem.SDWriter(str(tmp_path / "mols.sdf")) as writer:
        for i, mol in enumerate(mols):
            rdDistGeom.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("y", str(i) if i < 2 else "")
            writer.write(mol)
    options = {"smiles_column": "smiles", "label_columns": ["y"], "problem_type": "regression"}
    loaded = load_training_table(tmp_path / "mols.sdf", RMatProcessor(geometry="given"), **options)
    assert loaded.dropped == [DroppedRow(2, "C", "no label")]
    assert loaded.dataset["canonical_smiles"][:] == ["CCO", "CCN"]
    packed = pack_dataset(loaded.dataset)
    for row, features, mol in zip(loaded.dataset, packed, mols[:2], strict=True):
        expected = Chem.Get3DDistanceMatrix(mol)
        distances = expand_features([features])["interatomic_distances"][0, 1:, 1:]
        # a mol block has four decimals
        np.testing.assert_allclose(distances, expected, rtol=0, atol=3e-4)
        found = Chem.Get3DDistanceMatrix(Chem.Mol(row["mol"]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-4)


def test_a_data_set_keeps_its_columns_beside_features_and_labels(processor: RMatProcessor) -> None:
    table = Dataset.from_dict(
        {
            "text": ["CCO", "C1", "CCN", "CC", "CCC"],
            "y": [1.0, 2.0, None, 4.0, 5.0],
            "id": [*"abcde"],
        }
    )
    rows = featurize_dataset(table, processor, smiles_column="text", label_columns=["y"])
    assert rows["id"][:] == ["a", "d", "e"] and rows["row"][:] == [0, 3, 4]
    assert rows["labels"][:] == [[1.0], [4.0], [5.0]]
    assert unpack_features(pack_dataset(rows)[0]).atom_codes.shape == (3,)
    unlabeled = featurize_dataset(table, processor, smiles_column="text")
    assert unlabeled["id"][:] == ["a", "c", "d", "e"]
    assert "labels" not in unlabeled.column_names
    with pytest.raises(ValueError, match="no column 'z'"):
        featurize_dataset(table, processor, smiles_column="text", label_columns=["z"])


def test_the_classes_of_a_data_set_are_in_the_type_of_its_labels(processor: RMatProcessor) -> None:
    table = Dataset.from_dict({"smiles": ["CC", "CO", "CN"], "kind": ["oil", "water", "oil"]})
    options = {"label_columns": ["kind"], "problem_type": "single_label_classification"}
    rows = featurize_dataset(table, processor, **options)
    assert rows.features["labels"].feature.names == ["oil", "water"]
    assert rows["labels"][:] == [[0], [1], [0]]


# Features that are there already


@pytest.fixture
def featurized() -> Dataset:
    smiles = ["OCC", "c1ccccc1", "CCN", "CC", "C[O-].[Na+]"]
    table = Dataset.from_dict({"smiles": smiles, "y": [1.0, None, 3.0, 4.0, -2.5]})
    return featurize_dataset(table, PROCESSOR)


def save(rows: Dataset, folder: Path, *, way: str) -> Any:
    """Return the rows as somebody else gets them."""
    if way == "folder":
        rows.save_to_disk(str(folder / "rows"))
        return folder / "rows"
    if way == "parquet":
        rows.to_parquet(folder / "rows.parquet")
        return folder / "rows.parquet"
    return rows.to_iterable_dataset(num_shards=2) if way == "stream" else rows


@pytest.mark.parametrize("way", ["memory", "stream", "folder", "parquet"])
def test_features_that_a_data_set_has_are_not_computed_again(
    tmp_path: Path, featurized: Dataset, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(f"{row['smiles']},{row['y'] or ''}" for row in featurized)
    expected = load(tmp_path, f"smiles,y\n{text}\n")
    monkeypatch.setattr(training_table, "featurize_molecules", None)
    source, options = save(featurized, tmp_path, way=way), {"smiles_column": "smiles"}
    # a limit decides who has features, and not which
    other = RMatProcessor(**{**PROCESSOR.to_dict(), "max_atoms": 77})
    loaded = load_training_table(
        source, other, label_columns=["y"], problem_type="regression", **options
    )
    assert loaded.dataset.to_dict() == expected.dataset.to_dict()
    assert loaded.dropped == expected.dropped == [DroppedRow(1, "c1ccccc1", "no label")]


def test_rows_are_filtered_and_keep_their_processor(featurized: Dataset) -> None:
    small = featurized.filter(lambda row: row["num_nodes"] < 5)
    long = featurized.filter(lambda row: max(row["features"]["distances"]) > 100)
    assert small["smiles"][:] == ["OCC", "CCN", "CC", "C[O-].[Na+]"]
    assert long["smiles"][:] == ["C[O-].[Na+]"]
    assert find_processor(small).to_dict() == PROCESSOR.to_dict()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"bond_ends": [1, 99]}, "bonds of other atoms"),
        ({"bond_types": [1, 250]}, "unknown type"),
        ({"distances": [1.5, 2.4]}, "no finite geometry"),
        ({"distances": [1.5, 2.4, math.nan]}, "no finite geometry"),
        ({"atom_codes": [7] * 300, "distances": None, "coordinates": [0.0] * 900}, "300 atoms"),
    ],
)
def test_features_that_are_no_molecule_are_dropped_rows(
    featurized: Dataset, damage: dict[str, Any], reason: str
) -> None:
    first = [{**featurized[0]["features"], **damage}, *featurized["features"][1:]]
    kind = featurized.features["features"]
    damaged = featurized.remove_columns("features").add_column("features", first, feature=kind)
    options = {"smiles_column": "smiles", "label_columns": ["y"], "problem_type": "regression"}
    dropped = load_training_table(damaged, PROCESSOR, **options).dropped
    assert [row.row for row in dropped] == [0, 1]
    assert reason in dropped[0].reason


def test_features_of_another_processor_are_refused_in_one_line(featurized: Dataset) -> None:
    options = {"smiles_column": "smiles", "label_columns": ["y"], "problem_type": "regression"}
    with pytest.raises(UserError, match=r"^[^\n]*geometry is \"bounds\" in one and \"2d\"[^\n]*$"):
        load_training_table(featurized, RMatProcessor(geometry="2d"), **options)
    with pytest.raises(UserError, match="does not say which processor"):
        load_training_table(featurized.remove_columns("processor"), PROCESSOR, **options)
    with pytest.raises(ValueError, match="align"):
        concatenate_datasets(
            [featurized, featurize_dataset(featurized, RMatProcessor(geometry="2d"))]
        )


# Labels of atoms


def test_columns_of_lists_become_labels_of_atoms_in_the_order_of_the_features() -> None:
    smiles = ["OC(=O)c1ccccc1", "C1CC", "ClCCO", "CO"]
    atoms = [
        list(Chem.MolFromSmiles(text, sanitize=False).GetAtoms()) if text != "C1CC" else []
        for text in smiles
    ]
    numbers = [[float(atom.GetAtomicNum()) for atom in of_molecule] for of_molecule in atoms]
    positions: list[list[float | None] | None] = [[float(it.GetIdx()) for it in a] for a in atoms]
    positions[2] = None
    table = Dataset.from_dict({"smiles": smiles, "Z": numbers, "position": positions})
    rows = featurize_dataset(table, PROCESSOR, label_columns=["Z", "position"])
    assert rows["row"][:] == [0, 2, 3]
    for row in rows:
        labels = np.array(row["labels"], dtype=float)
        canonical = Chem.MolFromSmiles(row["canonical_smiles"])
        assert labels[:, 0].tolist() == [atom.GetAtomicNum() for atom in canonical.GetAtoms()]
        assert np.isnan(labels[:, 1]).all() == (row["row"] == 2)
    # benzoic acid is written from its other end
    assert [it[1] for it in rows[0]["labels"]] != sorted(it[1] for it in rows[0]["labels"])


def test_labels_that_are_not_one_for_each_atom_are_refused_with_their_row() -> None:
    table = Dataset.from_dict({"smiles": ["CO", "CCO"], "charge": [[0.1, 0.2], [0.3]]})
    with pytest.raises(UserError, match=r"Row 1 .*'charge' does not fit 'CCO'.*3 heavy atoms"):
        featurize_dataset(table, PROCESSOR, label_columns=["charge"])


def test_lists_as_labels_of_molecules_say_which_level_they_are_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable value.*not a number.*--level atom"):
        load(tmp_path, 'smiles,y\nCO,"[0.1, 0.2]"\nCCO,"[0.3, 0.1, 0.2]"\n')
