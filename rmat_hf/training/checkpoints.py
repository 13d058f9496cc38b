"""The work folder of a run, and the checkpoint in it to resume from: the last whole one."""

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME, Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rmat_hf.errors import UserError
from rmat_hf.output_folder import save_json
from rmat_hf.training.trainer_options import (
    load_json_fields,
)

logger = logging.getLogger(__name__)

WORK_ARGUMENTS_FILE = "arguments.json"

# Without one of these, Trainer would resume with a fresh state and not say so.
REQUIRED_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
# What FSDP with FULL_STATE_DICT writes in place of optimizer.pt.
FSDP_FILES = ("pytorch_model_fsdp.bin", "optimizer.bin")


def find_last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of which all files are whole; `None` if there is none.

    Args:
        folder (`Path`): Where `Trainer` writes its checkpoints.
    """
    for checkpoint in _list_checkpoints(folder):
        if describe_damage(checkpoint) is None:
            return checkpoint
    return None


def train_from_checkpoint(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train, from a checkpoint if there is one.

    Args:
        trainer (`Trainer`): Of transformers, which reads pickles with `weights_only=True`.
        checkpoint (`Path`, *optional*): As from [`find_last_complete_checkpoint`].

    Raises:
        UserError: A file of the checkpoint holds more than numbers, so no run has written it.
    """
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except UnpicklingError as error:
        raise UserError(
            f"A file in {str(checkpoint)!r} holds more than numbers and could run code: it is not "
            "that of a run of yours and is not loaded. Pass --overwrite to start anew."
        ) from error


def load_num_steps(checkpoint: Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return state.global_step


def remove_incomplete_checkpoints(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote or removed a checkpoint."""
    for checkpoint in _list_checkpoints(folder):
        damage = describe_damage(checkpoint)
        if damage is not None:
            logger.warning(
                "Removed the incomplete checkpoint %s: %s. The last complete one is used.",
                checkpoint,
                damage,
            )
            shutil.rmtree(checkpoint)


def describe_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, `None` if nothing is."""
    random_states = [path.name for path in checkpoint.glob("rng_state*.pth")]
    if not random_states:
        return "rng_state.pth is missing"
    names = list(REQUIRED_FILES)
    if (checkpoint / FSDP_FILES[0]).is_file():
        names[names.index("optimizer.pt")] = FSDP_FILES[1]
        names.append(FSDP_FILES[0])
    for name in (*names, *random_states):
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if not _is_whole(path):
            return f"{name} is damaged"
    return None


def _list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first; none if there is no such folder."""
    if not folder.is_dir():
        return []
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    steps = {
        path: int(match[1])
        for path in folder.iterdir()
        if path.is_dir() and (match := pattern.fullmatch(path.name))
    }
    return sorted(steps, key=steps.__getitem__, reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):
                return True
        if path.suffix == ".json":
            return bool(json.loads(path.read_text(encoding="utf-8")))
        # what `torch.save` writes is a ZIP archive, with a checksum for each of its files
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (SafetensorError, ValueError, zipfile.BadZipFile, EOFError):
        return False


def name_work_dir(output_dir: str | Path) -> Path:
    """Return the folder beside the output folder that holds the checkpoints of a run."""
    output_dir = Path(output_dir)
    return output_dir.with_name(output_dir.name + ".in_progress")


def was_overwriting(work_dir: Path) -> bool:
    """Return whether the interrupted run in a work folder was started with `--overwrite`."""
    arguments_file = work_dir / WORK_ARGUMENTS_FILE
    if not arguments_file.is_file():
        return False
    return bool(load_json_fields(str(arguments_file)).get("overwrite", False))


def validate_work_dir(
    work_dir: Path, description: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> None:
    """Raise if something else, or an interrupted run, is in the way of a run.

    Args:
        work_dir (`Path`): Its work folder.
        description (`Mapping[str, Any]`): The arguments that decide its result.
        overwrite, resume (`bool`): Whether it starts anew, or continues what is there.
    """
    arguments_file = work_dir / WORK_ARGUMENTS_FILE
    if not work_dir.exists():
        return
    if not arguments_file.is_file():
        if not work_dir.is_dir() or any(work_dir.iterdir()):
            raise UserError(f"{str(work_dir)!r} is no run of rmat. Move it away.")
        return
    if overwrite or not _has_progress(work_dir):
        return
    if not resume:
        raise UserError(
            f"An interrupted run lies in {str(work_dir)!r}. "
            "Pass --resume to continue it, or --overwrite to start anew."
        )
    earlier = load_json_fields(str(arguments_file))
    changed = sorted(name for name in description if description[name] != earlier.get(name))
    if changed:
        raise UserError(
            f"Cannot resume: {', '.join(changed)} differ from the interrupted run. "
            "Repeat its arguments, or pass --overwrite to start anew."
        )


def prepare_work_dir(
    work_dir: Path, description: Mapping[str, Any], *, overwrite: bool, resume: bool
) -> None:
    """Create the folder of the checkpoints, empty unless a run is resumed."""
    if not resume:
        shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    overwrite = overwrite or was_overwriting(work_dir)
    save_json(work_dir / WORK_ARGUMENTS_FILE, {**description, "overwrite": overwrite})
    for folder in (work_dir, *_list_stages(work_dir)):
        remove_incomplete_checkpoints(folder)


def _has_progress(work_dir: Path) -> bool:
    folders = (work_dir, *_list_stages(work_dir))
    return any(find_last_complete_checkpoint(folder) is not None for folder in folders)


def _list_stages(work_dir: Path) -> list[Path]:
    """Return the folders of the stages of a run that has several."""
    return sorted(path for path in work_dir.glob("stage-*") if path.is_dir())
