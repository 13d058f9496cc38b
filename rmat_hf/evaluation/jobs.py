"""The runs of a benchmark: what each computes, where it lies, what it chose, and running them."""

import hashlib
import json
import logging
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rmat_hf import __version__
from rmat_hf.data.splits.column_splits import split_by_column
from rmat_hf.data.supervised_map import run_in_processes
from rmat_hf.data.table_writer import TableWriter
from rmat_hf.errors import hide_credentials, stopped_by_signals
from rmat_hf.evaluation.predictions import PREDICTION_PREFIX, PREDICTIONS_FILE
from rmat_hf.evaluation.protocol import (
    JSON_FIELDS,
    Fold,
    Protocol,
    compute_model_checksum,
    list_settings,
)
from rmat_hf.output_folder import create_folder_atomically, load_json, save_json
from rmat_hf.training import baselines
from rmat_hf.training.arguments import (
    ARGUMENTS_FILE,
    DEFAULT_MODEL,
    TRIALS_FILE,
    FinetuningArguments,
    describe_arguments,
    keeps_last_epoch,
)
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.metrics import METRICS, list_metrics
from rmat_hf.training.search import SEARCHED_FLAGS

logger = logging.getLogger(__name__)

KEY_LENGTH = 12
SETTING_FILE = "setting.json"
LOG_FILE = "training_log.json"
PACKAGES = ("torch", "transformers", "rdkit", "scikit-learn", "numpy")
# The path before a file name: an absolute one tells about the machine and not about the run.
# In quotes it may have spaces.
_SUBFOLDERS = r"(?:[^\s/'\":,]+/)"
_FOLDERS = re.compile(rf"(?<=['\"])/(?:[^'\"/\n]+/)+|(?<![\w.~/:])/{_SUBFOLDERS}+")


@dataclass(frozen=True)
class BaselineTask:
    """What a baseline is fitted on: rows with their labels, as in `evaluation/predictions.py`."""

    rows: pd.DataFrame
    problem_type: str
    label_names: list[str]


@dataclass(frozen=True, eq=False)
class Job:
    """A run: a model or baseline on one fold, with one setting of its grid."""

    fold: Fold
    method: str
    folder: Path
    task: FinetuningArguments | BaselineTask
    setting: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join([self.method, *describe_setting(self.setting), str(self.fold)])

    @property
    def record_file(self) -> Path:
        """JSON file beside the folder: time and versions."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def log_file(self) -> Path:
        """What the run wrote to its screen, kept if it fails."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def is_finished(self) -> bool:
        """Whether the result is there."""
        return (self.folder / PREDICTIONS_FILE).is_file()


def build_finetuning_jobs(
    protocol: Protocol, *, output_dir: Path, feature_cache: str | None
) -> list[Job]:
    """Return one run per fold, model and setting of its grid.

    The name of its folder ends with a hash of everything that decides the result: all arguments,
    the data file and the weights to start from. Other arguments therefore are another run.
    """
    compute_checksum = cache(compute_model_checksum)
    jobs = []
    for fold in protocol.list_folds():
        dataset = protocol.datasets[fold.dataset]
        runs = [
            (name, it) for name in protocol.models for it in list_settings(protocol.models[name])
        ]
        for model, setting in runs:
            options = {**protocol.models[model], **setting}
            options.pop("grid", None)
            # CODEPATH: a protocol with objects in the place of JSON files.
            for name in options.keys() & JSON_FIELDS:
                if isinstance(options[name], dict):
                    options[name] = json.dumps(options[name])
            fields = {**dataset.options, **dataset.splits[fold.split], **options}
            fields |= {"seed": fold.seed, "feature_cache": feature_cache, "resume": True}
            try:
                arguments = FinetuningArguments(**fields, output_dir="run")
                described = describe_arguments(arguments)
            except ValueError as error:
                raise ValueError(f"Model {model!r} on {fold}: {error}") from error
            del described["output_dir"]
            checksum = compute_checksum(options.get("model", DEFAULT_MODEL))
            key = compute_key([described, dataset.checksum, checksum])
            folder = output_dir / "runs" / _name_folder(fold, model, key=key)
            arguments.output_dir = str(folder)
            jobs.append(Job(fold, model, folder, arguments, setting))
    return jobs


