import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.data.length_grouping import (
    LengthGroupedSampler,
    compute_length_order,
    group_by_length,
)

LENGTHS = np.random.default_rng(0).integers(2, 60, size=403)


def compute_padding(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Padded pairs over real ones."""
    padded = sum(len(batch) * int(lengths[batch].max()) ** 2 for batch in batches)
    return padded / float((lengths**2).sum())


def draw_batches(sampler: LengthGroupedSampler) -> list[np.ndarray]:
    rows = np.array(list(sampler))
    return [rows[start : start + sampler.batch_size] for start in range(0, len(rows), 16)]


@given(
    st.lists(st.integers(2, 300), max_size=80),
    st.integers(1, 20),
    st.sampled_from([1, 5000, 2**20]),
)
def test_every_molecule_is_in_one_batch_within_both_limits(
    num_nodes: list[int], batch_size: int, max_pairs: int
) -> None:
    batches = group_by_length(num_nodes, batch_size=batch_size, max_pairs=max_pairs)
    positions = [position for batch in batches for position in batch.tolist()]
    assert sorted(positions) == list(range(len(num_nodes)))
    sizes = [num_nodes[position] for position in positions]
    assert sizes == sorted(sizes, reverse=True)
    for batch in batches:
        largest = max(num_nodes[position] for position in batch)
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * largest**2 <= max_pairs


def test_a_batch_is_full_where_the_limits_allow() -> None:
    batches = group_by_length([10] * 7 + [4] * 5, batch_size=4, max_pairs=300)
    assert [batch.tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_equal_lengths_keep_their_order() -> None:
    assert compute_length_order([3, 5, 3, 5]).tolist() == [1, 3, 0, 2]
    assert compute_length_order([]).tolist() == []


@pytest.mark.parametrize("num_rows", [0, 5, 16, 17, 403])
def test_an_epoch_has_every_row_once(num_rows: int) -> None:
    sampler = LengthGroupedSampler(LENGTHS[:num_rows], batch_size=16, seed=0)
    assert sorted(sampler) == list(range(num_rows))
    assert len(sampler) == num_rows


def test_order_follows_from_seed_and_epoch() -> None:
    sampler = LengthGroupedSampler(LENGTHS, batch_size=16, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    again = LengthGroupedSampler(LENGTHS, batch_size=16, seed=3)
    assert list(again) == first != second
    again.set_epoch(1)
    assert list(again) == second
    assert list(LengthGroupedSampler(LENGTHS, batch_size=16, seed=4)) != first


def test_batches_of_similar_lengths_pad_less_than_random_ones() -> None:
    grouped = draw_batches(LengthGroupedSampler(LENGTHS, batch_size=16, seed=0))
    random = np.random.default_rng(1).permutation(len(LENGTHS))
    shuffled = [random[start : start + 16] for start in range(0, len(random), 16)]
    assert compute_padding(LENGTHS, grouped) < 1.6 < 2.2 < compute_padding(LENGTHS, shuffled)


def test_length_says_nothing_about_the_place_in_an_epoch() -> None:
    correlations = []
    for epoch in range(40):
        sampler = LengthGroupedSampler(LENGTHS, batch_size=16, seed=0)
        sampler.set_epoch(epoch)
        means = [LENGTHS[batch].mean() for batch in draw_batches(sampler)]
        correlations.append(np.corrcoef(means, np.arange(len(means)))[0, 1])
    assert abs(np.mean(correlations)) < 0.1


def test_a_batch_has_other_mates_in_every_epoch() -> None:
    sampler = LengthGroupedSampler(LENGTHS, batch_size=16, seed=0)
    mates = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        mates.append(next(set(batch.tolist()) for batch in draw_batches(sampler) if 7 in batch))
    assert len(mates[0] & mates[1]) < 8
