import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from tiny import TINY_SMILES

from rmat_hf.data.featurization import featurize_dataset, pack_features, unpack_features
from rmat_hf.data.loading import DroppedRow, load_training_table
from rmat_hf.processing_rmat import RMatProcessor

DESCRIPTORS = ["MolWt", "TPSA", "MaxPartialCharge"]


def build_dataset(smiles: list[str]) -> datasets.Dataset:
    """Rows as `load_training_table` gives them; `row` is not the position."""
    rows = [10 + 3 * position for position in range(len(smiles))]
    labels = [[float(row)] for row in rows]
    return datasets.Dataset.from_dict({"row": rows, "smiles": smiles, "labels": labels})


def assert_same_features(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        assert ours[name].shape == array.shape, name
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
@pytest.mark.parametrize("smiles", TINY_SMILES)
def test_unpacked_features_are_the_packed_ones_bit_for_bit(
    smiles: str, descriptors: list[str] | None
) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    features, _ = processor.featurize(smiles)
    assert_same_features(unpack_features(pack_features(features)), features)
    assert ("molecule_descriptors" in features) == (descriptors is not None)


def test_undefined_descriptor_stays_nan(processor: RMatProcessor) -> None:
    features, _ = processor.featurize("CCO")
    features["molecule_descriptors"] = np.array([np.nan, 1.5, -np.inf], dtype=np.float32)
    unpacked = unpack_features(pack_features(features))["molecule_descriptors"]
    np.testing.assert_array_equal(unpacked, features["molecule_descriptors"])


def test_other_columns_are_not_unpacked(processor: RMatProcessor) -> None:
    features, _ = processor.featurize("CCO")
    row = {**pack_features(features), "labels": [1.0], "row": 3, "geometry_source": "bounds"}
    assert set(unpack_features(row)) == set(features)


@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
def test_dataset_gets_the_features_of_its_molecules(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    dataset = build_dataset(TINY_SMILES)
    featurized, dropped = featurize_dataset(dataset, processor)
    assert dropped == []
    for smiles, row in zip(TINY_SMILES, featurized, strict=True):
        assert_same_features(unpack_features(row), processor.featurize(smiles)[0])
    for name in dataset.column_names:
        assert featurized[name][:] == dataset[name][:]
    assert featurized["geometry_source"][:] == ["bounds"] * len(TINY_SMILES)
    assert "failure" not in featurized.column_names


@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
def test_failures_are_listed_by_table_row_and_left_out(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors, max_atoms=5)
    dataset = build_dataset(["C1CC", "CCO", "C" * 9, "CCN"])
    featurized, dropped = featurize_dataset(dataset, processor)
    assert [(row.row, row.smiles) for row in dropped] == [(10, "C1CC"), (16, "C" * 9)]
    assert "ring" in dropped[0].reason
    assert "max_atoms=5" in dropped[1].reason
    assert featurized["row"][:] == [13, 19]
    for row in featurized:
        assert_same_features(unpack_features(row), processor.featurize(row["smiles"])[0])


def test_data_set_without_any_geometry_loses_every_row() -> None:
    dataset = build_dataset(["CCO", "CCN"])
    featurized, dropped = featurize_dataset(dataset, RMatProcessor(geometry="given"))
    reason = "it brings no 3D conformer, which geometry='given' needs"
    assert dropped == [DroppedRow(10, "CCO", reason), DroppedRow(13, "CCN", reason)]
    assert len(featurized) == 0


def test_number_of_workers_does_not_change_the_result() -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=DESCRIPTORS)
    dataset = build_dataset(["C1CC", *TINY_SMILES, "not a molecule"])
    alone, dropped_alone = featurize_dataset(dataset, processor, num_workers=1)
    together, dropped_together = featurize_dataset(dataset, processor, num_workers=2)
    assert together.to_dict() == alone.to_dict()
    assert dropped_together == dropped_alone
    assert [row.row for row in dropped_alone] == [10, 31]
    assert together.features == alone.features


def test_structures_of_an_sdf_file_bring_their_coordinates(tmp_path: Path) -> None:
    mols = []
    with Chem.SDWriter(str(tmp_path / "table.sdf")) as writer:
        for y, smiles in enumerate(["CCO", "C1CCOCC1"]):
            mol = Chem.MolFromSmiles(smiles)
            rdDistGeom.EmbedMolecule(mol, randomSeed=3)
            mol.SetProp("y", str(y))
            writer.write(mol)
            mols.append(mol)
    loaded = load_training_table(
        tmp_path / "table.sdf",
        smiles_column="smiles",
        label_columns=["y"],
        problem_type="regression",
    )
    featurized, dropped = featurize_dataset(loaded.dataset, RMatProcessor(geometry="given"))
    assert dropped == []
    assert featurized["geometry_source"][:] == ["given", "given"]
    for row, mol in zip(featurized, mols, strict=True):
        distances = unpack_features(row)["interatomic_distances"][1:, 1:]
        # a mol block has four decimals
        np.testing.assert_allclose(distances, Chem.Get3DDistanceMatrix(mol), rtol=0, atol=3e-4)


def test_step_downs_are_counted_in_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # four trans double bonds in one small ring cannot be embedded
    impossible = "C1/C=C/C=C/C=C/C=C/1"
    processor = RMatProcessor(on_conformer_failure="bounds", max_conformer_attempts=1)
    dataset = build_dataset(["CCO", impossible])
    with caplog.at_level(logging.WARNING):
        featurized, dropped = featurize_dataset(dataset, processor)
    assert dropped == []
    assert "1 molecules stepped down" in caplog.text
    assert featurized["geometry_source"][0] == "etkdg_v3"
    assert featurized["geometry_source"][1].startswith("bounds (step down")
