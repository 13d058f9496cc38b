import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rmat_hf.data.pool_process import WorkerError, describe_exit, start_process


def start_and_tell(folder: Path) -> None:
    try:
        start_process((folder / "started").touch).join()
    except WorkerError as error:
        (folder / "error").write_text(str(error))


def run_spawned(target: Callable[[Path], None], folder: Path, *, daemon: bool) -> int | None:
    process = multiprocessing.get_context("spawn").Process(
        target=target, args=(folder,), daemon=daemon
    )
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("daemon", [False, True])
def test_spawned_process_may_start_one_if_it_is_no_daemon(tmp_path: Path, daemon: bool) -> None:
    assert run_spawned(start_and_tell, tmp_path, daemon=daemon) == 0
    if daemon:
        assert "Use none (num_workers=0)" in (tmp_path / "error").read_text()
    else:
        assert (tmp_path / "started").exists()


@pytest.mark.skipif("sys.platform != 'linux'", reason="forks on Linux only")
def test_process_is_a_fork_even_of_a_spawned_one() -> None:
    """A spawned one would import this module, and torch, anew: seconds for each."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        process = start_process(lambda: os._exit(3))  # which cannot be pickled
        process.join()
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert process.exitcode == 3


@pytest.mark.parametrize(
    ("exit_code", "cause"),
    [
        (-signal.SIGSEGV, "was killed by signal 11 (Segmentation fault): RDKit crashed on it, or"),
        (-signal.SIGALRM, "took more than the time limit of 7 s"),
        (3, "ended with exit code 3: RDKit"),
    ],
)
def test_exit_code_says_what_happened(exit_code: int, cause: str) -> None:
    assert describe_exit(exit_code, time_limit_s=7).startswith(cause)
