"""The denominator of the loss, by which micro-batches are weighted."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_ARCHITECTURE
from tiny_trainer import build_rows, build_trainer

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training.trainer import FinetuningTrainer, compute_loss_denominator

NAN = math.nan


def build_config(problem_type: str, **options: Any) -> RMatConfig:
    return RMatConfig(**TINY_ARCHITECTURE, problem_type=problem_type, **options)


@pytest.mark.parametrize(
    ("labels", "count"),
    [([[1.0, NAN], [0.0, -100.0]], 3), ([[NAN, NAN]], 0), ([[2.0, 3.0]], 2)],
)
def test_every_known_label_counts_once(labels: list[list[float]], count: int) -> None:
    config = build_config("regression", num_labels=2)
    assert compute_loss_denominator(torch.tensor(labels), config) == count


def test_weighted_classes_count_with_their_weight() -> None:
    config = build_config("single_label_classification", num_labels=2, loss_weights=[0.5, 2.0])
    labels = torch.tensor([[0.0], [1.0], [NAN], [1.0]])
    assert compute_loss_denominator(labels, config) == 0.5 + 2.0 + 2.0


@pytest.mark.parametrize(
    ("problem_type", "loss_weights"),
    [
        ("regression", None),
        ("regression", [1.0, 3.0]),
        ("multi_label_classification", None),
        ("multi_label_classification", [2.0, 0.5]),
        ("single_label_classification", None),
        ("single_label_classification", [2.0, 0.5]),
    ],
)
def test_the_weighted_means_of_two_halves_are_the_mean_of_the_whole(
    problem_type: str, loss_weights: list[float] | None
) -> None:
    config = build_config(problem_type, num_labels=2, loss_weights=loss_weights)
    model = RMatForSequenceClassification(config)
    torch.manual_seed(0)
    output = torch.randn(8, 2)
    labels = torch.randint(0, 2, (8, 2)).float()
    labels[[0, 1, 4], 0] = NAN
    if problem_type == "single_label_classification":
        labels = labels[:, :1]
    halves = [(output[:3], labels[:3]), (output[3:], labels[3:])]
    weights = [compute_loss_denominator(part, config) for _, part in halves]
    losses = [model.compute_loss(*half) for half in halves]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    torch.testing.assert_close(mean, model.compute_loss(output, labels), rtol=1e-5, atol=1e-6)


def build_trainer_with_head(folder: Path, head_learning_rate: float | None) -> Any:
    trainer_class: Any = partial(FinetuningTrainer, head_learning_rate=head_learning_rate)
    return build_trainer(
        folder,
        trainer_class=trainer_class,
        train_dataset=build_rows(8),
        learning_rate=1e-3,
        weight_decay=0.1,
        num_train_epochs=2,
        warmup_steps=2,
        lr_scheduler_type="linear",
    )


def list_rates(trainer: Any) -> dict[str, tuple[float, float]]:
    """Return peak learning rate and weight decay by name of the parameter."""
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }


def test_the_head_alone_has_its_learning_rate(tmp_path: Path) -> None:
    trainer = build_trainer_with_head(tmp_path, 0.02)
    own = list_rates(trainer)
    common = list_rates(build_trainer_with_head(tmp_path, None))
    assert own.keys() == common.keys() == {name for name, _ in trainer.model.named_parameters()}
    for name, (rate, decay) in own.items():
        assert rate == (0.02 if name.startswith("classifier.") else 1e-3)
        assert decay == common[name][1]
    assert {rate for rate, _ in common.values()} == {1e-3}
    assert {decay for _, decay in own.values()} == {0.0, 0.1}


def test_the_schedule_scales_the_learning_rate_of_the_head_too(tmp_path: Path) -> None:
    trainer = build_trainer_with_head(tmp_path, 0.02)
    trainer.create_optimizer_and_scheduler(num_training_steps=8)
    groups = trainer.optimizer.param_groups
    assert {group["initial_lr"] for group in groups} == {1e-3, 0.02}
    for share in (0.0, 0.5, 1.0, 5 / 6):
        for group in groups:
            assert group["lr"] == pytest.approx(share * group["initial_lr"], rel=1e-9)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_a_head_with_no_learning_rate_does_not_move(tmp_path: Path) -> None:
    trainer = build_trainer_with_head(tmp_path, 0.0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        is_head = name.startswith("classifier.")
        assert torch.equal(parameter, before[name]) == is_head, name
