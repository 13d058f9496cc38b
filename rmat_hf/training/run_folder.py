"""What a finetuning run leaves behind: its scores, and its model folder, file by file."""

from collections.abc import Sequence
from functools import partial
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
from rmat_hf.training.metrics import compute_metrics_for_problem
from rmat_hf.training.model_card import FinetuningReport, save_model_card
from rmat_hf.training.recipe import PARTS, FinetuningTask, split_for_members

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
    """
    labels = {part: task.labels(part) for part in PARTS}
    predictions: dict[str, Any] = {
        part: trainer.predict(task.select(part)).predictions for part in PARTS
    }
    score = partial(
        compute_metrics_for_problem, arguments.problem_type, label_names=arguments.label_columns
    )
    members, member_metrics = None, []
    if arguments.num_members > 1:
        members = {part: np.asarray(output[1]) for part, output in predictions.items()}
        predictions = {part: output[0] for part, output in predictions.items()}
        splits = split_for_members(arguments, task)
        if arguments.member_folds:
            rows = task.split.valid
            predictions["valid"] = predict_out_of_fold(members["valid"], rows, splits=splits)
        order = np.argsort(np.concatenate([getattr(task.split, part) for part in PARTS]))
        outputs = np.concatenate([members[part] for part in PARTS])[order]
        known = np.concatenate([labels[part] for part in PARTS])[order]
        member_metrics = [
            {part: score(outputs[rows, idx], labels=known[rows]) for part, rows in vars(it).items()}
            for idx, it in enumerate(splits)
        ]
    predictions = {part: np.asarray(output) for part, output in predictions.items()}
    return FinetuningReport(
        config=cast(Any, trainer.model).config,
        arguments=arguments,
        metrics={part: score(predictions[part], labels=labels[part]) for part in PARTS},
        baselines=baselines,
        labels=labels,
        predictions=predictions,
        member_predictions=members,
        member_metrics=member_metrics,
        num_dropped=len(task.dropped),
        max_atoms=task.processor.max_atoms,
    )


def predict_out_of_fold(
    member_outputs: np.ndarray, rows: np.ndarray, *, splits: Sequence[SplitIndices]
) -> np.ndarray:
    """Return for every row `(num_labels,)` the output of the member that it was held out of."""
    is_held_out = np.stack([np.isin(rows, split.valid) for split in splits], axis=1)
    return member_outputs[np.arange(len(rows)), is_held_out.argmax(axis=1)]


def save_run_folder(
    folder: Path,
    *,
    model: RMatForSequenceClassification | RMatEnsembleForSequenceClassification,
    task: FinetuningTask,
    report: FinetuningReport,
    log_history: list[dict[str, Any]],
) -> None:
    """Write model, processor, metrics, tables, training log and model card to an empty folder."""
    model.save_pretrained(folder)
    task.processor.save_pretrained(folder)
    files: dict[str, Any] = {
        "metrics.json": report.metrics,
        ARGUMENTS_FILE: describe_arguments(report.arguments),
        "training_log.json": log_history,
    }
    optional = {"baselines.json": report.baselines, "member_metrics.json": report.member_metrics}
    files |= {name: content for name, content in optional.items() if content}
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
    if config.label_name is None:
        label_kind: ColumnKind = "number"
        columns |= dict(zip(config.label_columns, labels.T.tolist(), strict=True))
    else:
        label_kind = "text"
        names = [None if np.isnan(it) else config.output_names[int(it)] for it in labels[:, 0]]
        columns[config.label_name] = names
    spread = None
    logits = torch.from_numpy(np.concatenate(list(report.predictions.values())))
    values = compute_probabilities(logits, config.problem_type).numpy()
    if report.member_predictions is not None:
        logits = torch.from_numpy(np.concatenate(list(report.member_predictions.values())))
        spread = compute_spread(logits, config.problem_type).numpy()
    columns |= Predictions(values, [None] * len(values), config, spread).to_columns()
    kinds = {**ROW_COLUMNS, **dict.fromkeys(config.label_columns, label_kind)}
    kinds |= describe_prediction_columns(config)
    del columns["error"], kinds["error"]
    _write_table(folder / "predictions.csv", columns, kinds=kinds)
    kinds = {"row": "integer", "smiles": "text", "reason": "text"}
    columns = {name: [getattr(row, name) for row in task.dropped] for name in kinds}
    _write_table(folder / "dropped_rows.csv", columns, kinds=kinds)


def _write_table(path: Path, columns: dict[str, Any], *, kinds: dict[str, ColumnKind]) -> None:
    with TableWriter(path, added_columns=kinds) as writer:
        writer.write(columns)
