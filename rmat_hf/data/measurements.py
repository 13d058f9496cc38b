"""What stands beside a label: its bound, transform and weight, and other measurements of it."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pandas as pd
from rdkit import DataStructs

from rmat_hf.data.columns import ASSAY, may_be_either
from rmat_hf.data.labels import (
    MISSING_NUMBERS,
    Bound,
    LabelError,
    flatten_labels,
    is_missing,
    parse_number,
)
from rmat_hf.data.table_writer import list_columns
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.covariates_rmat import encode_covariates
from rmat_hf.model.losses_rmat import choose
from rmat_hf.model.processing_rmat import DESCRIPTOR_INPUT
from rmat_hf.model.transforms_rmat import LABEL_TRANSFORMS, MOLAR_UNITS, undo_label_transforms

logger = logging.getLogger(__name__)

# Columns of a data set beside `labels`.
BOUNDS_COLUMN = "label_bounds"
WEIGHT_COLUMN = "weight"
COVARIATES_COLUMN = "covariates"
# Its type says which they are; every row has the value 0.
COVARIATE_KINDS_COLUMN = "covariate_kinds"
MOST_CATEGORIES = 100
# Why a row is gone whose labels are part of those of another.
MERGED_INTO = "merged into row"
# How the labels of several rows of a molecule become those of one; "keep": they do not.
REPLICATES = {"keep": None, "mean": np.mean, "median": np.median}
# What errors of a label that is learned as its logarithm are in.
LOG_UNITS = "log units"
# Decades of a label that is better learned as its logarithm.
_MANY_DECADES = 3.0
# Of values in another unit: how many, words of a column that may tell them, decades without any.
_LEAST_ODD = 5
_MOST_WORDS = 10
_GAP = 0.7
# Molecules as alike as analogs, and by how many standard deviations these differ.
_CLIFF_SIMILARITY = 0.85
_CLIFF_DEVIATIONS = 2.0


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How labels are learned, and what of their rows counts.

    Args:
        label_transforms (`Sequence[str]`): One of `LABEL_TRANSFORMS` for each label, or none.
        label_units (`Sequence[str]`): Of the table, one for each label, or none.
        class_columns (`Sequence[str]`): Labels of a regression that are yes or no.
        weight_column (`str`, *optional*): Column of what each row counts in the loss.
        feature_columns (`Sequence[str]`): What is known of a row beside its molecule.
        replicates (`str`): A name in `REPLICATES`: rows of one molecule are one row, with the mean
            or the median of their labels.
    """

    label_transforms: Sequence[str] = ()
    label_units: Sequence[str] = ()
    class_columns: Sequence[str] = ()
    weight_column: str | None = None
    feature_columns: Sequence[str] = ()
    replicates: str = "keep"

    @property
    def columns(self) -> list[str]:
        """Columns of the table that are read beside molecules and labels."""
        return [*filter(None, [self.weight_column]), *self.feature_columns]

    @property
    def of_model(self) -> dict[str, Sequence[str]]:
        """What a model has to know of them."""
        names = ("label_units", "label_transforms", "class_columns")
        return {name: getattr(self, name) for name in names}

    def list_types(self, label_columns: Sequence[str], *, problem_type: str) -> list[str]:
        """Return the problem type of each label."""
        other = "multi_label_classification"
        return [other if it in self.class_columns else problem_type for it in label_columns]

    def name_learned(self, label_columns: Sequence[str]) -> list[str]:
        """Return the labels as they are learned."""
        transforms = self.label_transforms or ["none"] * len(label_columns)
        return [*map(name_learned, label_columns, transforms)]

    def list_error_units(self, num_labels: int) -> list[str]:
        """Return the unit of errors of each label."""
        plain = ["none"] * num_labels, [""] * num_labels
        return list_error_units(self.label_units or plain[1], self.label_transforms or plain[0])

    def build_fields(
        self, dataset: datasets.Dataset, *, label_columns: Sequence[str], problem_type: str
    ) -> dict[str, Any]:
        """Return the fields of [`RMatConfig`] that tell of labels as these rows have them."""
        if problem := find_transform_problem(self):
            raise UserError(problem)
        types = self.list_types(label_columns, problem_type=problem_type)
        is_mixed, beside = len({*types}) > 1, {BOUNDS_COLUMN, WEIGHT_COLUMN}
        is_transformed = bool({*self.label_transforms} - {"none"})
        fields: dict[str, Any] = {"label_units": list(self.label_units) or None}
        fields["label_types"] = types if is_mixed else None
        fields["label_transforms"] = list(self.label_transforms) if is_transformed else None
        if is_mixed or beside & {*dataset.column_names}:
            fields["loss"] = "bounded"
        if COVARIATE_KINDS_COLUMN in dataset.column_names:
            kind: Any = dataset.features[COVARIATE_KINDS_COLUMN]
            fields["covariates"] = json.loads(kind.names[0])
        return fields

    def learn(self, label: Any, *, label_idx: int, row: int, column: str) -> Any:
        """Return a parsed label as it is learned."""
        name = self.label_transforms[label_idx] if self.label_transforms else "none"
        transform = choose(LABEL_TRANSFORMS, name)
        if transform is None or is_missing(label):
            return label
        if label <= 0:
            reason = f"label {column!r} is {label}, of which there is no logarithm"
            raise LabelError(reason, row=row)
        unit = self.label_units[label_idx] if self.label_units else ""
        learned = float(transform.apply(float(label), unit))
        if not isinstance(label, Bound):
            return learned
        swapped = label.relation if transform.power > 0 else {"<": ">", ">": "<"}[label.relation]
        return Bound(learned, relation=swapped)


