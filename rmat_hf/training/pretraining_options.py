"""The arguments of a pretraining run → its configuration and the `TrainingArguments`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.training_args import TrainingArguments

from rmat_hf.loading import read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.training.arguments import SCRATCH, load_json_fields, name_source
from rmat_hf.training.pretraining_arguments import (
    PRETRAINING_ARCHITECTURE,
    PretrainingArguments,
)
from rmat_hf.training.pretraining_task import PretrainingTask

LOGS_PER_EVALUATION = 10


def describe_pretraining_arguments(arguments: PretrainingArguments) -> dict[str, Any]:
    """Return what decides the result, without paths of this machine or what only starts it."""
    fields = asdict(arguments)
    for name in ("overwrite", "resume", "num_workers"):
        del fields[name]
    for name in ("corpus", "model", "output_dir"):
        fields[name] = name_source(fields[name])
    for name in ("model_config", "training_arguments"):
        fields[name] = load_json_fields(fields[name])
    return fields


def build_pretraining_config(arguments: PretrainingArguments, task: PretrainingTask) -> RMatConfig:
    """Return the architecture to pretrain, with as many outputs as there are targets.

    Raises:
        ValueError: If the model cannot be loaded or a configuration field is unknown.
    """
    if arguments.model == SCRATCH:
        fields = PRETRAINING_ARCHITECTURE | {"num_node_features": ATOM_FEATURES.num_node_features}
    else:
        fields = read_checkpoint(
            arguments.model, revision=arguments.model_revision
        ).config.get_architecture()
    known = RMatConfig.list_architecture_fields()
    overrides = load_json_fields(arguments.model_config, known=known)
    quantiles = task.targets.quantiles
    fields |= overrides | {
        "num_molecule_descriptors": 0,
        "num_atom_contexts": len(task.targets.vocabulary),
        "num_descriptor_labels": len(quantiles.names) if quantiles is not None else 1,
    }
    try:
        return RMatConfig(**fields)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{arguments.model_config!r}: {reason}") from error


def build_stage_arguments(
    arguments: PretrainingArguments, stage_dir: Path, *, stage: str
) -> TrainingArguments:
    """Return the `TrainingArguments` of a stage, overridden by `--training-arguments`."""
    share = 1 / arguments.num_evaluations
    fields = {
        # an item of the data sets is a batch
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "learning_rate": arguments.learning_rate,
        "num_train_epochs": arguments.num_train_epochs,
        "max_steps": arguments.max_steps or -1,
        "weight_decay": arguments.weight_decay,
        "warmup_steps": arguments.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "bf16": arguments.precision == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "eval_strategy": "steps",
        "eval_steps": share,
        "save_strategy": "steps",
        "save_steps": share,
        "save_total_limit": 1,
        "logging_steps": share / LOGS_PER_EVALUATION,
        "seed": arguments.seed,
        "report_to": arguments.report_to,
        "dataloader_num_workers": arguments.num_workers,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        # every process reads whole batches of a stream; what it does not learn has no gradient
        "accelerator_config": {"dispatch_batches": False},
        "ddp_find_unused_parameters": stage != "joint",
        "remove_unused_columns": False,
        **load_json_fields(arguments.training_arguments),
    }
    try:
        return TrainingArguments(output_dir=str(stage_dir), **fields)
    except (TypeError, ValueError) as error:
        source = arguments.training_arguments or "Training options"
        raise ValueError(f"{source}: {error}.") from error
