"""A Trainer that takes whole batches of a corpus and reports on every objective."""

import time
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from rmat_hf.output_folder import rotated_by_step
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining_batches import CorpusBatchSampler


class EpochCallback(TrainerCallback):
    """Tells the sampler which epoch begins.

    When two processes resume within an epoch, `Trainer` and accelerate tell it to nobody.
    """

    def on_epoch_begin(self, args: Any, state: Any, *control: Any, **parts: Any) -> None:
        """Set the epoch of the dataloader from which those of a resumed run are made."""
        parts["train_dataloader"].set_epoch(int(state.epoch or 0))


class PretrainingTrainer(Trainer):
    """A Trainer whose batches are items of its data sets, `CorpusBatches` or `StreamedBatches`.

    - Batches of a table are formed under a budget of pairs, anew in every epoch.
    - The log has the loss of every objective and the molecules per second of all processes.
    - An evaluation adds up what the metrics need, so its memory does not grow.

    Args:
        objectives (`Mapping[str, Objective]`): What is learned at once, by name.
        options: As in [`Trainer`].
    """

    def __init__(self, *, objectives: Mapping[str, Objective], **options: Any) -> None:
        super().__init__(**options)
        self.objectives = objectives
        self.last_report: dict[str, Any] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._num_batches = 0
        self._num_molecules = 0
        self._logged_at = time.monotonic()
        self.add_callback(EpochCallback())

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        with rotated_by_step(self, trial=trial):
            super()._save_checkpoint(model, trial)

    def _get_train_sampler(self, train_dataset: Any = None) -> CorpusBatchSampler:
        return CorpusBatchSampler(cast(Any, self.train_dataset))

    def _get_eval_sampler(self, eval_dataset: Any) -> CorpusBatchSampler:
        return CorpusBatchSampler(eval_dataset)

    def compute_loss(  # noqa: PLR0917 - the signature of Trainer
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss, and note down its parts for the log."""
        outputs = model(**inputs)
        if model.training:
            for head, loss in outputs["losses"].items():
                name = f"{head}_loss"
                self._sums[name] = self._sums.get(name, loss.new_zeros(())) + loss.detach()
            self._num_batches += 1
            self._num_molecules += len(inputs["node_features"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the parts of the training loss and the molecules per second since the last."""
        if "loss" in logs and self._num_batches:
            now = time.monotonic()
            for name, total in self._sums.items():
                logs[name] = round(float(total) / self._num_batches, 4)
            rate = self._num_molecules * self.args.world_size / (now - self._logged_at)
            logs["molecules_per_second"] = round(rate, 1)
            self._sums.clear()
            self._num_batches = self._num_molecules = 0
            self._logged_at = now
        super().log(logs, start_time)

    def evaluation_loop(
        self, dataloader: DataLoader[Any], *args: Any, **options: Any
    ) -> EvalLoopOutput:
        """Return the metrics that are numbers; `last_report` has the tables too."""
        model = cast(nn.Module, self.model)
        was_training = model.training
        model.eval()
        sums = {name: objective.build_sums() for name, objective in self.objectives.items()}
        for inputs in dataloader:
            prepared = cast("dict[str, Any]", self._prepare_inputs(inputs))
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = model(**prepared)["logits"]
            for name, objective in self.objectives.items():
                labels = prepared[f"{objective.head}_labels"]
                objective.add_to_sums(sums[name], logits[objective.head], labels=labels)
        model.train(was_training)
        self.last_report = {"loss": 0.0}
        for name, objective in self.objectives.items():
            of_all = self.accelerator.reduce(sums[name].to(self.args.device), "sum").cpu()
            metrics = objective.compute_metrics(of_all)
            self.last_report["loss"] += metrics.get(f"{objective.head}_loss", 0.0)
            self.last_report |= metrics
        numbers = {
            f"{options['metric_key_prefix']}_{name}": value
            for name, value in self.last_report.items()
            if isinstance(value, int | float)
        }
        return EvalLoopOutput(
            predictions=cast(Any, ()),
            label_ids=None,
            metrics=numbers,
            num_samples=self.num_examples(dataloader),
        )
