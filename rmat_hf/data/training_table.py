"""Load labeled molecules for training: from a file, the package or the Hub, checked row by row."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
from rdkit import Chem

from rmat_hf.data.featurization import LENGTH_COLUMN, FeaturizedMolecule, featurize_molecules
from rmat_hf.data.labels import find_label_conflicts, is_missing, list_class_names, parse_label
from rmat_hf.data.sources import open_table
from rmat_hf.data.splits.column_splits import parse_split_cells
from rmat_hf.data.stored_features import count_nodes
from rmat_hf.data.tables import Table, validate_smiles_column
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import Molecule, MoleculeError
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

CHUNK_SIZE = 1000


class DroppedRow(NamedTuple):
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
            classification), `split` or `time` (when such a column is given), `mol` (SDF
            structures only: the binary molecule with its coordinates), `features`, packed,
            `num_nodes` and `geometry_source`.
        dropped (`list[DroppedRow]`): All rows of the source that are not in `dataset`, in order.
        class_names (`list[str]`, *optional*): Classes of a single-label classification, by index.
    """

    dataset: datasets.Dataset
    dropped: list[DroppedRow]
    class_names: list[str] | None


def load_training_table(
    dataset: str | os.PathLike[str],
    processor: RMatProcessor,
    *,
    smiles_column: str,
    label_columns: Sequence[str],
    problem_type: str,
    split_column: str | None = None,
    revision: str | None = None,
    conflict_tolerance: float = 0.1,
    **options: Any,
) -> LoadedData:
    """Load a table of labeled molecules with their features; rows that cannot be used are listed.

    Molecules are compared by the canonical SMILES of their heavy atoms, labels of one molecule must
    not contradict each other.

    Args:
        dataset (`str` or `os.PathLike`): As in [`open_table`].
        processor (`RMatProcessor`): Decides the geometry and the largest molecule.
        smiles_column (`str`): Column of SMILES; in an SDF file `"smiles"` are its structures.
        label_columns (`Sequence[str]`): Label columns, in the order of the model's outputs.
        problem_type (`str`):
            `"regression"`, `"multi_label_classification"` (0 or 1) or
            `"single_label_classification"` (integers or words in one column).
        split_column (`str`, *optional*):
            Column of the words train, valid and test, or a `TimeColumn`. By default the own splits
            of a Hub data set, when it has train and test.
        revision (`str`, *optional*): Branch, tag or commit of a Hub data set.
        conflict_tolerance (`float`, *optional*, defaults to 0.1):
            Largest difference between regression labels of one molecule, in standard deviations of
            the label column. Class labels must agree.
        **options: `num_workers` and the like, as in [`featurize_molecules`].

    Raises:
        UserError: A column is missing, a label or a cell of the split cannot be read, or there is
            nothing to learn.
    """
    label_columns, is_single = list(label_columns), problem_type == "single_label_classification"
    num_different = len({smiles_column, *label_columns}) - 1
    if not 0 < num_different == len(label_columns) <= (1 if is_single else num_different):
        raise UserError(
            f"The label columns are {label_columns}, that of SMILES is {smiles_column!r}: name at "
            "least one label, and no column twice. single_label_classification takes one label "
            "column; for several yes/no labels use multi_label_classification."
        )
    table = open_table(dataset, revision=revision, joins_splits=True)
    split_column = split_column or table.split_column
    table = table.select([smiles_column, *label_columns, *filter(None, [split_column])])
    validate_smiles_column(table.schema, smiles_column, source=table.source)
    names: dict[str, Any] = {"smiles_column": smiles_column, "label_columns": label_columns}
    given = _iterate_rows(table, problem_type=problem_type, **names)
    columns = ["smiles", "molecule", "labels", "cells"]
    rows = pd.DataFrame(given, columns=columns, dtype=object)
    outcomes = featurize_molecules(rows["molecule"].to_list(), processor, **options)
    rows = rows.join(pd.DataFrame(outcomes, columns=FeaturizedMolecule._fields, dtype=object))
    tolerance = conflict_tolerance if problem_type == "regression" else 0.0
    reasons = {row: reason for row, reason in rows["failure"].items() if reason}
    known = rows[rows["canonical_smiles"] != ""]
    reasons |= _find_conflicts(known, label_columns=label_columns, tolerance=tolerance)
    dropped = [DroppedRow(row, rows["smiles"][row], reasons[row]) for row in sorted(reasons)]
    if dropped:
        counts = f"{len(dropped)} of {len(rows)}"
        logger.warning("Dropped %s rows of %s: see dropped_rows.csv.", counts, table.source)
    kept = rows.drop(index=list(reasons))
    _validate_labels(kept, dropped, label_columns=label_columns, source=table.source)
    split = parse_split_cells(
        split_column,
        [cells[split_column] for cells in kept["cells"]] if split_column else [],
        rows=kept.index,
        groups=kept["canonical_smiles"],
    )
    labels, class_names = _encode_labels(kept["labels"])
    built = _build_dataset(kept, labels=labels, split=split)
    return LoadedData(built, dropped, class_names if is_single else None)


