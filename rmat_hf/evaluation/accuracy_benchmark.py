"""run_accuracy_benchmark(...): a protocol → runs, `results.json`, `report.md` and plots."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rmat_hf.errors import UserError
from rmat_hf.evaluation.jobs import (
    Job,
    build_baseline_jobs,
    build_finetuning_jobs,
    describe_choices,
    run_jobs,
)
from rmat_hf.evaluation.plots import save_plots
from rmat_hf.evaluation.predictions import (
    align_tool_predictions,
    count_table_rows,
    find_common_rows,
    load_predictions,
    load_tool_predictions,
)
from rmat_hf.evaluation.protocol import Fold, Protocol, load_protocol
from rmat_hf.evaluation.report import build_report
from rmat_hf.evaluation.summary import FoldOutcome, summarize_dataset
from rmat_hf.flags import DEFAULT_CACHE, declare_flag, declare_required, validate_flags
from rmat_hf.output_folder import load_json, lock_output, open_atomically, save_json

RESULTS_FILE = "results.json"
REPORT_FILE = "report.md"


@dataclass(kw_only=True)
class EvaluationArguments:
    """Everything `run_accuracy_benchmark` needs to know; each field is a flag."""

    data: str = declare_required("Folder with the tables that the protocol names.")
    protocol: str = declare_required("JSON file: data sets, models, baselines, other tools.")
    output_dir: str = declare_required(
        "Folder to write; what was computed there before is not computed again."
    )
    num_proc: int = declare_flag(
        1, "Runs at a time, each a process of one thread; 0 runs them in this process.", least=0
    )
    num_resamples: int = declare_flag(
        1000,
        "Bootstrap resamples of the test rows behind the standard error of a ROC AUC.",
        least=2,
    )
    feature_cache: str | None = declare_flag(
        DEFAULT_CACHE,
        "Folder that keeps features for later runs: 'default' is ~/.cache/rmat-hf/features, "
        "'none' keeps nothing.",
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for a number that is too small."""
        validate_flags(self)


@dataclass(frozen=True)
class AccuracyBenchmarkResult:
    """What `run_accuracy_benchmark` did."""

    output_dir: Path
    results: dict[str, Any]

    @property
    def is_complete(self) -> bool:
        """Whether every run has a result."""
        return bool(self.results["is_complete"])


def run_accuracy_benchmark(
    arguments: EvaluationArguments,
    *,
    report_progress: Callable[[str], None] = lambda line: None,
) -> AccuracyBenchmarkResult:
    """Compare models, baselines and other tools on the same rows and splits.

    Every data set, split, seed and model is one `run_finetuning`. Runs that are there already, with
    the same arguments, data and weights, are not repeated; interrupted ones continue. The baselines
    are fitted on the rows that all models could use. A run that fails is reported, and the others
    go on.

    Args:
        arguments (`EvaluationArguments`): Protocol, data, output folder and processes.
        report_progress (`Callable`, *optional*): Called with a line whenever a run ends.

    Returns:
        [`AccuracyBenchmarkResult`].

    Raises:
        ValueError: If protocol, data or another tool's predictions are not what they should be.
    """
    with lock_output(arguments.output_dir):
        return _run(arguments, report_progress=report_progress)


