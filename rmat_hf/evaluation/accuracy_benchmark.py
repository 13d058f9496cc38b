"""run_accuracy_benchmark(...): a protocol → runs, `results.json`, `report.md` and plots."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from rmat_hf.errors import UserError
from rmat_hf.evaluation.jobs import (
    Job,
    build_baseline_jobs,
    build_finetuning_jobs,
    describe_choices,
    hide_folders,
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
from rmat_hf.evaluation.summary import (
    FoldOutcome,
    compute_average_ranks,
    compute_part_metrics,
    summarize_dataset,
)
from rmat_hf.flags import DEFAULT_CACHE, declare_flag, declare_required, validate_flags
from rmat_hf.output_folder import load_json, lock_output, open_atomically, save_json
from rmat_hf.training.metrics import list_metrics

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


def run_accuracy_benchmark(
    arguments: EvaluationArguments,
    *,
    report_progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compare models, baselines and other tools on the same rows and splits.

    Every data set, split, seed and model is one `run_finetuning`, of a model with a grid one for
    each setting, of which the best on valid is the model's. Runs that are there already, with
    the same arguments, data and weights, are not repeated; interrupted ones continue. The baselines
    are fitted on the rows that all models could use. A run that fails is reported, and the others
    go on.
    """
    with lock_output(arguments.output_dir):
        protocol = load_protocol(arguments.protocol, data=arguments.data)
        tools = {
            name: load_tool_predictions(path, protocol=protocol)
            for name, path in protocol.predictions.items()
        }
        output_dir = Path(arguments.output_dir)
        _validate_output_dir(output_dir)
        run = partial(run_jobs, num_proc=arguments.num_proc, report_progress=report_progress)
        jobs = build_finetuning_jobs(
            protocol, output_dir=output_dir, feature_cache=arguments.feature_cache
        )
        failures = run(jobs)
        chosen = _choose_settings(jobs, protocol)
        rows = {
            fold: find_common_rows(found, where=str(fold))
            for fold, found in _load_finished(chosen).items()
        }
        baselines = build_baseline_jobs(protocol, rows, output_dir=output_dir)
        failures |= run(baselines)
        jobs, chosen = [*jobs, *baselines], [*chosen, *baselines]
        outcomes = [
            _collect_outcome(fold, common, jobs=chosen, tools=tools)
            for fold, common in rows.items()
        ]
        results = {
            "protocol": json.loads(hide_folders(json.dumps(protocol.content))),
            "num_resamples": arguments.num_resamples,
            **_summarize(protocol, outcomes, arguments=arguments),
            **_describe_runs(jobs, failures, chosen=chosen, output_dir=output_dir),
        }
        save_json(output_dir / RESULTS_FILE, results)
        with open_atomically(output_dir / REPORT_FILE) as stream:
            stream.write(build_report(results).encode("utf-8"))
        return results


def _validate_output_dir(output_dir: Path) -> None:
    is_known = any((output_dir / name).exists() for name in (RESULTS_FILE, "runs"))
    if output_dir.is_file() or (output_dir.is_dir() and any(output_dir.iterdir()) and not is_known):
        raise UserError(f"{str(output_dir)!r} holds something else. Choose another folder.")
    (output_dir / "runs").mkdir(parents=True, exist_ok=True)


def _choose_settings(jobs: Sequence[Job], protocol: Protocol) -> list[Job]:
    """Return the finished jobs, of each grid on a fold the one that did best on valid."""
    grids: dict[tuple[Fold, str], list[Job]] = {}
    for job in jobs:
        if job.is_finished:
            grids.setdefault((job.fold, job.method), []).append(job)

    def score(job: Job) -> float:
        dataset = protocol.datasets[job.fold.dataset]
        metric = list_metrics(dataset.options["problem_type"])[0]
        found = compute_part_metrics(dataset, load_predictions(job.folder), part="valid") or {}
        value = found.get(metric.name)
        if value is None:
            return -math.inf
        return float(value if metric.greater_is_better else -value)

    return [group[0] if len(group) == 1 else max(group, key=score) for group in grids.values()]


def _load_finished(jobs: Sequence[Job]) -> dict[Fold, dict[str, pd.DataFrame]]:
    """Return the predictions of finished jobs by fold and method."""
    found: dict[Fold, dict[str, pd.DataFrame]] = {}
    for job in jobs:
        if job.is_finished:
            found.setdefault(job.fold, {})[job.method] = load_predictions(job.folder)
    return found


def _collect_outcome(
    fold: Fold,
    rows: pd.DataFrame,
    *,
    jobs: Sequence[Job],
    tools: Mapping[str, Mapping[Fold, pd.DataFrame]],
) -> FoldOutcome:
    """Return what every method predicts for the rows that all models could use."""
    own = [job for job in jobs if job.fold == fold and job.is_finished]
    methods = _load_finished(own)[fold]
    num_dropped = count_table_rows(own[0].folder, methods[own[0].method]) - len(rows)
    for name, tool in tools.items():
        if fold in tool:
            methods[name] = align_tool_predictions(tool[fold], rows, where=f"{name}, {fold}")
    shared = {name: frame.loc[rows.index] for name, frame in methods.items()}
    return FoldOutcome(fold, shared, num_dropped)


def _summarize(
    protocol: Protocol, outcomes: Sequence[FoldOutcome], *, arguments: EvaluationArguments
) -> dict[str, dict[str, Any]]:
    summaries, plots = {}, {}
    for name, dataset in protocol.datasets.items():
        own = [outcome for outcome in outcomes if outcome.fold.dataset == name]
        summaries[name] = summarize_dataset(
            dataset,
            own,
            models=list(protocol.models),
            references=[*protocol.baselines, *protocol.predictions],
            num_resamples=arguments.num_resamples,
        )
        if own:
            folder = Path(arguments.output_dir) / "plots"
            file_name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
            plots[name] = save_plots(folder, file_name, outcomes=own, dataset=dataset)
    ranks = compute_average_ranks(summaries)
    return {"datasets": summaries, "average_ranks": ranks, "plots": plots}


def _describe_runs(
    jobs: Sequence[Job], failures: Mapping[Job, str], *, chosen: Sequence[Job], output_dir: Path
) -> dict[str, Any]:
    """Return folder, time, versions and choices of every run, and why some have none."""
    runs = []
    versions: list[dict[str, str]] = []
    for job in jobs:
        is_told = job.is_finished and job.record_file.is_file()
        record = load_json(job.record_file) if is_told else {}
        if is_told and record["versions"] not in versions:
            versions.append(record["versions"])
        runs.append(
            {
                **asdict(job.fold),
                "method": job.method,
                "setting": job.setting,
                "is_chosen": job in chosen,
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