def describe_setting(setting: dict[str, Any]) -> list[str]:
    """Return a text for each value of a grid's setting."""
    return [f"{name} {value}" for name, value in setting.items()]


def build_baseline_jobs(
    protocol: Protocol, rows: dict[Fold, pd.DataFrame], *, output_dir: Path
) -> list[Job]:
    """Return one run per fold and baseline, on the rows that every model has used."""
    jobs = []
    for fold, common in rows.items():
        options = protocol.datasets[fold.dataset].options
        task = BaselineTask(common, options["problem_type"], options["label_columns"])
        labels = repr(common[task.label_names].astype(float).to_numpy().tolist())
        columns = [common.index.tolist(), list(common["split"]), list(common["smiles"]), labels]
        for name in protocol.baselines:
            used = baselines.BASELINES[name].members or (name,)
            fitted = [asdict(baselines.BASELINES[it]) for it in used]
            content = [name, fold.seed, task.problem_type, task.label_names, columns, fitted]
            content.append(baselines.MAX_SVM_ROWS)
            folder = _name_folder(fold, name, key=compute_key(content))
            jobs.append(Job(fold, name, output_dir / "baselines" / folder, task))
    return jobs


def compute_key(content: Iterable[Any]) -> str:
    """Return the start of the SHA-256 of what JSON can hold."""
    text = json.dumps(list(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _name_folder(fold: Fold, method: str, *, key: str) -> str:
    name = f"{fold.dataset}-{method}-{fold.split}-seed_{fold.seed}-{key}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


# Running them


def run_jobs(
    jobs: Sequence[Job],
    *,
    num_proc: int,
    report_progress: Callable[[str], None],
    run: Callable[[Job], None] | None = None,
) -> dict[Job, str]:
    """Run the jobs that are not finished, several at a time; one that fails stops no other."""
    waiting = [job for job in jobs if not job.is_finished]
    if len(waiting) < len(jobs):
        report_progress(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are there already.")
    failures: dict[Job, str] = {}
    work = run or run_job
    if num_proc == 0:
        endings = ((job, None, _try(work, job)) for job in waiting)
    else:
        endings = run_in_processes(partial(_run_logged, work), waiting, num_proc=num_proc)
    with closing(endings):
        for job, _, reason in endings:
            if reason is not None:
                failures[job] = hide_places(reason, job)
                logger.error("Failed: %s: %s", job, failures[job])
            report_progress(f"{'Finished' if reason is None else 'Failed'}: {job}")
    return failures


def hide_places(reason: str, job: Job) -> str:
    """Return why a job failed without folders of this machine and without credentials."""
    files = [job.folder.parent, *(getattr(job.task, name, None) for name in ("dataset", "model"))]
    folders = {Path(file).parent for file in files if file is not None}
    for folder in sorted({*folders, Path.cwd(), Path.home()}, key=lambda path: -len(str(path))):
        if folder.is_absolute() and folder != Path(folder.anchor):
            reason = re.sub(rf"{re.escape(str(folder))}/{_SUBFOLDERS}*", "", reason)
    return hide_credentials(hide_folders(reason))


def hide_folders(text: str) -> str:
    """Return a text in which the name of a file is left of each absolute path."""
    return _FOLDERS.sub("", text)


def _try(run: Callable[[Job], None], job: Job) -> str | None:
    try:
        run(job)
    except (ValueError, OSError, RuntimeError) as error:
        return str(error)
    return None


def _run_logged(run: Callable[[Job], None], job: Job) -> None:
    """Run a job in its own process, with its output in a file that stays if it fails."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with job.log_file.open("wb") as stream:
        for output in (sys.stdout, sys.stderr):
            output.flush()
            os.dup2(stream.fileno(), output.fileno())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # it ends in the usual way, so that nothing of it is left behind
    with stopped_by_signals():
        run(job)
    job.log_file.unlink()  # warnings in it name paths of this machine


def run_job(job: Job) -> None:
    """Compute the result of a run; write down what it took."""
    start, core_seconds = time.perf_counter(), sum(os.times()[:4])  # of ended children too
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(job.task, FinetuningArguments):
        run_finetuning(job.task)
    else:
        _run_baseline(job, job.task)
    record = {
        "seconds": time.perf_counter() - start,
        "core_seconds": sum(os.times()[:4]) - core_seconds,
        "versions": list_versions(),
    }
    save_json(job.record_file, record)


def list_versions() -> dict[str, str]:
    """Return the versions of what computes: Python, this package and those below it."""
    versions = {"rmat_hf": __version__, **{name: version(name) for name in PACKAGES}}
    return {**versions, "python": platform.python_version()}


def _run_baseline(job: Job, task: BaselineTask) -> None:
    rows = task.rows
    outputs, setting = baselines.fit_baseline(
        job.method,
        rows["smiles"].tolist(),
        labels=rows[task.label_names].to_numpy(dtype=float),
        split=split_by_column(rows["split"].tolist(), split_column="split"),
        problem_type=task.problem_type,
        label_names=task.label_names,
        seed=job.fold.seed,
    )
    if task.problem_type != "regression":
        outputs = [output[:, 1] for output in outputs]
    names = [f"{PREDICTION_PREFIX}{name}" for name in task.label_names]
    frame = rows[["smiles", "split", *task.label_names]]
    frame = frame.assign(**dict(zip(names, outputs, strict=True))).reset_index()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with create_folder_atomically(job.folder) as folder:
        with TableWriter(folder / PREDICTIONS_FILE, input_schema=table.schema) as writer:
            writer.write(dict(zip(table.column_names, table.columns, strict=True)))
        part = baselines.BASELINES[job.method].chosen_on
        save_json(folder / SETTING_FILE, {"part": part, "setting": setting})


# What they chose


def describe_choices(folder: Path) -> dict[str, Any]:
    """Return what was chosen in a finished run: an epoch and searched values, or a grid's setting.

    Returns:
        `dict` with `part` (where it was chosen; `None` if it was fixed) and, for a model, `metric`,
        `epochs` and `num_epochs` (one each, or one per member of an ensemble) and the values of a
        search over `hpo_trials` settings; for a baseline, and for a run that keeps its last epoch,
        `setting`.
    """
    if (folder / SETTING_FILE).is_file():
        return load_json(folder / SETTING_FILE)
    arguments = load_json(folder / ARGUMENTS_FILE)
    overrides = arguments.get("training_arguments", {})
    metric = overrides.get("metric_for_best_model")
    metric = str(metric or list_metrics(arguments["problem_type"])[0].name).removeprefix("eval_")
    # runs of before there were folds have no such field
    part = "own folds of train and valid" if arguments.get("member_folds") else "valid"
    choices: dict[str, Any] = {"part": part, "metric": metric}
    # runs of before there were recipes have no such field
    if keeps_last_epoch(arguments.get("recipe", "rmat"), overrides):
        choices = {"part": part if (folder / TRIALS_FILE).is_file() else None}
        choices["setting"] = {"last epoch": {"learning_rate": arguments["learning_rate"]}}
    elif (folder / LOG_FILE).is_file():
        log = pd.DataFrame(json.loads((folder / LOG_FILE).read_text(encoding="utf-8")))
        is_error = metric not in METRICS or not METRICS[metric].greater_is_better
        choices |= _find_best_epochs(log, f"eval_{metric}", is_error=is_error)
    if (folder / TRIALS_FILE).is_file():
        choices["hpo_trials"] = len(pd.read_csv(folder / TRIALS_FILE))
        choices |= {name: arguments[name] for name in SEARCHED_FLAGS}
    return choices


def _find_best_epochs(log: pd.DataFrame, metric: str, *, is_error: bool) -> dict[str, list[float]]:
    if metric not in log:
        return {}
    log = log.dropna(subset=metric).set_index("epoch")
    # only the entries of an ensemble say whose they are
    members = log.groupby("member" if "member" in log else lambda epoch: 0)[metric]
    best = members.idxmin() if is_error else members.idxmax()
    return {"epochs": best.tolist(), "num_epochs": [found.index[-1] for _, found in members]}
