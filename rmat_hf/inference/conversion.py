"""Weights of the authors' code (gmum/huggingmolecules) as a model of this package."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from rmat_hf.errors import UserError, explained_reading, list_reading_errors
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    POOLINGS,
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import create_folder_atomically, load_json

# Their aggregation whose head reads every node and no pooled vector.
_OF_NODES = "contextual"
# the authors' name of an aggregation → our pooling
_POOLINGS = {"grover": "attention", "mean": "mean", "dummy_node": "dummy_node", _OF_NODES: "mean"}
# the authors' name of an activation of the feed-forward networks → ours
_ACTIVATIONS = {
    "ReLU": "relu",
    "LeakyReLU": "leaky_relu",
    "PReLU": "prelu",
    "tanh": "tanh",
    "SELU": "selu",
    "ELU": "elu",
    "Linear": "linear",
}
# the authors' name of a field → ours
_FIELDS = {
    "d_atom": "num_node_features",
    "envelope_num_radial": "num_radial_basis",
    "envelope_cutoff": "distance_cutoff",
    "d_model": "hidden_size",
    "ffn_n_layers": "num_feed_forward_layers",
    "encoder_n_layers": "num_hidden_layers",
    "encoder_n_attn_heads": "num_attention_heads",
    "dropout": "hidden_dropout_prob",
    "generator_n_layers": "num_head_layers",
}
# Fields of which the others, or the values that are checked, say all there is.
_OTHER_FIELDS = {
    *("envelope_exponent", "generator_d_outputs", "generator_d_generated_features", "d_edge"),
    *("init_type", "generator_features_generators", "ffn_d_output", "ffn_d_hidden"),
    *("ffn_activation", "generator_aggregation", "generator_return_representations_dict"),
}
# part of the authors' name of a weight → ours, one after the other
_NAMES = {
    "src_embed.lut": "rmat.embeddings.node_proj",
    "encoder.norm": "rmat.final_norm",
    "encoder.layers": "rmat.layers",
    "generator.att_net.0": "rmat.pooler.hidden_proj",
    "generator.att_net.2": "rmat.pooler.score_proj",
    "sublayer.0.norm": "attention_norm",
    "sublayer.1.norm": "feed_forward_norm",
    "feed_forward.act_func": "feed_forward.act_fn",
    "self_attn": "self_attention",
    "linear_layers.0": "q_proj",
    "linear_layers.1": "k_proj",
    "linear_layers.2": "v_proj",
    "output_linear": "o_proj",
    "attention.relative_u": "content_bias",
    "attention.relative_v": "pair_bias",
    "attention.relative_K.nn.": "key_pair_",
    "attention.relative_V.nn.": "value_pair_",
    # the first is divided afterwards
    "pair_0.": "pair_proj.",
    "pair_3.weight": "pair_weight",
    "pair_3.bias": "pair_constant",
}
# What torch raises, beside errors of reading, for a file that is damaged, no weights, or unsafe.
_UNREADABLE = (RuntimeError, TypeError, LookupError, AttributeError, UnpicklingError, struct.error)
# May be missing from the weights: the published file has no pooling and no head.
_OPTIONAL_PARTS = ("classifier.", "rmat.pooler.", "descriptor_scaler.")


@dataclass(kw_only=True)
class ConversionArguments:
    """Everything `run_conversion` needs to know; each field is a flag of `rmat convert`."""

    weights: str = declare_required(
        "Weights of the authors' code: .safetensors, or .pt, of which tensors only are read."
    )
    config: str = declare_required("The authors' JSON configuration.")
    output_dir: str = declare_required("Folder to write.")
    pooling: str | None = declare_flag(
        None, "Pooling of the model. Default: the one in the weights, else mean.", choices=POOLINGS
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for an unknown pooling."""
        validate_flags(self)


class Conversion(NamedTuple):
    """A converted model, and what the source did not contain.

    Args:
        model (`RMatForSequenceClassification`, `RMatForTokenClassification` or `RMatModel`):
            In evaluation mode. The second if the authors' head is that of every node (aggregation
            `"contextual"`), the encoder alone if the weights have no prediction head.
        untrained (`list[str]`): Parameters that were not in the weights; `save` leaves them out.
        notes (`list[str]`): One sentence for each part that was missing from the weights.
    """

    model: RMatForSequenceClassification | RMatForTokenClassification | RMatModel
    untrained: list[str]
    notes: list[str]

    def save(self, output_dir: str | Path) -> None:
        """Write a model folder: weights, config and a processor that reads molecules as theirs."""
        with create_folder_atomically(output_dir) as folder:
            weights = self.model.state_dict()
            trained = {name: it for name, it in weights.items() if name not in self.untrained}
            self.model.save_pretrained(folder, state_dict=trained)
            processor = RMatProcessor(
                conformer_hydrogens=True, force_field="uff", hydrogens="rdkit"
            )
            processor.save_pretrained(folder)


