"""A clock that goes back or jumps ahead removes no checkpoint that is needed."""

import os
from pathlib import Path
from typing import Any

import pytest
from tiny_trainer import build_rows, build_trainer
from transformers import TrainerCallback

from rmat_hf.training.checkpoints import find_last_complete_checkpoint, load_num_steps

YEARS_S = {1970: 0.0, 2100: 4.1e9}


class SetClock(TrainerCallback):
    """Gives a checkpoint the time of a clock that is wrong."""

    def __init__(self, year: int) -> None:
        self.year = year

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        os.utime(folder, (YEARS_S[self.year], YEARS_S[self.year]))


@pytest.mark.parametrize("year", YEARS_S)
@pytest.mark.parametrize("limit", [1, 2])
def test_checkpoints_with_the_most_steps_stay(tmp_path: Path, year: int, limit: int) -> None:
    trainer = build_trainer(
        tmp_path,
        train_dataset=build_rows(8),
        callbacks=[SetClock(year)],
        save_strategy="steps",
        save_steps=1,
        max_steps=5,
        save_total_limit=limit,
    )
    trainer.train()
    left = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert left == ["checkpoint-4", "checkpoint-5"][2 - limit :]
    assert trainer.args.save_total_limit == limit
    last = find_last_complete_checkpoint(tmp_path)
    assert last is not None
    assert load_num_steps(last) == 5


def test_best_checkpoint_stays_although_its_time_is_the_oldest(tmp_path: Path) -> None:
    trainer = build_trainer(
        tmp_path,
        train_dataset=build_rows(8),
        eval_dataset=build_rows(4),
        callbacks=[SetClock(1970)],
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        max_steps=4,
        save_total_limit=2,
        learning_rate=1.0,
        load_best_model_at_end=True,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {Path(best).name, "checkpoint-4"}
