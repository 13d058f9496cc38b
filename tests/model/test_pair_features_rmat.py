"""Pair features: radial basis and the table of integer codes."""

import pytest
import torch
from tiny import TINY_ARCHITECTURE

from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF, UNREACHABLE_DISTANCE, RMatConfig
from rmat_hf.model.pair_features_rmat import RMatPairFeatures, compute_radial_basis


@pytest.mark.parametrize("exponent", [5, 3])
def test_radial_basis_is_zero_from_the_cutoff_on_and_smooth_before(exponent: int) -> None:
    distances = torch.tensor([[0.0, 1.5, 19.9999, 20.0, 25.0, BEYOND_CUTOFF]])
    basis = compute_radial_basis(distances, num_radial_basis=4, cutoff=20.0, exponent=exponent)
    assert basis.shape == (1, 6, 4)
    assert (basis[0, 3:] == 0).all()
    assert basis[0, 2].abs().max() < 1e-6
    torch.testing.assert_close(basis[0, 0], torch.pi * torch.arange(1.0, 5.0), rtol=1e-3, atol=0)
    assert torch.isfinite(basis).all()


def test_radial_basis_of_bfloat16_distances_is_computed_in_float32() -> None:
    distances = torch.tensor([1.25, 3.5], dtype=torch.bfloat16)
    options = {"num_radial_basis": 32, "cutoff": 20.0, "exponent": 5}
    basis = compute_radial_basis(distances, **options)
    assert basis.dtype == torch.float32
    torch.testing.assert_close(basis, compute_radial_basis(distances.float(), **options))


def test_codes_look_up_bond_features_and_neighborhood_order() -> None:
    pair_features = RMatPairFeatures(RMatConfig(**TINY_ARCHITECTURE))
    aromatic_in_ring = 1 + 8 * 1 + 4 + 2 + 1
    bond_types = torch.tensor([[[0, 1, aromatic_in_ring, 33]]], dtype=torch.uint8)
    distances = torch.tensor([[[UNREACHABLE_DISTANCE, 1, 1, 200]]], dtype=torch.uint8)
    codes, basis = pair_features(bond_types, distances, torch.ones(1, 1, 4))
    rows = pair_features.code_features[codes[0, 0]].tolist()
    assert rows[0] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert rows[1] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert rows[2] == [0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0]
    assert rows[3] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    assert basis.shape == (1, 1, 4, TINY_ARCHITECTURE["num_radial_basis"])


@pytest.mark.parametrize("max_neighborhood_order", [1, 2, 7])
def test_longer_paths_share_the_last_class_but_unreachable(max_neighborhood_order: int) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, max_neighborhood_order=max_neighborhood_order)
    paths = torch.tensor([[[0, 1, 2, 3, 7, 8, 254, UNREACHABLE_DISTANCE]]], dtype=torch.uint8)
    codes, _ = RMatPairFeatures(config)(torch.zeros_like(paths), paths, torch.ones(1, 1, 8))
    expected = [min(path, max_neighborhood_order) for path in (0, 1, 2, 3, 7, 8, 254)]
    assert codes[0, 0].tolist() == [*expected, max_neighborhood_order + 1]
