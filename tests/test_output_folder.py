"""Outputs: whole or not at all, never at the cost of what was there, one writer, resumable."""

import errno
import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from full_disks import small_files
from malicious import write_pickle
from tiny_finetuning import build_tiny_arguments
from tiny_pretraining import build_pretraining_arguments
from tiny_trainer import build_rows, build_trainer
from transformers import TrainerCallback

from rmat_hf.errors import UserError
from rmat_hf.output_folder import (
    TrainingRun,
    create_folder_atomically,
    find_last_complete_checkpoint,
    load_json,
    load_num_steps,
    lock_output,
    name_temporary,
    name_work_dir,
    open_atomically,
    open_run,
    save_json,
    train_from_last_checkpoint,
    validate_output_folder,
)
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.pretraining import run_pretraining


def write_folder(folder: Path, text: str, *, overwrite: bool = False) -> None:
    with create_folder_atomically(folder, overwrite=overwrite) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file.txt").write_text(text)


def list_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def list_tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("name", "before"),
    [("run", "nothing"), ("missing/parents/run", "an empty folder"), ("run", "a file")],
)
def test_the_folder_appears_whole_with_its_files_and_nothing_beside_it(
    before: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    validate_output_folder(folder)
    assert not folder.exists()
    if before != "nothing":
        folder.mkdir()
    if before == "a file":
        (folder / "stale.txt").write_text("old")
    with create_folder_atomically(folder, overwrite=before == "a file") as temporary:
        (temporary / "file.txt").write_text("new")
        assert not (folder / "file.txt").exists()
        # on the same file system, so that the last step is a rename
        assert temporary.parent == folder.resolve().parent
    assert list_tree(folder) == ["file.txt"]
    assert os.listdir(folder.parent) == ["run"]


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_an_exception_passes_through_and_leaves_what_was_there(
    error: BaseException, is_there: bool, tmp_path: Path
) -> None:
    if is_there:
        write_folder(tmp_path / "run", "old")
    before = list_files(tmp_path)
    with (
        pytest.raises(type(error)) as caught,
        create_folder_atomically(tmp_path / "run", overwrite=True) as temporary,
    ):
        (temporary / "half.txt").write_text("half")
        raise error
    assert caught.value is error
    assert list_files(tmp_path) == before


def test_a_failing_last_rename_brings_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "run", "old")
    rename = os.replace
    calls: list[Path] = []

    def fail_the_second_time(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk gone")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail_the_second_time)
    with pytest.raises(OSError, match="disk gone"):
        write_folder(tmp_path / "run", "new", overwrite=True)
    assert len(calls) == 3
    assert list_tree(tmp_path) == ["run", "run/sub", "run/sub/file.txt"]
    assert (tmp_path / "run" / "sub" / "file.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("kind", "overwrite", "reason"),
    [
        ("folder", False, r"run' is not empty\. .*--overwrite"),
        ("file", False, r"run' is a file.*Choose another"),
        ("file", True, r"run' is a file.*Choose another"),
    ],
)
def test_what_is_in_the_way_is_refused_before_the_block_runs_and_kept(
    tmp_path: Path, kind: str, overwrite: bool, reason: str
) -> None:
    if kind == "file":
        (tmp_path / "run").write_text("a file")
    else:
        write_folder(tmp_path / "run", "old")
    before = list_files(tmp_path)
    with (
        pytest.raises(UserError, match=reason),
        create_folder_atomically(tmp_path / "run", overwrite=overwrite),
    ):
        raise AssertionError("the block has run")
    assert list_files(tmp_path) == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0o002, 0o775)])
def test_permissions_are_those_of_a_folder_the_user_makes(
    umask: int, mode: int, tmp_path: Path
) -> None:
    previous = os.umask(umask)
    try:
        write_folder(tmp_path / "run", "new")
        umask_after = os.umask(umask)
    finally:
        os.umask(previous)
    assert (tmp_path / "run").stat().st_mode & 0o777 == mode
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {mode & 0o666}
    assert umask_after == umask


def test_a_link_to_a_folder_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk" / "run", "old")
    (tmp_path / "latest").symlink_to(tmp_path / "disk" / "run")
    write_folder(tmp_path / "latest", "new", overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "disk" / "run" / "sub" / "file.txt").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["disk", "latest"]
    assert os.listdir(tmp_path / "disk") == ["run"]


@pytest.mark.parametrize("name", [".", "..", "../work"])
def test_the_current_folder_and_those_above_are_refused_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(UserError, match=r"current folder.*Choose another"):
        validate_output_folder(name, overwrite=True)
    assert list_tree(tmp_path) == ["work"]


