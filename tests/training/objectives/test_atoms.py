"""Properties of masked atoms, compared with RDKit's."""

from types import SimpleNamespace

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors, rdPartialCharges
from tiny_pretraining import CORPUS_SMILES

from rmat_hf.data.stored_features import expand_features, pack_features
from rmat_hf.model.configuration_rmat import MASK_COLUMN
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.atoms import ATOM_PROPERTIES, AtomObjective, compute_properties
from rmat_hf.training.objectives.objective import ObjectiveBatch

PROCESSOR = RMatProcessor(geometry="bounds")
ARGUMENTS = SimpleNamespace(mask_ratio=0.3, masked_distances="visible")
# not canonical
SMILES = ["OCC(=O)c1ccccc1", "C[N+](C)(C)CC([O-])=O", "CCCCl"]


def pack(smiles: str) -> bytes:
    return pack_features(PROCESSOR.featurize_compactly(smiles))


@pytest.fixture(scope="module")
def objective() -> AtomObjective:
    return AtomObjective.fit(
        [pack(smiles) for smiles in CORPUS_SMILES],
        processor=PROCESSOR,
        arguments=ARGUMENTS,
        columns={"smiles": CORPUS_SMILES},
    )


@pytest.mark.parametrize("smiles", SMILES)
@pytest.mark.parametrize("is_canonical", [False, True])
def test_properties_are_those_of_rdkit_in_the_order_of_the_features(
    smiles: str, is_canonical: bool
) -> None:
    order = Chem.CanonSmiles(smiles) if is_canonical else smiles
    mol = Chem.MolFromSmiles(order)
    values = compute_properties(smiles, pack(order), processor=PROCESSOR)
    assert values.shape == (mol.GetNumAtoms(), len(ATOM_PROPERTIES))
    by_name = dict(zip(ATOM_PROPERTIES, values.T, strict=True))
    contributions = np.array(rdMolDescriptors._CalcCrippenContribs(mol))
    np.testing.assert_array_equal(by_name["crippen_logp"], contributions[:, 0])
    np.testing.assert_array_equal(by_name["crippen_mr"], contributions[:, 1])
    assert by_name["tpsa"].sum() == pytest.approx(rdMolDescriptors.CalcTPSA(mol))
    rdPartialCharges.ComputeGasteigerCharges(mol)
    charges = [atom.GetDoubleProp("_GasteigerCharge") for atom in mol.GetAtoms()]
    np.testing.assert_array_equal(by_name["gasteiger_charge"], charges)
    assert np.ptp(by_name["estate"]) > 1


def test_features_of_another_molecule_or_order_have_none() -> None:
    for smiles in ("CCCBr", "C1", None):
        assert compute_properties(smiles, pack("CCCCl"), processor=PROCESSOR) is None


def test_only_masked_centers_are_asked_and_their_distances_are_hidden(
    objective: AtomObjective,
) -> None:
    packed = [pack(smiles) for smiles in SMILES]
    inputs, asked = expand_features(packed), np.array([True, True, False])
    options = (inputs, asked, (0, 0), PROCESSOR, ARGUMENTS, {"smiles": SMILES})
    labels, hidden = objective.prepare(ObjectiveBatch(packed, *options))
    is_labeled = np.isfinite(labels).all(-1)
    assert is_labeled.any(1).tolist() == [True, True, False]
    assert (hidden["node_features"][is_labeled][:, MASK_COLUMN] == 1).all()
    assert np.isnan(labels[~is_labeled]).all()
    row, node = np.argwhere(is_labeled)[0]
    raw = compute_properties(SMILES[row], packed[row], processor=PROCESSOR)[node - 1]
    means, stds = np.array(list(objective.state.values())).T
    np.testing.assert_allclose(labels[row, node], ((raw - means) / stds).clip(-6, 6), atol=1e-5)
    # nothing at all is known of where a center is
    atoms = slice(1, int(inputs["attention_mask"][row].sum()))
    before, after = inputs["interatomic_distances"], hidden["interatomic_distances"]
    assert (before[row, node, atoms] != after[row, node, atoms]).any()
    again = AtomObjective(objective.state).prepare(ObjectiveBatch(packed, *options))[0]
    np.testing.assert_array_equal(again, labels)
