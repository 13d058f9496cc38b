"""A configuration that would be read as something else than was saved is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny import TINY_ARCHITECTURE
from transformers import AutoConfig, AutoModel, BertConfig

from rmat_hf.model.config_validation_rmat import validate_saved_fields
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel

CLASSES = [RMatConfig, RMatEnsembleConfig]

each_reader = pytest.mark.parametrize(
    "read",
    [
        RMatConfig.from_pretrained,
        AutoConfig.from_pretrained,
        RMatModel.from_pretrained,
        AutoModel.from_pretrained,
    ],
)


def save_config(folder: Path, **changes: Any) -> Path:
    """Save a configuration, then change fields of the file; `None` in JSON is `null`."""
    RMatConfig(**TINY_ARCHITECTURE, num_labels=1).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    # nobody gets as far as the weights
    (folder / "model.safetensors").touch()
    return folder


# Names


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hidden_siz", "hidden_size"),
        ("num_layers_hidden", None),
        ("num_hidden_layer", "num_hidden_layers"),
        ("atention_form", "attention_form"),
        ("Pooling", "pooling"),
        ("label_unit", "label_units"),
    ],
)
@each_reader
def test_an_unknown_field_is_refused_with_what_was_meant(
    read: Callable[..., Any], name: str, meant: str | None, tmp_path: Path
) -> None:
    save_config(tmp_path, **{name: 1})
    with pytest.raises(ValueError, match=f"unknown field '{name}'") as caught:
        read(tmp_path)
    assert (f"Did you mean '{meant}'?" in str(caught.value)) == (meant is not None)


@pytest.mark.parametrize(
    "fields",
    [
        {"transformers_weights": "../../etc/passwd.safetensors"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"attn_implementation": "stranger/kernel"},
        {"_attn_implementation": "stranger/kernel"},
        {"extra_files": ["../x.safetensors"]},
        {"per_layer_config": {"0": {"hidden_size": 1}}},
    ],
    ids=lambda fields: next(iter(fields)),
)
@each_reader
def test_a_field_that_makes_transformers_load_something_else_is_refused(
    read: Callable[..., Any], fields: dict[str, Any], tmp_path: Path
) -> None:
    save_config(tmp_path, **fields)
    with pytest.raises(ValueError, match=f"unknown field '{next(iter(fields))}'"):
        read(tmp_path)


def test_a_field_of_a_later_release_names_the_versions_to_use(tmp_path: Path) -> None:
    save_config(tmp_path, num_experts=4, transformers_version="99.1.0")
    with pytest.raises(ValueError, match=r"release of rmat_hf and transformers.*99\.1\.0"):
        RMatConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("config_class", CLASSES)
def test_whatever_a_configuration_writes_it_reads(
    config_class: type[RMatConfig], tmp_path: Path
) -> None:
    config = config_class(
        **TINY_ARCHITECTURE, id2label={0: "y"}, problem_type="regression", dtype="bfloat16"
    )
    assert config_class.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    assert config_class.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_what_trainers_and_other_releases_write_is_read(tmp_path: Path) -> None:
    written = {
        "use_cache": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "_name_or_path": "somewhere",
        "transformers_version": "4.40.0",
        "auto_map": {"AutoConfig": "configuration_rmat.RMatConfig"},
        "custom_pipelines": {},
    }
    config = RMatConfig.from_pretrained(save_config(tmp_path, **written))
    assert config.hidden_size == TINY_ARCHITECTURE["hidden_size"]


def test_options_of_loading_are_no_fields(tmp_path: Path) -> None:
    config = RMatConfig.from_pretrained(save_config(tmp_path), num_labels=3, pooling="mean")
    assert (config.num_labels, config.pooling) == (3, "mean")


# Models


@pytest.mark.parametrize("model_class", [RMatModel, RMatForSequenceClassification, RMatConfig])
def test_the_configuration_of_another_model_is_refused(model_class: Any, tmp_path: Path) -> None:
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="'bert' model, not R-MAT"):
        model_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", [None, 3, "text", ["a", "list"]])
def test_json_of_another_kind_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match=f"holds a {type(fields).__name__}"):
        validate_saved_fields(fields, model_type="rmat", known=["hidden_size"])


# Values


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'. Choose one of"),
        ({"dtype": "load"}, "dtype is 'load'. Choose one of"),
        ({"torch_dtype": ["float32"]}, "torch_dtype is"),
        ({"id2label": ["y"]}, "Number the labels from 0"),
        ({"id2label": {"a": "y"}}, "Number the labels from 0"),
        ({"id2label": {"1": "y"}}, "Number the labels from 0"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"classifier_dropout": 1.5}, "classifier_dropout=1.5"),
        ({"classifier_dropout": float("nan")}, "classifier_dropout=nan"),
        ({"leaky_relu_slope": float("nan")}, "leaky_relu_slope=nan is not finite"),
        ({"distance_cutoff": float("inf")}, "distance_cutoff=inf is not finite"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps=-1e-05 is negative"),
        ({"label_mean": [float("nan")], "label_std": [1.0]}, "label_mean=[nan] is not finite"),
        ({"label_mean": [0.0], "label_std": [float("inf")]}, "label_std=[inf] is not finite"),
        ({"label_mean": [0.0], "label_std": [0.0]}, "must be positive"),
        ({"loss_weights": [float("nan")]}, "loss_weights=[nan] is not finite"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is more than 1000"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_act": "exec"}, "hidden_act='exec' is none of"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused_with_its_name(
    fields: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    save_config(tmp_path, **fields)
    for read in (RMatConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises((ValueError, StrictDataclassError)) as caught:
            read(tmp_path)
        assert reason in str(caught.value)
