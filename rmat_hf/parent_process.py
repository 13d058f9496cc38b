"""The end of a process with the one that started it."""

import multiprocessing
import os
import signal
import threading
import time

_POLL_INTERVAL_S = 0.2


def follow_parent() -> None:
    """Leave Ctrl-C to the parent of this process, and end with it, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()


def _end_with(parent: int) -> None:
    # the pipe that multiprocessing closes with the parent stays open in forks of the same parent
    while os.getppid() == parent:
        time.sleep(_POLL_INTERVAL_S)
    os._exit(1)
