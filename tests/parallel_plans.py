"""Run by torchrun in test_distributed.py: computes with a model split by a plan of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import TINY_SMILES
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSequenceClassification
from transformers.distributed import DistributedConfig

from rmat_hf.model.processing_rmat import RMatProcessor

# one weight of each part that a plan treats in its own way
WEIGHTS = (
    "rmat.embeddings.node_proj.weight",
    "rmat.layers.0.self_attention.key_pairs.code_proj.weight",
    "rmat.layers.0.self_attention.key_pair_weight",
    "rmat.layers.1.feed_forward.up_proj.weight",
    "rmat.layers.1.feed_forward.down_proj.bias",
    "rmat.final_norm.weight",
)


def compute(folder: Path, **options: Any) -> dict[str, Any]:
    """Return logits, gradients, and how many values of each weight this process holds."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()
    batch = dict(RMatProcessor(geometry="bounds")(TINY_SMILES, return_tensors="pt"))
    weights = {name: model.get_parameter(name) for name in WEIGHTS}
    held = {
        name: weight.to_local() if isinstance(weight, DTensor) else weight
        for name, weight in weights.items()
    }
    with torch.no_grad():
        found = {"logits": model(**batch).logits.tolist()}
    found["sizes"] = {name: weight.numel() for name, weight in held.items()}
    # autograd refuses an activation in place of a layer that tensor parallelism has split
    if model._tp_size in (None, 1):
        model(**batch).logits.square().sum().backward()
        grads = {name: weight.grad for name, weight in weights.items()}
        found["gradients"] = {
            name: (grad.full_tensor() if isinstance(grad, DTensor) else grad).tolist()
            for name, grad in grads.items()
        }
    return found


if __name__ == "__main__":
    _, mode, name = sys.argv
    found = compute(Path(name), distributed_config=DistributedConfig(**{mode: 2}))
    if distributed.get_rank() == 0:
        Path(name, f"{mode}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
