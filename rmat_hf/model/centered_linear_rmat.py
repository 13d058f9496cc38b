"""Linear layers under autocast that do not round what the atoms of a molecule have in common.

What all atoms share is larger than how they differ, and no mean over the atoms takes its rounding
error out again. One row per molecule holds it, so that keeping it exact costs little.
"""

import torch
from torch import nn

from .configuration_rmat import DUMMY_NODE_IDX


def compute_atom_weights(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the weights of a mean over the atoms of every molecule.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch_size, num_nodes)`): 0 for padding.

    Returns:
        `torch.Tensor` of shape `(batch_size, 1, num_nodes)`, float32: 0 for padding and for the
        dummy node, which differs too much from the atoms to be one of them.
    """
    nodes = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    atoms = ((attention_mask != 0) & (nodes != DUMMY_NODE_IDX)).float()
    return (atoms / atoms.sum(1, keepdim=True).clamp(min=1.0)).unsqueeze(1)


def is_rounded(states: torch.Tensor, linear: nn.Module) -> bool:
    """Return whether autocast rounds what a linear layer with float32 weights is given."""
    # weights in half precision are rounded already, and autocast leaves float64 alone
    return torch.is_autocast_enabled(states.device.type) and linear.bias.dtype == torch.float32


@torch.no_grad()
def compute_atom_mean(states: torch.Tensor, atom_weights: torch.Tensor) -> torch.Tensor:
    """Return the mean over the atoms, `(batch_size, 1, size)`, without a gradient.

    It needs none where it is taken off the input of a linear layer and what the layer makes of it
    is added to the output.

    Args:
        states (`torch.Tensor` of shape `(batch_size, num_nodes, size)`): States of the nodes.
        atom_weights (`torch.Tensor` of shape `(batch_size, 1, num_nodes)`): Of the mean.
    """
    with torch.autocast(states.device.type, enabled=False):
        return torch.bmm(atom_weights.to(states.dtype), states)


def project_exactly(linear: nn.Module, mean: torch.Tensor) -> torch.Tensor:
    """Return what a linear layer makes of the mean, without its bias and without rounding.

    Args:
        linear (`torch.nn.Module`): Linear layer, or one that stands in for it, as of an adapter.
        mean (`torch.Tensor` of shape `(batch_size, 1, size)`): From `compute_atom_mean`.
    """
    with torch.autocast(mean.device.type, enabled=False):
        # one row of zeros more gives the bias, that of an adapter too
        outputs = linear(nn.functional.pad(mean, (0, 0, 0, 0, 0, 1)))
        return outputs[:-1] - outputs[-1:]


__all__ = ["compute_atom_mean", "compute_atom_weights", "is_rounded", "project_exactly"]