def name_scale(label: str, transform: str) -> str:
    """Return what the numbers are that a label is learned as: `pKi`, `log10`."""
    found = ASSAY.search(label) if transform == "pIC50" else None
    return f"p{found[0]}" if found else transform


def name_learned(label: str, transform: str) -> str:
    """Return a label as it is learned: `pKi of Ki (nM)`, `log10 of x`, or its own name."""
    return label if transform == "none" else f"{name_scale(label, transform)} of {label}"


def list_error_units(units: Sequence[str], transforms: Sequence[str]) -> list[str]:
    """Return the units in which labels are learned, and errors told."""
    return [
        unit if name == "none" else LOG_UNITS for unit, name in zip(units, transforms, strict=True)
    ]


def find_error_unit(units: Sequence[str], transforms: Sequence[str]) -> str:
    """Return the unit of errors of all labels; empty if they differ or have none."""
    found = {*list_error_units(units, transforms)}
    return found.pop() if len(found) == 1 else ""


def describe_factor(
    error: float | None, *, label_names: Sequence[str], transforms: Sequence[str]
) -> list[str]:
    """Return what an RMSE of logarithms is in the units of the table; nothing of other labels."""
    if error is None or "none" in transforms:
        return []
    factor, what = 10.0**error, "the labels, which are learned as logarithms"
    if len(label_names) == 1:
        what = f"{label_names[0]}, which is learned as {name_scale(label_names[0], transforms[0])}"
    shown = f"{factor:,.{int(factor < 10)}f} times (10^{error:.3f})"
    return [f"An RMSE of {error:.3f} {LOG_UNITS} is an error of {shown} in {what}."]


def learn_values(
    values: np.ndarray, *, transforms: Sequence[str], units: Sequence[str], is_end: bool = False
) -> np.ndarray:
    """Return values `(num_rows, num_labels)` of a table as they are learned, NaN for what cannot.

    The end of an interval that is not positive has an infinite logarithm. The inverse of
    [`undo_label_transforms`].
    """
    learned = values.copy()
    for idx, (name, unit) in enumerate(zip(transforms, units, strict=True)):
        if (transform := LABEL_TRANSFORMS[name]) is not None:
            column = np.maximum(values[:, idx], 0.0) if is_end else values[:, idx]
            is_known = (column > 0) | (is_end & (column == 0))
            with np.errstate(divide="ignore"):
                learned[:, idx] = transform.apply(np.where(is_known, column, np.nan), unit)
    return learned


