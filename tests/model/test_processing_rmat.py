"""RMatProcessor: every molecule has a defined outcome, and its features depend on nothing else."""

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, AutoProcessor, DataCollatorWithPadding

from rmat_hf.model import processing_rmat
from rmat_hf.model.batching_rmat import NODE_INPUTS, RMatBatchFeature
from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF, UNREACHABLE_DISTANCE
from rmat_hf.model.conformers_rmat import ConformerError, generate_conformer
from rmat_hf.model.molecule_features_rmat import MoleculeError, parse_molecule
from rmat_hf.model.processing_rmat import FEATURIZER_VERSION, RMatProcessor

REPO_ROOT = Path(__file__).resolve().parents[2]

GOOD_SMILES = ["C", "CCO", "c1ccccc1C(=O)O", "[Na+].[Cl-]", "CC[C@H](N)C#N", "O=S(C)C", "C1CC1Br"]
BAD_MOLECULES = ["", "C1CC", None, float("nan"), "*C", 3, "[H][H]", "C" * 40, "c1cccc1"]
# No conformer: embedding never succeeds.
IMPOSSIBLE = "C12=C3C4=C1C5=C2C3=C45"
PEPTIDE = "NCC(=O)" + "NC(C)C(=O)" * 89 + "O"

# Every option with a value that is not its default.
OTHER_OPTIONS: dict[str, Any] = {
    "geometry": "bounds",
    "conformer_method": "kdg",
    "conformer_hydrogens": False,
    "force_field": "uff",
    "conformer_seed": 7,
    "max_conformer_attempts": 11,
    "conformer_time_limit_s": 5,
    "on_conformer_failure": "2d",
    "max_atoms": 99,
    "molecule_descriptors": ["MolWt", "TPSA"],
}

HASH_SCRIPT = """
import hashlib, sys
from rmat_hf.model.processing_rmat import RMatProcessor
batch = RMatProcessor(molecule_descriptors=["MolWt"])(sys.argv[1:])
print(hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest())
"""


@pytest.fixture(scope="module")
def processor() -> RMatProcessor:
    return RMatProcessor(max_atoms=32)


@pytest.fixture(scope="module")
def bounds_processor() -> RMatProcessor:
    return RMatProcessor(geometry="bounds", max_atoms=32)


def embed(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=17) == 0
    return mol


def assert_equal_features(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name])


def extract_row(batch: RMatBatchFeature, row: int) -> dict[str, np.ndarray]:
    """The features of one molecule without its padding."""
    num_nodes = int(batch["attention_mask"][row].sum())
    return {
        name: np.asarray(batch[name][row])[tuple([slice(num_nodes)] * NODE_INPUTS[name][2])]
        for name in NODE_INPUTS
        if name != "attention_mask"
    }


# One batch


def test_batch_has_compact_arrays_and_says_where_they_come_from(processor: RMatProcessor) -> None:
    batch = processor(["CCO", embed("CO"), "[Na+].[Cl-]"], return_tensors="pt")
    assert list(batch) == processor.model_input_names
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "node_features": ((3, 4, 37), torch.uint8),
        "bond_types": ((3, 4, 4), torch.uint8),
        "topological_distances": ((3, 4, 4), torch.uint8),
        "interatomic_distances": ((3, 4, 4), torch.float32),
        "attention_mask": ((3, 4), torch.int64),
    }
    assert batch.row_indices == [0, 1, 2]
    assert batch.skipped_rows == {}
    assert batch.geometry_sources == ["etkdg_v3", "given", "etkdg_v3"]


@pytest.mark.parametrize("molecule", ["CCO", Chem.MolFromSmiles("CCO")])
def test_one_molecule_is_a_batch_of_one(processor: RMatProcessor, molecule: Any) -> None:
    assert processor(molecule)["node_features"].shape == (1, 4, 37)


@pytest.mark.parametrize("as_type", [list, tuple, np.array, iter])
def test_molecules_come_in_any_iterable(bounds_processor: RMatProcessor, as_type: Any) -> None:
    batch = bounds_processor(as_type(GOOD_SMILES))
    assert batch.row_indices == list(range(len(GOOD_SMILES)))


def test_a_mapping_is_refused(processor: RMatProcessor) -> None:
    with pytest.raises(TypeError, match="Pass one column of it"):
        processor({"smiles": ["CCO"]})


def test_smiles_molecule_and_sanitized_molecule_give_the_same_features(
    processor: RMatProcessor,
) -> None:
    smiles = "CC(=O)Nc1ccc(O)cc1"
    expected, _ = processor.featurize(smiles)
    for mol in (
        Chem.MolFromSmiles(smiles),
        Chem.AddHs(Chem.MolFromSmiles(smiles)),
        Chem.MolFromSmiles(smiles, sanitize=False),
    ):
        assert_equal_features(processor.featurize(mol)[0], expected)


