"""What pretraining has learned, summed up batch by batch: any corpus, constant memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from rmat_hf.model.losses_rmat import IGNORED_LABEL
from rmat_hf.training.objectives.pretraining_targets import PretrainingTargets

NUM_WORST_DESCRIPTORS = 10


class PretrainingMetrics:
    """Masked accuracy overall and per element, R² per descriptor, and both losses.

    Args:
        targets (`PretrainingTargets`): What the outputs mean.
    """

    def __init__(self, targets: PretrainingTargets) -> None:
        self.targets = targets
        num_classes = len(targets.vocabulary)
        num_descriptors = len(targets.quantiles.names) if targets.quantiles is not None else 0
        # rows: centers, correct ones, sum of the cross-entropies
        self.contexts = torch.zeros(3, num_classes, dtype=torch.float64)
        # rows: molecules, sum of the labels, of their squares, of the squared errors
        self.descriptors = torch.zeros(4, num_descriptors, dtype=torch.float64)

    @torch.no_grad()
    def update(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, Any]) -> None:
        """Add a batch.

        Args:
            inputs (`Mapping[str, torch.Tensor]`): With `labels`, `descriptor_labels` or both.
            outputs (`Mapping[str, Any]`): Of `RMatForPreTraining`.
        """
        labels = inputs.get("labels")
        if labels is not None:
            is_center = labels != IGNORED_LABEL
            classes = labels[is_center]
            logits = outputs["context_logits"][is_center].float()
            losses = nn.functional.cross_entropy(logits, classes, reduction="none")
            for row, values in enumerate(
                (torch.ones_like(losses), (logits.argmax(-1) == classes).float(), losses)
            ):
                self.contexts[row].index_add_(0, classes.cpu(), values.double().cpu())
        descriptor_labels = inputs.get("descriptor_labels")
        if descriptor_labels is not None:
            known = ~descriptor_labels.isnan()
            values = descriptor_labels.nan_to_num(0.0).double()
            errors = (outputs["descriptor_logits"].double() - values).masked_fill(~known, 0.0)
            sums = (known.double(), values, values**2, errors**2)
            self.descriptors += torch.stack([part.sum(0) for part in sums]).cpu()

    def reduce(self, add_up: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add up the sums of all processes."""
        self.contexts, self.descriptors = add_up(self.contexts), add_up(self.descriptors)

    def compute(self) -> dict[str, Any]:
        """Return the metrics; those of a task without data are left out.

        Returns:
            `dict`: `loss`, `context_loss`, `context_accuracy`, `context_accuracy_by_element`,
            `descriptor_loss`, `descriptor_r2` (mean), `descriptor_r2_median`, `worst_descriptors`
            (name to R²) and the numbers `num_centers` and `num_described_molecules`.
        """
        metrics: dict[str, Any] = {}
        numbers, correct, losses = self.contexts
        if numbers.sum() > 0:
            metrics["context_loss"] = float(losses.sum() / numbers.sum())
            metrics["context_accuracy"] = float(correct.sum() / numbers.sum())
            metrics["context_accuracy_by_element"] = self._compute_accuracy_by_element()
            metrics["num_centers"] = int(numbers.sum())
        known, values, squares, errors = self.descriptors
        if known.sum() > 0:
            metrics["descriptor_loss"] = float(errors.sum() / known.sum())
            variances = squares - values**2 / known.clamp(min=1)
            # a descriptor that hardly varies in these molecules has no meaningful R²
            varies = variances > 1e-6 * known.clamp(min=1)
            r2 = (1 - errors / variances)[varies]
            names = self._list_descriptors(varies)
            if len(r2):
                metrics["descriptor_r2"] = float(r2.mean())
                metrics["descriptor_r2_median"] = float(r2.median())
                worst = r2.argsort()[:NUM_WORST_DESCRIPTORS].tolist()
                metrics["worst_descriptors"] = {names[idx]: float(r2[idx]) for idx in worst}
            metrics["num_described_molecules"] = int(known.max())
        parts = [metrics[name] for name in ("context_loss", "descriptor_loss") if name in metrics]
        return {"loss": sum(parts), **metrics} if parts else {}

    def _compute_accuracy_by_element(self) -> dict[str, float]:
        elements = self.targets.vocabulary.list_elements()
        accuracies = {}
        for element in sorted(set(elements)):
            classes = [idx for idx, other in enumerate(elements) if other == element]
            number, correct, _ = self.contexts[:, classes].sum(1).tolist()
            if number > 0:
                accuracies[element] = correct / number
        return accuracies

    def _list_descriptors(self, varies: torch.Tensor) -> list[str]:
        names = self.targets.quantiles.names if self.targets.quantiles is not None else []
        return [name for name, is_kept in zip(names, varies.tolist(), strict=True) if is_kept]
