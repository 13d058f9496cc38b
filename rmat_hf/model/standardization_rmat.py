"""One form of a molecule for its salts, charges and tautomers, by RDKit's MolStandardize."""

from collections.abc import Callable, Sequence

from rdkit import Chem
from rdkit.Chem import rdMolHash
from rdkit.Chem.MolStandardize import rdMolStandardize

# Goes up whenever a step gives another molecule, so that caches and checkpoints notice.
STANDARDIZER_VERSION = 1


_FRAGMENT_CHOOSER = rdMolStandardize.LargestFragmentChooser(preferOrganic=True)
# a betaine and its hydrochloride are one acid, although its nitrogen stays charged
_UNCHARGER = rdMolStandardize.Uncharger(canonicalOrder=True, force=True)
_ENUMERATOR = rdMolStandardize.TautomerEnumerator()
# by default it forgets the stereo of amino acids
_ENUMERATOR.SetRemoveSp3Stereo(False)
_ENUMERATOR.SetRemoveBondStereo(False)


def _choose_largest_fragment(mol: Chem.Mol) -> Chem.Mol:
    return _FRAGMENT_CHOOSER.choose(mol) if len(Chem.GetMolFrags(mol)) > 1 else mol


def _uncharge(mol: Chem.Mol) -> Chem.Mol:
    is_charged = any(map(Chem.Atom.GetFormalCharge, mol.GetAtoms()))
    return _UNCHARGER.uncharge(mol) if is_charged else mol


def _canonicalize_tautomer(mol: Chem.Mol) -> Chem.Mol:
    return _ENUMERATOR.Canonicalize(mol)


# Applied in this order, whatever the order in which they are named.
STANDARDIZERS: dict[str, Callable[[Chem.Mol], Chem.Mol]] = {
    "largest_fragment": _choose_largest_fragment,
    "uncharge": _uncharge,
    "tautomer": _canonicalize_tautomer,
}


def standardize_mol(mol: Chem.Mol, steps: Sequence[str]) -> Chem.Mol:
    """Return the form of a molecule that some of `STANDARDIZERS` give; conformers stay.

    Args:
        mol (`Chem.Mol`): Sanitized; it is not changed.
        steps (`Sequence[str]`):
            `"largest_fragment"` (of several, the organic one with most atoms), `"uncharge"`
            (protons are added or taken away), `"tautomer"` (RDKit's canonical one; stereo stays).

    Raises:
        ValueError, RuntimeError: RDKit cannot.
    """
    for name, apply in STANDARDIZERS.items():
        if name in steps:
            mol = apply(mol)
    return mol


def compute_parent_key(mol: Chem.Mol) -> str:
    """Return what a molecule has in common with its salts, charges and tautomers, stereo included.

    That is the hash of the uncharged largest fragment in which tautomers are alike, RDKit's
    `HetAtomTautomerv2`: fast, and of some tautomers that the canonical one joins, several.
    """
    parent = standardize_mol(mol, ("largest_fragment", "uncharge"))
    return str(rdMolHash.MolHash(parent, rdMolHash.HashFunction.HetAtomTautomerv2))
