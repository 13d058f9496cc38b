import logging
import os
import signal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from tiny import TINY_SMILES

from rmat_hf.data import featurization
from rmat_hf.data.featurization import (
    featurize_dataset,
    featurize_molecules,
    featurize_one_by_one,
)
from rmat_hf.data.stored_features import expand_features, pack_features
from rmat_hf.data.training_table import DroppedRow, load_training_table
from rmat_hf.model.processing_rmat import RMatProcessor

DESCRIPTORS = ["MolWt", "TPSA", "MaxPartialCharge"]


def build_dataset(smiles: list[str]) -> datasets.Dataset:
    """Rows as `load_training_table` gives them; `row` is not the position."""
    rows = [10 + 3 * position for position in range(len(smiles))]
    labels = [[float(row)] for row in rows]
    return datasets.Dataset.from_dict({"row": rows, "smiles": smiles, "labels": labels})


def pack(smiles: str, processor: RMatProcessor) -> bytes:
    """Features of a molecule in canonical order."""
    return pack_features(processor.featurize_compactly(Chem.CanonSmiles(smiles)))


@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
def test_dataset_gets_the_features_of_its_molecules(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    dataset = build_dataset(TINY_SMILES)
    featurized, dropped = featurize_dataset(dataset, processor)
    assert dropped == []
    assert featurized["features"][:] == [pack(smiles, processor) for smiles in TINY_SMILES]
    for name in dataset.column_names:
        assert featurized[name][:] == dataset[name][:]
    assert featurized["geometry_source"][:] == ["bounds"] * len(TINY_SMILES)
    assert featurized["num_nodes"][:] == [4, 10, 2, 6, 10, 8]
    assert set(featurized.column_names) - set(dataset.column_names) == {
        "features",
        "num_nodes",
        "geometry_source",
    }


@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
def test_failures_are_listed_by_table_row_and_left_out(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors, max_atoms=5)
    dataset = build_dataset(["C1CC", "CCO", "C" * 9, "CCN"])
    featurized, dropped = featurize_dataset(dataset, processor)
    assert [(row.row, row.smiles) for row in dropped] == [(10, "C1CC"), (16, "C" * 9)]
    assert "ring" in dropped[0].reason
    assert "max_atoms=5" in dropped[1].reason
    assert featurized["row"][:] == [13, 19]
    assert featurized["features"][:] == [pack(smiles, processor) for smiles in ("CCO", "CCN")]


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
        distances = expand_features([row["features"]])["interatomic_distances"][0, 1:, 1:]
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


# Many molecules, with and without a cache


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_every_way_of_writing_has_the_same_features(num_workers: int) -> None:
    processor = RMatProcessor(conformer_method="kdg")
    mols = [Chem.MolFromSmiles(smiles) for smiles in TINY_SMILES]
    outcomes = [
        featurize_molecules(
            [Chem.MolToRandomSmilesVect(mol, 1, randomSeed=seed)[0] for mol in mols],
            processor,
            num_workers=num_workers,
        )
        for seed in (1, 2)
    ]
    assert outcomes[0] == outcomes[1]
    assert [outcome.features for outcome in outcomes[0]] == [
        pack(smiles, processor) for smiles in TINY_SMILES
    ]


def build_mixed_molecules() -> list[Any]:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=3)
    other = Chem.Mol(mol)
    other.GetConformer().SetPositions(other.GetConformer().GetPositions() * 1.1)
    return ["CCO", "OCC", mol, other, "C1CC", None, *TINY_SMILES, "[Na+].[Cl-]"]


