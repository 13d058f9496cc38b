"""The report of a benchmark as Markdown, from the content of `results.json`."""

from collections.abc import Iterable, Mapping
from typing import Any

from rmat_hf.evaluation.jobs import describe_setting
from rmat_hf.training.metrics import METRICS
from rmat_hf.training.search import SEARCHED_FLAGS

HASH_LENGTH = 12
HOW_TO_READ = """
- One value per split, then mean ± population standard deviation over the splits.
- All methods are scored on the same rows: those that every model could use. The rows that one of
  them drops are dropped for all, baselines and other tools too, and counted below.
- Test was looked at once per run, after everything had been chosen on valid. What was chosen is
  under "Runs".
- "± rows", of a ROC AUC, is the standard error that the choice of test rows causes: a bootstrap
  ({num_resamples} resamples, fixed seed) of the same rows for both methods and for all seeds of one
  split. Splits with the same hash are repetitions of one split: their spread is that
  of the seeds. The probabilities of an SVM rank the molecules, but are not calibrated.
""".strip()
HOW_TO_READ_DIFFERENCES = """
Method minus reference on the same splits of test, with the standard error of the mean over the
splits (sample standard deviation / √n); a negative {metric} difference is {verdict} for the method.
""".strip()
HOW_TO_READ_RUNS = """
What is no setting here was given by the protocol. How other tools chose is for them to say. The
trials of a search are in `hpo_trials.csv` of the run.
""".strip()
HOW_TO_READ_RANKS = """
By the mean on test of each data set, 1 is the best. Methods without a value on some split take no
part.
""".strip()
NOTE_ON_HASHES = "SHA-256 of the sorted canonical SMILES of a part; in full in `results.json`."


def build_report(results: Mapping[str, Any]) -> str:
    """Return the Markdown report."""
    sections = ["# Accuracy benchmark"]
    if not results["is_complete"]:
        failures = "\n".join(f"- {item['run']}: {item['reason']}" for item in results["failures"])
        sections.append(
            f"**Incomplete: {len(results['failures'])} runs failed.** Their cells are empty; "
            f"repeat the command to compute them.\n\n{failures}"
        )
    sections.append(HOW_TO_READ.format(num_resamples=results["num_resamples"]))
    for name, summary in results["datasets"].items():
        sections += _build_dataset_sections(name, summary)
        sections += [f"![{file}](plots/{file})" for file in results["plots"].get(name, [])]
    if len(results["datasets"]) > 1 and results["average_ranks"]:
        table = _build_table(_list_ranks(results["average_ranks"]))
        sections += ["## Average ranks", HOW_TO_READ_RANKS, table]
    versions = [
        ", ".join(f"{name} {number}" for name, number in found.items())
        for found in results["versions"]
    ]
    sections += [
        *("## Runs", HOW_TO_READ_RUNS, _build_table(map(_describe_run, results["runs"]))),
        f"{results['core_seconds'] / 3600:.2f} core hours in all. Of an interrupted run only the "
        "time since it was resumed counts.",
        "\n".join(f"- {line}" for line in versions),
    ]
    return "\n\n".join(sections) + "\n"


def build_overview(results: Mapping[str, Any]) -> str:
    """Return the means on test as plain text: a line per data set and method."""
    return "\n".join(
        f"{name:16} {method:36} test {METRICS[summary['metric']].title} "
        f"{_format_spread(scores['test'])}"
        for name, summary in results["datasets"].items()
        for method, scores in summary["methods"].items()
    )


def _build_dataset_sections(name: str, summary: Mapping[str, Any]) -> list[str]:
    metric, is_error = METRICS[summary["metric"]].title, summary["lower_is_better"]
    direction, verdict = ("lower", "better") if is_error else ("higher", "worse")
    return [
        f"## {name}",
        f"{summary['problem_type'].replace('_', ' ')}, {metric}, {direction} is better",
        *("### test", _build_table(_list_scores(summary, "test"))),
        *("### valid", _build_table(_list_scores(summary, "valid"))),
        "### Paired differences",
        HOW_TO_READ_DIFFERENCES.format(metric=metric, verdict=verdict),
        _build_table(map(_describe_difference, summary["comparisons"])),
        "### Splits",
        f"{_build_table(map(_describe_fold, summary['folds']))}\n\n{NOTE_ON_HASHES}",
    ]


