"""run_accuracy_benchmark(...): a protocol → runs, `results.json`, `report.md` and plots."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmat_hf.errors import UserError
from rmat_hf.evaluation.arguments import EvaluationArguments
from rmat_hf.evaluation.choices import describe_choices
from rmat_hf.evaluation.jobs import Job, build_baseline_jobs, build_finetuning_jobs
from rmat_hf.evaluation.plots import save_plots
from rmat_hf.evaluation.protocol import Fold, Protocol, load_protocol
from rmat_hf.evaluation.report import build_report
from rmat_hf.evaluation.row_predictions import (
    RowPredictions,
    find_common_rows,
    load_row_predictions,
)
from rmat_hf.evaluation.summary import FoldOutcome, summarize_dataset
from rmat_hf.evaluation.tool_predictions import (
    ToolPredictions,
    align_tool_predictions,
    load_tool_predictions,
)
from rmat_hf.evaluation.workers import run_jobs
from rmat_hf.output_folder import (
    lock_output,
    open_atomically,
    save_json,
)

RESULTS_FILE = "results.json"
REPORT_FILE = "report.md"


@dataclass(frozen=True)
class AccuracyBenchmarkResult:
    """What `run_accuracy_benchmark` did.

    Args:
        output_dir (`Path`): Folder with `report.md`, `results.json`, `plots` and all runs.
        results (`dict[str, Any]`): The content of `results.json`.
    """

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
    jobs = build_finetuning_jobs(
        protocol, output_dir=output_dir, feature_cache=arguments.feature_cache
    )
    options: dict[str, Any] = {"num_proc": arguments.num_proc, "report_progress": report_progress}
    failures = run_jobs(jobs, **options)
    found = _load_finished(jobs, protocol)
    common = {fold: find_common_rows(rows, where=str(fold)) for fold, rows in found.items()}
    baseline_jobs = build_baseline_jobs(protocol, common, output_dir=output_dir)
    failures |= run_jobs(baseline_jobs, **options)
    for fold, rows in _load_finished(baseline_jobs, protocol).items():
        found[fold] |= rows
    for fold, rows in _align_tools(tools, common).items():
        found[fold] |= rows
    outcomes = [
        _build_outcome(fold, by_method, rows=common[fold]) for fold, by_method in found.items()
    ]
    results = _build_results(protocol, outcomes, num_resamples=arguments.num_resamples)
    results |= _describe_runs([*jobs, *baseline_jobs], failures, output_dir=output_dir)
    results["plots"] = _save_plots(protocol, outcomes, folder=output_dir / "plots")
    save_json(output_dir / RESULTS_FILE, results)
    with open_atomically(output_dir / REPORT_FILE) as stream:
        stream.write(build_report(results).encode("utf-8"))
    return AccuracyBenchmarkResult(output_dir, results)


def _build_outcome(
    fold: Fold, by_method: Mapping[str, RowPredictions], *, rows: RowPredictions
) -> FoldOutcome:
    shared = {name: found.select(rows.rows) for name, found in by_method.items()}
    return FoldOutcome(
        fold,
        rows,
        predictions={name: found.predictions for name, found in shared.items()},
        spreads={name: found.spread for name, found in shared.items() if found.spread is not None},
    )


def _validate_output_dir(output_dir: Path) -> None:
    is_known = any((output_dir / name).exists() for name in (RESULTS_FILE, "runs"))
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir()) and not is_known):
        raise UserError(f"{str(output_dir)!r} holds something else. Choose another folder.")
    (output_dir / "runs").mkdir(parents=True, exist_ok=True)


def _load_finished(
    jobs: Sequence[Job], protocol: Protocol
) -> dict[Fold, dict[str, RowPredictions]]:
    """Return the predictions of finished jobs by fold and method."""
    found: dict[Fold, dict[str, RowPredictions]] = {}
    for job in jobs:
        if job.is_finished:
            label_names = protocol.datasets[job.fold.dataset].options["label_columns"]
            rows = load_row_predictions(job.folder, label_names=label_names)
            found.setdefault(job.fold, {})[job.method] = rows
    return found


def _align_tools(
    tools: Mapping[str, Mapping[Fold, ToolPredictions]], common: Mapping[Fold, RowPredictions]
) -> dict[Fold, dict[str, RowPredictions]]:
    found: dict[Fold, dict[str, RowPredictions]] = {}
    for name, folds in tools.items():
        for fold, values in folds.items():
            if fold in common:
                aligned = align_tool_predictions(values, common[fold], where=f"{name}, {fold}")
                found.setdefault(fold, {})[name] = aligned
    return found


def _build_results(
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
    return {
        "protocol": _hide_folders(protocol.content),
        "datasets": datasets,
        "num_resamples": num_resamples,
    }


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
            record = json.loads(job.record_file.read_text(encoding="utf-8"))
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
                is_regression=dataset.is_regression,
            )
    return plots
