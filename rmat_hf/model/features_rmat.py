"""What the model knows of a molecule: what is accepted, THE list of its features, descriptors.

To add an atom feature, add an entry to `ATOM_FEATURES` and raise `FEATURIZER_VERSION`: the codes of
atoms, the columns of `node_features` and the stored form of molecules follow from the list.

Attributes are read with `map` over unbound methods: RDKit's iterators cost several times as much.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import Descriptors, rdFingerprintGenerator, rdMolDescriptors

from .configuration_rmat import DUMMY_COLUMN, FINGERPRINT_SIZE, NUM_BOND_ORDERS
from .standardization_rmat import standardize_mol

# Goes up whenever the features of a molecule change, so that caches and checkpoints notice.
FEATURIZER_VERSION = 2

# Columns of `node_features` before those of an atom: the mask and the dummy flag.
FIRST_ATOM_COLUMN = DUMMY_COLUMN + 1

# RDKit recurses once per atom where it writes a SMILES; a chain of 20,000 ends the process.
MAX_WRITTEN_ATOMS = 3000
# No molecule needs a longer SMILES per atom.
MAX_CHARACTERS_PER_ATOM = 100
# Characters of a molecule, and of a reason in RDKit's words, in an error message.
MAX_DESCRIPTION = 80
MAX_REASON = 300

# Up to this length no SMILES takes RDKit long; the atoms of a longer one are counted first.
_QUICK_LENGTH = 256
# Why a cell with a name behind the SMILES is none.
TEXT_AFTER_SMILES = "there is text after the SMILES"
_WORDS = "there are words, and no SMILES"
_LOG_TIMESTAMP = re.compile(r"^\[\d\d:\d\d:\d\d\]\s*")
# RDKit reads the atomic number primitive [#6] of SMARTS as a bare atom without hydrogens.
_SMARTS_ATOM = re.compile(r"\[\d*#\d+[^\]]*\]")
# What may stand in a SMILES outside of its brackets.
_SMILES_LETTERS = re.compile(r"(?:\[[^\]]*\]|Cl|Br|[BCNOPSFIbcnops*]|[-=#$:/\\.~@+()%0-9])+")
_SMILES_TOKEN = re.compile(
    r"(?P<hydrogen>\[\d*H(?![a-z])[^\]]*\])|(?P<heavy>\*|\[[^\]]*\]|Cl|Br|[BCNOPSFIbcnops])"
    r"|(?P<closure>%\(\d+\)|%\d\d|\d)|(?P<dot>\.)"
)


class MoleculeError(ValueError):
    """A molecule without features; `reason` is in RDKit's words where RDKit refused it.

    A reader that cannot build a molecule may hand on the error in its place.
    """

    way_out = "Fix or drop the row"

    def __init__(self, reason: str) -> None:
        if len(reason) > MAX_REASON:  # RDKit repeats the whole SMILES
            reason = reason[:MAX_REASON] + "..."
        super().__init__(reason)
        self.reason = reason


Molecule = str | Chem.Mol | MoleculeError | None
Hydrogens = Literal["none", "rdkit"]


# Molecules, or why not


class RMatParsedMolecule(NamedTuple):
    """A molecule, and what is known of its text, so that nothing is parsed or written twice.

    Args:
        mol: Sanitized, without hydrogen atoms that are no nodes.
        smiles: What `mol` was parsed from; nothing for an RDKit molecule.
        written_smiles: What RDKit writes for `mol`, if it was asked.
        canonical_smiles: Of the SMILES that [`parse_canonical`] was given.
        given_mol: What that SMILES says, where `mol` was parsed from the canonical one.
    """

    mol: Chem.Mol
    smiles: str | None = None
    written_smiles: str | None = None
    canonical_smiles: str | None = None
    given_mol: Chem.Mol | None = None

    def compute_atom_order(self) -> np.ndarray:
        """Return the position of every atom of `mol` in the molecule as it was given."""
        if self.given_mol is None:
            return np.arange(self.mol.GetNumAtoms())
        properties = self.given_mol.GetPropsAsDict(includePrivate=True, includeComputed=True)
        return np.array(properties["_smilesAtomOutputOrder"], dtype=np.int64)


@contextmanager
def silence_rdkit() -> Iterator[list[str]]:
    """Keep RDKit's log off the terminal; the list that comes back fills with its errors."""
    errors: list[str] = []
    with rdBase.BlockLogs(), rdBase.CaptureErrorLog() as log:
        yield errors
        errors.extend(_LOG_TIMESTAMP.sub("", line) for line in log.messages.splitlines())


