"""The members of an ensemble: each a training of its own, those that are finished are kept."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers.trainer import Trainer

from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.splits.random_splits import assign_folds
from rmat_hf.loading import load_predictor
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.output_folder import load_json, save_json
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.task import FinetuningTask

logger = logging.getLogger(__name__)

MODEL_DIR = "model"
MEMBER_FILE = "member.json"


def split_for_members(arguments: FinetuningArguments, task: FinetuningTask) -> list[SplitIndices]:
    """Return the parts of every member: those of the task, or its own fold of them.

    With `member_folds`, train and valid together are divided into as many folds as there are
    members, equal molecules into one; a fold is the valid part of one member and train of the
    others. Test is the same for all.

    Args:
        arguments (`FinetuningArguments`): `num_members`, `member_folds` and the seed of the folds.
        task (`FinetuningTask`): Rows and parts.

    Raises:
        UserError: If there are fewer molecules than folds.
    """
    if not arguments.member_folds:
        return [task.split] * arguments.num_members
    rows = np.sort(np.concatenate([task.split.train, task.split.valid]))
    smiles = task.dataset["canonical_smiles"][:]
    folds = assign_folds(
        [smiles[row] for row in rows], num_folds=arguments.num_members, seed=arguments.seed
    )
    return [
        SplitIndices(train=rows[folds != idx], valid=rows[folds == idx], test=task.split.test)
        for idx in range(arguments.num_members)
    ]


def predict_out_of_fold(
    member_outputs: np.ndarray, rows: np.ndarray, *, splits: Sequence[SplitIndices]
) -> np.ndarray:
    """Return for every row the output of the member that it was held out of.

    Args:
        member_outputs (`np.ndarray` of shape `(num_rows, num_members, num_labels)`): All outputs.
        rows (`np.ndarray` of shape `(num_rows,)`): Their positions in the data set.
        splits (`Sequence[SplitIndices]`): The parts of every member, from `split_for_members`.

    Returns:
        `np.ndarray` of shape `(num_rows, num_labels)`.
    """
    is_held_out = np.stack([np.isin(rows, split.valid) for split in splits], axis=1)
    return member_outputs[np.arange(len(rows)), is_held_out.argmax(axis=1)]


def train_members(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    work_dir: Path,
    train: Callable[..., Trainer],
) -> tuple[RMatEnsembleForSequenceClassification, list[dict[str, Any]]]:
    """Train the members one after the other and return the ensemble with the training log.

    Member `i` is what a run of one model with the seed `seed + i` would give on its rows.

    Args:
        arguments (`FinetuningArguments`): `num_members` is their number.
        task (`FinetuningTask`): Rows, and parts for those without folds.
        work_dir (`Path`): Gets a folder `stage-i` per member with checkpoints and the best model.
        train (`Callable`):
            Takes arguments, the parts of the task and `folder`, for checkpoints; returns a
            `Trainer` with the best model.
    """
    members: list[RMatForSequenceClassification] = []
    log: list[dict[str, Any]] = []
    for idx, split in enumerate(split_for_members(arguments, task)):
        folder = work_dir / f"stage-{idx}"
        # written last, so a member that has it is finished
        if not (folder / MEMBER_FILE).is_file():
            logger.info("Training member %d of %d.", idx + 1, arguments.num_members)
            chosen = replace(arguments, seed=arguments.seed + idx)
            trainer = train(chosen, replace(task, split=split), folder=folder)
            trainer.save_model(str(folder / MODEL_DIR))
            if trainer.is_world_process_zero():
                save_json(folder / MEMBER_FILE, {"log_history": trainer.state.log_history})
            trainer.accelerator.wait_for_everyone()
        history = load_json(folder / MEMBER_FILE)["log_history"]
        log += [{"member": idx, **entry} for entry in history]
        member, _ = load_predictor(folder / MODEL_DIR, device="cpu")
        members.append(member)
    return RMatEnsembleForSequenceClassification.from_members(members), log
