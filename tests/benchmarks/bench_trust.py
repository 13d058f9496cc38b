"""Coverage of intervals and sets, and calibration of classes, on test molecules.

    python tests/benchmarks/bench_trust.py DATA OUT.json [ROWS_TO_CHOOSE]

Every run is a finetuning with a kernel head and folds, on a split drawn anew, and a prediction of
its test part. With ROWS_TO_CHOOSE the widths and weights of the kernels are chosen on so many rows,
for a machine that is busy. What is there already in OUT.json is not computed again.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from versions import write_rows

from rmat_hf import finetune, predict
from rmat_hf.loading import load_predictor
from rmat_hf.training import kernel_head

COVERAGES = (0.8, 0.9, 0.95)
# file, column of labels, splits
REGRESSIONS = {
    "freesolv": ("mat_benchmark/freesolv.csv", "y", ("random", "cluster")),
    "esol": ("mat_benchmark/esol.csv", "y", ("random", "cluster")),
    "CHEMBL2835_Ki": ("activity/CHEMBL2835_Ki.csv", "pact", ("random", "cluster")),
    "CHEMBL1871_Ki": ("activity/CHEMBL1871_Ki.csv", "pact", ("random", "cluster")),
}
CLASSES = {
    "bbbp": ("mat_benchmark/bbbp.csv", "y", ("random", "scaffold", "scaffold_balanced")),
    "estrogen-beta": (
        *("mat_benchmark/estrogen-beta.csv", "y"),
        ("random", "scaffold", "scaffold_balanced"),
    ),
}
NUM_REPETITIONS = {"regression": 10, "multi_label_classification": 3}
# Of a test part by novelty, and of probabilities.
NUM_BINS = 10


def score_intervals(
    truth: np.ndarray, center: np.ndarray, half: np.ndarray, *, coverage: float, far: np.ndarray
) -> dict[str, float]:
    """Return coverage, that of the most novel third, width and interval score."""
    misses = np.maximum(np.abs(truth - center) - half, 0)
    return {
        "cover": float((misses == 0).mean()),
        "far": float((misses == 0)[far].mean()),
        "width": float(2 * half.mean()),
        "score": float((2 * half + 2 / (1 - coverage) * misses).mean()),
    }


def measure_regression(folder: Path, test: pd.DataFrame, label: str) -> dict[str, Any]:
    table = pd.read_csv(folder / "predictions.csv")
    held_out = table[table["split"] != "test"]
    errors = np.sort((held_out[label] - held_out[f"prediction_{label}"]).abs())
    model, processor = load_predictor(folder)
    result = predict(model, test["smiles"].tolist(), processor=processor)
    truth, values = test[label].to_numpy(), result.values[:, 0]
    half = (result.upper - result.lower)[:, 0] / 2
    quantiles = {it: model.trust_head.find_quantiles(it)[0] for it in COVERAGES}
    far = result.novelty >= np.quantile(result.novelty, 2 / 3)
    found: dict[str, Any] = {"rmse": float(np.sqrt(np.mean((truth - values) ** 2)))}
    found["in_domain"] = float(np.mean(result.in_domain))
    for coverage, quantile in quantiles.items():
        options: dict[str, Any] = {"coverage": coverage, "far": far}
        scaled = half * quantile / quantiles[0.9]
        found[f"trust {coverage}"] = score_intervals(truth, values, scaled, **options)
        one = errors[int(np.ceil((len(errors) + 1) * coverage)) - 1]
        constant = np.full(len(truth), one)
        found[f"one quantile {coverage}"] = score_intervals(truth, values, constant, **options)
    return found


def score_probabilities(truth: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return log loss, Brier score and expected calibration error."""
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    loss = -np.where(truth == 1, np.log(clipped), np.log(1 - clipped))
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    gaps = [
        abs(truth[bins == it].mean() - probabilities[bins == it].mean()) * (bins == it).mean()
        for it in np.unique(bins)
    ]
    brier = ((truth - probabilities) ** 2).mean()
    return {"log loss": float(loss.mean()), "brier": float(brier), "ece": float(sum(gaps))}


def measure_classes(folder: Path, test: pd.DataFrame, label: str) -> dict[str, Any]:
    truth = test[label].to_numpy()
    result = predict(folder, test["smiles"].tolist())
    found: dict[str, Any] = {"before": score_probabilities(truth, result.values[:, 0])}
    found["after"] = score_probabilities(truth, result.probabilities[:, 0])
    is_held = np.where(truth == 1, result.is_possible[:, 0], result.is_possible[:, 1])
    found["set"] = {"cover": float(is_held.mean())}
    found["set"] |= {f"class {it}": float(is_held[truth == it].mean()) for it in (0, 1)}
    found["set"]["size"] = float(result.is_possible.sum(1).mean())
    return found


def run(source: Path, label: str, **options: Any) -> dict[str, Any]:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        finetune(str(source), label_columns=[label], output_dir=folder, head="kernel", **options)
        seconds = time.perf_counter() - start
        table = pd.read_csv(folder / "predictions.csv")
        test = table[table["split"] == "test"]
        is_regression = "problem_type" not in options
        measure = measure_regression if is_regression else measure_classes
        return {**measure(folder, test, label), "seconds": seconds, "num_test": len(test)}


def list_runs(folder: Path) -> Iterator[tuple[str, Path, str, dict[str, Any]]]:
    for sets, kind in ((REGRESSIONS, "regression"), (CLASSES, "multi_label_classification")):
        options = {} if kind == "regression" else {"problem_type": kind}
        for seed in range(NUM_REPETITIONS[kind]):
            for name, (path, label, splits) in sets.items():
                for split in splits:
                    # the one split by scaffold has no seed
                    if split != "scaffold" or seed == 0:
                        chosen = {**options, "split": split, "seed": seed, "num_workers": 0}
                        yield f"{name} {split} {seed}", folder / path, label, chosen


def print_tables(results: dict[str, dict[str, Any]]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, found in results.items():
        groups.setdefault(key.rpartition(" ")[0], []).append(found)
    rows = [["set, split", "runs", "coverage", "intervals", "cover", "far", "width", "score"]]
    classes = [["set, split", "runs", "", "log loss", "Brier", "ECE"]]
    sets = [["set, split", "runs", "cover", "class 0", "class 1", "size"]]
    for name, found in groups.items():
        number = str(len(found))

        def average(block: str, found: list[dict[str, Any]] = found) -> list[str]:
            return [f"{np.mean([it[block][key] for it in found]):.3f}" for key in found[0][block]]

        if "before" in found[0]:
            classes += [[name, number, it, *average(it)] for it in ("before", "after")]
            sets.append([name, number, *average("set")])
            continue
        for coverage in COVERAGES:
            for kind in ("trust", "one quantile"):
                block = average(f"{kind} {coverage}")
                rows.append([name, number, str(coverage), kind, *block])
    for table in (rows, classes, sets):
        write_rows(table)


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    if len(sys.argv) > 3:
        kernel_head.MAX_ROWS_TO_CHOOSE = int(sys.argv[3])
    results: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {}
    for key, source, label, options in list_runs(folder):
        if key not in results:
            results[key] = run(source, label, **options)
            out.write_text(json.dumps(results, indent=2))
            sys.stderr.write(f"{key} {results[key]['seconds']:.0f} s\n")
    print_tables(results)


if __name__ == "__main__":
    main()
