"""Load labeled molecules for training: from a file, the package or the Hub, checked row by row."""

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
from rdkit import Chem

from rmat_hf.data.labels import (
    find_label_conflicts,
    is_missing,
    list_class_names,
    parse_label,
)
from rmat_hf.data.sources import open_table
from rmat_hf.data.splits.column_splits import parse_split_cells
from rmat_hf.data.tables import Table, validate_smiles_column
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import MoleculeError, parse_molecule

logger = logging.getLogger(__name__)

CHUNK_SIZE = 1000
SPLIT_DTYPES = {"split": "string", "time": "float64"}


@dataclass(frozen=True)
class DroppedRow:
    """A row that cannot be used: its position in the source (from 0), its SMILES and the reason."""

    row: int
    smiles: str
    reason: str


@dataclass(frozen=True)
class LoadedData:
    """Labeled molecules ready for a split.

    Args:
        dataset (`datasets.Dataset`):
            Columns `row` (position in the source, from 0), `smiles`, `canonical_smiles`, `labels`
            (float64 per label column, NaN where missing; the class index for a single-label
            classification), `split` or `time` (when such a column is given) and `mol` (SDF
            structures only: the binary molecule with its coordinates).
        dropped (`list[DroppedRow]`):
            All rows of the source that are not in `dataset`, in order.
        class_names (`list[str]`, *optional*):
            Names of the classes of a single-label classification, by index.
    """

    dataset: datasets.Dataset
    dropped: list[DroppedRow]
    class_names: list[str] | None


class _Row(NamedTuple):
    row: int
    smiles: str
    canonical_smiles: str
    labels: list[float | str]
    split: object
    mol: bytes | None


def load_training_table(
    dataset: str | os.PathLike[str],
    *,
    smiles_column: str,
    label_columns: Sequence[str],
    problem_type: str,
    split_column: str | None = None,
    revision: str | None = None,
    max_atoms: int = 256,
    conflict_tolerance: float = 0.1,
) -> LoadedData:
    """Load labeled molecules and check every row.

    Dropped and listed: molecules that cannot be featurized, rows without any label, and all rows of
    a molecule (equal canonical SMILES) whose labels contradict each other. Equal duplicates stay.
    A label, split or time cell of the wrong kind is an error.

    Args:
        dataset (`str` or `os.PathLike`): As in [`open_table`].
        smiles_column (`str`): Column of SMILES; `"smiles"` are the structures of an SDF file.
        label_columns (`Sequence[str]`): Columns of labels. An empty cell is a missing label.
        problem_type (`str`):
            `"regression"`, `"multi_label_classification"` (0 or 1) or
            `"single_label_classification"` (integers or words in one column).
        split_column (`str`, *optional*):
            Column of the words train, valid and test, or a `TimeColumn`. By default the own splits
            of a Hub data set, when it has train and test.
        revision (`str`, *optional*): Branch, tag or commit of a Hub data set.
        max_atoms (`int`, *optional*, defaults to 256): Most heavy atoms of a molecule.
        conflict_tolerance (`float`, *optional*, defaults to 0.1):
            Largest difference between regression labels of one molecule, in standard deviations of
            the label column. Class labels must agree.

    Returns:
        `LoadedData`.
    """
    label_columns = list(label_columns)
    _validate_label_columns(label_columns, problem_type=problem_type, smiles_column=smiles_column)
    table = open_table(dataset, revision=revision, joins_splits=True)
    split_column = split_column or table.split_column
    table = table.select([smiles_column, *label_columns, *filter(None, [split_column])])
    validate_smiles_column(table.schema, smiles_column, source=table.source)
    rows = list(
        _iterate_rows(
            table,
            smiles_column=smiles_column,
            label_columns=label_columns,
            split_column=split_column,
            problem_type=problem_type,
            max_atoms=max_atoms,
        )
    )
    kept = [row for row in rows if isinstance(row, _Row)]
    names = list_class_names([label for row in kept for label in row.labels])
    conflicting = _list_conflicting_rows(
        kept,
        label_columns=label_columns,
        class_names=names,
        tolerance=conflict_tolerance if problem_type == "regression" else 0.0,
    )
    kept = [row for row in kept if row.row not in conflicting]
    dropped = [row for row in rows if isinstance(row, DroppedRow)]
    dropped = sorted([*dropped, *conflicting.values()], key=lambda dropped_row: dropped_row.row)
    if dropped:
        logger.warning("Dropped %d of %d rows of %s.", len(dropped), table.num_rows, table.source)
    _validate_labels(kept, dropped, label_columns=label_columns, source=table.source)
    split = parse_split_cells(
        split_column,
        [row.split for row in kept],
        rows=[row.row for row in kept],
        groups=[row.canonical_smiles for row in kept],
    )
    class_names = None
    if problem_type == "single_label_classification":
        class_names = list_class_names([row.labels[0] for row in kept])
    labels = _build_label_matrix(kept, class_names=class_names or [])
    return LoadedData(_build_dataset(kept, labels=labels, split=split), dropped, class_names)