def run_conversion(arguments: ConversionArguments) -> Conversion:
    """Convert weights of the authors' code to a model folder."""
    conversion = convert_checkpoint(arguments.weights, arguments.config, pooling=arguments.pooling)
    conversion.save(arguments.output_dir)
    return conversion


def convert_checkpoint(
    weights: str | Path, config: str | Path, *, pooling: str | None = None
) -> Conversion:
    """Convert weights of the authors' code (gmum/huggingmolecules) to a model of this package.

    Args:
        weights (`str` or `Path`): `.pt` (read with `weights_only=True`) or `.safetensors`.
        config (`str` or `Path`): The authors' JSON configuration.
        pooling (`str`, *optional*): Overrides the pooling. By default the one in the weights, or
            `"mean"` if they contain none, as the published file does.

    Returns:
        [`Conversion`] with the model and a note on every part that the weights lack.

    Raises:
        UserError: If a file cannot be read or the two do not belong together.

    Example:
    ```python
    >>> from rmat_hf import convert_checkpoint  # reference is a folder with a file of theirs
    >>> weights, config = "reference_state_dict.safetensors", "reference_config.json"
    >>> conversion = convert_checkpoint(reference / weights, reference / config)
    >>> conversion.save(folder / "converted")

    ```
    """
    state_dict = _load_authors_weights(weights)
    with explained_reading(config, also=(KeyError, TypeError)):
        fields = {"ffn_n_layers": 2, **load_json(config)}
        trained_pooling = _POOLINGS[fields.get("generator_aggregation", "grover")]
        has_pooling = trained_pooling != "attention" or any("att_net" in it for it in state_dict)
        used_pooling = pooling or (trained_pooling if has_pooling else "mean")
        converted_config = _convert_config(fields, pooling=used_pooling)
    notes = []
    if not has_pooling:
        state = "starts untrained" if used_pooling == "attention" else "is used"
        notes.append(f"The weights contain no pooling: {used_pooling} pooling {state}.")
    if not any(name.startswith("generator.proj.") for name in state_dict):
        notes.append("The weights contain no prediction head: finetune the model before use.")
    elif used_pooling != trained_pooling:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("generator.")}
        notes.append(
            "The head was trained on another pooling and was left out: finetune the model."
        )
    is_of_nodes = fields.get("generator_aggregation") == _OF_NODES
    model_class = RMatForTokenClassification if is_of_nodes else RMatForSequenceClassification
    model: Any = model_class(converted_config).eval()
    converted = _convert_state_dict(state_dict, config=converted_config)
    with explained_reading(f"{weights} does not belong to {config} and", also=(RuntimeError,)):
        result = model.load_state_dict(converted, strict=False)
    untrained = result.missing_keys
    needed = [name for name in untrained if not name.startswith(_OPTIONAL_PARTS)]
    if wrong := [*result.unexpected_keys, *needed]:
        raise UserError(f"{weights} does not belong to {config}: {wrong} are missing or too many.")
    if not any(name.startswith("classifier.") for name in untrained):
        return Conversion(model, untrained, notes)
    encoder = [name.removeprefix("rmat.") for name in untrained if name.startswith("rmat.")]
    return Conversion(model.rmat, encoder, notes)


def _load_authors_weights(weights: str | Path) -> dict[str, torch.Tensor]:
    try:
        if Path(weights).suffix == ".safetensors":
            loaded: Any = load_file(weights)
        else:
            loaded = torch.load(weights, map_location="cpu", weights_only=True)
        state_dict = loaded.get("state_dict", loaded)
        return {name.removeprefix("model."): it.contiguous() for name, it in state_dict.items()}
    # torch's own words ask for a reading that could run code
    except list_reading_errors() + _UNREADABLE as error:
        raise UserError(
            f"{weights} cannot be read: it is not there, is damaged, or holds more than named "
            "tensors, which could run code. Check the path, or download it again."
        ) from error


