"""One RDKit molecule → arrays of atoms, bonds, topological distances and descriptors."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors

from .configuration_rmat import (
    BEYOND_CUTOFF,
    DUMMY_COLUMN,
    DUMMY_NODE_IDX,
    NO_BOND_TYPE,
    NUM_BOND_ORDERS,
    UNREACHABLE_DISTANCE,
)

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

# Index of the bond order in the bond type code; every other bond type takes the last class.
BOND_ORDERS = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.AROMATIC: 1,
    Chem.BondType.DOUBLE: 2,
    Chem.BondType.TRIPLE: 3,
}

_LOG_TIMESTAMP = re.compile(r"^\[\d\d:\d\d:\d\d\]\s*")
# RDKit reads the atomic number primitive [#6] of SMARTS as a bare atom without hydrogens.
_SMARTS_ATOM = re.compile(r"\[\d*#\d+[^\]]*\]")


class MoleculeError(ValueError):
    """A molecule that cannot be featurized; `reason` is in RDKit's words where RDKit refused it."""

    way_out = "Fix or drop the row"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def silence_rdkit() -> Iterator[list[str]]:
    """Keep RDKit's log off the terminal; the list that comes back fills with its errors."""
    errors: list[str] = []
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        yield errors
        errors.extend(_LOG_TIMESTAMP.sub("", line) for line in log.messages.splitlines())


def parse_molecule(molecule: str | Chem.Mol | None, *, max_atoms: int) -> Chem.Mol:
    """Return the sanitized heavy-atom molecule behind a SMILES or an RDKit molecule.

    Hydrogen atoms are removed, isotopes of hydrogen too; conformers stay. An RDKit molecule is
    copied first, so the caller's one does not change.

    Args:
        molecule (`str` or `Chem.Mol`):
            SMILES, with a CXSMILES extension at most, or RDKit molecule. `None` and NaN, the
            marks of an empty table cell, are refused like every other type.
        max_atoms (`int`):
            Largest number of heavy atoms that is accepted.

    Returns:
        `Chem.Mol`: A new molecule without hydrogen atoms.

    Raises:
        MoleculeError: The molecule is missing, empty, a pattern, too large or invalid.
    """
    if isinstance(molecule, str):
        mol = _parse_smiles(molecule)
    elif isinstance(molecule, Chem.Mol):
        mol = _sanitize_copy(molecule)
    else:
        raise MoleculeError(_describe_wrong_type(molecule))
    _validate_is_no_query(mol)
    mol = _remove_hydrogens(mol)
    if mol.GetNumAtoms() > max_atoms:
        raise MoleculeError(
            f"{mol.GetNumAtoms()} heavy atoms are more than max_atoms={max_atoms}; a larger "
            "max_atoms accepts it, at a cost that grows with the square of the number of atoms"
        )
    return mol


def _describe_wrong_type(molecule: object) -> str:
    if molecule is None:
        return "the molecule is missing (None)"
    if isinstance(molecule, (float, np.floating)) and math.isnan(molecule):
        return "the molecule is missing (NaN)"
    return f"expected a SMILES (str) or a Chem.Mol, got {type(molecule).__name__}"


def _parse_smiles(smiles: str) -> Chem.Mol:
    text, _, extension = smiles.strip().partition(" ")
    if not text:
        raise MoleculeError("the SMILES is empty")
    if len(text.split()) > 1 or (extension and not extension.lstrip().startswith("|")):
        raise MoleculeError("there is text after the SMILES")
    if pattern := _SMARTS_ATOM.search(text):
        raise MoleculeError(f"{pattern.group()} is a query atom (SMARTS), not an atom")
    with silence_rdkit() as errors:
        mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise MoleculeError(errors[0] if errors else "RDKit cannot parse the SMILES")
    return mol


def _sanitize_copy(mol: Chem.Mol) -> Chem.Mol:
    # Sanitization would refuse most patterns too, with a reason that misses the point.
    _validate_is_no_query(mol)
    copy = Chem.Mol(mol)
    with silence_rdkit():
        try:
            Chem.SanitizeMol(copy)
        except ValueError as error:
            raise MoleculeError(str(error)) from error
    return copy


def _validate_is_no_query(mol: Chem.Mol) -> None:
    for atom in mol.GetAtoms():
        if atom.HasQuery():
            raise MoleculeError(f"atom {atom.GetIdx()} is a query atom (SMARTS), not an atom")
        if atom.GetAtomicNum() == 0:
            raise MoleculeError(f"atom {atom.GetIdx()} is a dummy atom (*), not an element")
    for bond in mol.GetBonds():
        if bond.HasQuery():
            raise MoleculeError(
                f"bond {bond.GetBeginAtomIdx()}-{bond.GetEndAtomIdx()} is a query bond (SMARTS), "
                "not a bond"
            )


def _remove_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    num_hydrogens = sum(atom.GetAtomicNum() == 1 for atom in mol.GetAtoms())
    if mol.GetNumAtoms() == 0:
        raise MoleculeError("the molecule has no atoms")
    if num_hydrogens == mol.GetNumAtoms():
        raise MoleculeError("the molecule has only hydrogen atoms; heavy atoms are needed")
    if num_hydrogens == 0:
        return mol
    with silence_rdkit():
        try:
            return Chem.RemoveAllHs(mol)
        except ValueError as error:
            raise MoleculeError(str(error)) from error