def _validate_label_columns(
    label_columns: list[str], *, problem_type: str, smiles_column: str
) -> None:
    if not label_columns or len({smiles_column, *label_columns}) <= len(label_columns):
        raise UserError(
            f"The label columns are {label_columns}, that of SMILES is {smiles_column!r}: name at "
            "least one label, and no column twice."
        )
    if problem_type == "single_label_classification" and len(label_columns) > 1:
        raise UserError(
            f"single_label_classification takes one label column, not {', '.join(label_columns)}. "
            "For several yes/no labels use multi_label_classification."
        )


def _iterate_rows(
    table: Table,
    *,
    smiles_column: str,
    label_columns: list[str],
    split_column: str | None,
    problem_type: str,
    max_atoms: int,
) -> Iterator[_Row | DroppedRow]:
    position = itertools.count()
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        molecules = chunk.molecules(smiles_column)
        for row, cells, molecule in zip(position, chunk.table.to_pylist(), molecules, strict=False):
            smiles = cells[smiles_column] or ""
            labels = [
                parse_label(cells[name], problem_type=problem_type, row=row, column=name)
                for name in label_columns
            ]
            try:
                mol = parse_molecule(molecule, max_atoms=max_atoms)
            except MoleculeError as error:
                yield DroppedRow(row, smiles, error.reason)
                continue
            if all(is_missing(label) for label in labels):
                yield DroppedRow(row, smiles, "no label")
                continue
            split = cells[split_column] if split_column else None
            binary = molecule.ToBinary() if isinstance(molecule, Chem.Mol) else None
            yield _Row(row, smiles, Chem.MolToSmiles(mol), labels, split, binary)


def _list_conflicting_rows(
    rows: list[_Row], *, label_columns: list[str], class_names: list[str], tolerance: float
) -> dict[int, DroppedRow]:
    groups = [row.canonical_smiles for row in rows]
    labels = _build_label_matrix(rows, class_names=class_names)
    conflicting: dict[int, DroppedRow] = {}
    for conflict in find_label_conflicts(groups, labels, tolerance=tolerance):
        low, high = rows[conflict.low_row], rows[conflict.high_row]
        reason = (
            f"rows {low.row} and {high.row} hold the same molecule with contradictory labels: "
            f"{label_columns[conflict.label_idx]} is {low.labels[conflict.label_idx]} and "
            f"{high.labels[conflict.label_idx]}"
        )
        for i in conflict.rows:
            conflicting[rows[i].row] = DroppedRow(rows[i].row, rows[i].smiles, reason)
    return conflicting


def _build_label_matrix(rows: list[_Row], *, class_names: list[str]) -> np.ndarray:
    """Return labels of shape `(num_rows, num_labels)`: a class is its index, NaN is missing."""
    idx_of_class = {name: float(idx) for idx, name in enumerate(class_names)}
    labels = [
        [idx_of_class[label] if isinstance(label, str) else label for label in row.labels]
        for row in rows
    ]
    return np.array(labels, dtype=np.float64, ndmin=2)


def _validate_labels(
    rows: list[_Row], dropped: list[DroppedRow], *, label_columns: list[str], source: str
) -> None:
    if not rows:
        first = f" Row {dropped[0].row}: {dropped[0].reason}." if dropped else ""
        raise UserError(f"{source} has no usable row.{first} Add labeled molecules.")
    for label_idx, column in enumerate(label_columns):
        values = {row.labels[label_idx] for row in rows if not is_missing(row.labels[label_idx])}
        if len(values) < 2:
            found = f"is {values.pop()} in every usable row" if values else "has no usable value"
            raise UserError(f"{source}: label {column!r} {found}: nothing to learn. Drop it.")


def _build_dataset(
    rows: list[_Row], *, labels: np.ndarray, split: dict[str, list[object]]
) -> datasets.Dataset:
    columns: dict[str, tuple[list[Any], Any]] = {
        "row": ([row.row for row in rows], datasets.Value("int64")),
        "smiles": ([row.smiles for row in rows], datasets.Value("string")),
        "canonical_smiles": ([row.canonical_smiles for row in rows], datasets.Value("string")),
        "labels": (labels.tolist(), datasets.List(datasets.Value("float64"))),
    }
    for name, cells in split.items():
        columns[name] = (cells, datasets.Value(SPLIT_DTYPES[name]))
    if rows[0].mol is not None:
        columns["mol"] = ([row.mol for row in rows], datasets.Value("binary"))
    return datasets.Dataset.from_dict(
        {name: values for name, (values, _) in columns.items()},
        features=datasets.Features({name: kind for name, (_, kind) in columns.items()}),
    )
