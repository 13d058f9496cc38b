"""Coverage of intervals and sets, and calibration of classes, on test molecules.

    python tests/benchmarks/bench_trust.py DATA OUT.json [ROWS_TO_CHOOSE [REPETITIONS [FAMILY...]]]

Every run fits a stack, the default of `rmat finetune`, on train and valid of a split drawn anew,
with the folds and the trust of the command, and predicts test. The frozen encoder sees each
molecule once. With ROWS_TO_CHOOSE the widths and weights of the kernels are chosen on so many rows
instead of 1,000, for a busy machine; each FAMILY is a split, by default all are run. Fits are kept
in the folder OUT, and not computed again; what is said of test with them is.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from versions import write_rows

from rmat_hf import featurize_dataset
from rmat_hf.data.splits.registry import split_into_folds, split_rows
from rmat_hf.data.stored_features import expand_features, pack_dataset
from rmat_hf.loading import load_processor, read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import FINGERPRINTS, list_molecule_descriptor_names
from rmat_hf.model.modeling_rmat import RMatModel
from rmat_hf.training import kernel_head
from rmat_hf.training.stack_head import fit_stack_with_held_out
from rmat_hf.training.trust import HeldOut, fit_trust

KERNELS = ["vectors", "ecfp4", "fcfp4", "atom_pairs", "descriptors"]
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


@cache
def load_set(path: Path, label: str, problem_type: str) -> tuple[Any, list[bytes], dict[str, Any]]:
    """Return the rows of a set, and everything the head reads of them."""
    checkpoint = read_checkpoint("rmat-small")
    names = list_molecule_descriptor_names()
    counted = [it for it in KERNELS if it in FINGERPRINTS]
    processor = load_processor(checkpoint.name, fingerprints=counted, molecule_descriptors=names)
    table = pd.read_csv(path)[["smiles", label]]
    rows = featurize_dataset(
        Dataset.from_pandas(table), processor, label_columns=[label], problem_type=problem_type
    )
    packed = pack_dataset(rows)
    encoder = checkpoint.load_model(RMatModel).eval()
    return rows, packed, kernel_head._compute_inputs(encoder, packed, environments=None)


def measure_regression(trust: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of test."""
    truth, values, novelty = (trust[name] for name in ("truth", "values", "novelty"))
    far = novelty >= np.quantile(novelty, 2 / 3)
    found: dict[str, Any] = {"rmse": float(np.sqrt(np.mean((truth - values) ** 2)))}
    found["in_domain"] = float(np.mean(novelty <= trust["model"].config.trust["threshold"]))
    errors = np.sort(trust["held"])
    for coverage in COVERAGES:
        options: dict[str, Any] = {"coverage": coverage, "far": far}
        half = trust["upper"][coverage] - values
        found[f"trust {coverage}"] = score_intervals(truth, values, half, **options)
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


def measure_classes(trust: dict[str, Any]) -> dict[str, Any]:
    truth, possible = trust["truth"], trust["is_possible"]
    found: dict[str, Any] = {"before": score_probabilities(truth, trust["values"])}
    found["after"] = score_probabilities(truth, trust["probabilities"])
    is_held = np.where(truth == 1, possible[:, 0], possible[:, 1])
    found["set"] = {"cover": float(is_held.mean())}
    found["set"] |= {f"class {it}": float(is_held[truth == it].mean()) for it in (0, 1)}
    found["set"]["size"] = float(possible.sum(1).mean())
    return found


@torch.no_grad()
def fit(path: Path, label: str, *, split: str, seed: int, problem_type: str) -> dict[str, Any]:
    """Return what a stack says of held-out rows and of test, as arrays."""
    rows, packed, inputs = load_set(path, label, problem_type)
    start = time.process_time()
    parts = split_rows(rows, split, seed=seed)
    known = np.sort(np.concatenate([parts.train, parts.valid]))
    folds = split_into_folds(rows.select(known), split, most_folds=5, seed=seed)
    position = {features: idx for idx, features in enumerate(packed)}

    def look_up(encoder: Any, wanted: list[bytes], *, environments: Any) -> dict[str, Any]:
        places = torch.tensor([position[it] for it in wanted])
        return {name: it[places] for name, it in inputs.items()}

    compute, kernel_head._compute_inputs = kernel_head._compute_inputs, look_up
    try:
        model, outputs, variances = fit_stack_with_held_out(
            read_checkpoint("rmat-small"),
            rows.select(known),
            label_columns=[label],
            kernel_features=KERNELS,
            problem_type=problem_type,
            label_units=(),
            seed=seed,
            folds=folds,
        )
    finally:
        kernel_head._compute_inputs = compute
    test = parts.test
    descriptors = model.descriptor_scaler(inputs["molecule_descriptors"][test])
    features = (inputs["vectors"][test], inputs["fingerprint_counts"][test], descriptors)
    output = model.build_output(*model.predict_features(*features), None)
    of_test = {"logits": output.logits.double().numpy()}
    if output.get("variance") is not None:
        of_test["variance"] = output.variance.double().numpy()
    seconds = time.process_time() - start
    held_out = {"known": known, "folds": folds, "outputs": outputs, "variances": variances}
    return {**held_out, **of_test, "test": test, "core_seconds": seconds}


