"""A Trainer for molecules: missing labels, similar sizes, a rate of the head, averaged weights."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler
from tqdm.auto import tqdm
from transformers.trainer import Trainer
from transformers.trainer_callback import EarlyStoppingCallback, PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput, has_length

from rmat_hf.adapters import is_adapted, save_model
from rmat_hf.data.featurization import find_options, validate_processor
from rmat_hf.data.measurements import (
    BOUNDS_COLUMN,
    COVARIATES_COLUMN,
    WEIGHT_COLUMN,
    pack_labels,
)
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    LengthGroupedSampler,
    compute_length_order,
    has_features,
    read_column,
    read_rows,
)
from rmat_hf.errors import UserError
from rmat_hf.model.losses_rmat import compute_loss_denominator
from rmat_hf.model.processing_rmat import (
    DESCRIPTOR_INPUT,
    LABELS,
    RMatProcessor,
    build_batch,
    find_labels,
    stack_labels,
)
from rmat_hf.output_folder import (
    load_json,
    rotated_by_step,
    save_json,
    train_from_last_checkpoint,
)
from rmat_hf.training.metrics import build_compute_metrics
from rmat_hf.training.model_card import ModelCardCallback
from rmat_hf.training.recipe import RMatTrainingArguments

STAGE_FILE = "stage.json"
MODEL_DIR = "model"

# In the state of a parameter: whichever of the two, average or weight, the model does not hold.
OTHER_VALUE = "moving_average_or_weight"
# In a group of parameters.
IS_AVERAGE_SHOWN = "is_moving_average_shown"
NUM_STEPS = "num_averaged_steps"

# Seconds between two states of the bar in a file, where each is a line of its own.
_FILE_INTERVAL_S = 30.0


class RMatDataCollator:
    """Makes a padded batch of featurized rows, with their labels.

    Rows are those of [`featurize_dataset`], or hold what `RMatProcessor.featurize` returns and
    `labels`, or `label` as a `Trainer` takes it; their other columns are left out. A `Trainer` of
    transformers needs `remove_unused_columns=False` to hand it the former.

    Args:
        processor (`RMatProcessor`): Featurized the rows.

    Raises:
        ValueError: The rows were featurized with other molecule descriptors than the processor's.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatDataCollator, RMatProcessor, featurize_dataset
    >>> processor = RMatProcessor(geometry="bounds")
    >>> table = Dataset.from_dict({"smiles": ["CCO", "CCC"], "dG": [-5.0, 2.0]})
    >>> rows = featurize_dataset(table, processor, label_columns=["dG"])
    >>> batch = RMatDataCollator(processor)(list(rows))
    >>> tuple(batch["node_features"].shape), batch["labels"].tolist()
    ((2, 4, 37), [[-5.0], [2.0]])

    ```
    """

    def __init__(self, processor: RMatProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return model inputs and `labels`, float32, NaN = missing.

        `(batch_size, num_labels)`, or of atoms `(batch_size, num_nodes, num_labels)`; of rows with
        bounds or weights `(batch_size, 3 * num_labels)`, as the loss `"bounded"` takes them.
        """
        if FEATURES_COLUMN not in rows[0]:
            names = {*self.processor.model_input_names, find_labels(rows[0])}
            plain = [{name: it for name, it in row.items() if name in names} for row in rows]
            return dict(self.processor.pad(plain, return_tensors="pt"))
        features = build_batch(read_rows([row[FEATURES_COLUMN] for row in rows]))
        num_descriptors = len(self.processor.molecule_descriptors or [])
        if num_descriptors != features.get("molecule_descriptors", np.empty((0, 0))).shape[1]:
            raise ValueError(
                f"The rows were not featurized with the {num_descriptors} molecule "
                "descriptors of the processor. Featurize them with it."
            )
        if LABELS in rows[0]:
            num_nodes = features["attention_mask"]
            labels = stack_labels(
                [row[LABELS] for row in rows], num_nodes.sum(1) - 1, num_nodes=num_nodes.shape[1]
            )
            features[LABELS] = _pack_measured(labels, rows).astype(np.float32)
        if COVARIATES_COLUMN in rows[0]:
            own = np.array([row[COVARIATES_COLUMN] for row in rows], dtype=np.float32)
            before = features.get(DESCRIPTOR_INPUT, own[:, :0])
            features[DESCRIPTOR_INPUT] = np.concatenate([before, own], axis=1)
        return {name: torch.from_numpy(array) for name, array in features.items()}


def _pack_measured(labels: np.ndarray, rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the labels of rows with their bounds and weights, if they have some."""
    if not {BOUNDS_COLUMN, WEIGHT_COLUMN} & {*rows[0]}:
        return labels
    bounds = np.array([row.get(BOUNDS_COLUMN, np.zeros(labels.shape[1])) for row in rows])
    weights = np.array([row.get(WEIGHT_COLUMN, 1.0) for row in rows])
    return pack_labels(labels, bounds=bounds, weights=weights)


class FeaturizedRows(Dataset[dict[str, Any]]):
    """What the collator reads of featurized rows: features that are views of Arrow, and labels.

    `datasets` makes a Python number of every value instead, at about the cost of the batch itself.

    Args:
        dataset (`datasets.Dataset`): From [`featurize_dataset`].
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.dataset = dataset
        read = (FEATURES_COLUMN, LABELS, BOUNDS_COLUMN, WEIGHT_COLUMN, COVARIATES_COLUMN)
        names = [name for name in read if name in dataset.column_names]
        self._table = dataset.select_columns(names).with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        """Return rows; a dataloader asks for those of a batch at once."""
        table = self._table[rows]
        columns: dict[str, list[Any]] = {FEATURES_COLUMN: read_column(table[FEATURES_COLUMN])}
        columns |= {name: table[name].to_pylist() for name in table.column_names[1:]}
        return [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]


class WeightAverage:
    """The exponential moving average of what an optimizer trains.

    The model holds either the weights, to be trained, or their average, to be evaluated and saved;
    the optimizer's state holds the other. So whatever saves, restores, moves or shards the
    optimizer does the same with the average, and a resumed training has both.

    The decay is `(1 + step) / (10 + step)` until that exceeds `decay`, so that the weights of the
    first steps do not stay in the average.

    Args:
        optimizer (`torch.optim.Optimizer`): Of the weights. Those without a gradient in a step
            are left out of the average of that step.
        decay (`float`): Share of the average that a step keeps, from 0 to below 1.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, decay: float) -> None:
        self._optimizer = optimizer
        self._decay = decay
        optimizer.register_step_post_hook(self._update)

    @torch.no_grad()
    def _update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            step = group.get(NUM_STEPS, 0) + 1
            group[NUM_STEPS] = step
            decay = min(self._decay, (1 + step) / (10 + step))
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                # not before the optimizer's own step, which takes an empty state for a new one
                state = optimizer.state[weight]
                if OTHER_VALUE in state:
                    state[OTHER_VALUE].lerp_(weight, 1 - decay)
                else:
                    state[OTHER_VALUE] = weight.detach().clone()

    @torch.no_grad()
    def show(self, *, is_average: bool) -> None:
        """Let the model hold the average, or else the weights that are trained."""
        for group in self._optimizer.param_groups:
            if group.get(IS_AVERAGE_SHOWN, False) == is_average:
                continue
            group[IS_AVERAGE_SHOWN] = is_average
            for weight in group["params"]:
                # looking a weight up in `state` itself would give it an empty entry
                other = self._optimizer.state.get(weight, {}).get(OTHER_VALUE)
                if other is not None:
                    shown = weight.detach().clone()
                    weight.copy_(other)
                    other.copy_(shown)


class RMatTrainer(Trainer):
    """A Trainer that knows missing labels and the sizes of molecules.

    - It divides the loss by the known labels of all micro-batches and processes of a step.
      `Trainer` itself averages the means of the micro-batches. Where labels are missing these have
      different weights, so that a batch of 16 and four of 4 would train differently.
    - With `train_sampling_strategy="group_by_length"` the batches of training, evaluation and
      prediction have molecules of similar sizes, and predictions come in the order of the rows.
    - The head, which starts untrained, can have a learning rate of its own, and can learn alone
      in the first epochs, or in all of them.
    - A moving average of the weights can be evaluated, saved and kept in place of the weights.
    - Rates, epochs and metric that the arguments leave open are those of the recipe.

    `rmat finetune` trains with it: the same rows, arguments and seed give the same weights.

    Args:
        model ([`RMatForSequenceClassification`]):
            For example from [`load_for_finetuning`], or what `peft.get_peft_model` makes of it:
            then the adapter is saved, with its labels beside it.
        args ([`RMatTrainingArguments`]): By default those of the recipe, whose fields
            `TrainingArguments` lacks.
        data_collator (`Callable`, *optional*):
            Makes a batch of rows. By default [`RMatDataCollator`] of the processor.
        compute_metrics (`Callable`, *optional*):
            By default those of the labels, see [`build_compute_metrics`].
        callbacks (`list`, *optional*): Beside the early stopping of the arguments.
        options: As in [`Trainer`]: `train_dataset`, `eval_dataset` (on which the best epoch is
            chosen), `processing_class` (the [`RMatProcessor`], saved with the model) and others.

    Raises:
        TypeError: `args` are `TrainingArguments`.
        ValueError: There is no `eval_dataset` and the arguments evaluate.
        UserError: The metric that chooses the epoch is undefined on the rows of `eval_dataset`, or
            rows have no labels or were featurized by a processor of another kind than
            `processing_class`.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatTrainer, RMatTrainingArguments
    >>> from rmat_hf import RMatProcessor, featurize_dataset, load_for_finetuning
    >>> table = Dataset.from_dict({"smiles": ["C" * size for size in range(1, 9)], "y": range(8)})
    >>> processor = RMatProcessor(geometry="bounds")
    >>> rows = featurize_dataset(table, processor, label_columns=["y"])
    >>> trainer = RMatTrainer(
    ...     model=load_for_finetuning("rmat-small", rows, label_columns=["y"]),
    ...     args=RMatTrainingArguments(folder, num_train_epochs=2, disable_tqdm=True),
    ...     train_dataset=rows,
    ...     eval_dataset=rows,
    ...     processing_class=processor,
    ... )
    >>> trainer.train().global_step
    2
    >>> sorted(trainer.evaluate())[:3]
    ['epoch', 'eval_loss', 'eval_mae']

    ```
    """

    args: RMatTrainingArguments
    loss_is_scaled_for_ga = True
    _average: WeightAverage | None = None
    _frozen: list[nn.Parameter] = []

    def __init__(
        self,
        model: Any = None,
        args: RMatTrainingArguments | None = None,
        *,
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
        callbacks: list[Any] | None = None,
        **options: Any,
    ) -> None:
        args = RMatTrainingArguments("trainer_output") if args is None else args
        if not isinstance(args, RMatTrainingArguments):
            raise TypeError(
                f"args are {type(args).__name__}. Pass RMatTrainingArguments, which take the same "
                "options, or train with the Trainer of transformers."
            )
        callbacks = list(callbacks or [])
        if args.early_stopping_patience is not None and args.load_best_model_at_end:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        processor = options.get("processing_class")
        if data_collator is None and processor is not None:
            data_collator = RMatDataCollator(processor)
            for name in ("train_dataset", "eval_dataset"):
                _validate_rows(options.get(name), processor, source=name)
        # what the recipe chooses follows from the configuration and the rows
        config = (options["model_init"]() if model is None else model).config
        rows: Any = options.get("train_dataset")
        num_rows = len(rows) if has_length(rows) else 0
        args.choose_defaults(config, num_train_rows=num_rows, has_adapter=is_adapted(model))
        needed = str(args.metric_for_best_model).removeprefix("eval_")
        best_metric = needed if args.load_best_model_at_end else None
        compute_metrics = compute_metrics or build_compute_metrics(config, best_metric=best_metric)
        options |= {"compute_metrics": compute_metrics, "callbacks": callbacks}
        super().__init__(model, args, data_collator, **options)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of [`Trainer`], the weights of the head in groups of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.args.head_learning_rate is not None:
            _separate_head(
                optimizer,
                cast(nn.Module, self.model if model is None else model),
                learning_rate=self.args.head_learning_rate,
            )
        if is_new and self.args.ema_decay:
            self._average = WeightAverage(optimizer, decay=self.args.ema_decay)
        return optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as [`Trainer.train`]; an encoder that did not learn can do so afterwards."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._freeze_encoder(is_frozen=False)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the gradients of a micro-batch, as [`Trainer.training_step`]."""
        if self._average is not None:
            self._average.show(is_average=False)
        self._freeze_encoder(is_frozen=(self.state.epoch or 0) < self.args.num_frozen_epochs)
        return super().training_step(*args, **kwargs)

    def _freeze_encoder(self, *, is_frozen: bool) -> None:
        """Keep the weights of the encoder that learn from learning, or let them learn again."""
        if is_frozen == bool(self._frozen):
            return
        model: Any = self.model
        encoder = (model.get_base_model() if is_adapted(model) else model).base_model
        learning = [weight for weight in encoder.parameters() if weight.requires_grad]
        self._frozen, changed = (learning, learning) if is_frozen else ([], self._frozen)
        for weight in changed:
            weight.requires_grad_(not is_frozen)

    def evaluation_loop(
        self, dataloader: DataLoader[Any], *args: Any, **kwargs: Any
    ) -> EvalLoopOutput:
        """Evaluate the average of the weights if there is one, as [`Trainer.evaluation_loop`].

        Predictions and labels come in the order of the rows.
        """
        self._show_average()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        lengths = self._find_lengths(dataloader.dataset)
        if lengths is None:
            return output
        place = np.argsort(compute_length_order(lengths))
        return output._replace(
            predictions=_select_rows(output.predictions, place),
            label_ids=_select_rows(output.label_ids, place),
        )

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

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self._show_average()
        with rotated_by_step(self, trial=trial):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model = self.accelerator.unwrap_model(cast(nn.Module, self.model))
        if not is_adapted(model):
            super()._save(output_dir, state_dict)
        # peft alone would write a card that names paths, and no labels
        elif self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_model(model, folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def _load_best_model(self) -> None:
        # after this the model holds the best average, and nothing is swapped any more
        self._show_average()
        super()._load_best_model()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of [`Trainer`], unless a [`ModelCardCallback`] has written one."""
        if not any(isinstance(it, ModelCardCallback) for it in self.callback_handler.callbacks):
            super().create_model_card(*args, **kwargs)

    def _show_average(self) -> None:
        if self._average is not None:
            self._average.show(is_average=True)

    def _get_dataloader(self, dataset: Any, *args: Any, **options: Any) -> DataLoader[Any]:
        # Processes cannot share a stream whose length nobody knows without waiting for each other
        # or counting rows twice; one process reads it row by row.
        is_training = options.get("is_training", False)
        if self.args.world_size > 1 and isinstance(dataset, IterableDataset) and not is_training:
            dataset = list(dataset)
        if isinstance(self.data_collator, RMatDataCollator):
            _validate_rows(dataset, self.data_collator.processor, source="The data set")
            is_stored = isinstance(dataset, datasets.Dataset) and has_features(dataset.data.schema)
            # a transform of the user's is asked row by row
            if is_stored and dataset.format["type"] != "custom":
                dataset = FeaturizedRows(dataset)
        return super()._get_dataloader(dataset, *args, **options)

    def _find_lengths(self, dataset: Any) -> list[int] | None:
        """Return the length of every row, if batches are to have rows of similar lengths."""
        rows = dataset.dataset if isinstance(dataset, FeaturizedRows) else dataset
        column = self.args.length_column_name
        is_grouped = self.args.train_sampling_strategy == "group_by_length"
        if not is_grouped or not isinstance(rows, datasets.Dataset):
            return None
        return rows.with_format(None)[column][:] if column in rows.column_names else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = self._find_lengths(dataset)
        if lengths is None:
            return super()._get_train_sampler(train_dataset)
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return LengthGroupedSampler(
            lengths,
            batch_size=self.args.train_batch_size * self.args.gradient_accumulation_steps,
            seed=seed,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # the one of transformers permutes the rows if those of training are grouped
        lengths = self._find_lengths(eval_dataset)
        if lengths is not None:
            return compute_length_order(lengths).tolist()
        return SequentialSampler(eval_dataset) if has_length(eval_dataset) else None

    def _compute_denominator(self, batch: dict[str, Any]) -> torch.Tensor:
        if LABELS not in batch:
            raise UserError(
                "The rows have no labels. Name their column labels, or the columns of the table: "
                "featurize_dataset(table, processor, label_columns=[...])."
            )
        return compute_loss_denominator(batch[LABELS], cast(Any, self.model).config)


def _validate_rows(rows: Any, processor: RMatProcessor, *, source: str) -> None:
    """Raise a `UserError` if rows, or those of a part, have features of another processor."""
    for part in rows.values() if isinstance(rows, dict) else [rows]:
        columns = getattr(part, "features", None)
        if find_options(columns) is not None:
            validate_processor(columns, processor, source=source)


def train_stage(
    trainer: Trainer, folder: Path, *, score: Callable[[], dict[str, Any]] = dict
) -> dict[str, Any]:
    """Train and write the model of a stage, unless an interrupted run has, and return its log."""
    # written last, so a stage that has it is finished
    if not (folder / STAGE_FILE).is_file():
        train_from_last_checkpoint(trainer)
        metrics = score()
        trainer.save_model(str(folder / MODEL_DIR))
        if trainer.is_world_process_zero():
            content = {"metrics": metrics, "log_history": trainer.state.log_history}
            save_json(folder / STAGE_FILE, content)
        trainer.accelerator.wait_for_everyone()
    return load_json(folder / STAGE_FILE)


def _separate_head(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, learning_rate: float
) -> None:
    """Move the weights of the prediction head to groups with another learning rate."""
    named = model.named_parameters()
    head = {id(parameter) for name, parameter in named if "classifier" in name.split(".")}
    for group in list(optimizer.param_groups):
        parameters = [parameter for parameter in group["params"] if id(parameter) in head]
        if parameters:
            group["params"] = [p for p in group["params"] if id(p) not in head]
            optimizer.add_param_group({**group, "params": parameters, "lr": learning_rate})


def _select_rows(values: Any, rows: np.ndarray) -> Any:
    if isinstance(values, tuple):
        return tuple(_select_rows(part, rows) for part in values)
    return None if values is None else values[rows]


class PhaseProgress(ProgressCallback):
    """One bar with rate, time left and the last metric on valid; no losses, no bar of evaluations.

    Args:
        phase: What is done, in front of the bar.
    """

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase = phase

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: PLR0917 - as in transformers
        """Show the bar, from 0 or where a checkpoint was."""
        self.current_step = 0
        if state.is_world_process_zero:
            interval = 0.1 if sys.stderr.isatty() else _FILE_INTERVAL_S
            self.training_bar = tqdm(
                total=state.max_steps, desc=self.phase, unit="step", mininterval=interval
            )

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """Show nothing."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Show nothing."""

    def on_evaluate(  # noqa: PLR0917 - as in transformers
        self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any
    ) -> None:
        """Put the metric that chooses the epoch behind the bar."""
        name = str(args.metric_for_best_model).removeprefix("eval_")
        value = (metrics or {}).get(f"eval_{name}")
        if self.training_bar is not None and value is not None:
            self.training_bar.set_postfix_str(f"valid {name} {value:.3g}", refresh=False)


def show_phase(trainer: Trainer, phase: str) -> None:
    """Let a trainer show one bar in the place of its dictionaries of losses."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(PhaseProgress(phase))
