"""The report of a finetuning run, `report.md`: what was read, how good the model is, and where not.

What it finds out without naming a molecule is the summary, which the model card and the screen have
too. `report.md` and its pictures stay with the files of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from rmat_hf.data.measurements import LOG_UNITS, describe_factor, list_error_units, name_learned
from rmat_hf.errors import say_count
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import ELEMENT_SYMBOLS
from rmat_hf.model.losses_rmat import compute_probabilities
from rmat_hf.model.trust_rmat import DEFAULT_COVERAGE
from rmat_hf.training.arguments import FinetuningArguments, name_source, name_split
from rmat_hf.training.estimates import (
    MEAN_OF_TRAIN,
    MOST_LABELS,
    Scores,
    average_known,
    average_scaled,
    build_table,
    compute_errors,
    describe_each,
    describe_scores,
    describe_verdict,
    find_inside,
    find_scales,
    judge_coverage,
    predict_mean,
    score_methods,
)
from rmat_hf.training.metrics import format_metric, list_metrics
from rmat_hf.training.plots import (
    MOST_SHOWN,
    draw_calibration,
    draw_errors,
    draw_parity,
    draw_roc,
    save_drawing,
    save_figure,
)
from rmat_hf.training.trust import HeldOut, compute_novelty, describe_trust

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT_FILE = "report.md"
PARITY_PLOT, CLASSES_PLOT = "parity.png", "roc_and_calibration.png"
NOVELTY_PLOT, WORST_DRAWING = "error_by_novelty.png", "worst_molecules.svg"
# Files of a finetuned folder that have molecules, labels or predictions, row by row.
ROW_FILES = (
    *("predictions.csv", "split.csv", "dropped_rows.csv"),
    *(REPORT_FILE, PARITY_PLOT, CLASSES_PLOT, NOVELTY_PLOT, WORST_DRAWING),
)
PARITY_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#9aa5b1", "s": 10, "alpha": 0.5},
    "test": {"color": "#d1495b", "s": 22, "alpha": 0.9},
}
MODEL_NAME = "R-MAT"
NUM_WORST = 8
# Fewer rows are not divided by novelty.
LEAST_ROWS_OF_NOVELTY = 9
ABOUT_INTERVALS = (
    "In brackets: 95 % of bootstrap resamples of the rows; differences are of the same rows."
)
ENDS = ("lower", "upper")
# Of the intervals of a regression, and of sets.
WIDTHS = {True: "mean width", False: "classes in the set, mean"}
THIRDS = ("nearest third", "middle third", "most novel third")


@dataclass(frozen=True)
class FinetuningReport:
    """What a finetuning run found out, and its card tells.

    Metrics, labels and predictions, in the labels' units, are by part. Those of an ensemble's
    members have the shape `(num_rows, num_members, num_labels)`; `spreads` are of a kernel head,
    `held_out` the rows that the model, or a member, has not learned from, `num_bounds` those of
    each label that are bounds and NaN in `labels`.
    `smiles`, `molecules`, which are canonical, and `rows`, numbers of the table, are of a model of
    molecules. `baseline_values` are predictions, or probabilities, by baseline and part;
    `baseline_settings` what each chose;
    `head_reason` says why this head learned; `trust` has the blocks of `RMatTrust` of test.
    """

    config: RMatConfig
    arguments: FinetuningArguments
    metrics: dict[str, dict[str, Any]]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    num_dropped: int
    max_atoms: int
    is_adapter: bool = False
    member_predictions: dict[str, np.ndarray] | None = None
    member_metrics: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    spreads: dict[str, np.ndarray] | None = None
    held_out: HeldOut | None = None
    num_bounds: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    smiles: dict[str, list[str]] = field(default_factory=dict)
    molecules: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    baseline_values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    baseline_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    head_reason: str = "asked for"
    trust: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        """What a row is: an atom, or a molecule if none has several."""
        return f"{name_row(self.arguments.level, *self.molecules.values())}s"

    @property
    def error_units(self) -> dict[str, str]:
        """The unit in which errors of each number are told."""
        if self.config.problem_type not in (None, "regression"):
            return {}
        names = self.config.label_columns
        units = self.config.label_units or [""] * len(names)
        own = list_error_units([units[idx] for idx in self.numbers], self.transforms)
        return dict(zip([names[idx] for idx in self.numbers], own, strict=True))

    @property
    def unit(self) -> str:
        """The unit of errors of all numbers; empty if they differ or have none."""
        found = {*self.error_units.values()}
        return found.pop() if len(found) == 1 else ""

    @property
    def transforms(self) -> list[str]:
        """What the numbers of a regression are learned as."""
        names = self.config.label_transforms or ["none"] * len(self.config.label_columns)
        return [names[idx] for idx in self.numbers]

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Predictions, or probabilities, `(num_rows, num_outputs)`, by part."""
        problem_type = self.config.problem_type
        return {
            part: compute_probabilities(torch.as_tensor(it).double(), problem_type).numpy()
            for part, it in self.predictions.items()
        }

    @property
    def numbers(self) -> list[int]:
        """The outputs that are scored together: of numbers and classes the numbers, else all."""
        of_classes = self.config.label_types is not None
        types = enumerate(self.config.types)
        return [idx for idx, it in types if it == "regression" or not of_classes]

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """The model beside the mean predictor and the baselines, by part, with intervals."""
        problem_type = self.config.problem_type or "regression"
        num_outputs = len(self.config.output_names)
        mean = predict_mean(problem_type, self.labels["train"], num_outputs=num_outputs)
        names, shown = self.arguments.label_columns, self.numbers
        found, scales = {}, None
        if problem_type == "regression" and len(shown) > 1 and not self.unit:
            scales = find_scales(self.config.label_std, self.labels["train"])[shown]
        for part, labels in self.labels.items():
            methods = {MODEL_NAME: self.values[part]}
            methods[MEAN_OF_TRAIN] = np.tile(mean, (len(labels), 1))
            methods |= {name: it[part] for name, it in self.baseline_values.items()}
            found[part] = score_methods(
                problem_type,
                {name: it[:, shown] for name, it in methods.items()},
                labels=labels[:, shown[: labels.shape[1]]],
                label_names=[names[idx] for idx in shown[: len(names)]],
                scales=scales,
                # what was learned by heart has no interval
                with_intervals=part != "train",
            )
        return found

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """The metrics of every baseline by part, and its `setting` by label."""
        return {
            name: {
                **{part: it.metrics[name] for part, it in self.scores.items()},
                "setting": self.baseline_settings[name],
            }
            for name in self.baseline_values
        }

    @cached_property
    def novelty(self) -> np.ndarray:
        """Of the test molecules, as `predict` tells it: from 0, like one that it knows, to 1."""
        if "novelty" in self.trust:
            return self.trust["novelty"][:, 0]
        smiles = self.smiles
        return compute_novelty(smiles["test"], smiles["train"]) if smiles else np.empty(0)

    @property
    def class_names(self) -> list[str] | None:
        """The classes of a single label."""
        return self.config.output_names if self.config.label_name is not None else None

    @property
    def is_fitted_on_valid(self) -> bool:
        """Whether the model, and baselines beside it, have learned from valid too."""
        return self.arguments.head != "network" or self.arguments.refit

    @property
    def held_part(self) -> str:
        """The rows of `held_out`, where there is a metric of these."""
        if self.arguments.refit:
            return "valid, before the model learned from them too"
        return "train and valid, each predicted without its fold"

    @property
    def learned_names(self) -> dict[str, str]:
        """The names of the labels, and those of what was learned, which metrics are about."""
        return dict(zip(self.config.label_columns, describe_learned(self.config), strict=True))

    @property
    def num_held(self) -> int:
        """How many rows of `held_part` are measured."""
        parts = ("valid",) if self.arguments.refit else ("train", "valid")
        return sum(self.scores[part].num_rows for part in parts)

    def tabulate_scores(self) -> str:
        """Return the metrics of all parts: of what was learned from only those of held-out rows."""
        shown = {}
        for part, scores in self.scores.items():
            name, methods = part, scores.metrics
            if part == "train" or (part == "valid" and self.is_fitted_on_valid):
                methods = {MODEL_NAME: methods[MODEL_NAME]}
                is_held = self.arguments.head != "network"
                name = f"{part}, each row without its fold" if is_held else part
                name += ", learned from" * (part == "train" and not is_held)
            shown[name] = replace(scores, metrics=methods)
        beside = describe_each(self.scores["test"], names=self.learned_names)
        return "\n\n".join([describe_scores(shown), *self._tabulate_labels(), *beside])

    def find_out_of_fold(self) -> float | None:
        """Return the first metric of `held_part`, of several labels as the mean of `scores`."""
        metrics, scales = self.metrics.get("out_of_fold", {}), self.scores["test"].scales
        metric = list_metrics(self.config.problem_type or "regression")[0]
        if scales is None or metric.greater_is_better or not metrics:
            return metrics.get(metric.name)
        return average_scaled(metrics, metric.name, scales=scales)

    def _tabulate_labels(self) -> list[str]:
        """Return a table of the test metrics of each label, if there are several."""
        if "test" not in self.metrics or "per_label" not in self.metrics["test"]:
            return []
        found, scores = self.metrics["test"]["per_label"], self.scores["test"]
        names = [*dict.fromkeys(name for of in found.values() for name in of)]
        known = dict(zip(found, (~np.isnan(self.labels["test"])).sum(axis=0), strict=True))
        rows = [["test, by label", "n", *names]]
        for label, metrics in [*found.items()][:MOST_LABELS]:
            cells = [
                str(scores.estimate(MODEL_NAME, it, label=label))
                if label in scores.num_known and it in metrics
                else format_metric(metrics.get(it))
                for it in names
            ]
            rows.append([self.learned_names[label], str(known[label]), *cells])
        more = len(found) - MOST_LABELS
        return [build_table(rows), *([f"Of {more} more labels: `metrics.json`."] * (more > 0))]


