"""Signals while something runs: in this process, and in real ones of every verb that takes long."""

import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import build_environment
from tiny_evaluation import build_tiny_protocol
from tiny_pretraining import ARCHITECTURE, write_pretraining_corpus

from rmat_hf.errors import Interruption, stopped_by_signals
from rmat_hf.output_folder import find_last_complete_checkpoint, load_num_steps

PATIENCE_S = 120
RMAT = [sys.executable, "-c", "from rmat_hf.cli import main; main()"]


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """The handlers of a program in a terminal: `nohup` and `&` would let it ignore signals."""
    usual = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "exit_code", "text"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP"),
    ],
)
def test_signal_is_an_interruption_that_cleans_up(number: int, exit_code: int, text: str) -> None:
    before = signal.getsignal(number)
    is_clean = False
    with pytest.raises(Interruption) as caught, stopped_by_signals():
        try:
            signal.raise_signal(number)
        finally:
            is_clean = True
    assert is_clean
    assert str(caught.value) == text
    assert caught.value.exit_code == exit_code
    assert signal.getsignal(number) is before


def test_after_the_first_signal_the_next_one_ends_at_once() -> None:
    with pytest.raises(Interruption), stopped_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_child_ends_as_if_nobody_caught_the_signal() -> None:
    with stopped_by_signals():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_error_that_a_signal_causes_is_the_interruption() -> None:
    with pytest.raises(Interruption) as caught, stopped_by_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("a worker exited unexpectedly")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_what_a_signal_leaves_half_built_ends_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class HalfBuilt:
        """As the workers of a DataLoader, whose finalizer wants what was not built."""

        def __init__(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            self.workers: list[int] = []

        def __del__(self) -> None:
            self.workers.clear()

    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    with pytest.raises(Interruption) as caught, stopped_by_signals():
        HalfBuilt()
    del caught
    gc.collect()
    assert unraisable == []
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_left_to_the_parent() -> None:
    with stopped_by_signals():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGINT)
            os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


# Real processes


class Run:
    """`rmat` in a process group of its own, as a terminal starts it."""

    def __init__(self, arguments: list[Any], *, folder: Path) -> None:
        self.folder = folder
        self.errors = folder / "errors.txt"
        with self.errors.open("wb") as errors, (folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                [*RMAT, *map(str, arguments)],
                cwd=folder,
                env=build_environment(folder) | {"TMPDIR": str((folder / "tmp").resolve())},
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_ready():
            assert self.process.poll() is None, self.errors.read_text()[-3000:]
            assert time.monotonic() < deadline, self.errors.read_text()[-3000:]
            time.sleep(0.05)

    def list_family(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]


@contextlib.contextmanager
def start(arguments: list[Any], *, folder: Path) -> Iterator[Run]:
    if not (folder / "tmp").exists():
        # the name of a socket in it, of a worker of a DataLoader, has at most 107 characters
        (folder / "tmp").symlink_to(tempfile.mkdtemp(prefix="t", dir=folder.parent))
    run = Run(arguments, folder=folder)
    try:
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)
        run.process.wait()


def end(run: Run, number: int, *, whole_group: bool) -> str:
    """Send a signal as a scheduler or, to the whole group, a terminal does; return the errors."""
    family = run.list_family()
    (os.killpg if whole_group else os.kill)(run.process.pid, number)
    exit_code = run.process.wait(PATIENCE_S)
    _, alive = psutil.wait_procs(family[1:], timeout=10)
    errors = run.errors.read_text()
    assert exit_code == 128 + number, errors[-3000:]
    assert not alive
    assert "Traceback" not in errors
    return errors


def list_leftovers(folder: Path) -> list[str]:
    """What a clean end removes: temporary files and folders, and locks."""
    return [
        str(path.relative_to(folder))
        for path in [*folder.rglob(".*"), *folder.rglob("rmat-*"), *(folder / "tmp").iterdir()]
        # caches of libraries
        if not {"hf_home", "matplotlib"} & set(path.relative_to(folder).parts)
        and not path.name.startswith(("torchinductor", "matplotlib"))
    ]


def write_library(folder: Path) -> Path:
    path = folder / "library.parquet"
    pq.write_table(pa.table({"smiles": ["CCO", "c1ccccc1O"] * 50_000}), path)
    return path


