"""A training run has its folders to itself, and says so in one line if it cannot write them."""

from collections.abc import Iterator
from contextlib import contextmanager

from rmat_hf.errors import explained_writing
from rmat_hf.output_lock import lock_output
from rmat_hf.training.checkpoints import name_work_dir


@contextmanager
def exclusive_run(output_dir: str, *, is_main_process: bool) -> Iterator[None]:
    """Lock the output folder of a run for the block, and explain when a disk is full.

    Args:
        output_dir (`str`): Of the run; its checkpoints lie beside it.
        is_main_process (`bool`): Whether this is the process of the run that writes.

    Raises:
        UserError: Another run is writing the folder, or a file cannot be written.
    """
    way_out = "Make room there and repeat the command with --resume, or choose another folder."
    with (
        lock_output(output_dir, is_needed=is_main_process),
        explained_writing(name_work_dir(output_dir), way_out=way_out),
    ):
        yield
