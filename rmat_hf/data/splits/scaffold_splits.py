"""Divide molecules by their Bemis-Murcko scaffold."""

import logging
from collections.abc import Sequence

from rdkit.Chem.Scaffolds import MurckoScaffold

from rmat_hf.data.splits.parts import (
    DEFAULT_FRACTIONS,
    SplitIndices,
    compute_part_sizes,
    fill_parts,
    group_rows,
    parse_row,
    shuffle_groups,
)

logger = logging.getLogger(__name__)


def split_by_scaffold(
    smiles: Sequence[str], *, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
) -> SplitIndices:
    """Return the deterministic scaffold split: largest groups to train, rare ones to test.

    The family of MoleculeNet and DeepChem. Never compare its metrics with those of
    `split_by_balanced_scaffold`, which is easier. Molecules of one Bemis-Murcko scaffold (doi
    10.1021/jm9602928; chirality ignored) stay together. All molecules without a ring share the
    empty scaffold and therefore stand in one part, train unless other scaffolds are more frequent;
    their number is logged. The order of the rows does not matter: groups of one size are taken in
    the order of their scaffold SMILES.

    Args:
        smiles: One valid SMILES per row.
        fractions: As in `split_randomly`.
    """
    rows_by_scaffold = _group_by_scaffold(smiles)
    scaffolds = sorted(rows_by_scaffold, key=lambda name: (-len(rows_by_scaffold[name]), name))
    return fill_parts([rows_by_scaffold[scaffold] for scaffold in scaffolds], fractions)


def split_by_balanced_scaffold(
    smiles: Sequence[str],
    *,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    seed: int,
) -> SplitIndices:
    """Return a random scaffold split: large groups to train, the others shuffled.

    The family of chemprop (doi 10.1021/acs.jcim.9b00237): a group larger than half of valid or of
    test is large. Easier than `split_by_scaffold`, whose test part has the rarest scaffolds: never
    compare metrics of the two. Scaffolds are the same. The order of the rows does not matter.

    Args:
        smiles: One valid SMILES per row.
        fractions, seed: As in `split_randomly`.
    """
    row_lists = shuffle_groups(_group_by_scaffold(smiles), seed=seed)
    targets = compute_part_sizes(len(smiles), fractions)
    half = targets[targets > 0].min() / 2
    return fill_parts(sorted(row_lists, key=lambda rows: len(rows) <= half), fractions)


def _group_by_scaffold(smiles: Sequence[str]) -> dict[str, list[int]]:
    mols = (parse_row(text, row=row) for row, text in enumerate(smiles))
    rows_by_scaffold = group_rows(
        MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=False) for mol in mols
    )
    logger.info(
        "%d of %d molecules have no ring; a scaffold split keeps them in one part.",
        len(rows_by_scaffold.get("", [])),
        len(smiles),
    )
    return rows_by_scaffold
