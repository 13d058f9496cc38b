"""The members of an ensemble: each a training of its own, those that are finished are kept."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer import Trainer

from rmat_hf.atomic_output import save_json
from rmat_hf.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model_loading import load_predictor
from rmat_hf.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training.arguments import FinetuningArguments

logger = logging.getLogger(__name__)

MODEL_DIR = "model"
MEMBER_FILE = "member.json"
TrainMember = Callable[[FinetuningArguments, Path], Trainer]


def train_members(
    arguments: FinetuningArguments, *, work_dir: Path, train: TrainMember
) -> tuple[RMatEnsembleForSequenceClassification, list[dict[str, Any]]]:
    """Train the members one after the other and return the ensemble with the training log.

    Member `i` is what a run of one model with the seed `seed + i` would give on the same rows.

    Args:
        arguments (`FinetuningArguments`): `num_members` is their number.
        work_dir (`Path`): Gets a folder `stage-i` per member with checkpoints and the best model.
        train (`Callable`): Trains one model with checkpoints in a folder; returns its `Trainer`.
    """
    members: list[RMatForSequenceClassification] = []
    log: list[dict[str, Any]] = []
    for idx in range(arguments.num_members):
        folder = work_dir / f"stage-{idx}"
        # written last, so a member that has it is finished
        if not (folder / MEMBER_FILE).is_file():
            logger.info("Training member %d of %d.", idx + 1, arguments.num_members)
            trainer = train(replace(arguments, seed=arguments.seed + idx), folder)
            trainer.save_model(str(folder / MODEL_DIR))
            if trainer.is_world_process_zero():
                save_json(folder / MEMBER_FILE, {"log_history": trainer.state.log_history})
            trainer.accelerator.wait_for_everyone()
        history = json.loads((folder / MEMBER_FILE).read_text(encoding="utf-8"))["log_history"]
        log += [{"member": idx, **entry} for entry in history]
        member, _ = load_predictor(folder / MODEL_DIR, device="cpu")
        members.append(member)
    return RMatEnsembleForSequenceClassification.from_members(members), log
