"""What a finetuning run leaves behind: its model folder, file by file."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rmat_hf.data.predictions import Predictions, describe_prediction_columns
from rmat_hf.data.table_writer import TableWriter
from rmat_hf.errors import hide_credentials
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.probabilities_rmat import compute_probabilities, compute_spread
from rmat_hf.output_folder import save_json
from rmat_hf.training.arguments import (
    FinetuningArguments,
)
from rmat_hf.training.model_card import FinetuningReport, save_model_card
from rmat_hf.training.task import PARTS, FinetuningTask
from rmat_hf.training.trainer_options import (
    load_json_fields,
)

ARGUMENTS_FILE = "finetuning_arguments.json"


def save_run_folder(
    folder: Path,
    *,
    model: RMatForSequenceClassification | RMatEnsembleForSequenceClassification,
    task: FinetuningTask,
    report: FinetuningReport,
    arguments: FinetuningArguments,
    log_history: list[dict[str, Any]],
) -> None:
    """Write model, processor, metrics, tables, training log and model card.

    Args:
        folder (`Path`): An empty folder.
        model (`RMatForSequenceClassification` or ensemble): The best model.
        task (`FinetuningTask`): Rows, parts and processor.
        report (`FinetuningReport`): Metrics and predictions.
        arguments (`FinetuningArguments`): Saved without paths of this machine.
        log_history (`list[dict]`): The training log.
    """
    model.save_pretrained(folder)
    task.processor.save_pretrained(folder)
    save_json(folder / "metrics.json", report.metrics)
    if report.baselines:
        save_json(folder / "baselines.json", report.baselines)
    save_json(folder / ARGUMENTS_FILE, describe_arguments(arguments))
    save_json(folder / "training_log.json", log_history)
    if report.member_metrics:
        save_json(folder / "member_metrics.json", report.member_metrics)
    _save_tables(folder, task, report=report)
    save_model_card(folder, report)


def describe_arguments(arguments: FinetuningArguments) -> dict[str, Any]:
    """Return what decides the result, without paths of this machine or what only starts it."""
    fields = asdict(arguments)
    for name in ("overwrite", "resume", "num_workers", "feature_cache"):
        del fields[name]
    for name in ("dataset", "model", "output_dir"):
        fields[name] = name_source(fields[name])
    for name in ("model_config", "training_arguments"):
        fields[name] = load_json_fields(fields[name])
    return fields


def name_source(source: str) -> str:
    """Return a file's or folder's own name; the id itself for something on the Hub."""
    path = Path(source)
    is_local = path.exists() or path.is_absolute()
    return path.resolve().name if is_local else hide_credentials(source)


def name_split(arguments: FinetuningArguments) -> str:
    """Return the family of the split, with the fold or the cutoff if it has one of its own."""
    if arguments.split == "kfold":
        return f"fold-{arguments.fold}-of-{arguments.num_folds}"
    if arguments.cluster_cutoff is not None:
        return f"{arguments.split}-{arguments.cluster_cutoff}"
    return arguments.split


def _save_tables(folder: Path, task: FinetuningTask, *, report: FinetuningReport) -> None:
    """Write each row's part, labels and predictions, and the rows that were not used."""
    config = report.config
    with TableWriter(
        folder / "split.csv", added_columns={"row": "integer", "smiles": "text", "split": "text"}
    ) as writer:
        for part in PARTS:
            rows = task.select(part)
            columns = {"row": rows["row"][:], "smiles": rows["smiles"][:]}
            writer.write({**columns, "split": [part] * len(rows)})
    added = describe_prediction_columns(config)
    del added["error"]
    label_columns = config.label_columns
    with TableWriter(
        folder / "predictions.csv",
        added_columns={
            "row": "integer",
            "smiles": "text",
            "split": "text",
            **dict.fromkeys(label_columns, "text" if config.label_name else "number"),
            **added,
        },
    ) as writer:
        for part in PARTS:
            rows = task.select(part)
            columns = {"row": rows["row"][:], "smiles": rows["smiles"][:]}
            columns["split"] = [part] * len(rows)
            columns |= _build_label_columns(task.labels(part), report)
            columns |= _build_prediction_columns(part, report)
            writer.write(columns)
    with TableWriter(
        folder / "dropped_rows.csv",
        added_columns={"row": "integer", "smiles": "text", "reason": "text"},
    ) as writer:
        names = ("row", "smiles", "reason")
        writer.write({name: [getattr(row, name) for row in task.dropped] for name in names})


def _build_label_columns(labels: np.ndarray, report: FinetuningReport) -> dict[str, list[Any]]:
    config = report.config
    if config.label_name is None:
        return dict(zip(config.label_columns, labels.T.tolist(), strict=True))
    names = [None if np.isnan(label) else config.output_names[int(label)] for label in labels[:, 0]]
    return {config.label_name: names}


def _build_prediction_columns(part: str, report: FinetuningReport) -> dict[str, list[Any]]:
    config = report.config
    logits = torch.from_numpy(report.predictions[part])
    values = compute_probabilities(logits, config.problem_type).numpy()
    spread = None
    if report.member_predictions is not None:
        member_logits = torch.from_numpy(report.member_predictions[part])
        spread = compute_spread(member_logits, config.problem_type).numpy()
    columns = Predictions(values, [None] * len(values), config, spread).to_columns()
    del columns["error"]
    return columns