def test_cached_and_uncached_features_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    molecules = build_mixed_molecules()
    processor = RMatProcessor(conformer_method="kdg", molecule_descriptors=["MolWt"])
    plain = featurize_molecules(molecules, processor)
    assert featurize_molecules(molecules, processor, cache_dir=tmp_path) == plain
    computed: list[Any] = []
    monkeypatch.setattr(featurization, "_featurize", lambda job, _: computed.append(job))
    assert featurize_molecules(molecules, processor, cache_dir=tmp_path) == plain
    assert computed == []
    assert plain[0] == plain[1]
    assert len({outcome.features for outcome in plain[1:4]}) == 3
    assert [bool(outcome.failure) for outcome in plain[:7]] == [False] * 4 + [True] * 2 + [False]


def test_workers_give_the_same_features_for_given_conformers() -> None:
    molecules, processor = build_mixed_molecules(), RMatProcessor(conformer_method="kdg")
    alone = featurize_molecules(molecules, processor)
    assert featurize_molecules(molecules, processor, num_workers=2) == alone


def test_failure_is_kept_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = RMatProcessor(max_conformer_attempts=1)
    impossible = "C12=C3C4=C1C5=C2C3=C45"
    first = featurize_molecules([impossible], processor, cache_dir=tmp_path)
    monkeypatch.setattr(featurization, "_featurize", None)
    assert featurize_molecules([impossible], processor, cache_dir=tmp_path) == first
    assert "in 1 attempts" in first[0].failure


def test_interrupted_run_keeps_what_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = RMatProcessor(geometry="bounds")
    compute = featurization._featurize
    computed: list[Any] = []

    def interrupt(job: Any, processor: RMatProcessor) -> Any:
        if len(computed) == 5:
            raise KeyboardInterrupt
        computed.append(job)
        return compute(job, processor)

    monkeypatch.setattr(featurization, "CHUNK_SIZE", 2)
    monkeypatch.setattr(featurization, "_featurize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        featurize_molecules(TINY_SMILES, processor, cache_dir=tmp_path)
    computed.clear()
    outcomes = featurize_molecules(TINY_SMILES, processor, cache_dir=tmp_path)
    assert len(computed) == 2
    assert [outcome.features for outcome in outcomes] == [
        pack(smiles, processor) for smiles in TINY_SMILES
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_molecule_that_kills_its_worker_fails_and_the_others_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    processor = RMatProcessor(geometry="2d")
    expected = featurize_molecules(TINY_SMILES, processor)
    compute = featurization._featurize

    def die(job: Any, processor: RMatProcessor) -> Any:
        if job[0] == "CCN":
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(job, processor)

    monkeypatch.setattr(featurization, "_featurize", die)
    monkeypatch.setattr(featurization, "CHUNK_SIZE", 3)
    cache_dir = tmp_path if cached else None
    molecules = [*TINY_SMILES[:2], "CCN", *TINY_SMILES[2:]]
    outcomes = featurize_molecules(molecules, processor, num_workers=2, cache_dir=cache_dir)
    assert [*outcomes[:2], *outcomes[3:]] == expected
    assert outcomes[2].failure.startswith(
        "the process that featurizes it was killed by signal 9 (Killed)"
    )
    monkeypatch.setattr(featurization, "_featurize", compute)
    again = featurize_molecules(molecules, processor, cache_dir=cache_dir)
    assert again[2].failure == ""


def test_molecule_without_enough_memory_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RMatProcessor, molecule: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(RMatProcessor, "featurize_compactly", refuse)
    (outcome,) = featurize_molecules(["CCO"], RMatProcessor(geometry="2d"))
    assert "not enough memory" in outcome.failure
    assert not outcome.is_repeatable


@pytest.mark.parametrize("cached", [False, True])
def test_one_by_one_is_the_same_as_all_at_once(tmp_path: Path, cached: bool) -> None:
    molecules, processor = build_mixed_molecules(), RMatProcessor(conformer_method="kdg")
    cache_dir = tmp_path if cached else None
    expected = featurize_molecules(molecules, processor)
    for _ in range(2):
        assert featurize_one_by_one(iter(molecules), processor, cache_dir=cache_dir) == expected
    assert featurize_molecules(molecules, processor, cache_dir=cache_dir) == expected
