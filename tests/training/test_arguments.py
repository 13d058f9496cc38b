import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import build_tiny_arguments, write_json
from tiny_pretraining import ARCHITECTURE, build_pretraining_arguments

from rmat_hf import finetune, pretrain
from rmat_hf.errors import UserError
from rmat_hf.inference.conversion import ConversionArguments
from rmat_hf.inference.screening import PredictionArguments
from rmat_hf.loading import read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.arguments import (
    FinetuningArguments,
    build_from_fields,
    describe_arguments,
    load_json_fields,
    name_source,
    name_split,
)
from rmat_hf.training.pretraining_arguments import (
    PRETRAINING_ARCHITECTURE,
    PretrainingArguments,
    build_pretraining_config,
    build_stage_arguments,
    choose_precision,
)


def build(**options: Any) -> FinetuningArguments:
    required = {"dataset": "table.csv", "label_columns": ["a", "b"], "output_dir": "run"}
    return FinetuningArguments(**{**required, **options})


@pytest.mark.parametrize(
    "arguments_class",
    [FinetuningArguments, PredictionArguments, ConversionArguments],
)
def test_every_flag_has_a_help_sentence_of_its_own(arguments_class: type) -> None:
    texts = [field.metadata["help"] for field in fields(arguments_class)]
    assert all(text[0].isupper() and text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"split": "column"}, r"--split-column"),
        ({"split_column": "part", "split": "time"}, r"--split time needs --time-column"),
        ({"group_column": "lot", "split": "scaffold"}, r"lot needs --split random or kfold"),
        ({"label_units": ["nM"]}, r"1 entries for 2 label columns\. Give one per column"),
        ({"overwrite": True, "resume": True}, r"choose one"),
        ({"problem_type": "classes"}, r"'classes'.*multi_label_classification"),
        ({"split": "umap"}, r"--split 'umap'.*'random', 'scaffold'"),
        ({"time_column": "day"}, r"--time-column day needs --split time, not random"),
        ({"split": "kfold", "num_folds": 5, "fold": 5}, r"Fold 5 of 5"),
        ({"split": "kfold", "num_folds": 5, "fold": -1}, r"--fold -1 is too small"),
        ({"split": "kfold", "num_folds": 2, "fold": 0}, r"--num-folds 2 is too small.* 3"),
        ({"split": "cluster", "cluster_cutoff": 1.0}, r"1.0 .* 1"),
        ({"molecule_descriptors": "mordred"}, r"'mordred'.*rdkit_2d"),
        ({"class_weighting": "focal"}, r"'focal'.*balanced"),
        ({"class_weighting": "balanced"}, r"--class-weighting balanced is for classification"),
        ({"dropout": 1.0}, r"--dropout 1.0 .* below 1"),
        ({"ema_decay": float("nan")}, r"--ema-decay nan "),
        ({"feature_cache": ""}, r"Name a folder, 'default' or 'none'"),
        ({"member_folds": True}, r"--member-folds needs --num-members 2 or more"),
        ({"label_columns": ["split"]}, r"--label-columns split: .*column that the results"),
        ({"label_columns": ["y", "z", "y"]}, r"--label-columns y z y: one is there twice"),
    ],
)
def test_contradictory_finetuning_flags_are_refused_with_the_way_out(
    options: dict[str, Any], way_out: str
) -> None:
    with pytest.raises(ValueError, match=way_out):
        build(**options)


def test_json_fields_are_the_object_in_the_file(tmp_path: Path) -> None:
    content = {"bf16": True, "max_steps": 3, "name": "é"}
    assert load_json_fields(write_json(tmp_path / "fields.json", content)) == content
    assert load_json_fields(None) == {}
    # the object itself in the place of a file
    assert load_json_fields(json.dumps(content)) == content
    with pytest.raises(UserError, match="is no JSON"):
        load_json_fields("{pooling: mean}")


def test_what_python_has_for_a_name_is_taken_as_the_command_line_writes_it(
    tmp_path: Path,
) -> None:
    arguments = build(
        label_columns=(2020, np.int64(1)),
        smiles_column=0,
        label_transform=(it for it in ["none", "log10"]),
        feature_cache=tmp_path,
        model=tmp_path,
        model_config={"pooling": "mean"},
        training_arguments={"bf16": True},
    )
    assert (arguments.label_columns, arguments.smiles_column) == (["2020", "1"], "0")
    assert arguments.label_transform == ["none", "log10"]
    assert (arguments.model, arguments.feature_cache) == (str(tmp_path), str(tmp_path))
    assert load_json_fields(arguments.model_config) == {"pooling": "mean"}
    assert describe_arguments(arguments)["training_arguments"] == {"bf16": True}
    assert build(label_columns=2020).label_columns == ["2020"]
    assert not build(label_units=None).label_units
    options: dict[str, Any] = {"corpus": "corpus", "model_config": {"pooling": "mean"}}
    pretraining = PretrainingArguments(output_dir="run", **options)
    assert load_json_fields(pretraining.model_config) == {"pooling": "mean"}