# Geometry


def test_conformer_is_the_one_of_generate_conformer() -> None:
    options = {"conformer_method": "kdg", "conformer_hydrogens": False, "conformer_seed": 4}
    features, source = RMatProcessor(**options, force_field="uff").featurize("CCCO")
    coordinates = generate_conformer(
        parse_molecule("CCCO", max_atoms=4),
        method="kdg",
        hydrogens=False,
        force_field="uff",
        seed=4,
    )
    expected = np.linalg.norm(coordinates[:, None] - coordinates, axis=-1)
    np.testing.assert_allclose(features["interatomic_distances"][1:, 1:], expected, rtol=1e-6)
    assert source == "kdg"


def test_given_conformer_is_used_by_conformer_and_given_only() -> None:
    mol = embed("CCCO")
    positions = mol.GetConformer().GetPositions()[:4]
    expected = np.linalg.norm(positions[:, None] - positions, axis=-1)
    for geometry in ("conformer", "given"):
        features, source = RMatProcessor(geometry=geometry).featurize(mol)
        assert source == "given"
        np.testing.assert_allclose(features["interatomic_distances"][1:, 1:], expected, rtol=1e-6)
    for geometry in ("bounds", "2d"):
        features, source = RMatProcessor(geometry=geometry).featurize(mol)
        from_graph, _ = RMatProcessor(geometry=geometry).featurize("CCCO")
        assert source == geometry
        assert_equal_features(features, from_graph)


@given(rotation=st.integers(0, 10_000), shift=st.floats(-50, 50))
def test_rotation_and_translation_do_not_change_the_features(rotation: int, shift: float) -> None:
    mol = Chem.Mol(embed("CCCO"))
    matrix, _ = np.linalg.qr(np.random.default_rng(rotation).normal(size=(3, 3)))
    expected, _ = RMatProcessor(geometry="given").featurize(mol)
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() @ matrix + shift)
    features, _ = RMatProcessor(geometry="given").featurize(mol)
    for name in features:
        np.testing.assert_allclose(features[name], expected[name], rtol=0, atol=1e-5)


def test_geometry_given_needs_a_3d_conformer() -> None:
    flat = Chem.MolFromSmiles("CCO")
    AllChem.Compute2DCoords(flat)
    for molecule in ("CCO", flat):
        with pytest.raises(ConformerError, match="brings no 3D conformer"):
            RMatProcessor(geometry="given", on_conformer_failure="bounds").featurize(molecule)


def test_broken_conformer_is_an_error_and_no_step_down() -> None:
    mol = embed("CO")
    mol.GetConformer().SetPositions(np.zeros((6, 3)))
    with pytest.raises(ValueError, match=r"Row 0: cannot featurize .* coincide"):
        RMatProcessor(on_conformer_failure="bounds")(mol)


@pytest.mark.parametrize("geometry", ["conformer", "bounds", "2d"])
def test_distance_between_fragments_is_beyond_the_cutoff(geometry: str) -> None:
    features, _ = RMatProcessor(geometry=geometry).featurize("[Na+].[O-]C(=O)C")
    is_between = features["topological_distances"] == UNREACHABLE_DISTANCE
    assert (features["interatomic_distances"][is_between] == BEYOND_CUTOFF).all()
    assert features["interatomic_distances"][2:, 2:].max() < 10
    assert not features["interatomic_distances"].diagonal()[1:].any()


def test_distance_between_fragments_of_a_given_conformer_is_kept() -> None:
    features, _ = RMatProcessor().featurize(embed("[Na+].[O-]C(=O)C"))
    assert features["interatomic_distances"][1, 2:].max() < 10


def test_failed_embedding_raises_with_the_ways_out() -> None:
    with pytest.raises(ValueError, match="no conformer with etkdg_v3 in 5 attempts") as caught:
        RMatProcessor(max_conformer_attempts=5)(["CCO", IMPOSSIBLE])
    assert str(caught.value).startswith(f"Row 1: cannot featurize '{IMPOSSIBLE}': no conformer")
    assert str(caught.value).endswith(
        "Fix or drop the row, choose another geometry or set on_conformer_failure, or pass "
        'errors="skip".'
    )


