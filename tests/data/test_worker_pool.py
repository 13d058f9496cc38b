"""A pool whose processes are killed, crash, end, hang or cannot start."""

import ctypes
import errno
import functools
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from rmat_hf.data import pool_process
from rmat_hf.data.pool_process import WorkerError
from rmat_hf.data.worker_pool import CHUNKS_PER_WORKER, WorkerPool

CHUNKS = [list(range(start, start + 5)) for start in range(0, 100, 5)]


def crash() -> None:
    ctypes.string_at(0)


def hang() -> None:
    while True:
        pass


def compute(
    items: Iterable[int], *, deadly: dict[int, Callable[[], Any]], folder: Path | None = None
) -> list[str]:
    """Squares; `folder`, if there is one, keeps a second attempt from dying."""
    outcomes = []
    for item in items:
        if item in deadly and (folder is None or not (folder / str(item)).exists()):
            if folder is not None:
                (folder / str(item)).touch()
            deadly[item]()
        outcomes.append(str(item**2))
    return outcomes


def build_pool(**options: Any) -> WorkerPool[int, str]:
    return WorkerPool(
        functools.partial(compute, **options),
        lambda cause: f"it {cause}",
        num_workers=2,
        item_time_limit_s=1,
    )


def run(pool: WorkerPool[int, str], chunks: list[list[int]]) -> dict[int, str]:
    found = {}
    computed = list(pool.iterate_outcomes(chunks))
    assert [chunk for chunk, _ in computed] == chunks
    for chunk, outcomes in computed:
        found |= dict(zip(chunk, outcomes, strict=True))
    return found


@pytest.mark.parametrize(
    ("die", "cause"),
    [
        (functools.partial(signal.raise_signal, signal.SIGKILL), r"was killed by signal 9"),
        (crash, r"was killed by signal 11 \(Segmentation fault\): RDKit crashed on it"),
        (functools.partial(os._exit, 3), "ended with exit code 3"),
        (functools.partial(os._exit, 0), "ended with exit code 0"),
        (hang, "took more than the time limit of 1 s$"),
    ],
    ids=["kill", "segfault", "exit", "exit-0", "hang"],
)
def test_item_that_kills_a_worker_fails_and_the_others_are_computed(
    die: Callable[[], Any], cause: str
) -> None:
    found = run(build_pool(deadly={37: die}), CHUNKS)
    outcome = found.pop(37)
    assert found == {item: str(item**2) for item in range(100) if item != 37}
    assert re.match(f"it {cause}", outcome)


def test_every_deadly_item_of_a_chunk_fails_alone() -> None:
    die = functools.partial(os._exit, 3)
    deadly = dict.fromkeys((0, 1, 4, 50, 99), die)
    found = run(build_pool(deadly=deadly), CHUNKS)
    failed = {item for item, outcome in found.items() if outcome.startswith("it ended")}
    assert failed == set(deadly)
    assert all(found[item] == str(item**2) for item in set(range(100)) - failed)


def test_item_that_does_not_die_twice_has_its_outcome(tmp_path: Path) -> None:
    """As a process that the kernel kills because another one takes all memory."""
    deadly = dict.fromkeys((3, 60), functools.partial(signal.raise_signal, signal.SIGKILL))
    found = run(build_pool(deadly=deadly, folder=tmp_path), CHUNKS)
    assert {path.name for path in tmp_path.iterdir()} == {"3", "60"}
    assert found == {item: str(item**2) for item in range(100)}


def test_few_chunks_wait_although_workers_die() -> None:
    taken = 0

    def iterate_chunks() -> Iterator[list[int]]:
        nonlocal taken
        while True:
            yield [taken]
            taken += 1

    deadly = dict.fromkeys(range(0, 300, 50), functools.partial(os._exit, 3))
    pool = build_pool(deadly=deadly)
    with closing(pool.iterate_outcomes(iterate_chunks())) as computed:
        for number, (chunk, _) in zip(range(200), computed, strict=False):
            assert chunk == [number]
    assert taken <= 200 + 2 * CHUNKS_PER_WORKER


def test_workers_that_cannot_start_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_process, "follow_parent", lambda: os._exit(1))
    with pytest.raises(WorkerError, match="3 times in a row a worker process ended"):
        run(build_pool(deadly={}), CHUNKS)


@pytest.mark.parametrize("num_started", [0, 1])
def test_processes_that_the_system_refuses_are_done_without_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, num_started: int
) -> None:
    fork, results = os.fork, []

    def refuse_later() -> int:
        if len(results) == num_started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        results.append(fork())
        return results[-1]

    monkeypatch.setattr(os, "fork", refuse_later)
    if num_started == 0:
        with pytest.raises(WorkerError, match="cannot start: Resource temporarily unavailable"):
            run(build_pool(deadly={}), CHUNKS)
    else:
        found = run(build_pool(deadly={}), CHUNKS)
        assert found == {item: str(item**2) for item in range(100)}


def test_error_of_the_function_passes_through() -> None:
    def fail() -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        run(build_pool(deadly={7: fail}), CHUNKS)


def test_no_process_is_left_when_the_iterator_is_closed() -> None:
    pool = build_pool(deadly={90: functools.partial(time.sleep, 0.2)})
    with closing(pool.iterate_outcomes(CHUNKS * 4)) as computed:
        next(computed)
        workers = multiprocessing.active_children()
        assert workers
    assert not any(psutil.pid_exists(worker.pid or 0) for worker in workers)


def test_worker_is_ended_by_the_signal_that_its_parent_handles() -> None:
    """The parent's handler, which the workers inherit, must not run in them."""
    before = signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"handled"))
    try:
        terminate = functools.partial(signal.raise_signal, signal.SIGTERM)
        found = run(build_pool(deadly={5: terminate}), CHUNKS[:3])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "was killed by signal 15 (Terminated)" in found[5]
