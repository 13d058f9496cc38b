"""The model card of a finetuned model: what it predicts, how well, and beside what."""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.arguments import FinetuningArguments, name_source, name_split
from rmat_hf.training.metrics import format_metric, list_metrics

logger = logging.getLogger(__name__)

PARITY_PLOT = "parity.png"
PARITY_STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": "#9aa5b1", "s": 10, "alpha": 0.5},
    "test": {"color": "#d1495b", "s": 22, "alpha": 0.9},
}
CARD_FILE = "README.md"
TAGS = ["rmat", "chemistry", "molecules"]
# What the Hub calls a license that nobody stated.
UNKNOWN_LICENSE = "unknown"

PROBLEM_NAMES = {
    "regression": "regression",
    "multi_label_classification": "classification, one probability per label",
    "single_label_classification": "classification, one class per molecule",
}


def build_card_metadata(
    *, tags: Sequence[str] = (), license_name: str | None = None, **fields: Any
) -> ModelCardData:
    """Return the metadata block of a card, with other `fields` of `ModelCardData`."""
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="graph-ml",
        license=license_name or UNKNOWN_LICENSE,
        tags=[*TAGS, *tags],
        **fields,
    )


def describe_labels(config: RMatConfig) -> list[str]:
    """Return the name of every label, with its unit if it has one."""
    units = config.label_units or [""] * len(config.label_columns)
    return [
        f"{name} ({unit})" if unit else name
        for name, unit in zip(config.label_columns, units, strict=True)
    ]


def describe_limits(max_atoms: int) -> str:
    """Return the limits of every R-MAT model, with the processor's `max_atoms`."""
    return (
        "- Heavy atoms only, no stereo feature: enantiomers differ only through the conformer.\n"
        f"- Molecules with more heavy atoms than the processor's `max_atoms` (here {max_atoms}) "
        "are refused."
    )