def parse_molecule(
    molecule: Molecule,
    *,
    max_atoms: int,
    hydrogens: Hydrogens = "none",
    standardize: Sequence[str] = (),
) -> Chem.Mol:
    """Return the sanitized heavy-atom molecule behind a SMILES or an RDKit molecule.

    Hydrogen atoms are removed; conformers stay. An RDKit molecule is copied first, so the caller's
    one does not change.

    Args:
        molecule: SMILES, with a CXSMILES extension at most, or RDKit molecule. `None` and NaN, the
            marks of an empty table cell, are refused like every other type.
        max_atoms: Largest number of heavy atoms that is accepted.
        hydrogens, standardize: As of [`RMatProcessor`].

    Raises:
        MoleculeError: The molecule is missing, empty, a pattern, too large or invalid.
    """
    mol = _build_mol(molecule, max_atoms=max_atoms)
    # before sanitization, which would refuse patterns too, with a reason that misses the point
    fault = mol if isinstance(mol, str) else _find_fault(mol, max_atoms=max_atoms)
    if isinstance(mol, str) or fault:
        raise MoleculeError(fault)
    has_hydrogens = mol.GetNumHeavyAtoms() < mol.GetNumAtoms()
    # CODEPATH: only processors that were made with `standardize` have steps.
    if isinstance(molecule, str) and not has_hydrogens and not standardize:
        return mol
    with silence_rdkit():
        try:
            if not isinstance(molecule, str):
                Chem.SanitizeMol(mol)
            # CODEPATH: "rdkit" is the processor of the authors' converted checkpoints.
            remove_hydrogens = Chem.RemoveHs if hydrogens == "rdkit" else Chem.RemoveAllHs
            mol = remove_hydrogens(mol) if has_hydrogens else mol
            mol = standardize_mol(mol, standardize)
        except (RuntimeError, ValueError) as error:
            raise MoleculeError(_find_reason(str(error).splitlines())) from error
    if (num_atoms := mol.GetNumAtoms()) > max_atoms:
        raise MoleculeError(f"{num_atoms} atoms with its hydrogens exceed max_atoms={max_atoms}")
    return mol


def parse_canonical(
    molecule: Molecule,
    *,
    max_atoms: int,
    hydrogens: Hydrogens = "none",
    standardize: Sequence[str] = (),
) -> RMatParsedMolecule:
    """Return what [`parse_molecule`] does, in one order however the SMILES is written.

    A canonical SMILES is parsed once; of any other one, RDKit reads the canonical SMILES too: the
    order of bonds decides its distance bounds and conformers, and renumbering atoms keeps it. An
    RDKit molecule keeps its order.
    """
    mol = parse_molecule(
        molecule, max_atoms=max_atoms, hydrogens=hydrogens, standardize=standardize
    )
    if not isinstance(molecule, str):
        return RMatParsedMolecule(mol)
    canonical_smiles = Chem.MolToSmiles(mol)
    if canonical_smiles != molecule or standardize:
        # RDKit does not read back what it writes for some metal complexes: they keep their order.
        with suppress(MoleculeError):
            canonical_mol = parse_molecule(
                canonical_smiles, max_atoms=max_atoms, hydrogens=hydrogens
            )
            return RMatParsedMolecule(canonical_mol, canonical_smiles, None, canonical_smiles, mol)
    return RMatParsedMolecule(mol, molecule, canonical_smiles, canonical_smiles)


def _build_mol(molecule: Molecule, *, max_atoms: int) -> Chem.Mol | str:
    """Return a copy of an RDKit molecule, what RDKit reads of a SMILES, or why there is nothing."""
    if isinstance(molecule, Chem.Mol):
        return Chem.Mol(molecule)
    if isinstance(molecule, MoleculeError):
        return molecule.reason
    if isinstance(molecule, list | tuple | np.ndarray):
        kind = type(molecule).__name__
        return f"a {kind}, not a molecule: give one at a time, as map does without batched=True"
    if not isinstance(molecule, str):
        return f"the molecule is missing: no SMILES or Chem.Mol but {molecule!r}"
    smiles = molecule.strip()
    if fault := _find_fault_of_text(smiles, max_atoms=max_atoms):
        return fault
    with silence_rdkit() as errors:
        mol = Chem.MolFromSmiles(smiles)
    return _find_reason(errors) if mol is None else mol


