"""Files of a checkpoint before anything is built from them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import logging as transformers_logging

from rmat_hf.checkpoint_files import (
    find_broken_weight,
    load_checkpoint_json,
    silence_loading_report,
    validate_weight_types,
)
from rmat_hf.loading import load_predictor


def test_a_json_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1]}')
    assert load_checkpoint_json(tmp_path, "config.json", revision=None) == {"a": [1]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a valid JSON file"),
        (b'{"a": 1', "is not a valid JSON file"),
        (b"\xff\xfe\x00", "is not a valid JSON file"),
        (b"[" * 100_000, "is not a valid JSON file"),
        (b"[1]", "holds a list"),
        (b"3", "holds a int"),
        (b"null", "holds a NoneType"),
        (b'"text"', "holds a str"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_is_no_json_object_is_named(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json {reason}"):
        load_checkpoint_json(tmp_path, "config.json", revision=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_point_weights_are_fine(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=dtype)}, tmp_path / "model.safetensors")
    validate_weight_types(tmp_path, revision=None)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_other_weights_are_refused_with_file_and_name(
    dtype: torch.dtype, is_sharded: bool, tmp_path: Path
) -> None:
    name = "model-00001-of-00001.safetensors" if is_sharded else "model.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=dtype)}, tmp_path / name)
    index = {"metadata": {}, "weight_map": {"a": name, "b": name}}
    if is_sharded:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{name} holds b as .*no floating-point type"):
        validate_weight_types(tmp_path, revision=None)


@pytest.mark.parametrize("position", [0, 9, 40])
def test_a_damaged_header_is_named(position: int, tiny_model_folder: Path) -> None:
    path = tiny_model_folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut off"):
        validate_weight_types(tiny_model_folder, revision=None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_found(value: float, tiny_model_folder: Path) -> None:
    weights = load_file(tiny_model_folder / "model.safetensors")
    assert find_broken_weight(weights.items()) is None
    name = sorted(weights)[7]
    weights[name].view(-1)[-1] = value
    assert find_broken_weight(weights.items()) == name


def test_the_report_of_transformers_is_silent_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = transformers_logging.get_logger("transformers.modeling_utils")
    with silence_loading_report():
        logger.warning("a table of weights")
        logger.error("an error")
    logger.warning("a later warning")
    assert [record.message for record in caplog.records] == ["an error", "a later warning"]


def test_loading_says_nothing_of_parallel_tensors(
    tiny_model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_predictor(tiny_model_folder, device="cpu")
    assert "sharded" not in caplog.text
