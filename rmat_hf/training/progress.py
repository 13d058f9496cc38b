"""What a training shows on the screen: one bar for each phase. The losses are in the log file."""

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers.trainer import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

# Seconds between two states of the bar in a file, where each is a line of its own.
_FILE_INTERVAL_S = 30.0


class PhaseProgress(ProgressCallback):
    """One bar with rate, time left and the last metric on valid; no losses, no bar of evaluations.

    Args:
        phase: What is done, in front of the bar.
    """

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase = phase

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: PLR0917 - as in transformers
        """Show the bar, from 0 or where a checkpoint was."""
        self.current_step = 0
        if state.is_world_process_zero:
            interval = 0.1 if sys.stderr.isatty() else _FILE_INTERVAL_S
            self.training_bar = tqdm(
                total=state.max_steps, desc=self.phase, unit="step", mininterval=interval
            )

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """Show nothing."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Show nothing."""

    def on_evaluate(  # noqa: PLR0917 - as in transformers
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Put the metric that chooses the epoch behind the bar."""
        name = str(args.metric_for_best_model).removeprefix("eval_")
        value = (metrics or {}).get(f"eval_{name}")
        if self.training_bar is not None and value is not None:
            self.training_bar.set_postfix_str(f"valid {name} {value:.3g}", refresh=False)


def show_phase(trainer: Trainer, phase: str) -> None:
    """Let a trainer show one bar in the place of its dictionaries of losses."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(PhaseProgress(phase))
