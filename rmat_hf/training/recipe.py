"""What a finetuning run starts from and how it trains: the choices of docs/finetuning_recipe.md."""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from rmat_hf.data.featurization import choose_cache_dir
from rmat_hf.data.splits.column_splits import TimeColumn
from rmat_hf.data.splits.molecule_splits import assign_folds
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.splits.registry import find_split_options, split_dataset
from rmat_hf.data.stored_features import read_molecule_descriptors
from rmat_hf.data.training_table import DroppedRow, load_training_table
from rmat_hf.errors import UserError
from rmat_hf.loading import Checkpoint, load_processor, read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import list_molecule_descriptor_names
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import (
    SCRATCH,
    SCRATCH_ARCHITECTURE,
    FinetuningArguments,
    build_config,
    build_trainer_arguments,
    load_json_fields,
)
from rmat_hf.training.metrics import list_metrics
from rmat_hf.training.trainer import RMatTrainingArguments

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")
# With fewer rows a metric is luck.
MIN_PART_ROWS = 5
# The head of a regression on a pretrained encoder.
REGRESSION_HEAD: dict[str, Any] = {
    "num_head_layers": 2,
    "head_hidden_size": 512,
    "head_norm": False,
    "classifier_dropout": 0.3,
}
REGRESSION_HEAD_LEARNING_RATE = 3e-3
# Peak learning rate by whether training starts from random weights.
DEFAULT_LEARNING_RATES = {True: 5e-4, False: 3e-4}
DEFAULT_NUM_EPOCHS = 60
# From a trained model, by whether the problem is a regression.
FINETUNING_EPOCHS = {True: 40, False: 10}
LEAST_FINETUNING_STEPS = 500


@dataclass(frozen=True)
class FinetuningTask:
    """Featurized rows, divided into parts, and the processor that featurized them.

    `class_names` are of a single-label classification; without `checkpoint` weights are random.
    """

    dataset: Dataset
    split: SplitIndices
    dropped: list[DroppedRow]
    class_names: list[str] | None
    processor: RMatProcessor
    checkpoint: Checkpoint | None

    def select(self, part: str) -> Dataset:
        """Return the rows of train, valid or test."""
        return self.dataset.select(getattr(self.split, part))

    def labels(self, part: str) -> np.ndarray:
        """Return the labels of a part, `(num_rows, num_labels)`, NaN where missing."""
        return np.array(self.select(part)["labels"], dtype=np.float64)


def build_finetuning_task(arguments: FinetuningArguments) -> FinetuningTask:
    """Load, check, featurize and split the training table."""
    checkpoint = None
    if arguments.model != SCRATCH:
        checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
    processor = _build_processor(arguments, checkpoint)
    time_column = TimeColumn(arguments.time_column) if arguments.time_column else None
    loaded = load_training_table(
        arguments.dataset,
        processor,
        smiles_column=arguments.smiles_column,
        label_columns=arguments.label_columns,
        problem_type=arguments.problem_type,
        split_column=time_column or arguments.split_column,
        revision=arguments.dataset_revision,
        conflict_tolerance=arguments.conflict_tolerance,
        num_workers=arguments.num_workers,
        cache_dir=choose_cache_dir(arguments.feature_cache),
        show_progress=True,
    )
    dataset = loaded.dataset
    labels = np.array(dataset["labels"][:], dtype=np.float64)
    if arguments.problem_type == "regression" and set(labels[~np.isnan(labels)]) <= {0.0, 1.0}:
        logger.warning(
            "The labels are only 0 and 1: for yes/no labels pass --problem-type "
            "multi_label_classification."
        )
    options = find_split_options(arguments)
    split = split_dataset(dataset, arguments.split, seed=arguments.seed, **options)
    if len(split.valid) == 0:
        raise UserError("The valid part is empty, and the best checkpoint is chosen on it.")
    for part in ("valid", "test"):
        if (num_rows := len(getattr(split, part))) < MIN_PART_ROWS:
            logger.warning("%s has %d rows: its metrics say little.", part, num_rows)
    return FinetuningTask(dataset, split, loaded.dropped, loaded.class_names, processor, checkpoint)


