"""Share of the machine's float32 GEMM rate that the network reaches, and what it was before.

    OMP_NUM_THREADS=1 python tests/benchmarks/gemm_share.py [--base VERSION] [--rounds 20]

torch counts the operations of a batch of 32 of one molecule; a product of 1024 x 1024 matrices
gives the rate. It and the networks of all versions, with the same weights, take turns in one
process. Training is forward, backward and AdamW. Time is that of the thread, which others on the
machine disturb less.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from measuring import ARCHITECTURES, describe_ratios, one_thread, take_turns
from torch.utils.flop_counter import FlopCounterMode
from versions import build_parser, unpack_versions, write_rows

from rmat_hf.model.processing_rmat import RMatProcessor

SHIPPED = {"hidden_size": 128, "intermediate_size": 256}
SIZES: dict[str, dict[str, Any]] = {
    "shipped": {**ARCHITECTURES["small"], **SHIPPED},
    **ARCHITECTURES,
}
SMILES = ["CC(C)(C)c1ccc(cc1)C(=O)Nc1ccccc1CCO"] * 32
GEMM_SIZE = 1024


def import_network(root: Path, name: str) -> tuple[Any, Any]:
    """Return configuration and model class of a version, of a package of another name."""
    folder = root / "rmat_hf"
    package = ModuleType(name)
    package.__path__ = [str(folder / "model" if (folder / "model").is_dir() else folder)]
    sys.modules[name] = package
    configuration = importlib.import_module(f"{name}.configuration_rmat")
    modeling = importlib.import_module(f"{name}.modeling_rmat")
    return configuration.RMatConfig, modeling.RMatForSequenceClassification


def build_models(roots: dict[str, Path], size: str) -> dict[str, Any]:
    """Return the model of every version, with the weights of the first."""
    models: dict[str, Any] = {}
    for tree, root in roots.items():
        config_class, model_class = import_network(root, f"rmat_{tree}")
        torch.manual_seed(0)
        models[tree] = model_class(
            config_class(**SIZES[size], problem_type="regression", num_labels=1)
        )
        models[tree].load_state_dict(next(iter(models.values())).state_dict())
    return models


def build_step(model: Any, batch: dict[str, torch.Tensor], *, task: str) -> Callable[[], object]:
    model.train(task == "train")
    labels = torch.randn(len(SMILES), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def infer() -> None:
        with torch.no_grad():
            model(**batch)

    def train() -> None:
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train if task == "train" else infer


def main() -> None:
    parser = build_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    arguments = parser.parse_args()
    batch = dict(RMatProcessor(geometry="bounds")(SMILES, return_tensors="pt"))
    matrix = torch.randn(GEMM_SIZE, GEMM_SIZE)
    columns = ["size", "task", "version", "ms", "share of GEMM", "times as fast as before"]
    rows = [[*columns, "lowest to highest"]]
    with unpack_versions(arguments.base) as roots, one_thread():
        for size in arguments.sizes:
            models = build_models(roots, size)
            for task in ("inference", "train"):
                steps = {tree: build_step(it, batch, task=task) for tree, it in models.items()}
                flops = {}
                for tree, step in steps.items():
                    step()
                    with FlopCounterMode(display=False) as counter:
                        step()
                    flops[tree] = counter.get_total_flops()
                turns = {"GEMM": lambda: matrix @ matrix, **steps}
                seconds = take_turns(turns, rounds=arguments.rounds, clock=time.thread_time)
                rate = 2 * GEMM_SIZE**3 / median(seconds["GEMM"])
                first = seconds[next(iter(steps))]
                for tree in steps:
                    ratios = describe_ratios(np.divide(first, seconds[tree]))
                    cost = median(seconds[tree])
                    cells = [size, task, tree, f"{cost * 1e3:.2f}"]
                    rows.append([*cells, f"{flops[tree] / cost / rate:.2f}", *ratios])
    write_rows(rows)


if __name__ == "__main__":
    main()
