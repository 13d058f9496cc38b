"""The runs of a benchmark: what each computes, where it lies, and whether it is there already."""

import hashlib
import json
import platform
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rdkit
import torch
import transformers

from rmat_hf import __version__
from rmat_hf.data.splits.column_splits import split_by_column
from rmat_hf.data.table_writer import TableWriter
from rmat_hf.evaluation.protocol import Fold, Protocol, compute_model_checksum
from rmat_hf.evaluation.row_predictions import PREDICTIONS_FILE, RowPredictions
from rmat_hf.output_folder import create_folder_atomically, save_json
from rmat_hf.training import baselines
from rmat_hf.training.arguments import DEFAULT_MODEL, FinetuningArguments, describe_arguments
from rmat_hf.training.finetuning import run_finetuning

KEY_LENGTH = 12
SETTING_FILE = "setting.json"


@dataclass(frozen=True)
class BaselineTask:
    """What a baseline is fitted on.

    Args:
        rows (`RowPredictions`): Rows, parts, SMILES and labels; its predictions are not used.
        problem_type (`str`): As in the protocol.
        label_names (`list[str]`): Name of each label column.
    """

    rows: RowPredictions
    problem_type: str
    label_names: list[str]


@dataclass(frozen=True, eq=False)
class Job:
    """A run: a model or baseline on one fold.

    Args:
        fold (`Fold`): Data set, split and seed.
        method (`str`): Name of the model or baseline.
        folder (`Path`): Where its result appears, whole or not at all.
        task (`FinetuningArguments` or `BaselineTask`): What to compute.
    """

    fold: Fold
    method: str
    folder: Path
    task: FinetuningArguments | BaselineTask

    def __str__(self) -> str:
        return f"{self.method}, {self.fold}"

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
    """Return one run per fold and model.

    The name of its folder ends with a hash of everything that decides the result: all arguments,
    the data file and the weights to start from. Other arguments therefore are another run.

    Args:
        protocol (`Protocol`): What to compare.
        output_dir (`Path`): Folder of the benchmark.
        feature_cache (`str`, *optional*): As in `FinetuningArguments`.

    Raises:
        ValueError: If fields of a model contradict each other or the data set.
    """
    checksums = {
        name: compute_model_checksum(options.get("model", DEFAULT_MODEL))
        for name, options in protocol.models.items()
    }
    jobs = []
    for fold in protocol.list_folds():
        dataset = protocol.datasets[fold.dataset]
        for model, options in protocol.models.items():
            fields = {**dataset.options, **dataset.build_split_fields(fold.split), **options}
            fields |= {"seed": fold.seed, "feature_cache": feature_cache, "resume": True}
            try:
                arguments = FinetuningArguments(**fields, output_dir="run")
                described = describe_arguments(arguments)
            except ValueError as error:
                raise ValueError(f"Model {model!r} on {fold}: {error}") from error
            del described["output_dir"]
            key = compute_key([described, dataset.checksum, checksums[model]])
            folder = output_dir / "runs" / _name_folder(fold, model, key=key)
            arguments.output_dir = str(folder)
            jobs.append(Job(fold, model, folder, arguments))
    return jobs


def build_baseline_jobs(
    protocol: Protocol, rows: dict[Fold, RowPredictions], *, output_dir: Path
) -> list[Job]:
    """Return one run per fold and baseline, on the rows that every model has used.

    Args:
        protocol (`Protocol`): What to compare.
        rows (`dict[Fold, RowPredictions]`): Those rows, for folds with a finished model.
        output_dir (`Path`): Folder of the benchmark.
    """
    jobs = []
    for fold, common in rows.items():
        dataset = protocol.datasets[fold.dataset]
        label_names = dataset.options["label_columns"]
        task = BaselineTask(common, dataset.options["problem_type"], label_names)
        grids = [
            *(baselines.NUM_TREES, baselines.PENALTIES, baselines.GAMMA_FACTORS),
            *(baselines.INSENSITIVITIES, baselines.BOOSTING_GRID, baselines.MAX_SVM_ROWS),
        ]
        columns = [common.rows.tolist(), common.parts, common.smiles, repr(common.labels.tolist())]
        for name in protocol.baselines:
            key = compute_key([name, fold.seed, task.problem_type, label_names, columns, grids])
            folder = output_dir / "baselines" / _name_folder(fold, name, key=key)
            jobs.append(Job(fold, name, folder, task))
    return jobs


def run_job(job: Job) -> None:
    """Compute the result of a run; write down what it took.

    Raises:
        ValueError: If data or options do not allow the run.
    """
    start, cpu_start = time.perf_counter(), _compute_cpu_seconds()
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(job.task, FinetuningArguments):
        run_finetuning(job.task)
    else:
        _run_baseline(job, job.task)
    record = {
        "seconds": time.perf_counter() - start,
        "core_seconds": _compute_cpu_seconds() - cpu_start,
        "versions": list_versions(),
    }
    save_json(job.record_file, record)


def list_versions() -> dict[str, str]:
    """Return the versions of what computes: Python, this package and those below it."""
    return {
        "rmat_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rdkit": rdkit.__version__,
        "scikit-learn": version("scikit-learn"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def compute_key(content: Iterable[Any]) -> str:
    """Return the start of the SHA-256 of what JSON can hold."""
    text = json.dumps(list(content), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _run_baseline(job: Job, task: BaselineTask) -> None:
    rows = task.rows
    fitted = baselines.fit_baseline(
        job.method,
        rows.smiles,
        labels=rows.labels,
        split=split_by_column(rows.parts, split_column="split"),
        problem_type=task.problem_type,
        label_names=task.label_names,
        seed=job.fold.seed,
    )
    is_regression = task.problem_type == "regression"
    predictions = [output if is_regression else output[:, 1] for output in fitted.outputs]
    labels = dict(zip(task.label_names, rows.labels.T.tolist(), strict=True))
    columns: dict[str, list[Any]] = {"row": rows.rows.tolist(), "smiles": rows.smiles}
    columns |= {"split": rows.parts, **labels}
    for name, values in zip(task.label_names, predictions, strict=True):
        columns[f"prediction_{name}"] = values.tolist()
    with create_folder_atomically(job.folder) as folder:
        with TableWriter(
            folder / PREDICTIONS_FILE,
            added_columns={
                "row": "integer",
                "smiles": "text",
                "split": "text",
                **dict.fromkeys(list(columns)[3:], "number"),
            },
        ) as writer:
            writer.write(columns)
        chosen_on = None if job.method == baselines.FOREST else "valid"
        save_json(folder / SETTING_FILE, {"part": chosen_on, "setting": fitted.setting})


def _name_folder(fold: Fold, method: str, *, key: str) -> str:
    name = f"{fold.dataset}-{method}-{fold.split}-seed_{fold.seed}-{key}"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)


def _compute_cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
