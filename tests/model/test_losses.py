"""Losses: torch's own on dense labels, known labels only on sparse ones, zero on none.

And what the output of a head means by its loss, alone and averaged over an ensemble.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.losses_rmat import (
    IGNORED_LABEL,
    LOSSES,
    PROBLEM_TYPES,
    choose,
    choose_loss,
    compute_label_loss,
    compute_loss_denominator,
    compute_probabilities,
    compute_spread,
    restore_labels,
)
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.transforms_rmat import LABEL_TRANSFORMS, undo_label_transforms

NUM_ROWS, NUM_COLUMNS = 8, 3
# far apart and in no symmetric order, so that a swap or a wrong normalization shows
WEIGHTS = torch.tensor([0.2, 5.0, 1.5], dtype=torch.float64)
EXACT = {"rtol": 0, "atol": 1e-12}
CLASSES = torch.tensor([0, 2, 1, 1, 0, 2, 0, 1])


def draw_values(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, NUM_COLUMNS, generator=generator, dtype=torch.float64)


def draw_predictions() -> torch.Tensor:
    return (3 * draw_values(0)).requires_grad_()


def compute_gradient(loss: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, predictions)[0]


def assert_same_loss_and_gradient(
    ours: torch.Tensor, theirs: torch.Tensor, predictions: torch.Tensor
) -> None:
    torch.testing.assert_close(ours, theirs, **EXACT)
    torch.testing.assert_close(
        compute_gradient(ours, predictions), compute_gradient(theirs, predictions), **EXACT
    )


def compute_with_torch(
    problem_type: str, predictions: torch.Tensor, labels: torch.Tensor, weights: Any
) -> torch.Tensor:
    """The loss of torch over the labels that are known."""
    known = ~labels.isnan()
    if problem_type == "single_label_classification":
        return F.cross_entropy(predictions[known], labels[known].long(), weight=weights)
    weights = None if weights is None else weights.expand_as(labels)[known]
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(
            predictions[known], labels[known], pos_weight=weights
        )
    errors = F.mse_loss(predictions[known], labels[known], reduction="none")
    return (errors if weights is None else errors * weights).mean()


each_problem = pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
each_weighting = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])


@each_problem
@each_weighting
@pytest.mark.parametrize("share_known", [1.0, 0.5])
def test_loss_is_that_of_torch_on_the_labels_that_are_known(
    problem_type: str, weights: torch.Tensor | None, share_known: float
) -> None:
    labels = {
        "regression": draw_values(1),
        "multi_label_classification": (draw_values(1) > 0).double(),
        "single_label_classification": CLASSES.double(),
    }[problem_type]
    generator = torch.Generator().manual_seed(2)
    order = torch.randperm(labels.numel(), generator=generator).view(labels.shape)
    labels[order >= share_known * labels.numel()] = torch.nan
    predictions = draw_predictions()
    ours = LOSSES[problem_type](predictions, labels, weights)
    theirs = compute_with_torch(problem_type, predictions, labels, weights)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@pytest.mark.parametrize("dtype", [torch.long, torch.double])
def test_single_label_loss_takes_minus_100_as_missing(dtype: torch.dtype) -> None:
    predictions, labels = draw_predictions(), CLASSES.clone()
    labels[[1, 6]] = IGNORED_LABEL
    ours = LOSSES["single_label_classification"](predictions, labels.to(dtype), weights=WEIGHTS)
    theirs = F.cross_entropy(predictions, labels, weight=WEIGHTS, ignore_index=-100)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@each_problem
@each_weighting
def test_a_batch_without_any_label_costs_zero_and_moves_nothing(
    problem_type: str, weights: torch.Tensor | None
) -> None:
    is_class = problem_type == "single_label_classification"
    predictions = draw_predictions()
    labels = torch.full((NUM_ROWS,) if is_class else predictions.shape, torch.nan).double()
    value = LOSSES[problem_type](predictions, labels, weights)
    assert value.shape == ()
    assert value.item() == 0.0
    assert (compute_gradient(value, predictions) == 0).all()


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_a_huge_prediction_for_a_missing_label_costs_nothing(problem_type: str) -> None:
    loss, predictions = LOSSES[problem_type], torch.zeros(2, 1)
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


@pytest.mark.parametrize(
    ("field", "known"),
    [("loss", "regression"), ("problem_type", "regression"), ("pooling", "dummy_node")],
)
def test_a_name_that_nobody_registered_is_named_with_those_that_are(
    tiny_config: RMatConfig, field: str, known: str
) -> None:
    setattr(tiny_config, field, "hubber")
    with pytest.raises(ValueError, match=f"'hubber'.*{known}"):
        RMatForSequenceClassification(tiny_config)
    assert choose({"a": 1}, "a") == 1


# What outputs mean


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
@pytest.mark.parametrize("num_members", [1, 4])
def test_an_average_has_the_mean_prediction_of_the_members(
    problem_type: str, num_members: int
) -> None:
    logits = draw_member_logits()[:, :num_members]
    average = compute_probabilities(LOSSES[problem_type].average_logits(logits), problem_type)
    expected = compute_probabilities(logits, problem_type)
    torch.testing.assert_close(average, expected.mean(1), **EXACT)
    spread = compute_spread(logits, problem_type)
    torch.testing.assert_close(spread, expected.std(1, correction=0), **EXACT)


def test_members_that_are_sure_do_not_overflow() -> None:
    logits = torch.tensor([[[-200.0], [-300.0]]])
    average = LOSSES["multi_label_classification"].average_logits(logits)
    # half of the probability of the first: log(exp(-200) / 2)
    torch.testing.assert_close(average, torch.tensor([[-200.0 - np.log(2.0)]]).float())


# Bounds, weights, numbers and classes


def build_bounded(
    labels: torch.Tensor, *, signs: torch.Tensor | None = None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Labels as a data set packs them: least values, largest values, weights of rows."""
    signs = torch.zeros_like(labels) if signs is None else signs
    weights = torch.ones(len(labels), dtype=labels.dtype) if weights is None else weights
    low = torch.where(signs < 0, -torch.inf, labels).masked_fill(labels.isnan(), torch.nan)
    high = torch.where(signs > 0, torch.inf, labels).masked_fill(labels.isnan(), torch.nan)
    return torch.cat([low, high, weights[:, None].expand_as(labels)], dim=1)


