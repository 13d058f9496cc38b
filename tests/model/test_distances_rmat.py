"""Distances in the short form of a store are those that the model sees."""

import numpy as np
import pytest

from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF, UNREACHABLE_DISTANCE
from rmat_hf.model.distances_rmat import (
    build_distance_matrix,
    center_coordinates,
    compute_interatomic_distances,
    expand_upper_triangle,
    quantize_coordinates,
    quantize_distances,
)


def generate_coordinates(num_atoms: int, size: float) -> np.ndarray:
    return np.random.default_rng(num_atoms).uniform(-size, size, size=(num_atoms, 3))


@pytest.mark.parametrize(("size", "dtype"), [(10.0, np.int16), (32.0, np.int16), (40, np.float32)])
def test_generated_coordinates_are_whole_steps_if_they_fit(size: float, dtype: type) -> None:
    coordinates = generate_coordinates(50, size) + 500
    quantized = quantize_coordinates(coordinates)
    assert quantized.dtype == dtype
    np.testing.assert_allclose(
        compute_interatomic_distances(quantized),
        compute_interatomic_distances(coordinates),
        atol=2e-3,
    )


def test_distances_of_whole_steps_are_exact() -> None:
    steps = np.array([[0, 0, 0], [3000, 4000, 0], [-32767, 32767, -32767]], dtype=np.int16)
    distances = compute_interatomic_distances(steps)
    assert distances[0, 1] == 5.0
    assert distances[0, 2] == np.sqrt(3 * 32767**2) / 1000


def test_batch_has_the_bits_of_one_molecule() -> None:
    coordinates = generate_coordinates(40, 9.0).astype(np.float32).reshape(4, 10, 3)
    batch = compute_interatomic_distances(coordinates)
    for one, expected in zip(coordinates, batch, strict=True):
        np.testing.assert_array_equal(compute_interatomic_distances(one), expected)


def test_given_coordinates_lose_nothing_far_from_the_origin() -> None:
    coordinates = generate_coordinates(20, 5.0)
    centered = center_coordinates(coordinates + 1e4)
    np.testing.assert_allclose(
        compute_interatomic_distances(centered),
        compute_interatomic_distances(coordinates),
        atol=2e-6,
    )


@pytest.mark.parametrize(("size", "dtype"), [(18.0, np.uint16), (60.0, np.float32)])
@pytest.mark.parametrize("num_atoms", [1, 2, 30])
def test_upper_triangle_gives_every_distance_back(num_atoms: int, size: float, dtype: type) -> None:
    coordinates = generate_coordinates(num_atoms, size)
    coordinates[0] = size
    coordinates[-1] = -size if num_atoms > 1 else size
    distances = np.round(compute_interatomic_distances(coordinates), 3)
    values = quantize_distances(distances)
    assert values.dtype == (dtype if num_atoms > 1 else np.uint16)
    expanded = expand_upper_triangle(values, num_atoms=num_atoms)
    np.testing.assert_array_equal(expanded, distances.astype(np.float32))


@pytest.mark.parametrize("is_given", [True, False])
def test_dummy_node_and_other_fragments_are_beyond_the_cutoff(is_given: bool) -> None:
    far = UNREACHABLE_DISTANCE
    topological_distances = np.array([[0, far, far], [far, 0, far], [far, far, 0]])
    coordinates = np.array([[0, 0, 0], [0, 0, 2]], dtype=np.float32)
    distances = build_distance_matrix(coordinates, topological_distances, is_given=is_given)
    assert distances.dtype == np.float32
    assert (distances[0] == BEYOND_CUTOFF).all() and (distances[:, 0] == BEYOND_CUTOFF).all()
    assert distances[1, 2] == (2 if is_given else BEYOND_CUTOFF)
    assert distances[1, 1] == 0
