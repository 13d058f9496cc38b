"""Loading: what was saved comes back, and what cannot be used is one clear line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TINY_ARCHITECTURE
from transformers import BertConfig

from rmat_hf.errors import UserError
from rmat_hf.loading import (
    load_config,
    load_embedder,
    load_for_finetuning,
    load_predictor,
    load_processor,
)
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForPreTraining, RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor

Loader = Callable[..., object]

each_loader = pytest.mark.parametrize("load", [load_predictor, load_embedder])


def read_error(load: Loader, folder: Path, **options: object) -> str:
    """The message of the error that loading must raise; it is one line for a person."""
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert str(folder) in message
    return message


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What was saved comes back


def test_the_predictor_has_the_saved_weights_and_the_saved_processor(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    model, processor = load_predictor(tiny_model_folder, device="cpu")
    assert type(model) is RMatForSequenceClassification
    assert not model.training
    expected = tiny_model.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    # the default would be "conformer"
    assert processor.geometry == "bounds"


def test_the_embedder_is_the_encoder_of_the_finetuned_model(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    model, processor = load_embedder(tiny_model_folder, device="cpu")
    assert type(model) is RMatModel
    expected = tiny_model.rmat.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert processor.geometry == "bounds"


def test_a_model_goes_to_the_device_that_was_asked_for(tiny_model_folder: Path) -> None:
    assert load_embedder(tiny_model_folder, device="cpu")[0].device.type == "cpu"
    for device in ("meta", "nonsense"):
        with pytest.raises(UserError, match=f"'{device}'.*Use cpu, or leave it out"):
            load_predictor(tiny_model_folder, device=device)


def test_options_replace_those_of_the_saved_processor(tiny_model_folder: Path) -> None:
    processor = load_processor(tiny_model_folder, geometry="2d", max_atoms=7)
    assert (processor.geometry, processor.max_atoms) == ("2d", 7)
    assert load_processor(tiny_model_folder).geometry == "bounds"


def test_a_folder_may_be_given_as_text(tiny_model_folder: Path) -> None:
    assert load_config(str(tiny_model_folder)).hidden_size == TINY_ARCHITECTURE["hidden_size"]


# Finetuning


def build_config(num_labels: int) -> RMatConfig:
    names = {idx: f"label_{idx}" for idx in range(num_labels)}
    return RMatConfig(**TINY_ARCHITECTURE, id2label=names, problem_type="regression")


def test_another_number_of_labels_starts_a_new_head_and_keeps_the_rest(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    torch.manual_seed(5)
    model = load_for_finetuning(tiny_model_folder, config=build_config(3))
    expected = tiny_model.state_dict()
    head = {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    changed = {
        name for name, tensor in model.state_dict().items() if not tensor.equal(expected[name])
    }
    assert changed == head
    assert model.classifier.out_proj.weight.shape == (3, model.config.pooled_size)
    assert torch.isfinite(model.classifier.out_proj.weight).all()
    assert model.classifier.out_proj.weight.std(1).min() > 0.01
    assert (model.classifier.out_proj.bias == 0).all()
    assert model.config.output_names == ["label_0", "label_1", "label_2"]


def test_the_same_number_of_labels_keeps_the_trained_head(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    model = load_for_finetuning(tiny_model_folder, config=build_config(1))
    expected = tiny_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model_class", [RMatModel, RMatForPreTraining])
def test_an_encoder_gets_a_new_head_and_keeps_every_weight(
    model_class: type[RMatModel] | type[RMatForPreTraining], tmp_path: Path
) -> None:
    pretrained = model_class(build_config(1))
    pretrained.save_pretrained(tmp_path)
    model = load_for_finetuning(tmp_path, config=build_config(2))
    expected = pretrained.base_model.state_dict()
    encoder = model.rmat.state_dict()
    assert encoder.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.items())
    assert model.classifier.out_proj.weight.shape[0] == 2


# One clear line


@each_loader
def test_a_missing_folder_is_named(load: Loader, tmp_path: Path) -> None:
    message = read_error(load, tmp_path / "nothing")
    assert message.startswith("Cannot load a model from")
    assert "Give a folder written by rmat finetune, or a Hub id" in message


@each_loader
def test_a_folder_without_a_model_is_named(load: Loader, tmp_path: Path) -> None:
    assert read_error(load, tmp_path).startswith("Cannot load a model from")


@each_loader
def test_a_file_in_place_of_a_folder_is_named(load: Loader, tiny_model_folder: Path) -> None:
    message = read_error(load, tiny_model_folder / "config.json")
    assert message.endswith("is a file. Give the folder that holds it.")


@pytest.mark.parametrize("load", [load_config, load_predictor, load_embedder])
def test_another_architecture_is_named(load: Loader, tmp_path: Path) -> None:
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    assert read_error(load, tmp_path).endswith("is a 'bert' model, not R-MAT.")


def test_another_architecture_is_named_when_finetuning(tmp_path: Path) -> None:
    BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    message = read_error(load_for_finetuning, tmp_path, config=build_config(1))
    assert message.endswith("is a 'bert' model, not R-MAT.")


@pytest.mark.parametrize("load", [load_processor, load_predictor, load_embedder])
def test_a_missing_processor_is_named(load: Loader, tiny_model_folder: Path) -> None:
    (tiny_model_folder / "preprocessor_config.json").unlink()
    message = read_error(load, tiny_model_folder)
    assert message.startswith("Cannot load the processor of")
    assert message.endswith("save the processor with the model.")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"geometry": "3d"}, "got 3d"),
        ({"featurizer_version": 99}, "featurizer version 99"),
        ({"scale": 2}, "no option 'scale'"),
    ],
)
def test_a_saved_processor_that_cannot_be_used_says_why(
    changes: dict[str, object], reason: str, tiny_model_folder: Path
) -> None:
    change_json(tiny_model_folder / "preprocessor_config.json", **changes)
    assert reason in read_error(load_processor, tiny_model_folder)


@pytest.mark.parametrize("model_class", [RMatModel, RMatForPreTraining])
def test_a_missing_head_is_named_and_embeddings_work_without_it(
    model_class: type[RMatModel] | type[RMatForPreTraining],
    processor: RMatProcessor,
    tmp_path: Path,
) -> None:
    model_class(build_config(1)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    message = read_error(load_predictor, tmp_path)
    assert "no trained prediction head (classifier.out_proj" in message
    assert "rmat finetune --model" in message
    assert type(load_embedder(tmp_path, device="cpu")[0]) is RMatModel


def test_missing_pooling_weights_are_named(
    tiny_model: RMatForSequenceClassification, processor: RMatProcessor, tmp_path: Path
) -> None:
    encoder = tiny_model.rmat
    weights = {k: v for k, v in encoder.state_dict().items() if not k.startswith("pooler.")}
    encoder.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    assert "has no trained pooler.hidden_proj" in read_error(load_embedder, tmp_path)


@each_loader
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_named(
    load: Loader, fraction: float, tiny_model_folder: Path
) -> None:
    path = tiny_model_folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(fraction * len(whole))])
    message = read_error(load, tiny_model_folder)
    assert message.startswith("Cannot load the weights of")


def test_truncated_weights_are_named_when_finetuning(tiny_model_folder: Path) -> None:
    path = tiny_model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    message = read_error(load_for_finetuning, tiny_model_folder, config=build_config(1))
    assert message.startswith("Cannot load the weights of")


@each_loader
def test_missing_weights_are_named(load: Loader, tiny_model_folder: Path) -> None:
    (tiny_model_folder / "model.safetensors").unlink()
    assert "no file named model.safetensors" in read_error(load, tiny_model_folder)


@each_loader
def test_pickled_weights_are_not_loaded(
    load: Loader, tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    (tiny_model_folder / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), tiny_model_folder / "pytorch_model.bin")
    assert "no file named model.safetensors" in read_error(load, tiny_model_folder)


@each_loader
def test_weights_of_another_size_are_refused(load: Loader, tiny_model_folder: Path) -> None:
    change_json(tiny_model_folder / "config.json", hidden_size=64)
    assert read_error(load, tiny_model_folder).startswith("Cannot load the weights of")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_size": "32"}, "expected int, got str"),
        ({"hidden_size": 33}, "hidden_size=33 is not a multiple of num_attention_heads=4"),
        ({"pooling": "max"}, "got max"),
    ],
)
def test_a_configuration_that_cannot_be_says_which_field(
    changes: dict[str, object], reason: str, tiny_model_folder: Path
) -> None:
    change_json(tiny_model_folder / "config.json", **changes)
    assert reason in read_error(load_config, tiny_model_folder)


def test_a_configuration_that_is_no_json_is_named(tiny_model_folder: Path) -> None:
    (tiny_model_folder / "config.json").write_text("{")
    assert "not a valid JSON file" in read_error(load_config, tiny_model_folder)


# Weights and configuration that do not belong together


@pytest.mark.parametrize(
    ("num_hidden_layers", "message"), [(1, "are left over"), (3, "are missing")]
)
@each_loader
def test_another_number_of_layers_than_in_the_weights_is_refused(
    load: Loader, tiny_model_folder: Path, num_hidden_layers: int, message: str
) -> None:
    change_json(tiny_model_folder / "config.json", num_hidden_layers=num_hidden_layers)
    error = read_error(load, tiny_model_folder)
    assert "do not belong together" in error
    assert message in error


def test_finetuning_refuses_an_encoder_of_another_size_instead_of_starting_untrained(
    tiny_model_folder: Path,
) -> None:
    config = RMatConfig(**(TINY_ARCHITECTURE | {"hidden_size": 16}))
    message = read_error(load_for_finetuning, tiny_model_folder, config=config)
    assert "have another shape" in message
