"""Rows that are one substance: a molecule with its salts, charges and tautomers."""

from collections.abc import Mapping, Sequence

from rdkit import Chem

from rmat_hf.data.splits.parts import group_rows
from rmat_hf.model.features_rmat import silence_rdkit
from rmat_hf.model.standardization_rmat import compute_parent_key


def name_by_parent(
    smiles: Sequence[str],
    *,
    groups: Sequence[object] | None = None,
    mols: Mapping[str, Chem.Mol | None] | None = None,
) -> list[str]:
    """Return for each row a SMILES that it shares with all rows of its parent, and with no other.

    It is the shortest of theirs, so a molecule without salts or tautomers keeps its own.

    Args:
        groups (`Sequence`, *optional*):
            What else rows have in common, such as a project: rows of one group, and of one parent,
            share the name, and so do those that are linked by others. Empty cells are no group.
    """
    distinct = dict.fromkeys(smiles)
    with silence_rdkit():
        keys = {text: _compute_key(text, mols[text] if mols else None) for text in distinct}
    names = _choose_names([keys[text] for text in smiles], smiles)
    while groups is not None:
        of_groups = [str(group or name) for group, name in zip(groups, names, strict=True)]
        linked = _choose_names(of_groups, names)
        linked = _choose_names(names, linked)
        if linked == names:
            break
        names = linked
    return names


def _choose_names(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return for each row the shortest name of the rows with its key."""
    chosen = [""] * len(keys)
    for rows in group_rows(keys).values():
        name = min((names[row] for row in rows), key=lambda text: (len(text), text))
        for row in rows:
            chosen[row] = name
    return chosen


def _compute_key(smiles: str, mol: Chem.Mol | None) -> str:
    mol = mol or Chem.MolFromSmiles(smiles)
    try:
        return smiles if mol is None else compute_parent_key(mol)
    except (RuntimeError, ValueError):  # of a molecule that RDKit cannot uncharge
        return smiles