@pytest.mark.parametrize("step", ["bounds", "2d"])
def test_step_down_is_taken_when_chosen_and_recorded(step: Any) -> None:
    processor = RMatProcessor(max_conformer_attempts=5, on_conformer_failure=step)
    batch = processor(["CCO", IMPOSSIBLE])
    assert batch.geometry_sources[0] == "etkdg_v3"
    assert batch.geometry_sources[1].startswith(f"{step} (step down: no conformer with etkdg_v3 in")
    expected, _ = RMatProcessor(geometry=step).featurize(IMPOSSIBLE)
    assert_equal_features(extract_row(batch, 1), expected)


def test_peptide_of_450_atoms_needs_a_larger_limit() -> None:
    with pytest.raises(ValueError, match="450 heavy atoms are more than max_atoms=256"):
        RMatProcessor(geometry="bounds")(PEPTIDE)
    features, source = RMatProcessor(geometry="bounds", max_atoms=512).featurize(PEPTIDE)
    assert features["interatomic_distances"].shape == (451, 451)
    assert source == "bounds"


# Errors


def test_error_names_row_molecule_reason_and_way_out(processor: RMatProcessor) -> None:
    with pytest.raises(ValueError) as caught:
        processor(["C", "CC", "CCC", "C1CC"])
    assert str(caught.value) == (
        "Row 3: cannot featurize 'C1CC': SMILES Parse Error: unclosed ring for input: 'C1CC'. "
        'Fix or drop the row, or pass errors="skip".'
    )
    assert isinstance(caught.value.__cause__, MoleculeError)


@pytest.mark.parametrize(
    ("molecule", "description"),
    [
        (None, "None"),
        (float("nan"), "nan"),
        (3, "3"),
        ("", "''"),
        (Chem.MolFromSmarts("[#6]~[#7]"), "'C~N'"),
        (Chem.MolFromSmiles("CN(C)(C)C", sanitize=False), "'CN(C)(C)C'"),
        ("C" * 200 + "(", "'" + "C" * 79 + "...'"),
    ],
)
def test_error_describes_the_molecule(
    processor: RMatProcessor, molecule: Any, description: str
) -> None:
    with pytest.raises(ValueError) as caught:
        processor([molecule])
    assert str(caught.value).startswith(f"Row 0: cannot featurize {description}: ")


@given(
    molecules=st.lists(st.sampled_from(GOOD_SMILES) | st.sampled_from(BAD_MOLECULES), max_size=8)
)
def test_skip_keeps_the_indices_of_the_rows_right(molecules: list[Any]) -> None:
    processor = RMatProcessor(geometry="bounds", max_atoms=32)
    batch = processor(molecules, errors="skip")
    good_rows = [row for row, molecule in enumerate(molecules) if molecule in GOOD_SMILES]
    assert batch.row_indices == good_rows
    assert sorted([*batch.row_indices, *batch.skipped_rows]) == list(range(len(molecules)))
    assert all(batch.skipped_rows.values())
    assert batch.geometry_sources == ["bounds"] * len(good_rows)
    assert {len(values) for values in batch.values()} == {len(good_rows)}
    for position, row in enumerate(good_rows):
        assert_equal_features(extract_row(batch, position), processor.featurize(molecules[row])[0])


@pytest.mark.parametrize("molecules", [[], BAD_MOLECULES])
def test_no_molecule_left_gives_zero_rows(molecules: list[Any]) -> None:
    processor = RMatProcessor(max_atoms=32, molecule_descriptors=["MolWt"])
    batch = processor(molecules, errors="skip", return_tensors="pt")
    assert set(batch) == set(processor.model_input_names)
    assert {len(values) for values in batch.values()} == {0}
    assert batch["node_features"].shape == (0, 1, 37)
    assert batch["molecule_descriptors"].shape == (0, 1)
    assert batch.row_indices == []
    assert list(batch.skipped_rows) == list(range(len(molecules)))


def test_wrong_call_options_are_refused_before_any_work(processor: RMatProcessor) -> None:
    for options in ({"errors": "ignore"}, {"padding": "all"}, {"return_tensors": "tf"}):
        with pytest.raises(ValueError, match=r"ignore|all|tf"):
            processor(["C1CC"], **options)


# The same features everywhere


@given(
    molecules=st.lists(st.sampled_from(GOOD_SMILES), min_size=1, max_size=5),
    multiple=st.sampled_from([None, 8]),
)
def test_batch_mates_and_padding_do_not_change_the_features(
    molecules: list[str], multiple: int | None
) -> None:
    processor = RMatProcessor()
    batch = processor(molecules, pad_to_multiple_of=multiple)
    for row, molecule in enumerate(molecules):
        assert_equal_features(extract_row(batch, row), processor.featurize(molecule)[0])


