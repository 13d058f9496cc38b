"""What each part of a molecule does to an output: its inputs without the part, and `METHODS`.

A molecule without an atom is the molecule with a 0 at its node in the `attention_mask`: no other
node and no pooling sees it, and what they are stays as it was, their number of neighbors too. A
relation of a pair is taken out by what pairs without it have: a distance beyond the cutoff, no
bond, the neighborhood of atoms far away. Only inputs change, so this holds for every network.

What is computed of the molecule as a whole goes too. Of fingerprint counts an atom takes along what
it is part of: the environments within their radius, the pairs and the torsions that have it.
Molecule descriptors are computed again, of what is left, with hydrogens where carbons lost a bond.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from rmat_hf.data.measurements import append_covariates
from rmat_hf.data.stored_features import expand_features, group_by_length
from rmat_hf.errors import is_out_of_memory
from rmat_hf.model.configuration_rmat import (
    BEYOND_CUTOFF,
    FINGERPRINT_SIZE,
    MASK_COLUMN,
    NO_BOND_TYPE,
    UNREACHABLE_DISTANCE,
    RMatConfig,
)
from rmat_hf.model.features_rmat import FINGERPRINTS, compute_molecule_descriptors
from rmat_hf.model.losses_rmat import compute_probabilities
from rmat_hf.model.processing_rmat import DESCRIPTOR_INPUT, FINGERPRINT_INPUT, MASK_INPUT

logger = logging.getLogger(__name__)

# Of the pairs of a relation: the input that has it, and what stands there without it.
RELATION_INPUTS: dict[str, tuple[str, float]] = {
    "distance": ("interatomic_distances", BEYOND_CUTOFF),
    "bond": ("bond_types", NO_BOND_TYPE),
    "neighborhood": ("topological_distances", UNREACHABLE_DISTANCE - 1),
}


class Edit(NamedTuple):
    """What is taken out of a molecule.

    Args:
        kind (`str`): `"drop"`, `"mask"` (the token of pretraining), a relation, or `"covariate"`.
        atoms (`tuple[int, ...]`): Atoms, in the order of the features; of a covariate its columns
            among the molecule descriptors, from the end (-1).
        others (`tuple[int, ...]`): Of a relation: atoms with which the first ones have it.
    """

    kind: str
    atoms: tuple[int, ...]
    others: tuple[int, ...] = ()

    def apply(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Change the inputs of one molecule, arrays without a batch axis, in place."""
        nodes = np.asarray(self.atoms, dtype=np.int64) + 1
        if self.kind == "drop":
            inputs[MASK_INPUT][nodes] = 0
        elif self.kind == "mask":
            inputs["node_features"][nodes] = 0
            inputs["node_features"][nodes, MASK_COLUMN] = 1
        elif self.kind == "covariate":
            # the mean of the training rows
            inputs[DESCRIPTOR_INPUT][list(self.atoms)] = np.nan
        else:
            name, nothing = RELATION_INPUTS[self.kind]
            pairs, own = inputs[name], inputs[name].diagonal().copy()
            places = np.ix_(nodes, np.asarray(self.others, dtype=np.int64) + 1)
            pairs[places] = pairs.T[places] = nothing
            np.fill_diagonal(pairs, own)


