"""The model that a finetuning run starts from: architecture, labels, loss weights."""

from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError

from rmat_hf.data.stored_features import read_molecule_descriptors
from rmat_hf.errors import UserError
from rmat_hf.loading import read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training.arguments import (
    SCRATCH,
    SCRATCH_ARCHITECTURE,
    FinetuningArguments,
)
from rmat_hf.training.task import FinetuningTask
from rmat_hf.training.trainer_options import (
    load_architecture_fields,
)

# The head of a regression on a pretrained encoder; docs/finetuning_recipe.md says why.
REGRESSION_HEAD: dict[str, Any] = {
    "num_head_layers": 2,
    "head_hidden_size": 512,
    "head_norm": False,
    "classifier_dropout": 0.3,
}
REGRESSION_HEAD_LEARNING_RATE = 3e-3


def build_finetuning_model(
    arguments: FinetuningArguments, task: FinetuningTask
) -> RMatForSequenceClassification:
    """Return the model to train, with the scaling of labels and descriptors fitted on train.

    Args:
        arguments (`FinetuningArguments`): Model to start from.
        task (`FinetuningTask`): Labels and descriptors.

    Raises:
        ValueError: If the model cannot be loaded or a configuration field is unknown.
    """
    config = build_finetuning_config(arguments, task)
    if arguments.model == SCRATCH:
        model = RMatForSequenceClassification(config)
    else:
        model = _load_model(arguments, config)
    if model.descriptor_scaler is not None:
        descriptors = read_molecule_descriptors(task.select("train")["features"][:])
        model.descriptor_scaler.fit(torch.from_numpy(descriptors))
    return model


def _load_model(
    arguments: FinetuningArguments, config: RMatConfig
) -> RMatForSequenceClassification:
    try:
        checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
        return checkpoint.load_model(RMatForSequenceClassification, config=config)
    except UserError as error:
        if not load_architecture_fields(arguments.model_config):
            raise
        raise UserError(
            f"{error} If {arguments.model_config!r} is to change sizes that the weights of "
            f"{arguments.model!r} have, pass --model scratch to train from random weights."
        ) from error


def build_finetuning_config(arguments: FinetuningArguments, task: FinetuningTask) -> RMatConfig:
    """Return the architecture of the model to start from, with the labels of the task."""
    if arguments.model == SCRATCH:
        fields = SCRATCH_ARCHITECTURE | {"num_node_features": ATOM_FEATURES.num_node_features}
    else:
        checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
        fields = checkpoint.config.get_architecture()
        if has_new_regression_head(arguments):
            fields |= REGRESSION_HEAD
    overrides = load_architecture_fields(arguments.model_config)
    if arguments.dropout is not None:
        overrides["hidden_dropout_prob"] = arguments.dropout
    try:
        return RMatConfig(**(fields | overrides), **_build_label_fields(arguments, task))
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{arguments.model_config!r}: {reason}") from error


def has_new_regression_head(arguments: FinetuningArguments) -> bool:
    """Return whether a regression starts from a trained encoder without a prediction head."""
    if arguments.model == SCRATCH or arguments.problem_type != "regression":
        return False
    config = read_checkpoint(arguments.model, revision=arguments.model_revision).config
    return "RMatForSequenceClassification" not in (config.architectures or [])


def choose_head_learning_rate(arguments: FinetuningArguments) -> float | None:
    """Return the peak learning rate of the head; `None` if it is that of the other weights."""
    if arguments.head_learning_rate is None and has_new_regression_head(arguments):
        return REGRESSION_HEAD_LEARNING_RATE
    return arguments.head_learning_rate


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
        unlabeled = np.flatnonzero(np.isnan(labels).all(axis=0))
        if len(unlabeled):
            raise ValueError(
                f"Label {names[unlabeled[0]]!r} has no value in the train part. "
                "Drop the label, or choose another split."
            )
        # a label that is constant on train is centered and keeps its scale; its computed standard
        # deviation may be a rounding error instead of 0
        is_constant = np.nanmax(labels, axis=0) == np.nanmin(labels, axis=0)
        fields["label_mean"] = np.nanmean(labels, axis=0).tolist()
        fields["label_std"] = np.where(is_constant, 1.0, np.nanstd(labels, axis=0)).tolist()
    elif arguments.problem_type == "single_label_classification":
        fields["label_name"] = arguments.label_columns[0]
    if arguments.class_weighting == "balanced":
        fields["loss_weights"] = compute_balanced_weights(
            labels, problem_type=arguments.problem_type, num_outputs=len(names)
        )
    return fields


def compute_balanced_weights(
    labels: np.ndarray, *, problem_type: str, num_outputs: int
) -> list[float]:
    """Return weights under which rare and frequent classes cost the same.

    Args:
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): Train labels, NaN where missing.
        problem_type (`str`): One of the two classifications.
        num_outputs (`int`): Labels of a multi-label, classes of a single-label classification.

    Returns:
        `list[float]`: negatives per positive for each label, or the weight of each class.

    Raises:
        ValueError: If a class has no row, or the problem is a regression.
    """
    if problem_type == "regression":
        raise ValueError("--class-weighting balanced is for classification. Leave it out.")
    if problem_type == "multi_label_classification":
        counts = np.stack([(labels == 0).sum(axis=0), (labels == 1).sum(axis=0)])
        weights = counts[0] / np.maximum(counts[1], 1)
    else:
        counts = np.bincount(labels[~np.isnan(labels)].astype(int), minlength=num_outputs)
        weights = counts.sum() / (num_outputs * np.maximum(counts, 1))
    if not counts.all():
        raise ValueError("A class has no row in the train part, so it cannot be balanced.")
    return weights.tolist()
