"""A Trainer whose gradient does not depend on how a batch is cut for gradient accumulation."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers.trainer import Trainer

from rmat_hf.configuration_rmat import RMatConfig


def compute_loss_denominator(labels: torch.Tensor, config: RMatConfig) -> torch.Tensor:
    """Return what the model's loss of these labels is divided by, 0 if none is known.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, num_labels)`): NaN where missing.
        config (`RMatConfig`): Problem type and loss weights.
    """
    known = ~labels.isnan()
    if config.problem_type == "single_label_classification" and config.loss_weights is not None:
        class_weights = torch.tensor(config.loss_weights, device=labels.device)
        return class_weights[labels[known].long()].sum()
    return known.sum()


class FinetuningTrainer(Trainer):
    """Divides the loss by the known labels of all micro-batches and processes of a step.

    `Trainer` itself averages the means of the micro-batches. Where labels are missing these have
    different weights, so that a batch of 16 and four of 4 would train differently.
    """

    loss_is_scaled_for_ga = True

    def get_batch_samples(  # noqa: PLR0917 - the signature of Trainer
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Return the micro-batches of a step and the denominator of their common loss."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        denominators = [self._compute_denominator(batch) for batch in batches]
        total = torch.stack(denominators).sum().to(device)
        return batches, self.accelerator.gather(total).sum()

    def compute_loss(  # noqa: PLR0917 - the signature of Trainer
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the micro-batch's share of the loss of the step; the mean in an evaluation."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        # an evaluation has no steps, and gives no denominator
        if num_items_in_batch is not None:
            total = torch.as_tensor(num_items_in_batch)
            share = self._compute_denominator(inputs) / total.masked_fill(total == 0, 1)
            # the gradients of the processes are averaged, and have to add up
            loss = loss * share * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(
        self, eval_dataset: str | Dataset[Any] | None = None
    ) -> DataLoader[Any]:
        """Return the dataloader of an evaluation, in which every row counts once."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(self._collect_stream(dataset))

    def get_test_dataloader(self, test_dataset: Dataset[Any]) -> DataLoader[Any]:
        """Return the dataloader of a prediction, in which every row counts once."""
        return super().get_test_dataloader(self._collect_stream(test_dataset))

    def _collect_stream(self, dataset: Any) -> Any:
        # Processes cannot share a stream whose length nobody knows without waiting for each other
        # or counting rows twice; one process reads it row by row.
        if self.args.world_size > 1 and isinstance(dataset, IterableDataset):
            return list(dataset)
        return dataset

    def _compute_denominator(self, batch: dict[str, Any]) -> torch.Tensor:
        return compute_loss_denominator(batch["labels"], cast(Any, self.model).config)
