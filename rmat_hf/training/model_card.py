"""The model card of a finetuned model: what it predicts, how well, and beside what."""

import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rmat_hf.model.configuration_rmat import RMatConfig

logger = logging.getLogger(__name__)

PARITY_PLOT = "parity.png"
HIGHLIGHTED_METRICS = {
    "regression": ("rmse", "mae", "r2", "spearman"),
    "multi_label_classification": ("roc_auc", "pr_auc", "accuracy", "mcc"),
    "single_label_classification": ("roc_auc", "pr_auc", "accuracy", "mcc"),
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
    *,
    tags: list[str] | None = None,
    license_name: str | None = None,
    datasets: str | None = None,
    base_model: str | None = None,
    model_name: str | None = None,
    eval_results: list[EvalResult] | None = None,
) -> ModelCardData:
    """Return the metadata block of a card.

    Args:
        tags (`list[str]`, *optional*): Beside those of every R-MAT model.
        license_name (`str`, *optional*): Identifier as on the Hub, for example `"cc-by-4.0"`.
        datasets (`str`, *optional*): Hub id of the data.
        base_model (`str`, *optional*): Hub id of the model that was finetuned.
        model_name (`str`, *optional*): Needed with `eval_results`.
        eval_results (`list[EvalResult]`, *optional*): Metrics.
    """
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="graph-ml",
        license=license_name or UNKNOWN_LICENSE,
        tags=[*TAGS, *(tags or [])],
        datasets=datasets,
        base_model=base_model,
        model_name=model_name,
        eval_results=eval_results,
    )


def describe_labels(config: RMatConfig) -> list[str]:
    """Return the name of every label, with its unit if it has one."""
    units = config.label_units or [""] * len(config.label_columns)
    return [
        f"{name} ({unit})" if unit else name
        for name, unit in zip(config.label_columns, units, strict=True)
    ]


def build_usage(model_id: str) -> str:
    """Return the two lines of Python that use a model."""
    return (
        "```python\nfrom transformers import pipeline\n"
        f'pipeline(model="{model_id}", trust_remote_code=True)(["CCO", "c1ccccc1"])\n```'
    )


def describe_limits(max_atoms: int) -> str:
    """Return the limits of every R-MAT model, with the processor's `max_atoms`."""
    return (
        "- Heavy atoms only, no stereo feature: enantiomers differ only through the conformer.\n"
        f"- Molecules with more heavy atoms than the processor's `max_atoms` (here {max_atoms}) "
        "are refused."
    )


@dataclass(frozen=True)
class FinetuningReport:
    """What a model card tells about a finetuning run.

    Args:
        config (`RMatConfig`): Configuration of the finetuned model.
        dataset (`str`): Name of the data set, without a path of this machine.
        split (`str`): Family of the split, as `name_split` gives it.
        metrics (`dict`): Metrics of train, valid and test.
        baselines (`dict`): The same for every baseline, possibly empty.
        labels (`dict[str, np.ndarray]`): Labels of every part, `(num_rows, num_labels)`.
        predictions (`dict[str, np.ndarray]`): Model output of every part, in the labels' units.
        num_dropped (`int`): Rows of the data set that were not used.
        max_atoms (`int`): Largest number of heavy atoms that the processor accepts.
        base_model (`str`): Name of the model that was finetuned, without a path.
        license_name (`str`, *optional*): License of the model; `None` if nobody stated one.
        member_predictions (`dict[str, np.ndarray]`, *optional*):
            Output of an ensemble's members, `(num_rows, num_members, num_labels)`.
        member_metrics (`list[dict]`): Metrics of each of them alone; empty for a single model.
        has_member_folds (`bool`, *optional*, defaults to `False`):
            Whether each of them held out its own fold of train and valid.
    """

    config: RMatConfig
    dataset: str
    split: str
    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    num_dropped: int
    max_atoms: int
    base_model: str
    license_name: str | None = None
    member_predictions: dict[str, np.ndarray] | None = None
    member_metrics: list[dict[str, dict[str, Any]]] = field(default_factory=list)
    has_member_folds: bool = False

    @property
    def problem_type(self) -> str:
        """Problem type of the model."""
        return str(self.config.problem_type)


def save_model_card(folder: Path, report: FinetuningReport) -> None:
    """Write `README.md` and, for regression, the parity plot into a model folder.

    The plot needs matplotlib (`pip install rmat-hf[viz]`); a card without one says so.

    Args:
        folder (`Path`): An existing folder.
        report (`FinetuningReport`): What to tell.
    """
    has_plot = report.problem_type == "regression" and save_parity_plot(
        folder / PARITY_PLOT, report
    )
    card = ModelCard(_build_card_text(report, has_plot=has_plot))
    card.save(folder / "README.md")


