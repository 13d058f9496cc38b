"""Processes that end with their parent, however they were started."""

import multiprocessing
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from rmat_hf.parent_process import follow_parent


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
    target = partial(start_two_and_die, tmp_path, method)
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
    process = multiprocessing.get_context("spawn").Process(
        target=ignore_interrupt, args=(tmp_path / "received",)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "received").exists()


def test_a_process_that_multiprocessing_did_not_start_watches_nobody() -> None:
    before, threads = signal.getsignal(signal.SIGINT), threading.enumerate()
    try:
        follow_parent()
        assert threading.enumerate() == threads
    finally:
        signal.signal(signal.SIGINT, before)