def _list_scores(summary: Mapping[str, Any], part: str) -> Iterable[dict[str, str]]:
    folds = [f"{fold['split']}, seed {fold['seed']}" for fold in summary["folds"]]
    for method, scores in summary["methods"].items():
        values = {
            f"{entry['split']}, seed {entry['seed']}": (entry[part] or {}).get(summary["metric"])
            for entry in scores["metrics"]
        }
        cells = {"method": method, **{fold: _format(values.get(fold)) for fold in folds}}
        cells["mean ± std"] = _format_spread(scores[part])
        if scores[part]["num_values"] < len(folds):
            cells["mean ± std"] += f" (of {scores[part]['num_values']}, incomplete)"
        yield cells | (_describe_bootstrap(scores) if part == "test" else {})


def _list_ranks(ranks: Mapping[str, Any]) -> Iterable[dict[str, str]]:
    for method, found in sorted(ranks.items(), key=lambda item: float(item[1]["mean"])):
        cells = {name: f"{rank:g}" for name, rank in found["ranks"].items()}
        yield {"method": method, **cells, "mean": _format(found["mean"], ".2f")}


def _describe_difference(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        "method": found["method"],
        "reference": found["reference"],
        "mean difference": _format(found["mean_difference"], "+.3f"),
        "standard error": _format(found["standard_error"]),
        **{name: str(found[f"num_{name}"]) for name in ("wins", "ties")},
        "splits": str(found["num_values"]),
        **_describe_bootstrap(found),
    }


def _describe_bootstrap(found: Mapping[str, Any]) -> dict[str, str]:
    name = "bootstrap_standard_error"
    return {"± rows": _format(found[name])} if name in found else {}


def _describe_fold(fold: Mapping[str, Any]) -> dict[str, str]:
    return {
        "split": fold["split"],
        "seed": str(fold["seed"]),
        **{part: str(number) for part, number in fold["num_rows"].items()},
        "dropped": str(fold["num_dropped"]),
        **{f"SHA-256 of {part}": f"`{it[:HASH_LENGTH]}`" for part, it in fold["sha256"].items()},
    }


def _describe_run(run: Mapping[str, Any]) -> dict[str, str]:
    names = {"data set": "dataset", "split": "split", "seed": "seed", "method": "method"}
    choices, texts = run["choices"], describe_setting(run["setting"])
    if texts and run["is_chosen"]:
        texts.append("best of the grid on valid")
    texts += [_describe_setting(choices)] if choices else []
    return {
        **{name: str(run[field]) for name, field in names.items()},
        "setting": "; ".join(texts) or "–",
        "chosen on": choices["part"] or "fixed" if choices else "–",
        "seconds": _format(run["seconds"], ".1f"),
        "core seconds": _format(run["core_seconds"], ".1f"),
        "folder": f"`{run['folder']}`",
    }


def _describe_setting(choices: Mapping[str, Any]) -> str:
    if "setting" in choices:
        texts = [
            f"{label}: " + ", ".join(f"{name} {value}" for name, value in setting.items())
            for label, setting in choices["setting"].items()
        ]
    elif "epochs" in choices:
        pairs = zip(choices["epochs"], choices["num_epochs"], strict=True)
        epochs = ", ".join(f"{epoch:g} of {number:g}" for epoch, number in pairs)
        texts = [f"epoch {epochs} by {choices['metric']}"]
    else:
        texts = [f"checkpoint with the best {choices['metric']}"]
    if "hpo_trials" in choices:
        chosen = ", ".join(f"{name} {choices[name]:.3g}" for name in SEARCHED_FLAGS)
        texts.append(f"best of {choices['hpo_trials']} settings: {chosen}")
    return "; ".join(texts)


def _build_table(rows: Iterable[Mapping[str, str]]) -> str:
    """Return rows of texts by column as Markdown."""
    rows = list(rows)
    header = list(rows[0]) if rows else ["nothing"]
    lines = [header, ["---"] * len(header), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _format(value: float | None, style: str = ".3f") -> str:
    return "–" if value is None else format(value, style)


def _format_spread(spread: Mapping[str, Any]) -> str:
    return "–" if spread["mean"] is None else f"{spread['mean']:.3f} ± {spread['std']:.3f}"
