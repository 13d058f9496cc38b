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
from rmat_hf.training.metrics import compute_metrics_for_problem, format_metric
from rmat_hf.training.model_card import FinetuningReport, save_model_card
from rmat_hf.training.task import PARTS, FinetuningTask, split_for_members

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
        arguments, task: Of the run.
        trainer (`Trainer`): With the model, and without `compute_metrics`.
        baselines (`dict`): Metrics of every baseline, possibly empty.
    """
    labels = {part: task.labels(part) for part in PARTS}
    predictions: dict[str, Any] = {
        part: trainer.predict(task.select(part)).predictions for part in PARTS
    }
    members, member_metrics = None, []
    if arguments.num_members > 1:
        members = {part: np.asarray(output[1]) for part, output in predictions.items()}
        predictions = {part: output[0] for part, output in predictions.items()}
        splits = split_for_members(arguments, task)
        if arguments.member_folds:
            predictions["valid"] = predict_out_of_fold(
                members["valid"], task.split.valid, splits=splits
            )
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


def predict_out_of_fold(
    member_outputs: np.ndarray, rows: np.ndarray, *, splits: Sequence[SplitIndices]
) -> np.ndarray:
    """Return for every row `(num_labels,)` the output of the member that it was held out of.

    Args:
        member_outputs (`np.ndarray` of shape `(num_rows, num_members, num_labels)`): All outputs.
        rows (`np.ndarray` of shape `(num_rows,)`): Their positions in the data set.
        splits (`Sequence[SplitIndices]`): The parts of every member, from `split_for_members`.
    """
    is_held_out = np.stack([np.isin(rows, split.valid) for split in splits], axis=1)
    return member_outputs[np.arange(len(rows)), is_held_out.argmax(axis=1)]


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
    """Return a table for the screen: one row per model and part, one column per metric."""
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
        report (`FinetuningReport`): Metrics and predictions.
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
    rows = task.dataset.select(np.concatenate([getattr(task.split, part) for part in PARTS]))
    columns: dict[str, Any] = {"row": rows["row"][:], "smiles": rows["smiles"][:]}
    columns["split"] = [part for part in PARTS for _ in range(len(report.labels[part]))]
    _write_table(folder / "split.csv", columns, kinds=ROW_COLUMNS)
    config, labels = report.config, np.concatenate(list(report.labels.values()))
    kinds: dict[str, ColumnKind] = dict.fromkeys(
        config.label_columns, "text" if config.label_name else "number"
    )
    kinds = {**ROW_COLUMNS, **kinds, **describe_prediction_columns(config)}
    del kinds["error"]
    if config.label_name is None:
        columns |= dict(zip(config.label_columns, labels.T.tolist(), strict=True))
    else:
        columns[config.label_name] = [
            None if np.isnan(label) else config.output_names[int(label)] for label in labels[:, 0]
        ]
    columns |= _build_prediction_columns(report)
    _write_table(folder / "predictions.csv", columns, kinds=kinds)
    dropped: dict[str, ColumnKind] = {"row": "integer", "smiles": "text", "reason": "text"}
    columns = {name: [getattr(row, name) for row in task.dropped] for name in dropped}
    _write_table(folder / "dropped_rows.csv", columns, kinds=dropped)


def _write_table(path: Path, columns: dict[str, Any], *, kinds: dict[str, ColumnKind]) -> None:
    with TableWriter(path, added_columns=kinds) as writer:
        writer.write(columns)


def _build_prediction_columns(report: FinetuningReport) -> dict[str, list[Any]]:
    config, spread = report.config, None
    logits = torch.from_numpy(np.concatenate(list(report.predictions.values())))
    values = compute_probabilities(logits, config.problem_type).numpy()
    if report.member_predictions is not None:
        logits = torch.from_numpy(np.concatenate(list(report.member_predictions.values())))
        spread = compute_spread(logits, config.problem_type).numpy()
    columns = Predictions(values, [None] * len(values), config, spread).to_columns()
    del columns["error"]
    return columns