def describe_labels(config: RMatConfig) -> list[str]:
    """Return the name of every label, with its unit if it has one that the name does not tell."""
    units = config.label_units or [""] * len(config.label_columns)
    return [
        f"{name} ({unit})" if unit and not name.endswith((f"({unit})", f"[{unit}]")) else name
        for name, unit in zip(config.label_columns, units, strict=True)
    ]


def describe_learned(config: RMatConfig) -> list[str]:
    """Return the name of every label as it is learned, which metrics and plots are about."""
    names = describe_labels(config)
    transforms = config.label_transforms or ["none"] * len(names)
    return [
        name_learned(name, transform) for name, transform in zip(names, transforms, strict=True)
    ]


def describe_rows(
    parts: Mapping[str, np.ndarray],
    *,
    arguments: FinetuningArguments,
    num_dropped: int,
    class_names: Sequence[str] | None = None,
    is_public: bool = False,
    num_bounds: Sequence[int] = (),
    noun: str = "molecules",
    num_merged: int = 0,
) -> list[str]:
    """Return what was read, a line for each label and one for the parts.

    Args:
        parts (`Mapping[str, np.ndarray]`):
            Measured labels `(num_rows, num_labels)`, NaN where missing.
        num_bounds (`Sequence[int]`, *optional*): How many others of each label are bounds.
    """
    labels = np.concatenate(list(parts.values()))
    units = arguments.label_units or [""] * len(arguments.label_columns)
    transforms = arguments.label_options.label_transforms or ["none"] * len(units)
    merged = f"{say_count(num_merged, 'row')} merged into others, " if num_merged else ""
    lines = [
        f"{name_source(arguments.dataset)}: {say_count(len(labels), noun[:-1])} to use, {merged}"
        f"{say_count(num_dropped, 'row')} dropped."
    ]
    names = map(name_learned, arguments.label_columns, transforms)
    beside = num_bounds or [0] * len(units)
    columns = zip(names, list_error_units(units, transforms), beside, labels.T, strict=True)
    for name, unit, number, column in columns:
        known = column[~np.isnan(column)]
        if arguments.problem_type == "regression":
            mean = known.mean() if abs(known.mean()) > 1e-9 * known.std() else 0.0
            summary = [mean, known.std(), known.min(), known.max()]
            mean, std, low, high = map(format_metric, summary)
            text = f"mean {mean}, standard deviation {std}{f' {unit}' if unit else ''}"
            text += "" if is_public else f", from {low} to {high}"
        elif class_names is None:
            text = f"{np.mean(known):.0%} yes"
        else:
            counts = np.bincount(known.astype(np.int64), minlength=len(class_names))
            pairs = zip(class_names, counts, strict=True)
            text = ", ".join(f"{number} {it}" for it, number in pairs)
        bounds = f" and {say_count(number, 'bound')}" if number else ""
        lines.append(f"{name}: {len(known)} values{bounds}, {text}.")
    if len(lines) > 1 + MOST_SHOWN:
        lines[1 + MOST_SHOWN :] = [f"And {len(lines) - 1 - MOST_SHOWN} more labels."]
    sizes = ", ".join(f"{len(it)} {part}" for part, it in parts.items())
    return [*lines, f"Parts by {name_split(arguments)} split: {sizes} {noun}."]


