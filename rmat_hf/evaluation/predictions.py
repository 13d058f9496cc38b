"""What methods predict for the rows of a fold: runs, other tools, and the rows they share.

A frame of predictions has the position of each row in its table as index, rising, and the columns
`split` (train, valid or test), `smiles`, every label by its name, NaN where missing,
`prediction_LABEL` and, of an ensemble, `spread_LABEL`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rdkit import Chem

from rmat_hf.data.splits.parts import SPLIT_NAMES
from rmat_hf.data.tables import validate_columns
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.evaluation.protocol import Fold, Protocol
from rmat_hf.model.features_rmat import MoleculeError, parse_molecule
from rmat_hf.training.baselines import MAX_ATOMS

PREDICTIONS_FILE = "predictions.csv"
DROPPED_FILE = "dropped_rows.csv"
PREDICTION_PREFIX, SPREAD_PREFIX = "prediction_", "spread_"
FOLD_COLUMNS = ["dataset", "split", "seed"]


def load_predictions(folder: Path) -> pd.DataFrame:
    """Load the frame that a finished run left."""
    cells = pd.read_csv(folder / PREDICTIONS_FILE, dtype=str, keep_default_na=False)
    numbers = cells.columns.difference(["row", "smiles", "split"])
    cells[numbers] = cells[numbers].replace("", "nan").astype(float)
    return cells.astype({"row": int}).set_index("row").sort_index()


def count_table_rows(folder: Path, frame: pd.DataFrame) -> int:
    """Return how many rows the table of a run has, those that the run dropped among them."""
    path = folder / DROPPED_FILE
    return len(frame) + (len(pd.read_csv(path)) if path.is_file() else 0)


def find_common_rows(found: Mapping[str, pd.DataFrame], *, where: str) -> pd.DataFrame:
    """Return the rows that every method has, with the predictions of the first."""
    parts = pd.concat({name: frame["split"] for name, frame in found.items()}, axis=1, join="inner")
    differing = parts[parts.nunique(axis=1) > 1]
    if len(differing):
        words = ", ".join(f"{part} for {name!r}" for name, part in differing.iloc[0].items())
        raise UserError(
            f"{where}: row {differing.index[0]} stands in {words}, which drop different rows. Use "
            "split columns, or one geometry."
        )
    return next(iter(found.values())).loc[parts.index.sort_values()]


def compute_part_hashes(rows: pd.DataFrame) -> dict[str, str]:
    """Return the SHA-256 of the molecules of each part, whatever their order.

    It is that of the sorted canonical SMILES, one in a line.
    """
    canonical = rows["smiles"].map(compute_canonical_smiles)
    lines = {part: "\n".join(sorted(canonical[rows["split"] == part])) for part in SPLIT_NAMES}
    return {part: hashlib.sha256(text.encode()).hexdigest() for part, text in lines.items()}


def compute_canonical_smiles(smiles: str) -> str:
    """Return the SMILES by which two rows are one molecule, as when the table was loaded."""
    return str(Chem.MolToSmiles(parse_molecule(smiles, max_atoms=MAX_ATOMS)))


def load_tool_predictions(path: Path, *, protocol: Protocol) -> dict[Fold, pd.DataFrame]:
    """Load a table of another tool's predictions.

    Its columns are `dataset`, `split` and `seed`, as in the protocol; `row` (position in the table,
    counted from 0) or `smiles`; and `prediction`, or `prediction_LABEL` for each of several
    labels: a number in the units of the label, or the probability of a yes. It has all test rows of
    a fold, and all or none of valid; others are not looked at.
    """
    with explained_reading(path.name):
        if path.suffix.lower() == ".parquet":
            cells = pd.read_parquet(path).astype(str)
        else:
            cells = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    key = "row" if "row" in cells else "smiles"
    validate_columns(list(cells), [*FOLD_COLUMNS, key], source=path.name)
    cells.index += 1
    folds = {(fold.dataset, fold.split, str(fold.seed)): fold for fold in protocol.list_folds()}
    found = {}
    for names, lines in cells.groupby(FOLD_COLUMNS, sort=False):
        if names not in folds:
            raise UserError(
                f"{path.name}, line {lines.index[0]} below the header: the protocol has no data "
                f"set {names[0]!r} with the split {names[1]!r} and the seed {names[2]!r}."
            )
        labels = protocol.datasets[names[0]].options["label_columns"]
        found[folds[names]] = _parse_lines(lines, labels, key=key, source=path.name)
    return found


def _parse_lines(
    lines: pd.DataFrame, labels: Sequence[str], *, key: str, source: str
) -> pd.DataFrame:
    """Return the predictions of one fold by row or canonical SMILES."""
    columns = [f"{PREDICTION_PREFIX}{label}" for label in labels]
    given = ["prediction"] if len(labels) == 1 and "prediction" in lines else columns
    validate_columns(list(lines), given, source=source)
    values = lines[given].set_axis(columns, axis=1)
    if key == "row":
        values.insert(0, key, lines[key])
    values = values.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    if key == "smiles":
        values.insert(0, key, lines[key].map(_parse_smiles))
    values = values.drop_duplicates()
    is_bad = values.isna().any(axis=1) | values.duplicated(key)
    if is_bad.any():
        line = is_bad.idxmax()
        raise UserError(
            f"{source}, line {line} below the header: {lines.loc[line].to_dict()} needs a {key} "
            f"that is one, and a finite number in {', '.join(given)}, the only one of its {key}."
        )
    return values.set_index(key)


def _parse_smiles(cell: str) -> str | None:
    try:
        return compute_canonical_smiles(cell)
    except MoleculeError:
        return None


def align_tool_predictions(tool: pd.DataFrame, rows: pd.DataFrame, *, where: str) -> pd.DataFrame:
    """Return the rows with the predictions of a tool; NaN where it has none outside of test."""
    is_by_row = tool.index.name == "row"
    keys = rows.index if is_by_row else rows["smiles"].map(compute_canonical_smiles)
    aligned = rows.drop(columns=[name for name in rows if name.startswith(SPREAD_PREFIX)])
    aligned[list(tool)] = tool.reindex(keys).to_numpy()
    is_missing = aligned[list(tool)].isna().all(axis=1)
    is_valid, is_test = rows["split"] == "valid", rows["split"] == "test"
    needed = is_test if is_missing[is_valid].all() else is_test | is_valid
    lacking = rows[is_missing & needed]
    if len(lacking):
        raise UserError(
            f"{where}: {len(lacking)} rows of valid or test have no prediction, the first of them "
            f"row {lacking.index[0]} ({lacking['smiles'].iloc[0]!r}). Add them to the file."
        )
    return aligned
