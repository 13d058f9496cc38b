"""The report of a benchmark as Markdown, from the content of `results.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from rmat_hf.training.metrics import METRICS

HASH_LENGTH = 12
HOW_TO_READ = """
- One value per split, then mean ± population standard deviation over the splits.
- All methods are scored on the same rows: those that every model could use. The rows that one of
  them drops are dropped for all, baselines and other tools too, and counted below.
- Test was looked at once per run, after everything had been chosen on valid. What was chosen is
  under "Choices".
""".strip()
HOW_TO_READ_DIFFERENCES = """
Method minus reference on the same splits of test, with the standard error of the mean over the
splits (sample standard deviation / √n); a negative {metric} difference is {verdict} for the method.
""".strip()
HOW_TO_READ_BOOTSTRAP = """
"± rows" is the standard error that the choice of test rows causes: a bootstrap over rows
({num_resamples} resamples, fixed seed), the same rows for both methods, and the same for all seeds
of one split. Splits with the same hash are repetitions of one split: their spread is that of the
seeds. The probabilities of an SVM rank the molecules, but are not calibrated.
""".strip()


def build_report(results: Mapping[str, Any]) -> str:
    """Return the Markdown report.

    Args:
        results (`Mapping[str, Any]`): As written to `results.json`.
    """
    sections = ["# Accuracy benchmark"]
    if not results["is_complete"]:
        lines = [f"- {item['run']}: {item['reason']}" for item in results["failures"]]
        sections.append(
            f"**Incomplete: {len(lines)} runs failed.** Their cells are empty; repeat the command "
            "to compute them.\n\n" + "\n".join(lines)
        )
    sections.append(HOW_TO_READ)
    for name, summary in results["datasets"].items():
        sections += _build_dataset_sections(name, summary, results=results)
    sections += ["## Choices", *_build_choices(results["runs"])]
    sections += ["## Time and versions", *_build_costs(results)]
    return "\n\n".join(sections) + "\n"


def build_overview(results: Mapping[str, Any]) -> str:
    """Return the means on test as plain text: a line per data set and method."""
    lines = []
    for name, summary in results["datasets"].items():
        for method, scores in summary["methods"].items():
            test = _format_spread(scores["test"])
            lines.append(f"{name:16} {method:36} test {METRICS[summary['metric']].title} {test}")
    return "\n".join(lines)


def _build_dataset_sections(
    name: str, summary: Mapping[str, Any], *, results: Mapping[str, Any]
) -> list[str]:
    metric = METRICS[summary["metric"]].title
    direction = "lower" if summary["lower_is_better"] else "higher"
    sections = [
        f"## {name}",
        f"{summary['problem_type'].replace('_', ' ')}, {metric}, {direction} is better",
    ]
    for part in ("test", "valid"):
        sections += [f"### {part}", _build_scores(summary, part)]
    sections += [
        "### Paired differences",
        HOW_TO_READ_DIFFERENCES.format(
            metric=metric, verdict="better" if summary["lower_is_better"] else "worse"
        ),
    ]
    if not summary["lower_is_better"]:
        sections.append(HOW_TO_READ_BOOTSTRAP.format(num_resamples=results["num_resamples"]))
    sections += [_build_differences(summary), "### Splits", _build_splits(summary)]
    sections += [f"![{file}](plots/{file})" for file in results["plots"].get(name, [])]
    return sections


def _build_scores(summary: Mapping[str, Any], part: str) -> str:
    with_errors = part == "test" and not summary["lower_is_better"]
    folds = [(fold["split"], fold["seed"]) for fold in summary["folds"]]
    header = ["method", *(f"{split}, seed {seed}" for split, seed in folds), "mean ± std"]
    rows = []
    for method, scores in summary["methods"].items():
        values = {
            (entry["split"], entry["seed"]): (entry[part] or {}).get(summary["metric"])
            for entry in scores["metrics"]
        }
        cells = [method, *(_format(values.get(fold)) for fold in folds)]
        cells.append(_format_spread(scores[part]))
        if len([value for value in values.values() if value is not None]) < len(folds):
            cells[-1] += f" (of {scores[part]['num_values']}, incomplete)"
        if with_errors:
            cells.append(_format(scores["bootstrap_standard_error"]))
        rows.append(cells)
    return _build_table([*header, *(["± rows"] if with_errors else [])], rows)


def _build_differences(summary: Mapping[str, Any]) -> str:
    header = ["method", "reference", "mean difference", "standard error", "wins", "ties", "splits"]
    with_errors = not summary["lower_is_better"]
    rows = []
    for found in summary["comparisons"]:
        cells = [found["method"], found["reference"], _format_signed(found["mean_difference"])]
        cells.append(_format(found["standard_error"]))
        cells += [str(found[name]) for name in ("num_wins", "num_ties", "num_values")]
        if with_errors:
            cells.append(_format(found["bootstrap_standard_error"]))
        rows.append(cells)
    return _build_table([*header, *(["± rows"] if with_errors else [])], rows)


def _build_splits(summary: Mapping[str, Any]) -> str:
    parts = ("train", "valid", "test")
    header = ["split", "seed", *parts, "dropped", *(f"SHA-256 of {part}" for part in parts)]
    rows = [
        [
            fold["split"],
            str(fold["seed"]),
            *(str(fold["num_rows"][part]) for part in parts),
            str(fold["num_dropped"]),
            *(f"`{fold['sha256'][part][:HASH_LENGTH]}`" for part in parts),
        ]
        for fold in summary["folds"]
    ]
    note = "SHA-256 of the sorted canonical SMILES of a part; in full in `results.json`."
    return f"{_build_table(header, rows)}\n\n{note}"


def _build_choices(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for run in runs:
        choices = run["choices"]
        if choices is None:
            continue
        if "setting" in choices:
            texts = [
                f"{label}: " + ", ".join(f"{name} {value}" for name, value in setting.items())
                for label, setting in choices["setting"].items()
            ]
        else:
            texts = [_describe_epochs(choices)]
            if "hpo_trials" in choices:
                named = ("learning_rate", "dropout", "weight_decay", "batch_size")
                chosen = ", ".join(f"{name} {choices[name]:.3g}" for name in named)
                texts.append(f"best of {choices['hpo_trials']} settings: {chosen}")
        cells = [run["dataset"], run["split"], str(run["seed"]), run["method"], "; ".join(texts)]
        rows.append([*cells, choices["part"] or "fixed"])
    header = ["data set", "split", "seed", "method", "setting", "chosen on"]
    note = (
        "Everything else was given by the protocol. How other tools chose is for them to say. "
        "The trials of a search are in `hpo_trials.csv` of the run."
    )
    return [note, _build_table(header, rows)]


def _describe_epochs(choices: Mapping[str, Any]) -> str:
    if "epochs" not in choices:
        return f"checkpoint with the best {choices['metric']}"
    pairs = zip(choices["epochs"], choices["num_epochs"], strict=True)
    epochs = ", ".join(f"{epoch:g} of {number:g}" for epoch, number in pairs)
    return f"epoch {epochs} by {choices['metric']}"


def _build_costs(results: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            run["dataset"],
            run["split"],
            str(run["seed"]),
            run["method"],
            *(_format(run[name], ".1f") for name in ("seconds", "core_seconds")),
            f"`{run['folder']}`" if run["folder"] else "–",
        ]
        for run in results["runs"]
    ]
    header = ["data set", "split", "seed", "method", "seconds", "core seconds", "folder"]
    versions = [
        ", ".join(f"{name} {number}" for name, number in found.items())
        for found in results["versions"]
    ]
    total = results["core_seconds"] / 3600
    return [
        f"{total:.2f} core hours in all. Of an interrupted run only the time since it was resumed "
        "counts.",
        "\n".join(f"- {line}" for line in versions),
        _build_table(header, rows),
    ]


def _build_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _format(value: float | None, style: str = ".3f") -> str:
    return "–" if value is None else format(value, style)


def _format_signed(value: float | None) -> str:
    return _format(value, "+.3f")


def _format_spread(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    return f"{spread['mean']:.3f} ± {spread['std']:.3f}"