def _find_reason(lines: Iterable[str]) -> str:
    # what RDKit says of a violated condition inside it starts with empty and decorated lines
    reasons = (line.strip() for line in lines if line.strip("* "))
    return next(reasons, "RDKit cannot parse the SMILES")


def _find_fault_of_text(smiles: str, *, max_atoms: int) -> str:
    """Return why RDKit would misread a text or need too long for it, or nothing."""
    if len(smiles) > (limit := MAX_CHARACTERS_PER_ATOM * max_atoms):
        return (
            f"{len(smiles)} characters are too long a SMILES: max_atoms={max_atoms} allows {limit}"
        )
    text, _, extension = smiles.partition(" ")
    if not text:
        return "the SMILES is empty"
    if len(text.split()) > 1 or (extension and not extension.lstrip().startswith("|")):
        return TEXT_AFTER_SMILES if _SMILES_LETTERS.fullmatch(text.split()[0]) else _WORDS
    if not (text.isascii() and text.isprintable()):  # RDKit skips some of them without a word
        code = next(ord(letter) for letter in text if not "!" <= letter <= "~")
        return f"the SMILES has the character U+{code:04X}, which SMILES do not have"
    if pattern := _SMARTS_ATOM.search(text):
        return f"{pattern.group()} is a query atom (SMARTS), not an atom"
    if len(text) <= _QUICK_LENGTH:
        return ""
    counts = Counter(match.lastgroup for match in _SMILES_TOKEN.finditer(text))
    num_atoms = counts["heavy"] + counts["hydrogen"]
    num_bonds = num_atoms - 1 - counts["dot"] + counts["closure"] // 2
    return _find_excess(counts["heavy"], num_atoms, num_bonds=num_bonds, max_atoms=max_atoms)


def _find_fault(mol: Chem.Mol, *, max_atoms: int) -> str:
    """Return why a molecule is none that can be featurized, or nothing."""
    num_atoms, num_heavy = mol.GetNumAtoms(), mol.GetNumHeavyAtoms()
    if mol.HasQuery() or num_heavy < num_atoms:  # two calls instead of one per atom and bond
        for atom in mol.GetAtoms():
            if atom.HasQuery():
                return f"atom {atom.GetIdx()} is a query atom (SMARTS), not an atom"
            if atom.GetAtomicNum() == 0:
                return f"atom {atom.GetIdx()} is a dummy atom (*), not an element"
        if mol.HasQuery():
            return "one of its bonds is a query bond (SMARTS), not a bond"
    if num_heavy == 0:
        return "the molecule has no heavy atoms"
    return _find_excess(num_heavy, num_atoms, num_bonds=mol.GetNumBonds(), max_atoms=max_atoms)


def _find_excess(num_heavy: int, num_atoms: int, *, num_bonds: int, max_atoms: int) -> str:
    if num_heavy > max_atoms:
        return (
            f"{num_heavy} heavy atoms are more than max_atoms={max_atoms}; a larger max_atoms "
            "accepts it, at a cost that grows with the square of the number of atoms"
        )
    if _is_dense(num_atoms, num_bonds):
        return (
            f"{num_bonds} bonds between {num_atoms} atoms are more than RDKit can find the rings of"
        )
    return ""


def _is_dense(num_atoms: int, num_bonds: int) -> bool:
    # RDKit may take hours for the rings. Carbon cages have 1.5 bonds per atom and clusters of
    # boron 2.5, far below the limit.
    return num_bonds > 2 * num_atoms + 100


def is_tractable(mol: Chem.Mol) -> bool:
    """Tell whether RDKit can sanitize a molecule and write its SMILES."""
    num_atoms = mol.GetNumAtoms()
    return num_atoms <= MAX_WRITTEN_ATOMS and not _is_dense(num_atoms, mol.GetNumBonds())


def list_molecules(molecules: Molecule | Iterable[Molecule]) -> list[Molecule]:
    """Return one molecule or several as a list; a mapping or a table is refused."""
    if is_table(molecules):
        raise TypeError(
            f"Molecules are given as a list, not as a {type(molecules).__name__}. Pass its column "
            "of SMILES, as table['smiles']."
        )
    if isinstance(molecules, (str, bytes, Chem.Mol)) or not isinstance(molecules, Iterable):
        return [molecules]
    return list(molecules)


