"""Print the molecules per second of chemprop's default model; runs in chemprop's environment.

Reads a list of SMILES in JSON from standard input. Graphs are built and batched beforehand; a
training step is forward, backward and AdamW. See `chemprop_speed.py`, which calls this.
"""

import json
import sys
import time

import numpy as np
import torch
from chemprop.data import MoleculeDatapoint, MoleculeDataset, collate_batch
from chemprop.models import MPNN
from chemprop.nn import BondMessagePassing, NormAggregation, RegressionFFN

BATCH_SIZE = 32


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = np.random.default_rng(0)
    rows = [
        MoleculeDatapoint.from_smi(smiles, y=labels.standard_normal(1))
        for smiles in json.load(sys.stdin)
    ]
    data = MoleculeDataset(rows)
    items = [data[idx] for idx in range(len(data))]
    starts = range(0, len(items), BATCH_SIZE)
    batches = [collate_batch(items[start : start + BATCH_SIZE]) for start in starts]
    # the command line's defaults
    model = MPNN(BondMessagePassing(), NormAggregation(), RegressionFFN())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train(batch: tuple) -> None:
        graphs, _, _, targets, *_ = batch
        torch.nn.functional.mse_loss(model(graphs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    def infer(batch: tuple) -> None:
        with torch.no_grad():
            model(batch[0])

    speeds: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    for task, function in (("train", train), ("inference", infer)):
        model.train(task == "train")
        for batch in batches[:5]:
            function(batch)
        start = time.perf_counter()
        for batch in batches:
            function(batch)
        speeds[task] = len(items) / (time.perf_counter() - start)
    sys.stdout.write(json.dumps(speeds))


if __name__ == "__main__":
    main()
