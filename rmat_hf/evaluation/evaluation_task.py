"""What an evaluation scores: the labels of the first model that a table has.

They are arranged alike for all methods, and scored as they were learned.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rmat_hf.data.labels import Bound, LabelError, is_missing, parse_label
from rmat_hf.data.measurements import (
    find_error_unit,
    learn_ends,
    learn_values,
    list_error_units,
    name_learned,
)
from rmat_hf.data.table_writer import Predictions
from rmat_hf.errors import UserError
from rmat_hf.evaluation.evaluation_report import Method
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.metrics import CLASSIFICATION

NO_LOGARITHM = "a prediction that is not positive has no logarithm"


@dataclass(frozen=True)
class EvaluationTask:
    """What all methods predict: a yes or no in a label with the classes 0 and 1 is one of several.

    `model_labels` are the names of the first model's labels, `label_names` those of the table,
    `places` their positions in the model.
    """

    problem_type: str
    model_labels: list[str]
    label_names: list[str]
    class_names: list[str] | None
    units: list[str]
    transforms: list[str]
    places: list[int]

    @classmethod
    def build(
        cls, config: RMatConfig, kind: str, *, columns: Mapping[int, str]
    ) -> "EvaluationTask":
        """Return the labels of a kind of a model, of those whose column is known by their place."""
        names = config.label_columns
        places = [it for it in columns if config.label_types is None or config.types[it] == kind]
        transforms = config.label_transforms or ["none"] * len(names)
        units = config.label_units or [""] * len(names)
        return cls(
            kind,
            [names[it] for it in places],
            [columns[it] for it in places],
            config.output_names if kind == "single_label_classification" else None,
            [units[it] for it in places],
            [transforms[it] for it in places],
            places,
        )

    @property
    def num_outputs(self) -> int:
        """How many numbers a method gives for a row."""
        return len(self.class_names or self.label_names)

    def parse(self, cell: Any, *, row: int, label_idx: int) -> float:
        """Return the label in a cell, a class as its index, NaN where missing."""
        name = self.label_names[label_idx]
        label = parse_label(
            None if pd.isna(cell) else cell, problem_type=self.problem_type, row=row, column=name
        )
        if isinstance(label, Bound):
            raise LabelError(f"label {name!r} is a bound, {cell}", row=row)
        if self.class_names is None or is_missing(label):
            return float(label)
        if label not in self.class_names:
            reason = f"label {name!r} is {label!r}, none of {', '.join(self.class_names)}"
            raise LabelError(reason, row=row)
        return float(self.class_names.index(str(label)))

    def learn(self, values: np.ndarray) -> np.ndarray:
        """Return values as the first model learned them, NaN for what it could not."""
        return learn_values(values, transforms=self.transforms, units=self.units)

    @property
    def learned_names(self) -> list[str]:
        """The labels as they are scored."""
        return [*map(name_learned, self.label_names, self.transforms)]

    def find_units(self) -> tuple[str, dict[str, str]]:
        """Return the unit of errors of all labels, and of each; nothing of classes."""
        if self.problem_type != "regression":
            return "", {}
        own = list_error_units(self.units, self.transforms)
        unit = find_error_unit(self.units, self.transforms)
        return unit, dict(zip(self.label_names, own, strict=True))

    def describe(self) -> list[str]:
        """Return what to know of the labels that are scored as something else."""
        names = [it for it in self.learned_names if it not in self.label_names]
        return [f"Scored as it was learned: {name}." for name in names]

    def arrange(self, found: Predictions, quantiles: np.ndarray | None) -> Method:
        """Return what a model predicts in the order of the task's outputs."""
        config, order = found.config, [1]  # of the classes 0 and 1
        if self.class_names is not None:
            order = [config.output_names.index(it) for it in self.class_names]
        elif config.label_name is None:
            own = config.label_columns
            order = self.places
            if {*self.model_labels} <= {*own}:
                order = [own.index(it) for it in self.model_labels]
        num_labels = len(config.output_names)
        columns = dict.fromkeys(("values", "lower", "upper", "probabilities"), order)
        # of labels of their own the classes 1 of all, then the classes 0
        columns["is_possible"] = [*order, *(num_labels + it for it in order)]
        if config.label_name is not None:
            columns["is_possible"] = [1, 0] if self.class_names is None else order
        blocks = {
            name: block[:, own]
            for name, own in columns.items()
            if (block := getattr(found, name)) is not None
        }
        given = blocks["values"]
        blocks["values"] = self.learn(given)
        if "lower" in blocks and np.isnan(blocks["lower"]).all():
            # classes among numbers have no intervals
            del blocks["lower"], blocks["upper"]
        if "lower" in blocks:
            blocks["lower"], blocks["upper"] = learn_ends(
                blocks["lower"], blocks["upper"], transforms=self.transforms, units=self.units
            )
        if found.novelty is not None:
            blocks["novelty"] = found.novelty[:, None]
        lost = np.flatnonzero((np.isfinite(given) & np.isnan(blocks["values"])).any(axis=1))
        reasons = dict.fromkeys(lost.tolist(), NO_LOGARITHM)
        reasons |= {row: it for row, it in enumerate(found.errors) if it is not None}
        # nor has a model that was fitted with too few rows, which knows its novelty alone
        if quantiles is not None:
            # nor are intervals of numbers those of their logarithms, narrower or wider
            own_transforms = config.label_transforms or ["none"] * num_labels
            is_same = [own_transforms[it] for it in order] == self.transforms
            quantiles = quantiles[:, order] if "lower" in blocks and is_same else None
        return Method(blocks.pop("values"), reasons, trust=blocks, quantiles=quantiles)


