"""Losses: torch's own on dense labels, known labels only on sparse ones, zero on none.

And what the output of a head means by its loss, alone and averaged over an ensemble.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    IGNORED_LABEL,
    LOSSES,
    PROBLEM_TYPES,
    RMatForSequenceClassification,
    RMatLoss,
    RMatSquaredErrorLoss,
    choose,
    choose_loss,
    compute_loss_denominator,
    compute_probabilities,
    compute_spread,
)

compute_regression_loss = LOSSES["regression"]
compute_multi_label_loss = LOSSES["multi_label_classification"]
compute_single_label_loss = LOSSES["single_label_classification"]

NUM_ROWS, NUM_COLUMNS = 8, 3
# far apart and in no symmetric order, so that a swap or a wrong normalization shows
WEIGHTS = torch.tensor([0.2, 5.0, 1.5], dtype=torch.float64)
EXACT = {"rtol": 0, "atol": 1e-12}


def draw_predictions(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    predictions = 3 * torch.randn(NUM_ROWS, NUM_COLUMNS, generator=generator, dtype=torch.float64)
    return predictions.requires_grad_()


def draw_values(seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, NUM_COLUMNS, generator=generator, dtype=torch.float64)


def draw_binary_labels(seed: int = 1) -> torch.Tensor:
    return (draw_values(seed) > 0).double()


def draw_classes() -> torch.Tensor:
    return torch.tensor([0, 2, 1, 1, 0, 2, 0, 1])


def draw_missing(seed: int = 2) -> torch.Tensor:
    """Half of the labels, a different number in every column."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(NUM_ROWS * NUM_COLUMNS, generator=generator)
    return (order < NUM_ROWS * NUM_COLUMNS // 2).view(NUM_ROWS, NUM_COLUMNS)


def compute_gradient(loss: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, predictions)[0]


def assert_same_loss_and_gradient(
    ours: torch.Tensor, theirs: torch.Tensor, predictions: torch.Tensor
) -> None:
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(
        compute_gradient(ours, predictions), compute_gradient(theirs, predictions), **EXACT
    )


@pytest.mark.parametrize(
    ("loss", "draw_labels", "of_torch"),
    [
        (compute_regression_loss, draw_values, F.mse_loss),
        (compute_multi_label_loss, draw_binary_labels, F.binary_cross_entropy_with_logits),
        (compute_single_label_loss, draw_classes, F.cross_entropy),
    ],
)
def test_loss_of_dense_labels_is_that_of_torch(
    loss: RMatLoss, draw_labels: Any, of_torch: Any
) -> None:
    predictions, labels = draw_predictions(), draw_labels()
    ours = loss(predictions, labels)
    assert_same_loss_and_gradient(ours, of_torch(predictions, labels), predictions)


def test_regression_loss_weighs_each_column_by_its_own_weight() -> None:
    predictions, labels = draw_predictions(), draw_values()
    ours = compute_regression_loss(predictions, labels, weights=WEIGHTS)
    columns = [F.mse_loss(predictions[:, i], labels[:, i]) * WEIGHTS[i] for i in range(NUM_COLUMNS)]
    assert_same_loss_and_gradient(ours, torch.stack(columns).mean(), predictions)


def test_multi_label_loss_weighs_the_positive_rows_only() -> None:
    predictions, labels = draw_predictions(), draw_binary_labels()
    ours = compute_multi_label_loss(predictions, labels, weights=WEIGHTS)
    theirs = F.binary_cross_entropy_with_logits(predictions, labels, pos_weight=WEIGHTS)
    assert_same_loss_and_gradient(ours, theirs, predictions)
    negatives = torch.zeros_like(labels)
    torch.testing.assert_close(
        compute_multi_label_loss(predictions, negatives, weights=WEIGHTS),
        compute_multi_label_loss(predictions, negatives),
        **EXACT,
    )


def test_single_label_loss_weighs_each_row_by_its_class() -> None:
    predictions, labels = draw_predictions(), draw_classes()
    ours = compute_single_label_loss(predictions, labels, weights=WEIGHTS)
    theirs = F.cross_entropy(predictions, labels, weight=WEIGHTS)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_regression_loss_with_half_of_the_labels_is_that_of_the_known_ones(
    weights: torch.Tensor | None,
) -> None:
    predictions, is_missing = draw_predictions(), draw_missing()
    labels = draw_values().masked_fill(is_missing, torch.nan)
    ours = compute_regression_loss(predictions, labels, weights=weights)
    errors = (predictions[~is_missing] - labels[~is_missing]) ** 2
    if weights is not None:
        errors = errors * weights.expand_as(labels)[~is_missing]
    assert_same_loss_and_gradient(ours, errors.mean(), predictions)
    assert (compute_gradient_again(compute_regression_loss, labels)[is_missing] == 0).all()


def compute_gradient_again(loss: RMatLoss, labels: torch.Tensor) -> torch.Tensor:
    predictions = draw_predictions()
    return compute_gradient(loss(predictions, labels), predictions)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_multi_label_loss_with_half_of_the_labels_is_that_of_the_known_ones(
    weights: torch.Tensor | None,
) -> None:
    predictions, is_missing = draw_predictions(), draw_missing()
    labels = draw_binary_labels().masked_fill(is_missing, torch.nan)
    ours = compute_multi_label_loss(predictions, labels, weights=weights)
    theirs = F.binary_cross_entropy_with_logits(
        predictions[~is_missing],
        labels[~is_missing],
        pos_weight=None if weights is None else weights.expand_as(labels)[~is_missing],
    )
    assert_same_loss_and_gradient(ours, theirs, predictions)
    assert (compute_gradient_again(compute_multi_label_loss, labels)[is_missing] == 0).all()


@pytest.mark.parametrize("missing", [torch.nan, float(IGNORED_LABEL)], ids=["nan", "-100"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_single_label_loss_with_half_of_the_labels_is_that_of_the_known_rows(
    weights: torch.Tensor | None, missing: float
) -> None:
    predictions = draw_predictions()
    is_missing = torch.tensor([True, False, False, True, True, False, False, True])
    labels = draw_classes().double().masked_fill(is_missing, missing)
    ours = compute_single_label_loss(predictions, labels, weights=weights)
    theirs = F.cross_entropy(predictions[~is_missing], draw_classes()[~is_missing], weight=weights)
    assert_same_loss_and_gradient(ours, theirs, predictions)
    assert (compute_gradient_again(compute_single_label_loss, labels)[is_missing] == 0).all()


def test_single_label_loss_takes_minus_100_among_integer_labels_as_missing() -> None:
    predictions, labels = draw_predictions(), draw_classes()
    labels[[1, 6]] = IGNORED_LABEL
    ours = compute_single_label_loss(predictions, labels, weights=WEIGHTS)
    theirs = F.cross_entropy(predictions, labels, weight=WEIGHTS, ignore_index=-100)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (compute_regression_loss, (NUM_ROWS, NUM_COLUMNS)),
        (compute_multi_label_loss, (NUM_ROWS, NUM_COLUMNS)),
        (compute_single_label_loss, (NUM_ROWS,)),
    ],
)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_a_batch_without_any_label_costs_zero_and_moves_nothing(
    loss: RMatLoss, shape: tuple[int, ...], weights: torch.Tensor | None
) -> None:
    predictions = draw_predictions()
    labels = torch.full(shape, torch.nan, dtype=torch.float64)
    value = loss(predictions, labels, weights)
    assert value.shape == ()
    assert value.item() == 0.0
    assert (compute_gradient(value, predictions) == 0).all()


@pytest.mark.parametrize("loss", [compute_regression_loss, compute_multi_label_loss])
def test_a_huge_prediction_for_a_missing_label_costs_nothing(loss: RMatLoss) -> None:
    predictions = torch.zeros(2, 1)
    predictions[0] = 1e30  # its square is infinite in float32
    predictions.requires_grad_()
    value = loss(predictions, torch.tensor([[torch.nan], [1.0]]))
    expected = loss(torch.zeros(1, 1), torch.ones(1, 1))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert compute_gradient(value, predictions)[0].item() == 0.0


# The loss of a configuration


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels", "expected"),
    [
        (None, 1, torch.ones(2, dtype=torch.long), "regression"),
        (None, 2, torch.ones(2, dtype=torch.long), "single_label_classification"),
        (None, 2, torch.ones(2, 2), "multi_label_classification"),
        ("regression", 2, torch.ones(2, 2), "regression"),
    ],
)
def test_a_configuration_without_problem_type_has_the_loss_transformers_would_take(
    problem_type: str | None, num_labels: int, labels: torch.Tensor, expected: str
) -> None:
    config = RMatConfig(problem_type=problem_type, num_labels=num_labels)
    assert choose_loss(config, labels) is LOSSES[expected]


