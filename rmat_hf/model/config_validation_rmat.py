"""What a configuration may hold: known fields only, and values that a network can have."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

from transformers.activations import ACT2FN

# What transformers saves beside the fields of a configuration class.
SAVED_KEYS = (
    *("model_type", "_name_or_path", "auto_map", "custom_pipelines", "num_labels", "torch_dtype"),
    *("output_attentions", "tie_word_embeddings", "use_cache"),
)
FLOAT_TYPES = ("float16", "bfloat16", "float32", "float64")
PROBLEM_TYPES = (
    *(None, "regression", "multi_label_classification", "single_label_classification"),
)
# Far more than any molecule needs; a damaged number would build layers until memory is full.
MAX_HIDDEN_LAYERS = 1000


def validate_saved_fields(fields: Any, *, model_type: str, known: Collection[str]) -> None:
    """Raise if what a `config.json` holds would be read as something else than was saved.

    transformers keeps an unknown field as an attribute that nobody reads: a misspelled one would
    load the model with a default, silently.

    Args:
        fields: Content of the file.
        model_type (`str`): That of the configuration class.
        known (`Collection[str]`): Names of its fields.

    Raises:
        ValueError: It is no object, of another model, or a field is unknown or of a wrong kind.
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"config.json holds a {type(fields).__name__}, not an object of fields.")
    if fields.get("model_type", model_type) != model_type:
        raise ValueError(f"config.json is that of a {fields['model_type']!r} model, not R-MAT.")
    version = fields.get("transformers_version")
    for name in fields:
        if name not in known and name not in SAVED_KEYS:
            similar = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
            way_out = (
                f"Did you mean {similar[0]!r}?"
                if similar
                else "Load it with the release of rmat_hf and transformers that saved it "
                f"(transformers {version}), or remove the field if it decides nothing."
            )
            raise ValueError(f"config.json has the unknown field {name!r}. {way_out}")
    for name in ("dtype", "torch_dtype"):
        # an object, not a name, when a configuration that was never saved is copied
        dtype = str(fields.get(name) or "float32").removeprefix("torch.")
        if dtype not in FLOAT_TYPES:
            raise ValueError(f"{name} is {dtype!r}. Choose one of {list(FLOAT_TYPES)}.")
    _validate_label_names(fields.get("id2label"))


def validate_field_values(config: Any) -> None:
    """Raise if fields are out of range or contradict each other.

    Args:
        config (`RMatConfig`): With fields of the declared types.

    Raises:
        ValueError: With the name of the field.
    """
    if config.hidden_size % config.num_attention_heads != 0:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of "
            f"num_attention_heads={config.num_attention_heads}. Choose sizes that divide."
        )
    if config.num_hidden_layers > MAX_HIDDEN_LAYERS:
        raise ValueError(
            f"num_hidden_layers={config.num_hidden_layers} is more than {MAX_HIDDEN_LAYERS}."
        )
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act={config.hidden_act!r} is none of {sorted(ACT2FN)}.")
    if config.problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"problem_type={config.problem_type!r} is none of {list(PROBLEM_TYPES[1:])}."
        )
    _validate_numbers(config)
    for name in ("label_mean", "label_std", "label_units"):
        values = getattr(config, name)
        if values is not None and len(values) != config.num_labels:
            raise ValueError(
                f"{name} has {len(values)} entries for {config.num_labels} labels. Give one each."
            )
    if (config.label_mean is None) != (config.label_std is None):
        raise ValueError("label_mean and label_std belong together: give both or neither.")
    if config.label_std is not None and min(config.label_std) <= 0:
        raise ValueError(f"label_std={config.label_std} must be positive.")


def _validate_numbers(config: Any) -> None:
    names = ("leaky_relu_slope", "distance_cutoff", "initializer_range", "layer_norm_eps")
    numbers = {name: [getattr(config, name)] for name in names}
    numbers |= {
        name: getattr(config, name) or [] for name in ("label_mean", "label_std", "loss_weights")
    }
    for name, values in numbers.items():
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"{name}={getattr(config, name)} is not finite. Give real numbers.")
    if config.layer_norm_eps < 0:
        raise ValueError(f"layer_norm_eps={config.layer_norm_eps} is negative.")
    if config.classifier_dropout is not None and not 0.0 <= config.classifier_dropout <= 1.0:
        raise ValueError(f"classifier_dropout={config.classifier_dropout} is no share of 0 to 1.")


def _validate_label_names(id2label: Any) -> None:
    if id2label is None:
        return
    is_numbered = isinstance(id2label, Mapping) and {str(key) for key in id2label} == {
        str(idx) for idx in range(len(id2label))
    }
    if not is_numbered:
        raise ValueError(f"id2label is {id2label!r}. Number the labels from 0: {{'0': 'y'}}.")
