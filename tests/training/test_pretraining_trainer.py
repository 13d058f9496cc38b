from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_pretraining import DESCRIPTORS, build_pretraining_arguments
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

from rmat_hf.model.modeling_rmat import RMatForPreTraining
from rmat_hf.training.pretraining import PretrainingTask, build_pretraining_task
from rmat_hf.training.pretraining_arguments import build_pretraining_config
from rmat_hf.training.pretraining_trainer import (
    CorpusBatches,
    PretrainingBatch,
    PretrainingTrainer,
    RMatDataCollatorForPreTraining,
)

LIMITS = {"batch_size": 8, "max_pairs": 1500}
ORDER = {"multiple": 1, "seed": 42}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainingTask:
    """108 molecules of 2 to 18 heavy atoms, some of them held out."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return build_pretraining_task(build_pretraining_arguments(tmp_path))


class RecordingCollator(RMatDataCollatorForPreTraining):
    """Notes down the batches it is given."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.batches: list[PretrainingBatch] = []

    def __call__(self, batches: list[PretrainingBatch]) -> dict[str, torch.Tensor]:
        self.batches += batches
        return super().__call__(batches)


def build_trainer(folder: Path, task: PretrainingTask, **options: Any) -> PretrainingTrainer:
    """Contexts and descriptors at once, logged at every step."""
    set_seed(0)
    fields: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    arguments = build_pretraining_arguments(folder, masked_distances="hidden")
    collator = RecordingCollator(task.objectives, processor=task.processor, arguments=arguments)
    heads = {objective.head: objective.describe_head() for objective in task.objectives.values()}
    return PretrainingTrainer(
        model=RMatForPreTraining(build_pretraining_config(arguments, heads)),
        args=TrainingArguments(output_dir=str(folder / "work"), **{**fields, **options}),
        data_collator=collator,
        train_dataset=CorpusBatches(task.train, **ORDER, **LIMITS),
        eval_dataset=CorpusBatches(task.valid, **ORDER, **LIMITS),
        objectives=task.objectives,
    )


def test_every_molecule_is_seen_once_an_epoch_in_batches_within_the_limits(
    tmp_path: Path, task: PretrainingTask
) -> None:
    trainer = build_trainer(tmp_path, task)
    trainer.train()
    num_nodes = dict(zip(task.train["features"][:], task.train["num_nodes"][:], strict=True))
    orders = []
    for epoch in (0, 1):
        batches = [batch for batch in trainer.data_collator.batches if batch.epoch == epoch]
        seen = [molecule for batch in batches for molecule in batch.features]
        assert sorted(seen) == sorted(num_nodes)
        orders.append(seen)
        for batch in batches:
            sizes = [num_nodes[molecule] for molecule in batch.features]
            assert len(sizes) <= LIMITS["batch_size"]
            assert max(sizes) ** 2 * len(sizes) <= LIMITS["max_pairs"]
            assert max(sizes) - min(sizes) <= 6
    assert orders[0] != orders[1]
    assert trainer.state.global_step == len(trainer.data_collator.batches)
    assert trainer.state.epoch == 2


@pytest.mark.parametrize("gradient_accumulation_steps", [1, 3])
def test_the_log_has_both_losses_and_the_speed_and_they_add_up(
    tmp_path: Path, task: PretrainingTask, gradient_accumulation_steps: int
) -> None:
    options = {"gradient_accumulation_steps": gradient_accumulation_steps, "num_train_epochs": 3}
    trainer = build_trainer(tmp_path, task, logging_steps=5, **options)
    trainer.train()
    num_batches = len(trainer.data_collator.batches)
    assert trainer.state.global_step == 3 * -(-num_batches // (3 * gradient_accumulation_steps))
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == trainer.state.global_step // 5
    for row in rows:
        assert row["context_loss"] + row["descriptor_loss"] == pytest.approx(
            row["loss"], abs=2e-3 if gradient_accumulation_steps == 1 else 0.5
        )
        assert row["molecules_per_second"] > 0


def test_an_evaluation_gives_the_metrics_of_all_molecules_held_out_and_repeats_itself(
    tmp_path: Path, task: PretrainingTask
) -> None:
    trainer = build_trainer(tmp_path, task)
    metrics = trainer.evaluate()
    batches = trainer.data_collator.batches
    assert sorted(molecule for batch in batches for molecule in batch.features) == sorted(
        task.valid["features"][:]
    )
    # whatever the batches are
    collate = trainer.data_collator
    expected: dict[str, Any] = {}
    for objective in task.objectives.values():
        sums = torch.zeros(())
        for molecule in task.valid["features"][:]:
            inputs = collate([PretrainingBatch(0, [molecule])])
            with torch.no_grad():
                logits = trainer.model.eval()(**inputs).logits[objective.head]
            labels = inputs[f"{objective.head}_labels"]
            sums = sums + objective.compute_sums(logits, labels=labels)
        expected |= objective.compute_metrics(sums)
    expected["loss"] = expected["context_loss"] + expected["descriptor_loss"]
    for name, value in expected.items():
        if isinstance(value, float):
            assert metrics[f"eval_{name}"] == pytest.approx(value, abs=1e-5)
    assert set(trainer.last_report["worst_descriptors"]) <= set(DESCRIPTORS)
    assert metrics["eval_num_centers"] == expected["num_centers"]

    trainer.train()
    trained = trainer.evaluate()
    assert trained["eval_num_centers"] == metrics["eval_num_centers"]
    assert trained == {**trainer.evaluate(), **_get_times(trained)}


def _get_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "runtime" in name or "per" in name}


def test_an_evaluation_within_the_training_leaves_the_training_as_it_is(
    tmp_path: Path, task: PretrainingTask
) -> None:
    plain = build_trainer(tmp_path, task)
    plain.train()
    scored = build_trainer(tmp_path, task, eval_strategy="steps", eval_steps=3)
    scored.train()
    assert any("eval_loss" in row for row in scored.state.log_history)
    weights = scored.model.state_dict()
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(weights[name], weight), name