def name_row(level: str, *molecules: Sequence[str]) -> str:
    """Return what a row is called: `row` where several are of one of the canonical SMILES."""
    names = [it for part in molecules for it in part]
    return "row" if level == "molecule" and len({*names}) < len(names) else level


def describe_conclusion(report: FinetuningReport, *, is_short: bool = True) -> list[str]:
    """Return the verdict on the test part: beside the mean and all baselines, or the best one."""
    scores, baselines = report.scores["test"], list(report.baseline_values)
    rivals = [MEAN_OF_TRAIN, *baselines]
    if is_short and baselines:
        baselines = [*filter(None, [scores.find_best(baselines)])]
    lines = describe_verdict(
        scores,
        MODEL_NAME,
        references=[MEAN_OF_TRAIN, *baselines],
        rivals=rivals,
        unit=report.unit,
        noun=f"test {report.noun}",
        names=report.learned_names,
        units=report.error_units,
    )
    if report.unit == LOG_UNITS:
        names = [describe_labels(report.config)[idx] for idx in report.numbers]
        error = scores.metrics[MODEL_NAME]["rmse"]
        lines[1:1] = describe_factor(error, label_names=names, transforms=report.transforms)
    if not report.baseline_values and report.arguments.level != "atom":
        lines.append("No classical model was fitted beside it: --with-baselines does.")
    held = judge_coverage(
        MODEL_NAME,
        report.trust,
        labels=report.labels["test"],
        label_names=report.arguments.label_columns,
        class_names=report.class_names,
        coverage=DEFAULT_COVERAGE,
        noun=report.noun,
    )
    return [*lines, *_describe_held_out(report), *held]