SCREENS = [("predict", signal.SIGTERM, False), ("embed", signal.SIGINT, True)]


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "number", "whole_group"), SCREENS)
def test_a_screen_that_is_stopped_leaves_nothing_but_one_line(
    tiny_model_folder: Path, tmp_path: Path, verb: str, number: int, whole_group: bool
) -> None:
    flags = ["--model", tiny_model_folder, "--input", write_library(tmp_path)]
    flags += ["--output", tmp_path / "out.parquet", "--num-workers", 2, "--chunk-size", 256]
    with start([verb, *flags], folder=tmp_path) as run:
        run.wait_until(lambda: bool(list(tmp_path.glob(".out.parquet.*"))))
        run.wait_until(lambda: len(run.list_family()) == 3)
        errors = end(run, number, whole_group=whole_group)
    name = " by SIGTERM" if number == signal.SIGTERM else ""
    assert re.search(rf"(^|\n|\r.*)rmat: interrupted{name}\.[^\n]*\n$", errors)
    assert list_leftovers(tmp_path) == []
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_featurizing_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, number: int, whole_group: bool
) -> None:
    flags = ["--input", write_library(tmp_path), "--output-dir", tmp_path / "corpus"]
    flags += ["--num-proc", 2, "--shard-size", 64]
    with start(["featurize", *flags], folder=tmp_path) as run:
        run.wait_until(lambda: bool(list(tmp_path.glob("corpus/part-*"))))
        assert len(run.list_family()) == 3
        errors = end(run, number, whole_group=whole_group)
    assert errors.endswith("Repeat the command to continue.\n")
    assert list_leftovers(tmp_path) == []
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.glob("corpus/part-*")}
    with start(["featurize", *flags], folder=tmp_path) as run:
        run.wait_until(lambda: len(list(tmp_path.glob("corpus/part-*"))) > len(shards))
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in shards.items())


def list_finetuning_flags(folder: Path) -> list[Any]:
    protocol = build_tiny_protocol(folder)
    return [
        *["finetune", "--dataset", folder / "data" / "table.csv", "--label-columns", "y"],
        *["--split", "column", "--split-column", "part_0", "--output-dir", folder / "run"],
        *["--geometry", "bounds", "--num-train-epochs", 40, "--early-stopping-patience", 100],
        *["--model", "scratch", "--model-config", protocol["models"]["tiny"]["model_config"]],
        *["--feature-cache", "none", "--num-workers", 2],
    ]


def list_pretraining_flags(folder: Path) -> list[Any]:
    write_pretraining_corpus(folder / "corpus")
    (folder / "architecture.json").write_text(json.dumps(ARCHITECTURE))
    return [
        *["pretrain", "--corpus", folder / "corpus", "--output-dir", folder / "run"],
        *["--model-config", folder / "architecture.json", "--num-train-epochs", 40],
        *["--num-evaluations", 40, "--min-context-count", 2, "--valid-fraction", 0.2],
        *["--num-workers", 2],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
@pytest.mark.parametrize("list_flags", [list_finetuning_flags, list_pretraining_flags])
def test_training_that_is_stopped_resumes_from_its_last_checkpoint(
    tmp_path: Path,
    number: int,
    whole_group: bool,
    list_flags: Callable[[Path], list[Any]],
) -> None:
    flags = list_flags(tmp_path)
    work_dir = tmp_path / "run.in_progress" / "stage-0"
    with start(flags, folder=tmp_path) as run:
        run.wait_until(lambda: find_last_complete_checkpoint(work_dir) is not None)
        errors = end(run, number, whole_group=whole_group)
    # the bars of Trainer are drawn once more
    assert re.search(r"rmat: interrupted[\w ]*\. Repeat the command with --resume to conti", errors)
    assert list_leftovers(tmp_path) == []
    assert not (tmp_path / "run").exists()
    checkpoint = find_last_complete_checkpoint(work_dir)
    assert checkpoint is not None
    num_steps = load_num_steps(checkpoint)
    with start([*flags, "--resume"], folder=tmp_path) as run:
        assert run.process.wait(PATIENCE_S) == 0, run.errors.read_text()[-3000:]
    log = json.loads((tmp_path / "run" / "training_log.json").read_text())
    entries = log if isinstance(log, list) else next(iter(log.values()))
    assert max(entry["step"] for entry in entries) > num_steps
    assert max(entry["epoch"] for entry in entries) == pytest.approx(40, abs=0.01)
    assert not (tmp_path / "run.in_progress").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whole_group"), [(signal.SIGTERM, False), (signal.SIGINT, True)]
)
def test_a_benchmark_that_is_stopped_ends_its_runs(
    tmp_path: Path, number: int, whole_group: bool
) -> None:
    protocol = build_tiny_protocol(tmp_path)
    for model in protocol["models"].values():
        model |= {"num_train_epochs": 2000, "early_stopping_patience": 2000}
    (tmp_path / "protocol.json").write_text(json.dumps(protocol))
    flags = ["--data", tmp_path / "data", "--protocol", tmp_path / "protocol.json"]
    flags += ["--num-proc", 2, "--output-dir", tmp_path / "benchmark", "--feature-cache", "none"]
    with start(["benchmark", *flags], folder=tmp_path) as run:
        run.wait_until(lambda: bool(list(tmp_path.glob("benchmark/runs/*/stage-*/checkpoint-*"))))
        errors = end(run, number, whole_group=whole_group)
    assert errors.endswith("Repeat the command to continue.\n")
    names = [path.name for path in (tmp_path / "benchmark" / "runs").iterdir()]
    assert any(name.endswith(".in_progress") for name in names)


@pytest.mark.slow
def test_a_second_interruption_ends_at_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    code = """
import time
from rmat_hf.errors import stopped_by_signals
with stopped_by_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=build_environment(tmp_path), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for line in (b"ready\n", b"cleaning\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGINT)
    assert process.wait(10) == -signal.SIGINT
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--version", "--help"])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, arguments: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stream:
        done = subprocess.run(
            [*RMAT, arguments],
            env=build_environment(tmp_path),
            stdout=stream,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")
