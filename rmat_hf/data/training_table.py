"""Load labeled molecules for training: from a file, the package or the Hub, checked row by row."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
import numpy as np
from rdkit import Chem

from rmat_hf.data.featurization import LENGTH_COLUMN, FeaturizedMolecule, featurize_molecules
from rmat_hf.data.labels import find_label_conflicts, is_missing, list_class_names, parse_label
from rmat_hf.data.sources import open_table
from rmat_hf.data.splits.column_splits import parse_split_cells
from rmat_hf.data.stored_features import count_nodes
from rmat_hf.data.tables import validate_smiles_column
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import Molecule, MoleculeError, parse_molecule
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

CHUNK_SIZE = 1000
SPLIT_DTYPES = {"split": "string", "time": "float64"}


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
    molecule: Molecule
    labels: list[float | str]
    split: object
    outcome: FeaturizedMolecule = FeaturizedMolecule(b"", "", "", "")

    def drop(self, reason: str) -> DroppedRow:
        return DroppedRow(self.row, self.smiles, reason)


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
    rows: list[_Row] = []
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        molecules = chunk.molecules(smiles_column)
        for cells, molecule in zip(chunk.table.to_pylist(), molecules, strict=True):
            row = len(rows)
            labels = [
                parse_label(cells[name], problem_type=problem_type, row=row, column=name)
                for name in label_columns
            ]
            split_cell = cells[split_column] if split_column else None
            rows.append(_Row(row, cells[smiles_column] or "", molecule, labels, split_cell))
    rows = _featurize(rows, processor, **options)
    kept = [row for row in rows if row.outcome.canonical_smiles]
    tolerance = conflict_tolerance if problem_type == "regression" else 0.0
    reasons = {row.row: row.outcome.failure for row in rows if row.outcome.failure}
    reasons |= _find_conflicts(kept, label_columns=label_columns, tolerance=tolerance)
    kept = [row for row in kept if row.row not in reasons]
    dropped = [row.drop(reasons[row.row]) for row in rows if row.row in reasons]
    if dropped:
        logger.warning(
            "Dropped %d of %d rows of %s: see dropped_rows.csv.",
            len(dropped),
            len(rows),
            table.source,
        )
    _validate_labels(kept, dropped, label_columns=label_columns, source=table.source)
    class_names = list_class_names([label for row in kept for label in row.labels])
    split = parse_split_cells(
        split_column,
        [row.split for row in kept],
        rows=[row.row for row in kept],
        groups=[row.outcome.canonical_smiles for row in kept],
    )
    matrix = _build_label_matrix(kept, class_names=class_names)
    built = _build_dataset(kept, labels=matrix, split=split)
    return LoadedData(built, dropped, class_names if is_single else None)


def _featurize(rows: list[_Row], processor: RMatProcessor, **options: Any) -> list[_Row]:
    """Return the rows with their outcomes; one without any label fails, and is parsed only."""
    is_labeled = [not all(map(is_missing, row.labels)) for row in rows]
    molecules = [row.molecule for row, labeled in zip(rows, is_labeled, strict=True) if labeled]
    outcomes = iter(featurize_molecules(molecules, processor, **options))
    featurized = []
    for row, labeled in zip(rows, is_labeled, strict=True):
        if labeled:
            featurized.append(row._replace(outcome=next(outcomes)))
            continue
        reason = "no label"
        try:
            parse_molecule(row.molecule, max_atoms=processor.max_atoms)
        except MoleculeError as error:
            reason = error.reason
        featurized.append(row._replace(outcome=FeaturizedMolecule(b"", "", reason, "")))
    return featurized


def _find_conflicts(
    rows: list[_Row], *, label_columns: list[str], tolerance: float
) -> dict[int, str]:
    """Return why rows of one molecule contradict each other, by row."""
    class_names = list_class_names([label for row in rows for label in row.labels])
    labels = _build_label_matrix(rows, class_names=class_names)
    groups = [row.outcome.canonical_smiles for row in rows]
    reasons: dict[int, str] = {}
    for conflict in find_label_conflicts(groups, labels, tolerance=tolerance):
        low, high = rows[conflict.low_row], rows[conflict.high_row]
        reason = (
            f"rows {low.row} and {high.row} hold the same molecule with contradictory labels: "
            f"{label_columns[conflict.label_idx]} is {low.labels[conflict.label_idx]} and "
            f"{high.labels[conflict.label_idx]}"
        )
        reasons |= {rows[i].row: reason for i in conflict.rows}
    return reasons


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
    for label_idx, column in enumerate(label_columns):
        values = {row.labels[label_idx] for row in rows if not is_missing(row.labels[label_idx])}
        if len(values) < 2:
            found = f"is {values.pop()} in every usable row" if values else "has no usable value"
            first = f" Row {dropped[0].row}: {dropped[0].reason}." if dropped else ""
            raise UserError(
                f"{source}: label {column!r} {found}: nothing to learn.{first} Add labeled "
                "molecules, or drop that label."
            )


def _build_dataset(
    rows: list[_Row], *, labels: np.ndarray, split: dict[str, list[object]]
) -> datasets.Dataset:
    outcomes = [row.outcome for row in rows]
    sources = [outcome.geometry_source for outcome in outcomes]
    num_step_downs = sum("step down" in source for source in sources)
    if num_step_downs:
        logger.warning("%d molecules stepped down to another geometry.", num_step_downs)
    features = [outcome.features for outcome in outcomes]
    columns: dict[str, tuple[Sequence[Any], str]] = {
        "row": ([row.row for row in rows], "int64"),
        "smiles": ([row.smiles for row in rows], "string"),
        "canonical_smiles": ([outcome.canonical_smiles for outcome in outcomes], "string"),
        "features": (features, "large_binary"),
        LENGTH_COLUMN: (count_nodes(features), "int64"),
        "geometry_source": (sources, "string"),
        **{name: (cells, SPLIT_DTYPES[name]) for name, cells in split.items()},
    }
    mols = [row.molecule if isinstance(row.molecule, Chem.Mol) else None for row in rows]
    if any(mols):
        columns["mol"] = ([mol and mol.ToBinary() for mol in mols], "binary")
    kinds: dict[str, Any] = {name: datasets.Value(kind) for name, (_, kind) in columns.items()}
    values = {name: values for name, (values, _) in columns.items()}
    return datasets.Dataset.from_dict(
        {**values, "labels": labels.tolist()},
        features=datasets.Features(kinds | {"labels": datasets.List(datasets.Value("float64"))}),
    )
