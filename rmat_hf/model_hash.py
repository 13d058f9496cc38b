"""A hash that tells whether two loaded models compute the same."""

import hashlib
import json

import torch

from rmat_hf.model.modeling_rmat import RMatPreTrainedModel

# Where a model came from and how it was saved: nothing that it computes depends on it.
_IRRELEVANT_FIELDS = ("_name_or_path", "architectures", "auto_map", "transformers_version")


def compute_model_hash(model: RMatPreTrainedModel) -> str:
    """Return the SHA-256 of weights and configuration, whatever file or device they are in.

    Args:
        model (`RMatPreTrainedModel`): With or without a head.
    """
    config = model.config.to_dict()
    for name in _IRRELEVANT_FIELDS:
        config.pop(name, None)
    checksum = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        checksum.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        checksum.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return checksum.hexdigest()