def test_file_appears_when_the_block_ends_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), open_atomically(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert list_files(tmp_path) == {"file": b"old"}
    with open_atomically(path) as stream:
        stream.write(b"new")
        assert path.read_text() == "old"
    assert list_files(tmp_path) == {"file": b"new"}


def test_json_that_cannot_be_written_leaves_the_older_file_alone(tmp_path: Path) -> None:
    save_json(tmp_path / "file.json", {"old": True})
    with (
        small_files(1000),
        pytest.raises(UserError, match=r"file\.json cannot be written: File too large"),
    ):
        save_json(tmp_path / "file.json", ["new"] * 1000)
    assert json.loads((tmp_path / "file.json").read_text()) == {"old": True}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_one_line_with_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fields.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"fields\.json ") as caught:
        load_json(path)
    assert "\n" not in str(caught.value)
    save_json(path, {"a": [1]})
    assert load_json(path) == {"a": [1]}


# Locks


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


def test_one_folder_under_two_names_is_one_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with (
        lock_output(tmp_path / "run"),
        pytest.raises(UserError, match="Another run"),
        lock_output(tmp_path / "link"),
    ):
        raise AssertionError("both have it")


@pytest.mark.parametrize("name", ["run", "table.csv"])
def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path, name: str) -> None:
    output = tmp_path / name

    def write_and_die() -> None:
        with lock_output(output), open_atomically(output):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(write_and_die) == -signal.SIGKILL
    assert (tmp_path / f".{name}.lock").exists()
    half = name_temporary(output)
    (half / "sub").mkdir(parents=True)
    kept = [name_temporary(tmp_path / f"{name}.gz"), tmp_path / f".{name}.notes", output]
    for path in kept:
        path.write_text("of somebody else")
    assert len(list_tree(tmp_path)) == 7
    with lock_output(output):
        assert list_tree(tmp_path) == sorted([f".{name}.lock", *(path.name for path in kept)])


def open_tiny_run(
    folder: Path, description: dict[str, Any] | None = None, *, is_main: bool = True, **flags: bool
) -> AbstractContextManager[TrainingRun]:
    fields: dict[str, Any] = {"overwrite": False, "resume": False, **flags}
    arguments: Any = SimpleNamespace(output_dir=str(folder / "run"), **fields)
    return open_run(arguments, description=description or {"seed": 0}, is_main_process=is_main)


def test_a_training_has_its_folder_to_itself_and_explains_a_full_disk(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"run\.in_progress cannot be written.*--resume"),
        open_tiny_run(tmp_path),
    ):
        with pytest.raises(UserError, match="Another run"), open_tiny_run(tmp_path):
            raise AssertionError("both have it")
        with open_tiny_run(tmp_path, is_main=False):
            raise OSError(errno.ENOSPC, "No space left on device")


# Checkpoints


def write_checkpoint(folder: Path, step: int, *, state: str = "{}") -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "trainer_state.json").write_text(state)
    return checkpoint