def test_an_object_in_the_place_of_a_name_is_refused_with_what_to_pass(tiny_model: Any) -> None:
    with pytest.raises(UserError, match=r"--model is a RMatForSeq.*save_pretrained\(FOLDER\)"):
        build(model=tiny_model)
    with pytest.raises(UserError, match=r"--time-column is a bool.*name"):
        build(time_column=True)
    with pytest.raises(UserError, match=r"--label-columns is a float"):
        build(label_columns=[1.5])
    with pytest.raises(UserError, match=r"--label-columns is a float"):
        build(label_columns=1.5)


def test_a_misspelled_option_is_told_with_the_one_that_is_meant() -> None:
    for given, meant in {"epochs": "num_train_epochs", "batchsize": "batch_size"}.items():
        with pytest.raises(TypeError, match=f"no option '{given}'.*mean {meant}"):
            finetune("table.csv", label_columns=["y"], output_dir="run", **{given: 3})
    with pytest.raises(TypeError, match=r"no option 'objectives'.*mean objective"):
        pretrain("corpus", output_dir="run", objectives="contexts")


def test_a_value_that_a_class_refuses_is_an_error_with_the_file(tmp_path: Path) -> None:
    assert build_from_fields(RMatConfig, {"pooling": "mean"}, source=None).pooling == "mean"
    with pytest.raises(UserError, match=r"sizes\.json.*hidden_size"):
        build_from_fields(RMatConfig, {"hidden_size": "wide"}, source="sizes.json")


def test_json_files_of_a_run_are_described_by_their_content(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    arguments = build_tiny_arguments(
        tmp_path,
        training_arguments=write_json(tmp_path / "trainer.json", {"max_steps": 3}),
        model=str(tiny_model_folder),
        model_config=write_json(tmp_path / "architecture.json", TINY_ARCHITECTURE),
    )
    described = describe_arguments(arguments)
    assert described["training_arguments"] == {"max_steps": 3}
    assert described["model_config"] == TINY_ARCHITECTURE
    assert described["model"] == "tiny_model"
    assert str(tmp_path) not in json.dumps(described)


def test_described_arguments_are_all_that_decide_the_result(tmp_path: Path) -> None:
    started = {"overwrite": True, "num_workers": 4, "feature_cache": str(tmp_path)}
    described = describe_arguments(build_tiny_arguments(tmp_path, seed=5, **started))
    assert described == describe_arguments(build_tiny_arguments(tmp_path, seed=5, resume=True))
    names = {field.name for field in fields(FinetuningArguments)}
    assert set(described) == names - {"overwrite", "resume", "num_workers", "feature_cache"}
    assert described["seed"] == 5
    assert described["model"] == "scratch"


def test_source_on_the_hub_keeps_its_id_and_a_path_its_last_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert name_source("scikit-fingerprints/MoleculeNet_ESOL") == (
        "scikit-fingerprints/MoleculeNet_ESOL"
    )
    assert name_source("./data/") == "data"
    assert name_source(".") == tmp_path.name
    assert name_source(str(tmp_path / "missing.csv")) == "missing.csv"
    assert name_source("freesolv") == "freesolv"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "random"),
        ({"split": "scaffold_balanced"}, "scaffold_balanced"),
        ({"split": "cluster"}, "cluster"),
        ({"split": "cluster", "cluster_cutoff": 0.4}, "cluster-0.4"),
        ({"split": "time", "time_column": "day"}, "time"),
        ({"split": "kfold", "num_folds": 5, "fold": 0}, "fold-0-of-5"),
    ],
)
def test_split_is_named_with_what_makes_its_metrics_its_own(
    tmp_path: Path, options: dict[str, Any], name: str
) -> None:
    assert name_split(build_tiny_arguments(tmp_path, **options)) == name


# Pretraining


def build_pretraining(**options: Any) -> PretrainingArguments:
    return PretrainingArguments(**{"corpus": "corpus", "output_dir": "run", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "motifs"}, r"--objective 'motifs'.*'contexts', 'descriptors', .*'joint'"),
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
        build_pretraining(**options)


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


def test_one_name_stands_for_a_list_of_one() -> None:
    arguments = build(label_columns="y", label_units="nM", label_transform="pIC50")
    assert (arguments.label_columns, arguments.label_units) == (["y"], ["nM"])
    assert arguments.label_transform == ["pIC50"]
