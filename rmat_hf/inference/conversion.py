"""Weights of the authors' code (gmum/huggingmolecules) as a model of this package."""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file

from rmat_hf.errors import UserError, explained_writing
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import POOLINGS, RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import create_folder_atomically, load_json

_POOLINGS = {"grover": "attention", "mean": "mean", "dummy_node": "dummy_node"}
# the authors' name of a field → ours
_FIELDS = {
    "d_atom": "num_node_features",
    "envelope_num_radial": "num_radial_basis",
    "envelope_cutoff": "distance_cutoff",
    "d_model": "hidden_size",
    "ffn_d_hidden": "intermediate_size",
    "encoder_n_layers": "num_hidden_layers",
    "encoder_n_attn_heads": "num_attention_heads",
    "dropout": "hidden_dropout_prob",
    "generator_n_layers": "num_head_layers",
}
# Fields of which the others, or the values that are checked, say all there is.
_OTHER_FIELDS = {
    *("envelope_exponent", "generator_d_outputs", "generator_d_generated_features", "d_edge"),
    *("init_type", "generator_features_generators", "ffn_d_output", "ffn_n_layers"),
    *("ffn_activation", "generator_aggregation"),
}
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
# What torch and safetensors raise for a file that is damaged, no weights at all, or unsafe.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(SafetensorError, UnpicklingError, struct.error),
)
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
        model (`RMatForSequenceClassification` or `RMatModel`):
            In evaluation mode; the encoder alone if the weights have no prediction head.
        untrained (`list[str]`): Parameters that were not in the weights; `save` leaves them out.
        notes (`list[str]`): One sentence for each part that was missing from the weights.
    """

    model: RMatForSequenceClassification | RMatModel
    untrained: list[str]
    notes: list[str]

    def save(self, output_dir: str | Path) -> None:
        """Write a model folder: weights, config and a processor with the authors' geometry.

        Args:
            output_dir (`str` or `Path`): New or empty folder; nothing is written on an error.

        Raises:
            UserError: If the folder has files in it, or cannot be written.
        """
        way_out = "Make room on the disk, or choose another folder."
        with (
            explained_writing(output_dir, way_out=way_out),
            create_folder_atomically(output_dir) as folder,
        ):
            weights = self.model.state_dict()
            trained = {name: it for name, it in weights.items() if name not in self.untrained}
            self.model.save_pretrained(folder, state_dict=trained)
            # the geometry of the authors
            RMatProcessor(
                geometry="conformer", conformer_hydrogens=True, force_field="uff"
            ).save_pretrained(folder)


def run_conversion(arguments: ConversionArguments) -> Conversion:
    """Convert weights of the authors' code to a model folder."""
    conversion = convert_checkpoint(arguments.weights, arguments.config, pooling=arguments.pooling)
    conversion.save(arguments.output_dir)
    return conversion


