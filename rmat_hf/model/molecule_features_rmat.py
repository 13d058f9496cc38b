"""One RDKit molecule → arrays of atoms, bonds, topological distances and descriptors."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors

from .atom_codes_rmat import (
    DUMMY_NODE_CODE,
    NODE_FEATURES_OF_CODE,
    compute_atom_codes,
    compute_bonds,
)
from .configuration_rmat import DUMMY_NODE_IDX, NO_BOND_TYPE, UNREACHABLE_DISTANCE
from .molecule_limits_rmat import is_densely_bonded, is_tractable

Molecule = str | Chem.Mol | None

# Characters of a molecule, and of a reason in RDKit's words, in an error message.
MAX_DESCRIPTION = 80
MAX_REASON = 300

# No molecule needs a longer SMILES per atom.
_MAX_CHARACTERS_PER_ATOM = 100
# Up to this length a SMILES is sanitized at once: no molecule in it takes RDKit long.
_QUICK_LENGTH = 256

_LOG_TIMESTAMP = re.compile(r"^\[\d\d:\d\d:\d\d\]\s*")
# RDKit reads the atomic number primitive [#6] of SMARTS as a bare atom without hydrogens.
_SMARTS_ATOM = re.compile(r"\[\d*#\d+[^\]]*\]")


class MoleculeError(ValueError):
    """A molecule that cannot be featurized; `reason` is in RDKit's words where RDKit refused it."""

    way_out = "Fix or drop the row"

    def __init__(self, reason: str) -> None:
        if len(reason) > MAX_REASON:  # RDKit repeats the whole SMILES
            reason = reason[:MAX_REASON] + "..."
        super().__init__(reason)
        self.reason = reason


@contextmanager
def silence_rdkit() -> Iterator[list[str]]:
    """Keep RDKit's log off the terminal; the list that comes back fills with its errors."""
    errors: list[str] = []
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        yield errors
        errors.extend(_LOG_TIMESTAMP.sub("", line) for line in log.messages.splitlines())


def list_molecules(molecules: Molecule | Iterable[Molecule]) -> list[Molecule]:
    """Return one molecule or several as a list; a mapping is refused."""
    if isinstance(molecules, Mapping):
        raise TypeError("Molecules are given as a list, not as a mapping. Pass one column of it.")
    if isinstance(molecules, (str, bytes, Chem.Mol)) or not isinstance(molecules, Iterable):
        return [molecules]
    return list(molecules)


def describe_molecule(molecule: Molecule) -> str:
    """Return the molecule in the short form of an error message."""
    text = repr(molecule)
    if isinstance(molecule, Chem.Mol):
        text = f"an RDKit molecule of {molecule.GetNumAtoms()} atoms without a SMILES"
        if is_tractable(molecule):
            with rdBase.BlockLogs(), suppress(RuntimeError, ValueError):
                text = repr(Chem.MolToSmiles(molecule))
    return text if len(text) <= MAX_DESCRIPTION else text[:MAX_DESCRIPTION] + "...'"


def parse_molecule(molecule: Molecule, *, max_atoms: int) -> Chem.Mol:
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
        mol = _parse_smiles(molecule, max_atoms=max_atoms)
    elif isinstance(molecule, Chem.Mol):
        mol = _sanitize_copy(molecule, max_atoms=max_atoms)
    else:
        raise MoleculeError(_describe_wrong_type(molecule))
    _validate_is_no_query(mol)
    mol = _remove_hydrogens(mol)
    _validate_size(mol, max_atoms=max_atoms)
    return mol


def _validate_size(mol: Chem.Mol, *, max_atoms: int) -> None:
    if mol.GetNumHeavyAtoms() > max_atoms:
        raise MoleculeError(
            f"{mol.GetNumHeavyAtoms()} heavy atoms are more than max_atoms={max_atoms}; a larger "
            "max_atoms accepts it, at a cost that grows with the square of the number of atoms"
        )
    if is_densely_bonded(mol):
        raise MoleculeError(
            f"{mol.GetNumBonds()} bonds between {mol.GetNumAtoms()} atoms are more than RDKit can "
            "find the rings of"
        )


def _describe_wrong_type(molecule: object) -> str:
    if molecule is None:
        return "the molecule is missing (None)"
    if isinstance(molecule, (float, np.floating)) and math.isnan(molecule):
        return "the molecule is missing (NaN)"
    return f"expected a SMILES (str) or a Chem.Mol, got {type(molecule).__name__}"


