"""Files of the authors' code (gmum/huggingmolecules): read safely, translated to our names."""

import json
import re
import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from rmat_hf.model.configuration_rmat import RMatConfig

_MODULES = {
    "src_embed.lut": "rmat.embeddings.node_proj",
    "encoder.norm": "rmat.final_norm",
    "generator.att_net.0": "rmat.pooler.hidden_proj",
    "generator.att_net.2": "rmat.pooler.score_proj",
    "generator.proj.0": "classifier.dense",
    "generator.proj.2": "classifier.norm",
    "generator.proj.4": "classifier.out_proj",
    "generator.proj": "classifier.out_proj",
}
_LAYER_MODULES = {
    "sublayer.0.norm": "attention_norm",
    "sublayer.1.norm": "feed_forward_norm",
    "feed_forward.linears.0": "feed_forward.up_proj",
    "feed_forward.linears.1": "feed_forward.down_proj",
    "self_attn.linear_layers.0": "self_attention.q_proj",
    "self_attn.linear_layers.1": "self_attention.k_proj",
    "self_attn.linear_layers.2": "self_attention.v_proj",
    "self_attn.output_linear": "self_attention.o_proj",
    # the first two are divided afterwards
    "self_attn.attention.relative_K.nn.0": "self_attention.key_pair_proj",
    "self_attn.attention.relative_V.nn.0": "self_attention.value_pair_proj",
    "self_attn.attention.relative_K.nn.3.weight": "self_attention.key_pair_weight",
    "self_attn.attention.relative_K.nn.3.bias": "self_attention.key_pair_constant",
    "self_attn.attention.relative_V.nn.3.weight": "self_attention.value_pair_weight",
    "self_attn.attention.relative_V.nn.3.bias": "self_attention.value_pair_constant",
    "self_attn.attention.relative_u": "self_attention.content_bias",
    "self_attn.attention.relative_v": "self_attention.pair_bias",
}
_IGNORED_FIELDS = {
    "d_edge",  # follows from the other sizes, and is checked
    "init_type",
    "generator_features_generators",
    "ffn_d_output",
    "ffn_n_layers",
    "ffn_activation",  # checked when the file is loaded, like the next
    "generator_aggregation",
}
# What torch and safetensors raise for a file that is damaged, no weights at all, or unsafe.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(SafetensorError, UnpicklingError, struct.error),
)
Pooling = Literal["attention", "mean", "dummy_node"]
AUTHORS_POOLINGS: dict[str, Pooling] = {
    "grover": "attention",
    "mean": "mean",
    "dummy_node": "dummy_node",
}


def load_authors_weights(weights: str | Path) -> dict[str, torch.Tensor]:
    """Load a state dict of the authors' code from `.pt` or `.safetensors`.

    A `.pt` file is read with `weights_only=True`: tensors only, nothing in it is executed.

    Raises:
        ValueError: If the file is missing, unreadable or holds something else than tensors.
    """
    path = Path(weights)
    if not path.is_file():
        raise ValueError(f"There is no weights file {str(path)!r}. Check the path.")
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"{str(path)!r} is neither .safetensors nor .pt.")
    try:
        if path.suffix == ".safetensors":
            state_dict: Any = load_file(path)
        else:
            state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(
            f"Cannot read {str(path)!r}: the file is damaged, or holds more than tensors, which "
            "is not loaded because it could run code. Download it again."
        ) from error
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in state_dict.items()
    ):
        raise ValueError(f"{str(path)!r} is not a state dict of tensors.")
    return {name.removeprefix("model."): value for name, value in state_dict.items()}


def load_authors_config(config: str | Path) -> dict[str, Any]:
    """Load a configuration of the authors' code.

    Raises:
        ValueError: If the file cannot be read or describes another pooling or activation.
    """
    try:
        fields = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read the configuration {str(config)!r}: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{str(config)!r} is not a JSON object of configuration fields.")
    known = {"generator_aggregation": list(AUTHORS_POOLINGS), "ffn_activation": ["LeakyReLU"]}
    for name, values in known.items():
        if fields.get(name, values[0]) not in values:
            raise ValueError(f"{name}={fields[name]!r} is not known. Known: {values}.")
    return fields


