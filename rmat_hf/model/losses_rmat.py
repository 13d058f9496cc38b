"""What a head learns by, and what its outputs therefore mean: losses, labels, adapters' labels."""

import copy
import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from .configuration_rmat import TASK_FIELDS, RMatConfig
from .trust_rmat import RMatTrust

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

    def scale_labels(
        self, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
    ) -> torch.Tensor:
        """Return arranged labels of a regression as the network learns them."""
        return (labels - mean) / std

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


class RMatHuberLoss(RMatLoss):
    """Half the squared error up to an error of 1, the absolute one beyond: outliers pull less."""

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        errors = nn.functional.huber_loss(logits, labels, reduction="none")
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


# Kinds of a label in an assay: whether a molecule is active, or its value, or a bound of that.
ASSAY_LABEL_KINDS = ("class", "=", "<", ">")


class RMatAssayLoss(RMatLoss):
    """Mean over assays of the mean over their labels, so that a large assay counts no more.

    Labels, `(num_rows, 2 * num_outputs)`, are values, NaN where missing, and then their kinds, the
    index in `ASSAY_LABEL_KINDS`: a class costs its cross-entropy, a value the squared error, and
    a bound this where the output lies beyond it.
    """

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of outputs `(num_labels,)` of known labels `(2, num_labels)`."""
        values, kinds = labels.to(logits.dtype)
        errors = logits - values
        is_bound_met = ((kinds == 2) & (errors < 0)) | ((kinds == 3) & (errors > 0))
        classes = nn.functional.binary_cross_entropy_with_logits(
            logits, values.clamp(0, 1), reduction="none"
        )
        return torch.where(kinds == 0, classes, (errors**2).masked_fill(is_bound_met, 0.0))

    def compute_sums(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the number of labels and the sum of their losses, each by assay."""
        arranged = labels.unflatten(-1, (2, -1)).transpose(0, 1)
        rows, outputs = (~arranged[0].isnan()).nonzero(as_tuple=True)
        losses = self.compute_elements(logits[rows, outputs].float(), arranged[:, rows, outputs])
        parts = torch.stack([torch.ones_like(losses), losses])
        return parts.new_zeros(2, logits.shape[-1]).index_add(1, outputs, parts)

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of outputs `(num_rows, num_outputs)`, 0 if no label is known."""
        numbers, totals = self.compute_sums(logits, labels)
        return (totals / numbers.clamp(min=1)).sum() / (numbers > 0).sum().clamp(min=1)


class RMatBoundedLoss(RMatLoss):
    """Numbers that may be bounds and yes/no labels, each with the weight of its row.

    Labels, `(num_rows, 3 * num_outputs)`, are the least values, then the largest, which are equal
    of what was measured and infinite where there is a bound, then weights; NaN where missing. A
    number costs its squared distance from them, a class the cross-entropy. Labels of one number
    for each output are taken for measured, of weight 1.

    Args:
        types: Of each output `"regression"` or `"multi_label_classification"`; by default numbers.
    """

    def __init__(self, types: tuple[str, ...] = ()) -> None:
        self.is_class = [it != "regression" for it in types]

    def arrange_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return least values, largest values and weights, `(3, num_rows, num_outputs)`."""
        arranged = labels.to(logits.dtype).view(len(logits), -1, logits.shape[-1]).unbind(1)
        low, high, *weights = arranged if len(arranged) == 3 else (*arranged, *arranged)
        return torch.stack((low, high, weights[0] if weights else torch.ones_like(low)))

    def scale_labels(
        self, labels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
    ) -> torch.Tensor:
        return torch.cat((super().scale_labels(labels[:2], mean, std), labels[2:]))

    def compute_elements(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        low, high, row_weights = labels
        losses = (low - logits).clamp_min(0) ** 2 + (logits - high).clamp_min(0) ** 2
        if any(self.is_class):
            is_class = torch.tensor(self.is_class, device=logits.device)
            classes = nn.functional.binary_cross_entropy_with_logits(
                logits, low.clamp(0, 1), pos_weight=weights, reduction="none"
            )
            losses = torch.where(is_class, classes, losses)
        return losses * row_weights

    def compute_denominator(
        self, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sum of the weights of known labels, arranged or as a data set has them."""
        if labels.ndim < 3:
            labels = self.arrange_labels(labels, labels.new_empty(len(labels), len(self.is_class)))
        return labels[2].masked_fill(labels[0].isnan(), 0).sum()

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss of outputs `(num_rows, num_outputs)`, 0 if no label is known."""
        is_missing, denominator = labels[0].isnan(), self.compute_denominator(labels)
        losses = self.compute_elements(logits, labels.masked_fill(is_missing, 0), weights)
        return losses.sum() / denominator.masked_fill(denominator == 0, 1)


def average_log_probabilities(log_probabilities: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the mean over axis 1; no probability underflows on the way."""
    return log_probabilities.logsumexp(1) - math.log(log_probabilities.shape[1])


LOSSES: dict[str, RMatLoss] = {
    "regression": RMatSquaredErrorLoss(),
    "multi_label_classification": RMatBinaryCrossEntropyLoss(),
    "single_label_classification": RMatCrossEntropyLoss(),
    "huber": RMatHuberLoss(),
    "assays": RMatAssayLoss(),
    "bounded": RMatBoundedLoss(),
}
# Each has the loss of its name, unless the configuration names another.
PROBLEM_TYPES = ("regression", "multi_label_classification", "single_label_classification")


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
    loss: RMatLoss = choose(LOSSES, config.loss or problem_type)
    # CODEPATH: models finetuned on bounds, with weights of rows, or on numbers and classes.
    return RMatBoundedLoss(config.types) if isinstance(loss, RMatBoundedLoss) else loss


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


def compute_label_loss(
    config: RMatConfig,
    head_output: torch.Tensor,
    labels: torch.Tensor,
    is_labeled: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of a head's output, as `compute_loss` of [`RMatPredictor`]."""
    loss, rows = choose_loss(config, labels), head_output.flatten(0, -2)
    labels = loss.arrange_labels(labels, rows)
    if is_labeled is not None:
        is_unknown = ~is_labeled.reshape(-1, *[1] * (labels.ndim - 1))
        labels = labels.to(rows.dtype).masked_fill(is_unknown, torch.nan)
    # CODEPATH: every regression finetuned here; not the authors' converted checkpoints.
    if config.label_mean is not None:
        labels = loss.scale_labels(labels, *build_label_scaling(config, rows))
    return loss(rows, labels, build_loss_weights(config, rows))


def build_label_scaling(
    config: RMatConfig, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of the labels as tensors like the given one."""
    return like.new_tensor(config.label_mean), like.new_tensor(config.label_std)


def restore_labels(outputs: torch.Tensor, config: RMatConfig) -> torch.Tensor:
    """Return the outputs of a head `(..., num_outputs)` as logits: of a regression, in its units.

    Of a class among numbers it is the probability: the outputs of a model of both are what users
    read, and an ensemble's mean is that of them.
    """
    # CODEPATH: as in `compute_label_loss`.
    if config.label_mean is not None:
        mean, std = build_label_scaling(config, outputs)
        outputs = outputs * std + mean
    # CODEPATH: models finetuned with `--class-columns`.
    if config.label_types is not None:
        outputs = torch.where(find_classes(config, outputs), outputs.sigmoid(), outputs)
    return outputs


def restore_variances(
    variances: torch.Tensor, logits: torch.Tensor, *, config: RMatConfig
) -> torch.Tensor:
    """Return the variances of the outputs of a head as those of its logits."""
    # CODEPATH: as in `compute_label_loss`.
    if config.label_mean is not None:
        variances = variances * build_label_scaling(config, variances)[1] ** 2
    # CODEPATH: models finetuned with `--class-columns`: of a label that is 0 or 1.
    if config.label_types is not None:
        variances = torch.where(find_classes(config, logits), logits * (1 - logits), variances)
    return variances


def find_classes(config: RMatConfig, like: torch.Tensor) -> torch.Tensor:
    """Return True for each output that is a class, on the device of the given tensor."""
    return torch.tensor([it != "regression" for it in config.types], device=like.device)


def compute_spread(member_logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return the population standard deviation of probabilities or values over axis 1, members."""
    return compute_probabilities(member_logits, problem_type).std(1, correction=0)


# An adapter brings a head and labels of its own, which stand in the `config.json` beside it.

HEAD_FIELDS = (
    *(*TASK_FIELDS, "id2label", "label2id", "problem_type"),
    *("num_head_layers", "head_hidden_size", "head_norm", "classifier_dropout"),
)
# Files of transformers that print a table of weights that are missing.
_REPORTERS = ("modeling_utils", "integrations.peft")


class RMatAdapterMixin:
    """What loading an adapter of peft changes in a model: its layers, and its head and labels."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as [`PreTrainedModel.from_pretrained`], of an adapter's folder with it."""
        parent: Any = super()
        folder = str(pretrained_model_name_or_path)
        path = os.path.join(folder, ADAPTER_CONFIG_NAME)
        if not os.path.isfile(path) or _has_weights(folder):
            # the Auto classes give the base of an adapter on the Hub, which lacks its head
            adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path", folder)
            with without_loading_report() if str(adapter) != folder else nullcontext():
                return parent.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        with open(path, encoding="utf-8") as file:
            base = json.load(file)["base_model_name_or_path"]
        options = {"config": kwargs.pop("config", None) or RMatConfig.from_pretrained(folder)}
        wants_info = kwargs.pop("output_loading_info", False)
        name, known = (
            kwargs.pop("adapter_name", None),
            dict(kwargs.pop("adapter_kwargs", None) or {}),
        )
        known.pop("_adapter_model_path", None)
        # the head that the base lacks is that of the adapter
        with without_loading_report():
            options["ignore_mismatched_sizes"] = True
            model = parent.from_pretrained(
                resolve_base(base, folder=folder), *args, **{**kwargs, **options}
            )
        loaded = model.load_adapter(folder, name, adapter_kwargs=known)
        return (model, loaded.to_dict()) if wants_info else model

    def load_adapter(
        self: Any, peft_model_id: Any = None, adapter_name: Any = None, *args: Any, **options: Any
    ) -> Any:
        """Load an adapter with its head and labels, and use it.

        As [`PeftAdapterMixin.load_adapter`]. [`set_adapter`] changes to another one.

        Raises:
            ValueError: The adapter needs molecule descriptors that the model has no scaling of.
        """
        config = _load_adapter_config(peft_model_id, options.get("adapter_kwargs") or {})
        if config is not None:
            self._fit_head(config)
        parent: Any = super()
        # transformers calls the weights of other adapters missing
        with without_loading_report():
            loaded = parent.load_adapter(peft_model_id, adapter_name, *args, **options)
        name = adapter_name or "default"
        missing = {it for it in loaded.missing_keys if f".{name}." in it}
        if misfits := missing | {*loaded.unexpected_keys}:
            logging.getLogger(__name__).warning(
                "%d weights of the adapter %s, as %s, are missing or fit no module of the model.",
                *(len(misfits), peft_model_id, min(misfits)),
            )
        if config is not None:
            known = self.__dict__.setdefault("adapter_configs", {})
            known[name] = config
            # peft would use the new head with the layers of the adapter before
            self.set_adapter(name)
        return loaded

    # Its name is that of transformers. trf-ignore: TRF033
    def set_adapter(self: Any, adapter_name: Any) -> None:
        """Use another adapter, with its head and labels, as [`PeftAdapterMixin.set_adapter`]."""
        parent: Any = super()
        parent.set_adapter(adapter_name)
        self._use_labels(adapter_name)

    def _fit_head(self: Any, config: RMatConfig) -> None:
        """Give the model a head that the weights of an adapter fit."""
        head = getattr(self, "classifier", None)
        if head is None:
            return
        if config.num_molecule_descriptors != self.config.num_molecule_descriptors:
            raise ValueError(
                f"The adapter has {config.num_molecule_descriptors} molecule descriptors, the "
                f"model {self.config.num_molecule_descriptors}. Load it with a model of its own."
            )
        new = self.build_head(config).to(device=self.device, dtype=self.dtype)
        self._replace_part("classifier", new)
        # CODEPATH: adapters finetuned with `--trust fingerprints` or `--trust centers`.
        if config.trust is not None:
            trust = RMatTrust(config, vector_size=self.rmat.pooler.output_size)
            self._replace_part("trust_head", trust.to(self.device))

    def _replace_part(self: Any, name: str, new: nn.Module) -> None:
        """Give the model another part, unless its own one has the same shapes and labels."""
        part = getattr(self, name)
        is_wrapped = hasattr(part, "original_module")
        old = part.original_module if is_wrapped else part
        states = [[] if it is None else [*it.state_dict().values()] for it in (new, old)]
        first, second = ([(it.shape, it.dtype) for it in state] for state in states)
        # of trust, what no shape tells: buffers are as long as the label with most rows needs
        names = ("kind", "num_rows", "is_regression", "is_single_label")
        facts = [[getattr(it, name, None) for name in names] for it in (new, old)]
        if first == second and facts[0] == facts[1]:
            return
        if is_wrapped:
            part.original_module = new
        else:
            setattr(self, name, new)

    def _use_labels(self: Any, adapter_name: Any) -> None:
        """Take the labels of an adapter, if it has any, for those of the model."""
        config = self.__dict__.get("adapter_configs", {}).get(str(adapter_name))
        if config is None or not hasattr(self, "classifier"):
            return
        self.config = copy.copy(self.config)
        for name in HEAD_FIELDS:
            setattr(self.config, name, getattr(config, name))
        self.num_labels = len(config.output_names)
        self.meaning = choose(LOSSES, config.problem_type or "regression")


@contextmanager
def without_loading_report() -> Iterator[None]:
    """Keep transformers from its table of weights that are missing."""
    loggers = [logging.getLogger(f"transformers.{it}") for it in _REPORTERS]

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    # not its level: a high one makes transformers check, and report, a plan for parallel tensors
    for logger in loggers:
        logger.addFilter(is_error)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_error)


def resolve_base(base: str, *, folder: str) -> str:
    """Return the folder of an adapter's base model, or the name itself if it is on the Hub.

    That is a folder relative to the adapter's, or one of a model that comes with the package.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for path in (os.path.join(folder, base), os.path.join(package, "checkpoints", base)):
        if base and os.path.isdir(path):
            return os.path.abspath(path)
    return base


def _has_weights(folder: str) -> bool:
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def _load_adapter_config(name: Any, options: dict[str, Any]) -> RMatConfig | None:
    """Return the configuration beside an adapter, unless that stands in a whole model's folder."""
    if name is None or _has_weights(str(name)):
        return None
    known = {it: options[it] for it in ("revision", "token", "cache_dir") if it in options}
    path = cached_file(name, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **known)
    return None if path is None else RMatConfig.from_pretrained(path)


__all__ = [
    "ASSAY_LABEL_KINDS",
    "LOSSES",
    "PROBLEM_TYPES",
    "RMatAdapterMixin",
    "RMatLoss",
    "choose",
    "choose_loss",
    "compute_label_loss",
    "compute_probabilities",
    "compute_spread",
    "find_classes",
    "restore_labels",
    "restore_variances",
]
