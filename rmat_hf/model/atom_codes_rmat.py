"""Atoms and bonds of an RDKit molecule as small integers, and the columns they stand for.

Attributes are read with `map` over unbound methods: RDKit's iterators cost several times as much.
"""

import math
from typing import NamedTuple

import numpy as np
from rdkit import Chem

from .configuration_rmat import DUMMY_COLUMN, NUM_BOND_ORDERS

# One-hot classes in column order; a value outside its list takes the last class.
ATOMIC_NUMBERS = (5, 6, 7, 8, 9, 15, 16, 17, 35, 53, None)
NUMBERS_OF_NEIGHBORS = (0, 1, 2, 3, 4, 5)
NUMBERS_OF_HYDROGENS = (0, 1, 2, 3, 4)
FORMAL_CHARGES = (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5)

# Columns of one atom in `node_features`, after the mask and the dummy flag.
FIRST_ATOM_COLUMN = DUMMY_COLUMN + 1
NUM_ATOM_FEATURES = 2 + sum(
    map(len, (ATOMIC_NUMBERS, NUMBERS_OF_NEIGHBORS, NUMBERS_OF_HYDROGENS, FORMAL_CHARGES))
)
NUM_NODE_FEATURES = FIRST_ATOM_COLUMN + NUM_ATOM_FEATURES
_NUMBERS_OF_CLASSES = (
    *map(len, (ATOMIC_NUMBERS, NUMBERS_OF_NEIGHBORS, NUMBERS_OF_HYDROGENS, FORMAL_CHARGES)),
    2,  # in ring
    2,  # aromatic
)
DUMMY_NODE_CODE = math.prod(_NUMBERS_OF_CLASSES)
PADDING_CODE = DUMMY_NODE_CODE + 1

# Index of the bond order in the bond type code; every other bond type takes the last class.
BOND_ORDERS = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.AROMATIC: 1,
    Chem.BondType.DOUBLE: 2,
    Chem.BondType.TRIPLE: 3,
}


def _build_node_feature_table() -> np.ndarray:
    """Return the features of every atom code in its row; the last ones: dummy node, padding."""
    table = np.zeros((PADDING_CODE + 1, NUM_NODE_FEATURES), dtype=np.uint8)
    table[DUMMY_NODE_CODE, DUMMY_COLUMN] = 1
    codes = np.arange(DUMMY_NODE_CODE)
    *one_hots, in_ring, aromatic = np.unravel_index(codes, _NUMBERS_OF_CLASSES)
    column = FIRST_ATOM_COLUMN
    for classes, num_classes in zip(one_hots, _NUMBERS_OF_CLASSES, strict=False):
        table[codes, column + classes] = 1
        column += num_classes
    table[codes, column] = in_ring
    table[codes, column + 1] = aromatic
    return table


# Row: code of an atom, `DUMMY_NODE_CODE` or `PADDING_CODE`. Columns: those of `node_features`.
NODE_FEATURES_OF_CODE = _build_node_feature_table()


class RMatCompactFeatures(NamedTuple):
    """Everything the model sees of a molecule, before it becomes one value per pair of nodes.

    Args:
        atom_codes (`np.ndarray` of shape `(num_atoms,)`, uint16): see [`compute_atom_codes`].
        bonds (`np.ndarray` of shape `(num_bonds, 3)`, uint16): see [`compute_bonds`].
        geometry (`np.ndarray`):
            Coordinates `(num_atoms, 3)`, int16 or float32, or distances above the diagonal,
            `(num_atoms * (num_atoms - 1) / 2,)`, uint16 or float32; integers are steps of 0.001 Å.
        geometry_source (`str`): Entry of `geometry_sources`.
        molecule_descriptors (`np.ndarray`, *optional*): `(num_descriptors,)`, float32.
    """

    atom_codes: np.ndarray
    bonds: np.ndarray
    geometry: np.ndarray
    geometry_source: str
    molecule_descriptors: np.ndarray | None


def compute_atom_codes(mol: Chem.Mol) -> np.ndarray:
    """Return the row of every atom in `NODE_FEATURES_OF_CODE`, `(num_atoms,)`, uint16."""
    atoms = list(map(mol.GetAtomWithIdx, range(mol.GetNumAtoms())))
    codes = np.zeros(len(atoms), dtype=np.int64)
    for classes, read in (
        (ATOMIC_NUMBERS, Chem.Atom.GetAtomicNum),
        (NUMBERS_OF_NEIGHBORS, Chem.Atom.GetDegree),
        (NUMBERS_OF_HYDROGENS, Chem.Atom.GetTotalNumHs),
        (FORMAL_CHARGES, Chem.Atom.GetFormalCharge),
        ((False, True), Chem.Atom.IsInRing),
        ((False, True), Chem.Atom.GetIsAromatic),
    ):
        class_of_value = {value: idx for idx, value in enumerate(classes)}
        last = len(classes) - 1
        codes *= len(classes)
        codes += [class_of_value.get(value, last) for value in map(read, atoms)]
    return codes.astype(np.uint16)


def compute_bonds(mol: Chem.Mol) -> np.ndarray:
    """Return both atoms and the type of every bond.

    Returns:
        `np.ndarray` of shape `(num_bonds, 3)`, uint16: indices of the atoms, and
        1 + 8 * order + 4 * aromatic + 2 * conjugated + in ring.
    """
    bonds = list(map(mol.GetBondWithIdx, range(mol.GetNumBonds())))
    last = NUM_BOND_ORDERS - 1
    codes = [
        1 + 8 * BOND_ORDERS.get(order, last) + 4 * aromatic + 2 * conjugated + in_ring
        for order, aromatic, conjugated, in_ring in zip(
            map(Chem.Bond.GetBondType, bonds),
            map(Chem.Bond.GetIsAromatic, bonds),
            map(Chem.Bond.GetIsConjugated, bonds),
            map(Chem.Bond.IsInRing, bonds),
            strict=True,
        )
    ]
    begins = list(map(Chem.Bond.GetBeginAtomIdx, bonds))
    ends = list(map(Chem.Bond.GetEndAtomIdx, bonds))
    return np.array([begins, ends, codes], dtype=np.uint16).T
