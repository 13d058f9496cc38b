"""What bounds are worth: a bounded loss beside dropping them and beside taking them for numbers.

    python tests/benchmarks/bench_censored.py DATA/activity OUT.json [HEAD ...] [-- SET ...]

The strongest third of the labels of train and valid is made the bound `>` of its lower end, as an
assay whose range ends there would have it. Test labels stay as they are: RMSE over those below the
limit, and rank correlation over all. A seed chooses four fifths of the known rows, of which a
network learns from 240 in 12 epochs, which of them are valid, and weights. What is there already
in OUT.json is not computed again.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from versions import write_rows

from rmat_hf import finetune, predict

SETS, SEEDS = ("CHEMBL2835_Ki", "CHEMBL4203_Ki"), (0, 1, 2)
HEADS = ("stack", "kernel", "network")
TREATMENTS = ("bounded", "numbers", "dropped", "complete")
OPTIONS: dict[str, dict[str, Any]] = {"network": {"num_train_epochs": 12, "trust": "none"}}
MOST_ROWS = {"network": 240}


def treat(known: pd.DataFrame, treatment: str, *, limit: float) -> pd.DataFrame:
    """Return the rows to learn from, with the parts train and valid."""
    known = known.copy()
    known["part"] = np.where(np.arange(len(known)) < len(known) // 8, "valid", "train")
    is_beyond = known["pact"] > limit
    if treatment == "dropped":
        return known[~is_beyond]
    if treatment == "numbers":
        return known.assign(pact=known["pact"].clip(upper=limit))
    if treatment == "bounded":
        return known.assign(pact=known["pact"].astype(str).where(~is_beyond, f">{limit}"))
    return known


def run(path: Path, head: str, treatment: str, *, seed: int) -> dict[str, float]:
    table = pd.read_csv(path)
    is_test = table["part"] == "test"
    limit = float(table["pact"][~is_test].quantile(2 / 3))
    test = table[is_test]
    known = table[~is_test].sample(frac=0.8, random_state=seed).head(MOST_ROWS.get(head, 10**6))
    rows = treat(known, treatment, limit=limit)
    # a run reports its test part; these few rows are it, and nothing is chosen on them
    rows = pd.concat([rows, test.head(5)])
    with tempfile.TemporaryDirectory() as folder:
        fields: dict[str, Any] = {"split": "column", "split_column": "part", "seed": seed}
        fields |= {"head": head, "conflict_tolerance": 1e9, **OPTIONS.get(head, {})}
        model = f"{folder}/run"
        finetune(rows, label_columns=["pact"], output_dir=model, **fields)
        found = predict(model, test["smiles"]).values[:, 0]
    measured = test["pact"].to_numpy()
    below = measured <= limit
    return {
        "rmse_below": float(np.sqrt(np.mean((found - measured)[below] ** 2))),
        "spearman": float(spearmanr(found, measured).statistic),
        "rmse_beyond": float(np.sqrt(np.mean((found - measured)[~below] ** 2))),
        "bias_beyond": float(np.mean((found - measured)[~below])),
    }


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    heads, _, sets = " ".join(sys.argv[3:]).partition("--")
    results: dict[str, dict[str, float]] = json.loads(out.read_text()) if out.is_file() else {}
    keys = [
        (head, name, treatment, seed)
        for head in heads.split() or HEADS
        for seed in SEEDS
        for name in sets.split() or SETS
        for treatment in TREATMENTS
    ]
    for head, name, treatment, seed in keys:
        key = f"{head} {name} {treatment} {seed}"
        if key not in results:
            results[key] = run(folder / f"{name}.csv", head, treatment, seed=seed)
            out.write_text(json.dumps(results, indent=2))
            sys.stderr.write(f"{key} {results[key]}\n")
    names = ("rmse_below", "spearman", "rmse_beyond", "bias_beyond")
    rows = [["head", "set", "bounds are", *names]]
    for head, name, treatment in dict.fromkeys(it[:3] for it in keys):
        found = [results[f"{head} {name} {treatment} {seed}"] for seed in SEEDS]
        cells = []
        for metric in names:
            values = [it[metric] for it in found]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
        rows.append([head, name, treatment, *cells])
    write_rows(rows)


if __name__ == "__main__":
    main()
