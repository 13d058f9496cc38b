"""Share of the machine's float32 GEMM rate that the network reaches.

    OMP_NUM_THREADS=1 python tests/benchmarks/gemm_share.py [--base FOLDER] [--rounds 5]

torch counts the operations of a batch of 32 of one molecule; a product of 1024 x 1024 matrices
beside it, in the same process, gives the rate. With `--base`, a checkout of another version,
processes of both take turns. Training is forward, backward and AdamW.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

REPO_ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "shipped": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    },
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    },
    "published": {},
}
SMILES = ["CC(C)(C)c1ccc(cc1)C(=O)Nc1ccccc1CCO"] * 32
GEMM_SIZE = 1024
NUM_REPEATS = 3


def measure_seconds(step: Callable[[], object], *, num_calls: int) -> float:
    start = time.perf_counter()
    for _ in range(num_calls):
        step()
    return (time.perf_counter() - start) / num_calls


def measure(size: str) -> dict[str, float]:
    """Return the shares for inference and training of a size; `rmat_hf` is that of PYTHONPATH."""
    import rmat_hf

    torch.manual_seed(0)
    config = rmat_hf.RMatConfig(**SIZES[size], problem_type="regression", num_labels=1)
    model = rmat_hf.RMatForSequenceClassification(config)
    batch = dict(rmat_hf.RMatProcessor(geometry="bounds")(SMILES, return_tensors="pt"))
    labels = torch.randn(len(SMILES), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    matrix = torch.randn(GEMM_SIZE, GEMM_SIZE)

    def infer() -> None:
        with torch.no_grad():
            model(**batch)

    def train() -> None:
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    shares = {}
    for name, step in (("inference", infer), ("train", train)):
        model.train(name == "train")
        step()
        with FlopCounterMode(display=False) as counter:
            step()
        ratios = []
        for _ in range(NUM_REPEATS):
            gemm = measure_seconds(lambda: matrix @ matrix, num_calls=10)
            rate = counter.get_total_flops() / measure_seconds(step, num_calls=3)
            ratios.append(rate / (2 * GEMM_SIZE**3 / gemm))
        shares[name] = median(ratios)
    return shares


def run(root: Path, size: str) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, __file__, "--measure", size]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(output.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, help="checkout of the version to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--measure", choices=list(SIZES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        sys.stdout.write(json.dumps(measure(arguments.measure)) + "\n")
        return
    trees = {"before": arguments.base} if arguments.base else {}
    trees["now"] = REPO_ROOT
    sys.stdout.write("| size | task | version | share of GEMM | lowest to highest |\n")
    sys.stdout.write(f"|{'---|' * 5}\n")
    for size in arguments.sizes:
        found: dict[str, list[dict[str, float]]] = {tree: [] for tree in trees}
        for _ in range(arguments.rounds):
            for tree, root in trees.items():
                found[tree].append(run(root, size))
        for task in ("inference", "train"):
            for tree, rounds in found.items():
                shares = [shares[task] for shares in rounds]
                span = f"{min(shares):.2f} to {max(shares):.2f}"
                cells = [size, task, tree, f"{median(shares):.2f}", span]
                sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
