"""The canonical order does not depend on how a molecule is written."""

import numpy as np
import pytest
from rdkit import Chem

from rmat_hf.model.canonical_order_rmat import build_canonical_mol, read_positions

SMILES = ["CCO", "OC(=O)c1ccccc1", "[Na+].[O-]C(=O)C", "F/C=C/C[C@H](N)O", "C1C2CC3CC1CC(C2)C3"]


def describe(mol: Chem.Mol) -> list[tuple[int, int, str]]:
    return [
        (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), str(bond.GetBondType()))
        for bond in mol.GetBonds()
    ]


@pytest.mark.parametrize("smiles", SMILES)
def test_every_way_of_writing_has_one_order_of_atoms_and_bonds(smiles: str) -> None:
    mol = Chem.MolFromSmiles(smiles)
    expected, _ = build_canonical_mol(mol, smiles=smiles)
    for text in Chem.MolToRandomSmilesVect(mol, 5, randomSeed=1):
        canonical, atom_order = build_canonical_mol(Chem.MolFromSmiles(text), smiles=text)
        assert describe(canonical) == describe(expected)
        numbers = [atom.GetAtomicNum() for atom in Chem.MolFromSmiles(text).GetAtoms()]
        assert [atom.GetAtomicNum() for atom in canonical.GetAtoms()] == [
            numbers[idx] for idx in atom_order
        ]


@pytest.mark.parametrize("smiles", SMILES)
def test_molecule_of_its_canonical_smiles_comes_back_itself(smiles: str) -> None:
    canonical_smiles = Chem.CanonSmiles(smiles)
    mol = Chem.MolFromSmiles(canonical_smiles)
    slow, slow_order = build_canonical_mol(mol, smiles=None)
    fast, fast_order = build_canonical_mol(mol, smiles=canonical_smiles)
    assert fast is mol is not slow
    assert fast.ToBinary() == slow.ToBinary()
    np.testing.assert_array_equal(fast_order, slow_order)


def test_isotopes_and_atom_maps_take_no_part() -> None:
    plain, _ = build_canonical_mol(Chem.MolFromSmiles("CCO"), smiles=None)
    labeled = Chem.MolFromSmiles("[13CH3][CH2:2]O")
    canonical, _ = build_canonical_mol(labeled, smiles=Chem.MolToSmiles(labeled))
    assert canonical.ToBinary() == plain.ToBinary()
    assert labeled.GetAtomWithIdx(0).GetIsotope() == 13


def test_positions_come_in_the_order_of_the_input() -> None:
    mol = Chem.MolFromSmiles("OCC")
    canonical, atom_order = build_canonical_mol(mol, smiles="OCC")
    work_mol = Chem.AddHs(canonical)
    work_mol.AddConformer(Chem.Conformer(work_mol.GetNumAtoms()))
    for atom in work_mol.GetAtoms():
        position = (atom.GetAtomicNum(), atom.GetTotalNumHs(includeNeighbors=True), 0)
        work_mol.GetConformer().SetAtomPosition(atom.GetIdx(), position)
    assert read_positions(work_mol, atom_order).tolist() == [[8, 1, 0], [6, 2, 0], [6, 3, 0]]
