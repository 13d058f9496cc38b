"""What a run chose, and on which part: all of it on valid."""

import csv
import json
from pathlib import Path
from typing import Any

from rmat_hf.evaluation.jobs import SETTING_FILE
from rmat_hf.training.metrics import METRICS, list_metrics
from rmat_hf.training.run_folder import ARGUMENTS_FILE
from rmat_hf.training.search import SEARCHED_FLAGS, TRIALS_FILE

LOG_FILE = "training_log.json"


def describe_choices(folder: Path) -> dict[str, Any]:
    """Return what was chosen in a finished run: an epoch and searched values, or a grid's setting.

    Args:
        folder (`Path`): Of a finetuned model or a fitted baseline.

    Returns:
        `dict` with `part` (where it was chosen; `None` if it was fixed) and, for a model, `metric`,
        `epochs` and `num_epochs` (one each, or one per member of an ensemble) and the values of a
        search over `hpo_trials` settings; for a baseline `setting` by label.
    """
    if (folder / SETTING_FILE).is_file():
        return dict(_load(folder / SETTING_FILE))
    arguments = _load(folder / ARGUMENTS_FILE)
    metric = arguments.get("training_arguments", {}).get("metric_for_best_model")
    metric = str(metric or list_metrics(arguments["problem_type"])[0].name).removeprefix("eval_")
    # runs of before there were folds have no such field
    part = "own folds of train and valid" if arguments.get("member_folds") else "valid"
    choices: dict[str, Any] = {"part": part, "metric": metric}
    choices |= _find_best_epochs(folder / LOG_FILE, metric)
    if (folder / TRIALS_FILE).is_file():
        with (folder / TRIALS_FILE).open(newline="", encoding="utf-8") as stream:
            choices["hpo_trials"] = sum(1 for _ in csv.DictReader(stream))
        choices |= {name: arguments[name] for name in SEARCHED_FLAGS}
    return choices


def _find_best_epochs(log_file: Path, metric: str) -> dict[str, Any]:
    if not log_file.is_file():
        return {}
    evaluations: dict[int, list[dict[str, Any]]] = {}
    for entry in _load(log_file):
        if f"eval_{metric}" in entry:
            # only the entries of an ensemble say whose they are
            evaluations.setdefault(entry.get("member", 0), []).append(entry)
    if not evaluations:
        return {}
    is_score = metric in METRICS and METRICS[metric].greater_is_better
    choose = max if is_score else min
    best = [choose(found, key=lambda e: e[f"eval_{metric}"]) for found in evaluations.values()]
    return {
        "epochs": [entry["epoch"] for entry in best],
        "num_epochs": [found[-1]["epoch"] for found in evaluations.values()],
    }


def _load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
