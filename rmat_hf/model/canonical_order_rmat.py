"""One order of atoms and bonds for every way of writing a molecule."""

import re

import numpy as np
from rdkit import Chem, rdBase

_ISOTOPE_OR_MAP = re.compile(r"\[\d|:\d+\]")


def build_canonical_mol(mol: Chem.Mol, *, smiles: str | None) -> tuple[Chem.Mol, np.ndarray]:
    """Return the molecule in canonical atom and bond order, and each of its atoms' index in `mol`.

    Isotopes and atom maps take no part. A molecule is in this order already if it was parsed from
    its canonical SMILES: then it comes back itself.

    Args:
        mol (`Chem.Mol`): Sanitized molecule without hydrogen atoms.
        smiles (`str`, *optional*): What `mol` was parsed from, if it has not changed since.
    """
    bare_mol, canonical_smiles = mol, Chem.MolToSmiles(mol)
    if _ISOTOPE_OR_MAP.search(canonical_smiles):
        bare_mol = Chem.Mol(mol)
        for atom in bare_mol.GetAtoms():
            atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
        canonical_smiles = Chem.MolToSmiles(bare_mol)
    with rdBase.BlockLogs():
        is_canonical = canonical_smiles == smiles
        canonical_mol = mol if is_canonical else Chem.MolFromSmiles(canonical_smiles)
    if canonical_mol is not None and canonical_mol.GetNumAtoms() == mol.GetNumAtoms():
        properties = bare_mol.GetPropsAsDict(includePrivate=True, includeComputed=True)
        return canonical_mol, np.array(properties["_smilesAtomOutputOrder"], dtype=np.int64)
    # Some metal complexes have no SMILES that RDKit reads back: here the bond order of `mol`
    # stays, so another way of writing the molecule can give another conformer.
    bare_mol = Chem.Mol(bare_mol)
    bare_mol.RemoveAllConformers()
    atom_order = np.argsort(list(Chem.CanonicalRankAtoms(bare_mol)))
    return Chem.RenumberAtoms(bare_mol, atom_order.tolist()), atom_order


def read_positions(canonical_mol: Chem.Mol, atom_order: np.ndarray) -> np.ndarray:
    """Return the positions of the heavy atoms, which come first, in the order of the input.

    Returns:
        `np.ndarray` of shape `(num_heavy_atoms, 3)`, float64, in Å.
    """
    coordinates = np.empty((len(atom_order), 3))
    coordinates[atom_order] = canonical_mol.GetConformer().GetPositions()[: len(atom_order)]
    return coordinates
