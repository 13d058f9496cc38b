"""What a user of Trainer takes for granted, on one process."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments
from tiny_trainer import build_model, build_rows, build_trainer
from transformers import TrainerCallback
from transformers.trainer import Trainer

from rmat_hf.data.featurization import LENGTH_COLUMN
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.trainer import RMatDataCollator


def build_run(folder: Path, **options: Any) -> FinetuningArguments:
    """Twelve molecules, three steps an epoch with a batch of 3."""
    columns = {"y": [len(smiles) for smiles in TABLE_SMILES], "part": TABLE_PARTS}
    options = {"num_train_epochs": 4, "batch_size": 3, "learning_rate": 3e-3, **options}
    folder.mkdir(exist_ok=True)
    return build_tiny_arguments(folder, columns, **options)


# Gradient accumulation and missing labels


def measure_step(folder: Path, rows: Dataset, *, micro_batches: int, **options: Any) -> Any:
    """Return gradient norm, loss and weights after one optimizer step on all rows."""
    trainer = build_trainer(
        folder,
        train_dataset=rows,
        max_steps=1,
        per_device_train_batch_size=len(rows) // micro_batches,
        gradient_accumulation_steps=micro_batches,
        **options,
    )
    trainer.train()
    log = trainer.state.log_history[0]
    return log["grad_norm"], log["loss"], trainer.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("share_missing", [0.0, 0.5])
def test_four_micro_batches_train_like_one_batch(tmp_path: Path, share_missing: float) -> None:
    rows = build_rows(16, share_missing=share_missing)
    norm, loss, weights = measure_step(tmp_path, rows, micro_batches=1)
    cut_norm, cut_loss, cut_weights = measure_step(tmp_path, rows, micro_batches=4)
    assert cut_norm == pytest.approx(norm, abs=1e-4)
    assert cut_loss == pytest.approx(loss, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(cut_weights[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "problem_type", ["regression", "multi_label_classification", "single_label_classification"]
)
def test_a_batch_without_labels_costs_nothing_and_keeps_everything_finite(
    tmp_path: Path, problem_type: str
) -> None:
    rows = build_rows(8)
    width = 1 if problem_type == "single_label_classification" else 2
    labels = [[math.nan] * width] * 4 + [[float(row % 2)] * width for row in range(4)]
    rows = rows.remove_columns("labels").add_column("labels", labels)
    model = build_model(problem_type=problem_type)
    trainer = build_trainer(tmp_path, model=model, train_dataset=rows, max_steps=2)
    trainer.train()
    first, second = trainer.state.log_history[:2]
    assert first["loss"] == first["grad_norm"] == 0.0
    assert second["loss"] > 0 and math.isfinite(second["grad_norm"]) and second["grad_norm"] > 0
    assert all(weight.isfinite().all() for weight in trainer.model.state_dict().values())
    metrics = trainer.evaluate(rows.select(range(4)))
    assert metrics["eval_loss"] == 0.0


# Batches of similar length


@pytest.mark.slow
def test_batches_of_a_finetuning_hold_molecules_of_similar_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    collate = RMatDataCollator.__call__

    def record(self: RMatDataCollator, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batches.append([len(row["features"].atom_codes) + 1 for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(RMatDataCollator, "__call__", record)
    num_train = 40
    parts = ["train"] * num_train + ["valid", "test"] * 2
    smiles = ["C" * (1 + row) for row in range(len(parts))]
    columns = {"smiles": smiles, "y": range(len(parts)), "part": parts}
    run_finetuning(build_tiny_arguments(tmp_path, columns, batch_size=2, num_train_epochs=1))
    epoch = batches[: num_train // 2]
    # the dummy node is a node too
    assert sorted(size for batch in epoch for size in batch) == list(range(2, num_train + 2))
    # two random ones differ by 13.7 on average
    assert np.mean([abs(first - second) for first, second in epoch]) < 6


@pytest.mark.parametrize("strategy", ["group_by_length", "random", "sequential"])
def test_predictions_come_in_the_order_of_the_rows(tmp_path: Path, strategy: str) -> None:
    rows = build_rows(13)
    assert sorted(rows[LENGTH_COLUMN]) != list(rows[LENGTH_COLUMN])
    options = {"length_column_name": LENGTH_COLUMN, "train_sampling_strategy": strategy}
    trainer = build_trainer(tmp_path, eval_dataset=rows, per_device_eval_batch_size=4, **options)
    output = trainer.predict(rows)
    np.testing.assert_allclose(output.label_ids, rows["labels"], rtol=1e-6)
    for row, prediction in zip(rows, output.predictions, strict=True):
        alone = trainer.predict(Dataset.from_list([row])).predictions
        np.testing.assert_allclose(prediction, alone[0], rtol=0, atol=1e-5)
    mean = np.square(output.predictions - output.label_ids).mean()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(mean, rel=1e-5)


# Interrupted and resumed


class StopAfter(TrainerCallback):
    """Ends a run after some steps, as if it had been interrupted."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        pytest.param("table", marks=pytest.mark.slow),
        "grouped table",
        "stream",
        pytest.param("repeated stream", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_and_resumed_training_ends_in_the_same_weights(
    tmp_path: Path, source: str
) -> None:
    """Trainer does not know the length of a stream, so that several passes need `repeat`."""
    rows: Any = build_rows(48 if source == "stream" else 16)
    if "stream" in source:
        rows = rows.to_iterable_dataset(num_shards=2).shuffle(seed=5, buffer_size=6)
    if source == "repeated stream":
        rows = rows.repeat(None)

    def build(name: str, **options: Any) -> Trainer:
        return build_trainer(
            tmp_path / name,
            model=build_model(hidden_dropout_prob=0.2),
            train_dataset=rows,
            train_sampling_strategy="group_by_length" if "grouped" in source else "random",
            length_column_name=LENGTH_COLUMN,
            max_steps=10,
            save_strategy="steps",
            save_steps=2,
            **options,
        )

    straight = build("straight")
    straight.train()
    build("interrupted", callbacks=[StopAfter(6)]).train()
    resumed = build("interrupted")
    resumed.train(resume_from_checkpoint=str(tmp_path / "interrupted" / "checkpoint-6"))
    assert resumed.state.global_step == 10
    expected = straight.model.state_dict()
    difference = {
        name: (weight - expected[name]).abs().max().item()
        for name, weight in resumed.model.state_dict().items()
    }
    assert set(difference.values()) == {0.0}
    start = build_model().state_dict()
    assert any(not torch.equal(expected[name], start[name]) for name in start)


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_trainer_contract import build_run
from transformers.trainer_callback import TrainerState
from rmat_hf.training.finetuning import run_finetuning

save = TrainerState.save_to_json
def save_or_die(self, path):
    save(self, path)
    if self.global_step == 6:
        Path(path).write_text(Path(path).read_text()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
TrainerState.save_to_json = save_or_die
run_finetuning(build_run(Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["state", "state and weights"])
def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    run_finetuning(build_run(tmp_path / "straight"))
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", KILLED_RUN, path, str(tmp_path / "killed")]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    work_dir = tmp_path / "killed" / "run.in_progress" / "stage-0"
    assert {entry.name for entry in work_dir.glob("checkpoint-*")} == {
        *["checkpoint-3", "checkpoint-6"]
    }
    if damage == "state and weights":
        (work_dir / "checkpoint-6" / "trainer_state.json").unlink()
        os.truncate(work_dir / "checkpoint-6" / "model.safetensors", 1000)

    run_finetuning(build_run(tmp_path / "killed", resume=True))
    assert "checkpoint-6. An older one is used." in caplog.text
    straight, resumed = (
        load_file(tmp_path / name / "run" / "model.safetensors") for name in ("straight", "killed")
    )
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert not work_dir.exists()


# Experiment trackers


@pytest.mark.slow
def test_tensorboard_events_land_in_the_output_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_finetuning(build_run(tmp_path, report_to=["tensorboard"]))
    (events,) = (tmp_path / "run" / "runs").rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events.parent))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {"train/loss", "train/grad_norm", "eval/rmse"} <= set(tags)
    assert len(accumulator.Scalars("eval/rmse")) == 4
    assert np.isfinite([scalar.value for scalar in accumulator.Scalars("eval/rmse")]).all()
