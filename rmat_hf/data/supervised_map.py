"""Compute in processes that may die: every item has its outcome or the reason why it has none."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
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
_TOO_MANY = (
    "A worker process ended before it began. There is too little memory for so many: use fewer."
)
# A process that was itself spawned would spawn its workers, which takes seconds for each. macOS has
# a fork that its own libraries do not survive, Windows none.
_CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"
_FORK: Any = multiprocessing.get_context("fork" if _CAN_FORK else "spawn")
_SPAWN: Any = multiprocessing.get_context("spawn")
# How a process ends that the timer of `_limit_time` has ended.
_TIME_LIMIT_EXIT = -signal.SIGALRM if hasattr(signal, "setitimer") else 1


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
    """
    waiting = deque(items)
    running: dict[Any, tuple[BaseProcess, Item]] = {}
    begun = set()
    try:
        while waiting or running:
            while waiting and len(running) < num_proc:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_answer, args=(work, waiting[0], theirs))
                with _explained_start(), _interrupts_blocked():
                    process.start()
                theirs.close()
                running[ours] = (process, waiting.popleft())
            ready: list[Any] = wait(list(running))
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
                    raise WorkerError(_TOO_MANY)
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
    longer than the limit. The chunk that it had in hand is then computed item by item, each in a
    new process: only what dies alone has failed. Everything else is as if nothing had happened.

    Close the iterator, by `contextlib.closing`, if it is not used up: the workers end then.
    """
    work = partial(_compute_chunk, compute, item_time_limit_s)
    workers = [_Worker(work, describe_death) for _ in range(num_workers)]
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def compute_chunk(chunk: Sequence[Item]) -> list[Outcome]:
        worker = idle.get()
        try:
            return worker.compute(chunk)
        finally:
            idle.put(worker)

    # a thread waits for each process, so that it gets the next chunk at once
    threads = ThreadPoolExecutor(num_workers)
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for worker in workers:
            worker.start()
        for chunk in chunks:
            waiting.append(threads.submit(compute_chunk, chunk))
            if len(waiting) >= num_workers * CHUNKS_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for worker in workers:
            worker.end()
        threads.shutdown(cancel_futures=True)


def follow_parent() -> None:
    """End with the parent of this process, even if it is killed; leave Ctrl-C to it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a fork has the handlers of its parent
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    # the pipe that multiprocessing closes with the parent stays open in forks of the same parent,
    # and on Windows the parent's number stays
    while os.getppid() == parent.pid and parent.is_alive():
        time.sleep(_POLL_INTERVAL_S)
    os._exit(1)


class _Worker:
    """A process that computes one chunk after the other; a new one takes its place if it dies."""

    # A process that is forked meanwhile would keep the pipe of another one open.
    starting = threading.Lock()

    def __init__(
        self, work: Callable[[Any], list[Any]], describe_death: Callable[[str], Any]
    ) -> None:
        self.work, self.describe_death = work, describe_death
        self.process: Any = None
        self.is_ended = False

    def start(self) -> None:
        with self.starting:
            if self.is_ended:
                return
            self.connection, theirs = _FORK.Pipe()
            self.process = _FORK.Process(target=_serve, args=(self.work, theirs), daemon=True)
            with _explained_start():
                self.process.start()
            theirs.close()
            self.has_begun = False

    def end(self) -> None:
        with self.starting:
            self.is_ended = True
            if self.process is not None and self.process.pid is not None:
                # one that has just been forked may lose a signal that Python handles
                self.process.kill()
                self.process.join()

    def compute(self, chunk: Sequence[Any]) -> list[Any]:
        outcomes, cause = self.ask(chunk)
        if cause is None:
            return outcomes
        outcomes = []
        for item in chunk:
            found, cause = self.ask([item])
            outcomes += [self.describe_death(cause)] if cause is not None else found
            if cause is None and len(chunk) > 1:  # what dies shall die of itself
                self.process.kill()
                self.replace()
        return outcomes

    def ask(self, chunk: Sequence[Any]) -> tuple[list[Any], str | None]:
        """Return the outcomes, or what the end of the process says."""
        try:
            if not self.has_begun:
                self.has_begun = self.connection.recv()
            self.connection.send(chunk)
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            had_begun = self.has_begun
            cause = self.replace()
            if not had_begun:
                raise WorkerError(_TOO_MANY) from error
            return [], cause
        if isinstance(answer, Exception):
            raise answer
        return answer, None

    def replace(self) -> str:
        """Start anew when the process has ended, and return why it has."""
        self.process.join()
        self.connection.close()
        cause = _describe_exit(self.process.exitcode)
        self.start()
        return cause


@contextmanager
def _explained_start() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkerError(
            f"A worker process cannot start: {error.strerror}. Use fewer processes, or end others."
        ) from error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let what starts meanwhile never get a Ctrl-C, which is the parent's; Windows has no masks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _describe_exit(exit_code: int | None) -> str:
    if exit_code == _TIME_LIMIT_EXIT:
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
    outcomes = []
    for item in chunk:
        _limit_time(time_limit_s)
        outcomes.append(compute(item))
        _limit_time(0)
    return outcomes


def _limit_time(seconds: int) -> None:
    """End this process in so many seconds, with 0 never: RDKit would notice no Python thread."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
    elif seconds:
        # a thread of C; the traceback goes where nobody reads it
        faulthandler.dump_traceback_later(seconds, exit=True, file=_open_null_device())
    else:
        faulthandler.cancel_dump_traceback_later()


@cache
def _open_null_device() -> int:
    return os.open(os.devnull, os.O_WRONLY)


def _serve(work: Callable[[Any], list[Any]], connection: Connection) -> None:
    follow_parent()
    connection.send(_BEGUN)
    while True:
        try:
            chunk = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = work(chunk)
        except Exception as error:  # noqa: BLE001 - the parent raises it
            answer = error
        connection.send(answer)


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