@given(seed=st.integers(0, 10_000), smiles=st.sampled_from(GOOD_SMILES))
def test_atom_order_permutes_the_features(seed: int, smiles: str) -> None:
    processor = RMatProcessor()
    mol = Chem.MolFromSmiles(smiles)
    order = np.random.default_rng(seed).permutation(mol.GetNumAtoms())
    features, _ = processor.featurize(mol)
    shuffled, _ = processor.featurize(Chem.RenumberAtoms(mol, order.tolist()))
    nodes = np.concatenate([[0], order + 1])
    np.testing.assert_array_equal(shuffled["node_features"], features["node_features"][nodes])
    for name in ("bond_types", "topological_distances"):
        np.testing.assert_array_equal(shuffled[name], features[name][np.ix_(nodes, nodes)])
    # Equal atoms may change places in the conformer, which leaves its distances as they are.
    distances = features["interatomic_distances"]
    np.testing.assert_array_equal(
        np.sort(shuffled["interatomic_distances"], axis=None), np.sort(distances, axis=None)
    )


@pytest.mark.parametrize("geometry", ["conformer", "bounds"])
def test_pairs_have_no_direction(geometry: str) -> None:
    """The attention counts on it: the key of a node meets its pairs from the other side."""
    batch = RMatProcessor(geometry=geometry)(GOOD_SMILES)
    for name in ("bond_types", "topological_distances", "interatomic_distances"):
        np.testing.assert_array_equal(batch[name], batch[name].swapaxes(1, 2), err_msg=name)


def test_two_processes_give_the_same_features_bit_for_bit() -> None:
    batch = RMatProcessor(molecule_descriptors=["MolWt"])(GOOD_SMILES)
    here = hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()
    run = subprocess.run(
        [sys.executable, "-c", HASH_SCRIPT, *GOOD_SMILES],
        capture_output=True, text=True, check=True, cwd=REPO_ROOT,
    )  # fmt: skip
    assert run.stdout.strip() == here


def test_dataloader_workers_give_the_same_batches(processor: RMatProcessor) -> None:
    def iterate_batches(num_workers: int) -> Iterator[RMatBatchFeature]:
        yield from DataLoader(
            GOOD_SMILES, batch_size=3, collate_fn=processor, num_workers=num_workers
        )

    for here, there in zip(iterate_batches(0), iterate_batches(2), strict=True):
        assert here.geometry_sources == there.geometry_sources
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])


def test_error_of_a_worker_names_the_molecule(processor: RMatProcessor) -> None:
    loader = DataLoader(["C", "C1CC"], batch_size=2, collate_fn=processor, num_workers=1)
    with pytest.raises(ValueError, match="Row 1: cannot featurize 'C1CC'"):
        list(loader)


def test_use_does_not_change_the_fingerprint_and_options_do() -> None:
    processor = RMatProcessor()
    before = Hasher.hash(processor)
    processor(["CCO", "C"])
    assert Hasher.hash(processor) == before == Hasher.hash(RMatProcessor())
    assert Hasher.hash(pickle.loads(pickle.dumps(processor))) == before
    for name, value in OTHER_OPTIONS.items():
        assert Hasher.hash(RMatProcessor(**{name: value})) != before, name


def test_pickled_processor_gives_the_same_features(processor: RMatProcessor) -> None:
    other = pickle.loads(pickle.dumps(processor))
    assert_equal_features(other.featurize("CCO")[0], processor.featurize("CCO")[0])


# Descriptors and collators


def test_descriptors_are_model_inputs_when_chosen() -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt", "TPSA"])
    batch = processor(["CCO", "C"], return_tensors="pt")
    assert list(batch)[:4] == processor.model_input_names[:4]
    assert set(batch) == set(processor.model_input_names)
    np.testing.assert_allclose(
        batch["molecule_descriptors"], [[46.069, 20.23], [16.043, 0.0]], rtol=1e-4
    )
    assert "molecule_descriptors" not in RMatProcessor().model_input_names


def test_pad_equals_a_call(bounds_processor: RMatProcessor) -> None:
    called = bounds_processor(GOOD_SMILES, pad_to_multiple_of=4, return_tensors="pt")
    features = [bounds_processor.featurize(smiles)[0] for smiles in GOOD_SMILES]
    padded = bounds_processor.pad(features, pad_to_multiple_of=4, return_tensors="pt")
    assert called.keys() == padded.keys()
    assert all(torch.equal(called[name], padded[name]) for name in called)