def _convert_config(fields: Mapping[str, Any], *, pooling: str) -> RMatConfig:
    """Return the `RMatConfig` of the authors' fields; raise for what R-MAT cannot be."""
    if unknown := sorted(set(fields) - set(_FIELDS) - _OTHER_FIELDS):
        raise ValueError(f"the fields {unknown} are not known")
    activation = _ACTIVATIONS.get(fields.get("ffn_activation", "LeakyReLU"))
    if activation is None:
        raise ValueError(f"'ffn_activation' is none of {list(_ACTIVATIONS)}")
    num_descriptors = fields.get("generator_d_generated_features") or 0
    if num_descriptors and fields.get("generator_aggregation") == _OF_NODES:
        raise ValueError(f"'generator_aggregation' {_OF_NODES} takes no generated features")
    exponent = fields["envelope_exponent"]
    config = RMatConfig(
        **{ours: fields[theirs] for theirs, ours in _FIELDS.items()},
        intermediate_size=fields.get("ffn_d_hidden") or fields["d_model"],
        feed_forward_act=None if activation == "leaky_relu" else activation,
        attention_probs_dropout_prob=fields["dropout"],
        radial_envelope_exponent=int(exponent) if exponent == int(exponent) else exponent,
        attention_form="reference",
        pooling=pooling,
        # as transformers names labels without names
        id2label={i: f"LABEL_{i}" for i in range(fields["generator_d_outputs"])},
        num_molecule_descriptors=num_descriptors,
    )
    if fields.get("ffn_d_output") not in (None, config.hidden_size):
        raise ValueError(f"ffn_d_output is not {config.hidden_size}, the width of the nodes")
    if fields.get("d_edge") not in (None, config.num_pair_features):
        raise ValueError(f"d_edge is not {config.num_pair_features}")
    return config


def _name_layers(config: RMatConfig) -> dict[str, str]:
    """Return names as in `_NAMES` of the layers that the authors number."""
    last = config.num_feed_forward_layers - 1
    names = {f"linears.{idx}.": f"middle_projs.{idx - 1}." for idx in range(1, last)}
    names |= {f"linears.{last}.": "down_proj.", "linears.0.": "up_proj."}
    names = {f"feed_forward.{theirs}": f"feed_forward.{ours}" for theirs, ours in names.items()}
    # a hidden layer of the head has four parts: linear, activation, norm and dropout
    last = config.num_head_layers - 1
    for idx in range(last):
        prefix, number = ("middle_", f"s.{idx - 1}") if idx else ("", "")
        names[f"generator.proj.{4 * idx}."] = f"classifier.{prefix}dense{number}."
        names[f"generator.proj.{4 * idx + 2}."] = f"classifier.{prefix}norm{number}."
    names[f"generator.proj.{4 * last}." if last else "generator.proj."] = "classifier.out_proj."
    return names


def _convert_state_dict(
    authors_state_dict: Mapping[str, torch.Tensor], *, config: RMatConfig
) -> dict[str, torch.Tensor]:
    """Return the authors' tensors under our names and in our shapes; others keep their names."""
    converted, num_code_features = {}, config.num_code_features
    for authors_name, tensor in authors_state_dict.items():
        name = authors_name
        for theirs, ours in (_name_layers(config) | _NAMES).items():
            name = name.replace(theirs, ours)
        if name.endswith(("content_bias", "pair_bias")):
            # (1, num_heads, 1, head_size), with one more axis in relative_v
            tensor = tensor.flatten(3)[0, :, 0].contiguous()
        converted[name] = tensor
    for name in [name for name in converted if name.endswith("_pair_proj.weight")]:
        prefix = name.removesuffix("proj.weight")
        first, head_size = converted.pop(name), len(converted[f"{prefix}proj.bias"])
        embedding = f"{prefix.removesuffix('_')}s"
        converted[f"{embedding}.code_proj.weight"] = first[:, :num_code_features].contiguous()
        converted[f"{embedding}.code_proj.bias"] = converted.pop(f"{prefix}proj.bias")
        converted[f"{embedding}.radial_proj.weight"] = first[:, num_code_features:].contiguous()
        second = converted[f"{prefix}weight"]
        converted[f"{prefix}weight"] = second.view(-1, head_size, head_size)
        converted[f"{prefix}constant"] = converted[f"{prefix}constant"].view(-1, head_size)
    return converted
