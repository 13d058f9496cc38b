"""The model card of a pretrained model: corpus, steps, losses, and what it is for."""

import importlib.util
import json
import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from huggingface_hub import ModelCard

from rmat_hf.training.model_card import CARD_FILE, build_card_metadata, describe_limits
from rmat_hf.training.objectives import STAGES
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining_task import PretrainingTask

logger = logging.getLogger(__name__)

LOSS_PLOT = "loss_curves.png"


def save_pretraining_card(
    folder: Path,
    task: PretrainingTask,
    *,
    arguments: Mapping[str, Any],
    reports: Mapping[str, dict[str, Any]],
) -> None:
    """Write `README.md` and the plot of the losses into a model folder.

    The plot needs matplotlib (`pip install rmat-hf[viz]`); a card without one says so.

    Args:
        folder (`Path`): An existing folder.
        task (`PretrainingTask`): Molecules and objectives.
        arguments (`Mapping[str, Any]`): Of the run, names instead of paths of this machine.
        reports (`Mapping[str, dict]`):
            `metrics` of valid and `log_history` of `Trainer`, by stage.
    """
    has_plot = importlib.util.find_spec("matplotlib") is not None
    if has_plot:
        _save_loss_plot(folder / LOSS_PLOT, reports, objectives=task.objectives)
    else:
        logger.warning("No loss plot: matplotlib is missing. Run: pip install rmat-hf[viz]")
    text = _build_card_text(task, arguments=arguments, reports=reports, has_plot=has_plot)
    ModelCard(text).save(folder / CARD_FILE)


def _save_loss_plot(
    path: Path, reports: Mapping[str, dict[str, Any]], *, objectives: Mapping[str, Objective]
) -> None:
    """Plot the loss of every objective on train and valid against the steps, a panel per stage."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0 * len(reports), 4.2), layout="constrained")
    all_axes = figure.subplots(1, len(reports), squeeze=False)[0]
    for axes, (stage, report) in zip(all_axes, reports.items(), strict=True):
        log = report["log_history"]
        for idx, objective in enumerate(objectives.values()):
            for prefix, style, part in (("", "-", "train"), ("eval_", "o--", "valid")):
                name = f"{prefix}{objective.head}_loss"
                steps = [row["step"] for row in log if name in row]
                losses = [row[name] for row in log if name in row]
                if steps:
                    label = f"{objective.title}, {part}"
                    axes.plot(steps, losses, style, color=f"C{idx}", markersize=3.5, label=label)
        axes.set(xlabel="step", ylabel="loss", yscale="log", title=stage)
        axes.grid(visible=True, which="both", color="#e4e7eb", linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _build_card_text(
    task: PretrainingTask,
    *,
    arguments: Mapping[str, Any],
    reports: Mapping[str, dict[str, Any]],
    has_plot: bool,
) -> str:
    corpus, base_model = arguments["corpus"], arguments["model"]
    data = build_card_metadata(
        tags=["pretrained"],
        license_name=arguments["license"],
        # the metadata of a card link to what they name
        datasets=corpus if "/" in corpus else None,
        base_model=base_model if "/" in base_model else None,
    )
    is_table = isinstance(task.train, datasets.Dataset)
    molecules = f"{len(task.train):,} molecules" if is_table else "a stream of molecules"
    learned = [
        [task.objectives[name] for name in names]
        for names in STAGES[arguments["objective"]].values()
    ]
    steps = ", then ".join(" and ".join(it.title for it in stage) for stage in learned)
    scores = [
        objective.describe_metrics(report["metrics"])
        for stage, report in zip(learned, reports.values(), strict=True)
        for objective in stage
        if f"{objective.head}_loss" in report["metrics"]
    ]
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# Pretrained R-MAT",
        "A Relative Molecule Attention Transformer (arXiv 2110.05841), pretrained with rmat-hf. "
        "Finetune it, or take its vectors: it predicts no property by itself.",
        f"- learned: {steps}\n"
        f"- corpus: {corpus}; {molecules}, {len(task.valid):,} held out\n"
        f"- distances: geometry {task.processor.geometry!r}\n"
        f"- started from: {base_model}",
        "## Use",
        "```bash\nrmat finetune --model path/to/this/folder --dataset my.csv --label-columns y "
        "--output-dir my_model\nrmat embed --model path/to/this/folder --input my.csv "
        "--output vectors.parquet\n```",
        "## On the molecules held out",
        *scores,
        f"![Losses against steps]({LOSS_PLOT})"
        if has_plot
        else "(No plot of the losses: matplotlib was not installed.)",
        "## Run",
        f"{_describe_cost(reports)} The arguments of `rmat pretrain`:",
        f"```json\n{json.dumps(arguments, indent=2)}\n```",
        "## Limits",
        describe_limits(task.processor.max_atoms),
    ]
    return "\n\n".join(sections) + "\n"


def _describe_cost(reports: Mapping[str, dict[str, Any]]) -> str:
    """Return steps, hours and hardware."""
    rows = [row for report in reports.values() for row in report["log_history"]]
    summaries = [row for row in rows if "train_runtime" in row]
    hours = sum(row["train_runtime"] for row in summaries) / 3600
    steps = sum(row["step"] for row in summaries)
    state = PartialState()
    device = state.device.type
    if device == "cuda":
        device = torch.cuda.get_device_name(state.device)
    return (
        f"{steps:,} steps in {hours:.2f} hours on {state.num_processes} processes, {device} "
        f"({platform.machine()}); the hours count from the last resumption."
    )
