"""Losses in which a missing label costs nothing: NaN, or -100 for class indices."""

from collections.abc import Callable

import torch
from torch import nn

IGNORED_LABEL = -100


def compute_regression_loss(
    predictions: torch.Tensor,
    labels: torch.Tensor,
    *,
    label_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean squared error over the labels that are not NaN; 0 if all are.

    Args:
        predictions (`torch.Tensor` of shape `(batch_size, num_labels)`): Standardized predictions.
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`): Standardized, NaN = missing.
        label_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*): Weight of each label.
    """
    known = ~labels.isnan()
    errors = (predictions - labels.masked_fill(~known, 0.0)) ** 2
    if label_weights is not None:
        errors = errors * label_weights
    return errors.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)


def compute_multi_label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    positive_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the binary cross-entropy over the labels that are not NaN; 0 if all are.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Before the sigmoid.
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`): 0 or 1, NaN = missing.
        positive_weights (`torch.Tensor` of shape `(num_labels,)`, *optional*):
            Weight of the positive rows of each label.
    """
    known = ~labels.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, labels.masked_fill(~known, 0.0), pos_weight=positive_weights, reduction="none"
    )
    return losses.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)


def compute_single_label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the cross-entropy over the rows with a label; 0 if there is none.

    Args:
        logits (`torch.Tensor` of shape `(num_rows, num_classes)`): Before the softmax.
        labels (`torch.Tensor` of shape `(num_rows,)`): Class indices; NaN or -100 = missing.
        class_weights (`torch.Tensor` of shape `(num_classes,)`, *optional*): Weight of each class.
    """
    labels = labels.nan_to_num(IGNORED_LABEL).long()
    losses = nn.functional.cross_entropy(
        logits, labels, weight=class_weights, ignore_index=IGNORED_LABEL, reduction="none"
    )
    weights = torch.ones_like(logits[0]) if class_weights is None else class_weights
    row_weights = weights[labels.clamp(min=0)].masked_fill(labels == IGNORED_LABEL, 0.0)
    total_weight = row_weights.sum()
    return losses.sum() / total_weight.masked_fill(total_weight == 0.0, 1.0)


# By problem type: what each makes of outputs `(num_rows, num_outputs)` and their labels.
LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "regression": compute_regression_loss,
    "multi_label_classification": compute_multi_label_loss,
    "single_label_classification": compute_single_label_loss,
}

__all__ = [
    "IGNORED_LABEL",
    "LOSSES",
    "compute_multi_label_loss",
    "compute_regression_loss",
    "compute_single_label_loss",
]
