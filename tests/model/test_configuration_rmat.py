"""RMatConfig: what it refuses, what survives saving, and what follows from its fields."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import TINY_ARCHITECTURE
from transformers import AutoConfig, AutoModelForSequenceClassification

from rmat_hf.model.configuration_rmat import TASK_FIELDS, RMatConfig, RMatEnsembleConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor

# Another value than the default for every field that can have one.
OTHER_VALUES: dict[str, Any] = {
    "num_node_features": 41,
    "max_neighborhood_order": 6,
    "num_radial_basis": 9,
    "distance_cutoff": 7.5,
    "radial_envelope_exponent": 3,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "leaky_relu_slope": 0.3,
    "feed_forward_act": "selu",
    "num_feed_forward_layers": 3,
    "hidden_dropout_prob": 0.25,
    "classifier_dropout": 0.5,
    "head_norm": False,
    "attention_probs_dropout_prob": 0.125,
    "initializer_range": 0.5,
    "layer_norm_eps": 1e-7,
    "attention_form": "reference",
    "pair_relations": ["bond", "distance"],
    "pair_terms": ["values"],
    "recompute_pairs": True,
    "pooling": "mean",
    "num_pooling_heads": 2,
    "pooling_hidden_size": 11,
    "num_head_layers": 2,
    "head_hidden_size": 13,
    "num_atom_contexts": 17,
    "num_descriptor_labels": 19,
    "pretraining_heads": {"charge": {"level": "node", "size": 2, "loss": "regression"}},
    "num_molecule_descriptors": 4,
    "covariates": [{"name": "pH"}, {"name": "assay", "categories": ["a", "b"]}],
    "label_mean": [-3.5, 12.0],
    "label_std": [0.1, 1e-9],
    "label_units": ["kcal/mol", "log(mol/L)"],
    "label_name": "is active, at 10 µM",
    "label_types": ["regression", "multi_label_classification"],
    "label_transforms": ["log10", "none"],
    "loss": "regression",
    "loss_weights": [0.5, 2.0],
    "trust": {"kind": "centers", "num_references": 3, "num_rows": [9, 0], "threshold": 0.5},
}
LABELS = {0: "solubility", 1: "toxicity (24 h)"}


def build_other_config() -> RMatConfig:
    return RMatConfig(**OTHER_VALUES, id2label=LABELS, problem_type="regression")


def save_config(folder: Path, **changes: Any) -> Path:
    """Save a configuration, then change fields of the file; `None` in JSON is `null`."""
    RMatConfig(**TINY_ARCHITECTURE, num_labels=1).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


# Fields that nobody knows


@pytest.mark.parametrize("read", [RMatConfig.from_pretrained, AutoConfig.from_pretrained])
def test_an_unknown_field_is_ignored_with_a_warning(
    read: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = read(save_config(tmp_path, hidden_siz=1))
    assert [record for record in caplog.records if "'hidden_siz'" in record.getMessage()]
    assert not hasattr(config, "hidden_siz")
    assert config.hidden_size == TINY_ARCHITECTURE["hidden_size"]


@pytest.mark.parametrize(
    "fields",
    [
        {"transformers_weights": "../../etc/passwd.safetensors"},
        {"_attn_implementation": "stranger/kernel"},
        {"per_layer_config": {"0": {"hidden_size": 1}}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_field_that_makes_transformers_load_something_else_is_ignored(
    fields: dict[str, Any], tiny_model_folder: Path
) -> None:
    path = tiny_model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder)
    assert model.config.to_diff_dict().keys() & fields.keys() == set()


def test_a_quantized_model_is_known_as_one_when_it_is_read_again(tmp_path: Path) -> None:
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    folder = save_config(tmp_path, quantization_config=quantization)
    assert RMatConfig.from_pretrained(folder).quantization_config == quantization


@pytest.mark.parametrize("config_class", [RMatConfig, RMatEnsembleConfig])
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


# Refused


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        *(({"dtype": name}, f"dtype is {name!r}. Choose one of") for name in ("int8", "load")),
        ({"torch_dtype": ["float32"]}, "torch_dtype is"),
        *(({"id2label": it}, "Number the labels from 0") for it in (["y"], {"a": "y"}, {"1": "y"})),
        *(({"classifier_dropout": it}, "classifier_dropout") for it in (1.5, float("nan"))),
        ({"leaky_relu_slope": float("nan")}, "leaky_relu_slope"),
        ({"distance_cutoff": float("inf")}, "distance_cutoff"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps"),
        ({"label_mean": [float("nan")], "label_std": [1.0]}, "label_mean"),
        *(({"label_mean": [0.0], "label_std": [it]}, "label_std") for it in (float("inf"), 0.0)),
        ({"loss_weights": [float("nan")]}, "loss_weights"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_act": "exec"}, "hidden_act"),
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hidden_size", "32"), ("hidden_size", 32.0), ("hidden_size", True)),
        *(("hidden_size", None), ("distance_cutoff", "20"), ("layer_norm_eps", "1e-5")),
        *(("attention_form", "authors"), ("num_head_layers", 2.5), ("label_mean", 1.0)),
        *(("label_std", ["1.0"]), ("label_units", "kcal/mol"), ("label_name", 3)),
        *(("loss_weights", "balanced"), ("pair_terms", "keys")),
    ],
)
def test_a_value_of_another_type_is_refused_by_field_name(name: str, value: object) -> None:
    with pytest.raises(StrictDataclassError, match=rf"(?s)field '{name}'.*TypeError"):
        RMatConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "last_good", "value"),
    [
        *(("num_node_features", 3, 2), ("num_bond_features", 8, 9)),
        *(("max_neighborhood_order", 1, 0), ("max_neighborhood_order", 254, 255)),
        *(("num_radial_basis", 1, 0), ("distance_cutoff", 0.1, 0.0)),
        *(("radial_envelope_exponent", 1, 0), ("num_hidden_layers", 1, 0)),
        *(("hidden_dropout_prob", 1.0, 1.01), ("hidden_dropout_prob", 0.0, -0.01)),
        *(("attention_probs_dropout_prob", 1, 2), ("initializer_range", 0.0, -0.1)),
        *(("num_pooling_heads", 1, 0), ("num_molecule_descriptors", 0, -1)),
        *(("pair_relations", ["bond"], []), ("pair_relations", ["bond"], ["bond", "angle"])),
        *(("pair_terms", [], ["queries"]), ("pair_relations", ["bond"], ["bond", "bond"])),
    ],
)
def test_a_value_out_of_range_is_refused_and_the_last_one_in_range_is_not(
    name: str, last_good: float, value: float
) -> None:
    assert getattr(RMatConfig(**{name: last_good}), name) == last_good
    with pytest.raises(StrictDataclassError, match=rf"(?s)field '{name}'.*ValueError"):
        RMatConfig(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 32, "num_attention_heads": 5}, "32 is not a multiple of .*=5"),
        ({"num_labels": 2, "label_mean": [0.0], "label_std": [1.0, 1.0]}, "do not fit 2 labels"),
        ({"num_labels": 2, "label_mean": [0.0] * 2, "label_std": [1.0] * 3}, "do not fit 2 labels"),
        ({"num_labels": 2, "label_units": ["Å"]}, "do not fit 2 labels"),
        ({"num_labels": 0}, "num_labels is 0"),
        (
            {"pretraining_heads": {"charge": {"level": "bond", "size": 1, "loss": "regression"}}},
            "'charge'.*'bond'.*node.*molecule",
        ),
        ({"num_labels": 1, "label_mean": [0.0]}, "label_mean and label_std together"),
        ({"num_labels": 1, "label_std": [1.0]}, "label_mean and label_std together"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        RMatConfig(**fields)


def test_a_contradiction_made_after_construction_is_refused_before_saving(tmp_path: Path) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE)
    config.num_attention_heads = 5
    with pytest.raises(StrictDataclassError, match="not a multiple of num_attention_heads=5"):
        config.save_pretrained(tmp_path / "model")


# Saved and loaded


def test_a_feed_forward_network_of_other_layers_is_not_split_by_the_plan_for_two() -> None:
    assert RMatConfig().base_model_tp_plan
    config = RMatConfig(num_feed_forward_layers=3)
    assert config.base_model_tp_plan == {} and "base_model_tp_plan" not in config.to_dict()


def test_every_field_survives_saving_and_loading(tmp_path: Path) -> None:
    config, defaults = build_other_config(), RMatConfig()
    assert OTHER_VALUES.keys() == {*RMatConfig.__annotations__} - {"num_bond_features"}
    assert not [name for name, value in OTHER_VALUES.items() if getattr(defaults, name) == value]
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is RMatConfig
    expected = {"id2label": LABELS, "problem_type": "regression", "num_labels": 2} | OTHER_VALUES
    for name, value in expected.items():
        assert getattr(loaded, name) == value, name
        assert type(getattr(loaded, name)) is type(getattr(config, name)), name


# Architecture


def test_the_architecture_of_a_finetuned_model_builds_one_for_other_labels() -> None:
    finetuned = build_other_config()
    labels = {0: "a", 1: "b", 2: "c"}
    config = RMatConfig(**finetuned.get_architecture(), id2label=labels)
    architecture = RMatConfig.list_architecture_fields()
    assert sorted([*architecture, *TASK_FIELDS]) == sorted(RMatConfig.__annotations__)
    for name in architecture:
        assert getattr(config, name) == getattr(finetuned, name), name
    for name in TASK_FIELDS:
        assert getattr(config, name) == getattr(RMatConfig(), name), name
    assert config.output_names == ["a", "b", "c"]


def test_the_defaults_are_the_published_48_million_parameters() -> None:
    with torch.device("meta"):
        model = RMatModel(RMatConfig(pooling="mean"))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert round(num_parameters / 1e6) == 48


# Labels


def test_output_names_of_twelve_labels_keep_their_order_when_saved(tmp_path: Path) -> None:
    names = {idx: f"assay_{12 - idx}" for idx in range(12)}
    RMatConfig(id2label=names).save_pretrained(tmp_path)
    # "10" sorts before "2" as text
    assert AutoConfig.from_pretrained(tmp_path).output_names == list(names.values())


def test_label_columns_are_the_outputs_unless_the_outputs_are_classes() -> None:
    assert RMatConfig(id2label=LABELS).label_columns == ["solubility", "toxicity (24 h)"]
    classes = RMatConfig(id2label={0: "no", 1: "yes"}, label_name="active")
    assert classes.output_names == ["no", "yes"]
    assert classes.label_columns == ["active"]


# Other labels


@pytest.fixture
def finetuned(tmp_path: Path) -> Path:
    """A folder with a model for two labels that has everything that belongs to them."""
    fields = {**TINY_ARCHITECTURE, "label_mean": [-3.5, 12.0], "label_std": [0.1, 4.0]}
    fields |= {"label_units": ["kcal/mol", "1"], "loss_weights": [0.5, 2.0], "loss": "regression"}
    config = RMatConfig(**fields, id2label=LABELS, problem_type="regression")
    RMatForSequenceClassification(config).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "names", "problem_type"),
    [
        ({"num_labels": 3}, ["LABEL_0", "LABEL_1", "LABEL_2"], "regression"),
        (
            {"num_labels": 3, "problem_type": "single_label_classification"},
            ["LABEL_0", "LABEL_1", "LABEL_2"],
            "single_label_classification",
        ),
        (
            {"problem_type": "multi_label_classification"},
            ["LABEL_0", "LABEL_1"],
            "multi_label_classification",
        ),
        ({"id2label": {0: "logP"}}, ["logP"], "regression"),
    ],
)
def test_a_finetuned_model_takes_other_labels_and_forgets_what_it_knew_of_its_own(
    given: dict[str, Any], names: list[str], problem_type: str, finetuned: Path
) -> None:
    old = AutoModelForSequenceClassification.from_pretrained(finetuned)
    model = AutoModelForSequenceClassification.from_pretrained(
        finetuned, ignore_mismatched_sizes=True, **given
    )
    assert (model.config.output_names, model.config.problem_type) == (names, problem_type)
    for field in ("label_mean", "label_std", "label_units", "loss", "loss_weights", "label_name"):
        assert getattr(model.config, field) is None, field
    assert model.classifier.out_proj.out_features == len(names)
    for name, weight in old.rmat.state_dict().items():
        assert torch.equal(model.rmat.state_dict()[name], weight), name
    batch = RMatProcessor(geometry="2d")(["CCO", "C"], return_tensors="pt")
    labels = torch.zeros(2) if problem_type.startswith("single") else torch.zeros(2, len(names))
    assert model(**batch, labels=labels).loss.isfinite()


def test_other_labels_may_bring_a_scaling_of_their_own(finetuned: Path) -> None:
    scaling = {"label_mean": [1.0, 2.0, 3.0], "label_std": [0.5, 0.5, 2.0]}
    config = AutoConfig.from_pretrained(finetuned, num_labels=3, **scaling)
    assert (config.label_mean, config.label_std) == (scaling["label_mean"], scaling["label_std"])


@pytest.mark.parametrize(
    "given", [{}, {"num_labels": 2, "problem_type": "regression"}, {"id2label": LABELS}]
)
def test_what_is_given_as_it_was_changes_nothing(given: dict[str, Any], finetuned: Path) -> None:
    config = AutoConfig.from_pretrained(finetuned, **given)
    assert config.output_names == list(LABELS.values())
    assert (config.label_mean, config.label_units) == ([-3.5, 12.0], ["kcal/mol", "1"])
