"""Outputs that appear whole or not at all, have one writer, and can be resumed."""

import glob
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock, Timeout

from rmat_hf.errors import UserError, explained_reading, explained_writing

if TYPE_CHECKING:
    from transformers.trainer import Trainer

logger = logging.getLogger(__name__)

WORK_ARGUMENTS_FILE = "arguments.json"
CHECKPOINT = "checkpoint-[0-9]*"
ANY_CHECKPOINT = f"**/{CHECKPOINT}"
_HEX = "[0-9a-f]" * 32


def validate_output_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Raise a [`UserError`] if `folder` cannot be created, or has files and `overwrite` is false.

    Missing parents are created.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    is_above = Path.cwd().is_relative_to(folder.resolve())
    if folder.exists() and (is_above or not folder.is_dir() or os.path.ismount(folder)):
        raise UserError(
            f"{str(folder)!r} is a file, the current folder, one above it or a mounted one. Choose "
            "another output folder."
        )
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(
            f"{str(folder)!r} is not empty. Choose another folder, or pass --overwrite to replace "
            "it."
        )


def make_parents(path: Path) -> None:
    """Create the folders above a path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent} cannot be made or written: {error.strerror}. Choose another place."
        ) from error


@contextmanager
def create_folder_atomically(folder: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends without an error.

    After an error the temporary folder is gone, and what was at `folder` before is untouched.
    [`validate_output_folder`] refuses what cannot be.
    """
    folder = Path(folder).resolve()  # a link stays, what it points to is replaced
    validate_output_folder(folder, overwrite=overwrite)
    temporary = name_temporary(folder)
    replaced = temporary.with_suffix(".replaced")
    try:
        with explained_writing(folder, way_out="Make room there, or choose another folder."):
            temporary.mkdir()
            yield temporary
            if folder.exists():
                os.replace(folder, replaced)
            os.replace(temporary, folder)
    finally:
        if replaced.exists() and not folder.exists():
            os.replace(replaced, folder)
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def open_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a stream that becomes the file when the block ends without an error.

    The content is on the disk before the name is: a file that is there is whole, whatever
    interrupts the program. A kill leaves a hidden file behind, which the next run removes.
    """
    path = Path(path)
    temporary = name_temporary(path)
    try:
        with explained_writing(path, way_out="Make room there, or choose another place."):
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # on a disk that cannot be written there is nothing to remove
            temporary.unlink(missing_ok=True)


def name_temporary(path: Path) -> Path:
    """Return a hidden name beside a file or folder for what will replace it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def save_json(path: str | Path, content: Any, *, indent: int | None = 2) -> None:
    """Write what `json` can write: the whole file or none."""
    with open_atomically(path) as stream:
        stream.write((json.dumps(content, indent=indent) + "\n").encode())


def load_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    with explained_reading(path):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no JSON object with named fields.")
    return content