def compute_bounded(predictions: torch.Tensor, packed: torch.Tensor, **fields: Any) -> torch.Tensor:
    names = {"id2label": dict(enumerate("abc")), "problem_type": "regression", "loss": "bounded"}
    config = RMatConfig(**{**names, **fields})
    loss = compute_label_loss(config, predictions, packed)
    denominator = compute_loss_denominator(packed, config)
    known = ~packed[:, :NUM_COLUMNS].isnan()
    expected = (packed[:, 2 * NUM_COLUMNS :] * known).sum()
    torch.testing.assert_close(denominator, expected, **EXACT)
    return loss


@pytest.mark.parametrize("is_packed", [True, False])
def test_measured_numbers_cost_what_they_do_without_bounds(is_packed: bool) -> None:
    labels, predictions = draw_values(1), draw_predictions()
    labels[2, 1] = torch.nan
    ours = compute_bounded(predictions, build_bounded(labels)) if is_packed else None
    if ours is None:
        config = RMatConfig(num_labels=3, problem_type="regression", loss="bounded")
        ours = compute_label_loss(config, predictions, labels)
    theirs = LOSSES["regression"](predictions, labels)
    assert_same_loss_and_gradient(ours, theirs, predictions)


def test_a_bound_costs_what_lies_on_its_wrong_side_alone() -> None:
    labels, predictions = draw_values(1), draw_predictions()
    signs = draw_values(2).sign()
    ours = compute_bounded(predictions, build_bounded(labels, signs=signs))
    theirs = ((labels - predictions) * signs).clamp_min(0).square().mean()
    assert_same_loss_and_gradient(ours, theirs, predictions)


