"""What a user is told: which errors are a user's, in one line, with the way out; and signals."""

import _thread
import csv
import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm

# Characters of a message on the screen; its end tells the way out, so the middle is left out.
MAX_MESSAGE = 2000

# A path of an address has one slash less.
_CREDENTIALS = re.compile(r"(?<=:/)(/?)[^/\s@'\"]+@")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}\b")
# PyTorch on a CPU raises a bare RuntimeError, as do the C++ libraries below it.
_MEMORY_WORDS = re.compile(r"allocate memory|out of memory|not enough memory|bad.alloc", re.I)
# PyTorch's writer of ZIP archives, which does not tell the reason, and safetensors, which does.
_WRITE_WORDS = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|os error \d+")
_WRITE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.EEXIST, errno.ENOTDIR),
)


class UserError(ValueError):
    """A mistake that the user can mend, told in one line that names the place and the way out."""

    def __init__(self, message: str) -> None:
        super().__init__(hide_credentials(message))


def import_draw() -> Any:
    """Return RDKit's module that draws; it wants libraries that small images of Linux lack."""
    try:
        from rdkit.Chem import Draw
    except ImportError as error:
        raise UserError(
            f"RDKit cannot draw molecules: {error}. On Debian and Ubuntu: "
            "apt-get install libexpat1 libxext6 libxrender1."
        ) from error
    return Draw