@dataclass(frozen=True)
class FeaturizedMol:
    """A molecule, in the order of its features, and these.

    Args:
        mol (`Chem.Mol`): Its heavy atoms.
        packed (`bytes`): As from `pack_features`.
        fingerprints (`Sequence[str]`): Names of the fingerprints that are counted in it.
        descriptors (`Sequence[str]`): Names of the descriptors that are computed of it.
        covariates (`np.ndarray`, *optional*): What the model reads beside it, as numbers.
    """

    mol: Chem.Mol
    packed: bytes
    fingerprints: Sequence[str] = ()
    descriptors: Sequence[str] = ()
    covariates: np.ndarray | None = None

    @property
    def num_atoms(self) -> int:
        """Number of atoms that are nodes."""
        return int(self.mol.GetNumAtoms())

    @property
    def atoms(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(self.num_atoms))

    @cached_property
    def environments(self) -> tuple[np.ndarray, np.ndarray]:
        """Column of each substructure that is counted, and its atoms, `(number, num_atoms)`."""
        found = [
            (column + idx * FINGERPRINT_SIZE, atoms)
            for idx, name in enumerate(self.fingerprints)
            for column, atoms in list_environments(self.mol, name)
        ]
        members = np.zeros((len(found), self.num_atoms), dtype=bool)
        for row, (_, atoms) in zip(members, found, strict=True):
            row[list(atoms)] = True
        return np.array([column for column, _ in found], dtype=np.int64), members

    def count_without(self, atoms: Sequence[int]) -> np.ndarray:
        """Return the fingerprint counts of what has none of some atoms, `(num_columns,)`, uint8."""
        columns, members = self.environments
        left = columns[~members[:, list(atoms)].any(axis=1)]
        counts = np.bincount(left, minlength=FINGERPRINT_SIZE * len(self.fingerprints))
        return np.minimum(counts, 255).astype(np.uint8)

    def describe_without(self, atoms: Sequence[int]) -> np.ndarray:
        """Return the descriptors of what has none of some atoms, float32.

        A carbon takes hydrogens for bonds that it loses. Other atoms, and rings that are aromatic,
        keep a dummy there: an NH2 that lost its carbon is still a donor.
        """
        rest, gone = Chem.RWMol(self.mol), set(atoms)
        for atom in rest.GetAtoms():
            num_hydrogens = atom.GetTotalNumHs()
            atom.SetNoImplicit(True)
            atom.SetNumExplicitHs(num_hydrogens)
        for bond in self.mol.GetBonds():
            ends = (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
            lost, kept = sorted(ends, key=lambda it: it not in gone)
            if lost not in gone or kept in gone:
                continue
            atom = rest.GetAtomWithIdx(kept)
            if atom.GetAtomicNum() == 6 and not bond.GetIsAromatic():
                num_hydrogens = atom.GetNumExplicitHs() + round(bond.GetBondTypeAsDouble())
                atom.SetNumExplicitHs(num_hydrogens)
                rest.RemoveBond(*ends)
            else:
                dummy = rest.GetAtomWithIdx(lost)
                dummy.SetAtomicNum(0)
                dummy.SetNumExplicitHs(0)
                dummy.SetFormalCharge(0)
        rest.BeginBatchEdit()
        for idx in gone:
            if rest.GetAtomWithIdx(idx).GetAtomicNum():
                rest.RemoveAtom(idx)
        rest.CommitBatchEdit()
        # no sanitization: an open ring stays aromatic
        rest.UpdatePropertyCache(strict=False)
        for compute in (Chem.FastFindRings, Chem.SetConjugation, Chem.SetHybridization):
            compute(rest)
        return compute_molecule_descriptors(rest, self.descriptors)


def list_environments(mol: Chem.Mol, name: str) -> list[tuple[int, Iterable[int]]]:
    """Return the column and the atoms of every substructure that a fingerprint counts."""
    extra = rdFingerprintGenerator.AdditionalOutput()
    if name == "torsions":
        extra.CollectBitPaths()
        FINGERPRINTS[name]().GetCountFingerprintAsNumPy(mol, additionalOutput=extra)
        return [(column, path) for column, paths in extra.GetBitPaths().items() for path in paths]
    extra.CollectBitInfoMap()
    FINGERPRINTS[name]().GetCountFingerprintAsNumPy(mol, additionalOutput=extra)
    found = [(column, it) for column, its in extra.GetBitInfoMap().items() for it in its]
    if name == "atom_pairs":
        return found
    bonds = Chem.GetDistanceMatrix(mol)
    return [
        (column, np.flatnonzero(bonds[center] <= radius).tolist())
        for column, (center, radius) in found
    ]


# What is read off a model: a function of its output, `(batch_size, num_scores)`. The first score is
# the one that is explained.
Read = Callable[[Any], torch.Tensor]


def read_label(output: Any, *, column: int, config: RMatConfig) -> torch.Tensor:
    """Return what a model says of a label or class, `(batch_size, num_scores)`, float64.

    The first score is the value of a regression, or the logit of a class, of one of several the
    log-odds. Of classes the second one is the probability. Those of the members follow, if any.
    """
    logits = output.logits.double()
    scores = [_read_score(logits, column=column, config=config)]
    if config.types[column] != "regression":
        scores.append(compute_probabilities(logits, config.problem_type)[:, column])
    columns = [torch.stack(scores, dim=1)]
    if "member_logits" in output:
        members = output.member_logits.double()
        columns.append(_read_score(members, column=column, config=config))
    return torch.cat(columns, dim=1)


def _read_score(logits: torch.Tensor, *, column: int, config: RMatConfig) -> torch.Tensor:
    own = logits[..., column]
    if config.problem_type == "single_label_classification":
        others = [idx for idx in range(logits.shape[-1]) if idx != column]
        return own - logits[..., others].logsumexp(-1)
    # of a class among numbers the output is the probability
    is_probability = config.types[column] != (config.problem_type or "regression")
    return own.logit(eps=1e-6) if is_probability else own


@dataclass(frozen=True)
class Explainer:
    """A model in evaluation mode, and what of its output is to be explained.

    Args:
        model (`RMatPreTrainedModel`): The model.
        read (`Callable`): Output → `(batch_size, num_scores)`.
        batch_size (`int`): Most variants of molecules in one forward pass.
    """

    model: Any
    read: Read
    batch_size: int = 64

    def compute(
        self, molecules: Sequence[FeaturizedMol], edits: Sequence[Sequence[Edit | None]]
    ) -> list[dict[Edit | None, np.ndarray]]:
        """Return the scores of each molecule after each of its edits, `(num_scores,)`.

        Variants of molecules of similar sizes share the forward passes, whose number of pairs of
        nodes is bounded, and which are halved where memory does not suffice.
        """
        keys = [(row, edit) for row, of_row in enumerate(edits) for edit in dict.fromkeys(of_row)]
        sizes = [molecules[row].num_atoms + 1 for row, _ in keys]
        scores: list[dict[Edit | None, np.ndarray]] = [{} for _ in molecules]
        batches = [list(it) for it in group_by_length(sizes, batch_size=self.batch_size)[::-1]]
        while batches:
            batch = batches.pop()
            chosen = [keys[position] for position in batch]
            try:
                inputs = build_variants([(molecules[row], edit) for row, edit in chosen])
                tensors = {
                    name: torch.from_numpy(it).to(self.model.device) for name, it in inputs.items()
                }
                with torch.inference_mode():
                    numbers = self.read(self.model(**tensors, return_dict=True)).cpu().numpy()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(batch) == 1:
                    raise
                logger.warning("%d variants at a time need more memory than there is.", len(batch))
                half = len(batch) // 2
                batches += [batch[half:], batch[:half]]
                continue
            for (row, edit), of_edit in zip(chosen, numbers, strict=True):
                scores[row][edit] = of_edit
        return scores


def build_variants(variants: Sequence[tuple[FeaturizedMol, Edit | None]]) -> dict[str, np.ndarray]:
    """Return the model inputs of a batch of molecules, each after its edit."""
    rows = {id(molecule): molecule for molecule, _ in variants}
    places = {key: row for row, key in enumerate(rows)}
    whole = expand_features([molecule.packed for molecule in rows.values()])
    beside = [it.covariates for it in rows.values() if it.covariates is not None]
    append_covariates(whole, np.stack(beside) if beside else None)
    chosen = [places[id(molecule)] for molecule, _ in variants]
    inputs = {name: array[chosen] for name, array in whole.items()}
    for row, (molecule, edit) in enumerate(variants):
        if edit is None:
            continue
        edit.apply({name: array[row] for name, array in inputs.items()})
        if edit.kind == "drop" and FINGERPRINT_INPUT in inputs:
            inputs[FINGERPRINT_INPUT][row] = molecule.count_without(edit.atoms)
        if edit.kind == "drop" and molecule.descriptors:
            own = molecule.describe_without(edit.atoms)
            inputs[DESCRIPTOR_INPUT][row, : len(own)] = own
    return inputs


# Methods: the contribution of every atom of each molecule to each score, `(num_atoms, num_scores)`


def compute_effects(
    explainer: Explainer, molecules: Sequence[FeaturizedMol], *, kind: str
) -> list[np.ndarray]:
    """Return by how much the scores fall when an atom is dropped or masked."""
    edits = [[None, *(Edit(kind, (atom,)) for atom in it.atoms)] for it in molecules]
    found = zip(explainer.compute(molecules, edits), edits, strict=True)
    return [np.array([scores[None] - scores[it] for it in own[1:]]) for scores, own in found]


def fit_environments(explainer: Explainer, molecules: Sequence[FeaturizedMol]) -> list[np.ndarray]:
    """Return the contributions that add up best to what groups of atoms make, and all together.

    The groups are each atom with all atoms within none, one and two bonds; a group of `k` atoms has
    the weight `1 / k ** 2` in the least squares, and the sum over all atoms is exact: prediction
    less baseline. One atom alone says too little where others stand in for it, as in a ring.
    """
    groups = [list_balls(it.mol) for it in molecules]
    edits = [
        [None, Edit("drop", molecule.atoms), *(Edit("drop", it) for it in balls)]
        for molecule, balls in zip(molecules, groups, strict=True)
    ]
    contributions, found = [], explainer.compute(molecules, edits)
    for scores, balls, own in zip(found, groups, edits, strict=True):
        falls = np.array([scores[None] - scores[it] for it in own[1:]])
        num_atoms = len(balls) // 3
        members = np.array([np.isin(range(num_atoms), ball) for ball in balls], dtype=float)
        weighted = members.T / members.sum(axis=1) ** 2
        # the last row and column hold the condition on the sum and its multiplier
        system = np.ones((num_atoms + 1, num_atoms + 1))
        system[:-1, :-1], system[-1, -1] = weighted @ members, 0
        right = np.concatenate((weighted @ falls[1:], falls[:1]))
        contributions.append(np.linalg.solve(system, right)[:-1])
    return contributions


def list_balls(mol: Chem.Mol) -> list[tuple[int, ...]]:
    """Return the atoms within none, one and two bonds of each atom."""
    bonds = Chem.GetDistanceMatrix(mol)
    return [tuple(np.flatnonzero(row <= radius).tolist()) for radius in range(3) for row in bonds]


Method = Callable[[Explainer, Sequence[FeaturizedMol]], list[np.ndarray]]
METHODS: dict[str, Method] = {
    "environments": fit_environments,
    "drop": partial(compute_effects, kind="drop"),
    "mask": partial(compute_effects, kind="mask"),
}