def convert_checkpoint(
    weights: str | Path,
    config: str | Path,
    *,
    pooling: str | None = None,
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
    """
    state_dict = load_authors_weights(weights)
    authors_config = load_authors_config(config)
    trained_pooling = _POOLINGS[authors_config.get("generator_aggregation", "grover")]
    has_pooling = trained_pooling != "attention" or any("att_net" in name for name in state_dict)
    notes = []
    if pooling is None and not has_pooling:
        notes.append("The weights contain no pooling: the model uses mean pooling.")
    elif pooling == "attention" and not has_pooling:
        notes.append("The weights contain no pooling: the attention pooling starts untrained.")
    pooling = pooling or (trained_pooling if has_pooling else "mean")
    has_head = any(name.startswith("generator.proj.") for name in state_dict)
    if has_head and pooling != trained_pooling:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("generator.")}
        notes.append(
            "The head was trained on another pooling and was left out: finetune the model."
        )
    elif not has_head:
        notes.append("The weights contain no prediction head: finetune the model before use.")

    model = RMatForSequenceClassification(convert_config(authors_config, pooling=pooling))
    converted = _convert_state_dict(state_dict, num_code_features=model.config.num_code_features)
    untrained = _load_converted(model.eval(), converted)
    if not any(name.startswith("classifier.") for name in untrained):
        return Conversion(model, untrained, notes)
    encoder = [name.removeprefix("rmat.") for name in untrained if name.startswith("rmat.")]
    return Conversion(model.rmat, encoder, notes)


def _load_converted(
    model: RMatForSequenceClassification, converted: dict[str, torch.Tensor]
) -> list[str]:
    """Load the weights; return the parameters that they do not contain."""
    expected = model.state_dict()
    wrong = [n for n, t in converted.items() if n not in expected or expected[n].shape != t.shape]
    untrained = [name for name in expected if name not in converted]
    needed = [name for name in untrained if not name.startswith(_OPTIONAL_PARTS)]
    if wrong or needed:
        raise UserError(
            f"Weights and configuration do not belong together: {(wrong + needed)[0]!r} "
            f"({len(wrong)} of another shape, {len(needed)} missing)."
        )
    model.load_state_dict(converted, strict=False)
    return untrained


def load_authors_weights(weights: str | Path) -> dict[str, torch.Tensor]:
    """Load a state dict of the authors' code from `.safetensors` or a file of torch.

    The latter is read with `weights_only=True`: tensors only, nothing in it is executed.

    Raises:
        UserError: If the file is missing, unreadable or holds something else than tensors.
    """
    try:
        if Path(weights).suffix == ".safetensors":
            loaded: Any = load_file(weights)
        else:
            loaded = torch.load(weights, map_location="cpu", weights_only=True)
        state_dict = loaded.get("state_dict", loaded)
        return {name.removeprefix("model."): it.contiguous() for name, it in state_dict.items()}
    except _UNREADABLE as error:
        raise UserError(
            f"Cannot read {str(weights)!r}: there is no such file, it is damaged, or it holds more "
            "than named tensors, which is not loaded because it could run code. Check the path, or "
            "download it again."
        ) from error


def load_authors_config(config: str | Path) -> dict[str, Any]:
    """Load a configuration of the authors' code.

    Raises:
        UserError: If the file cannot be read, or is of another architecture.
    """
    fields = load_json(config)
    known = {"generator_aggregation": list(_POOLINGS), "ffn_activation": ["LeakyReLU"]}
    unknown = sorted(set(fields) - set(_FIELDS) - _OTHER_FIELDS)
    wrong = [name for name in known if fields.get(name, known[name][0]) not in known[name]]
    if unknown or wrong:
        raise UserError(
            f"{config} does not describe an R-MAT of the authors: the fields {[*unknown, *wrong]} "
            f"are not known, or not with this value ({known})."
        )
    return fields


def convert_config(authors_config: Mapping[str, Any], *, pooling: str) -> RMatConfig:
    """Return the `RMatConfig` of the authors' fields.

    Raises:
        UserError: If a field is missing or describes something R-MAT cannot be.
    """
    try:
        config = RMatConfig(
            **{ours: authors_config[theirs] for theirs, ours in _FIELDS.items()},
            attention_probs_dropout_prob=authors_config["dropout"],
            radial_envelope_exponent=int(authors_config["envelope_exponent"]),
            attention_form="reference",
            pooling=pooling,
            # as transformers names labels without names
            id2label={i: f"LABEL_{i}" for i in range(authors_config["generator_d_outputs"])},
            num_molecule_descriptors=authors_config.get("generator_d_generated_features") or 0,
        )
        if authors_config.get("d_edge") not in (None, config.num_pair_features):
            raise ValueError(f"d_edge is not {config.num_pair_features}")
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())}"
        raise UserError(f"The configuration does not describe an R-MAT: {reason}.") from error
    return config


def _convert_state_dict(
    authors_state_dict: Mapping[str, torch.Tensor], *, num_code_features: int
) -> dict[str, torch.Tensor]:
    """Return the authors' tensors under our names and in our shapes; others keep their names."""
    converted = {}
    for authors_name, tensor in authors_state_dict.items():
        name = _rename(authors_name)
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


def _rename(authors_name: str) -> str:
    modules, prefix, path = _MODULES, "", authors_name
    if in_layer := re.match(r"encoder\.layers\.(\d+)\.(.+)", authors_name):
        modules, prefix, path = _LAYER_MODULES, f"rmat.layers.{in_layer[1]}.", in_layer[2]
    for module, renamed in modules.items():
        if path == module or path.startswith(f"{module}."):
            return prefix + renamed + path.removeprefix(module)
    return authors_name
