"""Objective `assays`: the labels that a corpus carries, of which a molecule has a few."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from rmat_hf.data.assay_labels import LABEL_FIELDS
from rmat_hf.errors import UserError
from rmat_hf.model.losses_rmat import ASSAY_LABEL_KINDS, RMatAssayLoss
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.objective import (
    NO_COLUMNS,
    Objective,
    ObjectiveBatch,
    round_floats,
)

# Channels between the vector and thousands of assays.
HEAD_RANK = 128
_CLASS, _VALUE = (ASSAY_LABEL_KINDS.index(kind) for kind in ("class", "="))


class AssayObjective(Objective):
    """Classes and values of assays, bounds of values included; an assay may have both.

    Every assay has the same part in the loss, see [`RMatAssayLoss`]. Values are standardized.

    Args:
        state (`dict[str, Any]`):
            `classes`, the names of assays with classes, of the first outputs, and `values`, of
            those with values mean and standard deviation.
    """

    head = "assay"
    state_key = "assays"
    columns = tuple(LABEL_FIELDS.names)

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(state)
        keys = [(name, True) for name in state["classes"]]
        keys += [(name, False) for name in state["values"]]
        self._outputs = {key: idx for idx, key in enumerate(keys)}
        self._num_classes = len(state["classes"])
        scales = [[0.0, 1.0]] * self._num_classes + [*state["values"].values()]
        self._means, self._stds = np.array(scales, dtype=np.float64).reshape(-1, 2).T

    @classmethod
    def fit(
        cls,
        sample: Sequence[bytes],
        *,
        processor: RMatProcessor,
        arguments: Any,
        columns: Mapping[str, Sequence[Any]] = NO_COLUMNS,
    ) -> "AssayObjective":
        """Return the objective of the assays with enough labels that are not all the same."""
        labels = pd.DataFrame(
            {name: [it for row in columns[name] for it in row] for name in cls.columns},
            columns=["label_assays", "label_kinds", "label_values"],
        )
        is_class = labels["label_kinds"] == "class"
        is_known = is_class | (labels["label_kinds"] == "=")
        groups = labels[is_known].groupby(["label_assays", is_class])["label_values"]
        scales = groups.agg(["mean", "size", lambda values: values.std(ddof=0)])
        scales.columns = ["mean", "number", "std"]
        kept = scales[(scales["number"] >= arguments.min_assay_labels) & (scales["std"] > 0)]
        if kept.empty:
            raise UserError(
                f"No assay of the corpus has {arguments.min_assay_labels} labels that differ. "
                "Featurize it with --labels, or lower --min-assay-labels."
            )
        classes: list[str] = []
        values: dict[str, list[float]] = {}
        for (name, of_classes), scale in kept.iterrows():
            if of_classes:
                classes.append(name)
            else:
                values[name] = round_floats([scale["mean"], scale["std"]])
        return cls({"classes": classes, "values": values})

    def describe_head(self) -> dict[str, str | int]:
        """Return a head of the molecule of low rank."""
        size = len(self._outputs)
        return {"level": "molecule", "size": size, "loss": "assays", "rank": HEAD_RANK}

    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return values, NaN where unknown, and kinds, as [`RMatAssayLoss`] takes them."""
        size = len(self._outputs)
        labels = np.full((len(batch.is_asked), 2, size), np.nan, dtype=np.float32)
        for row in np.flatnonzero(batch.is_asked).tolist():
            cells = (batch.columns[name][row] for name in self.columns)
            for assay, kind, value in zip(*cells, strict=True):
                output = self._outputs.get((assay, kind == "class"))
                if output is not None:
                    labels[row, :, output] = value, ASSAY_LABEL_KINDS.index(kind)
        labels[:, 0] = (labels[:, 0] - self._means) / self._stds
        return labels.reshape(-1, 2 * size), {}

    def compute_sums(self, logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
        """Return rows for labels, losses, exact values, their sum, squares and errors, by assay."""
        outputs, given = logits.double(), labels.double()
        values, kinds = given.chunk(2, dim=-1)
        is_exact = kinds == _VALUE
        parts = (is_exact.double(), values, values**2, (outputs - values) ** 2)
        exact = torch.stack([part.masked_fill(~is_exact, 0.0).sum(0) for part in parts])
        return torch.cat([RMatAssayLoss().compute_sums(outputs, given).double(), exact]).cpu()

    def compute_metrics(self, sums: torch.Tensor) -> dict[str, Any]:
        """Return the mean loss of all assays, of classes and of values, and R² of values."""
        numbers, losses, exact, values, squares, errors = sums
        if numbers.sum() == 0:
            return {}
        means = losses / numbers
        is_class = torch.arange(len(numbers)) < self._num_classes
        has_labels = numbers > 0
        metrics: dict[str, Any] = {"assay_loss": float(means[has_labels].mean())}
        for name, chosen in (("class", is_class), ("value", ~is_class)):
            if (has_labels & chosen).any():
                metrics[f"assay_{name}_error"] = float(means[has_labels & chosen].mean())
        # of a few molecules held out, an assay alone has no meaningful R²
        variance = (squares - values**2 / exact.clamp(min=1)).sum()
        if variance > 0:
            metrics["assay_value_r2"] = float(1 - errors.sum() / variance)
        metrics["num_assays"] = int(has_labels.sum())
        metrics["num_assay_labels"] = int(numbers.sum())
        return metrics