def is_table(value: object) -> bool:
    """Return whether a value is a mapping or a table, of which iteration gives no molecules."""
    return isinstance(value, Mapping) or hasattr(value, "columns") or hasattr(value, "column_names")


def describe_molecule(molecule: Molecule) -> str:
    """Return the molecule in the short form of an error message."""
    if isinstance(molecule, Chem.Mol):
        return f"an RDKit molecule of {molecule.GetNumAtoms()} atoms"
    text = repr(molecule)
    return text if len(text) <= MAX_DESCRIPTION else text[:MAX_DESCRIPTION] + "...'"


# Features of atoms


class RMatAtomFeature(NamedTuple):
    """One property of an atom.

    Args:
        name: Its key in `ATOM_FEATURES.columns`.
        classes: The values that have a class; any other value takes the last one, which may be
            called `None`. `(False, True)` is one column of `node_features`, else a class is one.
        read: Atom → value.
    """

    name: str
    classes: tuple[Any, ...]
    read: Callable[[Chem.Atom], Any]


class RMatAtomFeatures:
    """Atoms as integers, one for every combination of classes, and the columns these stand for.

    Attributes:
        features: By name, in the order of their columns.
        columns: Columns of `node_features` of every feature.
        num_node_features: Number of columns, with the mask and the dummy flag before them.
        code_dtype: Smallest unsigned integer that holds every code.
    """

    def __init__(self, features: Sequence[RMatAtomFeature]) -> None:
        self.features = {feature.name: feature for feature in features}
        self.columns: dict[str, slice] = {}
        self._class_of_value = [
            {value: idx for idx, value in enumerate(feature.classes)} for feature in features
        ]
        self._one_hots: list[np.ndarray] = []
        stop = FIRST_ATOM_COLUMN
        for feature in features:
            one_hots = np.eye(len(feature.classes), dtype=np.uint8)
            if feature.classes == (False, True):
                one_hots = one_hots[:, 1:]
            self.columns[feature.name] = slice(stop, stop := stop + one_hots.shape[1])
            self._one_hots.append(one_hots)
        self.num_node_features = stop
        num_codes = math.prod(len(feature.classes) for feature in features)
        self.code_dtype = np.min_scalar_type(num_codes - 1)

    def compute_codes(self, mol: Chem.Mol) -> np.ndarray:
        """Return the code of every atom, `(num_atoms,)`, `code_dtype`."""
        atoms = list(map(mol.GetAtomWithIdx, range(mol.GetNumAtoms())))
        codes = np.zeros(len(atoms), dtype=self.code_dtype)
        for feature, class_of_value in zip(
            self.features.values(), self._class_of_value, strict=True
        ):
            last = len(feature.classes) - 1
            codes *= len(feature.classes)
            codes += np.array(
                [class_of_value.get(value, last) for value in map(feature.read, atoms)],
                dtype=self.code_dtype,
            )
        return codes

    def expand_codes(self, codes: np.ndarray) -> np.ndarray:
        """Return the columns of atoms, `(num_atoms, num_node_features - 2)`, uint8."""
        blocks = []
        for one_hots in reversed(self._one_hots):
            codes, classes = np.divmod(codes, len(one_hots))
            blocks.append(one_hots[classes])
        return np.concatenate(blocks[::-1], axis=1)


ATOM_FEATURES = RMatAtomFeatures(
    [
        RMatAtomFeature(
            "atomic_number", (5, 6, 7, 8, 9, 15, 16, 17, 35, 53, None), Chem.Atom.GetAtomicNum
        ),
        RMatAtomFeature("num_neighbors", (0, 1, 2, 3, 4, 5), Chem.Atom.GetDegree),
        RMatAtomFeature("num_hydrogens", (0, 1, 2, 3, 4), Chem.Atom.GetTotalNumHs),
        RMatAtomFeature("formal_charge", tuple(range(-5, 6)), Chem.Atom.GetFormalCharge),
        RMatAtomFeature("in_ring", (False, True), Chem.Atom.IsInRing),
        RMatAtomFeature("aromatic", (False, True), Chem.Atom.GetIsAromatic),
    ]
)
# Of the elements that have a class of their own.
ELEMENT_SYMBOLS = [
    Chem.GetPeriodicTable().GetElementSymbol(number)
    for number in ATOM_FEATURES.features["atomic_number"].classes[:-1]
]


