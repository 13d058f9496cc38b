"""explain(...): which atoms, groups and relations a prediction comes from, by taking them out."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rdkit import Chem
from rdkit.Chem import BRICS
from rdkit.Chem.Scaffolds import MurckoScaffold

from rmat_hf.data.featurization import iterate_featurized
from rmat_hf.data.measurements import name_learned
from rmat_hf.data.stored_features import unpack_features
from rmat_hf.data.table_writer import ERROR_COLUMN, ColumnKind
from rmat_hf.errors import UserError, is_out_of_memory
from rmat_hf.inference.attribution import (
    METHODS,
    RELATION_INPUTS,
    Edit,
    Explainer,
    FeaturizedMol,
    read_label,
)
from rmat_hf.inference.prediction import (
    TOO_LARGE_FOR_MODEL,
    open_model,
    read_beside,
    require_list,
    warn_of_faults,
    without_unread,
)
from rmat_hf.loading import load_predictor
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.covariates_rmat import count_covariates
from rmat_hf.model.features_rmat import Molecule, RMatParsedMolecule, parse_canonical
from rmat_hf.model.modeling_rmat import RMatForTokenClassification
from rmat_hf.model.processing_rmat import RMatProcessor

# What contributions can be given for.
PARTS = ("atom", "fragment", "relation", "pair")
DEFAULT_PARTS = PARTS[:3]
UNKNOWN_UNITS = "units of the label"
# Pairs of bonded atoms of which faithfulness is measured, at most.
MAX_PAIRS_TESTED = 10
_NUM_TOGETHER = 64


class Contributions(NamedTuple):
    """By how much a prediction falls when a part is taken out.

    Args:
        values (`np.ndarray`): In the units of the label; of classes logits, of several log-odds.
        probabilities (`np.ndarray`, *optional*): The same of the probability of the class.
        spread (`np.ndarray`, *optional*): Standard deviation over the members of an ensemble.
    """

    values: np.ndarray
    probabilities: np.ndarray | None = None
    spread: np.ndarray | None = None


class Fragment(NamedTuple):
    """A group of atoms and what it contributes as a whole, which is not the sum of its atoms.

    Args:
        kind (`str`): `"brics"` (doi 10.1002/cmdc.200800178), `"scaffold"` (of Murcko) or
            `"substituent"`: what hangs on that.
        smiles (`str`): Of the atoms.
        atoms (`tuple[int, ...]`): Positions in the molecule.
        contribution, probability, spread: As in [`Contributions`], numbers.
    """

    kind: str
    smiles: str
    atoms: tuple[int, ...]
    contribution: float
    probability: float | None
    spread: float | None


@dataclass(frozen=True)
class Explanation:
    """Why one molecule is predicted as it is; atoms are in the order of `mol`.

    Args:
        mol (`Chem.Mol`): The heavy atoms in the order of the SMILES or molecule that was given.
        prediction (`float`): In the units of the label, of classes a logit; where the label was
            learned on another scale (`rmat finetune --label-transform`), on that.
        probability (`float`, *optional*): Of a class.
        baseline (`float`): What the model says of no atoms at all.
        atoms ([`Contributions`], each `(num_atoms,)`): Of the atoms.
        fragments (`list[Fragment]`): Of groups.
        relations (`dict[str, Contributions]`, each `(num_atoms,)`):
            Of the distances, bonds and neighborhood orders between an atom and all others.
        totals (`dict[str, float]`): Of all of a relation together.
        pairs (`dict[str, np.ndarray]`, each `(num_atoms, num_atoms)`): Of a relation of two atoms.
        faithfulness (`float`):
            Correlation of two numbers over pairs of bonded atoms, at most 10: the sum of their
            contributions, and by how much the prediction falls when both are dropped
            ("faithfulness correlation", arXiv 2005.00631). NaN with fewer than three bonds.
        covariates (`dict[str, float]`): Of what the model reads beside molecules: by how much the
            prediction falls with the mean of the training rows in the place of the row's own.
    """

    mol: Chem.Mol
    prediction: float
    probability: float | None
    baseline: float
    atoms: Contributions
    fragments: list[Fragment] = field(default_factory=list)
    relations: dict[str, Contributions] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, np.ndarray] = field(default_factory=dict)
    faithfulness: float = np.nan
    covariates: dict[str, float] = field(default_factory=dict)

    @property
    def residual(self) -> float:
        """What the atoms do not explain: prediction - baseline - their sum."""
        return float(self.prediction - self.baseline - self.atoms.values.sum())


@dataclass(frozen=True)
class Explanations:
    """Why molecules are predicted as they are, one entry per molecule in input order.

    Args:
        rows (`list[Explanation | None]`): `None` with an error.
        errors (`list[str | None]`): Why there is no explanation.
        label (`str`): What is explained: a label, or a class of one.
        units (`str`): Of the contributions.
        covariates (`Sequence[str]`): Names of what the model reads beside molecules.
    """

    rows: list[Explanation | None]
    errors: list[str | None]
    label: str
    units: str
    covariates: Sequence[str] = ()

    def __getitem__(self, row: int) -> Explanation | None:
        return self.rows[row]

    def __len__(self) -> int:
        return len(self.rows)

    def to_columns(self) -> dict[str, list[Any]]:
        """Return table columns, None where there is no explanation; lists are by atom."""
        columns: dict[str, list[Any]] = {}
        for name, (_, read) in list_explanation_columns(self.covariates).items():
            columns[name] = [None if row is None else read(row) for row in self.rows]
        return {**columns, ERROR_COLUMN: list(self.errors)}


def list_explanation_columns(covariates: Sequence[str]) -> dict[str, tuple[ColumnKind, Any]]:
    """Return the columns of a table of explanations, what they hold, and where it comes from."""
    columns = dict(EXPLANATION_COLUMNS)
    for name in covariates:
        columns[f"{name}_effect"] = ("number", partial(_get_effect, name=name))
    return columns


def _list_relation(row: Explanation, name: str) -> list[float] | None:
    return row.relations[name].values.tolist() if name in row.relations else None


def _get_effect(row: Explanation, name: str) -> float | None:
    return row.totals.get(name, row.covariates.get(name))


EXPLANATION_COLUMNS: dict[str, tuple[ColumnKind, Any]] = {
    "explained": ("number", lambda row: row.prediction),
    "baseline": ("number", lambda row: row.baseline),
    "residual": ("number", lambda row: row.residual),
    "faithfulness": ("number", lambda row: _skip_nan(row.faithfulness)),
    "atom_contributions": ("numbers", lambda row: row.atoms.values.tolist()),
    "atom_probabilities": ("numbers", lambda row: _list(row.atoms.probabilities)),
    "atom_spread": ("numbers", lambda row: _list(row.atoms.spread)),
    **{
        f"{name}_contributions": ("numbers", partial(_list_relation, name=name))
        for name in RELATION_INPUTS
    },
    **{f"{name}_effect": ("number", partial(_get_effect, name=name)) for name in RELATION_INPUTS},
    "fragment_kinds": ("texts", lambda row: [it.kind for it in row.fragments]),
    "fragments": ("texts", lambda row: [it.smiles for it in row.fragments]),
    "fragment_atoms": ("texts", lambda row: [" ".join(map(str, it.atoms)) for it in row.fragments]),
    "fragment_contributions": ("numbers", lambda row: [it.contribution for it in row.fragments]),
}


def _list(values: np.ndarray | None) -> list[float] | None:
    return None if values is None else values.tolist()


def _skip_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


def explain(  # noqa: PLR0913 - what is explained, and what `predict` takes
    model: str | Path | Any,
    molecules: Iterable[Molecule] | pd.DataFrame,
    *,
    label: str | None = None,
    by: Sequence[str] = DEFAULT_PARTS,
    method: str = "environments",
    covariates: Mapping[str, Sequence[Any]] | None = None,
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device | None = None,
) -> Explanations:
    """Say what each atom, group and relation of molecules contributes to their predictions.

    A part contributes the difference that it makes: the prediction, less that of the molecule in
    which no node and no pooling sees the part. By default the contributions of atoms are those that
    add up best to the differences of atoms and of their surroundings, and exactly to that of all
    atoms; against exact contributions this is the method that wins, see `docs/explanations.md`. A
    relation of an atom contributes what its distances, bonds or neighborhood orders make, while the
    atom stays. Atoms that the bond graph does not tell apart share alike, unless the conformer came
    with the molecule.

    Args:
        model, molecules, covariates, processor, revision, num_workers, device:
            As in [`predict`]: any model of molecules. Covariates stay as they are, in the baseline
            too.
        label (`str`, *optional*): Label, or class of one, if there are several.
        by (`Sequence[str]`, *optional*, defaults to `("atom", "fragment", "relation")`):
            What contributes. Atoms are always there and take `3 * num_atoms` + 14 variants of a
            molecule at most, `num_atoms` + 13 with the method `"drop"`; `"relation"` takes
            `3 * num_atoms` + 3 more, `"pair"` the square.
        method (`str`, *optional*, defaults to `"environments"`):
            Of the atoms: `"environments"`, `"drop"` (one atom at a time) or `"mask"` (the token of
            pretraining).
        batch_size (`int`, *optional*, defaults to 64): Most variants of molecules in a forward
            pass.

    Returns:
        [`Explanations`]: one row per molecule, in the order and with the reasons of [`predict`].

    Raises:
        UserError: There are several labels and none is named, there is no such label, part or
            method, or the model is one of atoms.

    Example:
    ```python
    >>> from rmat_hf import RMatForSequenceClassification, RMatProcessor, checkpoint_path, explain
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     checkpoint_path("rmat-small"), num_labels=1, problem_type="regression"
    ... )
    >>> processor = RMatProcessor(geometry="bounds")
    >>> found = explain(model, ["OCC", "C1CC"], processor=processor)
    >>> found[0].atoms.values.shape, sorted(found[0].relations)  # O, C and C
    ((3,), ['bond', 'distance', 'neighborhood'])
    >>> found[1], found.errors[1]
    (None, "SMILES Parse Error: unclosed ring for input: 'C1CC'")

    ```
    """
    predictor, used_processor = open_model(
        load_predictor, model, processor=processor, revision=revision, device=device
    )
    column = choose_column(predictor, label)
    if unknown := [it for it in by if it not in PARTS]:
        raise UserError(f"by has {unknown[0]!r}. Choose of {', '.join(PARTS)}.")
    if method not in METHODS:
        raise UserError(f"method is {method!r}. Choose one of {', '.join(METHODS)}.")
    config, rows = predictor.config, require_list(molecules)
    read, places = partial(read_label, column=column, config=config), locate_covariates(config)
    asked = _Question(by, method, config.types[column] != "regression", places)
    explainer = Explainer(predictor.eval(), read, batch_size=batch_size)
    beside = read_beside(config, molecules, covariates=covariates, num_rows=len(rows))
    used_processor = without_unread(used_processor, predictor)
    results: list[Explanation | str] = []
    outcomes = iterate_featurized(rows, used_processor, num_workers=num_workers)
    with closing(outcomes):
        cells = repeat(None) if beside.values is None else beside.values
        known = zip(rows, outcomes, cells, strict=False)
        while group := list(islice(known, _NUM_TOGETHER)):
            opened = [
                _open_molecule(molecule, outcome.features, processor=used_processor, covariates=own)
                for molecule, outcome, own in group
                if not outcome.failure
            ]
            found = iter(_explain_group(explainer, opened, asked=asked))
            results += [outcome.failure or next(found) for _, outcome, _ in group]
    explained = [not isinstance(it, str) for it in results]
    warn_of_faults({row: it for row, it in beside.faults.items() if explained[row]})
    return Explanations(
        [None if isinstance(it, str) else it for it in results],
        [it if isinstance(it, str) else None for it in results],
        describe_column(config, column),
        describe_units(config, column),
        [*places],
    )


def choose_column(model: Any, label: str | None) -> int:
    """Return the output that a label or class is, by default the only one, or that of class 1."""
    if isinstance(model, RMatForTokenClassification):
        raise UserError("The model predicts atoms one by one. explain takes models of molecules.")
    config = model.config
    names, is_binary = config.output_names, config.output_names == ["0", "1"]
    if is_binary and config.label_name is not None and label in (None, config.label_name):
        return 1
    if len(names) == 1 and label is None:
        return 0
    if label not in names:
        fault = "There are several outputs" if label is None else f"There is no label {label!r}"
        raise UserError(f"{fault}. Name one with --label: {', '.join(map(repr, names))}.")
    return names.index(label)


def describe_column(config: RMatConfig, column: int) -> str:
    """Return the name of a label, of a class with that of its label."""
    name = config.output_names[column]
    return name if config.label_name is None else f"{config.label_name} = {name}"


def describe_units(config: RMatConfig, column: int) -> str:
    """Return the units of contributions to an output."""
    if config.types[column] != "regression":
        return "logit"
    units = config.label_units[column] if config.label_units else UNKNOWN_UNITS
    transform = "none" if config.label_transforms is None else config.label_transforms[column]
    # there the effects of atoms add up, and not where they are undone
    return units if transform == "none" else name_learned(config.output_names[column], transform)


class _Question(NamedTuple):
    """What is asked of every molecule."""

    by: Sequence[str]
    method: str
    is_class: bool
    covariates: Mapping[str, tuple[int, ...]]


class _Known(NamedTuple):
    """A molecule in the order of its features, and as it was given."""

    featurized: FeaturizedMol
    given_mol: Chem.Mol
    order: np.ndarray


def _open_molecule(
    molecule: Molecule, packed: bytes, *, processor: RMatProcessor, covariates: np.ndarray | None
) -> _Known:
    parsed: RMatParsedMolecule = parse_canonical(molecule, **processor.parsing_options)
    names = (processor.fingerprints or (), processor.molecule_descriptors or ())
    featurized = FeaturizedMol(parsed.mol, packed, *names, covariates)
    return _Known(featurized, parsed.given_mol or parsed.mol, parsed.compute_atom_order())


def _explain_group(
    explainer: Explainer, known: Sequence[_Known], *, asked: _Question
) -> list[Explanation | str]:
    """Explain molecules together, or one by one where memory does not suffice."""
    molecules = [it.featurized for it in known]
    try:
        effects = METHODS[asked.method](explainer, molecules)
        scores = explainer.compute(molecules, [list_edits(it, asked=asked) for it in molecules])
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(known) == 1:
            return [f"{TOO_LARGE_FOR_MODEL} ({molecules[0].num_atoms} atoms)"]
        return [it for one in known for it in _explain_group(explainer, [one], asked=asked)]
    return [
        _summarize(molecule, effects=of_atoms, scores=found, asked=asked)
        for molecule, of_atoms, found in zip(known, effects, scores, strict=True)
    ]


def locate_covariates(config: RMatConfig) -> dict[str, tuple[int, ...]]:
    """Return the columns of each covariate of a model, as an [`Edit`] takes them."""
    start, places = -count_covariates(config.covariates), {}
    for kind in config.covariates or []:
        stop = start + count_covariates([kind])
        places[str(kind["name"])] = tuple(range(start, stop))
        start = stop
    return places


def list_edits(molecule: FeaturizedMol, *, asked: _Question) -> list[Edit | None]:
    """Return what is taken out of a molecule to explain it, beside what the method takes out."""
    atoms = molecule.atoms
    edits = [
        None,
        Edit("drop", atoms),
        *(Edit("covariate", it) for it in asked.covariates.values()),
    ]
    edits += [Edit("drop", pair) for pair in list_bonded_pairs(molecule.mol)]
    if "fragment" in asked.by:
        edits += [Edit("drop", group) for _, group in list_fragments(molecule.mol)]
    for name in RELATION_INPUTS:
        if "relation" in asked.by:
            edits += [Edit(name, it, atoms) for it in (atoms, *((atom,) for atom in atoms))]
        if "pair" in asked.by:
            edits += [
                Edit(name, (first,), (second,)) for first, second in list_pairs(molecule, name)
            ]
    return edits


def list_pairs(molecule: FeaturizedMol, name: str) -> list[tuple[int, int]]:
    """Return the pairs of atoms that have a relation: any two, or those of a bond."""
    return [
        pair
        for pair in combinations(molecule.atoms, 2)
        if name != "bond" or molecule.mol.GetBondBetweenAtoms(*pair)
    ]


def list_bonded_pairs(mol: Chem.Mol) -> list[tuple[int, int]]:
    """Return the atoms of bonds, at most 10, the same however the atoms are numbered."""
    ranks = list(Chem.CanonicalRankAtoms(mol))
    pairs = [(it.GetBeginAtomIdx(), it.GetEndAtomIdx()) for it in mol.GetBonds()]
    pairs.sort(key=lambda pair: sorted(ranks[it] for it in pair))
    return pairs[:: -(-len(pairs) // MAX_PAIRS_TESTED) or 1]


def list_fragments(mol: Chem.Mol) -> list[tuple[str, tuple[int, ...]]]:
    """Return kind and atoms of the fragments of BRICS, and of scaffold and substituents."""
    bonds = [mol.GetBondBetweenAtoms(*pair).GetIdx() for pair, _ in BRICS.FindBRICSBonds(mol)]
    pieces = Chem.FragmentOnBonds(mol, bonds, addDummies=False) if bonds else mol
    groups = [("brics", it) for it in Chem.GetMolFrags(pieces)]
    scaffold = find_scaffold(mol)
    if scaffold:
        groups.append(("scaffold", tuple(scaffold)))
        cut = [
            it.GetIdx()
            for it in mol.GetBonds()
            if (it.GetBeginAtomIdx() in scaffold) != (it.GetEndAtomIdx() in scaffold)
        ]
        pieces = Chem.FragmentOnBonds(mol, cut, addDummies=False) if cut else mol
        rest = [it for it in Chem.GetMolFrags(pieces) if it[0] not in scaffold]
        groups += [("substituent", it) for it in rest]
    # the whole molecule is no group of it
    return [(kind, atoms) for kind, atoms in groups if len(atoms) < mol.GetNumAtoms()]


def find_scaffold(mol: Chem.Mol) -> list[int]:
    """Return the atoms of the scaffold of Murcko (doi 10.1021/jm9602928); none without rings."""
    marked = Chem.Mol(mol)
    for atom in marked.GetAtoms():
        atom.SetIntProp("position", atom.GetIdx())
    scaffold = MurckoScaffold.GetScaffoldForMol(marked)
    return sorted(it.GetIntProp("position") for it in scaffold.GetAtoms())


def _summarize(
    known: _Known,
    *,
    effects: np.ndarray,
    scores: Mapping[Edit | None, np.ndarray],
    asked: _Question,
) -> Explanation | str:
    if not all(np.isfinite(it).all() for it in (effects, *scores.values())):
        return "the model's output is not a finite number"
    molecule, order, atoms = known.featurized, known.order, known.featurized.atoms
    by, split = asked.by, partial(_split_scores, is_class=asked.is_class)

    def lose(*edit: Any) -> np.ndarray:
        return scores[None] - scores[Edit(*edit)]

    def arrange(values: np.ndarray) -> Contributions:
        table = np.empty_like(values)
        table[order] = values
        _average_equal_atoms(known, table)
        return split(table)

    relations = {}
    for name in RELATION_INPUTS if "relation" in by else ():
        relations[name] = arrange(np.array([lose(name, (atom,), atoms) for atom in atoms]))
    pairs = {name: np.zeros((len(atoms), len(atoms))) for name in RELATION_INPUTS if "pair" in by}
    for name, matrix in pairs.items():
        for first, second in list_pairs(molecule, name):
            effect = lose(name, (first,), (second,))[0]
            matrix[order[first], order[second]] = matrix[order[second], order[first]] = effect
    bonded = list_bonded_pairs(molecule.mol)
    return Explanation(
        known.given_mol,
        float(scores[None][0]),
        float(scores[None][1]) if asked.is_class else None,
        float(scores[Edit("drop", atoms)][0]),
        arrange(effects),
        [
            _describe_fragment(known, group, kind=kind, effect=split(lose("drop", group)))
            for kind, group in (list_fragments(molecule.mol) if "fragment" in by else ())
        ],
        relations,
        {name: float(lose(name, atoms, atoms)[0]) for name in relations},
        pairs,
        _correlate(
            [effects[list(pair), 0].sum() for pair in bonded],
            [lose("drop", it)[0] for it in bonded],
        ),
        {name: float(lose("covariate", places)[0]) for name, places in asked.covariates.items()},
    )


def _average_equal_atoms(known: _Known, table: np.ndarray) -> None:
    """Give atoms that the bond graph does not tell apart the same numbers, in place.

    A geometry that was generated from it does, by chance; one that came with the molecule stays.
    """
    if unpack_features(known.featurized.packed).geometry_source == "given":
        return
    kinds = np.array(Chem.CanonicalRankAtoms(known.given_mol, breakTies=False))
    for kind in np.unique(kinds):
        table[kinds == kind] = table[kinds == kind].mean(axis=0)


def _split_scores(scores: np.ndarray, *, is_class: bool) -> Contributions:
    """Return what is in the columns of `read_label`."""
    probabilities = scores[..., 1] if is_class else None
    members = scores[..., 1 + is_class :]
    spread = members.std(-1) if members.shape[-1] else None
    return Contributions(scores[..., 0], probabilities, spread)


def _describe_fragment(
    known: _Known, atoms: tuple[int, ...], *, kind: str, effect: Contributions
) -> Fragment:
    smiles = Chem.MolFragmentToSmiles(known.featurized.mol, atoms)
    numbers = [None if it is None else float(it) for it in effect[1:]]
    places = tuple(sorted(known.order[list(atoms)].tolist()))
    return Fragment(kind, smiles, places, float(effect.values), *numbers)


def _correlate(first: Sequence[float], second: Sequence[float]) -> float:
    # of equal atoms there is nothing but rounding to correlate
    if len(first) < 3 or np.allclose(first, first[0], atol=1e-5):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
