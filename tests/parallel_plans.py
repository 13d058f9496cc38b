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
    with torch.no_grad():
        without_gradient = model(**batch).logits
    logits = model(**batch).logits
    logits.square().sum().backward()
    weights = {name: model.get_parameter(name) for name in WEIGHTS}
    grads = {name: weight.grad for name, weight in weights.items()}
    sizes = {}
    for name, weight in weights.items():
        if isinstance(weight, DTensor):
            weight, grads[name] = weight.to_local(), grads[name].full_tensor()
        sizes[name] = weight.numel()
    return {
        "logits": logits.tolist(),
        "without gradient": without_gradient.tolist(),
        "sizes": sizes,
        "gradients": {name: grad.tolist() for name, grad in grads.items()},
    }


if __name__ == "__main__":
    _, mode, name = sys.argv
    found = compute(Path(name), distributed_config=DistributedConfig(**{mode: 2}))
    if distributed.get_rank() == 0:
        Path(name, f"{mode}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
