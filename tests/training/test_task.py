import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor, rdDistGeom
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments

from rmat_hf.data.training_table import DroppedRow
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import list_molecule_descriptor_names
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.task import (
    PARTS,
    FinetuningTask,
    build_finetuning_task,
)


def build(tmp_path: Path, columns: Any = None, **options: Any) -> FinetuningTask:
    return build_finetuning_task(build_tiny_arguments(tmp_path, columns, **options))


def list_rows(task: FinetuningTask) -> dict[str, list[int]]:
    """The positions in the table of every part's rows."""
    return {part: task.select(part)["row"][:] for part in PARTS}


def list_all_rows(task: FinetuningTask) -> list[int]:
    return sorted(row for rows in list_rows(task).values() for row in rows)


@pytest.mark.parametrize("split", ["random", "scaffold", "scaffold_balanced", "cluster"])
def test_every_row_stands_in_exactly_one_part(tmp_path: Path, split: str) -> None:
    task = build(tmp_path, split=split)
    assert list_all_rows(task) == list(range(12))
    assert [len(rows) for rows in list_rows(task).values()] == [10, 1, 1]
    assert task.dropped == []


def test_dropped_rows_have_reasons_and_stand_in_no_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smiles = list(TABLE_SMILES)
    smiles[1] = "OCC"  # the molecule of row 0 with another label
    smiles[3] = "C1CC"
    labels: list[float | None] = [0.0, 50.0, *range(2, 12)]
    labels[6] = None
    with caplog.at_level(logging.WARNING):
        task = build(tmp_path, {"smiles": smiles, "y": labels}, split="random")
    assert [row.row for row in task.dropped] == [0, 1, 3, 6]
    assert [row.smiles for row in task.dropped] == [smiles[row] for row in (0, 1, 3, 6)]
    assert "contradictory labels: y is 0.0 and 50.0" in task.dropped[0].reason
    assert task.dropped[1].reason == task.dropped[0].reason
    assert "ring" in task.dropped[2].reason
    assert task.dropped[3].reason == "no label"
    assert list_all_rows(task) == [2, 4, 5, 7, 8, 9, 10, 11]
    assert "Dropped 4 of 12 rows" in caplog.text


def write_sdf(path: Path, *, flat_row: int, flat_part: str) -> FinetuningArguments:
    """Ten molecules with 3D coordinates, one that is drawn flat, one that is no molecule."""
    with Chem.SDWriter(str(path / "table.sdf")) as writer:
        writer.SetKekulize(False)
        for row, smiles in enumerate(TABLE_SMILES):
            mol = Chem.MolFromSmiles(smiles)
            part = TABLE_PARTS[row]
            if row == flat_row:
                rdDepictor.Compute2DCoords(mol)
                part = flat_part
            elif row == 5:
                mol = Chem.MolFromSmiles("C[N](C)(C)C", sanitize=False)
            else:
                mol = Chem.AddHs(mol)
                rdDistGeom.EmbedMolecule(mol, randomSeed=7)
            mol.SetProp("y", str(float(row)))
            mol.SetProp("part", part)
            writer.write(mol)
    return FinetuningArguments(
        dataset=str(path / "table.sdf"),
        label_columns=["y"],
        output_dir=str(path / "run"),
        split="column",
        split_column="part",
        geometry="given",
    )


def test_rows_without_the_given_conformer_are_dropped_in_table_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        task = build_finetuning_task(write_sdf(tmp_path, flat_row=3, flat_part="train"))
    assert "Dropped 2 of 12 rows" in caplog.text and "see dropped_rows.csv" in caplog.text
    assert [row.row for row in task.dropped] == [3, 5]
    assert task.dropped[0] == DroppedRow(
        3, "CC(=O)O", "it brings no 3D conformer, which geometry='given' needs"
    )
    assert list_rows(task) == {"train": [0, 1, 2, 4, 6, 7], "valid": [8, 9], "test": [10, 11]}
    assert set(task.dataset["geometry_source"]) == {"given"}


def test_part_that_loses_all_rows_without_a_conformer_counts_as_empty(tmp_path: Path) -> None:
    arguments = write_sdf(tmp_path, flat_row=10, flat_part="valid")
    records = (tmp_path / "table.sdf").read_text().split("$$$$\n")
    # without the two other rows of valid, the flat one is alone there
    kept = [record for row, record in enumerate(records) if row not in (8, 9)]
    (tmp_path / "table.sdf").write_text("$$$$\n".join(kept))
    with pytest.raises(UserError, match="valid part is empty"):
        build_finetuning_task(arguments)


def test_empty_valid_part_is_an_error_that_says_why(tmp_path: Path) -> None:
    parts = ["train"] * 10 + ["test"] * 2
    with pytest.raises(UserError, match="valid part is empty, and the best checkpoint is chosen"):
        build(tmp_path, {"y": range(12), "part": parts})


def test_labels_keep_missing_values_as_nan_in_the_order_of_the_flags(tmp_path: Path) -> None:
    a: list[float | None] = [float(row) for row in range(12)]
    b: list[float | None] = [10.0 * row for row in range(12)]
    a[2], b[8] = None, None
    task = build(tmp_path, {"a": a, "b": b, "part": TABLE_PARTS}, label_columns=["b", "a"])
    train = [[10.0 * row, float(row)] for row in range(8)]
    train[2][1] = np.nan
    np.testing.assert_array_equal(task.labels("train"), train)
    np.testing.assert_array_equal(task.labels("valid"), [[np.nan, 8.0], [90.0, 9.0]])
    np.testing.assert_array_equal(task.labels("test"), [[100.0, 10.0], [110.0, 11.0]])


def test_classes_of_a_single_label_become_indices_of_their_names(tmp_path: Path) -> None:
    words = ["low", "high", "medium"] * 4
    task = build(
        tmp_path,
        {"y": words, "part": TABLE_PARTS},
        problem_type="single_label_classification",
    )
    assert task.class_names == ["high", "low", "medium"]
    np.testing.assert_array_equal(task.labels("valid"), [[2.0], [1.0]])


def test_yes_no_labels_in_a_regression_are_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, {"y": [0, 1] * 6})
    assert "pass --problem-type multi_label_classification" in caplog.text


def test_scratch_takes_geometry_and_descriptors_from_the_flags(tmp_path: Path) -> None:
    task = build(
        tmp_path, geometry="2d", on_conformer_failure="bounds", molecule_descriptors="rdkit_2d"
    )
    assert task.processor.geometry == "2d"
    assert task.processor.on_conformer_failure == "bounds"
    assert task.processor.molecule_descriptors == list_molecule_descriptor_names()
    assert set(task.dataset["geometry_source"]) == {"2d"}


def test_geometry_flag_wins_over_the_saved_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    task = build(tmp_path, model=str(tiny_model_folder), geometry="2d")
    assert task.processor.geometry == "2d"
    assert set(task.dataset["geometry_source"]) == {"2d"}


def test_second_task_finds_its_features_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build(tmp_path).dataset
    cached = build(tmp_path, feature_cache=str(tmp_path / "cache")).dataset
    monkeypatch.setattr(RMatProcessor, "featurize_compactly", None)
    again = build(tmp_path, feature_cache=str(tmp_path / "cache")).dataset
    assert expected.to_dict() == cached.to_dict() == again.to_dict()