class HuberLoss(RMatSquaredErrorLoss):
    """A loss that grows linearly far from the label."""

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return F.huber_loss(logits, labels, reduction="none")


def test_a_loss_of_ones_own_is_a_class_and_a_line(
    monkeypatch: pytest.MonkeyPatch, tiny_config: RMatConfig, tiny_batch: dict[str, torch.Tensor]
) -> None:
    monkeypatch.setitem(LOSSES, "huber", HuberLoss())
    tiny_config.loss = "huber"
    model = RMatForSequenceClassification(tiny_config).eval()
    labels = torch.full((len(tiny_batch["node_features"]), 1), 5.0)
    labels[1] = torch.nan
    output = model(**tiny_batch, labels=labels)
    known = ~labels.isnan()
    torch.testing.assert_close(output.loss, F.huber_loss(output.logits[known], labels[known]))
    assert compute_loss_denominator(labels, tiny_config) == known.sum()


@pytest.mark.parametrize("field", ["loss", "problem_type"])
def test_a_loss_that_nobody_registered_is_named_with_those_that_are(
    tiny_config: RMatConfig, field: str
) -> None:
    setattr(tiny_config, field, "hubber")
    with pytest.raises(ValueError, match=r"'hubber'.*regression"):
        RMatForSequenceClassification(tiny_config)
    assert choose({"a": 1}, "a") == 1


