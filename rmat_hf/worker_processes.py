"""Processes that share a list of items, each taking the next one when it is ready."""

import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from rmat_hf.parent_process import follow_parent

# Takes items, one after the other, and is told how to report progress.
Work = Callable[[Iterator[int], Callable[[int], None]], None]

_POLL_INTERVAL_S = 0.2
# A pipe takes so much without a reader.
_MAX_MESSAGE = 4000


class WorkerProcessError(ChildProcessError):
    """A process failed or died; the message says why and what to do."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums then have the same last digits in every process."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(num_threads)


def run_in_processes(
    work: Work, items: Sequence[int], *, num_proc: int, report: Callable[[int], None]
) -> None:
    """Run a function in several processes, each with one thread, until no item is left.

    Args:
        work (`Callable`):
            Function of a module, or a partial of one. It is called once in every process with an
            iterator over the items that this process gets, in ascending order, and a function
            that takes the progress.
        items (`Sequence[int]`): Each goes to one process.
        num_proc (`int`): Processes.
        report (`Callable[[int], None]`): Called with the progress since the last call.

    Raises:
        WorkerProcessError: A process failed or died. The others are ended.
    """
    context = multiprocessing.get_context("spawn")
    next_item, progress = context.Value("q", 0), context.Value("q", 0)
    messages = context.SimpleQueue()
    shared = (work, list(items), next_item, progress, messages)
    processes = [
        context.Process(target=_start, args=shared) for _ in range(min(num_proc, len(items)))
    ]
    num_reported = 0
    try:
        for process in processes:
            process.start()
        while running := [process for process in processes if process.exitcode is None]:
            sentinels = [process.sentinel for process in running]
            multiprocessing.connection.wait(sentinels, timeout=_POLL_INTERVAL_S)
            num_done = progress.value
            report(num_done - num_reported)
            num_reported = num_done
            _raise_failure(processes, messages)
        report(progress.value - num_reported)
        _raise_failure(processes, messages)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _raise_failure(processes: Sequence[SpawnProcess], messages: Any) -> None:
    for process in processes:
        code = process.exitcode or 0
        if code < 0:
            raise WorkerProcessError(
                f"A process was ended by signal {-code} ({signal.strsignal(-code)}). Repeat the "
                "command to continue, with fewer processes if memory ran out."
            )
        if code > 0:
            reason = f"with exit code {code}" if messages.empty() else f": {messages.get()}"
            raise WorkerProcessError(f"A process failed{reason}")


def _start(  # noqa: PLR0917 - processes call it by position
    work: Work, items: list[int], next_item: Any, progress: Any, messages: Any
) -> None:
    follow_parent()

    def claim() -> Iterator[int]:
        while True:
            with next_item.get_lock():
                position = next_item.value
                next_item.value += 1
            if position >= len(items):
                return
            yield items[position]

    def report(amount: int) -> None:
        with progress.get_lock():
            progress.value += amount

    try:
        with one_thread():
            work(claim(), report)
    except (ValueError, OSError) as error:
        messages.put(str(error)[:_MAX_MESSAGE])
        raise SystemExit(1) from error
    except RuntimeError as error:
        messages.put(f"{type(error).__name__}: {error}"[:_MAX_MESSAGE])
        raise SystemExit(1) from error
