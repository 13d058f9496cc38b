"""Old checkpoints go by their steps; by their times, a clock that goes back removes the last."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.trainer import Trainer
from transformers.trainer_utils import rotate_checkpoints


@contextmanager
def rotated_by_step(trainer: Trainer, *, trial: Any = None) -> Iterator[None]:
    """Remove the checkpoints with the fewest steps after the block, which saves one.

    `Trainer` itself sorts them by the time of their last change: after a correction of the clock
    it takes the new checkpoint for the oldest one and removes it.

    Args:
        trainer (`Trainer`): `save_total_limit` of its arguments says how many stay.
        trial (*optional*): Trial of a search, as `Trainer` passes it.
    """
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
