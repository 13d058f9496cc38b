"""What a finetuning run found out: metrics and predictions of train, valid and test."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from transformers.trainer import Trainer

from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.members import predict_out_of_fold, split_for_members
from rmat_hf.training.metrics import compute_metrics_for_problem
from rmat_hf.training.model_card import FinetuningReport
from rmat_hf.training.run_folder import name_source, name_split
from rmat_hf.training.task import PARTS, FinetuningTask


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
    metrics = {part: _score(arguments, predictions[part], labels=labels[part]) for part in PARTS}
    return FinetuningReport(
        config=cast(Any, trainer.model).config,
        dataset=name_source(arguments.dataset),
        split=name_split(arguments),
        metrics=metrics,
        baselines=baselines,
        labels=labels,
        predictions={part: np.asarray(predictions[part]) for part in PARTS},
        member_predictions=members,
        member_metrics=member_metrics,
        has_member_folds=arguments.member_folds,
        num_dropped=len(task.dropped),
        max_atoms=task.processor.max_atoms,
        base_model=name_source(arguments.model),
        license_name=arguments.license,
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
    metrics = []
    for idx, split in enumerate(splits):
        rows = {part: getattr(split, part) for part in PARTS}
        metrics.append(
            {
                part: _score(arguments, outputs[rows[part], idx], labels=labels[rows[part]])
                for part in PARTS
            }
        )
    return metrics
