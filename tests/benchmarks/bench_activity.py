"""Test RMSE on the activity sets of MoleculeACE, fitted on train and valid together.

    python tests/benchmarks/bench_activity.py DATA/activity OUT.json METHOD ... [-- SET ...]

A method is a name of `rmat_hf.training.baselines.BASELINES`. What is there already in OUT.json is
not computed again.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from versions import write_rows

from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.training.baselines import fit_baseline

SETS = (
    *("CHEMBL2835_Ki", "CHEMBL2047_EC50", "CHEMBL1871_Ki", "CHEMBL4203_Ki", "CHEMBL1862_Ki"),
    *("CHEMBL237_EC50", "CHEMBL231_Ki", "CHEMBL238_Ki", "CHEMBL287_Ki", "CHEMBL4792_Ki"),
)


def predict_all(method: str, table: pd.DataFrame, split: SplitIndices) -> np.ndarray:
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
    names = ("rmse", "cliff", "no cliff", "core_seconds")
    rows = [["method", "sets", *names, "each set"]]
    for method, known in results.items():
        means = [f"{np.mean([it[name] for it in known.values()]):.3f}" for name in names]
        each = " ".join(f"{known[name]['rmse']:.3f}" for name in SETS if name in known)
        rows.append([method, str(len(known)), *means, each])
    write_rows(rows)


if __name__ == "__main__":
    main()
