"""A training run: folders of its own, which appear when it is done; until then it can resume."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rmat_hf.output_folder import (
    create_folder_atomically,
    exclusive_run,
    name_work_dir,
    prepare_work_dir,
    validate_output_folder,
    validate_work_dir,
    was_overwriting,
)


class RunArguments(Protocol):
    """The flags that every training has."""

    output_dir: str
    overwrite: bool
    resume: bool


class TrainingRun:
    """The folders of one training; [`open_run`] makes it.

    Args:
        arguments (`RunArguments`): Flags of the run.
        description (`Mapping[str, Any]`): What decides its result: a resumed run has the same.
        is_main_process (`bool`): Whether this is the process of the run that writes.
    """

    def __init__(
        self, arguments: RunArguments, *, description: Mapping[str, Any], is_main_process: bool
    ) -> None:
        self.output_dir = Path(arguments.output_dir)
        self.work_dir = name_work_dir(arguments.output_dir)
        self.description = description
        self.is_main_process = is_main_process
        self.intent = {"overwrite": arguments.overwrite, "resume": arguments.resume}
        # an interrupted run that was to replace the folder still is when it is resumed
        self.overwrite = arguments.overwrite or (
            arguments.resume and was_overwriting(self.work_dir)
        )

    def validate(self) -> None:
        """Raise a `UserError` if other files, or another run, are in the way."""
        validate_output_folder(self.output_dir, overwrite=self.overwrite)
        validate_work_dir(self.work_dir, self.description, **self.intent)

    def prepare(self) -> None:
        """Create the folder of the checkpoints; nothing is written before."""
        if self.is_main_process:
            prepare_work_dir(self.work_dir, self.description, **self.intent)

    @contextmanager
    def publish(self) -> Iterator[Path]:
        """Yield a folder that becomes the output when the block ends; the checkpoints go then."""
        with create_folder_atomically(self.output_dir, overwrite=self.overwrite) as folder:
            yield folder
        shutil.rmtree(self.work_dir)


@contextmanager
def open_run(
    arguments: RunArguments, *, description: Mapping[str, Any], is_main_process: bool
) -> Iterator[TrainingRun]:
    """Yield the run that has the output folder to itself for the block.

    Args:
        arguments, description, is_main_process: As in [`TrainingRun`].

    Raises:
        UserError: Another run writes the folder, something is in the way, or the disk is full.
    """
    with exclusive_run(arguments.output_dir, is_main_process=is_main_process):
        run = TrainingRun(arguments, description=description, is_main_process=is_main_process)
        if is_main_process:
            run.validate()
        yield run