def _describe_held_out(report: FinetuningReport) -> list[str]:
    """Return the error of all rows without their folds, and what intervals rest on."""
    metric, lines = list_metrics(report.config.problem_type or "regression")[0], []
    value = report.find_out_of_fold()
    if report.held_out is not None and value is not None:
        num_bounds = len(report.held_out.rows) - report.num_held
        rows = f"all {report.num_held} rows of {report.held_part}"
        rows += f" ({say_count(num_bounds, 'bound')} beside)" if num_bounds > 0 else ""
        unit = f" {report.unit}" if report.unit else ""
        title = report.scores["test"].name_mean(metric.title, metric.name)
        lines.append(f"{title} of {rows}: {format_metric(value)}{unit}.")
    return [*lines, *describe_trust(report.config)]


def describe_run(report: FinetuningReport) -> str:
    """Return the table of the test part and the verdict, for the screen."""
    table = describe_scores({"test": report.scores["test"]}, num_intervals=1)
    lines = [table, "", *describe_conclusion(report)]
    lines += [f"{note[0].upper()}{note[1:]}." for note in report.notes]
    if report.num_dropped:
        lines.append(f"{say_count(report.num_dropped, 'row')} dropped: dropped_rows.csv says why.")
    return "\n".join(lines)


def describe_summary(report: FinetuningReport) -> str:
    """Return what the card tells: verdict and metrics, in Markdown, without a molecule."""
    verdict = "\n".join(f"- {line}" for line in describe_conclusion(report))
    return f"{verdict}\n\n{ABOUT_INTERVALS}\n\n{report.tabulate_scores()}"


