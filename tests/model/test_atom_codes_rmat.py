"""Codes of atoms and bonds stand for the columns that the model sees."""

import numpy as np
import pytest
from rdkit import Chem

from rmat_hf.model.atom_codes_rmat import (
    DUMMY_NODE_CODE,
    NODE_FEATURES_OF_CODE,
    NUM_NODE_FEATURES,
    PADDING_CODE,
    compute_atom_codes,
    compute_bonds,
)
from rmat_hf.model.configuration_rmat import DUMMY_COLUMN


def test_every_code_has_different_features() -> None:
    assert NODE_FEATURES_OF_CODE.shape == (PADDING_CODE + 1, NUM_NODE_FEATURES)
    assert len(np.unique(NODE_FEATURES_OF_CODE, axis=0)) == PADDING_CODE + 1
    assert np.iinfo(np.uint16).max >= PADDING_CODE


def test_dummy_node_has_its_flag_and_padding_nothing() -> None:
    assert NODE_FEATURES_OF_CODE[DUMMY_NODE_CODE].nonzero()[0].tolist() == [DUMMY_COLUMN]
    assert not NODE_FEATURES_OF_CODE[PADDING_CODE].any()
    assert (NODE_FEATURES_OF_CODE[:DUMMY_NODE_CODE, 2:35].sum(axis=1) == 4).all()


@pytest.mark.parametrize("smiles", ["C", "[Na+].[Cl-]", "c1ccccc1[U](F)(F)(F)F"])
def test_codes_are_integers_of_16_bits(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    codes, bonds = compute_atom_codes(mol), compute_bonds(mol)
    assert codes.dtype == bonds.dtype == np.uint16
    assert codes.shape == (mol.GetNumAtoms(),)
    assert bonds.shape == (mol.GetNumBonds(), 3)
    assert (codes < DUMMY_NODE_CODE).all()


def test_bonds_name_their_atoms_and_type() -> None:
    assert compute_bonds(Chem.MolFromSmiles("C=CO")).tolist() == [[0, 1, 19], [1, 2, 3]]
