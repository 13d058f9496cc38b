"""What the output of a head means, alone and averaged over an ensemble."""

import numpy as np
import pytest
import torch

from rmat_hf.model.probabilities_rmat import average_logits, compute_probabilities, compute_spread

PROBLEM_TYPES = [
    *(None, "regression"),
    *("multi_label_classification", "single_label_classification"),
]
EXACT = {"rtol": 0, "atol": 1e-12}

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
def test_an_average_has_the_mean_prediction_of_the_members(problem_type: str | None) -> None:
    logits = draw_member_logits()
    average = compute_probabilities(average_logits(logits, problem_type), problem_type)
    expected = compute_probabilities(logits, problem_type).mean(1)
    torch.testing.assert_close(average, expected, **EXACT)


@each_problem
def test_a_single_member_predicts_alone_and_has_no_spread(problem_type: str | None) -> None:
    logits = draw_member_logits()[:, :1]
    average = compute_probabilities(average_logits(logits, problem_type), problem_type)
    alone = compute_probabilities(logits[:, 0], problem_type)
    torch.testing.assert_close(average, alone, **EXACT)
    assert torch.equal(compute_spread(logits, problem_type), torch.zeros(5, 3).double())


def test_members_that_are_sure_do_not_overflow() -> None:
    logits = torch.tensor([[[-200.0], [-300.0]]])
    average = average_logits(logits, "multi_label_classification")
    # half of the probability of the first: log(exp(-200) / 2)
    torch.testing.assert_close(average, torch.tensor([[-200.0 - np.log(2.0)]]).float())


def test_a_spread_is_the_standard_deviation_in_the_units_of_the_prediction() -> None:
    values = torch.tensor([[[1.0], [3.0]]])
    torch.testing.assert_close(compute_spread(values, "regression"), torch.ones(1, 1).double())
    logits = torch.tensor([[[0.0], [np.log(3.0)]]])
    spread = compute_spread(logits, "multi_label_classification")
    torch.testing.assert_close(spread, torch.tensor([[0.125]]).double())
