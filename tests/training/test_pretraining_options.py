import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_finetuning import write_json
from tiny_pretraining import ARCHITECTURE, DESCRIPTORS, build_pretraining_arguments

from rmat_hf.training.pretraining_arguments import PRETRAINING_ARCHITECTURE
from rmat_hf.training.pretraining_options import (
    build_pretraining_config,
    build_stage_arguments,
    describe_pretraining_arguments,
)
from rmat_hf.training.pretraining_task import PretrainingTask, build_pretraining_task


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainingTask:
    """What there is to learn of 108 molecules with five descriptors."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return build_pretraining_task(build_pretraining_arguments(tmp_path))


def test_the_model_has_an_output_for_every_target(tmp_path: Path, task: PretrainingTask) -> None:
    config = build_pretraining_config(build_pretraining_arguments(tmp_path), task)
    assert config.num_atom_contexts == len(task.targets.vocabulary)
    assert config.num_descriptor_labels == len(DESCRIPTORS)
    assert {name: getattr(config, name) for name in ARCHITECTURE} == ARCHITECTURE


def test_without_a_file_the_architecture_is_the_default_one(
    tmp_path: Path, task: PretrainingTask
) -> None:
    arguments = build_pretraining_arguments(tmp_path, model_config=None)
    config = build_pretraining_config(arguments, task)
    assert config.hidden_size == PRETRAINING_ARCHITECTURE["hidden_size"]


def test_an_unknown_field_of_the_configuration_is_refused(
    tmp_path: Path, task: PretrainingTask
) -> None:
    wrong = write_json(tmp_path / "wrong.json", {"hiden_size": 32})
    arguments = build_pretraining_arguments(tmp_path, model_config=wrong)
    with pytest.raises(ValueError, match=r"unknown fields \['hiden_size'\]"):
        build_pretraining_config(arguments, task)


def build_stage(folder: Path, stage: str = "joint", **options: Any) -> Any:
    arguments = build_pretraining_arguments(folder, **options)
    return build_stage_arguments(arguments, folder / "stage-0", stage=stage)


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


def test_a_stage_that_learns_one_task_has_weights_without_a_gradient(tmp_path: Path) -> None:
    unused = {
        stage: build_stage(tmp_path, stage).ddp_find_unused_parameters
        for stage in ("contexts", "descriptors", "joint")
    }
    assert unused == {"contexts": True, "descriptors": True, "joint": False}


def test_an_unknown_training_argument_is_refused(tmp_path: Path) -> None:
    fields = write_json(tmp_path / "fields.json", {"lerning_rate": 1.0})
    with pytest.raises(ValueError, match=r"fields\.json.*lerning_rate"):
        build_stage(tmp_path, training_arguments=fields)


def test_the_description_has_names_instead_of_paths_and_nothing_that_only_starts_a_run(
    tmp_path: Path,
) -> None:
    arguments = build_pretraining_arguments(tmp_path, resume=True, num_workers=3)
    description = describe_pretraining_arguments(arguments)
    assert str(tmp_path) not in json.dumps(description)
    assert (description["corpus"], description["output_dir"]) == ("corpus", "run")
    assert description["model_config"] == ARCHITECTURE
    assert not {"resume", "overwrite", "num_workers"} & set(description)
    assert describe_pretraining_arguments(build_pretraining_arguments(tmp_path)) == description
