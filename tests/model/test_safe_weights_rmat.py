"""A pickle is never opened, whoever asks for the model and whatever its files say."""

import json
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
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification
from transformers.pipelines import pipeline

from rmat_hf.inference.prediction import embed, predict
from rmat_hf.loading import load_for_finetuning, load_for_pretraining
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatModel,
)
from rmat_hf.model.pipeline_rmat import RMatPropertyPredictionPipeline
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.model.safe_weights_rmat import validate_weight_files, validate_weight_index

CONFIG = RMatConfig(**TINY_ARCHITECTURE, num_labels=1)
# Everything that reads the weights of a folder.
READERS: dict[str, Callable[[Path], Any]] = {
    "predict": lambda folder: predict(folder, ["CCO"], device="cpu"),
    "embed": lambda folder: embed(folder, ["CCO"], device="cpu"),
    "finetune": lambda folder: load_for_finetuning(folder, config=CONFIG),
    "pretrain": lambda folder: load_for_pretraining(folder, config=CONFIG),
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForPreTraining": AutoModelForPreTraining.from_pretrained,
    "AutoModelForSequenceClassification": AutoModelForSequenceClassification.from_pretrained,
    "RMatModel": RMatModel.from_pretrained,
    "RMatForPreTraining": RMatForPreTraining.from_pretrained,
    "RMatForSequenceClassification": RMatForSequenceClassification.from_pretrained,
    "pipeline": lambda folder: pipeline(
        "molecule-property-prediction",
        model=str(folder),
        feature_extractor=RMatProcessor(),
        pipeline_class=RMatPropertyPredictionPipeline,
        trust_remote_code=False,
    ),
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


def test_the_payload_of_these_tests_works(tmp_path: Path, mark: Path) -> None:
    write_pickle(tmp_path / "weights.bin", mark)
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert mark.is_dir()


@each_reader
def test_pickles_beside_the_weights_are_not_opened(
    read: Callable[[Path], Any], tiny_model_folder: Path, mark: Path, opened: list[str]
) -> None:
    for name in PICKLE_NAMES:
        write_pickle(tiny_model_folder / name, mark)
    read(tiny_model_folder)
    assert opened == []
    assert not mark.exists()


@pytest.mark.parametrize("damage", [pickle_the_weights, point_the_index_to_a_pickle])
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
    assert "pytorch_model.bin" in message
    assert "run code" in message
    # the pipeline of transformers adds the tracebacks of its attempts
    assert "\n" not in message or read is READERS["pipeline"]
    assert opened == []
    assert not mark.exists()


def test_what_the_message_proposes_makes_a_folder_that_loads(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path
) -> None:
    weights = tiny_model_folder / "model.safetensors"
    weights.unlink()
    torch.save(tiny_model.state_dict(), tiny_model_folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"R-MAT needs model\.safetensors") as caught:
        validate_weight_files(tiny_model_folder)
    assert "safetensors.torch.save_file(torch.load('pytorch_model.bin', weights_only=True), " in (
        str(caught.value)
    )
    pickled = torch.load(tiny_model_folder / "pytorch_model.bin", weights_only=True)
    save_file(pickled, weights, metadata={"format": "pt"})
    model = RMatForSequenceClassification.from_pretrained(tiny_model_folder)
    expected = tiny_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [{"use_safetensors": False}, {"use_safetensors": False, "weights_only": False}],
)
def test_asking_for_a_pickle_is_refused(
    options: dict[str, Any], tiny_model_folder: Path, mark: Path, opened: list[str]
) -> None:
    write_pickle(tiny_model_folder / "pytorch_model.bin", mark)
    for auto_class in (RMatForSequenceClassification, AutoModelForSequenceClassification):
        with pytest.raises(ValueError, match=r"run code\. Leave it out"):
            auto_class.from_pretrained(tiny_model_folder, **options)
    assert opened == []
    assert not mark.exists()


def test_a_pickle_named_as_a_file_is_refused(
    tiny_model_folder: Path, mark: Path, opened: list[str]
) -> None:
    path = tiny_model_folder / "pytorch_model.bin"
    write_pickle(path, mark)
    with pytest.raises(OSError, match=r"is no \.safetensors file"):
        RMatForSequenceClassification.from_pretrained(path, config=CONFIG, weights_only=False)
    assert opened == []
    assert not mark.exists()


def test_a_pickled_variant_is_refused(tiny_model_folder: Path, mark: Path) -> None:
    write_pickle(tiny_model_folder / "pytorch_model.fp16.bin", mark)
    with pytest.raises(OSError, match=r"pytorch_model\.fp16\.bin.*run code"):
        RMatForSequenceClassification.from_pretrained(tiny_model_folder, variant="fp16")
    assert not mark.exists()


def test_a_pickled_adapter_is_refused(
    tiny_model_folder: Path, mark: Path, opened: list[str]
) -> None:
    pytest.importorskip("peft")
    write_pickle(tiny_model_folder / "adapter_model.bin", mark)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "x", "target_modules": ["q_proj"]}
    (tiny_model_folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(OSError, match=r"adapter_model\.bin.*run code"):
        RMatForSequenceClassification.from_pretrained(tiny_model_folder)
    assert opened == []
    assert not mark.exists()


# Weights in several files


@pytest.mark.parametrize("read", [READERS["predict"], READERS["AutoModel"]])
def test_sharded_weights_load(read: Callable[[Path], Any], tiny_model_folder: Path) -> None:
    model = RMatForSequenceClassification.from_pretrained(tiny_model_folder)
    (tiny_model_folder / "model.safetensors").unlink()
    model.save_pretrained(tiny_model_folder, max_shard_size="20KB")
    assert len(list(tiny_model_folder.glob("model-*.safetensors"))) > 1
    read(tiny_model_folder)


@pytest.mark.parametrize(
    "place",
    ["../stolen.safetensors", "{}/stolen.safetensors", "..\\stolen.safetensors", "a/b.safetensors"],
)
def test_an_index_does_not_lead_out_of_its_folder(
    place: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    weights = tiny_model_folder / "model.safetensors"
    name = next(iter(load_file(weights)))
    weights.rename(tmp_path / "stolen.safetensors")
    write_index(weights.with_name("model.safetensors.index.json"), place.format(tmp_path), name)
    for read in READERS.values():
        with pytest.raises(ValueError, match=r"no \.safetensors file beside it"):
            read(tiny_model_folder)


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": "b.safetensors"}}']
)
def test_a_damaged_index_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is damaged"):
        validate_weight_index(path)


def test_links_of_a_cache_are_followed(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The cache of the Hub has links to its blobs in the place of files."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for idx, path in enumerate(sorted(tiny_model_folder.iterdir())):
        path.rename(blobs / str(idx))
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / str(idx))
    assert predict(snapshot, ["CCO"], device="cpu").errors == [None]
