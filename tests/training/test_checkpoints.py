"""A checkpoint counts only if every file of it is whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from malicious import write_pickle
from safetensors.torch import save_file
from tiny_trainer import build_rows, build_trainer

from rmat_hf.errors import UserError
from rmat_hf.training.checkpoints import (
    describe_damage,
    find_last_complete_checkpoint,
    remove_incomplete_checkpoints,
    train_from_checkpoint,
)


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    save_file({"weight": torch.ones(100)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"state": torch.ones(100)}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return checkpoint


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(tmp_path: Path) -> None:
    assert find_last_complete_checkpoint(tmp_path) is None
    for step in (9, 10, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert find_last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty])
def test_a_missing_or_cut_file_makes_a_checkpoint_incomplete(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    older, newer = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    assert describe_damage(newer) is None
    damage(newer / name)
    assert name in str(describe_damage(newer))
    assert find_last_complete_checkpoint(tmp_path) == older


def test_a_changed_byte_of_the_optimizer_is_noticed(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 1)
    flip_byte(checkpoint / "optimizer.pt")
    assert describe_damage(checkpoint) == "optimizer.pt is damaged"


def test_checkpoints_of_two_processes_have_two_random_states(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 1)
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert describe_damage(checkpoint) is None
    (checkpoint / "rng_state_1.pth").write_bytes(b"")
    assert describe_damage(checkpoint) == "rng_state_1.pth is damaged"


def test_incomplete_checkpoints_are_removed_and_named_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    truncate(newer / "optimizer.pt")
    remove_incomplete_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [older.name]
    assert "checkpoint-2: optimizer.pt is damaged" in caplog.text


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_refused_and_not_run(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": build_rows(4), "save_strategy": "steps"}
    options |= {"save_steps": 1, "max_steps": 1}
    train_from_checkpoint(build_trainer(tmp_path / "work", **options), None)
    checkpoint = find_last_complete_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    write_pickle(checkpoint / name, tmp_path / "executed")
    assert describe_damage(checkpoint) is None
    trainer = build_trainer(tmp_path / "work", **{**options, "max_steps": 2})
    with pytest.raises(UserError, match=r"could run code.*Pass --overwrite"):
        train_from_checkpoint(trainer, checkpoint)
    assert not (tmp_path / "executed").exists()
