"""What RDKit cannot do in a time that anybody would wait, or without ending the process."""

from rdkit import Chem

# RDKit recurses once per atom where it writes a SMILES; a chain of 20,000 ends the process.
MAX_WRITTEN_ATOMS = 3000


def is_densely_bonded(mol: Chem.Mol) -> bool:
    """Tell whether a molecule has so many rings that RDKit may take hours to find them.

    Carbon cages have 1.5 bonds per atom and clusters of boron 2.5, far below the limit.
    """
    return bool(mol.GetNumBonds() > 2 * mol.GetNumAtoms() + 100)


def is_tractable(mol: Chem.Mol) -> bool:
    """Tell whether RDKit can sanitize a molecule and write its SMILES."""
    return mol.GetNumAtoms() <= MAX_WRITTEN_ATOMS and not is_densely_bonded(mol)
