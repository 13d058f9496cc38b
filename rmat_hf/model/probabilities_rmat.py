"""What the output of a head means: values, probabilities, and how members of an ensemble differ."""

import torch
from torch import nn


def compute_probabilities(logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return what a user reads off the head's output.

    Args:
        logits (`torch.Tensor` of shape `(..., num_labels)`): Output of the head.
        problem_type (`str`, *optional*): That of the config; `None` is a regression.

    Returns:
        `torch.Tensor` of the same shape, float64: softmax or sigmoid for a classification, the
        value itself, in the units of the labels, for a regression.
    """
    logits = logits.double()
    if problem_type == "single_label_classification":
        return logits.softmax(-1)
    return logits.sigmoid() if problem_type == "multi_label_classification" else logits


def average_logits(member_logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return the logits of the mean prediction.

    Args:
        member_logits (`torch.Tensor` of shape `(batch_size, num_members, num_labels)`):
            Values for a regression, logits for a classification, whose probabilities are averaged.
        problem_type (`str`, *optional*): That of the config; `None` is a regression.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)`.
    """
    if problem_type == "single_label_classification":
        return _average_log(member_logits.log_softmax(-1))
    if problem_type == "multi_label_classification":
        positive = _average_log(nn.functional.logsigmoid(member_logits))
        return positive - _average_log(nn.functional.logsigmoid(-member_logits))
    return member_logits.mean(1)


def compute_spread(member_logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return how far the members disagree: the standard deviation of their predictions.

    Args:
        member_logits, problem_type: As in [`average_logits`].

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels)`, float64: population standard deviation,
        of values in the user's units or of probabilities.
    """
    return compute_probabilities(member_logits, problem_type).std(1, correction=0)


def _average_log(log_probabilities: torch.Tensor) -> torch.Tensor:
    # no member's probability underflows on the way
    return log_probabilities.logsumexp(1) - torch.tensor(log_probabilities.shape[1]).log()


__all__ = ["average_logits", "compute_probabilities", "compute_spread"]
