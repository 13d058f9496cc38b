"""Run jobs in processes of their own; one that dies does not stop the others."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from rmat_hf.errors import hide_credentials, stopped_by_signals
from rmat_hf.evaluation.jobs import Job, run_job
from rmat_hf.parent_process import follow_parent

logger = logging.getLogger(__name__)

# The path before a file name: an absolute one tells about the machine and not about the run.
# In quotes it may have spaces.
_SUBFOLDERS = r"(?:[^\s/'\":,]+/)"
_FOLDERS = re.compile(rf"(?<=['\"])/(?:[^'\"/\n]+/)+|(?<![\w.~/:])/{_SUBFOLDERS}+")


def run_jobs(
    jobs: Sequence[Job],
    *,
    num_proc: int,
    report_progress: Callable[[str], None],
    run: Callable[[Job], None] = run_job,
) -> dict[Job, str]:
    """Run the jobs that are not finished, several at a time.

    Args:
        jobs (`Sequence[Job]`): In the order to start them.
        num_proc (`int`):
            Processes at a time, each with one thread; 0 is this process, one job after the other.
        report_progress (`Callable`): Called with a line whenever a job ends.
        run (`Callable`, *optional*): What a job does; a function of a module.

    Returns:
        `dict[Job, str]`: why a job failed, for those that did.
    """
    waiting = [job for job in jobs if not job.is_finished]
    num_there = len(jobs) - len(waiting)
    if num_there:
        report_progress(f"{num_there} of {len(jobs)} runs are there already.")
    failures: dict[Job, str] = {}

    def end(job: Job, reason: str | None) -> None:
        if reason is not None:
            failures[job] = hide_places(reason, job)
            logger.error("Failed: %s: %s", job, failures[job])
        report_progress(f"{'Failed' if reason else 'Finished'}: {job}")

    if num_proc == 0:
        for job in waiting:
            end(job, _run_here(job, run))
    else:
        _run_in_processes(waiting, num_proc=num_proc, run=run, end=end)
    return failures


def hide_places(reason: str, job: Job) -> str:
    """Return why a job failed without folders of this machine and without credentials."""
    files = [job.folder.parent, *(getattr(job.task, name, None) for name in ("dataset", "model"))]
    folders = {Path(file).parent for file in files if file is not None}
    for folder in sorted({*folders, Path.cwd(), Path.home()}, key=lambda path: -len(str(path))):
        if folder.is_absolute() and folder != Path(folder.anchor):
            reason = re.sub(rf"{re.escape(str(folder))}/{_SUBFOLDERS}*", "", reason)
    return hide_credentials(_FOLDERS.sub("", reason))


def _run_here(job: Job, run: Callable[[Job], None]) -> str | None:
    try:
        run(job)
    except (ValueError, OSError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _run_in_processes(
    waiting: Sequence[Job],
    *,
    num_proc: int,
    run: Callable[[Job], None],
    end: Callable[[Job, str | None], None],
) -> None:
    context = multiprocessing.get_context("spawn")
    remaining = list(waiting)
    running: dict[int, tuple[SpawnProcess, Job]] = {}
    try:
        while remaining or running:
            while remaining and len(running) < num_proc:
                job = remaining.pop(0)
                job.folder.parent.mkdir(parents=True, exist_ok=True)
                process = context.Process(target=_start, args=(job, run))
                process.start()
                running[process.sentinel] = (process, job)
            for sentinel in multiprocessing.connection.wait(list(running)):
                process, job = running.pop(int(str(sentinel)))
                process.join()
                reason = _find_reason(process, job)
                if reason is None:  # warnings in it name paths of this machine
                    job.log_file.unlink(missing_ok=True)
                end(job, reason)
    finally:
        for process, _ in running.values():
            process.terminate()
            process.join()


def _find_reason(process: SpawnProcess, job: Job) -> str | None:
    """Return why a process failed, from its log; `None` if it did not."""
    code = process.exitcode or 0
    if code == 0:
        return None
    if code < 0:
        return f"The process was killed by signal {-code} ({signal.strsignal(-code)})."
    text = (
        job.log_file.read_text(encoding="utf-8", errors="replace") if job.log_file.exists() else ""
    )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"The process ended with the exit code {code}."


def _start(job: Job, run: Callable[[Job], None]) -> None:
    """Run a job in a new process, with one thread and its output in a file."""
    follow_parent()
    with job.log_file.open("wb") as stream:
        for output in (sys.stdout, sys.stderr):
            output.flush()
            os.dup2(stream.fileno(), output.fileno())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    torch.set_num_threads(1)
    try:
        # it ends in the usual way, so that nothing of it is left behind
        with stopped_by_signals(), threadpool_limits(1):
            run(job)
    except KeyboardInterrupt as interruption:
        sys.stderr.write(f"{interruption}\n")  # the last line of the log is the reason
        sys.exit(getattr(interruption, "exit_code", 130))
