import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path

from rmat_hf.data.graph_distances import compute_graph_distances


def compute_expected(begins: list[int], ends: list[int], num_atoms: int) -> np.ndarray:
    graph = coo_array((np.ones(len(begins)), (begins, ends)), shape=(num_atoms, num_atoms)).tocsr()
    distances = shortest_path(graph, directed=False, unweighted=True)
    return np.where(np.isinf(distances), 255, np.minimum(distances, 254)).astype(np.uint8)


@given(seed=st.integers(0, 10_000), num_atoms=st.integers(1, 140), num_bonds=st.integers(0, 200))
def test_distances_equal_those_of_scipy(seed: int, num_atoms: int, num_bonds: int) -> None:
    rng = np.random.default_rng(seed)
    begins, ends = rng.integers(0, num_atoms, size=(2, num_bonds))
    distances = compute_graph_distances(
        begins, ends, positions=np.arange(num_atoms), max_size=num_atoms
    )
    np.testing.assert_array_equal(distances, compute_expected(begins, ends, num_atoms))


@pytest.mark.parametrize("size", [2, 64, 65, 300])
def test_molecules_of_a_batch_do_not_meet(size: int) -> None:
    """A chain, one atom, a chain."""
    chain = np.arange(size - 1)
    begins = np.concatenate([chain, chain + size + 1])
    positions = np.concatenate([np.arange(size), [0], np.arange(size)])
    distances = compute_graph_distances(begins, begins + 1, positions=positions, max_size=size)
    expected = compute_expected(chain, chain + 1, size)
    np.testing.assert_array_equal(distances[:size], expected)
    np.testing.assert_array_equal(distances[size], [0] + [255] * (size - 1))
    np.testing.assert_array_equal(distances[size + 1 :], expected)