def split_for_members(arguments: FinetuningArguments, task: FinetuningTask) -> list[SplitIndices]:
    """Return the parts of every member: those of the task, or its own fold of train and valid.

    Equal molecules stand in one fold, which is valid of one member and train of the others.
    """
    if not arguments.member_folds:
        return [task.split] * arguments.num_members
    rows = np.sort(np.concatenate([task.split.train, task.split.valid]))
    smiles = task.dataset["canonical_smiles"][:]
    folds = assign_folds(
        [smiles[row] for row in rows], num_folds=arguments.num_members, seed=arguments.seed
    )
    return [
        SplitIndices(train=rows[folds != idx], valid=rows[folds == idx], test=task.split.test)
        for idx in range(arguments.num_members)
    ]


def _build_processor(
    arguments: FinetuningArguments, checkpoint: Checkpoint | None
) -> RMatProcessor:
    """Return the model's processor, or a new one, with the geometry that was asked for."""
    names = ("geometry", "on_conformer_failure")
    options = {name: it for name in names if (it := getattr(arguments, name)) is not None}
    if arguments.molecule_descriptors == "rdkit_2d":
        options["molecule_descriptors"] = list_molecule_descriptor_names()
    elif arguments.molecule_descriptors == "none":
        options["molecule_descriptors"] = None
    if checkpoint is None:
        return RMatProcessor(**options)
    return load_processor(checkpoint.name, revision=checkpoint.revision, **options)


def resolve_defaults(arguments: FinetuningArguments, task: FinetuningTask) -> FinetuningArguments:
    """Return the arguments with the learning rates and epochs that they leave to the recipe."""
    defaults: dict[str, Any] = {
        "learning_rate": DEFAULT_LEARNING_RATES[arguments.model == SCRATCH],
        "num_train_epochs": choose_num_epochs(arguments, num_train_rows=len(task.split.train)),
    }
    if gets_regression_head(arguments, task):
        defaults["head_learning_rate"] = REGRESSION_HEAD_LEARNING_RATE
    missing = {name: it for name, it in defaults.items() if getattr(arguments, name) is None}
    return replace(arguments, **missing)


def choose_num_epochs(arguments: FinetuningArguments, *, num_train_rows: int) -> float:
    """Return the most epochs of a run: its own, or the default for so many rows of train."""
    if arguments.num_train_epochs is not None:
        return arguments.num_train_epochs
    if arguments.model == SCRATCH:
        return float(DEFAULT_NUM_EPOCHS)
    steps_per_epoch = math.ceil(num_train_rows / arguments.batch_size)
    needed = math.ceil(LEAST_FINETUNING_STEPS / steps_per_epoch)
    usual = FINETUNING_EPOCHS[arguments.problem_type == "regression"]
    return float(min(max(usual, needed), DEFAULT_NUM_EPOCHS))


def gets_regression_head(arguments: FinetuningArguments, task: FinetuningTask) -> bool:
    """Return whether a regression starts from a trained encoder without a prediction head."""
    if arguments.problem_type != "regression" or task.checkpoint is None:
        return False
    architectures = task.checkpoint.config.architectures or []
    return RMatForSequenceClassification.__name__ not in architectures


def build_finetuning_model(
    arguments: FinetuningArguments, task: FinetuningTask
) -> RMatForSequenceClassification:
    """Return the model to train, with the scaling of labels and descriptors fitted on train."""
    config = build_finetuning_config(arguments, task)
    if task.checkpoint is None:
        model = RMatForSequenceClassification(config)
    else:
        try:
            model = task.checkpoint.load_model(RMatForSequenceClassification, config=config)
        except UserError as error:
            if arguments.model_config is None:
                raise
            raise UserError(
                f"{error} If {arguments.model_config!r} is to change sizes that the weights of "
                f"{arguments.model!r} have, pass --model scratch to train from random weights."
            ) from error
    if model.descriptor_scaler is not None:
        descriptors = read_molecule_descriptors(task.select("train")["features"][:])
        model.descriptor_scaler.fit(torch.from_numpy(descriptors))
    return model