def test_collator_of_transformers_pads_with_labels(bounds_processor: RMatProcessor) -> None:
    rows = [bounds_processor.featurize(smiles)[0] | {"label": 1.5} for smiles in ("C", "CCO")]
    batch = DataCollatorWithPadding(bounds_processor)(rows)
    assert batch["node_features"].shape == (2, 4, 37)
    assert batch["labels"].tolist() == [1.5, 1.5]


# Options, saving and loading


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("geometry", "3d", r"geometry is '3d'. Choose one of \['conformer', 'bounds',"),
        ("conformer_method", "etkdg", "conformer method is 'etkdg'"),
        ("conformer_hydrogens", None, "conformer hydrogens is None"),
        ("force_field", "amber", "force field is 'amber'"),
        ("conformer_seed", -1, "conformer seed is -1"),
        ("max_conformer_attempts", 0, "conformer attempts is 0"),
        ("conformer_time_limit_s", 0, "conformer time limit in seconds is 0"),
        ("on_conformer_failure", "given", "on_conformer_failure is 'given'"),
        ("max_atoms", 0, "max_atoms is 0. Choose a positive integer"),
        ("max_atoms", "256", "max_atoms is '256'"),
        ("molecule_descriptors", ["Weight"], "no descriptor 'Weight'"),
        ("molecule_descriptors", [], "descriptors are"),
        ("molecule_descriptors", "MolWt", "descriptors are 'MolWt'"),
        ("featurizer_version", 999, "saved with featurizer version 999, this code has"),
        ("featurizer_version", None, "saved with featurizer version None"),
    ],
)  # fmt: skip
def test_wrong_option_is_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RMatProcessor(**{option: value})


def test_misspelled_option_is_refused() -> None:
    with pytest.raises(TypeError, match="no option 'geometri'"):
        RMatProcessor(geometri="bounds")


def test_every_option_survives_saving_and_loading(tmp_path: Path) -> None:
    processor = RMatProcessor(**OTHER_OPTIONS)
    processor.save_pretrained(tmp_path)
    loaded = RMatProcessor.from_pretrained(tmp_path)
    for name, value in OTHER_OPTIONS.items():
        assert getattr(loaded, name) == value != getattr(RMatProcessor(), name)
    assert loaded.featurizer_version == FEATURIZER_VERSION
    assert loaded.model_input_names == processor.model_input_names
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    expected = {*OTHER_OPTIONS, "featurizer_version", "feature_extractor_type"}
    assert set(saved) - {"auto_map", "processor_class"} == expected


def test_option_can_be_changed_when_loading(tmp_path: Path) -> None:
    RMatProcessor().save_pretrained(tmp_path)
    assert RMatProcessor.from_pretrained(tmp_path, geometry="2d").geometry == "2d"
    with pytest.raises(ValueError, match="geometry is '4d'"):
        RMatProcessor.from_pretrained(tmp_path, geometry="4d")


def test_processor_of_another_featurizer_version_is_refused(tmp_path: Path) -> None:
    RMatProcessor().save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"featurizer_version": FEATURIZER_VERSION + 1}))
    with pytest.raises(ValueError, match="Use the release of rmat_hf that saved it"):
        RMatProcessor.from_pretrained(tmp_path)


def test_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"preprocessor_config\.json|feature extractor"):
        RMatProcessor.from_pretrained(tmp_path)


@pytest.mark.usefixtures("remote_code_cache")
def test_saved_code_loads_through_both_auto_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RMatProcessor, "_auto_class", "AutoProcessor")
    processor = RMatProcessor(**OTHER_OPTIONS)
    processor.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.glob("*.py")}
    assert files == {
        "atom_codes_rmat.py",
        "batching_rmat.py",
        "canonical_order_rmat.py",
        "config_validation_rmat.py",
        "configuration_rmat.py",
        "conformers_rmat.py",
        "distances_rmat.py",
        "molecule_features_rmat.py",
        "molecule_limits_rmat.py",
        "processing_rmat.py",
    }
    expected = processor(["CCO", "C"])
    for auto_class in (AutoProcessor, AutoFeatureExtractor):
        loaded = auto_class.from_pretrained(tmp_path, trust_remote_code=True)
        assert type(loaded).__name__ == "RMatProcessor"
        assert {name: getattr(loaded, name) for name in OTHER_OPTIONS} == OTHER_OPTIONS
        for name, array in loaded(["CCO", "C"]).items():
            np.testing.assert_array_equal(array, expected[name])


def test_skipped_rows_are_logged(
    bounds_processor: RMatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(
        processing_rmat.logger, "info", lambda text, *values: messages.append(text % values)
    )
    bounds_processor(["C", "", None], errors="skip")
    assert messages == ["Skipped 2 of 3 molecules."]