def learn_ends(
    lower: np.ndarray, upper: np.ndarray, *, transforms: Sequence[str], units: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of intervals in the units of a table as those of what is learned."""
    options: dict[str, Any] = {"transforms": transforms, "units": units, "is_end": True}
    ends = [learn_values(it, **options) for it in (lower, upper)]
    # of a negative logarithm they change places
    return np.minimum(*ends), np.maximum(*ends)


def find_transform_problem(options: LabelOptions) -> str | None:
    """Return what is wrong with the transforms of labels, if anything."""
    transforms = options.label_transforms
    units = options.label_units or [""] * len(transforms)
    for name, unit in zip(transforms, units, strict=False):
        transform = LABEL_TRANSFORMS.get(name)
        if name not in LABEL_TRANSFORMS:
            return f"{name!r} is no label transform. Choose one of {', '.join(LABEL_TRANSFORMS)}."
        if transform is not None and transform.is_molar and unit not in MOLAR_UNITS:
            return (
                f"The label transform {name} needs the unit of each concentration, and one is "
                f"{unit!r}. Pass --label-units with some of {', '.join(MOLAR_UNITS)}."
            )
    return None


def propose_label_transform(values: Iterable[float], unit: str = "") -> str:
    """Return the transform under which a regression of such labels makes sense.

    Args:
        values: As in the table; NaN where missing.
    """
    known = np.array([float(it) for it in values if it == it])
    if not is_wide(known):
        return "none"
    skews = [abs(pd.Series(it).skew()) for it in (known, np.log10(known))]
    if skews[1] >= skews[0]:
        return "none"
    return "pIC50" if unit in MOLAR_UNITS else "log10"


def is_wide(values: Any) -> bool:
    """Tell whether numbers are positive and go over many decades."""
    return len(values) > 2 and values.min() > 0 and np.ptp(np.log10(values)) >= _MANY_DECADES


def find_odd_rows(values: pd.Series, parents: pd.Series) -> tuple[int, ...]:
    """Return the rows whose value is a thousandfold that of another row of the molecule."""
    rows: set[int] = set()
    parents = parents.reindex(values.index)
    is_repeated = parents.duplicated(keep=False) & parents.notna()
    for _, group in values[is_repeated].groupby(parents[is_repeated]):
        ratios = group / group.median()
        factor = group.max() / group.min()
        if 0.8 < abs(np.log10(factor)) / 3 < 1.2:
            odd = ratios[(ratios > 30) | (ratios < 1 / 30)] if len(group) > 2 else group
            rows |= {*odd.index}
    return tuple(sorted(rows))


def find_odd_part(logs: pd.Series, others: pd.DataFrame) -> tuple[str, tuple[int, ...]] | None:
    """Return which rows of a label may be in another unit, as nM among uM, in words and numbers.

    Their logarithms lie three apart from the others', and both are narrow enough to be told apart:
    the rows from one on, those of one word in a column, or those beyond a gap.

    Args:
        logs (`pd.Series`): Logarithms of the label's values.
    """
    values, positions = logs.to_numpy(), np.arange(len(logs))
    if len(values) < 2 * _LEAST_ODD:
        return None
    candidates: dict[str, np.ndarray] = {}
    is_shuffled = 0.1 < np.mean(np.diff(values) > 0) < 0.9
    if is_shuffled:
        sums, counts = np.cumsum(values)[:-1], positions[1:]
        means = sums / counts - (values.sum() - sums) / (len(values) - counts)
        start = int(counts[np.argmax(means**2 * counts * (len(values) - counts))])
        candidates[f"the rows from {logs.index[start]} on"] = positions >= start
    for name, cells in others.items():
        words = cells.unique()
        if 1 < len(words) <= _MOST_WORDS:
            candidates |= {f"rows with {word!r} in {name!r}": cells == word for word in words}
    ordered = np.sort(values)
    gap = int(np.argmax(np.diff(ordered)))
    if ordered[gap + 1] - ordered[gap] > _GAP:
        candidates["a part of the rows"] = values > ordered[gap]
    for where, mask in candidates.items():
        is_odd = np.asarray(mask)
        if _is_thousandfold(values[is_odd], values[~is_odd]):
            is_odd = is_odd if 2 * is_odd.sum() <= len(is_odd) else ~is_odd
            return where, tuple(logs.index[is_odd].tolist())
    return None


def _is_thousandfold(first: np.ndarray, second: np.ndarray) -> bool:
    # one number many times stands for a limit of an assay, not for another unit
    if min(len(np.unique(first)), len(np.unique(second))) < _LEAST_ODD:
        return False
    apart = abs(np.median(first) - np.median(second))
    return bool(abs(apart - 3) < 0.6 and first.std() + second.std() < 2.2)


def find_cliffs(values: pd.Series, fingerprints: Mapping[int, Any]) -> list[tuple[int, int]]:
    """Return the pairs of rows that are close analogs with labels far apart."""
    values = np.log10(values) if is_wide(values) else values
    rows, spread = list(values.index), values.std()
    if not spread or values.nunique() < 3:
        return []
    bits, numbers = [fingerprints[row] for row in rows], values.to_numpy()
    cliffs = []
    for idx, row in enumerate(rows):
        alike = np.array(DataStructs.BulkTanimotoSimilarity(bits[idx], bits[:idx]))
        apart = np.abs(numbers[:idx] - numbers[idx]) > _CLIFF_DEVIATIONS * spread
        is_cliff = apart & (alike >= _CLIFF_SIMILARITY) & (alike < 1.0)
        cliffs += [(row, rows[other]) for other in np.flatnonzero(is_cliff)]
    return cliffs


def find_bounds(labels: Sequence[Sequence[Any]]) -> np.ndarray:
    """Return of each label whether the value is above it, 1, below it, -1, or it, 0, as int8."""
    signs = {">": 1, "<": -1, "": 0}
    found = [[signs[getattr(it, "relation", "")] for it in row] for row in labels]
    return np.array(found, dtype=np.int8, ndmin=2)


def read_exact_labels(dataset: datasets.Dataset) -> np.ndarray:
    """Return labels of molecules or atoms, `(num_rows, num_labels)`, NaN where they are bounds.

    What is scored, drawn and fitted by methods that know no bounds.
    """
    labels = flatten_labels(dataset["labels"][:])
    if BOUNDS_COLUMN in dataset.column_names:
        labels[np.array(dataset[BOUNDS_COLUMN][:]) != 0] = np.nan
    return labels


def count_bounds(dataset: datasets.Dataset) -> list[int]:
    """Return how many of each label are bounds; nothing where no cell is one."""
    if BOUNDS_COLUMN not in dataset.column_names:
        return []
    return [*np.count_nonzero(np.array(dataset[BOUNDS_COLUMN][:]), axis=0).tolist()]


def describe_measured(dataset: datasets.Dataset, config: RMatConfig) -> dict[str, list[Any]]:
    """Return columns of the labels of rows of molecules as the table has them.

    Where some are bounds, `relation_<label>` says `<`, `>` or `=`.
    """
    labels = np.array(dataset["labels"][:], dtype=np.float64).reshape(len(dataset), -1)
    shown = undo_label_transforms(labels, config)
    cells = labels.T.tolist() if config.label_transforms is None else list_columns(shown)
    columns = dict(zip(config.label_columns, cells, strict=True))
    if BOUNDS_COLUMN not in dataset.column_names:
        return columns
    transforms = [LABEL_TRANSFORMS[it] for it in config.label_transforms or ["none"]]
    powers = [1 if it is None else it.power for it in transforms]
    signs = np.array(dataset[BOUNDS_COLUMN][:]) * np.array(powers)
    for name, of_label, known in zip(
        config.label_columns, signs.T, ~np.isnan(labels.T), strict=True
    ):
        words = ["=", ">", "<"]
        pairs = zip(of_label.tolist(), known.tolist(), strict=True)
        columns[f"relation_{name}"] = [words[sign] if it else None for sign, it in pairs]
    return columns


def pack_labels(labels: np.ndarray, *, bounds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return labels `(num_rows, num_labels)` as the loss `"bounded"` takes them, float32.

    Args:
        labels: NaN where missing.
        weights: Of each row, `(num_rows,)`.
    """
    low = np.where(bounds < 0, -np.inf, labels)
    high = np.where(bounds > 0, np.inf, labels)
    low[np.isnan(labels)] = np.nan
    high[np.isnan(labels)] = np.nan
    repeated = np.broadcast_to(weights[:, None], labels.shape)
    return np.concatenate([low, high, repeated], axis=1).astype(np.float32)


def unpack_exact_labels(labels: np.ndarray, *, num_labels: int) -> np.ndarray:
    """Return labels as a Trainer has them, NaN where they are bounds."""
    if labels.ndim < 2 or labels.shape[1] != 3 * num_labels:
        return labels
    low, high = labels[:, :num_labels], labels[:, num_labels : 2 * num_labels]
    return np.where(low == high, low, np.nan)


def find_covariates(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return what the covariates in columns are: numbers, or else categories, which are listed."""
    kinds: list[dict[str, Any]] = []
    for name, cells in columns.items():
        texts = {str(it).strip() for it in cells if it is not None and it == it} - {""}
        numbers = [parse_number(it) for it in texts]
        if texts and all(it is not None for it in numbers):
            kinds.append({"name": name})
        elif 0 < len(texts) <= MOST_CATEGORIES:
            kinds.append({"name": name, "categories": sorted(texts)})
        else:
            raise UserError(
                f"Column {name!r} has {len(texts)} different words, and a feature column is one of "
                f"numbers, or of at most {MOST_CATEGORIES} categories. Leave it out."
            )
    return kinds


def find_unread_covariates(
    kinds: Sequence[Mapping[str, Any]], columns: Mapping[str, Sequence[Any]], *, num_rows: int
) -> dict[int, str]:
    """Return by row which cells are no number, or no category that a model has learned.

    The mean of training stands for them, as for an empty cell, of which nothing is said.
    """
    found: dict[int, list[str]] = {}
    for kind in kinds:
        name, what = kind["name"], "a category of training" if "categories" in kind else "a number"
        values = encode_covariates([kind], columns, num_rows=num_rows)
        for row in np.flatnonzero(np.isnan(values).any(axis=1)).tolist():
            text = str(columns[name][row]).strip() if name in columns else ""
            if text.lower() not in MISSING_NUMBERS:
                problem = f"is not {what}"
                if "categories" not in kind and may_be_either(text):
                    problem = f"may be {text.replace(',', '.')} or {text.replace(',', '')}"
                reason = f"{name} {text!r} {problem}: the mean of training stands for it"
                found.setdefault(row, []).append(reason)
    return {row: "; ".join(reasons) for row, reasons in found.items()}


def add_covariates(
    dataset: datasets.Dataset, columns: Mapping[str, Sequence[Any]], *, commas: Mapping[str, str]
) -> datasets.Dataset:
    """Return rows with the covariates in columns of their table, whose commas were so read."""
    kinds = find_covariates(columns)
    for kind in [it for it in kinds if it["name"] in commas]:
        kind["commas"] = commas[kind["name"]]
    values = encode_covariates(kinds, columns, num_rows=len(dataset)).astype(np.float64)
    kind = datasets.List(datasets.Value("float64"))
    dataset = dataset.add_column(COVARIATES_COLUMN, values.tolist(), feature=kind)
    names = datasets.ClassLabel(names=[json.dumps(kinds)])
    return dataset.add_column(COVARIATE_KINDS_COLUMN, [0] * len(dataset), feature=names)


def read_covariates(rows: Any) -> np.ndarray | None:
    """Return the covariates of rows, `(num_rows, num_covariates)`, float32, if they have some."""
    if COVARIATES_COLUMN not in getattr(rows, "column_names", {}):
        return None
    return np.array(rows[COVARIATES_COLUMN][:], dtype=np.float32)


def append_covariates(inputs: dict[str, np.ndarray], covariates: np.ndarray | None) -> None:
    """Put the covariates of rows, if they have some, behind their molecule descriptors."""
    if covariates is not None:
        before = inputs.get(DESCRIPTOR_INPUT, covariates[:, :0])
        inputs[DESCRIPTOR_INPUT] = np.concatenate([before, covariates], axis=1)


def parse_weights(cells: Iterable[object], *, column: str, rows: Iterable[int]) -> list[float]:
    """Return the weights in a column; an empty cell is 1."""
    weights = []
    for cell, row in zip(cells, rows, strict=True):
        number = parse_number(cell)
        if number is None or number <= 0:
            raise UserError(
                f"Row {row} (counted from 0): the weight in {column!r} is {cell!r}. Give a number "
                "above 0, or leave the cell empty, which is 1."
            )
        weights.append(1.0 if math.isnan(number) else number)
    return weights


def merge_replicates(
    rows: pd.DataFrame,
    *,
    groups: Sequence[Any],
    rule: str,
    types: Mapping[str, str],
    units: Sequence[str],
) -> tuple[pd.DataFrame, dict[int, str], list[str]]:
    """Merge the rows of each group into its first; return the rows left, and what was done.

    Measured numbers take the mean or the median; where there are bounds alone, the tightest of one
    kind. Classes agree already.
    """
    average: Any = REPLICATES[rule]
    merged = rows.copy()
    reasons: dict[int, str] = {}
    squares, degrees = np.zeros(len(types)), np.zeros(len(types))
    numbers = pd.Series(range(len(rows)), index=rows.index)
    for _, members in numbers.groupby(pd.Series(list(groups), index=rows.index), sort=False):
        if len(members) == 1:
            continue
        first, labels = members.index[0], rows["labels"].loc[members.index].to_list()
        merged.at[first, "labels"] = [_merge(list(it), average) for it in zip(*labels, strict=True)]
        for idx, (kind, *column) in enumerate(zip(types.values(), *labels, strict=True)):
            exact = [it for it in column if not is_missing(it) and not isinstance(it, Bound)]
            if kind == "regression" and len(exact) > 1:
                squares[idx] += np.var(exact) * len(exact)
                degrees[idx] += len(exact) - 1
        reasons |= dict.fromkeys(members.index[1:], f"{MERGED_INTO} {first}, the {rule}")
    notes = [f"{len(reasons)} rows merged into others of their molecule by the {rule}"]
    for name, unit, square, degree in zip(types, units, squares, degrees, strict=True):
        if degree:
            spread = math.sqrt(square / degree)
            text = f"replicates of {name} have a standard deviation of {spread:.3g} {unit}"
            notes.append(text.rstrip())
    return merged.drop(index=list(reasons)), reasons, notes if reasons else []


def _merge(labels: list[Any], average: Any) -> Any:
    known = [it for it in labels if not is_missing(it)]
    exact = [it for it in known if not isinstance(it, Bound)]
    if exact:
        return exact[0] if isinstance(exact[0], str) else float(average(exact))
    relations = {it.relation for it in known}
    if len(relations) != 1:
        return math.nan
    return max(known) if relations == {">"} else min(known)
