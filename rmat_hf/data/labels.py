"""Turn the label cells of a table into numbers and find contradictions between them."""

import math
import re
import reprlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, LargeList, List
from rdkit import Chem

from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import Molecule, parse_canonical
from rmat_hf.model.processing_rmat import RMatProcessor

# As people and spreadsheets write that a value is not known.
MISSING_NUMBERS = frozenset(
    {"", "nan", "na", "n/a", "null", "none", "-", "--", "?", "n.a.", "n.d.", "nd", "n.t.", "nt"}
    | {"not determined", "not tested", "missing", "#n/a", "#value!", "#div/0!", "#ref!"}
)
LISTS = (List, LargeList)
MISSING_CLASSES = frozenset({"", "nan"})
# Between the labels of atoms where they are text: as JSON, Python, numpy and SDF files write lists.
_SEPARATORS = re.compile(r"[\s,;\[\]\"']+")
# In front of a number, and which of them say that it is a bound.
_RELATION = re.compile(r"\s*(<<|>>|[<>]=?|[≤≥~≈=])\s*(.*)", re.DOTALL)
BOUNDS = {
    **dict.fromkeys(("<", "<=", "<<", "≤"), "<"),
    **dict.fromkeys((">", ">=", ">>", "≥"), ">"),
}
# What a caller may do about rows of one molecule that contradict each other.
CONFLICT_WAY_OUT = (
    "--replicates median makes each molecule one row, --conflict-tolerance 1 keeps more"
)
LARGEST_LABEL = float(np.finfo(np.float32).max)


class LabelError(UserError):
    """A cell that holds no label; `reason` says which and why, without the row."""

    def __init__(self, reason: str, *, row: int) -> None:
        super().__init__(
            f"Row {row} (counted from 0): {reason}. Fix the cell, or leave it empty when the value "
            "is not known."
        )
        self.reason = reason


# What is asked for, as people write that it is so. Of those in the second line a column has one.
_YES = frozenset({"true", "yes", "active", "positive", "pass", "passed"})
_FINDINGS = frozenset(
    {"toxic", "mutagenic", "permeable", "soluble", "stable"}
    | {"binder", "blocker", "inhibitor", "substrate"}
)
# That it is not so, beside these words after non or not.
_NO = frozenset(
    {"false", "no", "inactive", "negative", "fail", "failed"}
    | {"impermeable", "insoluble", "unstable"}
)
_NEGATION = re.compile(r"(non|not) ?(?P<word>.+)")
_GAPS = re.compile(r"[\s_\u2010-\u2014-]+")
# Of which nobody asks which is 1.
_PLAIN_WORDS = frozenset({"true", "yes", "false", "no"})
_NUM_NAMED_WORDS = 4
# How a word begins, and no number, bound or list.
_TEXT = re.compile(r"[^\W\d_]")


class Bound(float):
    """A number below or above which a value is, by its `relation`, `"<"` or `">"`."""

    relation: str

    def __new__(cls, number: float, *, relation: str) -> "Bound":
        """Return the number with its relation."""
        bound = super().__new__(cls, number)
        bound.relation = relation
        return bound


def parse_measurement(value: object) -> float | None:
    """Return a number as from [`parse_number`], or the [`Bound`] in a cell like `>10000`.

    `~` and `=` say what no sign says.
    """
    found = _RELATION.match(value) if isinstance(value, str) else None
    number = parse_number(value if found is None else found[2])
    if found is None or number is None or math.isnan(number):
        return number if found is None else None
    return Bound(number, relation=BOUNDS[found[1]]) if found[1] in BOUNDS else number


def parse_number(value: object) -> float | None:
    """Return a regression label, NaN for an empty cell, `None` for what is no number."""
    number = _parse_float(value, missing=MISSING_NUMBERS)
    return None if number is None or abs(number) > LARGEST_LABEL else number


def parse_binary(value: object) -> float | None:
    """Return a label 0 or 1, as of [`parse_word`], NaN where empty, `None` for anything else."""
    word = parse_word(str(value))
    number = parse_number(value) if word is None else word
    return number if number is None or number in (0.0, 1.0) or math.isnan(number) else None


def parse_word(text: str) -> float | None:
    """Return 1 for a word like yes, active or toxic, 0 for one like no, inactive or non-toxic."""
    word = _normalize(text)
    if word in _YES or word in _FINDINGS:
        return 1.0
    negated = _NEGATION.fullmatch(word)
    is_no = word in _NO or (negated is not None and negated["word"] in _YES | _FINDINGS)
    return 0.0 if is_no else None


def _normalize(text: str) -> str:
    return _GAPS.sub(" ", text.strip().lower())


def is_empty(text: str) -> bool:
    """Tell whether a cell says that there is no value."""
    return text.strip().lower() in MISSING_NUMBERS


