"""What predictions add to a table, and the writing of it chunk by chunk, all or nothing."""

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rmat_hf.errors import UserError, say_count
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.trust_rmat import list_possible_classes
from rmat_hf.output_folder import open_atomically

logger = logging.getLogger(__name__)

ERROR_COLUMN = "error"
WARNING_COLUMN = "warning"
# What to do with text that starts like a formula: an apostrophe in front, or nothing.
FormulaHandling = Literal["escape", "keep"]
ColumnKind = Literal["text", "integer", "number", "boolean", "vector", "texts", "numbers"]
ARROW_TYPES: dict[ColumnKind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "vector": pa.list_(pa.float32()),
    "texts": pa.list_(pa.string()),
    "numbers": pa.list_(pa.float64()),
}
# What a column of molecules is for their atoms.
ATOM_KINDS: dict[ColumnKind, ColumnKind] = {"text": "texts", "number": "numbers"}
OUTPUT_EXTENSIONS = (".csv", ".parquet")
# The starts that OWASP lists, after any blanks, tabs and line breaks; full-width ones count in
# Japanese spreadsheets.
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠].*\w", re.DOTALL)
# A number, also with another decimal point or grouping, and a percent sign
_NUMBER = re.compile(
    r"\s*[+-]\s*(\d[\d.,' ]*|[.,]\d+)(e[+-]?\d+)?\s*%?\s*|\s*[+-](inf|infinity|nan)\s*"
)


def validate_output_path(path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Raise a `UserError` when a table cannot be written there, before any work is done."""
    path, obstacle = Path(path), ""
    if path.suffix.lower() not in OUTPUT_EXTENSIONS:
        obstacle = f"cannot be written as this kind of file. Use {' or '.join(OUTPUT_EXTENSIONS)}"
    elif path.is_dir():
        obstacle = "is a folder. Name a file"
    elif path.exists() and not overwrite:
        obstacle = "is there already. Pass --overwrite to replace it, or another name"
    elif not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        obstacle = "lies in a folder that does not exist or is not writable. Create it first"
    if obstacle:
        raise UserError(f"{path} {obstacle}.")


def build_output_schema(
    input_schema: pa.Schema | None, added_columns: Mapping[str, ColumnKind]
) -> pa.Schema:
    """Return the columns of a table of results, as [`TableWriter`] takes them."""
    schema = input_schema or pa.schema([])
    for name, kind in added_columns.items():
        if name in schema.names:
            raise UserError(
                f"The input already has a column {name!r}, which the output adds. "
                "Rename or drop it in the input."
            )
        schema = schema.append(pa.field(name, ARROW_TYPES[kind]))
    return schema


class TableWriter:
    """Write a .csv or .parquet file chunk by chunk; the file appears only when all went well.

    Use it as a context manager. Until the end the rows go to a hidden temporary file in the same
    folder, which an error removes; an older file of the same name stays untouched until then.

    Args:
        path (`str` or `os.PathLike`):
            The file to write.
        input_schema (`pa.Schema`, *optional*):
            Columns carried over from an input table (`Table.schema`), with their types.
        added_columns (`Mapping[str, ColumnKind]`, *optional*):
            Columns that follow: `"text"`, `"integer"`, `"number"`, `"boolean"`, `"vector"` (a
            list of float32), `"texts"` or `"numbers"`. In a CSV file `None` and NaN become an empty
            cell and lists are JSON.
        csv_formulas (`str`, *optional*, defaults to `"escape"`):
            In a CSV file text that a spreadsheet would run as a formula gets an apostrophe in
            front, as do names of columns; the log tells how often. `"keep"`: it does not.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        input_schema: pa.Schema | None = None,
        added_columns: Mapping[str, ColumnKind] | None = None,
        csv_formulas: FormulaHandling = "escape",
    ) -> None:
        validate_output_path(path)
        self.path = Path(path)
        self.schema = build_output_schema(input_schema, added_columns or {})
        self._csv_formulas = csv_formulas
        self._num_escaped = 0
        self._stack = ExitStack()

    def __enter__(self) -> "TableWriter":
        stream = self._stack.enter_context(open_atomically(self.path))
        if self.path.suffix.lower() == ".parquet":
            parquet = self._stack.enter_context(pq.ParquetWriter(stream, self.schema))
            self._write_rows = parquet.write_table
        else:
            text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
            self._stack.callback(text.detach)  # what waits is written; the stream stays open
            # A writer of rows that end with "\n" does not quote a lone "\r" before Python 3.13, and
            # a cell with one would come back as two rows.
            lines = SimpleNamespace(write=lambda row: text.write(row.removesuffix("\r\n") + "\n"))
            self._csv_writer = csv.writer(lines, lineterminator="\r\n")
            self._write_rows = self._write_csv_rows
            self._csv_writer.writerow(map(self._escape, self.schema.names))
        return self

    def write(self, columns: Mapping[str, pa.ChunkedArray | Sequence[Any]]) -> None:
        """Append rows: the announced columns, in any order, as Arrow has them or as lists."""
        self._write_rows(pa.Table.from_pydict(dict(columns), schema=self.schema))

    def __exit__(self, error_type: type[BaseException] | None, *details: Any) -> None:
        self._stack.__exit__(error_type, *details)
        if error_type is None and self._num_escaped:
            logger.warning(
                "%s: an apostrophe in front keeps spreadsheets from running %s like a formula.",
                self.path,
                say_count(self._num_escaped, "cell"),
            )

    def _write_csv_rows(self, rows: pa.Table) -> None:
        columns = [map(self._escape, _list_csv_cells(column)) for column in rows.columns]
        self._csv_writer.writerows(zip(*columns, strict=True))

    def _escape(self, cell: object) -> object:
        is_kept = self._csv_formulas == "keep" or not isinstance(cell, str)
        if is_kept or not starts_like_formula(str(cell)):
            return cell
        self._num_escaped += 1
        return f"'{cell}"


