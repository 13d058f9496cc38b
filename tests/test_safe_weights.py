"""Our functions never open a pickle, whatever the files of a model say."""

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
from safetensors.torch import load_file
from tiny import TINY_ARCHITECTURE

from rmat_hf.inference.prediction import embed, predict
from rmat_hf.loading import load_for_finetuning, load_for_pretraining
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification

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
    assert "\n" not in message
    assert opened == []
    assert not mark.exists()


@each_reader
def test_a_pickled_adapter_is_refused(
    read: Callable[[Path], Any], tiny_model_folder: Path, mark: Path, opened: list[str]
) -> None:
    write_pickle(tiny_model_folder / "adapter_model.bin", mark)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "x", "target_modules": ["q_proj"]}
    (tiny_model_folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(ValueError, match=r"adapter_model\.bin.*run code"):
        read(tiny_model_folder)
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
def test_a_damaged_index_is_named(content: str, tiny_model_folder: Path) -> None:
    (tiny_model_folder / "model.safetensors").unlink()
    (tiny_model_folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        predict(tiny_model_folder, ["CCO"], device="cpu")


def test_links_of_a_cache_are_followed(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The cache of the Hub has links to its blobs in the place of files."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for idx, path in enumerate(sorted(tiny_model_folder.iterdir())):
        path.rename(blobs / str(idx))
        (snapshot / path.name).symlink_to(Path("..") / "blobs" / str(idx))
    assert predict(snapshot, ["CCO"], device="cpu").errors == [None]