def test_scaled_labels_keep_their_bounds_and_weights() -> None:
    labels, predictions = draw_values(1), draw_predictions()
    signs, weights = draw_values(2).sign(), draw_values(3)[:, 0].abs()
    scaling = {"label_mean": [1.0, -2.0, 30.0], "label_std": [2.0, 0.1, 9.0]}
    mean, std = (torch.tensor(it, dtype=torch.float64) for it in scaling.values())
    packed = build_bounded(labels, signs=signs, weights=weights)
    in_units = build_bounded(labels * std + mean, signs=signs, weights=weights)
    ours = compute_bounded(predictions, in_units, **scaling)
    theirs = compute_bounded(predictions, packed)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_a_row_of_weight_two_is_two_rows() -> None:
    labels, predictions = draw_values(1), draw_predictions()
    weights = torch.tensor([2.0, *[1.0] * (NUM_ROWS - 1)], dtype=torch.float64)
    ours = compute_bounded(predictions, build_bounded(labels, weights=weights))
    rows = [0, *range(NUM_ROWS)]
    theirs = LOSSES["regression"](predictions[rows], labels[rows])
    assert_same_loss_and_gradient(ours, theirs, predictions)


def test_numbers_and_classes_are_learned_together_and_shown_as_users_read_them() -> None:
    labels, predictions = draw_values(1), draw_predictions()
    labels[:, 1] = (labels[:, 1] > 0).double()
    types = ["regression", "multi_label_classification", "regression"]
    scaling = {"label_mean": [0.0, 0.0, 1.0], "label_std": [1.0, 1.0, 1.0]}
    ours = compute_bounded(predictions, build_bounded(labels), label_types=types, **scaling)
    number, other = ((predictions - labels + it)[:, idx] for idx, it in ((0, 0), (2, 1)))
    classes = F.binary_cross_entropy_with_logits(predictions[:, 1], labels[:, 1], reduction="sum")
    theirs = (number.square().sum() + other.square().sum() + classes) / labels.numel()
    assert_same_loss_and_gradient(ours, theirs, predictions)
    config = RMatConfig(num_labels=3, problem_type="regression", label_types=types, **scaling)
    shown = restore_labels(predictions, config)
    torch.testing.assert_close(shown[:, 1], predictions[:, 1].sigmoid(), **EXACT)
    torch.testing.assert_close(shown[:, 2], predictions[:, 2] + 1, **EXACT)


def test_yes_and_no_labels_can_have_weights() -> None:
    labels, predictions = (draw_values(1) > 0).double(), draw_predictions()
    weights = draw_values(3)[:, 0].abs()
    problem_type = "multi_label_classification"
    packed = build_bounded(labels, weights=weights)
    ours = compute_bounded(predictions, packed, problem_type=problem_type)
    losses = F.binary_cross_entropy_with_logits(predictions, labels, reduction="none")
    theirs = (losses * weights[:, None]).sum() / (weights.sum() * NUM_COLUMNS)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@pytest.mark.parametrize(("name", "unit"), [("log10", ""), ("pIC50", "nM"), ("pIC50", "µM")])
def test_a_label_transform_is_undone(name: str, unit: str) -> None:
    transform = LABEL_TRANSFORMS[name]
    assert transform is not None
    values = np.array([[0.01, 5.0], [30.0, 1e7]])
    learned = torch.from_numpy(np.stack([transform.apply(values[:, 0], unit), values[:, 1]], 1))
    fields = {"label_transforms": [name, "none"], "label_units": [unit, ""]}
    config = RMatConfig(num_labels=2, problem_type="regression", **fields)
    np.testing.assert_allclose(undo_label_transforms(learned, config), values, rtol=1e-12)
    np.testing.assert_allclose(undo_label_transforms(learned.numpy(), config), values, rtol=1e-12)