# What outputs mean


each_problem = pytest.mark.parametrize("problem_type", PROBLEM_TYPES)


def draw_member_logits() -> torch.Tensor:
    """Five molecules, four members, three labels."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)


def test_probabilities_are_what_the_problem_type_says() -> None:
    logits = torch.tensor([[0.0, np.log(3.0)], [-2.0, 2.0]])
    softmax = compute_probabilities(logits, "single_label_classification")
    torch.testing.assert_close(softmax[0], torch.tensor([0.25, 0.75]).double())
    sigmoid = compute_probabilities(logits, "multi_label_classification")
    torch.testing.assert_close(sigmoid[0], torch.tensor([0.5, 0.75]).double())
    for problem_type in ("regression", None):
        assert torch.equal(compute_probabilities(logits, problem_type), logits.double())


def test_probabilities_of_bfloat16_logits_still_sum_to_one() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]]).bfloat16()
    total = compute_probabilities(logits, "single_label_classification").sum(-1)
    torch.testing.assert_close(total, torch.ones(1).double(), **EXACT)


@each_problem
def test_an_average_has_the_mean_prediction_of_the_members(problem_type: str) -> None:
    logits = draw_member_logits()
    average = compute_probabilities(LOSSES[problem_type].average_logits(logits), problem_type)
    expected = compute_probabilities(logits, problem_type).mean(1)
    torch.testing.assert_close(average, expected, **EXACT)


@each_problem
def test_a_single_member_predicts_alone_and_has_no_spread(problem_type: str) -> None:
    logits = draw_member_logits()[:, :1]
    average = compute_probabilities(LOSSES[problem_type].average_logits(logits), problem_type)
    alone = compute_probabilities(logits[:, 0], problem_type)
    torch.testing.assert_close(average, alone, **EXACT)
    assert torch.equal(compute_spread(logits, problem_type), torch.zeros(5, 3).double())


def test_members_that_are_sure_do_not_overflow() -> None:
    logits = torch.tensor([[[-200.0], [-300.0]]])
    average = LOSSES["multi_label_classification"].average_logits(logits)
    # half of the probability of the first: log(exp(-200) / 2)
    torch.testing.assert_close(average, torch.tensor([[-200.0 - np.log(2.0)]]).float())


def test_a_spread_is_the_standard_deviation_in_the_units_of_the_prediction() -> None:
    values = torch.tensor([[[1.0], [3.0]]])
    torch.testing.assert_close(compute_spread(values, "regression"), torch.ones(1, 1).double())
    logits = torch.tensor([[[0.0], [np.log(3.0)]]])
    spread = compute_spread(logits, "multi_label_classification")
    torch.testing.assert_close(spread, torch.tensor([[0.125]]).double())
