import multiprocessing
from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from rmat_hf.training.pretraining_batches import (
    CorpusBatches,
    CorpusBatchSampler,
    PretrainingBatch,
    StreamedBatches,
    form_batches,
)

SIZES = np.random.default_rng(0).integers(2, 60, size=403)
LIMITS = {"batch_size": 16, "max_pairs": 5000}


@pytest.fixture(scope="module")
def table() -> datasets.Dataset:
    features = [f"molecule {idx}".encode() for idx in range(len(SIZES))]
    return datasets.Dataset.from_dict({"features": features, "num_nodes": SIZES.tolist()})


def take_first(batches: list[PretrainingBatch]) -> PretrainingBatch:
    return batches[0]


def read_epoch(stream: StreamedBatches, num_workers: int, rank: int = 0) -> list[PretrainingBatch]:
    """The share of a process, as accelerate's IterableDatasetShard deals batches out."""
    loader = DataLoader(stream, batch_size=1, collate_fn=take_first, num_workers=num_workers)
    return list(loader)[rank :: stream.multiple]


@given(
    st.lists(st.integers(2, 90), min_size=4, max_size=80),
    st.integers(1, 20),
    st.sampled_from([1, 2000, 2**20]),
    st.integers(1, 4),
)
def test_every_molecule_is_in_one_batch_within_the_limits(
    num_nodes: list[int], batch_size: int, max_pairs: int, multiple: int
) -> None:
    limits = {"batch_size": batch_size, "max_pairs": max_pairs}
    limits["generator"] = np.random.default_rng(0)
    batches = form_batches(num_nodes, multiple=multiple, **limits)
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(len(num_nodes)))
    assert len(batches) % multiple == 0
    num_formed = len(form_batches(num_nodes, multiple=1, **limits))
    # else the smallest come together whatever the limits
    if -(-num_formed // multiple) * multiple <= len(num_nodes):
        for batch in batches:
            largest = max(num_nodes[row] for row in batch)
            assert 1 <= len(batch) <= batch_size
            assert len(batch) == 1 or len(batch) * largest**2 <= max_pairs


def test_fewer_molecules_than_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 molecules are too few for 4 processes"):
        form_batches([5, 5, 5], multiple=4, generator=np.random.default_rng(0), **LIMITS)


def test_processes_that_take_turns_get_batches_of_similar_sizes() -> None:
    batches = form_batches(SIZES, multiple=2, generator=np.random.default_rng(0), **LIMITS)
    spans = [
        SIZES[np.concatenate(batches[start : start + 2])] for start in range(0, len(batches), 2)
    ]
    assert max(span.max() - span.min() for span in spans) < 12
    first_sizes = [int(span.max()) for span in spans]
    assert first_sizes != sorted(first_sizes)
    assert first_sizes != sorted(first_sizes, reverse=True)


def test_epochs_differ_in_order_and_company_and_not_in_number(table: datasets.Dataset) -> None:
    sampler = CorpusBatchSampler(table["num_nodes"][:], multiple=1, seed=0, **LIMITS)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert len(first) == len(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert len(second) == len(sampler)
    assert {key.epoch for key in second} == {1}
    companies = [
        {frozenset(key.rows) for key in keys if len(key.rows) > 2} for keys in (first, second)
    ]
    assert len(companies[0] & companies[1]) < len(companies[0]) / 4
    other_seed = CorpusBatchSampler(table["num_nodes"][:], multiple=1, seed=1, **LIMITS)
    assert [key.rows for key in other_seed] != [key.rows for key in first]


def test_a_key_brings_the_molecules_of_its_rows(table: datasets.Dataset) -> None:
    sampler = CorpusBatchSampler(table["num_nodes"][:], multiple=1, seed=0, **LIMITS)
    batches = CorpusBatches(table)
    assert len(batches) == len(table)
    key = next(iter(sampler))
    batch = batches[key]
    assert batch.epoch == 0
    assert batch.features == [f"molecule {row}".encode() for row in key.rows]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("buffer_size", [50, 1000])
def test_a_stream_gives_every_molecule_once_to_one_process(
    table: datasets.Dataset, num_workers: int, num_processes: int, buffer_size: int
) -> None:
    stream = StreamedBatches(
        table.to_iterable_dataset(num_shards=4),
        multiple=num_processes,
        seed=0,
        buffer_size=buffer_size,
        **LIMITS,
    )
    shares = [read_epoch(stream, num_workers, rank) for rank in range(num_processes)]
    assert len({len(share) for share in shares}) == 1
    molecules = Counter(m for share in shares for batch in share for m in batch.features)
    assert molecules == Counter(table["features"][:])


def test_epochs_of_a_stream_differ_and_repeat(table: datasets.Dataset) -> None:
    def build() -> StreamedBatches:
        shards = table.to_iterable_dataset(num_shards=4)
        return StreamedBatches(shards, multiple=1, seed=0, buffer_size=100, **LIMITS)

    stream, resumed = build(), build()
    first = list(stream)
    assert list(stream) == first
    stream.set_epoch(1)
    resumed.set_epoch(1)
    second = list(stream)
    assert {batch.epoch for batch in second} == {1}
    assert [batch.features for batch in second] != [batch.features for batch in first]
    assert list(resumed) == second


def test_a_worker_in_another_epoch_does_not_change_the_order(table: datasets.Dataset) -> None:
    """Workers skip to where a run was interrupted, each at its own speed."""
    shards = table.to_iterable_dataset(num_shards=4)
    stream = StreamedBatches(shards, multiple=1, seed=0, buffer_size=100, **LIMITS)
    undisturbed = list(stream)
    worker = multiprocessing.get_context("fork").Process(target=stream.set_epoch, args=(2,))
    worker.start()
    worker.join()
    assert worker.exitcode == 0
    assert list(stream) == undisturbed
    stream.set_epoch(2)
    assert [b.features for b in stream] != [b.features for b in undisturbed]


def test_a_stream_shorter_than_the_number_of_processes_is_refused() -> None:
    table = datasets.Dataset.from_dict({"features": [b"a"], "num_nodes": [3]})
    stream = StreamedBatches(table.to_iterable_dataset(), multiple=2, seed=0, **LIMITS)
    with pytest.raises(ValueError, match="1 molecules are too few for 2"):
        list(stream)
