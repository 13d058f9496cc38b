"""What runs in a process of a worker pool, and what its end says."""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from rmat_hf.parent_process import follow_parent

# A process that was itself spawned would spawn its workers, which takes seconds for each.
_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)


class WorkerError(ChildProcessError):
    """Worker processes cannot start, or end before they compute anything."""


def start_process(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process for what RDKit may crash on.

    Args:
        work (`Callable`): Called in the process.
        arguments (`Any`): Of `work`, which begins with `follow_parent()`.

    Raises:
        WorkerError: It cannot start.
    """
    if multiprocessing.current_process().daemon:
        raise WorkerError(
            "A daemonic process, as those of multiprocessing.Pool, can have no workers. Use none "
            "(num_workers=0)."
        )
    process: BaseProcess = _CONTEXT.Process(target=work, args=arguments, daemon=True)
    try:
        process.start()
    except OSError as error:
        raise WorkerError(
            f"A worker process cannot start: {error.strerror}. Use fewer processes, or end others."
        ) from error
    return process


def describe_exit(exit_code: int | None, *, time_limit_s: int) -> str:
    """Return why a process ended while it had an item in hand.

    Args:
        exit_code (`int`): Of the process; negative: a signal.
        time_limit_s (`int`): Of an item.
    """
    if exit_code == -signal.SIGALRM:
        return f"took more than the time limit of {time_limit_s} s"
    if exit_code is not None and exit_code < 0:
        cause = f"was killed by signal {-exit_code} ({signal.strsignal(-exit_code)})"
    else:
        cause = f"ended with exit code {exit_code}"
    return f"{cause}: RDKit crashed on it, or it needs more memory than there is"


# In the process


def answer_chunks(  # noqa: PLR0917 - processes call it by position
    compute: Callable[[Iterable[Any]], list[Any]],
    connection: Connection,
    in_hand: Any,
    item_time_limit_s: int,
) -> None:
    """Take chunks from a pipe and send back their outcomes, until the pipe ends.

    Args:
        compute (`Callable`): As in [`WorkerPool`].
        connection (`Connection`): Gives lists of pairs of a position and an item.
        in_hand (`Any`): Shared number that is set to the position of the item in hand.
        item_time_limit_s (`int`): Seconds after which an item ends this process.
    """
    follow_parent()
    for number in (signal.SIGTERM, signal.SIGALRM):  # the parent's handlers are none of ours
        signal.signal(number, signal.SIG_DFL)

    def iterate_announced(items: list[tuple[int, Any]]) -> Iterator[Any]:
        for idx, item in items:
            in_hand.value = idx
            with _limit_time(item_time_limit_s):
                yield item

    with _ErrorsSent(connection), suppress(EOFError):
        while True:
            connection.send(compute(iterate_announced(connection.recv())))


@contextmanager
def _limit_time(seconds: int) -> Iterator[None]:
    """Let the kernel kill this process if the block takes longer; RDKit would not notice."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class _ErrorsSent:
    """Sends an error to the parent, which raises it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, error_type: type[BaseException] | None, error: object, *details: object
    ) -> bool:
        if isinstance(error, Exception):
            self.connection.send(error)
        return isinstance(error, Exception)
