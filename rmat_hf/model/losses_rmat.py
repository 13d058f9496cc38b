"""What a head learns by, and what its outputs therefore mean: losses, and values for users."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from .configuration_rmat import RMatConfig

# A class index that is no label.
IGNORED_LABEL = -100


# A new loss is a class and a line of `LOSSES`.


class RMatLoss(ABC):
    """Mean of a loss over the labels that are known; the others, NaN, cost nothing."""

    # Whether users read probabilities off the outputs, and not values in units of their own.
    is_probability = False

    def arrange_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return labels as a data set has them in the shape and type that the loss takes."""
        return labels.to(logits.dtype).view_as(logits)

    def find_known(self, labels: torch.Tensor) -> torch.Tensor:
        """Return True where there is a label."""
        return ~labels.isnan()

    @abstractmethod
    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the loss of every label, before any mean; `weights` has one for each output."""

    def compute_denominator(
        self, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what the sum over the labels is divided by, 0 if none is known."""
        return self.find_known(labels).sum()

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of outputs `(num_rows, num_outputs)`, 0 if no label is known."""
        known, denominator = self.find_known(labels), self.compute_denominator(labels, weights)
        losses = self.compute_elements(logits, labels.masked_fill(~known, 0), weights)
        total = losses.masked_fill(~known, 0.0).sum()
        return total / denominator.masked_fill(denominator == 0, 1)

    def compute_values(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what a user reads off the outputs."""
        return logits

    def average_logits(self, member_logits: torch.Tensor) -> torch.Tensor:
        """Return the outputs of the mean prediction; members are axis 1."""
        return member_logits.mean(1)


class RMatSquaredErrorLoss(RMatLoss):
    """Squared error of standardized values; `weights` multiply that of each label."""

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        errors = (logits - labels) ** 2
        return errors if weights is None else errors * weights


class RMatBinaryCrossEntropyLoss(RMatLoss):
    """Labels 0 and 1, each with a sigmoid; `weights` are those of the positive rows."""

    is_probability = True

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weights, reduction="none"
        )

    def compute_values(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def average_logits(self, member_logits: torch.Tensor) -> torch.Tensor:
        positive = average_log_probabilities(nn.functional.logsigmoid(member_logits))
        return positive - average_log_probabilities(nn.functional.logsigmoid(-member_logits))


class RMatCrossEntropyLoss(RMatLoss):
    """One class index a row, NaN or -100 where there is none; `weights` are those of classes."""

    is_probability = True

    def arrange_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return labels.flatten()

    def find_known(self, labels: torch.Tensor) -> torch.Tensor:
        return ~(labels.isnan() | (labels == IGNORED_LABEL))

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels.long(), weight=weights, reduction="none")

    def compute_denominator(
        self, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        known = self.find_known(labels)
        if weights is None:
            return known.sum()
        return weights[labels.masked_fill(~known, 0).long()].masked_fill(~known, 0.0).sum()

    def compute_values(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1)

    def average_logits(self, member_logits: torch.Tensor) -> torch.Tensor:
        return average_log_probabilities(member_logits.log_softmax(-1))


def average_log_probabilities(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean over axis 1; no probability underflows on the way."""
    return log_probabilities.logsumexp(1) - math.log(log_probabilities.shape[1])


LOSSES: dict[str, RMatLoss] = {
    "regression": RMatSquaredErrorLoss(),
    "multi_label_classification": RMatBinaryCrossEntropyLoss(),
    "single_label_classification": RMatCrossEntropyLoss(),
}
# Each problem type has the loss of its name, unless the configuration names another.
PROBLEM_TYPES = tuple(LOSSES)


def choose(registry: dict[str, Any], name: str) -> Any:
    """Return the member of a registry with this name, or raise a `ValueError` that lists all."""
    if name not in registry:
        raise ValueError(f"{name!r} is unknown. Choose one of {', '.join(registry)}.")
    return registry[name]


def choose_loss(config: RMatConfig, labels: torch.Tensor) -> RMatLoss:
    """Return the loss of a configuration; without a problem type by the rule of transformers."""
    problem_type = config.problem_type
    if problem_type is None:
        is_class = not labels.is_floating_point()
        problem_type = "single_label_classification" if is_class else "multi_label_classification"
        # CODEPATH: models configured by hand; finetuning and conversion name the problem type.
        problem_type = "regression" if len(config.output_names) == 1 else problem_type
    return choose(LOSSES, config.loss or problem_type)


def compute_loss_denominator(labels: torch.Tensor, config: RMatConfig) -> torch.Tensor:
    """Return what a model's loss of these labels is divided by, 0 if none is known."""
    weights = build_loss_weights(config, labels.float())
    return choose_loss(config, labels).compute_denominator(labels, weights)


def build_loss_weights(config: RMatConfig, like: torch.Tensor) -> torch.Tensor | None:
    """Return the weights of the loss as a tensor like the given one, if there are any."""
    # CODEPATH: models finetuned with `--class-weighting balanced`.
    return None if config.loss_weights is None else like.new_tensor(config.loss_weights)


def compute_probabilities(logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return probabilities, or values in the labels' units, of the same shape, in float64.

    A problem type of `None` is a regression.
    """
    return LOSSES[problem_type or "regression"].compute_values(logits.double())


def compute_spread(member_logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return the population standard deviation of probabilities or values over axis 1, members."""
    return compute_probabilities(member_logits, problem_type).std(1, correction=0)


__all__ = [
    "LOSSES",
    "PROBLEM_TYPES",
    "RMatLoss",
    "choose",
    "choose_loss",
    "compute_probabilities",
    "compute_spread",
]