# Features of bonds

# Index of the bond order in the bond type code; every other bond type takes the last class.
BOND_ORDERS = {
    Chem.BondType.SINGLE: 0,
    Chem.BondType.AROMATIC: 1,
    Chem.BondType.DOUBLE: 2,
    Chem.BondType.TRIPLE: 3,
}


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


# Descriptors of molecules


# Autocorrelations of masses, volumes, charges, ... over the molecular graph (AUTOCORR2D of RDKit).
AUTOCORRELATIONS = tuple(f"AUTOCORR2D_{number}" for number in range(1, 193))
_RDKIT_2D = [name for name, _ in Descriptors.descList]
# Molecule descriptors by the name of a set of them.
DESCRIPTOR_SETS: dict[str, list[str]] = {
    "rdkit_2d": _RDKIT_2D,
    "autocorr_2d": [*AUTOCORRELATIONS],
    "all_2d": [*_RDKIT_2D, *AUTOCORRELATIONS],
}


def list_molecule_descriptor_names(descriptor_set: str = "rdkit_2d") -> list[str]:
    """Return the names of a set out of `DESCRIPTOR_SETS`; the default is RDKit's `descList`."""
    return list(DESCRIPTOR_SETS[descriptor_set])


def compute_molecule_descriptors(mol: Chem.Mol, names: Sequence[str]) -> np.ndarray:
    """Return RDKit descriptors of a molecule, out of those of `DESCRIPTOR_SETS`.

    Returns:
        `np.ndarray` of shape `(len(names),)`, float32; NaN where the descriptor is undefined, not
        finite or too large for float32.
    """
    functions = dict(Descriptors.descList)
    copy = Chem.Mol(mol)  # some descriptors leave charges and other properties on the molecule
    values = np.full(len(names), np.nan)
    known: dict[str, float] = {}
    # undefined for this molecule, or for no atom at all: stays NaN
    undefined = suppress(ArithmeticError, IndexError, RuntimeError, TypeError, ValueError)
    with silence_rdkit():
        if not {*AUTOCORRELATIONS}.isdisjoint(names):
            with undefined:
                numbers = rdMolDescriptors.CalcAUTOCORR2D(copy)
                known = dict(zip(AUTOCORRELATIONS, numbers, strict=True))
        for idx, name in enumerate(names):
            with undefined:
                values[idx] = known[name] if name in known else functions[name](copy)
    values[~(np.abs(values) <= np.finfo(np.float32).max)] = np.nan
    return values.astype(np.float32)


# Counts of substructures: name → what builds RDKit's generator.
FINGERPRINTS: dict[str, Callable[[], Any]] = {
    "ecfp4": lambda: rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=FINGERPRINT_SIZE),
    # atoms by what they bind: donor, acceptor, aromatic, halogen, basic, acidic
    "fcfp4": lambda: rdFingerprintGenerator.GetMorganGenerator(
        radius=2,
        fpSize=FINGERPRINT_SIZE,
        atomInvariantsGenerator=rdFingerprintGenerator.GetMorganFeatureAtomInvGen(),
    ),
    "atom_pairs": lambda: rdFingerprintGenerator.GetAtomPairGenerator(fpSize=FINGERPRINT_SIZE),
    "torsions": lambda: rdFingerprintGenerator.GetTopologicalTorsionGenerator(
        fpSize=FINGERPRINT_SIZE
    ),
}


def compute_fingerprint_counts(mol: Chem.Mol, names: Sequence[str]) -> np.ndarray:
    """Return how often a molecule has the substructures of each column of fingerprints.

    Args:
        mol: A molecule.
        names: Out of `FINGERPRINTS`: `"ecfp4"` and `"fcfp4"` (doi 10.1021/ci100050t),
            `"atom_pairs"` (doi 10.1021/ci00046a002) and `"torsions"` (doi 10.1021/ci00054a008),
            hashed to 2,048 columns each.

    Returns:
        `np.ndarray` of shape `(2048 * len(names),)`, uint8: 255 stands for more.
    """
    counts = [FINGERPRINTS[name]().GetCountFingerprintAsNumPy(mol) for name in names]
    return np.minimum(np.concatenate(counts), 255).astype(np.uint8)