def _find_kind(config: RMatConfig) -> str:
    kind = config.problem_type or "regression"
    if kind == "single_label_classification" and config.output_names == ["0", "1"]:
        return CLASSIFICATION[0]
    return kind


def list_tasks(
    configs: Mapping[str, RMatConfig], label_columns: list[str], *, columns: Iterable[str]
) -> list[EvaluationTask]:
    """Return what is scored of the models on a table: their labels, of both kinds numbers first.

    Args:
        label_columns (`list[str]`):
            A column for each label of the first model, or the names of some of these labels; if
            none is named, the labels that are among `columns`.
    """
    config = next(iter(configs.values()))
    named = _find_columns(config, label_columns, known={*columns})
    kinds = [_find_kind(config)] + ([] if config.label_types is None else [CLASSIFICATION[0]])
    tasks = [EvaluationTask.build(config, it, columns=named) for it in kinds]
    tasks = [it for it in tasks if it.label_names]
    scored = {name for task in tasks for name in task.model_labels}
    for name, other in configs.items():
        is_same = len(other.label_columns) == len(config.label_columns)
        is_same |= scored <= {*other.label_columns}
        classes = tasks[0].class_names
        has_classes = classes is None or {*classes} == {*other.output_names}
        if _find_kind(other) != kinds[0] or not is_same or not has_classes:
            raise UserError(
                f"{name} predicts other things ({', '.join(other.output_names)}) than "
                f"{next(iter(configs))} ({', '.join(config.output_names)}). Evaluate it alone, or "
                "name the labels that both have with --label-columns."
            )
    return tasks


def _find_columns(config: RMatConfig, given: list[str], *, known: set[str]) -> dict[int, str]:
    """Return the columns of labels by the position of the label in the model."""
    names = dict(enumerate(config.label_columns))
    if len(given) == len(names):
        return dict(enumerate(given))
    if not {*given} <= {*names.values()}:
        raise UserError(
            f"The model has the labels {', '.join(names.values())}, and --label-columns names "
            f"{', '.join(given)}. Name some of these labels, or one column for each, in this order."
        )
    found = {place: it for place, it in names.items() if it in (given or known)}
    # what is said of a table without any label names the first one
    return found or names


def list_left_out(
    configs: Mapping[str, RMatConfig], tasks: Iterable[EvaluationTask], *, source: str
) -> list[str]:
    """Say which labels of the first model are not scored, as the table does not have them."""
    scored = {name for task in tasks for name in task.model_labels}
    lost = [it for it in next(iter(configs.values())).label_columns if it not in scored]
    names = ", ".join(map(repr, lost))
    return [f"{source} has no column {names}: not scored."] if lost else []
