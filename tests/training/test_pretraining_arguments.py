from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_finetuning import write_json
from tiny_pretraining import ARCHITECTURE, build_pretraining_arguments

from rmat_hf.loading import read_checkpoint
from rmat_hf.training.pretraining_arguments import (
    PRETRAINING_ARCHITECTURE,
    PretrainingArguments,
    build_pretraining_config,
    build_stage_arguments,
    choose_precision,
)


def build(**options: Any) -> PretrainingArguments:
    return PretrainingArguments(**{"corpus": "corpus", "output_dir": "run", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "motifs"}, r"--objective 'motifs'.*'contexts', 'descriptors', 'joint'"),
        ({"precision": "float16"}, r"--precision 'float16'.*'auto', 'float32', 'bfloat16'"),
        ({"mask_ratio": 0.0}, r"--mask-ratio 0\.0 "),
        ({"valid_fraction": 1.0}, r"--valid-fraction 1\.0 "),
        ({"valid_fraction": float("nan")}, r"--valid-fraction nan"),
        ({"streaming": True}, r"--streaming needs --max-steps"),
        ({"overwrite": True, "resume": True}, r"choose one"),
        ({"batch_size": 0}, r"--batch-size 0"),
        ({"seed": -1}, r"--seed -1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_flag(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


# Precision


@pytest.mark.parametrize("has_units", [True, False])
def test_the_default_precision_is_that_of_which_the_processor_has_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    assert choose_precision("auto") == ("bfloat16" if has_units else "float32")
    assert build_stage(tmp_path).bf16 == has_units
    assert [choose_precision(name) for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


# The model


HEADS = {"context": {"level": "node", "size": 7, "loss": "single_label_classification"}}


def test_the_model_has_the_heads_and_the_overridden_architecture(tmp_path: Path) -> None:
    config = build_pretraining_config(build_pretraining_arguments(tmp_path), HEADS)
    assert config.pretraining_heads == HEADS
    assert {name: getattr(config, name) for name in ARCHITECTURE} == ARCHITECTURE
    arguments = build_pretraining_arguments(tmp_path, model_config=None)
    config = build_pretraining_config(arguments, HEADS)
    assert config.hidden_size == PRETRAINING_ARCHITECTURE["hidden_size"]
    config = build_pretraining_config(arguments, HEADS, checkpoint=read_checkpoint("rmat-small"))
    assert config.hidden_size == 128


# Trainer


def build_stage(folder: Path, *, is_all_learned: bool = True, **options: Any) -> Any:
    arguments = build_pretraining_arguments(folder, **options)
    return build_stage_arguments(arguments, folder / "stage-0", is_all_learned=is_all_learned)


def test_flags_and_the_file_of_training_arguments_reach_trainer(tmp_path: Path) -> None:
    fields = write_json(tmp_path / "fields.json", {"max_grad_norm": 0.5, "learning_rate": 7.0})
    arguments = build_stage(
        tmp_path,
        max_steps=40,
        num_evaluations=4,
        gradient_accumulation_steps=3,
        learning_rate=1.0,
        training_arguments=fields,
    )
    assert arguments.max_steps == 40
    assert arguments.gradient_accumulation_steps == 3
    assert arguments.eval_steps == arguments.save_steps == 0.25
    # the file has the last word
    assert (arguments.max_grad_norm, arguments.learning_rate) == (0.5, 7.0)


def test_processes_look_for_weights_without_a_gradient_only_where_there_are_some(
    tmp_path: Path,
) -> None:
    assert not build_stage(tmp_path).ddp_find_unused_parameters
    assert build_stage(tmp_path, is_all_learned=False).ddp_find_unused_parameters
