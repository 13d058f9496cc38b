"""Load labeled molecules for training: from a file, the package or the Hub, checked row by row."""

import logging
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from rdkit import Chem

from rmat_hf.data.columns import find_smiles_column, with_plain_numbers
from rmat_hf.data.featurization import (
    FEATURE_FIELDS,
    LENGTH_COLUMN,
    PROCESSOR_COLUMN,
    FeaturizedMolecule,
    describe_processor_column,
    featurize_molecules,
    validate_processor,
)
from rmat_hf.data.frames import open_rows
from rmat_hf.data.labels import (
    CONFLICT_WAY_OUT,
    LISTS,
    Bound,
    LabelError,
    arrange_atom_labels,
    describe_recoding,
    describe_words,
    find_label_conflicts,
    is_missing,
    list_class_names,
    name_several_findings,
    parse_atom_labels,
    parse_label,
    parse_number,
    parse_word,
)
from rmat_hf.data.measurements import (
    BOUNDS_COLUMN,
    MERGED_INTO,
    WEIGHT_COLUMN,
    LabelOptions,
    add_covariates,
    find_bounds,
    merge_replicates,
    parse_weights,
)
from rmat_hf.data.splits.column_splits import (
    TimeColumn,
    build_time_parser,
    find_unread_cells,
    parse_split_cells,
    validate_split_cells,
)
from rmat_hf.data.splits.molecule_splits import name_by_parent
from rmat_hf.data.splits.registry import GROUP_COLUMN
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    build_features_column,
    count_nodes,
    find_fault,
    has_features,
    pack_features,
    read_column,
)
from rmat_hf.data.table_files import read_header
from rmat_hf.data.table_writer import group_cells, name_kind
from rmat_hf.data.tables import (
    SMILES_COLUMN,
    Table,
    build_table,
    validate_columns,
    validate_smiles_column,
)
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.model.features_rmat import Molecule, MoleculeError
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

CHUNK_SIZE = 1000
# Of dropped rows, that the screen names.
_NUM_REASONS = 5
_NUM_NAMED_LABELS = 8
_YES_OR_NO = "multi_label_classification"
Rows: TypeAlias = datasets.Dataset | datasets.IterableDataset
# Of rows that are featurized already.
_FEATURIZED = ("canonical_smiles", FEATURES_COLUMN, "geometry_source")


class DroppedRow(NamedTuple):
    """A row that cannot be used: its position in the source (from 0), its SMILES and the reason."""

    row: int
    smiles: str
    reason: str

    @property
    def is_merged(self) -> bool:
        """Whether the labels of the row are part of those of another."""
        return self.reason.startswith(MERGED_INTO)


@dataclass(frozen=True)
class LoadedData:
    """Labeled molecules ready for a split.

    Args:
        dataset (`datasets.Dataset`):
            Columns `row` (position in the source, from 0), `smiles`, `canonical_smiles`, `labels`
            (float64 per label column, NaN where missing; the class index for a single-label
            classification; of atoms one such list for each), `split`, `time` or `group` (when such
            a column is given), `mol` (SDF structures only: the binary molecule with its
            coordinates), `label_bounds` (where cells are bounds: 1 if the value is above the label,
            -1 if below, int8 per label), `weight` (when there is such a column), and the columns
            of features, see stored_features.py.
        dropped (`list[DroppedRow]`): All rows of the source that are not in `dataset`, in order.
        class_names (`list[str]`, *optional*): Classes of a single-label classification, by index.
        notes (`list[str]`): What was done with labels, for people.
    """

    dataset: datasets.Dataset
    dropped: list[DroppedRow]
    class_names: list[str] | None
    notes: list[str] = field(default_factory=list)


