"""The mean over the atoms and its way around a linear layer that rounds."""

import torch

from rmat_hf.model.centered_linear_rmat import (
    compute_atom_mean,
    compute_atom_weights,
    is_rounded,
    project_exactly,
)

# dummy node and three atoms; dummy node, one atom and padding; nothing but the dummy node
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def test_mean_is_that_of_the_atoms_without_dummy_node_and_padding() -> None:
    states = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    weights = compute_atom_weights(MASK)
    assert weights.shape == (3, 1, 4)
    mean = compute_atom_mean(states, weights)
    torch.testing.assert_close(mean[0, 0], states[0, 1:].mean(0))
    torch.testing.assert_close(mean[1, 0], states[1, 1])
    assert not mean[2].any()


def test_mean_is_not_rounded_under_autocast_and_carries_no_gradient() -> None:
    states = 100 + torch.rand(3, 4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        mean = compute_atom_mean(states, compute_atom_weights(MASK))
    assert mean.dtype == torch.float32 and not mean.requires_grad
    torch.testing.assert_close(mean[0, 0], states.detach()[0, 1:].mean(0))


def test_projection_of_the_mean_is_exact_under_autocast_and_has_no_bias() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 3)
    mean = 100 + torch.rand(2, 1, 6)
    with torch.autocast("cpu", torch.bfloat16):
        projected = project_exactly(linear, mean)
    torch.testing.assert_close(projected, mean @ linear.weight.t(), rtol=1e-5, atol=1e-4)
    assert projected.requires_grad


class AdaptedLinear(torch.nn.Linear):
    """A layer with an adapter that scales and shifts its output."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(values) + 2.0


def test_projection_of_the_mean_has_no_bias_of_an_adapter_either() -> None:
    torch.manual_seed(0)
    linear = AdaptedLinear(6, 3)
    mean = torch.rand(2, 1, 6)
    torch.testing.assert_close(project_exactly(linear, mean), 1.5 * mean @ linear.weight.t())


def test_autocast_rounds_for_float32_weights_alone() -> None:
    states, linear = torch.zeros(1), torch.nn.Linear(1, 1)
    assert not is_rounded(states, linear)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_rounded(states, linear) and is_rounded(states.bfloat16(), linear)
        assert not is_rounded(states.double(), linear.double())
        assert not is_rounded(states.bfloat16(), linear.bfloat16())