def describe_principles(report: FinetuningReport) -> str:
    """Return what is known under the headings of the OECD's principles, without a molecule."""
    config, arguments = report.config, report.arguments
    sections = {
        "A defined endpoint": describe_rows(
            report.labels,
            arguments=arguments,
            num_dropped=report.num_dropped,
            is_public=True,
            class_names=report.class_names,
            num_bounds=report.num_bounds,
            noun=report.noun,
        ),
        "An unambiguous algorithm": [
            f"{config.architectures[0] if config.architectures else 'R-MAT'}, started from "
            f"{name_source(arguments.model)}, seed {arguments.seed}. "
            "`rmat finetune` with the same table and arguments (`finetuning_arguments.json`) "
            "repeats it."
        ],
        "A defined domain of applicability": _describe_domain(report),
        "Measures of goodness of fit, robustness and predictivity": _describe_measures(report),
        "A mechanistic interpretation, if possible": [
            "None is claimed: the model learned from the labels alone."
        ],
    }
    return "\n".join(
        f"{number}. **{title}.** {' '.join(lines)}"
        for number, (title, lines) in enumerate(sections.items(), start=1)
    )


def _describe_domain(report: FinetuningReport) -> list[str]:
    trust: Any = report.config.trust
    lines = [f"Molecules of at most {report.max_atoms} heavy atoms."]
    if trust is not None:
        elements = " ".join([*ELEMENT_SYMBOLS, "others"][it] for it in trust["elements"])
        lines = [
            f"Molecules like those it has learned from, which have {elements} and at most "
            f"{trust['max_atoms']} heavy atoms."
        ]
    known = report.novelty[~np.isnan(report.novelty)]
    if len(known):
        low, middle, high = (
            format_metric(it, decimals=2) for it in np.quantile(known, [0, 0.5, 1])
        )
        measure = "1 - the largest Tanimoto similarity (environments of two bonds)"
        if trust is not None and trust["kind"] != "fingerprints":
            measure = "distance to the nearest center of the model's vectors"
        lines.append(
            f"The novelty of the test {report.noun}, {measure} to them, is {middle} in the middle, "
            f"from {low} to {high}; beyond novelty {high} the error was not tested."
        )
    if trust is not None and len(known):
        inside = int(np.sum(known <= trust["threshold"]))
        lines.append(
            f"The domain (`in_domain`) ends at {format_metric(trust['threshold'], decimals=2)}; "
            f"{inside} of {len(known)} test {report.noun} are inside."
        )
    return lines


def _describe_measures(report: FinetuningReport) -> list[str]:
    metric = list_metrics(report.config.problem_type or "regression")[0]
    found = {part: it.estimate(MODEL_NAME, metric.name) for part, it in report.scores.items()}
    texts = {part: f"{it} (n {report.scores[part].num_rows})" for part, it in found.items()}
    unit = f" in {report.unit}" if report.unit else ""
    value = report.find_out_of_fold()
    held = f"valid {texts['valid']}"
    if value is not None and report.held_out is not None:
        held = f"{report.held_part}, {format_metric(value)} (n {report.num_held})"
    fit, notes = f"goodness of fit: train {texts['train']}; robustness", []
    if report.arguments.head != "network":
        fit = "goodness of fit and robustness"
        notes = [
            f"The fit is measured on held-out rows: a {report.arguments.head} head repeats those "
            "that it has learned from, and its error on them says nothing."
        ]
    title = report.scores["test"].name_mean(metric.title, metric.name)
    return [f"{title}{unit}, {fit}: {held}; predictivity: test {texts['test']}.", *notes]


class ErrorsOfLabel(NamedTuple):
    """By molecule, `(num_rows,)`, NaN where missing: what is said of errors by novelty.

    `inside` and `width` are of intervals or sets: do they hold the measured value, and how wide
    are they, which is called `width_name`?
    """

    novelty: np.ndarray
    errors: np.ndarray
    inside: np.ndarray | None = None
    width: np.ndarray | None = None
    width_name: str = WIDTHS[True]


def describe_thirds(of_label: ErrorsOfLabel) -> str:
    """Return a table, in Markdown, of the errors in thirds of the rows by novelty."""
    novelty, errors, inside, width, width_name = of_label
    known = np.flatnonzero(~(np.isnan(novelty) | np.isnan(errors)))
    order = known[np.argsort(novelty[known], kind="stable")]
    rows = [["molecules", "n", "novelty", "mean absolute error"]]
    has_held = inside is not None and width is not None and not np.isnan(inside[order]).all()
    rows[0] += ["measured is inside", width_name] if has_held else []
    thirds = zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True)
    for name, own in [*thirds, ("all", order)]:
        span = "–".join(format_metric(it, decimals=2) for it in novelty[own[[0, -1]]])
        cells = [name, str(len(own)), span, format_metric(errors[own].mean())]
        if inside is not None and width is not None and has_held:
            cells += [f"{np.nanmean(inside[own]):.0%}", _average_width(width[own])]
        rows.append(cells)
    return build_table(rows)