def convert_config(authors_config: dict[str, Any], *, pooling: Pooling) -> RMatConfig:
    """Return the `RMatConfig` of a configuration of the authors' code.

    Args:
        authors_config (`dict`): Fields as in the authors' JSON, for example `d_model`.
        pooling (`str`): `"attention"`, `"mean"` or `"dummy_node"`.

    Raises:
        ValueError: If a field is missing, unknown or describes something R-MAT cannot be.
    """
    fields = dict(authors_config)
    for name in _IGNORED_FIELDS:
        fields.pop(name, None)
    d_edge = authors_config.get("d_edge")
    try:
        dropout = fields.pop("dropout")
        config = RMatConfig(
            num_node_features=fields.pop("d_atom"),
            num_radial_basis=fields.pop("envelope_num_radial"),
            distance_cutoff=fields.pop("envelope_cutoff"),
            radial_envelope_exponent=int(fields.pop("envelope_exponent")),
            hidden_size=fields.pop("d_model"),
            intermediate_size=fields.pop("ffn_d_hidden"),
            num_hidden_layers=fields.pop("encoder_n_layers"),
            num_attention_heads=fields.pop("encoder_n_attn_heads"),
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            attention_form="reference",
            pooling=pooling,
            num_head_layers=fields.pop("generator_n_layers"),
            id2label=build_label_names(fields.pop("generator_d_outputs")),
            num_molecule_descriptors=fields.pop("generator_d_generated_features", 0) or 0,
        )
    except KeyError as error:
        raise ValueError(
            f"The configuration lacks {error.args[0]!r}. Pass the JSON that belongs to the weights."
        ) from error
    except (TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"The configuration does not describe an R-MAT: {reason}.") from error
    if fields:
        raise ValueError(f"Unknown fields in the configuration: {sorted(fields)}. Remove them.")
    if d_edge is not None and d_edge != config.num_pair_features:
        raise ValueError(
            f"d_edge={d_edge} does not fit the {config.num_pair_features} pair features."
        )
    return config


def build_label_names(num_labels: int) -> dict[int, str]:
    """Return the names that transformers gives to labels without names."""
    return {idx: f"LABEL_{idx}" for idx in range(num_labels)}


def convert_state_dict(
    authors_state_dict: dict[str, torch.Tensor], *, num_code_features: int
) -> dict[str, torch.Tensor]:
    """Return the authors' tensors under our names and in our shapes.

    Args:
        authors_state_dict (`dict[str, torch.Tensor]`): Weights as from [`load_authors_weights`].
        num_code_features (`int`): Pair features that come before the radial basis.

    Raises:
        ValueError: If a tensor's name is not one of the authors' R-MAT code.
    """
    converted = {}
    for authors_name, tensor in authors_state_dict.items():
        name = _rename(authors_name)
        if name.endswith(("content_bias", "pair_bias")):
            # (1, num_heads, 1, head_size), with one more axis in relative_v
            tensor = tensor.flatten(3)[0, :, 0]
        converted[name] = tensor.contiguous()
    for prefix in {name.partition("proj.")[0] for name in converted if "_pair_proj." in name}:
        converted |= _convert_pair_network(converted, prefix, num_code_features=num_code_features)
    return converted


def _convert_pair_network(
    converted: dict[str, torch.Tensor], prefix: str, *, num_code_features: int
) -> dict[str, torch.Tensor]:
    """Take a pair network out, and return it in the form of our model."""
    names = [f"{prefix}{part}" for part in ("proj.weight", "proj.bias", "weight", "constant")]
    if missing := [name for name in names if name not in converted]:
        raise ValueError(f"The weights are incomplete: there is nothing for {missing[0]!r}.")
    first, bias, second, constant = (converted.pop(name) for name in names)
    embedding = f"{prefix.removesuffix('_')}s"
    head_size = second.shape[1]
    return {
        f"{embedding}.code_proj.weight": first[:, :num_code_features].contiguous(),
        f"{embedding}.code_proj.bias": bias,
        f"{embedding}.radial_proj.weight": first[:, num_code_features:].contiguous(),
        f"{prefix}weight": second.view(-1, head_size, head_size),
        f"{prefix}constant": constant.view(-1, head_size),
    }


def _rename(authors_name: str) -> str:
    modules, prefix, path = _MODULES, "", authors_name
    if in_layer := re.match(r"encoder\.layers\.(\d+)\.(.+)", authors_name):
        modules, prefix, path = _LAYER_MODULES, f"rmat.layers.{in_layer[1]}.", in_layer[2]
    for module, renamed in modules.items():
        if path == module or path.startswith(f"{module}."):
            return prefix + renamed + path.removeprefix(module)
    raise ValueError(f"{authors_name!r} is not a parameter of the authors' R-MAT.")
