"""Test error against the number of training labels, from rmat-small and from random weights.

    python tests/benchmarks/bench_learning_curve.py FOLDER OUT NUM_PROC

FOLDER holds `freesolv.csv` and `esol.csv` with `smiles`, `y` and the columns `split_0` to
`split_2`. The smaller train parts are the first rows of a larger one, in random order; valid and
test stay whole. Every run is one of `rmat benchmark`, so repeating the command continues it. OUT
gets the runs, `learning_curve.json` and a plot.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd

from rmat_hf.evaluation.accuracy_benchmark import run_accuracy_benchmark
from rmat_hf.evaluation.arguments import EvaluationArguments

SIZES = {"freesolv": (64, 128, 256, 513), "esol": (113, 226, 451, 902)}
SPLITS = ("split_0", "split_1", "split_2")
MODELS = {
    "rmat-small": {"model": "rmat-small", "geometry": "bounds"},
    "random weights": {"model": "scratch", "geometry": "bounds"},
}
BASELINES = ["svm_rdkit_descriptors", "random_forest_ecfp4_counts"]


def write_tables(folder: Path, tables: Path) -> dict[str, Any]:
    """Write a table per data set, split and size; return their entries of a protocol."""
    tables.mkdir(parents=True, exist_ok=True)
    entries = {}
    for name, sizes in SIZES.items():
        whole = pd.read_csv(folder / f"{name}.csv")
        for split in SPLITS:
            is_train = whole[split] == "train"
            train = whole[is_train].sample(frac=1.0, random_state=0)
            for size in sizes:
                rows = pd.concat([train.iloc[:size], whole[~is_train]])
                key = f"{name}-{size}-{split}"
                table = rows[["smiles", "y"]].assign(part=rows[split])
                table.to_csv(tables / f"{key}.csv", index=False)
                entries[key] = {
                    "dataset": f"{key}.csv",
                    "label_columns": ["y"],
                    "problem_type": "regression",
                    "conflict_tolerance": 1e9,
                    "seeds": [0],
                    "splits": ["part"],
                }
    return entries


def collect(results: dict[str, Any]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return the test RMSE of every split by data set, method and size."""
    curves: dict[str, dict[str, dict[int, list[float]]]] = {}
    for key, dataset in results["datasets"].items():
        name, size, _ = key.split("-")
        for method, found in dataset["methods"].items():
            by_size = curves.setdefault(name, {}).setdefault(method, {})
            by_size.setdefault(int(size), []).append(found["metrics"][0]["test"]["rmse"])
    return curves


def draw(curves: dict[str, dict[str, dict[int, list[float]]]], path: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, all_axes = plt.subplots(1, len(curves), figsize=(5 * len(curves), 4), squeeze=False)
    for axes, (name, methods) in zip(all_axes[0], curves.items(), strict=True):
        for method, by_size in methods.items():
            means = [np.mean(values) for values in by_size.values()]
            axes.loglog(list(by_size), means, "o-", label=method)
        sizes = SIZES[name]
        axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        ticks = [0.25, 0.35, 0.5, 0.7, 1.0]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.set(title=name, xlabel="train labels", ylabel="test RMSE, standardized")
    all_axes[0][-1].legend(fontsize="small")
    figure.savefig(path, bbox_inches="tight", dpi=120)


def show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    entries = write_tables(folder, out / "tables")
    protocol = {"datasets": entries, "models": MODELS, "baselines": BASELINES}
    (out / "protocol.json").write_text(json.dumps(protocol))
    arguments = EvaluationArguments(
        data=str(out / "tables"),
        protocol=str(out / "protocol.json"),
        output_dir=str(out / "benchmark"),
        num_proc=int(sys.argv[3]),
    )
    result = run_accuracy_benchmark(arguments, report_progress=show)
    if not result.is_complete:
        sys.exit("Some runs failed; see the report.")
    curves = collect(result.results)
    (out / "learning_curve.json").write_text(json.dumps(curves, indent=2))
    draw(curves, out / "learning_curve.png")
    for name, methods in curves.items():
        show(f"\n| {name}, train labels | " + " | ".join(map(str, SIZES[name])) + " |")
        show("|---" * (len(SIZES[name]) + 1) + "|")
        for method, by_size in methods.items():
            cells = [f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in by_size.values()]
            show(f"| {method} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
