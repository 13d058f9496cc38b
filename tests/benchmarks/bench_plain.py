"""Speed and memory of the model against the plain form of its attention, and the error of bf16.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_plain.py DATA [speed memory size precision]

DATA is the folder with `pretraining/moses.parquet` and `mat_benchmark/bbbp.csv`. The outputs of
both models are compared first.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import describe_machine
from measuring import (
    PROCESSOR,
    Batch,
    Predictor,
    build_batches,
    build_model,
    build_pair,
    check_equal,
    count_molecules,
    describe_ratios,
    load_features,
    one_thread,
    pick_evenly,
    take_turns,
)
from torch.utils.checkpoint import checkpoint
from versions import write_rows

# data set, size, form, batches of random molecules, batches of molecules of one length, rounds
SPEED_CASES = [
    ("drug-like", "small", "paper", 6, 6, {"train": 3, "inference": 6}),
    ("drug-like", "small", "reference", 6, 6, {"train": 3, "inference": 6}),
    ("drug-like", "published", "reference", 1, 1, {"train": 3, "inference": 6}),
    # its largest molecules decide: all groups
    ("BBBP", "small", "paper", 3, 31, {"train": 2, "inference": 3}),
]
NUM_CHAINS = 8
# the plain model takes gigabytes and minutes beyond
MAX_PLAIN_SIZE = 64
NUM_SEEDS = {"small": 24, "published": 3}
Row = list[object]


def measure_speed(data: Path) -> Iterator[Row]:
    """Training steps and inference by the molecule."""
    yield [*("molecules", "model", "task", "ours", "times plain", "lowest to highest")]
    for data_set, size, form, num_batches, num_groups, rounds in SPEED_CASES:
        features = load_features(data, data_set)
        random = pick_evenly(build_batches(features, grouped=False), num_batches)
        groups = pick_evenly(build_batches(features, grouped=True), num_groups)
        plain, ours = build_pair(size, form)
        check_equal(plain, ours, random[0])
        variants = {
            "plain": (plain, random),
            "same batches, float32": (ours, random),
            "length groups, float32": (ours, groups),
            "length groups, bf16": (Predictor(ours.model, precision="bf16"), groups),
        }
        for task in ("train", "inference"):
            functions = {
                name: partial(predictor.run, batches, task=task)
                for name, (predictor, batches) in variants.items()
            }
            seconds = take_turns(functions, rounds=rounds[task])
            costs = {
                name: np.array(seconds[name]) / count_molecules(batches)
                for name, (_, batches) in variants.items()
            }
            for name in list(variants)[1:]:
                ratios = describe_ratios(costs["plain"] / costs[name])
                yield [data_set, f"{size}, {form}", task, name, *ratios]


def build_chains(num_nodes: int, *, num_molecules: int) -> Batch:
    """Return peptide-like chains of `num_nodes - 1` heavy atoms; the dummy node is one more."""
    repeats, rest = divmod(num_nodes - 1, 4)
    chain = "C" * rest + "NCC(=O)" * repeats
    batch = dict(PROCESSOR([chain] * num_molecules, return_tensors="pt"))
    return batch | {"labels": torch.zeros(num_molecules, 1)}


def measure_kept_bytes(predictor: Predictor, batch: Batch) -> int:
    """Return the bytes that stay alive until the backward pass, parameters and inputs aside."""
    model = predictor.model
    given = (*model.parameters(), *model.buffers(), *batch.values())
    # the tensors themselves, or a freed storage's address could be given out again
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def checkpoint_and_keep(function: Any, *arguments: Any, **options: Any) -> Any:
        # a checkpoint holds its arguments out of sight of the hooks
        held = (*arguments, *options.values())
        kept.extend(value for value in held if isinstance(value, torch.Tensor))
        return checkpoint(function, *arguments, **options)

    with (
        patch("rmat_hf.model.attention_rmat.checkpoint", checkpoint_and_keep),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        predictor.predict(batch)
    storages = {it.untyped_storage().data_ptr(): it.untyped_storage().nbytes() for it in kept}
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    return sum(size for address, size in storages.items() if address not in known)


def measure_memory(_: Path) -> Iterator[Row]:
    """What a training step keeps for its backward pass."""
    yield [*("form", "nodes", "recompute_pairs", "plain, MiB", "ours, MiB", "plain / ours")]
    for form in ("paper", "reference"):
        for num_nodes in (26, 64, 128):
            plain, ours = build_pair("small", form)
            batch = build_chains(num_nodes, num_molecules=1)
            check_equal(plain, ours, batch)
            plain_bytes = measure_kept_bytes(plain, batch)
            for recompute_pairs in (False, True):
                ours.model.config.recompute_pairs = recompute_pairs
                our_bytes = measure_kept_bytes(ours, batch)
                cells = [f"{count / 2**20:.2f}" for count in (plain_bytes, our_bytes)]
                yield [form, num_nodes, recompute_pairs, *cells, f"{plain_bytes / our_bytes:.1f}"]


def measure_sizes(_: Path) -> Iterator[Row]:
    """Cost of a molecule against its number of nodes."""
    yield [*("nodes", "task", "plain, ms per molecule", "ours, ms per molecule")]
    for num_nodes in (8, 16, 32, 64, 128, 256):
        plain, ours = build_pair("small", "paper")
        batch = build_chains(num_nodes, num_molecules=NUM_CHAINS)
        predictors = {"plain": plain, "ours": ours}
        if num_nodes > MAX_PLAIN_SIZE:
            del predictors["plain"]
        else:
            check_equal(plain, ours, batch)
        for task in ("train", "inference"):
            ours.run([batch], task=task)
            functions = {
                name: partial(it.run, [batch], task=task) for name, it in predictors.items()
            }
            seconds = take_turns(functions, rounds=3)
            costs = [np.median(seconds.get(name, np.nan)) for name in ("plain", "ours")]
            yield [num_nodes, task, *(f"{1000 * cost / NUM_CHAINS:.1f}" for cost in costs)]


def measure_precision(data: Path) -> Iterator[Row]:
    """Error of bf16 autocast, relative to how much the outputs of a random model vary."""
    yield [*("model", "seeds", "median error", "highest")]
    batches = pick_evenly(build_batches(load_features(data, "drug-like"), grouped=True), 2)
    for form in ("paper", "reference"):
        for size, num_seeds in NUM_SEEDS.items():
            errors = []
            for seed in range(num_seeds):
                model = build_model(size, form, num_labels=8, seed=seed)
                exact, half = (
                    predict_all(Predictor(model, precision=precision), batches)
                    for precision in ("float32", "bf16")
                )
                errors.append(np.sqrt(np.mean((half - exact) ** 2)) / exact.std(axis=0).mean())
            yield [f"{size}, {form}", num_seeds, f"{np.median(errors):.3f}", f"{max(errors):.3f}"]


def predict_all(predictor: Predictor, batches: list[Batch]) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([predictor.predict(batch) for batch in batches]).double().numpy()


MEASURES: dict[str, Callable[[Path], Iterator[Row]]] = {
    "speed": measure_speed,
    "memory": measure_memory,
    "size": measure_sizes,
    "precision": measure_precision,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the molecules")
    parser.add_argument("measures", nargs="*", default=list(MEASURES), metavar="MEASURE")
    arguments = parser.parse_args()
    machine = describe_machine(torch.device("cpu"))
    sys.stdout.write("; ".join(f"{name}: {value}" for name, value in machine.items()) + "\n")
    with one_thread():
        for name in arguments.measures:
            sys.stdout.write(f"\n### {MEASURES[name].__doc__}\n\n")
            write_rows(MEASURES[name](arguments.data))


if __name__ == "__main__":
    main()
