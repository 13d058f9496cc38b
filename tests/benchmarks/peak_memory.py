"""Print the bytes by which one training step of the published size exceeds the idle process.

    python tests/benchmarks/peak_memory.py DATA plain|ours|"ours, recompute_pairs"

Idle are the model, the state of its optimizer and a batch of 32; gradients belong to the step.
"""

import gc
import sys
from pathlib import Path

import torch
from measuring import (
    Predictor,
    build_batches,
    build_pair,
    build_plain_batches,
    load_features,
    one_thread,
    pick_evenly,
)


def read_memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}. This benchmark needs Linux.")


def prepare_optimizer(predictor: Predictor) -> None:
    for parameter in predictor.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    predictor.optimizer.step()
    predictor.optimizer.zero_grad()


def main() -> None:
    data_dir, variant = sys.argv[1:]
    batches = build_batches(load_features(Path(data_dir), "drug-like"), grouped=False)
    batch = pick_evenly(batches, 1)
    plain, ours = build_pair(
        "published", "reference", recompute_pairs=variant == "ours, recompute_pairs"
    )
    predictor = ours
    if variant == "plain":
        batch, predictor = build_plain_batches(ours, batch), plain
    del batches, plain, ours
    prepare_optimizer(predictor)
    gc.collect()
    idle = read_memory("VmRSS")
    # sets the highest resident size so far back to the present one
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    predictor.run(batch, task="train")
    sys.stdout.write(f"{read_memory('VmHWM') - idle}\n")


if __name__ == "__main__":
    with one_thread():
        main()