def _list_csv_cells(column: pa.ChunkedArray) -> list[Any]:
    """Return the cells of a column, empty for NaN. Times stay in Arrow, which knows them all."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        column = column.cast(pa.timestamp(kind.unit, "UTC"))  # a zone may be unknown here
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_time(kind):
        column = column.cast(pa.string())
    if pa.types.is_floating(kind):
        return [None if cell != cell else cell for cell in column.to_pylist()]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # NaN is no JSON
        lists = [cell and [it if it == it else None for it in cell] for cell in column.to_pylist()]
        return [None if cell is None else json.dumps(cell, default=str) for cell in lists]
    return list(column.to_pylist())


def starts_like_formula(text: str) -> bool:
    """Tell whether a spreadsheet may run a cell: it starts with =, +, - or @ and is no number.

    No valid SMILES does. Signs alone, as in a cell for "none", are no formula.
    """
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text.lower())


# Predictions


class Predictions(NamedTuple):
    """Predicted properties, one row per molecule in input order.

    Args:
        values (`np.ndarray` of shape `(num_molecules, num_outputs)`, float64):
            Regression: in the units of the training labels. Multi-label: probabilities. Single-
            label: one probability per class. NaN in the rows that have an error. Of atoms an
            array of objects, `(num_molecules,)`: each `(num_atoms, num_outputs)`, the heavy atoms
            in the order of the SMILES or RDKit molecule that was given; `None` with an error.
        errors (`list[str | None]` of length `num_molecules`): Why a row has no prediction.
        config (`RMatConfig`): Configuration of the model that predicted.
        spread (`np.ndarray` of shape `(num_molecules, num_outputs)`, *optional*):
            Standard deviation of the predictions of an ensemble's members, or that of a Gaussian
            process, in the same units, of a label that is learned as its logarithm of this. Not how
            large errors are.
        lower, upper (`np.ndarray` of shape `(num_molecules, num_outputs)`, *optional*):
            Ends of the intervals of a regression, which hold as many measurements as was asked
            for, in the same units; NaN of a label with too few rows that were held out.
        probabilities (`np.ndarray` of shape `(num_molecules, num_outputs)`, *optional*):
            Of classes, calibrated on rows that were held out.
        is_possible (`np.ndarray` of shape `(num_molecules, num_sets)`, *optional*):
            1 for a class that is in the set that holds the truth as often as was asked for: of
            one label for each class, of several the class 1 of each and then the class 0 of each.
        novelty (`np.ndarray` of shape `(num_molecules,)`, *optional*):
            From 0, like a molecule of training, to 1, like none of them.
        warnings (`list[str | None]` of length `num_molecules`, *optional*):
            What the model cannot see of a molecule, or no molecule of its training has.
    """

    values: np.ndarray
    errors: list[str | None]
    config: RMatConfig
    spread: np.ndarray | None = None
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    is_possible: np.ndarray | None = None
    novelty: np.ndarray | None = None
    warnings: list[str | None] | None = None

    def __repr__(self) -> str:
        """Return a short table: the first and last molecules, with their predictions."""
        table = pd.DataFrame(self.to_columns()).to_string(max_rows=10, max_colwidth=40)
        return f"{len(self.errors)} molecules\n{table}"

    @property
    def output_names(self) -> list[str]:
        """Names of the columns of `values`: labels, or classes for single-label classification."""
        return self.config.output_names

    @property
    def is_classification(self) -> bool:
        """Whether the values are probabilities."""
        return self.config.problem_type not in (None, "regression")

    @property
    def is_binary(self) -> bool:
        """Whether one label has the classes 0 and 1, so that one probability tells everything."""
        return self.config.label_name is not None and self.output_names == ["0", "1"]

    @property
    def in_domain(self) -> np.ndarray | None:
        """Whether a molecule is no newer than 19 of 20 of training were to the others.

        `(num_molecules,)`; None without a novelty.
        """
        trust: Any = self.config.trust
        return None if self.novelty is None else self.novelty <= trust["threshold"]

    def list_sets(self) -> dict[str, list[str | None]]:
        """Return the possible classes of each label as `"0 or 1"`, or `"none"`, None with an error.

        Empty without conformal sets.
        """
        if self.is_possible is None:
            return {}
        rows = [list_possible_classes(self.config, row) for row in self.is_possible]
        return {
            label: [
                None if error is not None else " or ".join(row[label]) or "none"
                for row, error in zip(rows, self.errors, strict=True)
            ]
            for label in self.config.label_columns
        }

    def to_columns(self) -> dict[str, list[Any]]:
        """Return table columns: `prediction_<label>` and `error`; None where there is no value.

        Single-label classification: with the classes 0 and 1, `prediction_<label>` is the
        probability of 1; with others it is the most probable class, followed by one column
        `probability_<label>_<class>` for each. An ensemble adds `spread_<label>`, or
        `spread_<label>_<class>` for several classes. Of atoms each cell is a list.

        With trust a regression has `lower_<label>` and `upper_<label>`, a classification calibrated
        `probability_...` and `set_<label>`; then follow `novelty`, `nearest_train`, `in_domain`
        and `warning`.
        """
        if self.values.dtype == object:
            known = [it for it in self.values if it is not None]
            atoms = np.concatenate(known or [np.empty((0, len(self.output_names)))])
            of_atoms = self._replace(values=atoms, errors=[None] * len(atoms)).to_columns()
            sizes = [None if it is None else len(it) for it in self.values]
            of_molecules = {name: group_cells(it, sizes) for name, it in of_atoms.items()}
            return {**of_molecules, ERROR_COLUMN: list(self.errors)}
        label, names = self.config.label_name, self.output_names
        values = list_columns(self.values)
        spreads, lower, upper, calibrated = (
            [] if block is None else list_columns(block)
            for block in (self.spread, self.lower, self.upper, self.probabilities)
        )
        columns: dict[str, list[Any]] = {}
        kind = "prediction"
        if self.is_binary:
            names, values = [str(label)], values[1:]
            spreads, calibrated = spreads[1:], calibrated[1:]
        elif label is not None:
            columns[f"prediction_{label}"] = [
                None if error is not None else names[int(np.argmax(row))]
                for row, error in zip(self.values, self.errors, strict=True)
            ]
            kind, names = "probability", [f"{label}_{name}" for name in names]
        blocks = {kind: values, "spread": spreads, "lower": lower, "upper": upper}
        # of several classes in place of what is not calibrated
        for prefix, block in {
            **blocks,
            "probability": calibrated or blocks.get("probability", []),
        }.items():
            columns |= {f"{prefix}_{name}": it for name, it in zip(names, block, strict=False)}
        return {**columns, **self._list_trust(), ERROR_COLUMN: list(self.errors)}

    def _list_trust(self) -> dict[str, list[Any]]:
        """Return the columns of what does not depend on the label, and of sets."""
        if self.novelty is None or self.warnings is None:
            return {}
        (novelty,) = list_columns(self.novelty[:, None])
        inside = np.asarray(self.in_domain).tolist()
        columns: dict[str, list[Any]] = {
            f"set_{label}": cells for label, cells in self.list_sets().items()
        }
        columns["novelty"] = novelty
        trust: Any = self.config.trust
        if trust["kind"] == "fingerprints":
            (columns["nearest_train"],) = list_columns(1 - self.novelty[:, None])
        columns["in_domain"] = [
            None if it is None else cell for it, cell in zip(novelty, inside, strict=True)
        ]
        return {**columns, WARNING_COLUMN: list(self.warnings)}


def group_cells(cells: Sequence[Any], sizes: Sequence[int | None]) -> list[list[Any] | None]:
    """Return the cells of atoms as one list per molecule, which has so many, `None` for `None`."""
    rest = iter(cells)
    return [None if size is None else list(islice(rest, size)) for size in sizes]


def describe_prediction_columns(
    config: RMatConfig, *, level: str = "molecule", trust: bool = False
) -> dict[str, ColumnKind]:
    """Return the columns that predictions add to a table, with what they hold."""
    empty = np.empty((0, len(config.output_names)))
    no_rows = Predictions(empty, [], config, spread=empty if config.gives_spread else None)
    if trust and config.trust is not None:
        names = (
            ("probabilities", "is_possible") if no_rows.is_classification else ("lower", "upper")
        )
        blocks: dict[str, Any] = dict.fromkeys(
            names if any(config.trust["num_rows"]) else (), empty
        )
        no_rows = no_rows._replace(**blocks, novelty=empty[:, 0], warnings=[])
    kinds: dict[str, ColumnKind] = dict.fromkeys(no_rows.to_columns(), "number")
    if config.label_name is not None and not no_rows.is_binary:
        kinds[f"prediction_{config.label_name}"] = "text"
    kinds |= {f"set_{label}": "text" for label in no_rows.list_sets()}
    known: dict[str, ColumnKind] = {"in_domain": "boolean", WARNING_COLUMN: "text"}
    kinds |= {name: kind for name, kind in known.items() if name in kinds}
    if level == "atom":
        kinds = {name: ATOM_KINDS[kind] for name, kind in kinds.items()}
    kinds[ERROR_COLUMN] = "text"
    return kinds


def count_failures(reasons: Iterable[str | None]) -> Counter[str]:
    """Count rows by reason, without what is of one molecule only; those that have none as ''."""
    return Counter(name_kind(reason) if reason else "" for reason in reasons)


def count_by_example(reasons: Iterable[str | None]) -> Counter[str]:
    """Count rows by reason as [`count_failures`], and show of each kind the first reason."""
    known = [reason for reason in reasons if reason]
    examples = {name_kind(reason): reason for reason in reversed(known)}
    return Counter({show_example(it, examples[it]): n for it, n in count_failures(known).items()})


def show_example(kind: str, reason: str) -> str:
    """Return a kind of reason as [`count_failures`] has it, with a real one if they differ."""
    return kind if kind == reason else f"e.g. {reason.splitlines()[0]}"


def name_kind(reason: str) -> str:
    """Return a reason without what is of one molecule only; the name of a label stays."""
    texts = re.compile(r"(?P<kept>\blabel '[^']*')|'[^']*'")
    general = texts.sub(lambda it: it["kept"] or "'…'", reason.split("\n")[0])
    general = re.sub(r"(while parsing|for input): .*", r"\1 …", general)
    return re.sub(r"\b\d+(\.\d+)?(e[-+]?\d+)?\b", "N", general)


def summarize(counts: Counter[str]) -> dict[str, Any]:
    """Return the numbers of rows and of failures, and the reasons, the most frequent first."""
    reasons = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    failures = {reason: number for reason, number in reasons if reason}
    num_failed = sum(failures.values())
    return {"num_rows": counts.total(), "num_failed": num_failed, "failures": failures}


def list_columns(values: np.ndarray) -> list[list[Any]]:
    """Return the columns of numbers as cells, `None` for NaN."""
    return [
        # the shortest number that is the same in float32, the precision of the model
        [None if np.isnan(value) else float(str(np.float32(value))) for value in column]
        for column in values.T
    ]
