"""Test error against the number of training labels, beside classical baselines.

    python tests/benchmarks/bench_learning_curve.py FOLDER OUT NUM_PROC

FOLDER holds the CSV files of the four data sets with `smiles`, `y` and the columns `split_0` to
`split_2`. The smaller train parts are the first rows of a larger one, in random order; valid and
test stay whole. Every run is one of `rmat benchmark`, so repeating the command continues it. OUT
gets the runs and `learning_curve.json`.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from versions import write_rows

from rmat_hf.evaluation.accuracy_benchmark import EvaluationArguments, run_accuracy_benchmark

RMAT_SMALL = {"rmat-small": {"model": "rmat-small", "geometry": "bounds", "head": "network"}}
RANDOM_WEIGHTS = {"random weights": {"model": "scratch", "geometry": "bounds"}}
NUM_REPEATS = 3
Curves = dict[str, dict[str, dict[int, list[float]]]]


@dataclass(frozen=True)
class Task:
    """Data sets of one kind of label, and what is compared on them."""

    problem_type: str
    metric: str
    sizes: dict[str, tuple[int, ...]]
    models: dict[str, dict[str, str]]


# the splits of the classes are all the same
TASKS = {
    "classes": Task(
        "multi_label_classification",
        "roc_auc",
        {"estrogen-beta": (196, 392, 784, 1568), "bbbp": (203, 407, 815, 1631)},
        RMAT_SMALL,
    ),
    "regression": Task(
        "regression",
        "rmse",
        {"freesolv": (64, 128, 256, 513), "esol": (113, 226, 451, 902)},
        RMAT_SMALL | RANDOM_WEIGHTS,
    ),
}
BASELINES = ["svm_rdkit_descriptors", "random_forest_ecfp4_counts"]


def write_tables(folder: Path, tables: Path, *, task: Task) -> dict[str, Any]:
    """Write a table per data set, size and repeat; return their entries of a protocol."""
    tables.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, sizes in task.sizes.items():
        whole = pd.read_csv(folder / f"{name}.csv")
        for repeat in range(NUM_REPEATS):
            split = whole[f"split_{repeat}"]
            train = whole[split == "train"].sample(frac=1.0, random_state=repeat)
            for size in sizes:
                rows = pd.concat([train.iloc[:size], whole[split != "train"]])
                key = f"{name}-{size}-{repeat}"
                table = rows[["smiles", "y"]].assign(part=split)
                table.to_csv(tables / f"{key}.csv", index=False)
                entries[key] = {
                    "dataset": f"{key}.csv",
                    "label_columns": ["y"],
                    "problem_type": task.problem_type,
                    "conflict_tolerance": 1e9,
                    "seeds": [repeat],
                    "splits": ["part"],
                }
    return entries


def collect(results: dict[str, Any], *, metric: str) -> Curves:
    """Return the metric on test of every repeat by data set, method and size."""
    curves: Curves = {}
    for key, dataset in results["datasets"].items():
        name, size, _ = key.rsplit("-", 2)
        for method, found in dataset["methods"].items():
            by_size = curves.setdefault(name, {}).setdefault(method, {})
            by_size.setdefault(int(size), []).append(found["metrics"][0]["test"][metric])
    return curves


def run_task(task: Task, *, folder: Path, out: Path, num_proc: int) -> Curves:
    """Run the benchmark of a task into its folder, or continue it."""
    entries = write_tables(folder, out / "tables", task=task)
    protocol = {"datasets": entries, "models": task.models, "baselines": BASELINES}
    (out / "protocol.json").write_text(json.dumps(protocol))
    arguments = EvaluationArguments(
        data=str(out / "tables"),
        protocol=str(out / "protocol.json"),
        output_dir=str(out / "benchmark"),
        num_proc=num_proc,
    )
    results = run_accuracy_benchmark(arguments, report_progress=partial(print, flush=True))
    if not results["is_complete"]:
        sys.exit("Some runs failed; see the report.")
    return collect(results, metric=task.metric)


def main() -> None:
    folder, out, num_proc = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    curves: Curves = {}
    for name, task in TASKS.items():
        curves |= run_task(task, folder=folder, out=out / name, num_proc=num_proc)
    (out / "learning_curve.json").write_text(json.dumps(curves, indent=2))
    for name, methods in curves.items():
        sizes = next(iter(methods.values()))
        rows = [[f"{name}, train labels", *map(str, sizes)]]
        for method, by_size in methods.items():
            rows.append(
                [method, *(f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in by_size.values())]
            )
        write_rows(rows)


if __name__ == "__main__":
    main()