def _average_width(width: np.ndarray) -> str:
    """Return the mean, with how many are open beside it, as those whose lower end has no log."""
    closed, num_open = width[np.isfinite(width)], int(np.isinf(width).sum())
    mean = format_metric(closed.mean() if len(closed) else None)
    return f"{mean} ({num_open} open)" if num_open else mean


def describe_novelty(
    folder: Path, labels: Mapping[str, ErrorsOfLabel], *, has_one_scale: bool = False
) -> list[str]:
    """Draw and tabulate errors against novelty; nothing of few rows.

    With one scale panels can be compared: of models, not of labels with units of their own.
    """
    known = {name: ~np.isnan(it.novelty) & ~np.isnan(it.errors) for name, it in labels.items()}
    names = [name for name, it in known.items() if it.sum() >= LEAST_ROWS_OF_NOVELTY][:MOST_SHOWN]
    if not names:
        return []
    top = max(np.nanmax(labels[it].errors) for it in names) if has_one_scale else None
    draw = [
        partial(draw_errors, novelty=labels[it].novelty, errors=labels[it].errors, top=top)
        for it in names
    ]
    tables = [text for it in names for text in (f"{it}:", describe_thirds(labels[it]))]
    picture = save_figure(folder / NOVELTY_PLOT, draw, titles=names)
    return ["## Errors by novelty", picture, *tables]


def describe_worst(
    folder: Path,
    *,
    title: str,
    molecules: Mapping[str, Sequence[str]],
    values: np.ndarray,
    labels: np.ndarray,
    errors: np.ndarray,
    names: tuple[Sequence[str], Sequence[str] | None],
    trust: Mapping[str, np.ndarray],
) -> list[str]:
    """Draw and list the molecules with the largest errors, in units of the labels' deviation.

    Args:
        values, labels, errors (`np.ndarray`): Of a model, `(num_rows, num_labels or num_outputs)`.
    """
    label_names, class_names = names
    scale = np.ones(labels.shape[1])
    if "lower" in trust or (class_names is None and len(label_names) > 1):
        # a label of which there is one value, or none, has no deviation
        columns = [column[~np.isnan(column)] for column in labels.T]
        scale = np.array([(it.std() if len(it) else 0.0) or 1.0 for it in columns])
    scaled = np.nan_to_num(errors / scale, nan=-1.0)
    worst = [row for row in np.argsort(-scaled.max(axis=1), kind="stable") if scaled[row].max() > 0]
    rows = [["row", "molecule", "label", "measured", "predicted", "error"]]
    rows[0] += ["interval"] * ("lower" in trust) + ["novelty"] * ("novelty" in trust)
    smiles, legends = [], []
    for row in worst[:NUM_WORST]:
        idx = int(scaled[row].argmax())
        known = [str(molecules[it][row]) for it in ("row", "smiles")]
        measured = format_metric(labels[row, idx])
        if class_names is None:
            predicted = format_metric(values[row, idx])
        else:
            measured, best = class_names[int(labels[row, idx])], int(values[row].argmax())
            predicted = f"{class_names[best]} ({format_metric(values[row, best], decimals=2)})"
        cells = [known[0], f"`{known[1]}`", label_names[idx], measured, predicted]
        cells.append(format_metric(errors[row, idx]))
        if "lower" in trust:
            cells.append(" to ".join(format_metric(trust[it][row, idx]) for it in ENDS))
        cells += [f"{it:.2f}" for it in trust["novelty"][row]] if "novelty" in trust else []
        rows.append(cells)
        smiles.append(known[1])
        legends.append(f"row {known[0]}: measured {measured},\npredicted {predicted}")
    if not smiles:
        return []
    return [title, save_drawing(folder / WORST_DRAWING, smiles, legends=legends), build_table(rows)]