def name_several_findings(words: Iterable[str]) -> bool:
    """Tell whether words of a column say yes to different things, which are classes then."""
    return len({*map(_normalize, words)} & _FINDINGS) > 1


def describe_words(cells: Iterable[object]) -> str:
    """Say which words of a column are 1 and which 0; nothing where these are yes and no."""
    words: dict[float, dict[str, str]] = {1.0: {}, 0.0: {}}
    for text in map(str, cells):
        number = parse_word(text)
        if number is not None and _normalize(text) not in _PLAIN_WORDS:
            words[number].setdefault(_normalize(text), text.strip())
    said = [
        f"{list_words([*of.values()])} {'is' if len(of) == 1 else 'are'} {number:g}"
        for number, of in words.items()
        if of
    ]
    return ", ".join(said)


def list_words(words: Sequence[str]) -> str:
    """Return the first words of many, quoted."""
    shown = ", ".join(map(repr, words[:_NUM_NAMED_WORDS]))
    more = len(words) - _NUM_NAMED_WORDS
    return f"{shown} and {more} more" if more > 0 else shown


def describe_recoding(column: str, cells: Iterable[object]) -> str:
    """Say how the words of a column of which nobody knows which is 1 become 1 and 0.

    Nothing of words of yes and no, numbers and lists; and a line for pandas where it loses no cell.
    """
    texts = [it for it in dict.fromkeys(map(str, cells)) if not is_empty(it)]
    spellings: dict[str, list[str]] = {}
    for text in (it for it in texts if parse_number(it) not in (0.0, 1.0)):
        spellings.setdefault(_normalize(text), []).append(text)
    is_known = None not in map(parse_word, spellings) and not name_several_findings(spellings)
    if is_known or not all(map(_TEXT.match, spellings)):
        return ""
    named = {word: of[0].strip() for word, of in spellings.items()}
    meaning = "1 is what the model gives the probability of"
    if len(named) != 2 or len(texts) > sum(map(len, spellings.values())):
        shown = list_words([*named.values()])
        return f"In {column!r} write 1 or 0 in the place of each of {shown}: {meaning}."
    # active before weak, and weak before inactive
    words = sorted(named, key=lambda word: (1.0, None, 0.0).index(parse_word(word)))
    mapping = {text: 1 - idx for idx, word in enumerate(words) for text in spellings[word]}
    pairs = " and ".join(f"{named[word]!r} by {1 - idx}" for idx, word in enumerate(words))
    return (
        f"In {column!r} replace {pairs} (or the reverse: {meaning}), as "
        f"table[{column!r}].map({mapping}) does in pandas."
    )


def parse_class(value: object) -> float | str | None:
    """Return the name of a class, NaN for an empty cell, `None` for anything else.

    Integers have one spelling: `1`, `"1"` and `"1.0"` are the class `"1"`.
    """
    if isinstance(value, bool):
        return str(value)
    number = _parse_float(value, missing=MISSING_CLASSES)
    if number is None:
        return value.strip() if isinstance(value, str) else None
    if number.is_integer():
        return str(int(number))
    return number if math.isnan(number) else None


def _parse_float(value: object, *, missing: frozenset[str]) -> float | None:
    """Return NaN where missing and `None` where the value is no finite number."""
    text = "" if value is None else str(value).strip()
    if text.lower() in missing:
        return math.nan
    if not isinstance(value, str | bool | int | float | Decimal) or "_" in text:
        return None  # Python reads "1_000" as a number, which no table means
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


# How the cells of each problem type are read, and what those are that cannot be.
LABEL_PARSERS: dict[str, tuple[Callable[[object], float | str | None], str]] = {
    "regression": (parse_measurement, "not a number"),
    "multi_label_classification": (parse_binary, "neither 0 nor 1"),
    "single_label_classification": (
        parse_class,
        "neither an integer nor a word (for other numbers choose regression)",
    ),
}


def parse_label(value: object, *, problem_type: str, row: int, column: str) -> float | str:
    """Return the label in a cell: a number, or the name of a class; NaN where missing.

    Args:
        value: The cell: text or a number; empty, `None` and NaN are a missing label.
    """
    parse, fault = LABEL_PARSERS[problem_type]
    label = parse(value)
    if label is None:
        parts = [part for part in _SEPARATORS.split(str(value)) if part]
        is_list = isinstance(value, list) or (len(parts) > 1 and None not in map(parse, parts))
        hint = "; lists of the labels of atoms need --level atom" * is_list
        reason = f"label {column!r} is {reprlib.repr(value)}, {fault}{hint}"
        raise LabelError(reason, row=row)
    return label