def build_finetuning_config(arguments: FinetuningArguments, task: FinetuningTask) -> RMatConfig:
    """Return the architecture of the model to start from, with the labels of the task."""
    own = _build_label_fields(arguments, task)
    if arguments.dropout is not None:
        own["hidden_dropout_prob"] = arguments.dropout
    checkpoint = task.checkpoint
    if checkpoint is not None and gets_regression_head(arguments, task):
        config = RMatConfig(**{**checkpoint.config.get_architecture(), **REGRESSION_HEAD})
        checkpoint = replace(checkpoint, config=config)
    return build_config(arguments, checkpoint, default=SCRATCH_ARCHITECTURE, own=own)


def _build_label_fields(arguments: FinetuningArguments, task: FinetuningTask) -> dict[str, Any]:
    labels = task.labels("train")
    names = task.class_names or arguments.label_columns
    fields: dict[str, Any] = {
        "num_molecule_descriptors": len(task.processor.molecule_descriptors or []),
        "id2label": dict(enumerate(names)),
        "label2id": {name: idx for idx, name in enumerate(names)},
        "problem_type": arguments.problem_type,
        "label_units": list(arguments.label_units) or None,
    }
    if arguments.problem_type == "regression":
        fields |= _fit_label_scaling(labels, names=names)
    elif arguments.problem_type == "single_label_classification":
        fields["label_name"] = arguments.label_columns[0]
    if arguments.class_weighting == "balanced":
        fields["loss_weights"] = compute_balanced_weights(
            labels, problem_type=arguments.problem_type, num_outputs=len(names)
        )
    return fields


def _fit_label_scaling(labels: np.ndarray, *, names: list[str]) -> dict[str, list[float]]:
    unlabeled = np.flatnonzero(np.isnan(labels).all(axis=0))
    if len(unlabeled):
        raise UserError(
            f"Label {names[unlabeled[0]]!r} has no value in the train part. "
            "Drop the label, or choose another split."
        )
    # a label that is constant on train is centered and keeps its scale; its computed standard
    # deviation may be a rounding error instead of 0
    is_constant = np.nanmax(labels, axis=0) == np.nanmin(labels, axis=0)
    return {
        "label_mean": np.nanmean(labels, axis=0).tolist(),
        "label_std": np.where(is_constant, 1.0, np.nanstd(labels, axis=0)).tolist(),
    }


def compute_balanced_weights(
    labels: np.ndarray, *, problem_type: str, num_outputs: int
) -> list[float]:
    """Return weights under which rare and frequent classes cost the same.

    Negatives per positive for each label of a multi-label classification, else one for each class.
    """
    if problem_type == "multi_label_classification":
        counts = np.stack([(labels == 0).sum(axis=0), (labels == 1).sum(axis=0)])
        weights = counts[0] / np.maximum(counts[1], 1)
    else:
        counts = np.bincount(labels[~np.isnan(labels)].astype(int), minlength=num_outputs)
        weights = counts.sum() / (num_outputs * np.maximum(counts, 1))
    if not counts.all():
        raise UserError("A class has no row in the train part, so it cannot be balanced.")
    return weights.tolist()


def build_training_arguments(
    arguments: FinetuningArguments, checkpoint_dir: Path
) -> RMatTrainingArguments:
    """Return the training arguments of a finetuning run, overridden by `--training-arguments`."""
    overrides = load_json_fields(arguments.training_arguments)
    metrics = {metric.name: metric for metric in list_metrics(arguments.problem_type)}
    metric = str(overrides.get("metric_for_best_model", next(iter(metrics))))
    name = metric.removeprefix("eval_")
    if name != "loss" and name not in metrics:
        raise UserError(
            f"{arguments.training_arguments}: metric_for_best_model is {metric!r}. Choose one of "
            f"{['loss', *metrics]}."
        )
    return build_trainer_arguments(
        RMatTrainingArguments,
        arguments,
        folder=checkpoint_dir,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=2 * arguments.batch_size,
        head_learning_rate=arguments.head_learning_rate,
        ema_decay=arguments.ema_decay,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=name in metrics and metrics[name].greater_is_better,
    )
