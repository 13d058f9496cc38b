"""The model card of a pretrained model: corpus, steps, losses, and what it is for."""

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from rmat_hf.training.model_card import CARD_FILE, build_card_metadata, describe_limits

logger = logging.getLogger(__name__)

LOSS_PLOT = "loss_curves.png"
_STAGE_NAMES = {
    "contexts": "contextual atom prediction",
    "descriptors": "molecule descriptors",
    "joint": "contextual atoms and molecule descriptors at once",
}
_TASKS = {"context_loss": "atom contexts", "descriptor_loss": "molecule descriptors"}
_COLORS = {"context_loss": "#00798c", "descriptor_loss": "#d1495b"}


@dataclass(frozen=True)
class PretrainingReport:
    """What a model card tells about a pretraining run.

    Args:
        num_molecules (`int`, *optional*): Molecules trained on; `None` for a stream.
        num_valid (`int`): Molecules held out.
        arguments (`dict`): Arguments of the run, names instead of paths of this machine.
        metrics (`dict`): Metrics of valid by stage, as from `PretrainingMetrics`.
        logs (`dict`): Log history of `Trainer` by stage.
        hardware (`str`): What it ran on.
        geometry (`str`): Where the distances come from.
        max_atoms (`int`): Largest number of heavy atoms that the processor accepts.
    """

    num_molecules: int | None
    num_valid: int
    arguments: dict[str, Any]
    metrics: dict[str, dict[str, Any]]
    logs: dict[str, list[dict[str, Any]]]
    hardware: str
    geometry: str
    max_atoms: int


def save_pretraining_card(folder: Path, report: PretrainingReport) -> None:
    """Write `README.md` and the plot of the losses into a model folder.

    The plot needs matplotlib (`pip install rmat-hf[viz]`); a card without one says so.

    Args:
        folder (`Path`): An existing folder.
        report (`PretrainingReport`): What to tell.
    """
    has_plot = save_loss_plot(folder / LOSS_PLOT, report.logs)
    ModelCard(_build_card_text(report, has_plot=has_plot)).save(folder / CARD_FILE)


def save_loss_plot(path: Path, logs: dict[str, list[dict[str, Any]]]) -> bool:
    """Plot the losses of both tasks on train and valid against the steps, one panel per stage.

    Args:
        path (`Path`): PNG file to write.
        logs (`dict`): Log history of `Trainer` by stage.

    Returns:
        `bool`: False if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No loss plot: matplotlib is missing. Run: pip install rmat-hf[viz]")
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 * len(logs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for idx, (stage, log) in enumerate(logs.items()):
        axes = figure.add_subplot(1, len(logs), idx + 1)
        for task, label in _TASKS.items():
            for prefix, style in (("", "-"), ("eval_", "o--")):
                points = [(row["step"], row[prefix + task]) for row in log if prefix + task in row]
                if points:
                    part = "valid" if prefix else "train"
                    axes.plot(
                        *zip(*points, strict=True),
                        style,
                        color=_COLORS[task],
                        alpha=1.0 if prefix else 0.55,
                        markersize=3.5,
                        linewidth=1.1,
                        label=f"{label}, {part}",
                    )
        axes.set(xlabel="step", ylabel="loss", yscale="log", title=_STAGE_NAMES[stage])
        axes.grid(visible=True, which="both", color="#e4e7eb", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    return True


def _build_card_text(report: PretrainingReport, *, has_plot: bool) -> str:
    corpus, base_model = report.arguments["corpus"], report.arguments["model"]
    data = build_card_metadata(
        tags=["pretrained"],
        license_name=report.arguments["license"],
        # the metadata of a card link to what they name
        datasets=corpus if "/" in corpus else None,
        base_model=base_model if "/" in base_model else None,
    )
    number = report.num_molecules
    molecules = "a stream of molecules" if number is None else f"{number:,} molecules"
    steps = ", then ".join(_STAGE_NAMES[stage] for stage in report.metrics)
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# Pretrained R-MAT",
        "A Relative Molecule Attention Transformer (arXiv 2110.05841), pretrained with rmat-hf. "
        "Finetune it, or take its vectors: it predicts no property by itself.",
        f"- learned: {steps}\n"
        f"- corpus: {corpus}; {molecules}, {report.num_valid:,} held out\n"
        f"- distances: geometry {report.geometry!r}\n"
        f"- started from: {base_model}",
        "## Use",
        "```bash\nrmat finetune --model path/to/this/folder --dataset my.csv --label-columns y "
        "--output-dir my_model\nrmat embed --model path/to/this/folder --input my.csv "
        "--output vectors.parquet\n```",
        "## On the molecules held out",
        *[_describe_stage(stage, report.metrics[stage]) for stage in report.metrics],
    ]
    if has_plot:
        sections.append(f"![Losses against steps]({LOSS_PLOT})")
    else:
        sections.append("(No plot of the losses: matplotlib was not installed.)")
    sections += [
        "## Run",
        f"{_describe_cost(report)} The arguments of `rmat pretrain`:",
        f"```json\n{json.dumps(report.arguments, indent=2)}\n```",
        "## Limits",
        describe_limits(report.max_atoms),
    ]
    return "\n\n".join(sections) + "\n"


def _describe_stage(stage: str, metrics: dict[str, Any]) -> str:
    lines = [f"**{_STAGE_NAMES[stage].capitalize()}**", ""]
    if "context_loss" in metrics:
        elements = metrics["context_accuracy_by_element"]
        lines += [
            f"Contexts: accuracy {metrics['context_accuracy']:.3f}, cross-entropy "
            f"{metrics['context_loss']:.3f}, {metrics['num_centers']:,} masked atoms.",
            "",
            "| element | " + " | ".join(elements) + " |",
            "|---" * (len(elements) + 1) + "|",
            "| accuracy | " + " | ".join(f"{value:.3f}" for value in elements.values()) + " |",
            "",
        ]
    if "descriptor_loss" in metrics:
        line = f"Descriptors: squared error {metrics['descriptor_loss']:.4f}"
        if "descriptor_r2" in metrics:
            worst = ", ".join(
                f"{name} {value:.2f}" for name, value in metrics["worst_descriptors"].items()
            )
            line += (
                f", R² {metrics['descriptor_r2']:.3f} on average, median "
                f"{metrics['descriptor_r2_median']:.3f}. The worst: {worst}"
            )
        lines.append(f"{line}.")
    return "\n".join(lines).strip()


def _describe_cost(report: PretrainingReport) -> str:
    summaries = [row for log in report.logs.values() for row in log if "train_runtime" in row]
    if not summaries:
        return ""
    hours = sum(row["train_runtime"] for row in summaries) / 3600
    steps = sum(row["step"] for row in summaries)
    return (
        f"{steps:,} steps in {hours:.2f} hours on {report.hardware}; the hours count from the last "
        "resumption."
    )
