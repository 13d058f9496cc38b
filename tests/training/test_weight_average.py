"""The moving average of the weights: its values, and that training never sees it."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_trainer import build_rows, build_trainer
from torch import nn
from transformers.trainer_callback import TrainerCallback

from rmat_hf.training.trainer import FinetuningTrainer
from rmat_hf.training.weight_average import WeightAverage


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def build_linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_the_average_follows_its_recursion_and_the_weights_do_not_notice(
    optimizer_class: Any,
) -> None:
    model, alone = build_linear(), build_linear()
    optimizer = optimizer_class(model.parameters(), lr=0.1)
    average = WeightAverage(optimizer, decay=0.4)
    expected = None
    for step in range(1, 9):
        average.show_weights()
        take_step(model, optimizer, step)
        if step == 1:
            alone_optimizer = optimizer_class(alone.parameters(), lr=0.1)
        take_step(alone, alone_optimizer, step)
        weight = alone.weight.detach().clone()
        decay = min(0.4, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        average.show_average()
        average.show_average()
        torch.testing.assert_close(model.weight, expected)
        if step > 1:
            assert not torch.equal(model.weight, alone.weight)
    average.show_weights()
    assert torch.equal(model.weight, alone.weight)
    assert torch.equal(model.bias, alone.bias)


@pytest.mark.parametrize("is_average_shown", [True, False])
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(is_average_shown: bool) -> None:
    model = build_linear()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(optimizer, decay=0.9)
    for step in range(3):
        take_step(model, optimizer, step)
    if is_average_shown:
        average.show_average()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    restored = nn.Linear(3, 2)
    restored.load_state_dict(saved[0])
    other_optimizer = torch.optim.AdamW(restored.parameters(), lr=0.1)
    other = WeightAverage(other_optimizer, decay=0.9)
    other_optimizer.load_state_dict(saved[1])
    for shown in (average, other):
        shown.show_weights()
    take_step(model, optimizer, 7)
    take_step(restored, other_optimizer, 7)
    assert torch.equal(model.weight, restored.weight)
    for shown in (average, other):
        shown.show_average()
    assert torch.equal(model.weight, restored.weight)


def test_weights_without_gradient_are_left_as_they_are() -> None:
    model = nn.Sequential(build_linear(), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    frozen = model[1].weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    average = WeightAverage(optimizer, decay=0.9)
    for step in range(2):
        average.show_weights()
        take_step(model, optimizer, step)
        average.show_average()
    assert torch.equal(model[1].weight, frozen)
    # they can still begin to train: an optimizer takes an empty state for a new one
    model[1].requires_grad_(True)
    average.show_weights()
    take_step(model, optimizer, 2)
    assert not torch.equal(model[1].weight, frozen)


class Recorder(TrainerCallback):
    """Copies a weight after every optimizer step and in every evaluation."""

    def __init__(self) -> None:
        self.trained: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.trained.append(self._copy(model))

    def on_evaluate(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.evaluated.append(self._copy(model))

    @staticmethod
    def _copy(model: nn.Module) -> torch.Tensor:
        return next(model.parameters()).detach().clone()


def train(folder: Path, *, ema_decay: float, **options: Any) -> tuple[Any, Recorder]:
    recorder = Recorder()
    rows = build_rows(16)
    trainer_class: Any = partial(FinetuningTrainer, ema_decay=ema_decay)
    trainer = build_trainer(
        folder,
        trainer_class=trainer_class,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[recorder],
        learning_rate=1e-2,
        num_train_epochs=3,
        eval_strategy="epoch",
        **options,
    )
    trainer.train()
    return trainer, recorder


def test_training_is_that_without_an_average_and_the_average_is_evaluated_and_kept(
    tmp_path: Path,
) -> None:
    _, plain = train(tmp_path / "plain", ema_decay=0.0, save_strategy="epoch")
    trainer, averaged = train(tmp_path / "averaged", ema_decay=0.9, save_strategy="epoch")
    assert len(plain.trained) == len(averaged.trained) > 3
    for expected, weight in zip(plain.trained, averaged.trained, strict=True):
        assert torch.equal(expected, weight)

    expected = plain.trained[0]
    steps_per_epoch = len(plain.trained) // 3
    for step, weight in enumerate(plain.trained[1:], start=2):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
        if step % steps_per_epoch == 0:
            shown = averaged.evaluated[step // steps_per_epoch - 1]
            torch.testing.assert_close(shown, expected)
            name = next(name for name, _ in trainer.model.named_parameters())
            saved = load_file(tmp_path / "averaged" / f"checkpoint-{step}" / "model.safetensors")
            assert torch.equal(saved[name], shown)
    assert torch.equal(next(trainer.model.parameters()), averaged.evaluated[-1])


def test_the_best_average_is_loaded_and_stays(tmp_path: Path) -> None:
    # "best" is the highest loss here, which is not that of the last epoch
    trainer, recorder = train(
        tmp_path,
        ema_decay=0.9,
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,
    )
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = recorder.evaluated[losses.index(max(losses))]
    assert not torch.equal(best, recorder.evaluated[-1])
    assert torch.equal(next(trainer.model.parameters()), best)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(losses), rel=1e-6)
    assert torch.equal(next(trainer.model.parameters()), best)
