"""find_counterfactuals(...): what a model says if one group of a molecule were another."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rdkit import Chem
from rdkit.Chem import rdMMPA

from rmat_hf.data.table_writer import ERROR_COLUMN
from rmat_hf.inference.explanation import choose_column
from rmat_hf.inference.prediction import find_beside, open_model, predict, require_list
from rmat_hf.loading import load_predictor
from rmat_hf.model.features_rmat import Molecule, MoleculeError, parse_molecule, silence_rdkit
from rmat_hf.model.processing_rmat import RMatProcessor

# What medicinal chemists put in the place of a group, each with its open bond.
COMMON_GROUPS = (
    *("[H][*:1]", "C[*:1]", "CC[*:1]", "CC(C)[*:1]", "CC(C)(C)[*:1]", "C1CC1[*:1]", "C=C[*:1]"),
    *("C#C[*:1]", "F[*:1]", "Cl[*:1]", "Br[*:1]", "FC(F)[*:1]", "FC(F)(F)[*:1]", "FC(F)(F)O[*:1]"),
    *("O[*:1]", "CO[*:1]", "CCO[*:1]", "OC[*:1]", "S[*:1]", "CS[*:1]", "CS(=O)(=O)[*:1]"),
    *("NS(=O)(=O)[*:1]", "N[*:1]", "CN[*:1]", "CN(C)[*:1]", "CC(=O)N[*:1]", "N#C[*:1]"),
    *("[O-][N+](=O)[*:1]", "CC(=O)[*:1]", "NC(=O)[*:1]", "OC(=O)[*:1]", "COC(=O)[*:1]"),
    *("c1ccccc1[*:1]", "c1ccncc1[*:1]", "C1COCCN1[*:1]", "C1CCNCC1[*:1]"),
)
# A group has at most so many heavy atoms, and no more than what it hangs on.
MAX_GROUP_ATOMS = 10
# A group that so many molecules of a training set have is one to try.
MIN_COUNT = 2


class Counterfactual(NamedTuple):
    """A molecule with another group in one place.

    Args:
        smiles (`str`): The molecule.
        removed, added (`str`): SMILES of the groups, the open bond at `*`.
        prediction (`float`): In the units of the label, of a class its probability.
        change (`float`): From the molecule that was given.
        columns (`dict[str, Any]`): All that [`predict`] says of it: of models that have them,
            spread, interval and whether it lies in the model's domain.
    """

    smiles: str
    removed: str
    added: str
    prediction: float
    change: float
    columns: dict[str, Any]


def find_counterfactuals(  # noqa: PLR0913 - what is replaced, and what `predict` takes
    model: str | Path | Any,
    molecules: Iterable[Molecule],
    *,
    label: str | None = None,
    replacements: Iterable[Molecule] | None = None,
    covariates: Mapping[str, Sequence[Any]] | None = None,
    num_best: int = 10,
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> list[list[Counterfactual]]:
    """Replace every group of molecules by others and predict what comes of it.

    Molecules are cut at single bonds outside rings (matched molecular pairs, doi
    10.1021/ci900450m). That a model predicts a change does not make it one: of two molecules that
    differ in one group the error is smaller than of any two, but there.

    Args:
        model, molecules, processor, revision, device: As in [`predict`].
        covariates: As in [`predict`]; other molecules have those of the row they come from.
        label (`str`, *optional*): Label, or class of one, if there are several.
        replacements (`Iterable[str | Chem.Mol]`, *optional*):
            Molecules, as those of the training set, whose groups are tried that two of them have
            at least. By default 36 groups that are common in medicinal chemistry.
        num_best (`int`, *optional*, defaults to 10): How many to return of a molecule.

    Returns:
        A list for each molecule, of the largest change first; empty if it cannot be predicted or
        has no group.

    Raises:
        UserError: As [`explain`].

    Example:
    ```python
    >>> from rmat_hf import RMatForSequenceClassification, RMatProcessor, checkpoint_path
    >>> from rmat_hf import find_counterfactuals
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     checkpoint_path("rmat-small"), num_labels=1, problem_type="regression"
    ... )
    >>> processor = RMatProcessor(geometry="bounds")
    >>> found = find_counterfactuals(
    ...     model, ["Clc1ccccc1"], replacements=["Cc1ccccc1", "CCC"], processor=processor
    ... )
    >>> [(it.removed, it.added, it.smiles) for it in found[0]]
    [('Cl*', 'C*', 'Cc1ccccc1')]

    ```
    """
    predictor, used_processor = open_model(
        load_predictor, model, processor=processor, revision=revision, device=device
    )
    column = choose_column(predictor, label)
    groups = COMMON_GROUPS if replacements is None else list_groups(replacements)
    rows = require_list(molecules)
    changed = [_replace_groups(it, groups, processor=used_processor) for it in rows]
    asked = [*rows, *(smiles for of_row in changed for smiles in of_row)]
    origins = [*range(len(rows)), *(row for row, it in enumerate(changed) for _ in it)]
    beside = {
        name: [cells[row] for row in origins]
        for name, cells in find_beside(predictor.config, molecules, covariates=covariates).items()
    }
    predictions = predict(predictor, asked, covariates=beside, processor=used_processor)
    columns = predictions.to_columns()
    values, errors = predictions.values[:, column].tolist(), predictions.errors
    found, start = [], len(rows)
    for row, of_row in enumerate(changed):
        candidates = [
            Counterfactual(
                smiles,
                *groups_of_both,
                values[idx],
                values[idx] - values[row],
                {name: cells[idx] for name, cells in columns.items() if name != ERROR_COLUMN},
            )
            for idx, (smiles, groups_of_both) in enumerate(of_row.items(), start)
            if errors[idx] is None and errors[row] is None
        ]
        start += len(of_row)
        candidates.sort(key=lambda it: (-abs(it.change), it.smiles))
        found.append(candidates[:num_best])
    return found


def list_groups(molecules: Iterable[Molecule]) -> list[str]:
    """Return the groups that two molecules have at least, the most frequent first."""
    counts: Counter[str] = Counter()
    for molecule in molecules:
        try:
            mol = parse_molecule(molecule, max_atoms=1000)
        except MoleculeError:
            continue
        counts.update({group for group, _ in _cut(mol)})
    frequent = [(group, count) for group, count in counts.items() if count >= MIN_COUNT]
    return [group for group, _ in sorted(frequent, key=lambda it: (-it[1], it[0]))]


def _cut(mol: Chem.Mol) -> list[tuple[str, str]]:
    """Return every group of a molecule and what is left, both with `[*:1]` at the open bond."""
    found = []
    for _, pieces in rdMMPA.FragmentMol(mol, maxCuts=1, resultsAsMols=False):
        parts = pieces.split(".")
        if len(parts) != 2:
            continue  # a salt: which part belongs to which is not told
        sizes = [Chem.MolFromSmiles(it).GetNumHeavyAtoms() for it in parts]
        for group, rest in ((0, 1), (1, 0)):
            if sizes[group] <= min(MAX_GROUP_ATOMS, sizes[rest]):
                found.append((parts[group], parts[rest]))
    return found


def _replace_groups(
    molecule: Molecule, groups: Sequence[str], *, processor: RMatProcessor
) -> dict[str, tuple[str, str]]:
    """Return the molecules with another group in one place, and which two groups these are."""
    try:
        mol = parse_molecule(molecule, **processor.parsing_options)
    except MoleculeError:
        return {}
    found: dict[str, tuple[str, str]] = {}
    own = Chem.MolToSmiles(mol)
    with silence_rdkit():
        for removed, rest in _cut(mol):
            for added in groups:
                joined = Chem.molzip(Chem.MolFromSmiles(f"{rest}.{added}"))
                smiles = Chem.MolToSmiles(Chem.RemoveHs(joined))
                if smiles != own:
                    names = (removed.replace("[*:1]", "*"), added.replace("[*:1]", "*"))
                    found.setdefault(smiles, names)
    return found