def _parse_smiles(smiles: str, *, max_atoms: int) -> Chem.Mol:
    smiles = smiles.strip()
    if len(smiles) > (limit := _MAX_CHARACTERS_PER_ATOM * max_atoms):
        raise MoleculeError(
            f"{len(smiles)} characters are too long a SMILES: max_atoms={max_atoms} allows {limit}"
        )
    text, _, extension = smiles.partition(" ")
    if not text:
        raise MoleculeError("the SMILES is empty")
    if len(text.split()) > 1 or (extension and not extension.lstrip().startswith("|")):
        raise MoleculeError("there is text after the SMILES")
    if not (text.isascii() and text.isprintable()):  # RDKit skips some of them without a word
        code = next(ord(letter) for letter in text if not "!" <= letter <= "~")
        raise MoleculeError(f"the SMILES has the character U+{code:04X}, which SMILES do not have")
    if pattern := _SMARTS_ATOM.search(text):
        raise MoleculeError(f"{pattern.group()} is a query atom (SMARTS), not an atom")
    with silence_rdkit() as errors:
        is_long = len(smiles) > _QUICK_LENGTH
        mol = Chem.MolFromSmiles(smiles, sanitize=not is_long)
        if mol is not None and is_long:
            _validate_is_no_query(mol)
            _validate_size(mol, max_atoms=max_atoms)
            mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise MoleculeError(_find_reason(errors) or "RDKit cannot parse the SMILES")
    return mol


def _find_reason(lines: Iterable[str]) -> str:
    # what RDKit says of a violated condition inside it starts with empty and decorated lines
    reasons = (line.strip() for line in lines if line.strip("* "))
    return next(reasons, "")


def _sanitize_copy(mol: Chem.Mol, *, max_atoms: int) -> Chem.Mol:
    # Sanitization would refuse most patterns too, with a reason that misses the point.
    _validate_is_no_query(mol)
    _validate_size(mol, max_atoms=max_atoms)
    copy = Chem.Mol(mol)
    with silence_rdkit():
        try:
            Chem.SanitizeMol(copy)
        except (RuntimeError, ValueError) as error:
            raise MoleculeError(_find_reason(str(error).splitlines())) from error
    return copy


def _validate_is_no_query(mol: Chem.Mol) -> None:
    if not mol.HasQuery() and mol.GetNumHeavyAtoms() == mol.GetNumAtoms():
        return  # two calls instead of one per atom and bond
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
    num_hydrogens = mol.GetNumAtoms() - mol.GetNumHeavyAtoms()
    if mol.GetNumAtoms() == 0:
        raise MoleculeError("the molecule has no atoms")
    if num_hydrogens == mol.GetNumAtoms():
        raise MoleculeError("the molecule has only hydrogen atoms; heavy atoms are needed")
    if num_hydrogens == 0:
        return mol
    with silence_rdkit():
        try:
            return Chem.RemoveAllHs(mol)
        except (RuntimeError, ValueError) as error:
            raise MoleculeError(_find_reason(str(error).splitlines())) from error


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
    codes = np.full(mol.GetNumAtoms() + 1, DUMMY_NODE_CODE)
    codes[1:] = compute_atom_codes(mol)
    return NODE_FEATURES_OF_CODE[codes]


def compute_bond_types(mol: Chem.Mol) -> np.ndarray:
    """Return the type of the bond between every two nodes.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`, uint8, symmetric: as in
        [`compute_bonds`] for bonded atoms, 0 elsewhere.
    """
    num_nodes = mol.GetNumAtoms() + 1
    bond_types = np.full((num_nodes, num_nodes), NO_BOND_TYPE, dtype=np.uint8)
    begins, ends, codes = compute_bonds(mol).T
    bond_types[begins + 1, ends + 1] = bond_types[ends + 1, begins + 1] = codes
    return bond_types


def compute_topological_distances(mol: Chem.Mol) -> np.ndarray:
    """Return the number of bonds on the shortest path between every two nodes.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`, uint8, clipped at 254; 0 from each
        node to itself, 255 between fragments and between the dummy node and every atom.
    """
    num_atoms = mol.GetNumAtoms()
    distances = np.full((num_atoms + 1,) * 2, UNREACHABLE_DISTANCE, dtype=np.uint8)
    distances[DUMMY_NODE_IDX, DUMMY_NODE_IDX] = 0
    # RDKit keeps the matrix on the molecule: take a copy, and never a stale one.
    bonds_between = Chem.GetDistanceMatrix(Chem.Mol(mol), force=True)
    if num_atoms >= UNREACHABLE_DISTANCE:
        is_long = (bonds_between >= UNREACHABLE_DISTANCE) & (bonds_between < num_atoms)
        bonds_between[is_long] = UNREACHABLE_DISTANCE - 1
    # unreachable is a large number in RDKit
    distances[1:, 1:] = np.minimum(bonds_between, UNREACHABLE_DISTANCE)
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
