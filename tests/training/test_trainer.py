"""The denominator of the loss, by which micro-batches are weighted."""

import math
from typing import Any

import pytest
import torch
from tiny import TINY_ARCHITECTURE

from rmat_hf.configuration_rmat import RMatConfig
from rmat_hf.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training.trainer import compute_loss_denominator

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