def parse_atom_labels(
    value: object, *, problem_type: str, row: int, column: str
) -> list[float | str]:
    """Return the labels of a molecule's atoms in a cell, each as from [`parse_label`].

    Args:
        value: The cell: a list, or the text of one, as `[0.1, null]`, or `0.1 n/a` in an SDF file.
            Empty where no atom has a label.
    """
    if not isinstance(value, list):
        texts = _SEPARATORS.split("" if value is None else str(value))
        value = [None if text.lower() in MISSING_NUMBERS else text for text in texts if text]
    options: Any = {"problem_type": problem_type, "row": row, "column": column}
    labels = [parse_label(label, **options) for label in value]
    if bounds := [it for it in labels if isinstance(it, Bound)]:
        raise LabelError(f"label {column!r} has the bound {bounds[0]} of an atom", row=row)
    return labels


def arrange_atom_labels(
    labels: Sequence[object] | np.ndarray, molecule: Molecule, *, processor: RMatProcessor
) -> np.ndarray:
    """Return the labels of a molecule's atoms in the order in which its features are stored.

    The atoms of a SMILES are stored in canonical order, those of an RDKit molecule in its own.

    Args:
        labels (`Sequence`): `(num_atoms,)` or `(num_atoms, num_labels)`, NaN or `None` where
            missing: of each atom that is a node, the heavy ones, in the order in which the SMILES
            or the RDKit molecule has them. Of an RDKit molecule with hydrogens one for each of its
            atoms will do too; those of hydrogens are left out.

    Returns:
        `np.ndarray` of shape `(num_atoms, num_labels)`, float64, with names of classes objects.
    """
    order = _find_atom_order(molecule, processor)
    values = np.array(labels, dtype=object)
    values = values[:, None] if values.ndim == 1 else values
    if isinstance(molecule, Chem.Mol) and len(values) == molecule.GetNumAtoms() != len(order):
        values = values[[atom.GetAtomicNum() != 1 for atom in molecule.GetAtoms()]]
    if values.ndim != 2 or len(values) != len(order):
        raise ValueError(
            f"There are labels of shape {values.shape} for {len(order)} heavy atoms. Give each of "
            "them one, in the order of the SMILES, NaN where it is not known."
        )
    is_text = any(isinstance(label, str) for label in values.flat)
    return values[order] if is_text else values[order].astype(np.float64)


def restore_atom_order(
    values: np.ndarray, molecule: Molecule, *, processor: RMatProcessor
) -> np.ndarray:
    """Return what the stored atoms of a molecule have in the order in which it was given.

    Args:
        values (`np.ndarray` of shape `(num_atoms, ...)`): As from [`arrange_atom_labels`].
    """
    restored = np.empty_like(values)
    restored[_find_atom_order(molecule, processor)] = values
    return restored


def _find_atom_order(molecule: Molecule, processor: RMatProcessor) -> np.ndarray:
    return parse_canonical(molecule, **processor.parsing_options).compute_atom_order()


def is_missing(label: float | str | list[float | str]) -> bool:
    """Tell whether a parsed label, or that of every atom, is missing."""
    return all(map(is_missing, label)) if isinstance(label, list) else label != label


def has_atom_labels(dataset: Dataset) -> bool:
    """Return whether the labels of a data set are those of atoms: lists of lists."""
    return isinstance(getattr(dataset.features["labels"], "feature", None), LISTS)


def flatten_labels(labels: Any) -> np.ndarray:
    """Return labels of molecules or, one after the other, of atoms, `(num_rows, num_labels)`."""
    if len(labels) and np.ndim(labels[0]) == 2:
        labels = [of_atom for of_molecule in labels for of_atom in of_molecule]
    values = np.array(labels, dtype=np.float64)
    return values.reshape(len(values), -1) if values.size else values


def list_class_names(labels: Sequence[object]) -> list[str]:
    """Return the classes there are: integers by value, otherwise words in alphabetical order."""
    names = {label for label in labels if isinstance(label, str)}
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)


def find_label_conflicts(
    groups: Sequence[Hashable], labels: np.ndarray, *, tolerance: float | np.ndarray
) -> dict[int, tuple[int, int, int]]:
    """Find the molecules whose labels contradict each other.

    Args:
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): Labels, NaN where missing.
        tolerance (`float` or `np.ndarray` of shape `(num_labels,)`):
            Largest difference that is no contradiction, in standard deviations of the label column.
    """
    frame = pd.DataFrame(labels)
    molecules = frame.groupby(pd.factorize(pd.Series(groups, dtype=object))[0], sort=False)
    is_beyond = molecules.max() - molecules.min() > tolerance * frame.std(ddof=0)
    conflicts: dict[int, tuple[int, int, int]] = {}
    for name, label_idx in is_beyond[is_beyond.any(axis=1)].idxmax(axis=1).items():
        rows = molecules.indices[name]
        values = frame.loc[rows, label_idx]
        conflict = (int(label_idx), int(values.idxmin()), int(values.idxmax()))
        conflicts |= dict.fromkeys(rows.tolist(), conflict)
    return conflicts
