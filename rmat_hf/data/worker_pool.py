"""Processes that compute items in order, and survive an item that kills one of them."""

import multiprocessing
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from rmat_hf.data.pool_process import WorkerError, answer_chunks, describe_exit, start_process

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# Chunks of a worker that are on their way: enough to go on while another item takes long.
CHUNKS_PER_WORKER = 16
# Processes in a row that may end before they begin with an item.
MAX_FRUITLESS_STARTS = 3


@dataclass(frozen=True)
class WorkerPool(Generic[Item, Outcome]):
    """Computes the outcomes of items in processes; what kills a process gets a failure.

    A process may be killed by a crash, by the kernel for want of memory, or because an item takes
    longer than the limit. The item in hand is then computed once more, alone: only what dies there
    too has failed. Everything else is computed as if nothing had happened. The processes of
    `concurrent.futures` end together, and do not tell which of them died of what.

    Args:
        compute (`Callable`):
            Takes the items of a chunk one after the other, returns one outcome each. A function of
            a module, or a partial of one.
        describe_death (`Callable`): Takes the cause, returns the outcome of an item that kills.
        num_workers (`int`): Processes.
        item_time_limit_s (`int`): Seconds after which a process that is stuck in an item is killed.
    """

    compute: Callable[[Iterable[Item]], list[Outcome]]
    describe_death: Callable[[str], Outcome]
    num_workers: int
    item_time_limit_s: int

    def iterate_outcomes(
        self, chunks: Iterable[Sequence[Item]]
    ) -> Generator[tuple[Sequence[Item], list[Outcome]], None, None]:
        """Yield every chunk with its outcomes, in the order of the chunks, a few of them ahead.

        Close the iterator, by `contextlib.closing`, if it is not used up: the workers end then.

        Raises:
            WorkerError: Workers cannot start, or end before they compute anything.
        """
        waiting: deque[_Task] = deque()
        dispatcher = _Dispatcher(self)
        dispatcher.start()
        try:
            for chunk in chunks:
                waiting.append(_Task(chunk))
                dispatcher.add(waiting[-1])
                if len(waiting) >= self.num_workers * CHUNKS_PER_WORKER:
                    yield _take_first(waiting)
            while waiting:
                yield _take_first(waiting)
        finally:
            dispatcher.stop()


@dataclass(eq=False)
class _Task:
    """A chunk on its way."""

    chunk: Sequence[Any]
    outcomes: dict[int, Any] = field(default_factory=dict)
    died_in: set[int] = field(default_factory=set)
    error: BaseException | None = None
    is_done: threading.Event = field(default_factory=threading.Event)

    def settle(self, outcomes: dict[int, Any]) -> None:
        self.outcomes |= outcomes
        if len(self.outcomes) == len(self.chunk):
            self.is_done.set()

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.is_done.set()


_Piece = tuple[_Task, list[int]]


def _take_first(waiting: deque[_Task]) -> tuple[Sequence[Any], list[Any]]:
    task = waiting.popleft()
    task.is_done.wait()
    if task.error is not None:
        raise task.error
    return task.chunk, [task.outcomes[idx] for idx in range(len(task.chunk))]


class _Worker:
    """A process, the pipe to it, and the position in its chunk of the item that it has in hand."""

    def __init__(self, pool: WorkerPool[Any, Any]) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.in_hand = multiprocessing.RawValue("i", -1)
        self.piece: _Piece | None = None
        self.process = start_process(
            answer_chunks, pool.compute, theirs, self.in_hand, pool.item_time_limit_s
        )
        theirs.close()

    def begin(self, piece: _Piece) -> None:
        task, positions = piece
        self.piece = piece
        self.in_hand.value = -1
        with suppress(OSError):  # it has died meanwhile, and is found dead
            self.connection.send([(idx, task.chunk[idx]) for idx in positions])

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.connection.close()


class _Dispatcher(threading.Thread):
    """Keeps the workers busy while the main thread does something else."""

    def __init__(self, pool: WorkerPool[Any, Any]) -> None:
        super().__init__(daemon=True)
        self.pool = pool
        self.pieces: deque[_Piece] = deque()
        self.workers: list[_Worker] = []
        self.num_fruitless_starts = 0
        self.is_stopped = False
        self.alarm, self.bell = multiprocessing.Pipe(duplex=False)

    def add(self, task: _Task) -> None:
        if not task.chunk:
            task.is_done.set()
        self.pieces.append((task, list(range(len(task.chunk)))))
        self.bell.send_bytes(b"")

    def stop(self) -> None:
        self.is_stopped = True
        self.bell.send_bytes(b"")
        self.join()
        self.alarm.close()
        self.bell.close()

    def run(self) -> None:
        while not self.is_stopped:
            self._hand_out()
            by_connection = {worker.connection: worker for worker in self.workers}
            for ready in wait([self.alarm, *by_connection]):
                if ready is self.alarm:
                    self.alarm.recv_bytes()
                elif isinstance(ready, Connection):
                    self._listen(by_connection[ready])
        for worker in self.workers:
            worker.end()

    def _hand_out(self) -> None:
        while self.pieces:
            idle = next((worker for worker in self.workers if worker.piece is None), None)
            if idle is None:
                if len(self.workers) == self.pool.num_workers:
                    return
                try:
                    idle = _Worker(self.pool)
                except WorkerError as error:
                    if self.workers:  # the others do it
                        return
                    self._give_up(error)
                    return
                self.workers.append(idle)
            idle.begin(self.pieces.popleft())

    def _listen(self, worker: _Worker) -> None:
        try:
            answer = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._bury(worker)
            return
        if worker.piece is None:
            return
        (task, positions), worker.piece = worker.piece, None
        self.num_fruitless_starts = 0
        if isinstance(answer, BaseException):
            task.fail(answer)
        else:
            task.settle(dict(zip(positions, answer, strict=True)))

    def _bury(self, worker: _Worker) -> None:
        """Compute what a dead worker had in hand alone, and the rest of its chunk without it."""
        self.workers.remove(worker)
        worker.process.join()
        worker.connection.close()
        if worker.piece is None:
            return
        task, positions = worker.piece
        idx = worker.in_hand.value
        if idx < 0:
            self.num_fruitless_starts += 1
            self.pieces.appendleft(worker.piece)
            if self.num_fruitless_starts >= MAX_FRUITLESS_STARTS:
                self._give_up(
                    WorkerError(
                        f"{MAX_FRUITLESS_STARTS} times in a row a worker process ended before it "
                        "began. There is too little memory for so many: use fewer."
                    )
                )
            return
        rest = [position for position in positions if position != idx]
        if rest:
            self.pieces.appendleft((task, rest))
        if idx in task.died_in:
            cause = describe_exit(worker.process.exitcode, time_limit_s=self.pool.item_time_limit_s)
            task.settle({idx: self.pool.describe_death(cause)})
        else:
            task.died_in.add(idx)
            self.pieces.appendleft((task, [idx]))

    def _give_up(self, error: WorkerError) -> None:
        while self.pieces:
            self.pieces.popleft()[0].fail(error)