def _iterate_rows(
    table: Table, *, smiles_column: str, label_columns: list[str], problem_type: str
) -> Iterator[tuple[str, Molecule, list[float | str], dict[str, Any]]]:
    """Yield SMILES, molecule, labels and all cells of every row; none without a label is built."""
    row = 0
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        molecules = chunk.molecules(smiles_column)
        for cells, molecule in zip(chunk.table.to_pylist(), molecules, strict=True):
            labels = [
                parse_label(cells[name], problem_type=problem_type, row=row, column=name)
                for name in label_columns
            ]
            is_labeled = not all(map(is_missing, labels))
            given = molecule if is_labeled else MoleculeError("no label")
            yield cells[smiles_column] or "", given, labels, cells
            row += 1


def _find_conflicts(
    rows: pd.DataFrame, *, label_columns: list[str], tolerance: float
) -> dict[int, str]:
    """Return why rows of one molecule contradict each other, by row."""
    if rows.empty:
        return {}
    labels, _ = _encode_labels(rows["labels"])
    conflicts = find_label_conflicts(rows["canonical_smiles"], labels, tolerance=tolerance)
    reasons = {}
    for position, (label_idx, *extremes) in conflicts.items():
        low, high = (rows["labels"].iloc[idx][label_idx] for idx in extremes)
        first, second = rows.index[extremes]
        reasons[int(rows.index[position])] = (
            f"rows {first} and {second} hold the same molecule with contradictory labels: "
            f"{label_columns[label_idx]} is {low} and {high}"
        )
    return reasons


def _encode_labels(rows: Iterable[list[float | str]]) -> tuple[np.ndarray, list[str]]:
    """Return labels, `(num_rows, num_labels)`, a class as its index, and the classes there are."""
    labels = [list(row) for row in rows]
    class_names = list_class_names([label for row in labels for label in row])
    idx_of_class: dict[Any, Any] = {name: float(idx) for idx, name in enumerate(class_names)}
    encoded = [[idx_of_class.get(label, label) for label in row] for row in labels]
    return np.array(encoded, dtype=np.float64, ndmin=2), class_names


def _validate_labels(
    rows: pd.DataFrame, dropped: list[DroppedRow], *, label_columns: list[str], source: str
) -> None:
    for label_idx, column in enumerate(label_columns):
        values = {labels[label_idx] for labels in rows["labels"]}
        values = {label for label in values if not is_missing(label)}
        if len(values) < 2:
            found = f"is {values.pop()} in every usable row" if values else "has no usable value"
            first = f" Row {dropped[0].row}: {dropped[0].reason}." if dropped else ""
            raise UserError(
                f"{source}: label {column!r} {found}: nothing to learn.{first} Add labeled "
                "molecules, or drop that label."
            )


def _build_dataset(
    rows: pd.DataFrame, *, labels: np.ndarray, split: dict[str, list[Any]]
) -> datasets.Dataset:
    num_step_downs = rows["geometry_source"].str.contains("step down").sum()
    if num_step_downs:
        logger.warning("%d molecules stepped down to another geometry.", num_step_downs)
    columns: dict[str, tuple[Sequence[Any], str]] = {
        "row": (rows.index, "int64"),
        "smiles": (rows["smiles"], "string"),
        "canonical_smiles": (rows["canonical_smiles"], "string"),
        "features": (rows["features"], "large_binary"),
        LENGTH_COLUMN: (count_nodes(rows["features"]), "int64"),
        "geometry_source": (rows["geometry_source"], "string"),
        **{
            name: (cells, "string" if name == "split" else "float64")
            for name, cells in split.items()
        },
    }
    mols = [mol.ToBinary() if isinstance(mol, Chem.Mol) else None for mol in rows["molecule"]]
    if any(mols):
        columns["mol"] = (mols, "binary")
    kinds: dict[str, Any] = {name: datasets.Value(kind) for name, (_, kind) in columns.items()}
    values = {name: list(values) for name, (values, _) in columns.items()}
    return datasets.Dataset.from_dict(
        {**values, "labels": labels.tolist()},
        features=datasets.Features(kinds | {"labels": datasets.List(datasets.Value("float64"))}),
    )
