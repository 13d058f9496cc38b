"""What the model knows about a pair of nodes: bond, neighborhood order and 3D distance."""

import math

import torch
from torch import nn

from .configuration_rmat import (
    MASKED_BOND_TYPE,
    NUM_BOND_ORDERS,
    NUM_BOND_TYPES,
    UNREACHABLE_DISTANCE,
    RMatConfig,
)


def widen(values: torch.Tensor) -> torch.Tensor:
    """Return the values in float32, or in float64 if that is what they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def compute_radial_basis(
    interatomic_distances: torch.Tensor, *, num_radial_basis: int, cutoff: float, exponent: int
) -> torch.Tensor:
    """Return the enveloped Bessel basis of every distance (arXiv 2003.03123, eq. 7 and 8).

    Args:
        interatomic_distances (`torch.Tensor` of shape `(batch_size, num_nodes, num_nodes)`):
            Distances in Å. Computed in float32 at least: the polynomial overflows below that.
        num_radial_basis (`int`): Number of functions.
        cutoff (`float`): Distance in Å from which on every function is zero.
        exponent (`int`): Envelope exponent.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_nodes, num_nodes, num_radial_basis)`.
    """
    distances = widen(interatomic_distances)
    # At 1, and so everywhere beyond the cutoff, the envelope is zero.
    scaled = ((distances + 1e-6) / cutoff).clamp(max=1.0)
    power = exponent + 1
    envelope = (
        1.0 / scaled
        - (power + 1) * (power + 2) / 2 * scaled ** (power - 1)
        + power * (power + 2) * scaled**power
        - power * (power + 1) / 2 * scaled ** (power + 1)
    )
    # The authors' frequencies are float32 constants, also when the rest is float64.
    frequencies = math.pi * torch.arange(
        1, num_radial_basis + 1, device=distances.device, dtype=torch.float32
    )
    frequencies = frequencies.to(distances.dtype)
    waves = (scaled.unsqueeze(-1) * frequencies).sin_()
    return waves.mul_(envelope.unsqueeze(-1))


class RMatPairFeatures(nn.Module):
    """What is known about a pair: an integer code for bond and neighborhood, and the distance.

    The table holds the `(bond features, neighborhood order)` part of the pair features for every
    combination of the two, so that a layer multiplies 204 rows instead of every pair.
    """

    def __init__(self, config: RMatConfig) -> None:
        super().__init__()
        self.config = config
        self.code_features = nn.Buffer(self.compute_code_features(), persistent=False)

    def compute_code_features(self) -> torch.Tensor:
        """Return the features of every code, `(num_codes, bond + neighborhood features)`."""
        num_orders = self.config.num_neighborhood_orders
        bond_features = torch.zeros(NUM_BOND_TYPES, self.config.num_bond_features)
        bond_features[MASKED_BOND_TYPE, 0] = 1.0
        for flags in range(MASKED_BOND_TYPE - 1):
            order, aromatic, conjugated, in_ring = flags // 8, flags // 4, flags // 2, flags
            bond_features[1 + flags, 1 + order] = 1.0
            for column, flag in enumerate((aromatic, conjugated, in_ring), 1 + NUM_BOND_ORDERS):
                bond_features[1 + flags, column] = flag % 2
        neighborhood_features = torch.eye(num_orders)
        return torch.cat(
            (
                bond_features.repeat_interleave(num_orders, dim=0),
                neighborhood_features.repeat(NUM_BOND_TYPES, 1),
            ),
            dim=1,
        )

    def forward(
        self,
        bond_types: torch.Tensor,
        topological_distances: torch.Tensor,
        interatomic_distances: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the code of every pair and, in float32 at least, the radial basis."""
        bond_types, topological_distances = bond_types.long(), topological_distances.long()
        neighborhood_orders = torch.where(
            topological_distances == UNREACHABLE_DISTANCE,
            self.config.max_neighborhood_order + 1,
            topological_distances.clamp(max=self.config.max_neighborhood_order),
        )
        pair_codes = bond_types * self.config.num_neighborhood_orders + neighborhood_orders
        radial_basis = compute_radial_basis(
            interatomic_distances,
            num_radial_basis=self.config.num_radial_basis,
            cutoff=self.config.distance_cutoff,
            exponent=self.config.radial_envelope_exponent,
        )
        return pair_codes, radial_basis


__all__ = ["RMatPairFeatures", "compute_radial_basis", "widen"]
