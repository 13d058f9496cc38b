"""What a method predicts for the rows of one fold, and the rows that all methods share."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rdkit import Chem

from rmat_hf.data.splits.parts import SPLIT_NAMES
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import MoleculeError, parse_molecule
from rmat_hf.training.baselines import MAX_ATOMS

PREDICTIONS_FILE = "predictions.csv"
DROPPED_FILE = "dropped_rows.csv"
SPREAD_PREFIX = "spread_"


@dataclass(frozen=True)
class RowPredictions:
    """Rows of a table, in order, with what is measured and what is predicted.

    Args:
        rows (`np.ndarray` of shape `(num_rows,)`): Positions in the table, from 0, rising.
        parts (`list[str]`): The word train, valid or test for each.
        smiles (`list[str]`): As in the table.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): NaN where missing.
        predictions (`np.ndarray` of shape `(num_rows, num_labels)`):
            In the units of the labels, or probabilities of a yes; NaN where there is none.
        num_dropped (`int`): Rows of the table that are not here.
        spread (`np.ndarray` of shape `(num_rows, num_labels)`, *optional*):
            How far the members of an ensemble differ, in the units of the predictions.
    """

    rows: np.ndarray
    parts: list[str]
    smiles: list[str]
    labels: np.ndarray
    predictions: np.ndarray
    num_dropped: int
    spread: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> "RowPredictions":
        """Return these rows of the table, all of which must be here."""
        idx = np.searchsorted(self.rows, rows)
        return RowPredictions(
            rows=rows,
            parts=[self.parts[i] for i in idx],
            smiles=[self.smiles[i] for i in idx],
            labels=self.labels[idx],
            predictions=self.predictions[idx],
            num_dropped=self.num_dropped + len(self.rows) - len(rows),
            spread=None if self.spread is None else self.spread[idx],
        )

    def is_in(self, part: str) -> np.ndarray:
        """Return for every row whether it stands in a part, bool `(num_rows,)`."""
        return np.array(self.parts) == part


def load_row_predictions(folder: Path, *, label_names: Sequence[str]) -> RowPredictions:
    """Load what a finished run left.

    Args:
        folder (`Path`): With `predictions.csv` and, from a model, `dropped_rows.csv`.
        label_names (`Sequence[str]`): Label columns.
    """
    with (folder / PREDICTIONS_FILE).open(newline="", encoding="utf-8") as stream:
        lines = sorted(csv.DictReader(stream), key=lambda line: int(line["row"]))
    num_dropped = 0
    if (folder / DROPPED_FILE).is_file():
        with (folder / DROPPED_FILE).open(newline="", encoding="utf-8") as stream:
            num_dropped = sum(1 for _ in csv.DictReader(stream))

    def read_numbers(prefix: str) -> np.ndarray:
        return np.array(
            [[float(line[prefix + name] or "nan") for name in label_names] for line in lines]
        )

    has_spread = bool(lines) and SPREAD_PREFIX + label_names[0] in lines[0]
    return RowPredictions(
        rows=np.array([int(line["row"]) for line in lines]),
        parts=[line["split"] for line in lines],
        smiles=[line["smiles"] for line in lines],
        labels=read_numbers(""),
        predictions=read_numbers("prediction_"),
        num_dropped=num_dropped,
        spread=read_numbers(SPREAD_PREFIX) if has_spread else None,
    )


def find_common_rows(found: Mapping[str, RowPredictions], *, where: str) -> RowPredictions:
    """Return the rows that every method has, with the predictions of the first.

    Args:
        found (`Mapping[str, RowPredictions]`): Of at least one method, by name.
        where (`str`): The fold, for the message.

    Raises:
        UserError: If a row stands in different parts.
    """
    first_name, first = next(iter(found.items()))
    rows = first.rows
    for other in found.values():
        rows = np.intersect1d(rows, other.rows)
    common = first.select(rows)
    for name, other in found.items():
        parts = other.select(rows).parts
        for row, part, other_part in zip(rows, common.parts, parts, strict=True):
            if part != other_part:
                raise UserError(
                    f"{where}: row {row} stands in {part} for {first_name!r} and in {other_part} "
                    f"for {name!r}, which drop different rows. Use split columns, or one geometry."
                )
    return common


def compute_part_hashes(rows: RowPredictions) -> dict[str, str]:
    """Return the SHA-256 of the molecules of each part, whatever their order.

    It is that of the sorted canonical SMILES, one in a line.
    """
    hashes = {}
    for part in SPLIT_NAMES:
        selected = [
            text for text, word in zip(rows.smiles, rows.parts, strict=True) if word == part
        ]
        canonical = sorted(compute_canonical_smiles(text) for text in selected)
        hashes[part] = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    return hashes


def compute_canonical_smiles(smiles: str) -> str:
    """Return the SMILES by which two rows are one molecule, as when the table was loaded.

    Raises:
        UserError: If it is not one molecule.
    """
    try:
        return str(Chem.MolToSmiles(parse_molecule(smiles, max_atoms=MAX_ATOMS)))
    except MoleculeError as error:
        raise UserError(f"{error}. Fix or drop the row.") from error
