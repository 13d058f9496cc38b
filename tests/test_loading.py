"""Loading: what was saved comes back, and what cannot be used is one clear line."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from malicious import (
    PICKLE_NAMES,
    pickle_the_weights,
    point_the_index_to_a_pickle,
    write_index,
    write_pickle,
)
from safetensors.torch import load_file, save_file
from tiny import TINY_ARCHITECTURE
from transformers import logging as transformers_logging

from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.loading import (
    Checkpoint,
    checkpoint_path,
    compute_model_hash,
    find_checkpoint,
    find_device,
    list_checkpoints,
    load_embedder,
    load_predictor,
    load_processor,
    read_checkpoint,
)
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import RMatForPreTraining, RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import load_json

Loader = Callable[..., object]

each_loader = pytest.mark.parametrize("load", [load_predictor, load_embedder])


def load_for_finetuning(folder: Path, *, config: RMatConfig) -> RMatForSequenceClassification:
    return read_checkpoint(folder).load_model(RMatForSequenceClassification, config=config)


def load_for_pretraining(folder: Path, *, config: RMatConfig) -> RMatForPreTraining:
    return read_checkpoint(folder).load_model(RMatForPreTraining, config=config)


def read_error(load: Loader, folder: Path, **options: object) -> str:
    """The message of the error that loading must raise; it is one line for a person."""
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    assert str(folder) in message
    return message


def assert_same_weights(model: torch.nn.Module, expected: torch.nn.Module) -> None:
    weights, wanted = model.state_dict(), expected.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# What was saved comes back


@pytest.mark.parametrize(
    ("load", "model_class"),
    [(load_predictor, RMatForSequenceClassification), (load_embedder, RMatModel)],
)
def test_a_loaded_model_has_the_saved_weights_and_the_saved_processor(
    load: Any,
    model_class: type[torch.nn.Module],
    tiny_model: RMatForSequenceClassification,
    tiny_model_folder: Path,
) -> None:
    model, processor = load(tiny_model_folder, device="cpu")
    assert type(model) is model_class
    assert not model.training
    saved = tiny_model if load is load_predictor else tiny_model.rmat
    assert_same_weights(model, saved)
    # the default would be "conformer"
    assert processor.geometry == "bounds"


def test_a_model_goes_to_the_device_that_was_asked_for(tiny_model_folder: Path) -> None:
    assert load_embedder(tiny_model_folder, device="cpu")[0].device.type == "cpu"
    with pytest.raises(UserError, match=r"'nonsense'.*Use cpu"):
        load_predictor(tiny_model_folder, device="nonsense")


def test_options_replace_those_of_the_saved_processor(tiny_model_folder: Path) -> None:
    processor = load_processor(tiny_model_folder, geometry="2d", max_atoms=7)
    assert (processor.geometry, processor.max_atoms) == ("2d", 7)
    assert load_processor(tiny_model_folder).geometry == "bounds"


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
    assert model.classifier.out_proj.weight.shape == (3, model.rmat.pooler.output_size)
    assert torch.isfinite(model.classifier.out_proj.weight).all()
    assert model.classifier.out_proj.weight.std(1).min() > 0.01
    assert (model.classifier.out_proj.bias == 0).all()
    assert model.config.output_names == ["label_0", "label_1", "label_2"]


def test_the_same_number_of_labels_keeps_the_trained_head(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    assert_same_weights(load_for_finetuning(tiny_model_folder, config=build_config(1)), tiny_model)


@pytest.mark.parametrize("model_class", [RMatModel, RMatForPreTraining])
def test_an_encoder_gets_a_new_head_and_keeps_every_weight(
    model_class: type[RMatModel] | type[RMatForPreTraining], tmp_path: Path
) -> None:
    pretrained = model_class(build_config(1))
    pretrained.save_pretrained(tmp_path)
    model = load_for_finetuning(tmp_path, config=build_config(2))
    assert_same_weights(model.rmat, pretrained.base_model)
    assert model.classifier.out_proj.weight.shape[0] == 2


# One clear line


@each_loader
def test_a_missing_folder_is_named(load: Loader, tmp_path: Path) -> None:
    message = read_error(load, tmp_path / "nothing")
    assert "Give a folder written by rmat finetune, or a Hub id" in message


@pytest.mark.parametrize("model_class", [RMatModel, RMatForPreTraining])
def test_a_missing_head_is_named_and_embeddings_work_without_it(
    model_class: type[RMatModel] | type[RMatForPreTraining],
    processor: RMatProcessor,
    tmp_path: Path,
) -> None:
    model_class(build_config(1)).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    message = read_error(load_predictor, tmp_path)
    assert "no trained classifier.out_proj" in message
    assert "rmat finetune --model" in message
    assert "embed" in message and "--pooling" not in message
    assert type(load_embedder(tmp_path, device="cpu")[0]) is RMatModel


def test_missing_pooling_weights_are_named(
    tiny_model: RMatForSequenceClassification, processor: RMatProcessor, tmp_path: Path
) -> None:
    encoder = tiny_model.rmat
    weights = {k: v for k, v in encoder.state_dict().items() if not k.startswith("pooler.")}
    encoder.save_pretrained(tmp_path, state_dict=weights)
    processor.save_pretrained(tmp_path)
    message = read_error(load_embedder, tmp_path)
    assert "has no trained rmat.pooler.hidden_proj" in message and "--pooling mean" in message


# Weights and configuration that do not belong together


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 16}, {"num_head_layers": 2, "head_hidden_size": 5_000_000}]
)
def test_neither_an_encoder_nor_more_than_a_head_starts_untrained(
    changes: dict[str, int], tiny_model_folder: Path
) -> None:
    config = RMatConfig(**(TINY_ARCHITECTURE | changes), num_labels=1)
    message = read_error(load_for_finetuning, tiny_model_folder, config=config)
    assert "of another shape" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_point_weights_are_fine(dtype: torch.dtype, tiny_model_folder: Path) -> None:
    weights = load_file(tiny_model_folder / "model.safetensors")
    converted = {name: weight.to(dtype) for name, weight in weights.items()}
    save_file(converted, tiny_model_folder / "model.safetensors", {"format": "pt"})
    checkpoint = read_checkpoint(tiny_model_folder)
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.find_untrained(RMatForSequenceClassification) == []
    assert checkpoint.shapes == {name: tuple(weight.shape) for name, weight in weights.items()}


def test_loading_reports_only_what_the_caller_has_to_know(
    tiny_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_for_finetuning(tiny_model_folder, config=build_config(3))
    assert caplog.text == ""
    transformers_logging.get_logger("transformers.modeling_utils").warning("a later warning")
    assert "a later warning" in caplog.text


# A stranger's numbers cost nothing

MAX_SECONDS = 20


@pytest.mark.parametrize(
    "changes",
    [
        {"pooling_hidden_size": 20_000_000},
        {"intermediate_size": 3_000_000},
        {"num_hidden_layers": 10**9},
        {"id2label": {str(idx): f"y{idx}" for idx in range(100_000)}},
        {"num_labels": 10**9, "id2label": None},
        {"model_type": "rmat_ensemble", "num_members": 10**7},
        {"hidden_size": 10**9},
        {"num_radial_basis": 10**8},
        {"num_pooling_heads": 10**9},
    ],
    ids=lambda it: next(iter(it)),
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_anything_is_built(
    changes: dict[str, Any], tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_json(tiny_model_folder / "config.json", **changes)
    for model_class in (RMatForSequenceClassification, RMatEnsembleForSequenceClassification):
        monkeypatch.setattr(model_class, "from_pretrained", lambda *_, **__: pytest.fail("built"))
    start = time.process_time()
    read_error(load_predictor, tiny_model_folder)
    assert time.process_time() - start < MAX_SECONDS


@pytest.mark.parametrize(
    "changes", [{"pair_terms": ["keys"]}, {"pair_relations": ["bond"]}], ids=str
)
def test_an_encoder_with_other_pairs_has_to_start_from_random_weights(
    changes: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    full = read_checkpoint(tiny_model_folder).config
    fewer = RMatConfig(**(full.get_architecture() | changes))
    folder = tmp_path / "fewer"
    RMatForSequenceClassification(fewer).save_pretrained(folder)
    load_processor(tiny_model_folder).save_pretrained(folder)
    assert load_predictor(folder)[0].config.get_architecture() == fewer.get_architecture()
    for saved, config in ((tiny_model_folder, fewer), (folder, full)):
        message = read_error(load_for_finetuning, saved, config=config)
        assert "pair_relations or pair_terms has to start from random weights" in message


# A stranger's files choose no class


@pytest.mark.parametrize("content", ['{"processor_class": "BarkProcessor"}', "[" * 100_000])
def test_another_processor_file_is_not_even_read(content: str, tiny_model_folder: Path) -> None:
    (tiny_model_folder / "processor_config.json").write_text(content)
    assert type(load_processor(tiny_model_folder)) is RMatProcessor
    assert predict(tiny_model_folder, ["CCO"], device="cpu").errors == [None]


@pytest.mark.parametrize(
    "adapter", [{"peft_type": "MAGIC"}, {"peft_type": "LORA", "magic": 1}, [1], "deep"], ids=str
)
def test_an_adapter_that_cannot_be_is_one_line(adapter: Any, tiny_model_folder: Path) -> None:
    pytest.importorskip("peft")
    save_file({"a": torch.zeros(1)}, tiny_model_folder / "adapter_model.safetensors")
    content = "[" * 100_000 if adapter == "deep" else json.dumps(adapter)
    (tiny_model_folder / "adapter_config.json").write_text(content)
    read_error(load_predictor, tiny_model_folder)


def test_an_adapter_in_a_model_folder_is_applied(tiny_model_folder: Path) -> None:
    peft = pytest.importorskip("peft")
    before = predict(tiny_model_folder, ["CCO"], device="cpu").values
    torch.manual_seed(0)
    options = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = RMatForSequenceClassification.from_pretrained(tiny_model_folder)
    adapted = peft.get_peft_model(model, options)
    adapted.save_pretrained(tiny_model_folder)
    values = predict(tiny_model_folder, ["CCO"], device="cpu").values
    assert values != pytest.approx(before)


# Pickles


CONFIG = RMatConfig(**TINY_ARCHITECTURE, num_labels=1)
# Every function of ours that reads the weights of a folder.
READERS: dict[str, Callable[[Path], Any]] = {
    "predict": lambda folder: predict(folder, ["CCO"], device="cpu"),
    "embed": lambda folder: embed(folder, ["CCO"], device="cpu"),
    "finetune": lambda folder: load_for_finetuning(folder, config=CONFIG),
    "pretrain": lambda folder: load_for_pretraining(folder, config=CONFIG),
}

each_reader = pytest.mark.parametrize("read", READERS.values(), ids=READERS)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A folder that appears if a payload is executed."""
    return tmp_path / "executed"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that somebody unpickled, safely or not; loading goes on as ever."""
    names: list[str] = []
    load = torch.load

    def record(file: Any, *args: Any, **kwargs: Any) -> Any:
        names.append(str(file))
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, "load", record)
    return names


@each_reader
def test_pickles_beside_the_weights_are_not_opened(
    read: Callable[[Path], Any], tiny_model_folder: Path, mark: Path, opened: list[str]
) -> None:
    for name in PICKLE_NAMES:
        write_pickle(tiny_model_folder / name, mark)
    read(tiny_model_folder)
    assert opened == []
    assert not mark.exists()


def pickle_an_adapter(folder: Path, mark: Path) -> None:
    write_pickle(folder / "adapter_model.bin", mark)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "x", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))


@each_loader
def test_quantized_weights_are_refused_with_the_way_to_use_them(
    load: Loader, tiny_model_folder: Path
) -> None:
    path = tiny_model_folder / "config.json"
    quantization = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    path.write_text(json.dumps({**load_json(path), "quantization_config": quantization}))
    message = read_error(load, tiny_model_folder)
    assert "quantized" in message
    assert "from_pretrained" in message


@pytest.mark.parametrize(
    "damage", [pickle_the_weights, point_the_index_to_a_pickle, pickle_an_adapter]
)
@each_reader
def test_pickled_weights_are_refused_in_one_line(
    read: Callable[[Path], Any],
    damage: Callable[[Path, Path], None],
    tiny_model_folder: Path,
    mark: Path,
    opened: list[str],
) -> None:
    damage(tiny_model_folder, mark)
    with pytest.raises((OSError, ValueError)) as caught:
        read(tiny_model_folder)
    message = str(caught.value)
    assert "pytorch_model.bin, adapter_model.bin) can run code" in message
    assert "\n" not in message
    assert opened == []
    assert not mark.exists()


# Weights in several files


@pytest.mark.parametrize("read", [READERS["predict"], READERS["embed"]])
def test_sharded_weights_load(read: Callable[[Path], Any], tiny_model_folder: Path) -> None:
    model = RMatForSequenceClassification.from_pretrained(tiny_model_folder)
    (tiny_model_folder / "model.safetensors").unlink()
    model.save_pretrained(tiny_model_folder, max_shard_size="20KB")
    assert len(list(tiny_model_folder.glob("model-*.safetensors"))) > 1
    read(tiny_model_folder)


@pytest.mark.parametrize(
    "place", ["../stolen.safetensors", "{}/stolen.safetensors", "..\\stolen.safetensors"]
)
def test_an_index_does_not_lead_out_of_its_folder(
    place: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    weights = tiny_model_folder / "model.safetensors"
    name = next(iter(load_file(weights)))
    weights.rename(tmp_path / "stolen.safetensors")
    index = weights.with_name("model.safetensors.index.json")
    write_index(index, place.format(tmp_path), name)
    for read in READERS.values():
        with pytest.raises(ValueError, match=r"no \.safetensors file beside it"):
            read(tiny_model_folder)
    for content in ("", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": "b.safetensors"}}'):
        index.write_text(content)
        assert index.name in read_error(load_predictor, tiny_model_folder)


def test_links_of_a_cache_are_followed(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The cache of the Hub has links to its blobs in the place of files."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for idx, path in enumerate(sorted(tiny_model_folder.iterdir())):
        path.rename(blobs / str(idx))
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / str(idx))
    assert predict(snapshot, ["CCO"], device="cpu").errors == [None]


# Names and hashes


def test_models_of_the_package_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "rmat-small" in list_checkpoints()
    folder = checkpoint_path("rmat-small")
    assert (folder / "config.json").is_file()
    assert find_checkpoint("rmat-small") == folder
    with pytest.raises(ValueError, match=r"No model 'notes' comes with.*'rmat-small'"):
        checkpoint_path("notes")
    assert find_checkpoint("you/rmat-small") == "you/rmat-small"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rmat-small").mkdir()
    assert find_checkpoint("rmat-small") == "rmat-small"
    assert find_checkpoint(Path("rmat-small")) == Path("rmat-small")
    assert find_device("cpu") == torch.device("cpu")


def test_a_build_for_an_accelerator_that_is_not_there_computes_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert find_device(None) == torch.device("cpu")


def test_hash_depends_on_weights_and_configuration_and_survives_saving(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path, tmp_path: Path
) -> None:
    shutil.move(tiny_model_folder, tmp_path / "elsewhere")
    before = compute_model_hash(tiny_model)
    assert compute_model_hash(load_predictor(tmp_path / "elsewhere", device="cpu")[0]) == before
    with torch.no_grad():
        tiny_model.classifier.out_proj.bias += 1e-3
    changed = compute_model_hash(tiny_model)
    assert changed != before
    tiny_model.config.label_mean = [1.0]
    assert compute_model_hash(tiny_model) != changed