@contextmanager
def lock_output(output: str | Path) -> Iterator[None]:
    """Keep a second run from writing a folder or file until the block ends.

    Whoever gets the lock, as from [`hold_lock`], removes what a killed run left half written.
    """
    output = Path(output).resolve()
    make_parents(output)
    with hold_lock(output):
        for leftover in output.parent.glob(f".{glob.escape(output.name)}.{_HEX}.tmp"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield


@contextmanager
def hold_lock(output: Path, *, waits: bool = False) -> Iterator[None]:
    """Hold the kernel's lock on a hidden file beside an output, `.NAME.lock`, for a block.

    It ends with the process, however that ends: the file that a killed run leaves locks nothing.
    On a disk without locks there is a warning instead. With `waits` it waits for another run.
    """
    path = output.with_name(f".{output.name}.lock")
    lock = FileLock(path, timeout=-1 if waits else 0)
    try:
        with explained_writing(path, way_out="Choose another output folder."):
            lock.acquire()
    except Timeout as error:
        if not path.exists():  # such as below /proc, which takes no files
            raise UserError(
                f"{path.parent} cannot be written: it takes no files. Choose another place."
            ) from error
        raise UserError(
            f"Another run is writing {str(output)!r}. Wait until it ends, or choose another output."
        ) from error
    except (NotImplementedError, OSError) as error:
        logger.warning("%s has no locks (%s): start no second run on it.", path.parent, error)
    try:
        yield
    finally:
        with suppress(OSError):  # while it is locked, so that it is ours
            path.unlink(missing_ok=True)
        lock.release()


def name_work_dir(output_dir: str | Path) -> Path:
    """Return the folder beside the output folder that holds the checkpoints of a run."""
    output_dir = Path(output_dir)
    return output_dir.with_name(output_dir.name + ".in_progress")


def find_last_complete_checkpoint(folder: Path) -> Path | None:
    """Return the complete checkpoint of `Trainer` with the most steps; `None` if there is none."""
    complete = [path for path in folder.glob(CHECKPOINT) if _is_complete(path)]
    return max(complete, key=load_num_steps, default=None)


def load_num_steps(checkpoint: Path) -> int:
    """Return the number of optimizer steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _is_complete(checkpoint: Path) -> bool:
    # Trainer writes this file last
    try:
        load_json(checkpoint / "trainer_state.json")
    except UserError:
        return False
    return True


def train_from_last_checkpoint(trainer: "Trainer") -> None:
    """Train, from the last checkpoint if there is one; its pickles are read as numbers only."""
    checkpoint = find_last_complete_checkpoint(Path(str(trainer.args.output_dir)))
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except UnpicklingError as error:
        raise UserError(
            f"A file in {str(checkpoint)!r} holds more than numbers and could run code: it is not "
            "that of a run of yours and is not loaded. Pass --overwrite to start anew."
        ) from error


@contextmanager
def rotated_by_step(trainer: "Trainer", *, trial: Any = None) -> Iterator[None]:
    """Remove the checkpoints with the fewest steps after the block, which saves one.

    `Trainer` itself takes the new one for the oldest after a correction of the clock.
    """
    from transformers.trainer_utils import rotate_checkpoints

    arguments: Any = trainer.args
    limit, arguments.save_total_limit = arguments.save_total_limit, None
    try:
        yield
    finally:
        arguments.save_total_limit = limit
    if arguments.should_save:
        rotate_checkpoints(
            output_dir=trainer._get_output_dir(trial=trial),
            save_total_limit=limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
        )


class TrainingRun:
    """The folders of one training; [`open_run`] makes it."""

    def __init__(self, arguments: Any, *, description: Mapping[str, Any], is_main: bool) -> None:
        self.output_dir = Path(arguments.output_dir)
        self.work_dir = name_work_dir(arguments.output_dir)
        self.arguments = arguments
        self.is_main = is_main
        path = self.work_dir / WORK_ARGUMENTS_FILE
        earlier = load_json(path) if path.is_file() else {}
        # an interrupted run that was to replace the folder still is when it is resumed
        self.overwrite = bool(
            arguments.overwrite or (arguments.resume and earlier.get("overwrite"))
        )
        self.description = {**description, "overwrite": self.overwrite}
        if is_main:
            self._validate(earlier)

    def _validate(self, earlier: Mapping[str, Any]) -> None:
        """Raise a [`UserError`] if other files, or another run, are in the way."""
        validate_output_folder(self.output_dir, overwrite=self.overwrite)
        place = str(self.work_dir)
        if not earlier and (self.work_dir.is_file() or any(self.work_dir.glob("*"))):
            raise UserError(f"{place!r} is no run of rmat. Move it away.")
        is_begun = any(map(_is_complete, self.work_dir.glob(ANY_CHECKPOINT)))
        if self.arguments.overwrite or not is_begun:
            return
        if not self.arguments.resume:
            raise UserError(
                f"{place!r} is an interrupted run. Pass --resume to continue it, or --overwrite."
            )
        changed = [it for it in self.description if self.description[it] != earlier.get(it)]
        if changed:
            raise UserError(
                f"{place!r} cannot be resumed: {', '.join(sorted(changed))} differ. Repeat the "
                "arguments of the interrupted run, or pass --overwrite to start anew."
            )

    def prepare(self) -> None:
        """Create the folder of the checkpoints, empty unless a run is resumed."""
        if not self.is_main:
            return
        if not self.arguments.resume:
            shutil.rmtree(self.work_dir, ignore_errors=True)
        self.work_dir.mkdir(parents=True, exist_ok=True)
        save_json(self.work_dir / WORK_ARGUMENTS_FILE, self.description)
        for checkpoint in list(self.work_dir.glob(ANY_CHECKPOINT)):
            if not _is_complete(checkpoint):
                logger.warning("Removed the cut-off %s. An older one is used.", checkpoint)
                shutil.rmtree(checkpoint)

    @contextmanager
    def publish(self) -> Iterator[Path]:
        """Yield a folder that becomes the output when the block ends; the checkpoints go then."""
        with create_folder_atomically(self.output_dir, overwrite=self.overwrite) as folder:
            yield folder
        shutil.rmtree(self.work_dir)


@contextmanager
def open_run(
    arguments: Any, *, description: Mapping[str, Any], is_main_process: bool
) -> Iterator[TrainingRun]:
    """Yield the run that has the output folder to itself for the block."""
    way_out = "Make room there and repeat the command with --resume, or choose another folder."
    with (
        lock_output(arguments.output_dir) if is_main_process else nullcontext(),
        explained_writing(name_work_dir(arguments.output_dir), way_out=way_out),
    ):
        yield TrainingRun(arguments, description=description, is_main=is_main_process)
