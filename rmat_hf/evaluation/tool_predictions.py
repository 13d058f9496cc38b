"""Predictions that another tool made for the folds of the benchmark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rmat_hf.data.splits.parts import SPLIT_NAMES
from rmat_hf.data.tables import open_file, validate_columns
from rmat_hf.errors import UserError
from rmat_hf.evaluation.protocol import Fold, Protocol
from rmat_hf.evaluation.row_predictions import RowPredictions, compute_canonical_smiles

CHUNK_SIZE = 1000
FOLD_COLUMNS = ("dataset", "split", "seed")
# One value per label, by row of the table or by canonical SMILES.
ToolPredictions = dict[int | str, list[float]]


def load_tool_predictions(path: Path, *, protocol: Protocol) -> dict[Fold, ToolPredictions]:
    """Load a table of another tool's predictions.

    Its columns are `dataset`, `split` and `seed`, as in the protocol; `row` (position in the table,
    counted from 0) or `smiles`; and `prediction`, or `prediction_<label>` for each of several
    labels: a number in the units of the label, or the probability of a yes. It has all test rows of
    a fold, and all or none of valid; others are not looked at.

    Args:
        path (`Path`): CSV or Parquet file.
        protocol (`Protocol`): The folds there are.

    Returns:
        `dict[Fold, ToolPredictions]`: one value per label, by row or by canonical SMILES.

    Raises:
        UserError: If a column or cell is missing, or a fold or number is none; names the line.
    """
    table = open_file(path)
    columns = table.column_names
    key = "row" if "row" in columns else "smiles"
    validate_columns(columns, [*FOLD_COLUMNS, key], source=path.name)
    folds = {(fold.dataset, fold.split, str(fold.seed)): fold for fold in protocol.list_folds()}
    labels = {name: data.options["label_columns"] for name, data in protocol.datasets.items()}
    found: dict[Fold, ToolPredictions] = {}
    number = 0
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        for cells in chunk.table.to_pylist():
            number += 1
            where = f"{path.name}, line {number} below the header"
            fold = folds.get((str(cells["dataset"]), str(cells["split"]), str(cells["seed"])))
            if fold is None:
                raise UserError(
                    f"{where}: the protocol has no data set {cells['dataset']!r} with the split "
                    f"{cells['split']!r} and the seed {cells['seed']!r}."
                )
            molecule = _parse_key(cells[key], key=key, where=where)
            values = _parse_values(cells, labels[fold.dataset], where=where)
            if found.setdefault(fold, {}).setdefault(molecule, values) != values:
                raise UserError(f"{where}: {key} {molecule!r} of {fold} has two predictions.")
    return found


def align_tool_predictions(
    tool: ToolPredictions, rows: RowPredictions, *, where: str
) -> RowPredictions:
    """Return the rows with the predictions of a tool; NaN where it has none outside of test.

    Args:
        tool (`ToolPredictions`): Its predictions for the fold.
        rows (`RowPredictions`): The rows that all methods share.
        where (`str`): Tool and fold, for the message.

    Raises:
        UserError: If a test row, or some but not all of valid, has no prediction; names the row.
    """
    by_row = all(isinstance(key, int) for key in tool)
    predictions = np.full(rows.labels.shape, np.nan)
    for i, (row, smiles) in enumerate(zip(rows.rows.tolist(), rows.smiles, strict=True)):
        values = tool.get(row if by_row else compute_canonical_smiles(smiles))
        if values is not None:
            predictions[i] = values
    for part in SPLIT_NAMES[1:]:
        missing = rows.is_in(part) & np.isnan(predictions).all(axis=1)
        if missing.any() and (part == "test" or not missing[rows.is_in(part)].all()):
            i = int(np.flatnonzero(missing)[0])
            raise UserError(
                f"{where}: {missing.sum()} rows of {part} have no prediction, the first of them "
                f"row {rows.rows[i]} ({rows.smiles[i]!r}). Add them to the file."
            )
    return replace(rows, predictions=predictions)


def _parse_key(cell: Any, *, key: str, where: str) -> int | str:
    try:
        return compute_canonical_smiles(str(cell)) if key == "smiles" else int(cell)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {key} is {cell!r}: {error}") from error


def _parse_values(cells: Mapping[str, Any], labels: Sequence[str], *, where: str) -> list[float]:
    names = [f"prediction_{label}" for label in labels]
    if len(labels) == 1 and "prediction" in cells:
        names = ["prediction"]
    validate_columns(cells, names, source=where)
    values = []
    for name in names:
        try:
            value = float(cells[name])
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{where}: {name} is {cells[name]!r}, not a finite number.")
        values.append(value)
    return values