def save_run_report(folder: Path, report: FinetuningReport) -> list[str]:
    """Write `report.md` and its pictures; return those that are in the card too, in Markdown."""
    pictures = _save_pictures(folder, report)
    errors = compute_errors(
        report.config.problem_type, report.values["test"], labels=report.labels["test"]
    )
    worst = []
    if report.smiles and not np.isnan(errors).all():
        worst = describe_worst(
            folder,
            title="## The test molecules it is most wrong about",
            molecules={"row": list(map(str, report.rows["test"])), "smiles": report.smiles["test"]},
            values=report.values["test"],
            labels=report.labels["test"],
            errors=errors,
            names=(describe_learned(report.config), report.class_names),
            trust={**report.trust, "novelty": report.novelty[:, None]},
        )
    sections = [
        f"# Report of the finetuning on {name_source(report.arguments.dataset)}",
        "It names molecules: `rmat push` sends it with `--share molecules` only.",
        *["\n".join(f"- {note}" for note in report.notes)] * bool(report.notes),
        "## Verdict",
        "\n".join(f"- {line}" for line in describe_conclusion(report, is_short=False)),
        "## Metrics",
        ABOUT_INTERVALS,
        report.tabulate_scores(),
        *pictures,
        *describe_novelty(folder, _list_errors(report, errors)),
        *worst,
        "## By the OECD principles",
        describe_principles(report),
    ]
    (folder / REPORT_FILE).write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    return pictures


def _save_pictures(folder: Path, report: FinetuningReport) -> list[str]:
    """Draw what belongs to the problem type."""
    config, values = report.config, report.values
    if (config.problem_type or "regression") == "regression":
        draw = [
            partial(_draw_parity, report=report, label_idx=idx)
            for idx in report.numbers[:MOST_SHOWN]
        ]
        return [save_figure(folder / PARITY_PLOT, draw)]
    curves, labels = {}, report.labels["test"]
    for idx, name in enumerate(config.output_names[:MOST_SHOWN]):
        # CODEPATH: one label with classes, or a yes or no for each of several labels.
        column = labels[:, 0] if config.label_name is not None else labels[:, idx]
        known = ~np.isnan(column)
        is_yes = column[known] == (idx if config.label_name is not None else 1)
        if is_yes.any() and not is_yes.all():
            curves[name] = (is_yes, values["test"][known, idx])
    if config.label_name is not None and config.output_names == ["0", "1"]:
        curves.pop("0", None)
    if not curves:
        return []
    return [
        save_figure(
            folder / CLASSES_PLOT,
            [partial(draw_roc, curves=curves), partial(draw_calibration, curves=curves)],
        )
    ]


def _draw_parity(axes: "Axes", *, report: FinetuningReport, label_idx: int) -> None:
    """Draw predicted against measured values of train and test."""
    name, series = describe_learned(report.config)[label_idx], []
    for part, style in PARITY_STYLES.items():
        # one label has its metrics at the top
        metrics = report.metrics[part]
        metrics = metrics.get("per_label", {}).get(report.config.label_columns[label_idx], metrics)
        legend = f"{part}: RMSE {format_metric(metrics['rmse'])}, R² {format_metric(metrics['r2'])}"
        pair = (report.labels[part][:, label_idx], report.predictions[part][:, label_idx])
        series.append((*pair, {**style, "label": legend}))
    draw_parity(axes, series)
    axes.set(xlabel=f"measured {name}", ylabel=f"predicted {name}")


def _list_errors(report: FinetuningReport, errors: np.ndarray) -> dict[str, ErrorsOfLabel]:
    """Return the errors of test by label, or of all labels with classes together."""
    if not len(report.novelty):
        return {}
    found = find_inside(report.trust, report.labels["test"], class_names=report.class_names)
    blocks = [errors, *(found or ())]
    names = describe_learned(report.config)
    if report.config.problem_type != "regression" and len(names) > 1:
        blocks, names = [average_known(it)[:, None] for it in blocks], ["all labels"]
    width_name = WIDTHS[report.config.problem_type == "regression"]
    return {
        f"{name}, test {report.noun}": ErrorsOfLabel(report.novelty, *columns)._replace(
            width_name=width_name
        )
        for name, *columns in zip(names, *(it.T for it in blocks), strict=True)
    }
