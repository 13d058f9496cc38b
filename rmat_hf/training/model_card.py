"""The model card of a finetuned model: what it predicts, how well, and beside what."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rmat_hf.configuration_rmat import RMatConfig

logger = logging.getLogger(__name__)

PARITY_PLOT = "parity.png"
PROBLEM_NAMES = {
    "regression": "regression",
    "multi_label_classification": "classification, one probability per label",
    "single_label_classification": "classification, one class per molecule",
}
HIGHLIGHTED_METRICS = {
    "regression": ("rmse", "mae", "r2", "spearman"),
    "multi_label_classification": ("roc_auc", "pr_auc", "accuracy", "mcc"),
    "single_label_classification": ("roc_auc", "pr_auc", "accuracy", "mcc"),
}


@dataclass(frozen=True)
class FinetuningReport:
    """What a model card tells about a finetuning run.

    Args:
        config (`RMatConfig`): Configuration of the finetuned model.
        dataset (`str`): Name of the data set, without a path of this machine.
        split (`str`): Family of the split.
        metrics (`dict`): Metrics of train, valid and test.
        baselines (`dict`): The same for every baseline, possibly empty.
        labels (`dict[str, np.ndarray]`): Labels of every part, `(num_rows, num_labels)`.
        predictions (`dict[str, np.ndarray]`): Model output of every part, in the labels' units.
        num_dropped (`int`): Rows of the data set that were not used.
    """

    config: RMatConfig
    dataset: str
    split: str
    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    labels: dict[str, np.ndarray]
    predictions: dict[str, np.ndarray]
    num_dropped: int

    @property
    def problem_type(self) -> str:
        """Problem type of the model."""
        return str(self.config.problem_type)

    def describe_label(self, idx: int) -> str:
        """Return a label's name with its unit."""
        name = self.config.label_columns[idx]
        return f"{name} ({self.config.label_units[idx]})" if self.config.label_units else name


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

    num_labels = len(report.config.label_columns)
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
        axes.set_xlabel(f"measured {report.describe_label(idx)}")
        axes.set_ylabel(f"predicted {report.describe_label(idx)}")
        axes.legend(frameon=False, loc="upper left", fontsize=9)
    figure.savefig(path, dpi=150)
    return True


def _build_card_text(report: FinetuningReport, *, has_plot: bool) -> str:
    names = [report.describe_label(idx) for idx in range(len(report.config.label_columns))]
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
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="graph-ml",
        tags=["rmat", "chemistry", "molecules", "molecule-property-prediction"],
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
        "- chosen by the validation metric; the test part was scored once\n"
        "- every value: `metrics.json`, `predictions.csv`, `split.csv`",
        "## Use",
        "```python\nfrom rmat_hf import predict\n\n"
        'predict("path/to/this/folder", ["CCO", "c1ccccc1"]).values\n```',
        "or `rmat predict --model path/to/this/folder --smiles CCO c1ccccc1 "
        "--output predictions.csv`",
        "## Metrics",
        _build_metrics_table(report),
    ]
    if has_plot:
        sections.append(f"![Predicted against measured values]({PARITY_PLOT})")
    elif report.problem_type == "regression":
        sections.append("(No parity plot: matplotlib was not installed.)")
    sections += [
        "## Limits",
        "- Heavy atoms only, no stereo feature: enantiomers differ only through the conformer.\n"
        "- Trust it for molecules like those in the training table; metrics of a random split "
        "are optimistic for new chemical series.",
    ]
    return "\n\n".join(sections) + "\n"


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
