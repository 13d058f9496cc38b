"""RMatProcessor: every molecule has a defined outcome, and its features depend on nothing else."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from datasets.fingerprint import Hasher
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch.utils.data import DataLoader
from transformers import (
    AutoFeatureExtractor,
    AutoProcessor,
    DataCollatorWithPadding,
    SequenceFeatureExtractor,
)

from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF, UNREACHABLE_DISTANCE
from rmat_hf.model.features_rmat import FEATURIZER_VERSION, MoleculeError
from rmat_hf.model.processing_rmat import (
    NODE_INPUTS,
    Padding,
    RMatBatchFeature,
    RMatProcessor,
    build_batch,
    compute_graph_distances,
)

GOOD_SMILES = ["C", "CCO", "c1ccccc1C(=O)O", "[Na+].[Cl-]", "CC[C@H](N)C#N", "O=S(C)C", "C1CC1Br"]
BAD_MOLECULES = ["", "C1CC", None, float("nan"), "*C", 3, "[H][H]", "C" * 40, "c1cccc1"]
# No conformer: embedding never succeeds.
IMPOSSIBLE = "C12=C3C4=C1C5=C2C3=C45"

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
    "hydrogens": "rdkit",
    "max_atoms": 99,
    "molecule_descriptors": ["MolWt", "TPSA"],
}


PROCESSOR = RMatProcessor(geometry="bounds", max_atoms=32)
INPUTS = [name for name in NODE_INPUTS if name != "attention_mask"]


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
    nodes = slice(int(batch["attention_mask"][row].sum()))
    return {name: batch[name][row][(nodes,) * NODE_INPUTS[name][2]] for name in INPUTS}


# One batch


def test_batch_has_compact_arrays_and_says_where_they_come_from() -> None:
    batch = RMatProcessor()(["CCO", embed("CO"), "[Na+].[Cl-]"], return_tensors="pt")
    assert list(batch) == PROCESSOR.model_input_names
    pairs = (3, 4, 4)
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "node_features": ((3, 4, 37), torch.uint8),
        "bond_types": (pairs, torch.uint8),
        "topological_distances": (pairs, torch.uint8),
        "interatomic_distances": (pairs, torch.float32),
        "attention_mask": ((3, 4), torch.int64),
    }
    assert (batch.row_indices, batch.skipped_rows) == ([0, 1, 2], {})
    assert batch.geometry_sources == ["etkdg_v3", "given", "etkdg_v3"]


@pytest.mark.parametrize("as_type", [tuple, np.array, iter])
def test_molecules_come_in_any_iterable(as_type: Any) -> None:
    batch = PROCESSOR(as_type(GOOD_SMILES))
    assert batch.row_indices == list(range(len(GOOD_SMILES)))


# Geometry


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
    mol, processor = embed("CCCO"), RMatProcessor(geometry="given")
    matrix, _ = np.linalg.qr(np.random.default_rng(rotation).normal(size=(3, 3)))
    expected, _ = processor.featurize(mol)
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() @ matrix + shift)
    for name, array in processor.featurize(mol)[0].items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("geometry", ["conformer", "bounds", "2d"])
def test_distance_between_fragments_is_beyond_the_cutoff_but_of_a_given_conformer(
    geometry: str,
) -> None:
    features, _ = RMatProcessor(geometry=geometry).featurize("[Na+].[O-]C(=O)C")
    is_between = features["topological_distances"] == UNREACHABLE_DISTANCE
    assert (features["interatomic_distances"][is_between] == BEYOND_CUTOFF).all()
    assert features["interatomic_distances"][2:, 2:].max() < 10
    assert not features["interatomic_distances"].diagonal()[1:].any()
    features, _ = RMatProcessor(geometry="given").featurize(embed("[Na+].[O-]C(=O)C"))
    assert features["interatomic_distances"][1, 2:].max() < 10


@pytest.mark.parametrize("step", ["bounds", "2d"])
def test_step_down_is_taken_when_chosen_and_recorded(step: Any) -> None:
    batch = RMatProcessor(max_conformer_attempts=5, on_conformer_failure=step)(["CCO", IMPOSSIBLE])
    expected, _ = RMatProcessor(geometry=step).featurize(IMPOSSIBLE)
    assert_equal_features(extract_row(batch, 1), expected)
    method, source = batch.geometry_sources
    assert method == "etkdg_v3" and source.startswith(f"{step} (step down: no conformer with etkdg")


# Errors


@pytest.mark.parametrize(
    ("molecule", "description", "reason"),
    [
        (float("nan"), "nan", "missing"),
        ("", "''", "empty"),
        (Chem.MolFromSmarts("[#6]~[#7]"), "an RDKit molecule of 2 atoms", "query"),
        ("C" * 200 + "(", "'" + "C" * 79 + "...'", "SMILES Parse Error"),
        ("C1CC", "'C1CC'", "SMILES Parse Error: unclosed ring for input: 'C1CC'"),
        (IMPOSSIBLE, repr(IMPOSSIBLE), "no conformer with etkdg_v3 in 5 attempts"),
    ],
)
def test_error_names_row_molecule_reason_and_way_out(
    molecule: Any, description: str, reason: str
) -> None:
    with pytest.raises(ValueError) as caught:
        RMatProcessor(max_atoms=32, max_conformer_attempts=5)(["C", "CC", molecule])
    message = str(caught.value)
    assert message.startswith(f"Row 2: cannot featurize {description}: ") and reason in message
    assert message.endswith('or pass errors="skip".')
    assert ("on_conformer_failure" in message) == (molecule == IMPOSSIBLE)
    assert isinstance(caught.value.__cause__, MoleculeError)


@given(
    molecules=st.lists(st.sampled_from(GOOD_SMILES) | st.sampled_from(BAD_MOLECULES), max_size=8)
)
def test_skip_keeps_the_indices_of_the_rows_right(molecules: list[Any]) -> None:
    batch = PROCESSOR(molecules, errors="skip")
    good_rows = [row for row, molecule in enumerate(molecules) if molecule in GOOD_SMILES]
    assert batch.row_indices == good_rows
    assert sorted([*batch.row_indices, *batch.skipped_rows]) == list(range(len(molecules)))
    assert all(batch.skipped_rows.values())
    assert batch.geometry_sources == ["bounds"] * len(good_rows)
    assert {len(values) for values in batch.values()} == {len(good_rows)}
    for position, row in enumerate(good_rows):
        assert_equal_features(extract_row(batch, position), PROCESSOR.featurize(molecules[row])[0])


def test_wrong_call_options_are_refused() -> None:
    for options in ({"errors": "ignore"}, {"padding": "all"}):
        with pytest.raises(ValueError, match=r"ignore|all"):
            PROCESSOR(["CC"], **options)
    with pytest.raises(TypeError, match="Pass its column of SMILES"):
        PROCESSOR({"smiles": ["CCO"]})
    with pytest.raises(TypeError, match="no option 'geometri'"):
        RMatProcessor(geometri="bounds")


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
    mol = Chem.MolFromSmiles(smiles)
    order = np.random.default_rng(seed).permutation(mol.GetNumAtoms())
    renumbered = Chem.RenumberAtoms(mol, order.tolist())
    features, shuffled = (RMatProcessor().featurize(it)[0] for it in (mol, renumbered))
    nodes = np.concatenate([[0], order + 1])
    np.testing.assert_array_equal(shuffled["node_features"], features["node_features"][nodes])
    for name in ("bond_types", "topological_distances"):
        np.testing.assert_array_equal(shuffled[name], features[name][np.ix_(nodes, nodes)])
    # Equal atoms may change places in the conformer, which leaves its distances as they are.
    distances = (np.sort(it["interatomic_distances"], axis=None) for it in (shuffled, features))
    np.testing.assert_array_equal(*distances)


@pytest.mark.parametrize("geometry", ["conformer", "bounds"])
def test_pairs_have_no_direction(geometry: str) -> None:
    """The attention counts on it: the key of a node meets its pairs from the other side."""
    batch = RMatProcessor(geometry=geometry)(GOOD_SMILES)
    for name in INPUTS[1:]:
        np.testing.assert_array_equal(batch[name], batch[name].swapaxes(1, 2), err_msg=name)


def test_dataloader_workers_give_the_same_batches() -> None:
    options = {"batch_size": 3, "collate_fn": RMatProcessor()}
    loaders = (DataLoader(GOOD_SMILES, num_workers=number, **options) for number in (0, 2))
    for here, there in zip(*loaders, strict=True):
        assert here.geometry_sources == there.geometry_sources
        for name in here:
            np.testing.assert_array_equal(here[name], there[name])


def test_use_does_not_change_the_fingerprint_and_options_do() -> None:
    processor = RMatProcessor()
    before = Hasher.hash(processor)
    processor(["CCO", "C"])
    assert Hasher.hash(processor) == before == Hasher.hash(RMatProcessor())
    assert Hasher.hash(pickle.loads(pickle.dumps(processor))) == before
    for name, value in OTHER_OPTIONS.items():
        assert Hasher.hash(RMatProcessor(**{name: value})) != before, name


# Hydrogens that are nodes


@pytest.mark.parametrize("geometry", ["conformer", "bounds", "2d"])
@pytest.mark.parametrize(
    ("smiles", "same_smiles", "num_atoms"),
    [
        ("[2H]C([2H])O", "OC([2H])[2H]", 4),
        ("[H]/N=C(/C)CC", "CC/C(C)=N\\[H]", 6),
        ("[13CH3][18O][2H]", "[2H][18O][13CH3]", 3),
        ("[Li+].[H-]", "[H-].[Li+]", 2),
    ],
)
def test_hydrogens_that_rdkit_keeps_are_nodes_on_request_however_the_smiles_is_written(
    geometry: Any, smiles: str, same_smiles: str, num_atoms: int
) -> None:
    processor = RMatProcessor(geometry=geometry, hydrogens="rdkit")
    batch = processor([smiles, same_smiles], return_tensors="np")
    assert batch["attention_mask"].sum(1).tolist() == [1 + num_atoms] * 2
    orders = [np.lexsort(nodes.T) for nodes in batch["node_features"]]
    first, second = (nodes[it] for nodes, it in zip(batch["node_features"], orders, strict=True))
    assert np.array_equal(first, second)
    spectra = [np.linalg.eigvalsh(it.astype(float)) for it in batch["interatomic_distances"]]
    np.testing.assert_allclose(*spectra, rtol=1e-6)
    default = RMatProcessor(geometry=geometry)
    num_heavy = Chem.MolFromSmiles(smiles).GetNumHeavyAtoms()
    assert default(smiles)["attention_mask"].sum() == 1 + num_heavy


def test_hydrogens_that_are_nodes_count_as_atoms() -> None:
    with pytest.raises(ValueError, match="5 atoms with its hydrogens exceed max_atoms=4"):
        RMatProcessor(geometry="2d", hydrogens="rdkit", max_atoms=4)("[2H]C([2H])([2H])[2H]")


# Descriptors and collators


def test_descriptors_are_model_inputs_when_chosen() -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt", "TPSA"])
    batch = processor(["CCO", "C"], return_tensors="pt")
    assert set(batch) == {*processor.model_input_names}
    assert set(batch) - {*RMatProcessor().model_input_names} == {"molecule_descriptors"}
    expected = [[46.069, 20.23], [16.043, 0.0]]
    np.testing.assert_allclose(batch["molecule_descriptors"], expected, rtol=1e-4)


def test_collator_of_transformers_pads_with_labels() -> None:
    rows = [PROCESSOR.featurize(smiles)[0] | {"label": 1.5} for smiles in ("C", "CCO")]
    batch = DataCollatorWithPadding(PROCESSOR)(rows)
    assert batch["node_features"].shape == (2, 4, 37)
    assert batch["labels"].tolist() == [1.5, 1.5]


def test_labels_of_atoms_are_padded_with_nan_behind_a_dummy_node_without_one() -> None:
    labels = {"C": [[1.0, 2.0]], "CCO": [[3.0, 4.0], [None, 6.0], [7.0, 8.0]]}
    rows = [PROCESSOR.featurize(smiles)[0] | {"labels": labels[smiles]} for smiles in labels]
    padded = DataCollatorWithPadding(PROCESSOR, pad_to_multiple_of=5)(rows)["labels"]
    assert (padded.shape, padded.dtype) == ((2, 5, 2), torch.float32)
    missing = [np.nan, np.nan]
    expected = [
        [missing, [1.0, 2.0], missing, missing, missing],
        [missing, [3.0, 4.0], [np.nan, 6.0], [7.0, 8.0], missing],
    ]
    np.testing.assert_array_equal(padded, expected)
    # one axis is labels of the molecule, however many atoms it has
    rows = [row | {"labels": [1.0, 2.0, 3.0]} for row in rows]
    assert PROCESSOR.pad(rows, return_tensors="pt")["labels"].shape == (2, 3)
    rows[1] |= {"labels": [[1.0], [2.0]]}
    rows[0] |= {"labels": [[1.0]]}
    with pytest.raises(ValueError, match=r"Row 1 has labels of shape \(2, 1\) and 3 atoms"):
        PROCESSOR.pad(rows)


def test_properties_of_atoms_of_an_sdf_file_become_labels(tmp_path: Path) -> None:
    """RDKit puts the property lists of a record on its atoms."""
    mol = embed("OC(=O)CC#N")
    for atom in mol.GetAtoms():
        atom.SetDoubleProp("charge", atom.GetIdx() / 8)
    Chem.CreateAtomDoublePropertyList(mol, "charge")
    with Chem.SDWriter(str(tmp_path / "one.sdf")) as writer:
        writer.write(mol)
    (read,) = Chem.SDMolSupplier(str(tmp_path / "one.sdf"), removeHs=False)
    heavy = [atom for atom in read.GetAtoms() if atom.GetAtomicNum() > 1]
    labels = [[atom.GetDoubleProp("charge")] for atom in heavy]
    padded = PROCESSOR.pad([PROCESSOR.featurize(read)[0] | {"labels": labels}])["labels"]
    np.testing.assert_allclose(padded[0, 1:, 0], np.arange(6) / 8)
    assert np.isnan(padded[0, 0, 0])


# Options, saving and loading


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *(("geometry", "3d", "got 3d"), ("conformer_method", "etkdg", "etkdg_v3")),
        *(("conformer_seed", -1, "-1"), ("conformer_seed", 2**31 - 2, "2147483646")),
        *(("on_conformer_failure", "given", "'2d'"), ("force_field", "amber", "amber")),
        *(("max_atoms", 0, "greater or equal to 1"), ("max_atoms", "256", "'256'")),
        *(("conformer_hydrogens", "yes", "yes"), ("max_conformer_attempts", 0, "0")),
        *(("conformer_time_limit_s", 0.5, "0.5"), ("molecule_descriptors", "MolWt", "'MolWt'")),
        ("molecule_descriptors", ["TPSA", "Weight"], "descriptors are ['Weight']"),
        ("molecule_descriptors", ["TPSA", "TPSA"], "different names"),
        ("molecule_descriptors", [], "descriptors are"),
    ],
)
def test_wrong_option_is_refused(option: str, value: Any, message: str) -> None:
    with pytest.raises(StrictDataclassError) as caught:
        RMatProcessor(**{option: value})
    assert message in str(caught.value)


def test_every_option_survives_saving_and_loading(tmp_path: Path) -> None:
    RMatProcessor(**OTHER_OPTIONS).save_pretrained(tmp_path)
    loaded = RMatProcessor.from_pretrained(tmp_path)
    for name, value in OTHER_OPTIONS.items():
        assert getattr(loaded, name) == value != getattr(RMatProcessor(), name)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    expected = {*OTHER_OPTIONS, "featurizer_version", "feature_extractor_type"}
    assert set(saved) - {"auto_map", "processor_class"} == expected
    assert saved["featurizer_version"] == FEATURIZER_VERSION


def test_option_can_be_changed_when_loading_and_another_featurizer_version_is_refused(
    tmp_path: Path,
) -> None:
    RMatProcessor().save_pretrained(tmp_path)
    assert RMatProcessor.from_pretrained(tmp_path, geometry="2d").geometry == "2d"
    with pytest.raises(StrictDataclassError, match="4d"):
        RMatProcessor.from_pretrained(tmp_path, geometry="4d")
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"featurizer_version": FEATURIZER_VERSION + 1}))
    with pytest.raises(StrictDataclassError, match="Use the release of rmat_hf that saved it"):
        RMatProcessor.from_pretrained(tmp_path)


@pytest.mark.usefixtures("remote_code_cache")
def test_saved_code_loads_through_both_auto_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RMatProcessor, "_auto_class", "AutoProcessor")
    processor = RMatProcessor(**OTHER_OPTIONS)
    processor.save_pretrained(tmp_path)
    files = {path.name for path in tmp_path.glob("*.py")}
    needed = ("configuration", "features", "geometry", "processing", "standardization")
    assert files == {f"{name}_rmat.py" for name in needed}
    expected = processor(["CCO", "C"])
    for auto_class in (AutoProcessor, AutoFeatureExtractor):
        loaded = auto_class.from_pretrained(tmp_path, trust_remote_code=True)
        assert type(loaded).__name__ == "RMatProcessor"
        assert {name: getattr(loaded, name) for name in OTHER_OPTIONS} == OTHER_OPTIONS
        for name, array in loaded(["CCO", "C"]).items():
            np.testing.assert_array_equal(array, expected[name])


# Padding


def build_features(num_nodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (num_nodes, num_nodes)
    return {
        "node_features": generator.integers(0, 2, (num_nodes, 5), dtype=np.uint8),
        "bond_types": generator.integers(0, 33, shape, dtype=np.uint8),
        "topological_distances": generator.integers(0, 255, shape, dtype=np.uint8),
        "interatomic_distances": generator.random(shape, dtype=np.float32),
    }


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    multiple=st.sampled_from([None, 1, 4]),
)
def test_padding_keeps_every_feature_and_fills_the_rest(
    sizes: list[int], multiple: int | None
) -> None:
    rows = [build_features(size, seed) for seed, size in enumerate(sizes)]
    batch = PROCESSOR.pad(rows, pad_to_multiple_of=multiple)
    num_nodes = batch["node_features"].shape[1]
    assert num_nodes == -(-max(sizes) // (multiple or 1)) * (multiple or 1)
    for row, (features, size) in enumerate(zip(rows, sizes, strict=True)):
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (num_nodes - size)
        for name in INPUTS:
            dtype, padding_value, num_node_axes = NODE_INPUTS[name]
            assert batch[name].dtype == dtype
            place = tuple([slice(size)] * num_node_axes)
            expected = np.full(batch[name].shape[1:], padding_value, dtype=dtype)
            expected[place] = features[name]
            np.testing.assert_array_equal(batch[name][row], expected)


def test_padding_option_decides_the_number_of_nodes() -> None:
    rows, fixed = [build_features(3), build_features(5)], {"padding": "max_length", "max_length": 7}
    for options, num_nodes in (({}, 5), (fixed, 7), ({**fixed, "pad_to_multiple_of": 8}, 8)):
        assert PROCESSOR.pad(rows, **options)["bond_types"].shape == (2, num_nodes, num_nodes)


@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_without_padding_every_molecule_keeps_its_size(padding: Padding) -> None:
    rows = [build_features(3), build_features(5)]
    batch = PROCESSOR.pad(rows, padding=padding)
    assert [array.shape for array in batch["bond_types"]] == [(3, 3), (5, 5)]
    assert [mask.tolist() for mask in batch["attention_mask"]] == [[1] * 3, [1] * 5]
    with pytest.raises(ValueError, match="padding=True"):
        PROCESSOR.pad(rows, padding=padding, return_tensors="pt")


def test_padded_unpadded_listed_and_tensor_features_make_the_same_batch() -> None:
    rows = [build_features(3), build_features(4)]
    once = PROCESSOR.pad(rows, padding="max_length", max_length=8)
    lists = [{name: array.tolist() for name, array in row.items()} for row in rows]
    tensors = [{name: torch.from_numpy(array) for name, array in row.items()} for row in rows]
    for given_rows in (lists, tensors, PROCESSOR.pad(rows, padding=False), PROCESSOR.pad(rows)):
        batch = PROCESSOR.pad(given_rows, padding="max_length", max_length=8)
        for name in NODE_INPUTS:
            assert batch[name].dtype == once[name].dtype
            np.testing.assert_array_equal(batch[name], once[name])


def test_other_keys_are_carried_along() -> None:
    rows = [build_features(3) | {"labels": [1.0, float("nan")], "smiles": "CC"}] * 2
    batch = PROCESSOR.pad(rows, return_tensors="pt")
    assert batch["labels"].shape == (2, 2)
    assert batch["smiles"] == ["CC", "CC"]


def test_an_option_of_other_processors_is_refused_by_the_name_of_this_one() -> None:
    with pytest.raises(TypeError, match=r"RMatProcessor takes no 'truncation'.*never cut"):
        PROCESSOR(["CCO"], truncation=True)


@pytest.mark.parametrize("molecules", [["C", "CC"], ("C",), np.array(["C", "CC"])])
def test_several_molecules_in_the_place_of_one_are_named(molecules: Any) -> None:
    with pytest.raises(MoleculeError, match=r"not a molecule: give one at a time.*batched"):
        PROCESSOR.featurize(molecules)


@pytest.mark.parametrize("name", ["label", "label_ids"])
def test_labels_may_have_the_names_that_collators_of_transformers_know(name: str) -> None:
    rows = [build_features(3) | {name: value} for value in (1.0, None)]
    for padding in (True, False):
        batch = PROCESSOR.pad(rows, padding=padding)
        assert name not in batch
        np.testing.assert_array_equal(np.array(batch["labels"], float), [1.0, np.nan])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "max_length"}, "'max_length' needs one"),
        ({"max_length": 9}, "nothing else reads it"),
        ({"padding": "max_length", "max_length": 2}, "Row 1 has 5 nodes .* max_length=2"),
        ({"padding": "all"}, "padding is 'all'. Choose one of"),
        ({"return_tensors": "tf"}, "tf is not a valid TensorType"),
    ],
)
def test_wrong_padding_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PROCESSOR.pad([build_features(3), build_features(5)], **options)


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([{"node_features": np.zeros((3, 5))}], 0),
        ([build_features(3), build_features(3) | {"labels": 1}], 1),
        ([build_features(3) | {"bond_types": np.zeros((4, 4))}], 0),
        (build_features(3), 0),  # one molecule instead of a list of them
    ],
)
def test_wrong_features_are_refused(rows: Any, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"Row {wrong} is not one molecule .*featurize"):
        PROCESSOR.pad(rows)


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
@pytest.mark.parametrize("descriptors", [None, ["MolWt", "TPSA"]])
def test_empty_batch_has_zero_rows(return_tensors: Any, descriptors: Any) -> None:
    processor = RMatProcessor(geometry="2d", molecule_descriptors=descriptors)
    empty = processor.pad([], return_tensors=return_tensors)
    full = processor("C", return_tensors=return_tensors)
    assert empty.keys() == full.keys()
    for name, values in empty.items():
        assert (len(values), values.ndim, values.dtype) == (0, full[name].ndim, full[name].dtype)
    assert set(map(len, processor.pad([], padding=False).values())) == {0}


# RMatBatchFeature


def test_attributes_survive_pickling_copying_and_moving() -> None:
    batch = PROCESSOR(["CCO", "C1CC", "C"], errors="skip", return_tensors="pt")
    copies = [copy.copy(batch), copy.deepcopy(batch), send_to_device(batch, torch.device("cpu"))]
    restored = pickle.loads(pickle.dumps(batch)).convert_to_tensors("np")
    for other in (*copies, restored, batch.to("cpu")):
        assert (other.row_indices, list(other.skipped_rows)) == ([0, 2], [1])
        assert other.geometry_sources == ["bounds"] * 2


def test_a_dtype_casts_no_distances() -> None:
    batch = PROCESSOR(["CCO", "C"], return_tensors="pt")
    before = batch["interatomic_distances"].clone()
    batch["molecule_descriptors"] = torch.ones(2, 1)
    batch.to(torch.bfloat16).to("cpu", torch.float16)
    assert torch.equal(batch["interatomic_distances"], before)
    assert batch["molecule_descriptors"].dtype == torch.float16
    assert batch["node_features"].dtype == torch.uint8
    assert {tensor.device.type for tensor in batch.to("meta").values()} == {"meta"}


# Many molecules at once


def test_a_batch_has_the_bits_of_its_molecules() -> None:
    processor = RMatProcessor(on_conformer_failure="bounds", max_conformer_attempts=1)
    molecules = [*GOOD_SMILES, IMPOSSIBLE, embed("CCO"), embed("[Na+].[O-]C(=O)C"), "C" * 70]
    batch = build_batch([processor.featurize_compactly(molecule) for molecule in molecules])
    alone = processor.pad([processor.featurize(molecule)[0] for molecule in molecules])
    for name, array in alone.items():
        assert (batch[name].dtype, batch[name].shape) == (array.dtype, array.shape)
        assert batch[name].tobytes() == array.tobytes(), name


def compute_expected(begins: list[int], ends: list[int], num_atoms: int) -> np.ndarray:
    graph = coo_array((np.ones(len(begins)), (begins, ends)), shape=(num_atoms, num_atoms)).tocsr()
    distances = shortest_path(graph, directed=False, unweighted=True)
    return np.where(np.isinf(distances), 255, np.minimum(distances, 254)).astype(np.uint8)


@given(seed=st.integers(0, 10_000), num_atoms=st.integers(1, 140), num_bonds=st.integers(0, 200))
def test_distances_equal_those_of_scipy(seed: int, num_atoms: int, num_bonds: int) -> None:
    begins, ends = np.random.default_rng(seed).integers(0, num_atoms, size=(2, num_bonds))
    positions = np.arange(num_atoms)
    distances = compute_graph_distances(begins, ends, positions=positions, max_size=num_atoms)
    np.testing.assert_array_equal(distances, compute_expected(begins, ends, num_atoms))


@pytest.mark.parametrize("size", [2, 64, 300])
def test_molecules_of_a_batch_do_not_meet(size: int) -> None:
    """A chain, one atom, a chain."""
    chain = np.arange(size - 1)
    begins = np.concatenate([chain, chain + size + 1])
    positions = np.concatenate([np.arange(size), [0], np.arange(size)])
    distances = compute_graph_distances(begins, begins + 1, positions=positions, max_size=size)
    expected = compute_expected(chain, chain + 1, size)
    alone = [[0] + [255] * (size - 1)]
    np.testing.assert_array_equal(distances, np.concatenate([expected, alone, expected]))


@pytest.mark.parametrize("labels", [[1.5, None], [[1.5, 2.0], [None, 3.0]], [1, 0]])
def test_the_collator_of_transformers_pads_molecules_and_labels(
    labels: list[Any], processor: RMatProcessor
) -> None:
    rows = [
        {**processor.featurize(smiles)[0], "label": label}
        for smiles, label in zip(["CCO", "c1ccccc1"], labels, strict=True)
    ]
    batch = DataCollatorWithPadding(processor)(rows)
    expected = np.array(labels, dtype=None if labels == [1, 0] else np.float32)
    np.testing.assert_array_equal(batch["labels"].numpy(), expected)
    assert batch["labels"].dtype == (torch.int64 if labels == [1, 0] else torch.float32)
    assert isinstance(processor, SequenceFeatureExtractor)
