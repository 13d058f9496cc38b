"""A stored molecule equals a freshly featurized one bit for bit."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from tiny import TINY_SMILES

from rmat_hf.data.stored_features import (
    LengthGroupedSampler,
    build_features_column,
    compute_length_order,
    expand_features,
    group_by_length,
    pack_column,
    pack_features,
    read_molecule_descriptors,
    read_rows,
)
from rmat_hf.model.processing_rmat import Molecule, RMatProcessor

# Salts, single atoms, metals, isotopes, charges, rings.
VARIED_SMILES = [
    *TINY_SMILES,
    "[Na+]",
    "[Na+].[Cl-]",
    "CCO.[Na+]",
    "F[U](F)(F)(F)(F)F",
    "[13CH3][C@](C)(N)O",
    "CC[Pt](N)(N)Cl",
    "C1C2CC3CC1CC(C2)C3",
    "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
]
LARGE_SMILES = ["C" * 64, "C" * 65, "C" * 300, "NCC(=O)" + "NC(C)C(=O)" * 50 + "O.[Na+]"]
DESCRIPTORS = ["MolWt", "TPSA", "MaxPartialCharge"]


def embed(smiles: str, shift: float = 0.0) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=17) == 0
    mol.GetConformer().SetPositions(mol.GetConformer().GetPositions() + shift)
    return mol


def assert_expansion_equals_padding(molecules: list[Molecule], processor: RMatProcessor) -> None:
    packed = [pack_features(processor.featurize_compactly(molecule)) for molecule in molecules]
    column = build_features_column(packed)
    # as a column of a data set, in one piece, in several and in Python
    assert pack_column(column) == pack_column(pa.chunked_array([column[:1], column[1:]])) == packed
    assert pack_column(column[1:]) == packed[1:]
    assert [pack_features(it) for it in read_rows(column.to_pylist())] == packed
    expected = processor.pad([processor.featurize(molecule)[0] for molecule in molecules])
    expanded = expand_features(packed)
    assert set(expanded) == set(expected)
    for name, array in expected.items():
        assert expanded[name].dtype == array.dtype, name
        assert expanded[name].shape == array.shape, name
        assert expanded[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("geometry", ["conformer", "bounds", "2d"])
@pytest.mark.parametrize("descriptors", [None, DESCRIPTORS])
@pytest.mark.parametrize("fingerprints", [None, ["ecfp4", "atom_pairs"]])
def test_batch_is_the_one_of_the_processor_bit_for_bit(
    geometry: Any, descriptors: Any, fingerprints: Any
) -> None:
    processor = RMatProcessor(
        geometry=geometry, molecule_descriptors=descriptors, fingerprints=fingerprints
    )
    assert_expansion_equals_padding(list(VARIED_SMILES), processor)
    for smiles in VARIED_SMILES:
        assert_expansion_equals_padding([smiles], processor)


@pytest.mark.parametrize("geometry", ["bounds", "2d"])
def test_large_molecules_beside_small_ones_stay_the_same(geometry: Any) -> None:
    processor = RMatProcessor(geometry=geometry, max_atoms=512)
    assert_expansion_equals_padding([*LARGE_SMILES, "C", "CCO"], processor)


def test_given_conformers_keep_their_distances_and_mix_with_generated_ones() -> None:
    molecules = [embed("CCCO"), "CCO", embed("[Na+].[O-]C(=O)C", shift=100.0), embed("c1ccccc1")]
    assert_expansion_equals_padding(molecules, RMatProcessor())
    assert_expansion_equals_padding([molecules[0], molecules[2]], RMatProcessor(geometry="given"))


def test_coordinates_and_bounds_of_a_step_down_stand_in_one_batch() -> None:
    impossible = "C1/C=C/C=C/C=C/C=C/1"
    processor = RMatProcessor(on_conformer_failure="bounds", max_conformer_attempts=1)
    assert processor.featurize_compactly(impossible).geometry_source.startswith("bounds (step")
    assert_expansion_equals_padding(["CCO", impossible, embed("CO")], processor)


def test_drug_like_molecule_takes_less_than_300_bytes() -> None:
    features = RMatProcessor().featurize_compactly("Cc1cc(C)nc(C2CCN(C(=O)c3noc4c3CCCC4)C2)n1")
    assert len(features.atom_codes) == 24
    assert len(pack_features(features)) < 300


def test_columns_have_what_a_chemist_reads_off_them() -> None:
    molecules = [embed("CCO", shift=100.0), "C[O-].[Na+]"]
    features = [RMatProcessor().featurize_compactly(it) for it in molecules]
    features.append(RMatProcessor(geometry="bounds").featurize_compactly("CCO"))
    given, salt, bounds = build_features_column(map(pack_features, features)).to_pylist()
    assert [given["is_given"], salt["is_given"], bounds["is_given"]] == [True, False, False]
    assert list(zip(given["bond_begins"], given["bond_ends"], strict=True)) == [(0, 1), (1, 2)]
    assert (len(salt["atom_codes"]), len(salt["bond_types"])) == (3, 1)
    # in Å
    mol = molecules[0]
    positions = mol.GetConformer().GetPositions()[:3]
    found = np.reshape(given["coordinates"], (3, 3))
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(positions, axis=0), atol=1e-5)
    assert given["distances"] is bounds["coordinates"] is None
    limits = rdDistGeom.GetMoleculeBoundsMatrix(Chem.MolFromSmiles("CCO"))
    expected = [(limits[pair] + limits[pair[::-1]]) / 2 for pair in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(bounds["distances"], expected, atol=6e-4)


def test_undefined_descriptor_stays_nan() -> None:
    features = RMatProcessor(geometry="bounds").featurize_compactly("CCO")
    values = np.array([np.nan, 1.5, -np.inf], dtype=np.float32)
    packed = pack_features(features._replace(molecule_descriptors=values))
    np.testing.assert_array_equal(read_molecule_descriptors([packed, packed]), [values, values])


def test_rows_with_other_numbers_of_descriptors_are_refused() -> None:
    packed = [
        pack_features(
            RMatProcessor(geometry="2d", molecule_descriptors=names).featurize_compactly("C")
        )
        for names in (None, ["MolWt"])
    ]
    with pytest.raises(ValueError, match="different numbers of descriptors"):
        read_molecule_descriptors(packed)


# Batches of similar sizes

LENGTHS = np.random.default_rng(0).integers(2, 60, size=403)


def draw_batches(sampler: LengthGroupedSampler) -> list[np.ndarray]:
    rows = np.array(list(sampler))
    return [rows[start : start + sampler.batch_size] for start in range(0, len(rows), 16)]


@given(
    st.lists(st.integers(2, 300), max_size=80),
    st.integers(1, 20),
    st.sampled_from([1, 5000, 2**20]),
)
def test_every_molecule_is_in_one_batch_within_both_limits(
    num_nodes: list[int], batch_size: int, max_pairs: int
) -> None:
    batches = group_by_length(num_nodes, batch_size=batch_size, max_pairs=max_pairs)
    order = sorted(range(len(num_nodes)), key=lambda idx: -num_nodes[idx])
    assert compute_length_order(num_nodes).tolist() == order
    positions = [position for batch in batches for position in batch.tolist()]
    assert sorted(positions) == list(range(len(num_nodes)))
    sizes = [num_nodes[position] for position in positions]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        largest = max(num_nodes[position] for position in batch)
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * largest**2 <= max_pairs


@pytest.mark.parametrize("num_rows", [0, 5, 16, 17, 403])
def test_an_epoch_has_every_row_once(num_rows: int) -> None:
    sampler = LengthGroupedSampler(LENGTHS[:num_rows], batch_size=16, seed=0)
    assert sorted(sampler) == list(range(num_rows))
    assert len(sampler) == num_rows


def test_order_follows_from_seed_and_epoch() -> None:
    sampler = LengthGroupedSampler(LENGTHS, batch_size=16, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    again = LengthGroupedSampler(LENGTHS, batch_size=16, seed=3)
    assert list(again) == first != second
    again.set_epoch(1)
    assert list(again) == second
    assert list(LengthGroupedSampler(LENGTHS, batch_size=16, seed=4)) != first


def test_length_says_nothing_about_the_place_in_an_epoch() -> None:
    correlations = []
    for epoch in range(40):
        sampler = LengthGroupedSampler(LENGTHS, batch_size=16, seed=0)
        sampler.set_epoch(epoch)
        means = [LENGTHS[batch].mean() for batch in draw_batches(sampler)]
        correlations.append(np.corrcoef(means, np.arange(len(means)))[0, 1])
    assert abs(np.mean(correlations)) < 0.1