@dataclass(frozen=True)
class FinetuningReport:
    """What a finetuning run found out, and its card tells.

    Args:
        config (`RMatConfig`): Configuration of the finetuned model.
        arguments (`FinetuningArguments`): Of the run, with what a search has chosen.
        metrics (`dict`): Metrics of train, valid and test.
        baselines (`dict`): The same for every baseline, possibly empty.
        labels (`dict[str, np.ndarray]`): Labels of every part, `(num_rows, num_labels)`.
        predictions (`dict[str, np.ndarray]`): Model output of every part, in the labels' units.
        num_dropped (`int`): Rows of the data set that were not used.
        max_atoms (`int`): Largest number of heavy atoms that the processor accepts.
        member_predictions (`dict[str, np.ndarray]`, *optional*):
            Output of an ensemble's members, `(num_rows, num_members, num_labels)`.
        member_metrics (`list[dict]`): Metrics of each of them alone; empty for a single model.
    """

    config: RMatConfig
    arguments: FinetuningArguments
    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    num_dropped: int
    max_atoms: int
    member_predictions: dict[str, np.ndarray] | None = None
    member_metrics: list[dict[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def problem_type(self) -> str:
        """Problem type of the model."""
        return str(self.config.problem_type)


def save_model_card(folder: Path, report: FinetuningReport) -> None:
    """Write `README.md` and, for regression, the parity plot into a model folder.

    The plot needs matplotlib (`pip install rmat-hf[viz]`); a card without one says so.
    """
    is_regression = report.problem_type == "regression"
    has_plot = is_regression and save_parity_plot(folder / PARITY_PLOT, report)
    ModelCard(_build_card_text(report, has_plot=has_plot)).save(folder / CARD_FILE)


def save_parity_plot(path: Path, report: FinetuningReport) -> bool:
    """Plot predicted against measured values of train and test, one panel per label.

    Returns False if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No parity plot: matplotlib is missing. Run: pip install rmat-hf[viz]")
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = describe_labels(report.config)
    figure = Figure(figsize=(4.8 * len(labels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for idx, (axes, name) in enumerate(zip(panels, labels, strict=True)):
        shown = []
        for part, style in PARITY_STYLES.items():
            measured, predicted = report.labels[part][:, idx], report.predictions[part][:, idx]
            # one label has its metrics at the top
            metrics = report.metrics[part]
            metrics = metrics.get("per_label", {}).get(report.config.label_columns[idx], metrics)
            legend = f"{part}: RMSE {_format(metrics['rmse'])}, R² {_format(metrics['r2'])}"
            axes.scatter(measured, predicted, linewidths=0, label=legend, **style)
            shown += [measured[~np.isnan(measured)], predicted]
        low, high = np.min(np.concatenate(shown)), np.max(np.concatenate(shown))
        margin = 0.04 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color="#333333", linewidth=0.8, zorder=0)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set(xlabel=f"measured {name}", ylabel=f"predicted {name}")
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    figure.savefig(path, dpi=150)
    return True


def _build_card_text(report: FinetuningReport, *, has_plot: bool) -> str:
    arguments, names = report.arguments, describe_labels(report.config)
    dataset, base_model = name_source(arguments.dataset), name_source(arguments.model)
    split = name_split(arguments)
    results = [
        EvalResult(
            task_type="graph-ml",
            task_name="molecule property prediction",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=f"test ({split} split)",
            metric_type=metric.name,
            metric_value=float(format_metric(value)),
        )
        for metric in list_metrics(report.problem_type)
        if (value := report.metrics["test"][metric.name]) is not None
    ]
    data = build_card_metadata(
        tags=["molecule-property-prediction"],
        license_name=arguments.license,
        # the metadata of a card link to what they name
        datasets=dataset if "/" in dataset else None,
        base_model=base_model if "/" in base_model else None,
        model_name=f"R-MAT {', '.join(report.config.label_columns)}",
        eval_results=results or None,
    )
    parts = report.metrics
    sizes = ", ".join(f"{len(report.labels[part])} {part}" for part in parts)
    sections = [
        f"---\n{data.to_yaml()}\n---",
        f"# R-MAT for {', '.join(names)}",
        "A Relative Molecule Attention Transformer (arXiv 2110.05841), finetuned with rmat-hf.",
        f"- predicts: {', '.join(names)} ({PROBLEM_NAMES[report.problem_type]})\n"
        f"- data: {dataset}; {sizes} molecules, {split} split; "
        f"{report.num_dropped} rows dropped (`dropped_rows.csv`)\n"
        f"- started from: {base_model}\n{_describe_ensemble(report)}"
        "- chosen by the validation metric; the test part was scored once\n"
        "- every value: `metrics.json`, `predictions.csv`, `split.csv`",
        "## Use",
        "```python\nfrom transformers import pipeline\n"
        'pipeline(model="path/to/this/folder", trust_remote_code=True)(["CCO", "c1ccccc1"])\n```',
        "or `rmat predict --model path/to/this/folder --smiles CCO c1ccccc1 "
        "--output predictions.csv`. On the Hub, its id takes the place of the path.",
        "## Metrics",
        _build_metrics_table(report),
    ]
    if has_plot:
        sections.append(f"![Predicted against measured values]({PARITY_PLOT})")
    elif report.problem_type == "regression":
        sections.append("(No parity plot: matplotlib was not installed.)")
    sections += [
        "## Limits",
        f"{describe_limits(report.max_atoms)}\n"
        "- Trust it for molecules like those in the training table; metrics of a random split "
        "are optimistic for new chemical series.\n"
        "- Compare metrics only with those of the same kind of split: `scaffold` and "
        "`scaffold_balanced`, for example, are two.",
    ]
    return "\n\n".join(sections) + "\n"


def _describe_ensemble(report: FinetuningReport) -> str:
    """Return a line about the members and what one of them alone is worth; empty for one model."""
    if not report.member_metrics:
        return ""
    metric = list_metrics(report.problem_type)[0].name
    values = [metrics["test"][metric] for metrics in report.member_metrics]
    known = [value for value in values if value is not None]
    alone = ""
    if known:
        mean, deviation = _format(float(np.mean(known))), _format(float(np.std(known)))
        alone = f"; one alone has a test {metric} of {mean} ± {deviation}"
    folds = ""
    if report.arguments.member_folds:
        folds = (
            "- each member held out another fold of train and valid; `valid` is out of fold: every "
            "row is predicted by the one member that did not learn from it\n"
        )
    return (
        f"- an ensemble of {len(report.member_metrics)} models with different seeds{alone} "
        "(`member_metrics.json`); the spread of a prediction is their standard deviation\n" + folds
    )


def _build_metrics_table(report: FinetuningReport) -> str:
    columns = [metric.name for metric in list_metrics(report.problem_type)]
    rows = ["| model | part | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, metrics in {"R-MAT": report.metrics, **report.baselines}.items():
        for part in report.metrics:
            cells = [_format(metrics[part].get(metric)) for metric in columns]
            rows.append(f"| {name} | {part} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _format(value: float | None) -> str:
    return format_metric(value, decimals=3, undefined="–")
