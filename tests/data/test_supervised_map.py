"""Processes that are killed, crash, end, hang or cannot start."""

import ctypes
import errno
import faulthandler
import functools
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rmat_hf.data import supervised_map
from rmat_hf.data.supervised_map import (
    CHUNKS_PER_WORKER,
    WorkerError,
    follow_parent,
    map_supervised,
    one_thread,
    run_in_processes,
)

CHUNKS = [list(range(start, start + 5)) for start in range(0, 100, 5)]


def crash() -> None:
    faulthandler.disable()  # pytest's would fill the log
    ctypes.string_at(0)


def hang() -> None:
    while True:
        pass


def fail() -> None:
    raise LookupError("no such thing")


def compute(item: int, *, deadly: dict[int, Callable[[], Any]], folder: Path | None = None) -> str:
    """Squares; `folder`, if there is one, keeps a second attempt from dying."""
    if item in deadly and (folder is None or not (folder / str(item)).exists()):
        if folder is not None:
            (folder / str(item)).touch()
        deadly[item]()
    return str(item**2)


def run(chunks: Any = CHUNKS, *, describe: Any = "it {}".format, **options: Any) -> Any:
    return map_supervised(
        functools.partial(compute, **options),
        chunks,
        describe_death=describe,
        num_workers=2,
        item_time_limit_s=1,
    )


def collect(chunks: Any = CHUNKS, **options: Any) -> dict[int, str]:
    found = {}
    for chunk, outcomes in zip(chunks, run(chunks, **options), strict=True):
        found |= dict(zip(chunk, outcomes, strict=True))
    return found


@pytest.mark.parametrize(
    ("die", "cause"),
    [
        (functools.partial(signal.raise_signal, signal.SIGKILL), r"was killed by signal 9"),
        (crash, r"was killed by signal 11 \(Segmentation fault\): it crashed"),
        (functools.partial(os._exit, 3), "ended with exit code 3"),
        (functools.partial(os._exit, 0), "ended with exit code 0"),
        (hang, "took more than its time limit$"),
    ],
    ids=["kill", "segfault", "exit", "exit-0", "hang"],
)
def test_item_that_kills_a_worker_fails_and_the_others_are_computed(
    die: Callable[[], Any], cause: str
) -> None:
    found = collect(deadly={37: die})
    outcome = found.pop(37)
    assert found == {item: str(item**2) for item in range(100) if item != 37}
    assert re.match(f"it {cause}", outcome)


def test_every_deadly_item_of_a_chunk_fails_alone() -> None:
    die = functools.partial(os._exit, 3)
    deadly = dict.fromkeys((0, 1, 4, 50, 99), die)
    found = collect(deadly=deadly)
    failed = {item for item, outcome in found.items() if outcome.startswith("it ended")}
    assert failed == set(deadly)
    assert all(found[item] == str(item**2) for item in set(range(100)) - failed)


def test_item_that_does_not_die_twice_has_its_outcome(tmp_path: Path) -> None:
    """As a process that the kernel kills because another one takes all memory."""
    deadly = dict.fromkeys((3, 60), functools.partial(signal.raise_signal, signal.SIGKILL))
    found = collect(deadly=deadly, folder=tmp_path)
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
    with closing(run(iterate_chunks(), deadly=deadly)) as computed:
        for number, outcomes in zip(range(200), computed, strict=False):
            assert len(outcomes) == 1
            assert outcomes[0].startswith("it ended" if number in deadly else str(number**2))
    assert taken <= 200 + 2 * CHUNKS_PER_WORKER


def test_workers_that_cannot_start_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised_map, "follow_parent", functools.partial(os._exit, 1))
    with pytest.raises(WorkerError, match="ended before it began"):
        collect(deadly={})


def test_processes_that_the_system_refuses_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(WorkerError, match="cannot start: Resource temporarily unavailable"):
        collect(deadly={})


def test_error_of_the_function_passes_through() -> None:
    with pytest.raises(LookupError, match="no such thing"):
        collect(deadly={7: fail})


def test_no_process_is_left_when_the_iterator_is_closed() -> None:
    with closing(run(CHUNKS * 4, deadly={90: functools.partial(time.sleep, 0.2)})) as computed:
        next(computed)
        workers = multiprocessing.active_children()
        assert len(workers) == 2
    assert not any(psutil.pid_exists(worker.pid or 0) for worker in workers)


def test_worker_is_ended_by_the_signal_that_its_parent_handles() -> None:
    """The parent's handler, which the workers inherit, must not run in them."""
    before = signal.signal(signal.SIGTERM, lambda *_: os.write(2, b"handled"))
    try:
        terminate = functools.partial(signal.raise_signal, signal.SIGTERM)
        found = collect(CHUNKS[:3], deadly={5: terminate})
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "was killed by signal 15 (Terminated)" in found[5]


# A process for each item


def do_job(name: str) -> str:
    if name == "fails":
        raise ValueError("no such column")
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "lasts":
        time.sleep(60)
    return f"{name} with {torch.get_num_threads()} thread"


@pytest.mark.slow
def test_jobs_end_on_their_own_and_one_that_fails_stops_no_other() -> None:
    jobs = ["first", "fails", "dies", "last"]
    ended = {job: rest for job, *rest in run_in_processes(do_job, jobs, num_proc=2)}
    assert ended["first"] == ["first with 1 thread", None]
    assert ended["last"] == ["last with 1 thread", None]
    assert ended["fails"] == [None, "no such column"]
    assert ended["dies"][0] is None
    assert "was killed by signal 9 (Killed)" in ended["dies"][1]


@pytest.mark.slow
def test_jobs_end_when_nobody_asks_for_more() -> None:
    with closing(run_in_processes(do_job, ["first", "lasts"], num_proc=2)) as ended:
        assert next(ended)[0] == "first"
    assert multiprocessing.active_children() == []


def test_one_thread_is_for_a_block_only() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Parents


def wait_for_death(started: Path) -> None:
    follow_parent()
    started.touch()
    time.sleep(60)


def start_two_and_die(folder: Path, method: str) -> None:
    """Start two processes, because a fork inherits the pipes of those before it."""
    context = multiprocessing.get_context(method)
    for name in ("first", "second"):
        child = context.Process(target=wait_for_death, args=(folder / f"{name}.started",))
        child.start()
        (folder / f"{name}.pid").write_text(str(child.pid))
    while len(list(folder.glob("*.started"))) < 2:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path, method: str) -> None:
    target = functools.partial(start_two_and_die, tmp_path, method)
    process = multiprocessing.get_context("spawn").Process(target=target)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    for name in ("first", "second"):
        child = int((tmp_path / f"{name}.pid").read_text())
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def ignore_interrupt(received: Path) -> None:
    follow_parent()
    os.kill(os.getpid(), signal.SIGINT)
    received.touch()


def test_ctrl_c_is_left_to_the_parent(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=ignore_interrupt, args=(tmp_path / "received",)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "received").exists()