def _run(
    arguments: EvaluationArguments, *, report_progress: Callable[[str], None]
) -> AccuracyBenchmarkResult:
    output_dir = Path(arguments.output_dir)
    protocol = load_protocol(arguments.protocol, data=arguments.data)
    tools = {
        name: load_tool_predictions(path, protocol=protocol)
        for name, path in protocol.predictions.items()
    }
    _validate_output_dir(output_dir)
    options: dict[str, Any] = {"num_proc": arguments.num_proc, "report_progress": report_progress}
    jobs = build_finetuning_jobs(
        protocol, output_dir=output_dir, feature_cache=arguments.feature_cache
    )
    failures = run_jobs(jobs, **options)
    methods = _load_finished(jobs)
    common = {fold: find_common_rows(found, where=str(fold)) for fold, found in methods.items()}
    baseline_jobs = build_baseline_jobs(protocol, common, output_dir=output_dir)
    failures |= run_jobs(baseline_jobs, **options)
    baselines = _load_finished(baseline_jobs)
    outcomes = []
    for fold, rows in common.items():
        found = methods[fold] | baselines.get(fold, {})
        for name, tool in tools.items():
            if fold in tool:
                where = f"{name}, {fold}"
                found[name] = align_tool_predictions(tool[fold], rows, where=where)
        first = next(job for job in jobs if job.fold == fold and job.is_finished)
        num_dropped = count_table_rows(first.folder, methods[fold][first.method]) - len(rows)
        shared = {name: frame.loc[rows.index] for name, frame in found.items()}
        outcomes.append(FoldOutcome(fold, shared, num_dropped))
    results = _summarize(protocol, outcomes, num_resamples=arguments.num_resamples)
    results |= _describe_runs([*jobs, *baseline_jobs], failures, output_dir=output_dir)
    results["plots"] = _save_plots(protocol, outcomes, folder=output_dir / "plots")
    save_json(output_dir / RESULTS_FILE, results)
    with open_atomically(output_dir / REPORT_FILE) as stream:
        stream.write(build_report(results).encode("utf-8"))
    return AccuracyBenchmarkResult(output_dir, results)


def _validate_output_dir(output_dir: Path) -> None:
    is_known = any((output_dir / name).exists() for name in (RESULTS_FILE, "runs"))
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir()) and not is_known):
        raise UserError(f"{str(output_dir)!r} holds something else. Choose another folder.")
    (output_dir / "runs").mkdir(parents=True, exist_ok=True)


def _load_finished(jobs: Sequence[Job]) -> dict[Fold, dict[str, pd.DataFrame]]:
    """Return the predictions of finished jobs by fold and method."""
    found: dict[Fold, dict[str, pd.DataFrame]] = {}
    for job in jobs:
        if job.is_finished:
            found.setdefault(job.fold, {})[job.method] = load_predictions(job.folder)
    return found


def _summarize(
    protocol: Protocol, outcomes: Sequence[FoldOutcome], *, num_resamples: int
) -> dict[str, Any]:
    datasets = {
        name: summarize_dataset(
            dataset,
            [outcome for outcome in outcomes if outcome.fold.dataset == name],
            models=list(protocol.models),
            references=[*protocol.baselines, *protocol.predictions],
            num_resamples=num_resamples,
        )
        for name, dataset in protocol.datasets.items()
    }
    content = _hide_folders(protocol.content)
    return {"protocol": content, "datasets": datasets, "num_resamples": num_resamples}


def _hide_folders(value: Any) -> Any:
    """Return a protocol without absolute paths, which tell about the machine only."""
    if isinstance(value, dict):
        return {name: _hide_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_hide_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _describe_runs(
    jobs: Sequence[Job], failures: Mapping[Job, str], *, output_dir: Path
) -> dict[str, Any]:
    """Return folder, time, versions and choices of every run, and why some have none."""
    runs = []
    versions: list[dict[str, str]] = []
    for job in jobs:
        record: dict[str, Any] = {}
        if job.is_finished and job.record_file.is_file():
            record = load_json(job.record_file)
            if record["versions"] not in versions:
                versions.append(record["versions"])
        runs.append(
            {
                "dataset": job.fold.dataset,
                "split": job.fold.split,
                "seed": job.fold.seed,
                "method": job.method,
                "folder": job.folder.relative_to(output_dir).as_posix(),
                "seconds": record.get("seconds"),
                "core_seconds": record.get("core_seconds"),
                "choices": describe_choices(job.folder) if job.is_finished else None,
            }
        )
    return {
        "is_complete": not failures,
        "failures": [{"run": str(job), "reason": reason} for job, reason in failures.items()],
        "runs": runs,
        "core_seconds": sum(run["core_seconds"] or 0.0 for run in runs),
        "versions": versions,
    }


def _save_plots(
    protocol: Protocol, outcomes: Sequence[FoldOutcome], *, folder: Path
) -> dict[str, list[str]]:
    plots = {}
    for name, dataset in protocol.datasets.items():
        selected = [outcome for outcome in outcomes if outcome.fold.dataset == name]
        if selected:
            plots[name] = save_plots(
                folder,
                re.sub(r"[^A-Za-z0-9_.-]+", "_", name),
                outcomes=selected,
                dataset=dataset,
            )
    return plots
