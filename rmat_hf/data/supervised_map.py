"""Compute in processes that may die: every item has its outcome or the reason why it has none."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from threadpoolctl import threadpool_limits

from rmat_hf.errors import UserError

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Chunks of a worker that are on their way: enough to go on while another item takes long.
CHUNKS_PER_WORKER = 16
_POLL_INTERVAL_S = 0.2
_BEGUN = "begun"
# A process that was itself spawned would spawn its workers, which takes seconds for each.
_FORK: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
_SPAWN: Any = multiprocessing.get_context("spawn")


class WorkerError(UserError):
    """Processes cannot start, or end before they compute anything."""


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
    work: Callable[[Item], Any], items: Iterable[Item], *, num_proc: int, context: Any = _SPAWN
) -> Generator[tuple[Item, Any, str | None], None, None]:
    """Compute each item in a process of its own, with one thread; one that dies stops no other.

    Close the iterator, by `contextlib.closing`, if it is not used up: the processes end then.

    Args:
        work (`Callable`): Function of a module, or a partial of one. Takes an item.
        items (`Iterable`): In the order in which to begin them.
        num_proc (`int`): Most processes at a time.
        context (*optional*): How processes start; by default each imports anew what it needs.

    Yields:
        `tuple[Item, Any, str | None]`: as items end, what `work` returned or why it did not.

    Raises:
        WorkerError: A process cannot start.
    """
    waiting = deque(items)
    running: dict[Any, tuple[BaseProcess, Item]] = {}
    begun = set()
    try:
        while waiting or running:
            while waiting and len(running) < num_proc:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(work, waiting[0], theirs))
                with _explained_start():
                    process.start()
                theirs.close()
                running[ours] = (process, waiting.popleft())
            ready: Any = wait(list(running))
            for connection in ready:
                process, item = running[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    process.join()
                    message = (None, _describe_exit(process.exitcode))
                if message == _BEGUN:
                    begun.add(connection)
                    continue
                if connection not in begun:
                    raise WorkerError(
                        "A worker process ended before it began. There is too little memory for so "
                        "many: use fewer."
                    )
                process.join()
                connection.close()
                del running[connection]
                yield item, *message
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def map_supervised(
    compute: Callable[[Item], Outcome],
    chunks: Iterable[Sequence[Item]],
    *,
    describe_death: Callable[[str], Outcome],
    num_workers: int,
    item_time_limit_s: int,
) -> Generator[list[Outcome], None, None]:
    """Compute chunks of items in worker processes, a few ahead, and yield outcomes in their order.

    A process may be killed by a crash, by the kernel for want of memory, or because an item takes
    longer than the limit. The chunks that were on their way are then computed each in a process of
    its own, and a chunk that dies there item by item: only what dies alone has failed. Everything
    else is as if nothing had happened.

    Close the iterator, by `contextlib.closing`, if it is not used up: the workers end then.

    Args:
        compute (`Callable`): Takes an item, returns its outcome.
        chunks (`Iterable[Sequence]`): Items, a few dozen each.
        describe_death (`Callable`): Takes the cause, returns the outcome of an item that kills.
        num_workers (`int`): Processes, at least 1.
        item_time_limit_s (`int`): Seconds after which a process that is stuck in an item is killed.

    Raises:
        WorkerError: Workers cannot start, or end before they compute anything.
    """
    work = partial(_compute_chunk, compute, item_time_limit_s)
    workers = _Workers(num_workers)
    waiting: deque[tuple[Sequence[Item], Future[list[Outcome]]]] = deque()
    computed_alone: dict[int, list[Outcome]] = {}

    def take_first() -> list[Outcome]:
        nonlocal workers
        chunk, future = waiting.popleft()
        if id(chunk) not in computed_alone and _is_broken(future):
            workers.end()
            # what was handed over just when the processes broke may never be done
            lost = [it for it, its in waiting if not its.done() or _is_broken(its)]
            chunks = [chunk, *lost]
            options: dict[str, Any] = {"num_proc": num_workers, "describe_death": describe_death}
            computed_alone.update(_compute_alone(work, chunks, **options))
            workers = _Workers(num_workers)
        return computed_alone.pop(id(chunk)) if id(chunk) in computed_alone else future.result()

    try:
        for chunk in chunks:
            waiting.append((chunk, workers.begin(work, chunk)))
            if len(waiting) >= num_workers * CHUNKS_PER_WORKER:
                yield take_first()
        while waiting:
            yield take_first()
    finally:
        workers.end()


def _is_broken(future: Future[Any]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


def follow_parent() -> None:
    """End with the parent of this process, even if it is killed; leave Ctrl-C to it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGALRM):  # a fork has the handlers of its parent
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    # the pipe that multiprocessing closes with the parent stays open in forks of the same parent
    while os.getppid() == parent:
        time.sleep(_POLL_INTERVAL_S)
    os._exit(1)