def judge(found: Mapping[str, Any], path: Path, label: str, *, problem_type: str) -> Any:
    """Return what the trust of a fit says of test, and its head."""
    rows, packed, _ = load_set(path, label, problem_type)
    labels = np.array(rows["labels"][:], dtype=np.float64).reshape(len(rows), -1)
    config = RMatConfig(
        problem_type=problem_type, id2label={0: label}, label2id={label: 0}, num_labels=1
    )
    pooler = SimpleNamespace(output_size=1)
    base = SimpleNamespace(pooler=pooler)
    model = SimpleNamespace(config=config, base_model=base, device="cpu", trust_head=None)
    held_out = HeldOut(*(found[it] for it in ("known", "outputs", "variances", "folds")))
    options: dict[str, Any] = {"references": held_out.rows, "held_out": held_out}
    fit_trust(model, packed, kind="fingerprints", labels=labels, **options)
    of_test = [packed[it] for it in found["test"]]
    batch = {name: torch.from_numpy(it) for name, it in expand_features(of_test).items()}
    variance = torch.from_numpy(found["variance"]) if "variance" in found else None
    logits = torch.from_numpy(found["logits"])
    trust: dict[str, Any] = {"truth": labels[found["test"], 0], "model": model}
    trust["held"] = np.abs(found["outputs"] - labels[held_out.rows])[:, 0]
    blocks = {
        it: model.trust_head(batch, logits, coverage=it, variance=variance) for it in COVERAGES
    }
    at = blocks[0.9]
    trust["novelty"] = at["novelty"][:, 0].numpy()
    if problem_type == "regression":
        upper = {it: block["upper"][:, 0].numpy() for it, block in blocks.items()}
        return trust | {"values": found["logits"][:, 0], "upper": upper}
    trust["values"] = logits.sigmoid()[:, 0].numpy()
    trust["probabilities"] = at["probabilities"][:, 0].numpy()
    return trust | {"is_possible": at["is_possible"].numpy()}


def run(file: Path, path: Path, label: str, **options: Any) -> dict[str, Any]:
    """Return the scores of a fit, which a file keeps."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **fit(path, label, **options))
    found = dict(np.load(file))
    trust = judge(found, path, label, problem_type=options["problem_type"])
    is_regression = options["problem_type"] == "regression"
    scores = (measure_regression if is_regression else measure_classes)(trust)
    return {**scores, "core_seconds": float(found["core_seconds"]), "num_test": len(found["test"])}


def list_runs(
    folder: Path, most: int, families: Sequence[str]
) -> Iterator[tuple[str, Path, str, dict[str, Any]]]:
    for seed in range(most):
        for sets, kind in ((REGRESSIONS, "regression"), (CLASSES, "multi_label_classification")):
            for name, (path, label, splits) in sets.items():
                for split in splits:
                    # the one split by scaffold has no seed
                    is_new = split != "scaffold" or seed == 0
                    if is_new and seed < NUM_REPETITIONS[kind] and split in (families or splits):
                        chosen = {"problem_type": kind, "split": split, "seed": seed}
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
    most = int(sys.argv[4]) if len(sys.argv) > 4 else max(NUM_REPETITIONS.values())
    results: dict[str, Any] = {}
    for key, source, label, options in list_runs(folder, most, sys.argv[5:]):
        file = out.with_suffix("") / f"{key.replace(' ', '-')}.npz"
        results[key] = run(file, source, label, **options)
        out.write_text(json.dumps(results, indent=2))
        sys.stderr.write(f"{key} {results[key]['core_seconds']:.0f} s\n")
    print_tables(results)


if __name__ == "__main__":
    main()
