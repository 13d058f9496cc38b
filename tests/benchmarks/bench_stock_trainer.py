"""Test RMSE of the README's stock script beside that of `rmat finetune`, seed by seed.

    python tests/benchmarks/bench_stock_trainer.py ../shared/data 0 1 2

FreeSolv (kcal/mol) and ESOL (standardized), split 0 of both. A run takes one to three minutes.
"""

import re
import shutil
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

import rmat_hf
from rmat_hf import finetune

README = Path(__file__).resolve().parents[2] / "README.md"
LABEL = "hydration_free_energy"


def run_stock(table: Path, *, seed: int) -> float:
    """Run the script with the seed in the folder of the table, and return the error it prints."""
    (script,) = re.findall(r"<!-- stock -->\n```python\n(.+?)```", README.read_text("utf-8"), re.S)
    script = script.replace("set_seed(0)", f"set_seed({seed})").replace("seed=0", f"seed={seed}")
    printed = StringIO()
    with chdir(table.parent), redirect_stdout(printed):
        exec(compile(script, "README.md", "exec"), {"__name__": "__main__"})
    (error,) = re.findall(r"'test_rmse': ([\d.]+)", printed.getvalue())
    return float(error)


def run_runner(table: Path, *, seed: int) -> float:
    """Return the error of `rmat finetune` with its defaults."""
    result = finetune(
        str(table),
        label_columns=[LABEL],
        split="column",
        split_column="split_0",
        head="network",
        output_dir=table.parent / f"run-{seed}",
        num_workers=0,
        feature_cache="none",
        seed=seed,
    )
    return float(result.metrics["test"]["rmse"])


def main() -> None:
    """Print a line for every data set: errors by seed, and their means."""
    data, seeds = Path(sys.argv[1]), [int(it) for it in sys.argv[2:]] or [0, 1, 2]
    sources = {
        "freesolv": Path(rmat_hf.__file__).parent / "data" / "freesolv" / "freesolv.csv",
        "esol": data / "mat_benchmark" / "esol.csv",
    }
    for name, source in sources.items():
        folder = Path(tempfile.mkdtemp())
        table = folder / "freesolv.csv"  # the name and the label that the script reads
        pd.read_csv(source).rename(columns={"y": LABEL}).to_csv(table, index=False)
        for kind, run in (("stock Trainer", run_stock), ("rmat finetune", run_runner)):
            errors = [run(table, seed=seed) for seed in seeds]
            listed = ", ".join(f"{error:.4f}" for error in errors)
            sys.stdout.write(f"{name}, {kind}: {listed}; mean {np.mean(errors):.4f}\n")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
