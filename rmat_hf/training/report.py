"""The report of a finetuning run, `report.md`: what was read, how good the model is, and where not.

What it finds out without naming a molecule is the summary, which the model card and the screen have
too. `report.md` and its pictures stay with the files of rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rmat_hf.adapters import TRUST_MODULE
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.losses_rmat import compute_probabilities
from rmat_hf.model.trust_rmat import DEFAULT_COVERAGE
from rmat_hf.training.arguments import FinetuningArguments, name_source, name_split
from rmat_hf.training.estimates import (
    MEAN_OF_TRAIN,
    Scores,
    build_table,
    compute_errors,
    describe_scores,
    describe_verdict,
    judge_intervals,
    predict_mean,
    score_methods,
)
from rmat_hf.training.metrics import format_metric, list_metrics
from rmat_hf.training.plots import (
    MOST_SHOWN,
    compute_novelty,
    draw_calibration,
    draw_errors,
    draw_parity,
    draw_roc,
    save_drawing,
    save_figure,
)
from rmat_hf.training.trust import HeldOut, describe_trust

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
    "Intervals hold 95 % of bootstrap resamples of the rows; differences are of the same rows, "
    "half of their interval behind the ±."
)
ENDS = ("lower", "upper")
THIRDS = ("nearest third", "middle third", "most novel third")


@dataclass(frozen=True)
class FinetuningReport:
    """What a finetuning run found out, and its card tells.

    Metrics, labels and predictions, in the labels' units, are by part. Those of an ensemble's
    members have the shape `(num_rows, num_members, num_labels)`; `spreads` are of a kernel head,
    `held_out` the rows that the model, or a member, has not learned from.
    `smiles` and `rows`, numbers of the table, are of a model of molecules. `baseline_values` are
    predictions, or probabilities, by baseline and part; `baseline_settings` what each chose;
    `head_reason` says why this head learned; `intervals` are the ends of those of the test part.
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
    notes: list[str] = field(default_factory=list)
    smiles: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    baseline_values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    baseline_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    head_reason: str = "asked for"
    intervals: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def noun(self) -> str:
        """What a row is."""
        return f"{self.arguments.level}s"

    @property
    def unit(self) -> str:
        """The unit of all labels; empty if they differ or have none."""
        # labels that are learned as something else have none there
        units = set(self.config.label_units or [""] if self.config.label_transforms is None else "")
        return units.pop() if len(units) == 1 else ""

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
        found = {}
        for part, labels in self.labels.items():
            methods = {MODEL_NAME: self.values[part]}
            methods[MEAN_OF_TRAIN] = np.tile(mean, (len(labels), 1))
            methods |= {name: it[part] for name, it in self.baseline_values.items()}
            found[part] = score_methods(
                problem_type,
                {name: it[:, shown] for name, it in methods.items()},
                labels=labels[:, shown[: labels.shape[1]]],
                label_names=[names[idx] for idx in shown[: len(names)]],
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
        """Of the test molecules, from 0, like one of train, to 1; none for atoms."""
        smiles = self.smiles
        return compute_novelty(smiles["test"], smiles["train"]) if smiles else np.empty(0)


def describe_labels(config: RMatConfig) -> list[str]:
    """Return the name of every label, with its unit if it has one."""
    units = config.label_units or [""] * len(config.label_columns)
    return [
        f"{name} ({unit})" if unit else name
        for name, unit in zip(config.label_columns, units, strict=True)
    ]


def describe_learned(config: RMatConfig) -> list[str]:
    """Return the name of every label as it is learned, which metrics and plots are about."""
    names = describe_labels(config)
    transforms = config.label_transforms or ["none"] * len(names)
    return [
        name if transform == "none" else f"{transform} of {name}"
        for name, transform in zip(names, transforms, strict=True)
    ]


def describe_rows(
    parts: Mapping[str, np.ndarray],
    *,
    arguments: FinetuningArguments,
    num_dropped: int,
    class_names: Sequence[str] | None = None,
    is_public: bool = False,
) -> list[str]:
    """Return what was read, a line for each label and one for the parts.

    Args:
        parts (`Mapping[str, np.ndarray]`): Labels `(num_rows, num_labels)`, NaN where missing.
        arguments ([`FinetuningArguments`]): Of the run.
        num_dropped (`int`): Rows that cannot be used.
        class_names (`Sequence[str]`, *optional*): Of a single-label classification.
        is_public (`bool`, *optional*):
            Whether no single label is to be told: the smallest and the largest are.
    """
    labels = np.concatenate(list(parts.values()))
    units = arguments.label_units or [""] * len(arguments.label_columns)
    transforms = arguments.label_options.label_transforms or ["none"] * len(units)
    lines = [
        f"{name_source(arguments.dataset)}: {len(labels)} {arguments.level}s to use, "
        f"{num_dropped} rows dropped."
    ]
    columns = zip(arguments.label_columns, units, transforms, labels.T, strict=True)
    for name, unit, transform, column in columns:
        if transform != "none":
            name, unit = f"{transform} of {name}", ""
        known = column[~np.isnan(column)]
        if arguments.problem_type == "regression":
            summary = [known.mean(), known.std(), known.min(), known.max()]
            mean, std, low, high = map(format_metric, summary)
            text = f"mean {mean}, standard deviation {std}{f' {unit}' if unit else ''}"
            text += "" if is_public else f", from {low} to {high}"
        elif class_names is None:
            text = f"{np.mean(known):.0%} yes"
        else:
            counts = np.bincount(known.astype(np.int64), minlength=len(class_names))
            pairs = zip(class_names, counts, strict=True)
            text = ", ".join(f"{number} {it}" for it, number in pairs)
        lines.append(f"{name}: {len(known)} values, {text}.")
    if len(lines) > 1 + MOST_SHOWN:
        lines[1 + MOST_SHOWN :] = [f"And {len(lines) - 1 - MOST_SHOWN} more labels."]
    sizes = ", ".join(f"{len(it)} {part}" for part, it in parts.items())
    return [*lines, f"Parts by {name_split(arguments)} split: {sizes} {arguments.level}s."]


def describe_conclusion(report: FinetuningReport, *, is_short: bool = True) -> list[str]:
    """Return the verdict on the test part: beside the mean and all baselines, or the best one."""
    scores, baselines = report.scores["test"], list(report.baseline_values)
    metric = list_metrics(scores.problem_type)[0]
    if is_short and baselines:
        sign = 1 if metric.greater_is_better else -1
        values = {name: scores.metrics[name][metric.name] for name in baselines}
        known = {name: sign * it for name, it in values.items() if it is not None}
        baselines = [max(known, key=lambda name: known[name])] if known else []
    lines = describe_verdict(
        scores,
        MODEL_NAME,
        references=[MEAN_OF_TRAIN, *baselines],
        unit=report.unit if metric.name in ("rmse", "mae") else "",
        noun=f"test {report.noun}",
    )
    if not report.baseline_values and report.arguments.level == "molecule":
        lines.append("No classical model was fitted beside it: --with-baselines does.")
    held = judge_intervals(
        MODEL_NAME,
        report.intervals,
        labels=report.labels["test"],
        label_names=report.arguments.label_columns,
        coverage=DEFAULT_COVERAGE,
    )
    return [*lines, *_describe_held_out(report), *held]


def _describe_held_out(report: FinetuningReport) -> list[str]:
    """Return the error of all rows without their folds, and what intervals rest on."""
    metric, lines = list_metrics(report.config.problem_type or "regression")[0], []
    value = report.metrics.get("out_of_fold", {}).get(metric.name)
    if report.held_out is not None and value is not None:
        lines.append(
            f"{metric.title} of all {len(report.held_out.rows)} rows of train and valid, each "
            f"predicted without its fold: {format_metric(value)}."
        )
    text = describe_trust(report.config)
    return [*lines, f"{text[0].upper()}{text[1:]} (`{TRUST_MODULE}`)."] if text else lines


def describe_run(report: FinetuningReport) -> str:
    """Return the table of the test part and the verdict, for the screen."""
    table = describe_scores({"test": report.scores["test"]}, num_intervals=1)
    return "\n".join([table, "", *describe_conclusion(report)])


def describe_summary(report: FinetuningReport) -> str:
    """Return what the card tells: verdict and metrics, in Markdown, without a molecule."""
    verdict = "\n".join(f"- {line}" for line in describe_conclusion(report))
    return f"{verdict}\n\n{ABOUT_INTERVALS}\n\n{describe_scores(report.scores)}"


def describe_principles(report: FinetuningReport) -> str:
    """Return what is known under the headings of the OECD's principles, without a molecule."""
    config, arguments = report.config, report.arguments
    sections = {
        "A defined endpoint": describe_rows(
            report.labels,
            arguments=arguments,
            num_dropped=report.num_dropped,
            is_public=True,
            class_names=config.output_names if config.label_name is not None else None,
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
    lines = [f"Molecules of at most {report.max_atoms} heavy atoms, like those of train."]
    known = report.novelty[~np.isnan(report.novelty)]
    if len(known):
        low, middle, high = (
            format_metric(it, decimals=2) for it in np.quantile(known, [0, 0.5, 1])
        )
        lines.append(
            f"The novelty of the test molecules, 1 - the largest Tanimoto similarity (ECFP4) to "
            f"train, is {middle} in the middle, from {low} to {high}: of what is newer, nothing "
            "is known."
        )
    return lines


def _describe_measures(report: FinetuningReport) -> list[str]:
    metric = list_metrics(report.config.problem_type or "regression")[0]
    texts = [
        f"{part} {scores.estimate(MODEL_NAME, metric.name)} (n {scores.num_rows})"
        for part, scores in report.scores.items()
    ]
    unit = f" in {report.unit}" if report.unit and metric.name in ("rmse", "mae") else ""
    return [f"{metric.title}{unit} with intervals of 95 %: {', '.join(texts)}."]


def describe_thirds(
    novelty: np.ndarray,
    errors: np.ndarray,
    *,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    measured: np.ndarray | None = None,
) -> str:
    """Return a table, in Markdown, of the errors in thirds of the rows by novelty.

    Args:
        novelty, errors (`np.ndarray` of shape `(num_rows,)`): Absolute errors, NaN where missing.
        lower, upper, measured (`np.ndarray` of shape `(num_rows,)`, *optional*):
            Ends of intervals: how many of the measured values they hold, and how wide they are.
    """
    known = np.flatnonzero(~(np.isnan(novelty) | np.isnan(errors)))
    order = known[np.argsort(novelty[known], kind="stable")]
    rows = [["molecules", "n", "novelty", "mean absolute error"]]
    has_intervals = lower is not None and upper is not None and measured is not None
    rows[0] += ["inside the interval", "mean width"] if has_intervals else []
    for name, own in [
        *zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True),
        ("all", order),
    ]:
        span = "–".join(format_metric(it, decimals=2) for it in novelty[own[[0, -1]]])
        cells = [name, str(len(own)), span, format_metric(errors[own].mean())]
        if lower is not None and upper is not None and measured is not None:
            inside = (lower[own] <= measured[own]) & (measured[own] <= upper[own])
            cells += [f"{inside.mean():.0%}", format_metric((upper - lower)[own].mean())]
        rows.append(cells)
    return build_table(rows)


def save_run_report(folder: Path, report: FinetuningReport) -> list[str]:
    """Write `report.md` and its pictures; return those that are in the card too, in Markdown."""
    pictures = _save_pictures(folder, report)
    errors = compute_errors(
        report.config.problem_type, report.values["test"], labels=report.labels["test"]
    )
    sections = [
        f"# Report of the finetuning on {name_source(report.arguments.dataset)}",
        "It names molecules: `rmat push` sends it with `--share molecules` only.",
        "## Verdict",
        "\n".join(f"- {line}" for line in describe_conclusion(report, is_short=False)),
        "## Metrics",
        ABOUT_INTERVALS,
        describe_scores(report.scores),
        *pictures,
        *_describe_novelty(folder, report, errors=errors),
        *_describe_worst(folder, report, errors=errors),
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


def _describe_novelty(folder: Path, report: FinetuningReport, *, errors: np.ndarray) -> list[str]:
    """Draw and tabulate the errors against novelty, of labels of one unit or of all classes."""
    if len(report.novelty) < LEAST_ROWS_OF_NOVELTY:
        return []
    columns = dict(zip(describe_learned(report.config), errors.T, strict=True))
    if report.config.problem_type != "regression" and len(columns) > 1:
        number = np.maximum(np.sum(~np.isnan(errors), axis=1), 1)
        columns = {"all labels": np.nansum(errors, axis=1) / number}
    shown = dict(list(columns.items())[:MOST_SHOWN])
    draw = [partial(draw_errors, novelty=report.novelty, errors=it) for it in shown.values()]
    picture = save_figure(folder / NOVELTY_PLOT, draw, titles=list(shown))
    sections = ["## Errors by novelty", picture]
    for idx, (name, column) in enumerate(shown.items()):
        ends: dict[str, Any] = {}
        if report.intervals is not None and not np.isnan(report.intervals[0][:, idx]).any():
            ends = {name: it[:, idx] for name, it in zip(ENDS, report.intervals, strict=True)}
            ends["measured"] = report.labels["test"][:, idx]
        sections += [f"{name}, test molecules:", describe_thirds(report.novelty, column, **ends)]
    return sections


def _describe_worst(folder: Path, report: FinetuningReport, *, errors: np.ndarray) -> list[str]:
    """Draw and list the test molecules that the model is most wrong about."""
    if not report.smiles or np.isnan(errors).all():
        return []
    scale = 1.0
    if report.config.problem_type == "regression":
        scale = np.maximum(np.nanstd(report.labels["train"], axis=0), np.finfo(np.float32).tiny)
    scaled = np.nan_to_num(errors / scale, nan=-1.0)
    worst = [row for row in np.argsort(-scaled.max(axis=1), kind="stable") if scaled[row].max() > 0]
    rows = [["row", "molecule", "label", "measured", "predicted", "error", "novelty"]]
    smiles, legends = [], []
    for row in worst[:NUM_WORST]:
        idx = int(scaled[row].argmax())
        measured, predicted = _name_values(report, row, label_idx=idx)
        cells = [str(report.rows["test"][row]), f"`{report.smiles['test'][row]}`"]
        cells += [report.config.label_columns[idx], measured, predicted]
        rows.append([*cells, *map(format_metric, (errors[row, idx], report.novelty[row]))])
        smiles.append(report.smiles["test"][row])
        legends.append(f"row {cells[0]}: measured {measured},\npredicted {predicted}")
    if not smiles:
        return []
    picture = save_drawing(folder / WORST_DRAWING, smiles, legends=legends)
    return [
        "## The molecules it is most wrong about",
        "Of the test part.",
        picture,
        build_table(rows),
    ]


def _name_values(report: FinetuningReport, row: int, *, label_idx: int) -> tuple[str, str]:
    """Return what was measured and what is predicted of a test row, as a reader takes it."""
    config, values = report.config, report.values["test"][row]
    measured = report.labels["test"][row, label_idx]
    if config.label_name is None:
        return format_metric(measured), format_metric(values[label_idx])
    best = int(values.argmax())
    texts = config.output_names[int(measured)], config.output_names[best]
    return texts[0], f"{texts[1]} ({format_metric(values[best], decimals=2)})"