def load_training_table(
    dataset: str | os.PathLike[str] | Rows,
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

    Features that the table has, from [`featurize_dataset`], are used. Molecules are compared by the
    canonical SMILES of their heavy atoms, labels of one molecule must not contradict each other.

    Args:
        problem_type (`str`):
            `"regression"`, `"multi_label_classification"` (0 or 1) or
            `"single_label_classification"` (integers or words in one column).
        split_column (`str`, *optional*):
            Column of the words train, valid and test, or a `TimeColumn`. By default the own splits
            of a Hub data set, when it has train and test.
        conflict_tolerance (`float`, *optional*, defaults to 0.1):
            Largest difference between regression labels of one molecule, in standard deviations of
            the label column. Class labels must agree.
        **options: `num_workers` and the like, as in [`featurize_molecules`]; `level="atom"`, where
            a cell has the labels of all heavy atoms, as [`parse_atom_labels`] reads them;
            `group_column`, of what rows of one part have in common; `label_options`, as transforms
            and weights, a [`LabelOptions`].
    """
    label_columns = list(label_columns)
    # without a label to learn, the column of SMILES is no other than that of labels
    _validate_names(smiles_column, label_columns or [smiles_column], problem_type=problem_type)
    if isinstance(dataset, Rows):
        table, kinds = open_rows(dataset), [dataset.features]
    else:
        table = open_rows(dataset, revision=revision)
        kinds = [datasets.Features.from_arrow_schema(it) for it in _read_schemas(table)]
    split_column = split_column or table.split_column
    smiles_column = find_smiles_column(table, smiles_column)
    columns = [smiles_column, *label_columns, *filter(None, [split_column])]
    beside = options.get("label_options", LabelOptions()).columns
    beside += filter(None, [options.get("group_column")])
    columns += [name for name in dict.fromkeys(beside) if name not in columns]
    featurized = None
    if has_features(table.schema):
        featurized = table.select(_FEATURIZED)
        for kind in kinds:
            validate_processor(kind, processor, source=table.source)
    numbers = [name for name in columns if name not in (smiles_column, split_column)]
    return _build_training_data(
        with_plain_numbers(table.select(columns), numbers),
        processor,
        smiles_column=smiles_column,
        label_columns=label_columns,
        problem_type=problem_type,
        split_column=split_column,
        conflict_tolerance=conflict_tolerance,
        featurized=featurized,
        **options,
    )


def _read_schemas(table: Table) -> list[pa.Schema]:
    return [read_header(file)[0] for file in table.files] if has_features(table.schema) else []


def featurize_dataset(
    dataset: datasets.Dataset,
    processor: RMatProcessor,
    *,
    smiles_column: str = SMILES_COLUMN,
    label_columns: Sequence[str] = (),
    problem_type: str = "regression",
    conflict_tolerance: float = 0.1,
    num_workers: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> datasets.Dataset:
    """Return the rows of a data set with the features of their molecules and checked labels.

    Rows that cannot be used are left out, and counted in a warning with their reasons: no label, no
    molecule, no geometry, or labels that contradict those of another row of the same molecule.

    Args:
        dataset (`datasets.Dataset`): With a column of SMILES.
        processor ([`RMatProcessor`]): Decides the geometry and the largest molecule.
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column of SMILES.
        label_columns (`Sequence[str]`, *optional*):
            Columns of labels, in the order of the model's outputs; empty cells, `None` and NaN are
            missing labels. Without any there are features alone. Columns of lists have labels of
            atoms: one for each heavy atom, in the order of the SMILES.
        problem_type (`str`, *optional*, defaults to `"regression"`):
            Or `"multi_label_classification"` (0 or 1) or `"single_label_classification"`
            (integers or words in one column).
        conflict_tolerance (`float`, *optional*, defaults to 0.1):
            Largest difference between regression labels of one molecule, in standard deviations
            of the column.
        num_workers (`int`, *optional*, defaults to 0):
            Processes. A molecule that crashes or hangs one of them costs itself alone.
        cache_dir (`str` or `Path`, *optional*): Folder that keeps features for other runs.
        options: `weight_column`, what each row counts; `replicates`, `"mean"` or `"median"`: rows
            of one molecule are merged; `label_transforms` and `label_units`, as in [`RMatConfig`];
            `class_columns`, labels of a regression that are yes or no; `feature_columns`, what a
            model is to know of a row beside its molecule, numbers or categories.

    Returns:
        `datasets.Dataset` with the columns of the rows, and `row` (position in `dataset`),
        `smiles`, `canonical_smiles` (of the heavy atoms), `labels` (float64 of shape
        `(num_labels,)`, NaN where missing; of a single-label classification the class, whose names
        the column knows; of atoms `(num_atoms, num_labels)`, in the order of the stored
        features), and the columns of features in `data/stored_features.py`: `features`, `num_nodes`
        (atoms and the dummy node), `geometry_source` and `processor`. They can be filtered, saved
        and pushed, and trained on by others: [`finetune`], [`find_processor`]. Where cells are
        bounds, as `>10`, there is `label_bounds`: 1 if the value is above the label, -1 if below,
        0 if it is the label; and there is `weight` if a column was named.

    Raises:
        TypeError: There is no such option.
        UserError: A column is missing, a label cannot be read, there is nothing to learn, or a
            molecule has not one label for each atom.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatProcessor, featurize_dataset
    >>> table = Dataset.from_dict({"smiles": ["CCO", "CCC", "C1"], "dG": [-5.0, 2.0, 1.0]})
    >>> rows = featurize_dataset(table, RMatProcessor(geometry="bounds"), label_columns=["dG"])
    >>> rows["row"][:], rows["labels"][:], rows["num_nodes"][:]
    ([0, 1], [[-5.0], [2.0]], [4, 4])

    ```
    """
    label_columns, source = list(label_columns), "The data set"
    _validate_names(smiles_column, label_columns, problem_type=problem_type)
    label_options = LabelOptions(**options)
    names = [smiles_column, *label_columns, *label_options.columns]
    validate_columns(dataset.column_names, names, source=source)
    is_of_atoms = any(isinstance(dataset.features[name], LISTS) for name in label_columns)
    built = _build_training_data(
        build_table(dataset.select_columns(names).with_format("arrow")[:], source=source),
        processor,
        smiles_column=smiles_column,
        label_columns=label_columns,
        problem_type=problem_type,
        level="atom" if is_of_atoms else "molecule",
        conflict_tolerance=conflict_tolerance,
        label_options=label_options,
        num_workers=num_workers,
        cache_dir=cache_dir,
    ).dataset
    # a column of ours replaces one of the same name
    others = [name for name in dataset.column_names if name not in built.column_names]
    kept = dataset.select_columns(others).select(built["row"][:])
    return datasets.concatenate_datasets([kept, built], axis=1) if others else built


def _validate_names(smiles_column: str, label_columns: list[str], *, problem_type: str) -> None:
    is_single = problem_type == "single_label_classification"
    num_different = len({smiles_column, *label_columns}) - 1
    if not num_different == len(label_columns) <= (1 if is_single else num_different):
        raise UserError(
            f"The label columns are {label_columns}, that of SMILES is {smiles_column!r}: name at "
            "least one label, and no column twice. single_label_classification takes one label "
            "column; for several yes/no labels use multi_label_classification."
        )


def _build_training_data(
    table: Table,
    processor: RMatProcessor,
    *,
    smiles_column: str,
    label_columns: list[str],
    problem_type: str,
    split_column: str | None = None,
    conflict_tolerance: float,
    featurized: Table | None = None,
    **options: Any,
) -> LoadedData:
    """Check and featurize the rows of a table, as [`load_training_table`]."""
    level, group_column = options.pop("level", "molecule"), options.pop("group_column", None)
    label_options: LabelOptions = options.pop("label_options", LabelOptions())
    validate_smiles_column(table.schema, smiles_column, source=table.source)
    names: dict[str, Any] = {"smiles_column": smiles_column, "label_columns": label_columns}
    types = label_options.list_types(label_columns, problem_type=problem_type)
    given = _iterate_rows(table, types=types, label_options=label_options, level=level, **names)
    columns = ["smiles", "molecule", "labels", "cells"]
    rows = pd.DataFrame(given, columns=columns, dtype=object)
    validate_split_cells(split_column, _list_split_cells(rows, split_column))
    if featurized is not None:
        outcomes = _read_outcomes(featurized, rows["molecule"], max_atoms=processor.max_atoms)
    else:
        outcomes = featurize_molecules(rows["molecule"].to_list(), processor, **options)
    rows = rows.join(pd.DataFrame(outcomes, columns=FeaturizedMolecule._fields, dtype=object))
    reasons = {row: reason for row, reason in rows["failure"].items() if reason}
    notes, way_out = list[str](), ""
    reasons |= _find_rows_without_part(rows.drop(index=list(reasons)), split_column)
    if level == "molecule":
        others, notes = _settle_replicates(
            rows,
            reasons,
            types=dict(zip(label_options.name_learned(label_columns), types, strict=True)),
            label_options=label_options,
            split_column=split_column,
            tolerance=conflict_tolerance,
        )
        reasons |= others
        # classes have no mean
        if others and label_options.replicates == "keep" and "regression" in types:
            way_out = f" Of rows that contradict each other: {CONFLICT_WAY_OUT}."
    dropped = [DroppedRow(row, rows["smiles"][row], reasons[row]) for row in sorted(reasons)]
    _warn_of(dropped, num_rows=len(rows), source=table.source, way_out=way_out)
    kept = rows.drop(index=list(reasons))
    given_labels, sizes = kept["labels"].to_list(), None
    if level == "atom":
        of_atoms = _arrange_labels(kept, label_columns, processor=processor)
        given_labels, sizes = list(chain(*of_atoms)), list(map(len, of_atoms))
    cells = {name: [it[name] for it in rows["cells"]] for name in label_columns}
    _validate_labels(given_labels, dropped, cells=cells, types=types, source=table.source)
    notes += _describe_words(cells, types)
    split = parse_split_cells(
        split_column,
        [cells[split_column] for cells in kept["cells"]] if split_column else [],
        rows=kept.index,
        groups=name_by_parent(kept["canonical_smiles"].to_list()) if split_column else [],
    )
    if group_column is not None:
        split[GROUP_COLUMN] = [str(cells[group_column] or "") for cells in kept["cells"]]
    labels, found = _encode_labels(given_labels)
    class_names = found if problem_type == "single_label_classification" else None
    dataset = _build_dataset(
        kept, processor, labels=labels, sizes=sizes, split=split, class_names=class_names
    )
    dataset, more = _add_measured(
        dataset, given_labels, kept=kept, label_options=label_options, commas=table.commas
    )
    return LoadedData(dataset, dropped, class_names, notes + more)


def _warn_of(dropped: Sequence[DroppedRow], *, num_rows: int, source: str, way_out: str) -> None:
    """Count dropped rows by reason, each with its first row; those that were merged are a note."""
    if not (dropped := [it for it in dropped if not it.is_merged]):
        return
    counts = Counter(name_kind(it.reason) for it in dropped)
    first = {name_kind(it.reason): it for it in reversed(dropped)}
    listed = "; ".join(
        f"{f'{number} like ' if number > 1 else ''}row {first[kind].row}: {first[kind].reason}"
        for kind, number in counts.most_common(_NUM_REASONS)
    )
    more = "; and other reasons" if len(counts) > _NUM_REASONS else ""
    where = source.replace("The ", "the ", 1) if source.startswith("The ") else source
    text = "Dropped %d of %d rows of %s: %s%s.%s"
    logger.warning(text, len(dropped), num_rows, where, listed, more, way_out)


def _find_rows_without_part(rows: pd.DataFrame, split_column: str | None) -> dict[int, str]:
    """Return why rows have no part, or time, of a split that is given, by row."""
    if split_column is None:
        return {}
    return find_unread_cells(split_column, _list_split_cells(rows, split_column))


def _list_split_cells(rows: pd.DataFrame, split_column: str | None) -> dict[int, object]:
    """Return the cells of the column of a split, if there is one, by row."""
    return {row: cells[split_column] for row, cells in rows["cells"].items() if split_column}


def _settle_replicates(
    rows: pd.DataFrame,
    reasons: dict[int, str],
    *,
    types: dict[str, str],
    label_options: LabelOptions,
    split_column: str | None,
    tolerance: float,
) -> tuple[dict[int, str], list[str]]:
    """Merge rows of one molecule, in place, or find those that contradict each other.

    Returns why rows are left out beside those that are already, and notes.
    """
    rule, feature_columns = label_options.replicates, label_options.feature_columns
    usual = tolerance if rule == "keep" else math.inf
    tolerances = np.array([usual if it == "regression" else 0.0 for it in types.values()])
    known = rows[rows["canonical_smiles"] != ""]
    options: dict[str, Any] = {"label_columns": list(types), "tolerance": tolerances}
    found = _find_conflicts(known, groups=_name_replicates(known, feature_columns), **options)
    if rule == "keep":
        return found, []
    kept = rows.drop(index=list({**reasons, **found}))
    own = [split_column] if split_column else []
    if isinstance(split_column, TimeColumn):
        # the first measurement takes in what was measured later, as a split by time does
        dates = [it[split_column] for it in kept["cells"]]
        times = [parsed[1] for parsed in map(build_time_parser(dates), dates)]
        kept, own = kept.iloc[np.argsort(times, kind="stable")], []
    groups = _name_replicates(kept, [*own, *feature_columns])
    units = label_options.list_error_units(len(types))
    merged, others, notes = merge_replicates(
        kept, groups=groups, rule=rule, types=types, units=units
    )
    rows.loc[merged.index, "labels"] = merged["labels"]
    return found | others, notes


def _name_replicates(rows: pd.DataFrame, columns: Sequence[str]) -> list[Any]:
    """Return what rows of one molecule have in common, with their cells in columns."""
    cells = [tuple(str(it[name]) for name in columns) for it in rows["cells"]]
    return list(zip(rows["canonical_smiles"], cells, strict=True))


def _add_measured(
    dataset: datasets.Dataset,
    labels: list[Any],
    *,
    kept: pd.DataFrame,
    label_options: LabelOptions,
    commas: Mapping[str, str],
) -> tuple[datasets.Dataset, list[str]]:
    """Return the rows with which labels are bounds, and with weights; and notes on both."""
    bounds, notes = find_bounds(labels), []
    if bounds.any():
        kind = datasets.List(datasets.Value("int8"))
        dataset = dataset.add_column(BOUNDS_COLUMN, bounds.tolist(), feature=kind)
        num_known = sum(not is_missing(it) for row in labels for it in row)
        notes.append(
            f"{np.count_nonzero(bounds)} of {num_known} labels are bounds, which no metric counts"
        )
    if (name := label_options.weight_column) is not None:
        weights = parse_weights([it[name] for it in kept["cells"]], column=name, rows=kept.index)
        dataset = dataset.add_column(WEIGHT_COLUMN, weights, feature=datasets.Value("float64"))
        notes.append(f"rows weigh what column {name} says")
    if names := label_options.feature_columns:
        columns = {name: [it[name] for it in kept["cells"]] for name in names}
        dataset = add_covariates(dataset, columns, commas=commas)
        notes.append(f"rows have the covariates {', '.join(names)}")
    return dataset, notes


def _read_outcomes(
    table: Table, molecules: Iterable[Molecule], *, max_atoms: int
) -> list[FeaturizedMolecule]:
    """Return the outcomes that a table has; of a row that is left out for another reason, that."""
    outcomes = []
    rest = iter(molecules)
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        smiles, column, sources = (chunk.table[name] for name in _FEATURIZED)
        with explained_reading(table.source):
            cells = (read_column(column), sources.to_pylist(), smiles.to_pylist())
        for features, source, canonical, molecule in zip(*cells, rest, strict=False):
            reason = find_fault(features, max_atoms=max_atoms)
            if isinstance(molecule, MoleculeError):
                reason = molecule.reason
            if reason:
                outcomes.append(FeaturizedMolecule(b"", "", reason, ""))
            else:
                packed = pack_features(features)
                outcomes.append(FeaturizedMolecule(packed, source or "", "", canonical or ""))
    return outcomes


def _iterate_rows(
    table: Table,
    *,
    smiles_column: str,
    label_columns: list[str],
    types: list[str],
    label_options: LabelOptions,
    level: str,
) -> Iterator[tuple[str, Molecule, list[Any], dict[str, Any]]]:
    """Yield SMILES, molecule, labels and all cells of every row; none without a label is built.

    A cell that is no label is a missing one. Those in rows with other labels are warned of here.
    """
    row, parse = 0, parse_atom_labels if level == "atom" else parse_label
    unread: list[LabelError] = []
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        molecules = chunk.molecules(smiles_column)
        for cells, molecule in zip(chunk.table.to_pylist(), molecules, strict=True):
            labels: list[Any] = []
            faults: list[LabelError] = []
            for idx, (name, kind) in enumerate(zip(label_columns, types, strict=True)):
                place: dict[str, Any] = {"row": row, "column": name}
                try:
                    label: Any = parse(cells[name], problem_type=kind, **place)
                    label = label_options.learn(label, label_idx=idx, **place)
                except LabelError as error:
                    label = math.nan
                    faults.append(error)
                labels.append(label)
            is_labeled = not labels or not all(map(is_missing, labels))
            reason = faults[0].reason if faults else "no label"
            yield (
                cells[smiles_column] or "",
                molecule if is_labeled else MoleculeError(reason),
                labels,
                cells,
            )
            unread += faults if is_labeled else []
            row += 1
    if unread:
        logger.warning("%d cells count as missing labels. %s", len(unread), unread[0])


def _find_conflicts(
    rows: pd.DataFrame, *, groups: list[Any], label_columns: list[str], tolerance: np.ndarray
) -> dict[int, str]:
    """Return why rows of one molecule contradict each other, by row."""
    if rows.empty or not label_columns:
        return {}
    labels, _ = _encode_labels(rows["labels"])
    # a bound contradicts nothing that it allows, and costs nothing then
    labels[find_bounds(rows["labels"].to_list()) != 0] = np.nan
    conflicts = find_label_conflicts(groups, labels, tolerance=tolerance)
    reasons = {}
    for position, (label_idx, *extremes) in conflicts.items():
        low, high = (rows["labels"].iloc[idx][label_idx] for idx in extremes)
        first, second = rows.index[extremes]
        reasons[int(rows.index[position])] = (
            f"rows {first} and {second} hold the same molecule with contradictory labels: "
            f"{label_columns[label_idx]} is {_shorten(low)} and {_shorten(high)}"
        )
    return reasons


def _shorten(label: float | str) -> float | str:
    return label if isinstance(label, str) else float(f"{label:.5g}")


def _arrange_labels(
    rows: pd.DataFrame, label_columns: list[str], *, processor: RMatProcessor
) -> list[list[list[float | str]]]:
    """Return the labels of each molecule's atoms as its features are stored, a list per atom."""
    arranged = []
    columns = ("molecule", "smiles", "labels", "features")
    for row, molecule, smiles, cells, features in rows[list(columns)].itertuples():
        missing, found = [math.nan] * (count_nodes([features])[0] - 1), []
        for name, labels in zip(label_columns, cells, strict=True):
            try:
                found.append(arrange_atom_labels(labels or missing, molecule, processor=processor))
            except ValueError as error:
                raise UserError(
                    f"Row {row} (counted from 0): label {name!r} does not fit {smiles!r}. {error}"
                ) from error
        arranged.append(np.hstack(found).tolist())
    return arranged


def _encode_labels(rows: Iterable[list[float | str]]) -> tuple[np.ndarray, list[str]]:
    """Return labels, `(num_rows, num_labels)`, a class as its index, and the classes there are."""
    labels = [list(row) for row in rows]
    class_names = list_class_names([label for row in labels for label in row])
    idx_of_class: dict[Any, Any] = {name: float(idx) for idx, name in enumerate(class_names)}
    encoded = [[idx_of_class.get(label, label) for label in row] for row in labels]
    return np.array(encoded, dtype=np.float64, ndmin=2), class_names


def _validate_labels(
    rows: Sequence[list[Any]],
    dropped: list[DroppedRow],
    *,
    cells: dict[str, list[Any]],
    types: list[str],
    source: str,
) -> None:
    for label_idx, (column, kind) in enumerate(zip(cells, types, strict=True)):
        if kind == _YES_OR_NO and name_several_findings(map(str, cells[column])):
            raise UserError(
                f"{source}: the words of label {column!r} say yes to different things, and nobody "
                f"knows which is 1. {describe_recoding(column, cells[column])} Or finetune that "
                "label alone, as classes: --problem-type single_label_classification."
            )
        values = {labels[label_idx] for labels in rows}
        values = {label for label in values if not is_missing(label)}
        if values and all(isinstance(it, Bound) for it in values):
            raise UserError(
                f"{source}: label {column!r} has bounds alone, with < or >, and no measured "
                "value to score predictions with. Add molecules that have one, drop that label, or "
                "learn which side of a limit they are on: a column of 0 and 1."
            )
        if len(values) < 2:
            found = f"is {values.pop()} in every usable row" if values else "has no usable value"
            first = f" Row {dropped[0].row}: {dropped[0].reason}." if dropped else ""
            way_out = "Add labeled molecules, or drop that label."
            if kind != "regression" and any(
                (parse_number(it) or 0) % 1 > 0 for it in cells[column]
            ):
                first += " Its numbers are learned without --problem-type."
            elif kind == _YES_OR_NO:
                first += f" {describe_recoding(column, cells[column])}".rstrip()
            elif (
                not values
                and kind == "regression"
                and len(cells) > 1
                and _holds_words(cells[column])
            ):
                way_out = f"Its words are yes and no: --class-columns {shlex.quote(column)}."
            elif kind == "regression" and first:
                first += " If it is yes and no, or classes: --problem-type classification."
            raise UserError(
                f"{source}: label {column!r} {found}: nothing to learn.{first} {way_out}"
            )


def _holds_words(cells: Iterable[object]) -> bool:
    return any(parse_word(str(it)) is not None for it in cells)


def _describe_words(cells: dict[str, list[Any]], types: list[str]) -> list[str]:
    """Say what the words of labels that are yes or no were read as."""
    said = {
        name: describe_words(it)
        for (name, it), kind in zip(cells.items(), types, strict=True)
        if kind == _YES_OR_NO
    }
    notes = [f"In {name}, {text}" for name, text in said.items() if text]
    more = len(notes) - _NUM_NAMED_LABELS
    return [*notes[:_NUM_NAMED_LABELS], *[f"In {more} more labels words are 1 and 0"] * (more > 0)]


def _build_dataset(
    rows: pd.DataFrame,
    processor: RMatProcessor,
    *,
    labels: np.ndarray,
    sizes: list[int] | None,
    split: dict[str, list[Any]],
    class_names: list[str] | None,
) -> datasets.Dataset:
    if num_step_downs := rows["geometry_source"].str.contains("step down").sum():
        logger.warning("%d molecules stepped down to another geometry.", num_step_downs)
    columns: dict[str, tuple[Sequence[Any], str]] = {
        "row": (rows.index, "int64"),
        "smiles": (rows["smiles"], "string"),
        "canonical_smiles": (rows["canonical_smiles"], "string"),
        **{
            name: (cells, "float64" if name == "time" else "string")
            for name, cells in split.items()
        },
    }
    mols = [mol.ToBinary() if isinstance(mol, Chem.Mol) else None for mol in rows["molecule"]]
    if any(mols):
        columns["mol"] = (mols, "binary")
    kinds: dict[str, Any] = {name: datasets.Value(kind) for name, (_, kind) in columns.items()}
    values: dict[str, Any] = {name: list(values) for name, (values, _) in columns.items()}
    kinds |= datasets.Features.from_arrow_schema(FEATURE_FIELDS)
    values[FEATURES_COLUMN] = build_features_column(rows["features"].to_list())
    values[LENGTH_COLUMN] = count_nodes(rows["features"])
    values["geometry_source"] = rows["geometry_source"].to_list()
    kinds[PROCESSOR_COLUMN] = describe_processor_column(processor)
    values[PROCESSOR_COLUMN] = [0] * len(rows)
    if labels.size:
        kind = datasets.ClassLabel(names=class_names) if class_names else datasets.Value("float64")
        kinds["labels"] = datasets.List(kind)
        values["labels"] = labels.tolist()
        if class_names:
            # of molecules every row has its class, else it is left out
            values["labels"] = [[None if it != it else int(it)] for (it,) in labels.tolist()]
        if sizes is not None:
            kinds["labels"] = datasets.List(kinds["labels"])
            values["labels"] = group_cells(values["labels"], sizes)
    return datasets.Dataset.from_dict(values, features=datasets.Features(kinds))