def save_parity_plot(path: Path, report: FinetuningReport) -> bool:
    """Plot predicted against measured values of train and test, one panel per label.

    Args:
        path (`Path`): PNG file to write.
        report (`FinetuningReport`): Labels and predictions.

    Returns:
        `bool`: False if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No parity plot: matplotlib is missing. Run: pip install rmat-hf[viz]")
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = describe_labels(report.config)
    num_labels = len(labels)
    figure = Figure(figsize=(4.8 * num_labels, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for idx in range(num_labels):
        axes = figure.add_subplot(1, num_labels, idx + 1)
        styles = {"train": ("#9aa5b1", 10, 0.5), "test": ("#d1495b", 22, 0.9)}
        shown = []
        for part, (color, size, alpha) in styles.items():
            measured, predicted = report.labels[part][:, idx], report.predictions[part][:, idx]
            metrics = (
                report.metrics[part]
                .get("per_label", {})
                .get(report.config.label_columns[idx], report.metrics[part])
            )
            legend = f"{part}: RMSE {_format(metrics['rmse'])}, R² {_format(metrics['r2'])}"
            axes.scatter(
                measured, predicted, s=size, alpha=alpha, color=color, linewidths=0, label=legend
            )
            shown += [measured[~np.isnan(measured)], predicted]
        low, high = np.min(np.concatenate(shown)), np.max(np.concatenate(shown))
        margin = 0.04 * (high - low) or 1.0
        limits = (low - margin, high + margin)
        axes.plot(limits, limits, color="#333333", linewidth=0.8, zorder=0)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
        axes.set_xlabel(f"measured {labels[idx]}")
        axes.set_ylabel(f"predicted {labels[idx]}")
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    figure.savefig(path, dpi=150)
    return True


def _build_card_text(report: FinetuningReport, *, has_plot: bool) -> str:
    names = describe_labels(report.config)
    results = [
        EvalResult(
            task_type="graph-ml",
            task_name="molecule property prediction",
            dataset_type=report.dataset,
            dataset_name=report.dataset,
            dataset_split=f"test ({report.split} split)",
            metric_type=metric,
            metric_value=round(report.metrics["test"][metric], 4),
        )
        for metric in HIGHLIGHTED_METRICS[report.problem_type]
        if report.metrics["test"].get(metric) is not None
    ]
    data = build_card_metadata(
        tags=["molecule-property-prediction"],
        license_name=report.license_name,
        datasets=_keep_hub_id(report.dataset),
        base_model=_keep_hub_id(report.base_model),
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
        f"- data: {report.dataset}; {sizes} molecules, {report.split} split; "
        f"{report.num_dropped} rows dropped (`dropped_rows.csv`)\n"
        f"- started from: {report.base_model}\n{_describe_ensemble(report)}"
        "- chosen by the validation metric; the test part was scored once\n"
        "- every value: `metrics.json`, `predictions.csv`, `split.csv`",
        "## Use",
        build_usage("path/to/this/folder"),
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
    metric = HIGHLIGHTED_METRICS[report.problem_type][0]
    values = [metrics["test"][metric] for metrics in report.member_metrics]
    known = [value for value in values if value is not None]
    alone = ""
    if known:
        alone = f"; one alone has a test {metric} of {np.mean(known):.3f} ± {np.std(known):.3f}"
    folds = ""
    if report.has_member_folds:
        folds = (
            "- each member held out another fold of train and valid; `valid` is out of fold: every "
            "row is predicted by the one member that did not learn from it\n"
        )
    return (
        f"- an ensemble of {len(report.member_metrics)} models with different seeds{alone} "
        "(`member_metrics.json`); the spread of a prediction is their standard deviation\n" + folds
    )


def _keep_hub_id(name: str) -> str | None:
    # the metadata of a card link to what they name
    return name if "/" in name else None


def _build_metrics_table(report: FinetuningReport) -> str:
    columns = HIGHLIGHTED_METRICS[report.problem_type]
    rows = ["| model | part | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    models = {"R-MAT": report.metrics, **report.baselines}
    for name, metrics in models.items():
        for part in report.metrics:
            cells = [_format(metrics[part].get(metric)) for metric in columns]
            rows.append(f"| {name} | {part} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