def compute_node_features(mol: Chem.Mol) -> np.ndarray:
    """Return the one-hot features of the dummy node and of every atom.

    Args:
        mol (`Chem.Mol`):
            Sanitized molecule without hydrogen atoms.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, 37)`, uint8: mask flag, dummy flag, atomic number
        (11), number of neighbors (6), number of hydrogens (5), formal charge (11), in ring,
        aromatic. Row 0 is the dummy node.
    """
    properties = (
        (ATOMIC_NUMBERS, [atom.GetAtomicNum() for atom in mol.GetAtoms()]),
        (NUMBERS_OF_NEIGHBORS, [atom.GetDegree() for atom in mol.GetAtoms()]),
        (NUMBERS_OF_HYDROGENS, [atom.GetTotalNumHs() for atom in mol.GetAtoms()]),
        (FORMAL_CHARGES, [atom.GetFormalCharge() for atom in mol.GetAtoms()]),
    )
    num_atoms = mol.GetNumAtoms()
    node_features = np.zeros((num_atoms + 1, NUM_NODE_FEATURES), dtype=np.uint8)
    node_features[DUMMY_NODE_IDX, DUMMY_COLUMN] = 1
    atom_features = node_features[1:]
    column = FIRST_ATOM_COLUMN
    for classes, values in properties:
        class_of_value = {value: idx for idx, value in enumerate(classes)}
        indices = [class_of_value.get(value, len(classes) - 1) for value in values]
        atom_features[np.arange(num_atoms), column + np.asarray(indices)] = 1
        column += len(classes)
    atom_features[:, column] = [atom.IsInRing() for atom in mol.GetAtoms()]
    atom_features[:, column + 1] = [atom.GetIsAromatic() for atom in mol.GetAtoms()]
    return node_features


def compute_bond_types(mol: Chem.Mol) -> np.ndarray:
    """Return the code of order, aromaticity, conjugation and ring membership of every bond.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`, uint8, symmetric:
        1 + 8 * order + 4 * aromatic + 2 * conjugated + in ring for bonded atoms, 0 elsewhere.
    """
    num_nodes = mol.GetNumAtoms() + 1
    bond_types = np.full((num_nodes, num_nodes), NO_BOND_TYPE, dtype=np.uint8)
    for bond in mol.GetBonds():
        begin, end = bond.GetBeginAtomIdx() + 1, bond.GetEndAtomIdx() + 1
        code = (
            1
            + 8 * BOND_ORDERS.get(bond.GetBondType(), NUM_BOND_ORDERS - 1)
            + 4 * bond.GetIsAromatic()
            + 2 * bond.GetIsConjugated()
            + bond.IsInRing()
        )
        bond_types[begin, end] = bond_types[end, begin] = code
    return bond_types


def compute_topological_distances(mol: Chem.Mol) -> np.ndarray:
    """Return the number of bonds on the shortest path between every two nodes.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`, uint8, clipped at 254; 0 from each
        node to itself, 255 between fragments and between the dummy node and every atom.
    """
    num_nodes = mol.GetNumAtoms() + 1
    distances = np.full((num_nodes, num_nodes), UNREACHABLE_DISTANCE, dtype=np.uint8)
    distances[DUMMY_NODE_IDX, DUMMY_NODE_IDX] = 0
    # RDKit keeps the matrix on the molecule: take a copy, and never a stale one.
    bonds_between = Chem.GetDistanceMatrix(Chem.Mol(mol), force=True)
    is_reachable = bonds_between < mol.GetNumAtoms()
    distances[1:, 1:][is_reachable] = np.minimum(
        bonds_between[is_reachable], UNREACHABLE_DISTANCE - 1
    )
    return distances


def compute_interatomic_distances(coordinates: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance between every two atoms.

    Args:
        coordinates (`np.ndarray` of shape `(num_atoms, 3)`):
            Atom positions in Å.

    Returns:
        `np.ndarray` of shape `(num_atoms, num_atoms)`, float64, in Å.
    """
    differences = coordinates[:, None, :] - coordinates[None, :, :]
    return np.sqrt(np.square(differences).sum(axis=-1))


def build_distance_matrix(atom_distances: np.ndarray) -> np.ndarray:
    """Return the distances between atoms with the dummy node, beyond every cutoff, in front.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`, float32, in Å.
    """
    num_nodes = len(atom_distances) + 1
    distances = np.full((num_nodes, num_nodes), BEYOND_CUTOFF, dtype=np.float32)
    distances[1:, 1:] = atom_distances
    return distances


def list_molecule_descriptor_names() -> list[str]:
    """Return the names of RDKit's molecule descriptors, in RDKit's order."""
    return [name for name, _ in Descriptors.descList]


def validate_molecule_descriptor_names(names: Sequence[str]) -> None:
    """Raise `ValueError` if the names are not different ones of RDKit's descriptors, or none."""
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"Molecule descriptors are {names!r}. Pass a list of different names.")
    known = set(list_molecule_descriptor_names())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"RDKit has no descriptor {unknown[0]!r}. See Descriptors.descList.")


def compute_molecule_descriptors(mol: Chem.Mol, names: Sequence[str]) -> np.ndarray:
    """Return RDKit descriptors of a molecule, out of `list_molecule_descriptor_names()`.

    Returns:
        `np.ndarray` of shape `(len(names),)`, float32; NaN where the descriptor is undefined, not
        finite or too large for float32.
    """
    validate_molecule_descriptor_names(names)
    functions = dict(Descriptors.descList)
    copy = Chem.Mol(mol)  # some descriptors leave charges and other properties on the molecule
    values = np.full(len(names), np.nan)
    with silence_rdkit():
        for idx, name in enumerate(names):
            try:
                values[idx] = functions[name](copy)
            except (ArithmeticError, IndexError, RuntimeError, ValueError):
                continue  # undefined for this molecule: stays NaN
    values[~(np.abs(values) <= np.finfo(np.float32).max)] = np.nan
    return values.astype(np.float32)