def test_the_last_checkpoint_is_the_complete_one_with_the_most_steps(tmp_path: Path) -> None:
    assert find_last_complete_checkpoint(tmp_path) is None
    for step in (9, 10, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    (write_checkpoint(tmp_path, 11) / "trainer_state.json").unlink()
    write_checkpoint(tmp_path, 12, state='{"global_st')
    last = find_last_complete_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-10"
    assert load_num_steps(last) == 10


@pytest.mark.parametrize("stage", [".", "stage-1"])
def test_incomplete_checkpoints_are_removed_and_named_in_the_log(
    tmp_path: Path, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tiny_run(tmp_path) as run:
        run.prepare()
    older = write_checkpoint(run.work_dir / stage, 1)
    write_checkpoint(run.work_dir / stage, 2, state="")
    with open_tiny_run(tmp_path, resume=True) as run:
        run.prepare()
    assert [path.name for path in (run.work_dir / stage).glob("checkpoint-*")] == [older.name]
    assert "checkpoint-2" in caplog.text


def test_a_run_continues_only_with_its_own_arguments_and_when_asked(tmp_path: Path) -> None:
    old = {"seed": 0, "model": "scratch"}
    stage = name_work_dir(tmp_path / "run") / "stage-0"
    with open_tiny_run(tmp_path, old, overwrite=True) as run:
        run.prepare()
    with open_tiny_run(tmp_path, {"seed": 1}):
        pass  # without a checkpoint nothing is lost
    write_checkpoint(stage, 3)
    with (
        pytest.raises(UserError, match=r"run\.in_progress.*--resume .* --overwrite"),
        open_tiny_run(tmp_path, old),
    ):
        raise AssertionError("it was to be asked")
    with (
        pytest.raises(UserError, match=r"model, seed differ.*--overwrite"),
        open_tiny_run(tmp_path, {"seed": 1, "model": "x"}, resume=True),
    ):
        raise AssertionError("it is another run")
    with open_tiny_run(tmp_path, {"seed": 1}, overwrite=True):
        pass
    with open_tiny_run(tmp_path, old, resume=True) as run:
        run.prepare()
        assert run.overwrite
    assert find_last_complete_checkpoint(stage) is not None
    with open_tiny_run(tmp_path, old, overwrite=True) as run:
        run.prepare()
    assert find_last_complete_checkpoint(stage) is None


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    work_dir = name_work_dir(tmp_path / "run")
    work_dir.mkdir()
    with open_tiny_run(tmp_path, overwrite=True):
        (work_dir / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(UserError, match=r"run\.in_progress.*Move it away"),
        open_tiny_run(tmp_path, overwrite=True),
    ):
        raise AssertionError("it is somebody's")


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_is_refused_and_not_run(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"train_dataset": build_rows(4), "save_strategy": "steps"}
    options |= {"save_steps": 1, "max_steps": 1}
    train_from_last_checkpoint(build_trainer(tmp_path / "work", **options))
    checkpoint = find_last_complete_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    write_pickle(checkpoint / name, tmp_path / "executed")
    trainer = build_trainer(tmp_path / "work", **{**options, "max_steps": 2})
    with pytest.raises(UserError, match=r"could run code.*Pass --overwrite"):
        train_from_last_checkpoint(trainer)
    assert not (tmp_path / "executed").exists()


YEARS_S = {1970: 0.0, 2100: 4.1e9}


class SetClock(TrainerCallback):
    """Gives a checkpoint the time of a clock that is wrong."""

    def __init__(self, year: int) -> None:
        self.year = year

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        os.utime(folder, (YEARS_S[self.year], YEARS_S[self.year]))


@pytest.mark.parametrize("year", YEARS_S)
def test_checkpoints_with_the_most_steps_stay(tmp_path: Path, year: int) -> None:
    trainer = build_trainer(
        tmp_path,
        train_dataset=build_rows(8),
        callbacks=[SetClock(year)],
        save_strategy="steps",
        save_steps=1,
        max_steps=5,
        save_total_limit=2,
    )
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert trainer.args.save_total_limit == 2


class FirstIsBest(TrainerCallback):
    """Gives every evaluation a larger loss than the one before."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["metrics"]["eval_loss"] = state.global_step


def test_best_checkpoint_stays_although_its_time_is_the_oldest(tmp_path: Path) -> None:
    trainer = build_trainer(
        tmp_path,
        train_dataset=build_rows(8),
        eval_dataset=build_rows(4),
        callbacks=[SetClock(1970), FirstIsBest()],
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=1,
        eval_steps=1,
        max_steps=4,
        save_total_limit=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-4"}


# Runs


def finetune(folder: Path, **options: Any) -> None:
    run_finetuning(build_tiny_arguments(folder, num_train_epochs=2, **options))


def pretrain(folder: Path, **options: Any) -> None:
    fields = {"max_steps": 4, "num_evaluations": 2, "model_config": None, **options}
    run_pretraining(build_pretraining_arguments(folder, **fields))


RUNS = [pytest.param(finetune, id="finetune"), pytest.param(pretrain, id="pretrain")]


@pytest.mark.parametrize("run", RUNS)
def test_second_run_is_refused_before_it_writes(tmp_path: Path, run: Callable[..., None]) -> None:
    with (
        lock_output(tmp_path / "run"),
        pytest.raises(UserError, match=r"Another run is writing '.*/run'\. Wait until it ends"),
    ):
        run(tmp_path)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.in_progress").exists()


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_checkpoint_that_cannot_be_written_is_one_error_and_resuming_works(
    tmp_path: Path, run: Callable[..., None]
) -> None:
    (tmp_path / "run").mkdir()
    with (
        small_files(90_000),
        pytest.raises(
            UserError,
            match=r"run\.in_progress cannot be written: .*\. Make room there and repeat",
        ) as caught,
    ):
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert list_files(tmp_path / "run") == {}
    assert find_last_complete_checkpoint(tmp_path / "run.in_progress" / "stage-0") is None
    run(tmp_path, resume=True)
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run.in_progress").exists()
    assert not list(tmp_path.glob(".run*"))
