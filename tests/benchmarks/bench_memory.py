"""What a training step keeps for its backward pass, and how much memory it takes at most."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import (
    PROCESSOR,
    Batch,
    Predictor,
    build_pair,
    build_plain_batches,
    check_equal,
    report,
)
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.benchmark

NUM_MOLECULES = 4
VARIANTS = ("plain", "ours", "ours, recompute_pairs")


def build_chain(num_nodes: int) -> str:
    """Return a peptide-like chain of `num_nodes - 1` heavy atoms; the dummy node is one more."""
    repeats, rest = divmod(num_nodes - 1, 4)
    return "C" * rest + "NCC(=O)" * repeats


def build_chains(num_nodes: int, *, num_molecules: int) -> Batch:
    batch = dict(PROCESSOR([build_chain(num_nodes)] * num_molecules, return_tensors="pt"))
    assert batch["node_features"].shape[1] == num_nodes
    return batch | {"labels": torch.zeros(num_molecules, 1)}


class KeptTensors:
    """Storages that stay alive until the backward pass, parameters and inputs aside."""

    def __init__(self, predictor: Predictor, inputs: Batch) -> None:
        self.predictor = predictor
        self.known = {
            tensor.untyped_storage().data_ptr()
            for tensor in (
                *predictor.model.parameters(),
                *predictor.model.buffers(),
                *inputs.values(),
            )
        }
        # the tensors themselves, or a freed storage's address could be given out again
        self.kept: list[torch.Tensor] = []

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self.kept.append(tensor)
        return tensor

    def count_bytes(self) -> int:
        storages = [tensor.untyped_storage() for tensor in self.kept]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for address, size in sizes.items() if address not in self.known)


def measure_kept_bytes(
    predictor: Predictor, inputs: Batch, *, monkeypatch: pytest.MonkeyPatch
) -> int:
    tensors = KeptTensors(predictor, inputs)

    def checkpoint_and_keep(function: Any, *arguments: Any, **options: Any) -> Any:
        # a checkpoint holds its arguments out of sight of the hooks
        held = (*arguments, *options.values())
        tensors.kept.extend(value for value in held if isinstance(value, torch.Tensor))
        return checkpoint(function, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("rmat_hf.model.attention_rmat.checkpoint", checkpoint_and_keep)
        with torch.autograd.graph.saved_tensors_hooks(tensors.keep, lambda tensor: tensor):
            predictor.predict(inputs)
    return tensors.count_bytes()


@pytest.mark.parametrize("form", ["paper", "reference"])
@pytest.mark.parametrize("num_nodes", [26, 64, 128])
def test_bytes_kept_for_backward(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, num_nodes: int, form: str
) -> None:
    plain, ours = build_pair("small", form)
    batch = build_chains(num_nodes, num_molecules=NUM_MOLECULES)
    difference = check_equal(plain, ours, batch, task="inference")
    dense = build_plain_batches(ours, [batch])[0]
    plain_bytes = measure_kept_bytes(plain, dense, monkeypatch=monkeypatch)
    rows = []
    for recompute_pairs in (False, True):
        ours.model.config.recompute_pairs = recompute_pairs
        our_bytes = measure_kept_bytes(ours, batch, monkeypatch=monkeypatch)
        rows.append(
            {
                "model": f"small, {form}",
                "nodes": str(num_nodes),
                "recompute_pairs": str(recompute_pairs),
                "plain, MiB/molecule": f"{plain_bytes / 2**20 / NUM_MOLECULES:.2f}",
                "ours, MiB/molecule": f"{our_bytes / 2**20 / NUM_MOLECULES:.2f}",
                "plain / ours": f"{plain_bytes / our_bytes:.1f}",
                "largest difference": f"{difference:.0e}",
            }
        )
    benchmark.pedantic(ours.predict, args=(batch,), rounds=1)
    report(benchmark, "Memory kept for the backward pass", rows)


def test_peak_memory(benchmark: Any, data_dir: Path) -> None:
    script = Path(__file__).with_name("peak_memory.py")
    peaks = {}

    def run_all() -> None:
        for name in VARIANTS:
            run = subprocess.run(
                [sys.executable, script, data_dir, name], capture_output=True, text=True
            )
            if run.returncode == 77:
                pytest.skip(run.stderr.strip().splitlines()[-1])
            assert run.returncode == 0, run.stderr
            peaks[name] = int(run.stdout) / 2**20

    benchmark.pedantic(run_all, rounds=1)
    rows = [
        {
            "model": "published, reference",
            "variant": name,
            "peak of a step above idle, MiB": f"{peak:.0f}",
            "plain / this": f"{peaks['plain'] / peak:.1f}",
        }
        for name, peak in peaks.items()
    ]
    report(benchmark, "Peak memory", rows)
