"""Molecules per second of two sizes of R-MAT and of chemprop's default.

    python tests/benchmarks/chemprop_speed.py DATA CHEMPROP_PYTHON

`make bench-chemprop` makes chemprop's own environment and runs this. They take turns, in a
process of their own each, with one thread, on the same molecules, in batches of 32. Then the two
commands, `rmat finetune` with its defaults and `chemprop train --epochs 50`, on 1,000 molecules of
an activity set, from a file to a folder, with all cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import (
    Predictor,
    build_batches,
    build_model,
    count_molecules,
    describe_ratios,
    featurize,
    one_thread,
    read_smiles,
    take_turns,
)
from versions import write_rows

from rmat_hf.training.arguments import SCRATCH_ARCHITECTURE

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {**SCRATCH_ARCHITECTURE, "hidden_dropout_prob": 0.0},
    # as many parameters as chemprop's default; a head fills the processor's vectors
    "as chemprop": {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_head_layers": 2,
    },
}
ROUNDS = 5
FIT_SET, FIT_ROWS, FIT_ROUNDS = "CHEMBL238_Ki", 1000, 2
VARIANTS = {
    "random batches, float32": {"grouped": False, "precision": "float32"},
    "length groups, float32": {"grouped": True, "precision": "float32"},
    "length groups, bf16": {"grouped": True, "precision": "bf16"},
}


def measure_ours(size: str) -> None:
    """Print our molecules per second for the SMILES that standard input lists in JSON."""
    features = featurize(json.load(sys.stdin))
    model = build_model("small", "paper", **ARCHITECTURES[size])
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    speeds: dict[str, float] = {"parameters": num_parameters}
    for name, options in VARIANTS.items():
        batches = build_batches(features, grouped=options["grouped"])
        predictor = Predictor(model, precision=options["precision"])
        for task in ("train", "inference"):
            predictor.run(batches[:5], task=task)
            run = partial(predictor.run, batches, task=task)
            (seconds,) = take_turns({"ours": run}, rounds=1)["ours"]
            speeds[f"{task}, {name}"] = count_molecules(batches) / seconds
    sys.stdout.write(json.dumps(speeds))


def run(*command: object, smiles: list[str]) -> dict[str, float]:
    result = subprocess.run(
        [str(part) for part in command], input=json.dumps(smiles), capture_output=True, text=True
    )
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def time_fits(data_dir: Path, chemprop: Path) -> list[list[str]]:
    """Return a row of a table: seconds of the two commands, in turns."""
    seconds: dict[str, list[float]] = {"ours": [], "chemprop": []}
    threads = {name: it for name, it in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        rows = pd.read_csv(data_dir / "activity" / f"{FIT_SET}.csv").head(FIT_ROWS)
        rows[["smiles", "pact"]].to_csv(table, index=False)
        for round_ in range(FIT_ROUNDS):
            commands: dict[str, list[Any]] = {
                "ours": [
                    *(Path(sys.executable).with_name("rmat"), "finetune", "--dataset", table),
                    *("--label-columns", "pact", "--feature-cache", "none", "--output-dir"),
                ],
                "chemprop": [
                    *(chemprop, "train", "--data-path", table, "--task-type", "regression"),
                    *("--epochs", 50, "--accelerator", "cpu", "--output-dir"),
                ],
            }
            for name, command in commands.items():
                words = [*map(str, command), f"{folder}/{name}-{round_}"]
                start = time.perf_counter()
                subprocess.run(words, check=True, capture_output=True, env=threads)
                seconds[name].append(time.perf_counter() - start)
    ours, theirs = (np.array(seconds[name]) for name in ("ours", "chemprop"))
    cells = (f"{np.median(it):.0f}" for it in (ours, theirs))
    return [[f"fit of {FIT_ROWS}, seconds", "default", *cells, *describe_ratios(ours / theirs)]]


def main() -> None:
    data_dir, chemprop_python = map(Path, sys.argv[1:])
    smiles = read_smiles(data_dir, "drug-like")
    partner = Path(__file__).with_name("chemprop_partner.py")
    theirs: list[dict[str, float]] = []
    ours: dict[str, list[dict[str, float]]] = {size: [] for size in ARCHITECTURES}
    for _ in range(ROUNDS):
        theirs.append(run(chemprop_python, partner, smiles=smiles))
        for size, found in ours.items():
            found.append(run(sys.executable, __file__, "--ours", size, smiles=smiles))
    rows = [["task", "ours", "ours, molecules/s", "chemprop, molecules/s", "times chemprop", ""]]
    for found in ours.values():
        for task in ("train", "inference"):
            their_speeds = np.array([speeds[task] for speeds in theirs])
            for name in VARIANTS:
                our_speeds = np.array([speeds[f"{task}, {name}"] for speeds in found])
                cells = [task, f"{found[0]['parameters'] / 1e6:.2f} M, {name}"]
                cells += [f"{np.median(speeds):.0f}" for speeds in (our_speeds, their_speeds)]
                rows.append([*cells, *describe_ratios(our_speeds / their_speeds)])
    write_rows(rows)
    header = ["", "ours", "ours, seconds", "chemprop, seconds", "times chemprop", ""]
    write_rows([header, *time_fits(data_dir, chemprop_python.with_name("chemprop"))])


if __name__ == "__main__":
    with one_thread():
        measure_ours(sys.argv[2]) if sys.argv[1] == "--ours" else main()
