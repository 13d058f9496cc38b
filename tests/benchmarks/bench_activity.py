"""Test RMSE on the activity sets of MoleculeACE, fitted on train and valid together.

    python tests/benchmarks/bench_activity.py DATA/activity OUT.json METHOD ... [-- SET ...]

A method is a name of `rmat_hf.training.baselines.BASELINES`, or a kernel head on frozen vectors:
what has a kernel, as `vectors+ecfp4+atom_pairs`, with @MODEL behind it if that is not rmat-small.
What is there already in OUT.json is not computed again.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from versions import write_rows

from rmat_hf import featurize_dataset, predict
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.loading import load_processor, read_checkpoint
from rmat_hf.model.features_rmat import FINGERPRINTS, list_molecule_descriptor_names
from rmat_hf.training.baselines import BASELINES, fit_baseline
from rmat_hf.training.kernel_head import fit_with_held_out

SETS = (
    *("CHEMBL2835_Ki", "CHEMBL2047_EC50", "CHEMBL1871_Ki", "CHEMBL4203_Ki", "CHEMBL1862_Ki"),
    *("CHEMBL237_EC50", "CHEMBL231_Ki", "CHEMBL238_Ki", "CHEMBL287_Ki", "CHEMBL4792_Ki"),
)


def predict_all(method: str, table: pd.DataFrame, split: SplitIndices) -> np.ndarray:
    if method not in BASELINES:
        return predict_by_kernel(method, table, split)
    (outputs,), _ = fit_baseline(
        method,
        table["smiles"].tolist(),
        labels=table["pact"].to_numpy(),
        split=split,
        problem_type="regression",
        label_names=["pact"],
        seed=0,
    )
    return outputs


def predict_by_kernel(method: str, table: pd.DataFrame, split: SplitIndices) -> np.ndarray:
    """Return the predictions of a kernel head, of the rows of train without each of them."""
    kinds, _, model = method.partition("@")
    features = kinds.split("+")
    options: dict[str, Any] = {
        "fingerprints": [it for it in features if it in FINGERPRINTS] or None,
        "molecule_descriptors": list_molecule_descriptor_names()
        if "descriptors" in features
        else None,
    }
    checkpoint = read_checkpoint(model or "rmat-small")
    processor = load_processor(checkpoint.name, **options)
    dataset = featurize_dataset(
        Dataset.from_pandas(table[["smiles", "pact"]]),
        processor,
        label_columns=["pact"],
        conflict_tolerance=1e9,
    )
    fitted, held_out, _ = fit_with_held_out(
        checkpoint,
        dataset.select(split.train),
        label_columns=["pact"],
        kernel_features=features,
        problem_type="regression",
        label_units=(),
        seed=0,
    )
    outputs = np.empty(len(table))
    outputs[split.train] = held_out[:, 0]
    smiles = table["smiles"].iloc[split.test].tolist()
    outputs[split.test] = predict(fitted, smiles, processor=processor).values[:, 0]
    return outputs


def run(path: Path, method: str) -> dict[str, float]:
    table = pd.read_csv(path)
    is_test = (table["part"] == "test").to_numpy()
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    start = time.process_time()
    # no baseline of these chooses on valid
    outputs = predict_all(method, table, SplitIndices(train, train, test))
    errors = (outputs - table["pact"].to_numpy())[is_test] ** 2
    is_cliff = table["cliff_mol"].to_numpy()[is_test] == 1
    found = {"rmse": errors.mean(), "cliff": errors[is_cliff].mean()}
    found["no cliff"] = errors[~is_cliff].mean()
    found["train"] = ((outputs - table["pact"].to_numpy())[~is_test] ** 2).mean()
    scores = {name: float(np.sqrt(value)) for name, value in found.items()}
    return {**scores, "core_seconds": time.process_time() - start}


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    methods, _, sets = " ".join(sys.argv[3:]).partition(" -- ")
    results: dict[str, dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else {}
    for method in methods.split():
        known = results.setdefault(method, {})
        for name in sets.split() or SETS:
            if name not in known:
                known[name] = run(folder / f"{name}.csv", method)
                out.write_text(json.dumps(results, indent=2))
                sys.stderr.write(f"{method} {name} {known[name]}\n")
    names = ("rmse", "cliff", "no cliff", "train", "core_seconds")
    rows = [["method", "sets", *names, "each set"]]
    for method, known in results.items():
        means = [
            f"{np.mean([it.get(name, np.nan) for it in known.values()]):.3f}" for name in names
        ]
        each = " ".join(f"{known[name]['rmse']:.3f}" for name in SETS if name in known)
        rows.append([method, str(len(known)), *means, each])
    write_rows(rows)


if __name__ == "__main__":
    main()
