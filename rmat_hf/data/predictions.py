"""Predictions and the table columns that hold them."""

from typing import Any, NamedTuple

import numpy as np

from rmat_hf.data.table_writer import ColumnKind
from rmat_hf.model.configuration_rmat import RMatConfig, RMatEnsembleConfig

ERROR_COLUMN = "error"


class Predictions(NamedTuple):
    """Predicted properties, one row per molecule in input order.

    Args:
        values (`np.ndarray` of shape `(num_molecules, num_outputs)`, float64):
            Regression: in the units of the training labels. Multi-label: probabilities. Single-
            label: one probability per class. NaN in the rows that have an error.
        errors (`list[str | None]` of length `num_molecules`): Why a row has no prediction.
        config (`RMatConfig`): Configuration of the model that predicted.
        spread (`np.ndarray` of shape `(num_molecules, num_outputs)`, *optional*):
            Standard deviation of the predictions of an ensemble's members, in the same units.
    """

    values: np.ndarray
    errors: list[str | None]
    config: RMatConfig
    spread: np.ndarray | None = None

    @property
    def output_names(self) -> list[str]:
        """Names of the columns of `values`: labels, or classes for single-label classification."""
        return self.config.output_names

    @property
    def is_binary(self) -> bool:
        """Whether one label has the classes 0 and 1, so that one probability tells everything."""
        return self.config.label_name is not None and self.output_names == ["0", "1"]

    def to_columns(self) -> dict[str, list[Any]]:
        """Return table columns: `prediction_<label>` and `error`; None where there is no value.

        Single-label classification: with the classes 0 and 1, `prediction_<label>` is the
        probability of 1; with others it is the most probable class, followed by one column
        `probability_<label>_<class>` for each. An ensemble adds `spread_<label>`, or
        `spread_<label>_<class>` for several classes.
        """
        label, names = self.config.label_name, self.output_names
        values = _list_columns(self.values)
        spreads = [] if self.spread is None else _list_columns(self.spread)
        columns: dict[str, list[Any]] = {}
        kind = "prediction"
        if self.is_binary:
            names, values, spreads = [str(label)], values[1:], spreads[1:]
        elif label is not None:
            columns[f"prediction_{label}"] = [
                None if error is not None else names[int(np.argmax(row))]
                for row, error in zip(self.values, self.errors, strict=True)
            ]
            kind, names = "probability", [f"{label}_{name}" for name in names]
        columns |= {f"{kind}_{name}": cells for name, cells in zip(names, values, strict=True)}
        columns |= {f"spread_{name}": cells for name, cells in zip(names, spreads, strict=False)}
        return {**columns, ERROR_COLUMN: list(self.errors)}


def describe_prediction_columns(config: RMatConfig) -> dict[str, ColumnKind]:
    """Return the columns that predictions add to a table, with what they hold."""
    empty = np.empty((0, len(config.output_names)))
    no_rows = Predictions(empty, [], config, spread=empty if is_ensemble(config) else None)
    kinds: dict[str, ColumnKind] = dict.fromkeys(no_rows.to_columns(), "number")
    if config.label_name is not None and not no_rows.is_binary:
        kinds[f"prediction_{config.label_name}"] = "text"
    kinds[ERROR_COLUMN] = "text"
    return kinds


def is_ensemble(config: RMatConfig) -> bool:
    """Return whether predictions of the model come with a spread."""
    return config.model_type == RMatEnsembleConfig.model_type


def _list_columns(values: np.ndarray) -> list[list[Any]]:
    return [
        # the shortest number that is the same in float32, the precision of the model
        [None if np.isnan(value) else float(str(np.float32(value))) for value in column]
        for column in values.T
    ]
