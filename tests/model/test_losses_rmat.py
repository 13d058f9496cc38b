"""Losses: torch's own on dense labels, known labels only on sparse ones, zero on none."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from rmat_hf.model.losses_rmat import (
    IGNORED_LABEL,
    compute_multi_label_loss,
    compute_regression_loss,
    compute_single_label_loss,
)

Loss = Callable[..., torch.Tensor]

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


def test_regression_loss_of_dense_labels_is_the_mean_squared_error() -> None:
    predictions, labels = draw_predictions(), draw_values()
    ours = compute_regression_loss(predictions, labels)
    assert_same_loss_and_gradient(ours, F.mse_loss(predictions, labels), predictions)


def test_multi_label_loss_of_dense_labels_is_the_binary_cross_entropy() -> None:
    predictions, labels = draw_predictions(), draw_binary_labels()
    ours = compute_multi_label_loss(predictions, labels)
    theirs = F.binary_cross_entropy_with_logits(predictions, labels)
    assert_same_loss_and_gradient(ours, theirs, predictions)


def test_single_label_loss_of_dense_labels_is_the_cross_entropy() -> None:
    predictions, labels = draw_predictions(), draw_classes()
    ours = compute_single_label_loss(predictions, labels)
    assert_same_loss_and_gradient(ours, F.cross_entropy(predictions, labels), predictions)


def test_regression_loss_weighs_each_column_by_its_own_weight() -> None:
    predictions, labels = draw_predictions(), draw_values()
    ours = compute_regression_loss(predictions, labels, label_weights=WEIGHTS)
    columns = [F.mse_loss(predictions[:, i], labels[:, i]) * WEIGHTS[i] for i in range(NUM_COLUMNS)]
    assert_same_loss_and_gradient(ours, torch.stack(columns).mean(), predictions)


def test_multi_label_loss_weighs_the_positive_rows_only() -> None:
    predictions, labels = draw_predictions(), draw_binary_labels()
    ours = compute_multi_label_loss(predictions, labels, positive_weights=WEIGHTS)
    theirs = F.binary_cross_entropy_with_logits(predictions, labels, pos_weight=WEIGHTS)
    assert_same_loss_and_gradient(ours, theirs, predictions)
    negatives = torch.zeros_like(labels)
    torch.testing.assert_close(
        compute_multi_label_loss(predictions, negatives, positive_weights=WEIGHTS),
        compute_multi_label_loss(predictions, negatives),
        **EXACT,
    )


def test_single_label_loss_weighs_each_row_by_its_class() -> None:
    predictions, labels = draw_predictions(), draw_classes()
    ours = compute_single_label_loss(predictions, labels, class_weights=WEIGHTS)
    theirs = F.cross_entropy(predictions, labels, weight=WEIGHTS)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_regression_loss_with_half_of_the_labels_is_that_of_the_known_ones(
    weights: torch.Tensor | None,
) -> None:
    predictions, is_missing = draw_predictions(), draw_missing()
    labels = draw_values().masked_fill(is_missing, torch.nan)
    ours = compute_regression_loss(predictions, labels, label_weights=weights)
    errors = (predictions[~is_missing] - labels[~is_missing]) ** 2
    if weights is not None:
        errors = errors * weights.expand_as(labels)[~is_missing]
    assert_same_loss_and_gradient(ours, errors.mean(), predictions)
    assert (compute_gradient_again(compute_regression_loss, labels)[is_missing] == 0).all()


def compute_gradient_again(loss: Loss, labels: torch.Tensor) -> torch.Tensor:
    predictions = draw_predictions()
    return compute_gradient(loss(predictions, labels), predictions)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_multi_label_loss_with_half_of_the_labels_is_that_of_the_known_ones(
    weights: torch.Tensor | None,
) -> None:
    predictions, is_missing = draw_predictions(), draw_missing()
    labels = draw_binary_labels().masked_fill(is_missing, torch.nan)
    ours = compute_multi_label_loss(predictions, labels, positive_weights=weights)
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
    ours = compute_single_label_loss(predictions, labels, class_weights=weights)
    theirs = F.cross_entropy(predictions[~is_missing], draw_classes()[~is_missing], weight=weights)
    assert_same_loss_and_gradient(ours, theirs, predictions)
    assert (compute_gradient_again(compute_single_label_loss, labels)[is_missing] == 0).all()


def test_single_label_loss_takes_minus_100_among_integer_labels_as_missing() -> None:
    predictions, labels = draw_predictions(), draw_classes()
    labels[[1, 6]] = IGNORED_LABEL
    ours = compute_single_label_loss(predictions, labels, class_weights=WEIGHTS)
    theirs = F.cross_entropy(predictions, labels, weight=WEIGHTS, ignore_index=-100)
    assert_same_loss_and_gradient(ours, theirs, predictions)


@pytest.mark.parametrize(
    ("loss", "shape", "weights"),
    [
        (compute_regression_loss, (NUM_ROWS, NUM_COLUMNS), "label_weights"),
        (compute_multi_label_loss, (NUM_ROWS, NUM_COLUMNS), "positive_weights"),
        (compute_single_label_loss, (NUM_ROWS,), "class_weights"),
    ],
)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_batch_without_any_label_costs_zero_and_moves_nothing(
    loss: Loss, shape: tuple[int, ...], weights: str, is_weighted: bool
) -> None:
    predictions = draw_predictions()
    labels = torch.full(shape, torch.nan, dtype=torch.float64)
    value = loss(predictions, labels, **({weights: WEIGHTS} if is_weighted else {}))
    assert value.shape == ()
    assert value.item() == 0.0
    assert (compute_gradient(value, predictions) == 0).all()


def test_single_label_loss_of_integer_labels_that_are_all_ignored_is_zero() -> None:
    predictions = draw_predictions()
    value = compute_single_label_loss(predictions, torch.full((NUM_ROWS,), IGNORED_LABEL))
    assert value.item() == 0.0
    assert (compute_gradient(value, predictions) == 0).all()


@pytest.mark.parametrize("loss", [compute_regression_loss, compute_multi_label_loss])
def test_a_huge_prediction_for_a_missing_label_costs_nothing(loss: Loss) -> None:
    predictions = torch.zeros(2, 1)
    predictions[0] = 1e30  # its square is infinite in float32
    predictions.requires_grad_()
    value = loss(predictions, torch.tensor([[torch.nan], [1.0]]))
    expected = loss(torch.zeros(1, 1), torch.ones(1, 1))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert compute_gradient(value, predictions)[0].item() == 0.0


@given(seed=st.integers(0, 2**16), num_extra=st.integers(1, 5))
def test_rows_without_labels_do_not_change_any_loss(seed: int, num_extra: int) -> None:
    predictions = draw_predictions(seed)
    extra = torch.full((num_extra, NUM_COLUMNS), 7.0, dtype=torch.float64)
    nan = torch.full((num_extra, NUM_COLUMNS), torch.nan, dtype=torch.float64)
    more = torch.cat((predictions, extra))
    cases: list[tuple[Loss, torch.Tensor, torch.Tensor]] = [
        (compute_regression_loss, draw_values(seed + 1), nan),
        (compute_multi_label_loss, draw_binary_labels(seed + 1), nan),
        (compute_single_label_loss, draw_classes().double(), nan[:, 0]),
    ]
    for loss, labels, missing in cases:
        torch.testing.assert_close(
            loss(more, torch.cat((labels, missing))), loss(predictions, labels), **EXACT
        )