class Interruption(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        name = "" if signal_number == signal.SIGINT else f" by {signal.Signals(signal_number).name}"
        super().__init__(f"interrupted{name}")
        self.exit_code = 128 + signal_number  # as a shell counts


@contextmanager
def explained_reading(
    path: Path | str, *, way_out: str = "", also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise a [`UserError`] that names what the block fails to read, by any of its libraries.

    That is with one of [`list_reading_errors`] or `also`; `way_out` is a sentence: what to do.
    """
    try:
        yield
    except UserError:
        raise
    except (*list_reading_errors(), *also) as error:
        reason = f"cannot be read: {get_reason(error)}"
        # not what inherits from it: the Hub's errors say which repository or revision is missing
        if type(error) is FileNotFoundError:
            reason = "is not there: no such file. Check the path"
        elif isinstance(error, UnicodeDecodeError):
            reason = f"is not UTF-8 text ({error.reason}). Save it as UTF-8"
        raise UserError(f"{path} {reason.rstrip('.')}. {way_out}".rstrip()) from error


@contextmanager
def explained_writing(folder: str | Path, *, way_out: str) -> Iterator[None]:
    """Raise a [`UserError`] with the folder where the block cannot write, and what to do."""
    try:
        yield
    except list_user_errors() as error:
        reason = _find_write_failure(error)
        if reason is None:
            raise
        raise UserError(f"{folder} cannot be written: {reason}. {way_out}") from error


def list_reading_errors() -> tuple[type[Exception], ...]:
    """Return what the libraries raise for damaged files; a date beyond the calendar overflows."""
    from huggingface_hub.errors import HTTPError, StrictDataclassError
    from pyarrow import ArrowException
    from safetensors import SafetensorError

    libraries = (csv.Error, zlib.error, ArrowException, SafetensorError, StrictDataclassError)
    return (*libraries, HTTPError, OSError, EOFError, ValueError, OverflowError, RecursionError)


def list_user_errors() -> tuple[type[Exception], ...]:
    """Return all among which a user's errors are; [`describe_error`] tells them from bugs."""
    from huggingface_hub.errors import HTTPError
    from safetensors import SafetensorError

    return (ValueError, OSError, RuntimeError, MemoryError, HTTPError, SafetensorError)


def describe_error(error: BaseException) -> str | None:
    """Return one line on what went wrong and what to do; `None` for a bug."""
    from huggingface_hub.errors import HTTPError

    line, way_out = get_reason(error), None
    if _is_rate_limit(error):
        way_out = (
            "The Hub takes no more requests for now (HTTP 429). Wait a few minutes and repeat the "
            "command: what was downloaded is kept."
        )
    # an answer of the Hub, which says what is wrong, is an OSError too
    elif isinstance(error, HTTPError) and not isinstance(error, OSError):
        way_out = "The connection broke. Repeat the command: what was downloaded is kept."
    elif is_out_of_memory(error):
        way_out = (
            "There is not enough memory. Use a smaller --batch-size (rmat pretrain: --max-pairs), "
            "or leave out the largest molecules."
        )
    elif not isinstance(error, OSError) and _find_write_failure(error):
        way_out = "A file cannot be written. Make room on the disk, or choose another."
    elif not isinstance(error, ValueError | OSError):
        return None
    return line if way_out is None else f"{line.rstrip('.')}. {way_out}"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, NumPy, RDKit or PyTorch says that there was not enough memory."""
    is_bare = isinstance(error, RuntimeError) and bool(_MEMORY_WORDS.search(str(error)))
    return is_bare or isinstance(error, MemoryError)


def get_reason(error: BaseException) -> str:
    """Return the message of an error on one line, or its type without one, without credentials."""
    from huggingface_hub.errors import HTTPError

    name = type(error).__name__
    text = f"{name} {error}" if isinstance(error, KeyError) else str(error)
    cause = None if isinstance(error, UserError) else error.__cause__ or error.__context__
    # why a connection broke, which transformers leaves out; answers of the Hub are OSErrors too
    while cause is not None and (isinstance(cause, OSError) or not isinstance(cause, HTTPError)):
        cause = cause.__cause__ or cause.__context__
    text = text if cause is None else f"{text} ({cause})"
    return hide_credentials(" ".join(text.split())) or name


def say_count(number: int, noun: str) -> str:
    """Return how many there are in words, as `1 row` and `2 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def hide_credentials(text: str) -> str:
    """Return a text without the user and password of an address, and without tokens of the Hub."""
    return _HUB_TOKEN.sub("hf_***", _CREDENTIALS.sub(r"\1***@", text))


def escape_message(text: str) -> str:
    r"""Return a message on one line, in at most `MAX_MESSAGE` characters before escapes.

    Control characters, escape sequences, marks that turn the direction of writing and undecodable
    bytes are shown as escapes such as `\x1b`; a file name cannot color, erase or forge lines.
    """
    line = " ".join(text.split())
    if len(line) > MAX_MESSAGE:
        half = MAX_MESSAGE // 2
        line = f"{line[:half]} [... {len(line) - 2 * half} characters ...] {line[-half:]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )


class OnceFilter(logging.Filter):
    """Lets a warning through once: a file that is opened again has the same to say."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is shown."""
        message = record.getMessage()
        is_new = message not in self._shown or record.levelno < logging.WARNING
        self._shown.add(message)
        return is_new


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes records on lines of their own, not behind a progress bar that stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, and the bars of its stream again below it."""
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class MessageFormatter(logging.Formatter):
    """Formats log records whose messages name files and cells of strangers."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of a record with its message escaped; progress is no warning."""
        record.message = escape_message(record.message)
        if record.levelno <= logging.INFO:
            return record.message
        return super().formatMessage(record)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise an [`Interruption`] in the block at SIGINT, SIGTERM or SIGHUP.

    So `finally` and `with` clean up after a SIGTERM too. A second signal ends the process at once.
    A signal that the caller ignores, as `nohup` does, stays ignored. Processes that are forked in
    the block leave Ctrl-C, which goes to all of them, to this one, and end at SIGTERM as usual.
    Windows has no SIGHUP; its Ctrl-Break is a SIGBREAK.
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    names = {"SIGTERM", "SIGHUP", "SIGBREAK"} & vars(signal).keys()
    usual |= {getattr(signal, name): signal.SIG_DFL for name in names}
    caught = [number for number in usual if signal.getsignal(number) is usual[number]]
    owner, received = os.getpid(), []
    timers: list[threading.Timer] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            signal.raise_signal(number)
            return
        for other in caught:
            signal.signal(other, signal.SIG_DFL)
        received.append(number)
        # a thread that shares tensors with workers would tell of those that the signal has ended,
        # and a finalizer of what it left half built
        sys.excepthook = lambda *_: None
        sys.unraisablehook = interrupt_again
        raise Interruption(number)

    def interrupt_again(unraisable: Any) -> None:
        # Python drops what is raised in a finalizer or while it forks a process
        if isinstance(unraisable.exc_value, Interruption):
            signal.signal(received[0], interrupt)
            timers.append(threading.Timer(0.05, _signal_main_thread, received[:1]))
            timers[-1].start()

    for number in caught:
        signal.signal(number, interrupt)
    hooks = sys.unraisablehook, sys.excepthook
    try:
        yield
    finally:
        error = sys.exc_info()[1]
        _release(error if received else None)
        sys.unraisablehook, sys.excepthook = hooks
        for timer in timers:
            timer.cancel()
        for number in caught:
            signal.signal(number, usual[number])
        # what goes wrong meanwhile, as with workers that have got the signal too, is its effect
        if received and error is not None and not isinstance(error, KeyboardInterrupt):
            raise Interruption(received[0]) from error


def _release(error: BaseException | None) -> None:
    """Let go of what the frames of an error hold, so that finalizers run now and not later."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _signal_main_thread(number: Any) -> None:
    if hasattr(signal, "pthread_kill"):  # which ends a system call that waits
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        _thread.interrupt_main(number)


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
        sys.exit(1)


def _find_write_failure(error: BaseException) -> str | None:
    """Return why Python, PyTorch or safetensors could not write; `None` for another error."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _WRITE_ERRORS else None
    if isinstance(error, ValueError) or not _WRITE_WORDS.search(str(error)):
        return None
    if isinstance(error, RuntimeError):
        return "the disk is full, or a file there may not grow"
    return str(error).removeprefix("Error while serializing: ").rstrip(".")


def _is_rate_limit(error: BaseException | None) -> bool:
    """Tell whether the Hub's limit of requests is behind an error, whatever was made of it."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return bool(status == HTTPStatus.TOO_MANY_REQUESTS)
        error = error.__cause__ or error.__context__
    return False
