"""End a command on Ctrl-C and on the signals that a scheduler or a closed terminal sends."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

# A shell adds this to the number of the signal that ended a program.
SIGNAL_EXIT_CODE = 128
RETRY_DELAY_S = 0.05
# As typer ends a command whose output nobody reads any more.
CLOSED_PIPE_EXIT_CODE = 1


class Interruption(KeyboardInterrupt):
    """A signal asked the command to end.

    Args:
        signal_number (`int`): Which one.
    """

    def __init__(self, signal_number: int) -> None:
        name = "" if signal_number == signal.SIGINT else f" by {signal.Signals(signal_number).name}"
        super().__init__(f"interrupted{name}")
        self.signal_number = signal_number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise an [`Interruption`] in the block at SIGINT, SIGTERM or SIGHUP.

    So `finally` and `with` clean up after a SIGTERM too. A second signal ends the process at once.
    A signal that the caller ignores, as `nohup` does, stays ignored. Of the processes that are
    forked in the block, SIGINT ends none, since Ctrl-C goes to all of them and this one ends the
    others; SIGTERM ends them in the usual way.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread only
        return
    catcher = _SignalCatcher()
    catcher.install()
    try:
        yield
    finally:
        catcher.restore()
        error = sys.exc_info()[1]
        # what goes wrong meanwhile, as with workers that have got the signal too, is its effect
        if catcher.received and error is not None and not isinstance(error, KeyboardInterrupt):
            raise Interruption(catcher.received) from error


class _SignalCatcher:
    """The handlers of a block, and what was there before them."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.received = 0
        usual: dict[int, Any] = {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }
        self.before: dict[int, Any] = {
            number: handler
            for number, handler in usual.items()
            if signal.getsignal(number) is handler
        }

    def install(self) -> None:
        for number in self.before:
            signal.signal(number, self.interrupt)
        self.report_ignored = sys.unraisablehook
        sys.unraisablehook = self.interrupt_again
        self.report_error = sys.excepthook
        sys.excepthook = self.report_unless_effect

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self.report_ignored
        sys.excepthook = self.report_error

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        for caught in self.before:
            signal.signal(caught, signal.SIG_DFL)
        self.received = number
        raise Interruption(number)

    def interrupt_again(self, ignored: Any) -> None:
        """Raise later what Python ignores where it came, as in a finalizer or around a fork."""
        if not isinstance(ignored.exc_value, Interruption):
            self.report_ignored(ignored)
        elif os.getpid() == self.owner:
            number = ignored.exc_value.signal_number
            signal.signal(number, self.interrupt)
            timer = threading.Timer(RETRY_DELAY_S, os.kill, (self.owner, number))
            timer.daemon = True
            timer.start()

    def report_unless_effect(  # noqa: PLR0917 - Python calls it by position
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Report an error, but not a connection that breaks in a fork because its parent ended."""
        is_effect = os.getpid() != self.owner and isinstance(error, ConnectionError | EOFError)
        if not is_effect:
            self.report_error(kind, error, trace)


def find_exit_code(interruption: KeyboardInterrupt) -> int:
    """Return what a shell expects of a program that a signal has ended: 130 after Ctrl-C."""
    number = getattr(interruption, "signal_number", signal.SIGINT)
    return int(SIGNAL_EXIT_CODE + number)


@contextmanager
def quiet_without_reader() -> Iterator[None]:
    """End without a word when nobody reads the output any more, as in `rmat ... | head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError):  # what is left is flushed once more at the end of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CLOSED_PIPE_EXIT_CODE)
