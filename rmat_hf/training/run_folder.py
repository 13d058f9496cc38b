"""What a finetuning run leaves behind: its scores, and its model folder, file by file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers.trainer import Trainer

from rmat_hf.data.predictions import Predictions, describe_prediction_columns
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.table_writer import ColumnKind, TableWriter
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import (
    RMatForSequenceClassification,
    compute_probabilities,
    compute_spread,
)
from rmat_hf.output_folder import save_json
from rmat_hf.training.arguments import FinetuningArguments, describe_arguments
from rmat_hf.training.members import predict_out_of_fold, split_for_members
from rmat_hf.training.metrics import compute_metrics_for_problem, format_metric
from rmat_hf.training.model_card import FinetuningReport, save_model_card
from rmat_hf.training.task import PARTS, FinetuningTask

ARGUMENTS_FILE = "finetuning_arguments.json"
TRIALS_FILE = "hpo_trials.csv"
ROW_COLUMNS: dict[str, ColumnKind] = {"row": "integer", "smiles": "text", "split": "text"}


def build_finetuning_report(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    trainer: Trainer,
    baselines: dict[str, dict[str, Any]],
) -> FinetuningReport:
    """Score the best model, or the ensemble and each of its members, on every part.

    Members with folds of their own have learned from most rows of valid. There the predictions are
    out of fold, each by the one member that did not, and a member is scored on its own fold.

    Args:
        arguments (`FinetuningArguments`): Labels, and what the model card tells.
        task (`FinetuningTask`): Rows and parts.
        trainer (`Trainer`): With the model, and without `compute_metrics`.
        baselines (`dict`): Metrics of every baseline, possibly empty.
    """
    labels = {part: task.labels(part) for part in PARTS}
    outputs: dict[str, Any] = {
        part: trainer.predict(task.select(part)).predictions for part in PARTS
    }
    predictions, members, member_metrics = outputs, None, []
    if arguments.num_members > 1:
        predictions = {part: output[0] for part, output in outputs.items()}
        members = {part: np.asarray(output[1]) for part, output in outputs.items()}
        splits = split_for_members(arguments, task)
        if arguments.member_folds:
            held_out = predict_out_of_fold(members["valid"], task.split.valid, splits=splits)
            predictions["valid"] = held_out
        member_metrics = _score_members(arguments, task, members=members, splits=splits)
    return FinetuningReport(
        config=cast(Any, trainer.model).config,
        arguments=arguments,
        metrics={part: _score(arguments, predictions[part], labels=labels[part]) for part in PARTS},
        baselines=baselines,
        labels=labels,
        predictions={part: np.asarray(predictions[part]) for part in PARTS},
        member_predictions=members,
        member_metrics=member_metrics,
        num_dropped=len(task.dropped),
        max_atoms=task.processor.max_atoms,
    )


def _score(
    arguments: FinetuningArguments, outputs: np.ndarray, *, labels: np.ndarray
) -> dict[str, Any]:
    return compute_metrics_for_problem(
        arguments.problem_type,
        np.asarray(outputs),
        labels=labels,
        label_names=arguments.label_columns,
    )


def _score_members(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    members: dict[str, np.ndarray],
    splits: Sequence[SplitIndices],
) -> list[dict[str, dict[str, Any]]]:
    """Score each member on its own parts."""
    order = np.argsort(np.concatenate([getattr(task.split, part) for part in PARTS]))
    outputs = np.concatenate([members[part] for part in PARTS])[order]
    labels = np.concatenate([task.labels(part) for part in PARTS])[order]
    return [
        {
            part: _score(arguments, outputs[rows, idx], labels=labels[rows])
            for part, rows in vars(split).items()
        }
        for idx, split in enumerate(splits)
    ]


def describe_metrics(
    metrics: dict[str, dict[str, Any]], baselines: dict[str, dict[str, Any]]
) -> str:
    """Return a table for the screen: one row per model and part, one column per metric.

    Args:
        metrics (`dict`): Of train, valid and test.
        baselines (`dict`): The same for every baseline.
    """
    names = [name for name, value in metrics["test"].items() if not isinstance(value, dict)]
    lines = [f"{'':34}" + "".join(f"{name:>12}" for name in names)]
    for model, scores in {"R-MAT": metrics, **baselines}.items():
        for part in PARTS:
            cells = [f"{format_metric(scores[part][name]):>12}" for name in names]
            lines.append(f"{model:28}{part:6}{''.join(cells)}")
    return "\n".join(lines)


def save_run_folder(
    folder: Path,
    *,
    model: RMatForSequenceClassification | RMatEnsembleForSequenceClassification,
    task: FinetuningTask,
    report: FinetuningReport,
    log_history: list[dict[str, Any]],
) -> None:
    """Write model, processor, metrics, tables, training log and model card.

    Args:
        folder (`Path`): An empty folder.
        model (`RMatForSequenceClassification` or ensemble): The best model.
        task (`FinetuningTask`): Rows, parts and processor.
        report (`FinetuningReport`): Metrics and predictions; its arguments are saved without paths
            of this machine.
        log_history (`list[dict]`): The training log.
    """
    model.save_pretrained(folder)
    task.processor.save_pretrained(folder)
    files: dict[str, Any] = {
        "metrics.json": report.metrics,
        ARGUMENTS_FILE: describe_arguments(report.arguments),
        "training_log.json": log_history,
    }
    if report.baselines:
        files["baselines.json"] = report.baselines
    if report.member_metrics:
        files["member_metrics.json"] = report.member_metrics
    for name, content in files.items():
        save_json(folder / name, content)
    _save_tables(folder, task, report=report)
    save_model_card(folder, report)


def _save_tables(folder: Path, task: FinetuningTask, *, report: FinetuningReport) -> None:
    """Write each row's part, labels and predictions, and the rows that were not used."""
    config = report.config
    labels = dict.fromkeys(config.label_columns, "text" if config.label_name else "number")
    added = {**ROW_COLUMNS, **labels, **describe_prediction_columns(config)}
    del added["error"]
    with (
        TableWriter(folder / "split.csv", added_columns=ROW_COLUMNS) as split,
        TableWriter(
            folder / "predictions.csv", added_columns=cast("dict[str, ColumnKind]", added)
        ) as predictions,
    ):
        for part in PARTS:
            rows = task.select(part)
            columns = {"row": rows["row"][:], "smiles": rows["smiles"][:]}
            columns["split"] = [part] * len(rows)
            split.write(columns)
            columns |= _build_label_columns(report.labels[part], report)
            predictions.write(columns | _build_prediction_columns(part, report))
    names = {"row": "integer", "smiles": "text", "reason": "text"}
    with TableWriter(
        folder / "dropped_rows.csv", added_columns=cast("dict[str, ColumnKind]", names)
    ) as writer:
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