class _Workers:
    """The processes of one executor."""

    def __init__(self, num_workers: int) -> None:
        others = multiprocessing.active_children()
        self.executor = ProcessPoolExecutor(num_workers, _FORK, follow_parent)
        with _explained_start():
            self.executor.submit(os.getpid)  # they start with the first task
        children = multiprocessing.active_children()
        self.processes = [child for child in children if child not in others]

    def begin(self, work: Callable[[Any], Outcome], chunk: Any) -> Future[Outcome]:
        try:
            return self.executor.submit(work, chunk)
        except BrokenProcessPool as error:  # looked at when its turn comes
            future: Future[Outcome] = Future()
            future.set_exception(error)
            return future

    def end(self) -> None:
        for process in self.processes:
            process.terminate()
        self.executor.shutdown(cancel_futures=True)
        for process in self.processes:
            process.join()


def _compute_alone(
    work: Callable[[Any], Any],
    chunks: Iterable[Any],
    *,
    num_proc: int,
    describe_death: Callable[[str], Any],
) -> Iterator[tuple[int, list[Any]]]:
    """Yield id and outcomes of chunks, each of a process of its own, or one for every item."""
    alone = partial(run_in_processes, work, context=_FORK)
    for chunk, outcomes, cause in alone(chunks, num_proc=num_proc):
        if cause is not None:
            outcomes = []
            for _, found, cause in alone([[item] for item in chunk], num_proc=1):
                outcomes += [describe_death(cause)] if cause is not None else found
        yield id(chunk), outcomes


@contextmanager
def _explained_start() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"A worker process cannot start: {error.strerror}. Use fewer processes, or end others."
        ) from error


def _describe_exit(exit_code: int | None) -> str:
    if exit_code == -signal.SIGALRM:
        return "took more than its time limit"
    if exit_code is not None and exit_code < 0:
        cause = f"was killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    else:
        cause = f"ended with exit code {exit_code}"
    return f"{cause}: it crashed, or needs more memory than there is"


# In the processes


def _compute_chunk(  # noqa: PLR0917 - processes call it by position
    compute: Callable[[Any], Any], time_limit_s: int, chunk: Sequence[Any]
) -> list[Any]:
    """Let the kernel kill this process if an item takes too long; RDKit would not notice."""
    outcomes = []
    for item in chunk:
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)
        outcomes.append(compute(item))
        signal.setitimer(signal.ITIMER_REAL, 0)
    return outcomes


def _answer(  # noqa: PLR0917 - processes call it by position
    work: Callable[[Any], Any], item: Any, connection: Connection
) -> None:
    follow_parent()
    connection.send(_BEGUN)
    answer: tuple[Any, str | None]
    try:
        with one_thread():
            answer = (work(item), None)
    except (ValueError, OSError) as error:
        answer = (None, str(error))
    except RuntimeError as error:
        answer = (None, f"{type(error).__name__}: {error}")
    connection.send(answer)
