"""The arguments of a finetuning run → the `TrainingArguments` of transformers."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.training_args import TrainingArguments

from rmat_hf.data.featurization import LENGTH_COLUMN
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.arguments import SCRATCH, FinetuningArguments

# Metrics by whether the problem is a regression, and those of which less is better.
METRICS = {
    True: ("rmse", "mae", "r2", "spearman"),
    False: ("roc_auc", "pr_auc", "accuracy", "mcc"),
}
ERROR_METRICS = ("loss", "rmse", "mae")
# Peak learning rate by whether training starts from random weights.
DEFAULT_LEARNING_RATES = {True: 5e-4, False: 3e-4}
DEFAULT_NUM_EPOCHS = 60
# From a trained model, by whether the problem is a regression; docs/finetuning_recipe.md says why.
FINETUNING_EPOCHS = {True: 40, False: 10}
LEAST_FINETUNING_STEPS = 500


def load_json_fields(path: str | None) -> dict[str, Any]:
    """Return the object in a JSON file; empty without a path.

    Raises:
        ValueError: If the file is missing or holds no JSON object.
    """
    if path is None:
        return {}
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read the JSON file {path!r}: {error}.") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path!r} holds no JSON object with named fields.")
    return fields


def load_architecture_fields(path: str | None) -> dict[str, Any]:
    """Return the fields of `RMatConfig` that a JSON file overrides; empty without a path.

    Raises:
        ValueError: If the file is missing or has a field that describes no architecture.
    """
    fields = load_json_fields(path)
    known = RMatConfig.list_architecture_fields()
    if unknown := sorted(set(fields) - set(known)):
        raise ValueError(f"{path!r} has unknown fields {unknown}. Known: {known}.")
    return fields


def resolve_num_train_epochs(
    arguments: FinetuningArguments, *, num_train_rows: int
) -> FinetuningArguments:
    """Return the arguments with a number of epochs: their own, or the default for the task.

    Args:
        arguments (`FinetuningArguments`): Model to start from and kind of labels.
        num_train_rows (`int`): Size of the train part.
    """
    if arguments.num_train_epochs is not None:
        return arguments
    num_epochs = DEFAULT_NUM_EPOCHS
    if arguments.model != SCRATCH:
        steps_per_epoch = max(math.ceil(num_train_rows / arguments.batch_size), 1)
        needed = math.ceil(LEAST_FINETUNING_STEPS / steps_per_epoch)
        usual = FINETUNING_EPOCHS[arguments.problem_type == "regression"]
        num_epochs = min(max(usual, needed), DEFAULT_NUM_EPOCHS)
    return replace(arguments, num_train_epochs=float(num_epochs))


def build_training_arguments(
    arguments: FinetuningArguments, checkpoint_dir: Path
) -> TrainingArguments:
    """Return the `TrainingArguments` of a finetuning run, overridden by `--training-arguments`."""
    overrides = load_json_fields(arguments.training_arguments)
    default_metric = "rmse" if arguments.problem_type == "regression" else "roc_auc"
    metric = str(overrides.get("metric_for_best_model", default_metric))
    if overrides.get("eval_strategy", "epoch") == "no":
        raise ValueError("eval_strategy is 'no', but the best checkpoint is chosen on valid.")
    known = ["loss", *METRICS[arguments.problem_type == "regression"]]
    if metric.removeprefix("eval_") not in known:
        raise ValueError(f"metric_for_best_model is {metric!r}. Choose one of {known}.")
    learning_rate = arguments.learning_rate
    if learning_rate is None:
        learning_rate = DEFAULT_LEARNING_RATES[arguments.model == SCRATCH]
    fields = {
        "per_device_train_batch_size": arguments.batch_size,
        "per_device_eval_batch_size": 2 * arguments.batch_size,
        "learning_rate": learning_rate,
        "num_train_epochs": arguments.num_train_epochs or DEFAULT_NUM_EPOCHS,
        "weight_decay": arguments.weight_decay,
        "warmup_steps": arguments.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": metric.removeprefix("eval_") not in ERROR_METRICS,
        "seed": arguments.seed,
        "report_to": arguments.report_to,
        "train_sampling_strategy": "group_by_length",
        "length_column_name": LENGTH_COLUMN,
        "label_names": ["labels"],
        "dataloader_pin_memory": torch.accelerator.is_available(),
        # the collator reads the packed features, which are no arguments of the model
        "remove_unused_columns": False,
        **overrides,
    }
    try:
        return TrainingArguments(output_dir=str(checkpoint_dir), **fields)
    except (TypeError, ValueError) as error:
        source = arguments.training_arguments or "Training options"
        raise ValueError(f"{source}: {error}.") from error
