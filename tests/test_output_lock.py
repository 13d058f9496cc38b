import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rmat_hf.errors import UserError
from rmat_hf.output_lock import lock_output


def in_child(function: Callable[[], None]) -> int:
    """Run a function in a process of its own; return its exit code, 7 after an `UserError`."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except UserError:
            os._exit(7)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_second_process_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def lock() -> None:
        with lock_output(folder):
            pass

    with lock_output(folder):
        assert in_child(lock) == 7
        with pytest.raises(UserError, match=r"Another run is writing '.*/run'\. Wait until"):
            lock()
    assert in_child(lock) == 0
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_none(tmp_path: Path) -> None:
    def lock_and_die() -> None:
        with lock_output(tmp_path / "run"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(lock_and_die) == -signal.SIGKILL
    assert (tmp_path / ".run.lock").exists()
    with lock_output(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_folder_under_two_names_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        lock_output(tmp_path / "run"),
        pytest.raises(UserError, match="Another run"),
        lock_output(tmp_path / "link"),
    ):
        raise AssertionError("both have it")


def test_only_the_first_process_of_a_run_locks(tmp_path: Path) -> None:
    with lock_output(tmp_path / "run"), lock_output(tmp_path / "run", is_needed=False):
        assert len(list(tmp_path.iterdir())) == 1


def test_missing_parents_are_created(tmp_path: Path) -> None:
    with lock_output(tmp_path / "runs" / "run"):
        assert (tmp_path / "runs" / ".run.lock").exists()


def test_place_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="Choose another output folder"),
        lock_output(tmp_path / "file" / "run"),
    ):
        raise AssertionError("nothing is locked")
