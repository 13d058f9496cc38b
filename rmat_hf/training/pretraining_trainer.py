"""A Trainer that takes whole batches of a featurized corpus, from a table or a stream.

To `Trainer` and accelerate a batch is one item, so that every process gets whole batches, each has
its own number of molecules, and no molecule comes twice in an epoch.
"""

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self, cast

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info
from transformers.trainer import Trainer
from transformers.trainer_callback import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from rmat_hf.data.assay_labels import LABEL_FIELDS
from rmat_hf.data.featurization import LENGTH_COLUMN
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    expand_features,
    group_by_length,
    pack_column,
    pack_features,
    read_rows,
)
from rmat_hf.errors import UserError
from rmat_hf.loading import load_processor
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import rotated_by_step
from rmat_hf.training.objectives import load_objectives, save_objectives
from rmat_hf.training.objectives.objective import Objective, ObjectiveBatch
from rmat_hf.training.pretraining_arguments import PretrainingArguments

# Rows of a stream that are shuffled and grouped together.
STREAM_BUFFER_SIZE = 8192
STREAM_CHUNK_SIZE = 1024
# What objectives read beside the features.
READ_FIELDS = pa.schema([("smiles", pa.string()), *LABEL_FIELDS])
_PACKED, _LENGTH = pa.field(FEATURES_COLUMN, pa.binary()), pa.field(LENGTH_COLUMN, pa.int32())
# Keeps the draw of the roles apart from others of the same molecule and epoch.
ROLE_DRAW = 1


class PretrainingBatch(NamedTuple):
    """The packed molecules of one batch, and the epoch: masks are drawn anew in every one.

    `columns` has what else objectives read of these molecules.
    """

    epoch: int
    features: list[bytes]
    columns: Mapping[str, Sequence[Any]] = {}


def form_batches(
    num_nodes: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    max_pairs: int,
    multiple: int,
    generator: np.random.Generator,
) -> list[np.ndarray]:
    """Divide molecules into batches of equal or similar sizes in a random order.

    The number of batches follows from the sizes alone. It is a multiple of `multiple`, that many
    beside each other have similar sizes, so that processes that take turns are busy equally long;
    where there are too few molecules for that, the smallest come together, whatever the limits.

    Args:
        max_pairs (`int`): Most pairs of nodes of a batch, padding included, unless a single
            molecule has more.
    """
    sizes = np.asarray(num_nodes)
    if len(sizes) < multiple:
        raise UserError(
            f"{len(sizes)} molecules are too few for {multiple} processes with a batch each. "
            "Use fewer processes and workers, or a larger corpus."
        )
    order = generator.permutation(len(sizes))
    groups = group_by_length(sizes[order], batch_size=batch_size, max_pairs=max_pairs)
    batches = [order[group] for group in groups]
    num_batches = -(-len(batches) // multiple) * multiple
    if num_batches > len(sizes):
        num_batches -= multiple
    while len(batches) < num_batches:
        largest = max(range(len(batches)), key=lambda idx: len(batches[idx]))
        batches[largest : largest + 1] = np.array_split(batches[largest], 2)
    while len(batches) > num_batches:
        batches[-2:] = [np.concatenate(batches[-2:])]
    rounds = generator.permutation(len(batches) // multiple)
    return [batches[turn * multiple + idx] for turn in rounds for idx in range(multiple)]


class CorpusBatches(Dataset[PretrainingBatch]):
    """A table of molecules that is asked for whole batches, see [`CorpusBatchSampler`].

    Args:
        dataset (`datasets.Dataset`):
            With the columns `features`, `num_nodes` and those that objectives read.
        seed (`int`): The order follows from it and the epoch, so that a resumed run repeats it.
        limits (`int`): `batch_size`, `max_pairs` and `multiple` of [`form_batches`].
    """

    def __init__(self, dataset: datasets.Dataset, *, seed: int, **limits: int) -> None:
        names = [name for name in dataset.column_names if name != LENGTH_COLUMN]
        self.dataset = dataset.select_columns(names).with_format("arrow")
        self.num_nodes = np.asarray(dataset["num_nodes"][:])
        self.seed = seed
        self.limits = limits

    def __len__(self) -> int:
        """Return the number of molecules."""
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, list[int]]) -> PretrainingBatch:
        """Return the molecules of an epoch and rows."""
        epoch, rows = key
        table = self.dataset[rows]
        columns = {name: table[name].to_pylist() for name in table.column_names}
        del columns[FEATURES_COLUMN]
        return PretrainingBatch(epoch, pack_column(table[FEATURES_COLUMN]), columns)

    def form_epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the rows of every batch of an epoch, equally many in all of them."""
        generator = np.random.default_rng((self.seed, epoch))
        return form_batches(self.num_nodes, generator=generator, **self.limits)


class CorpusBatchSampler(Sampler[tuple[int, list[int]]]):
    """The batches of an epoch, each of which is one item of a dataloader."""

    def __init__(self, corpus: CorpusBatches) -> None:
        self.corpus = corpus
        self.epoch = 0
        self.num_batches = len(corpus.form_epoch(0))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        for rows in self.corpus.form_epoch(self.epoch):
            yield self.epoch, rows.tolist()


def pack_stream(
    dataset: datasets.IterableDataset, columns: Sequence[str] = ()
) -> datasets.IterableDataset:
    """Return the rows of a stream with `num_nodes`, and `features` as from `pack_features`.

    The stream itself would make a Python number of every value.
    """
    fields = pa.schema([_PACKED, _LENGTH, *map(READ_FIELDS.field, columns)])
    return (
        dataset.select_columns(fields.names)
        .with_format("arrow")
        .map(
            partial(_pack_table, schema=fields),
            batched=True,
            batch_size=STREAM_CHUNK_SIZE,
            features=datasets.Features.from_arrow_schema(fields),
        )
        .with_format(None)
    )


def _pack_table(table: pa.Table, *, schema: pa.Schema) -> pa.Table:
    packed = pa.array(pack_column(table[FEATURES_COLUMN]), pa.binary())
    columns = {name: table[name] for name in schema.names} | {FEATURES_COLUMN: packed}
    return pa.table(columns).cast(schema)


class StreamedBatches(IterableDataset[PretrainingBatch]):
    """The batches of a stream, epoch after epoch without an end, grouped by size within a buffer.

    Every process, and every worker of a dataloader, reads the whole stream and keeps its share of
    the batches. So all have equally many, and each molecule comes once, without a word between
    them. An epoch takes the shards in another order and mixes the rows of a buffer, not those of
    distant shards: shuffle a sorted table before it is featurized.

    It repeats itself because `Trainer` does not know how many batches a stream has: it would resume
    in the first epoch wherever a run was interrupted, and lose the gradients of batches that make
    no whole step.

    Args:
        dataset (`datasets.IterableDataset`): From [`pack_stream`].
        seed, limits: As in [`CorpusBatches`]; `multiple` processes share the batches.
        num_skipped (`int`): Batches of every process that come without molecules, because `Trainer`
            drops them when it resumes.
        buffer_size (`int`): Rows of the buffer.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        *,
        multiple: int,
        seed: int,
        num_skipped: int = 0,
        buffer_size: int = STREAM_BUFFER_SIZE,
        **limits: int,
    ) -> None:
        self.dataset = dataset
        self.limits = limits
        self.multiple = multiple
        self.seed = seed
        self.num_skipped = num_skipped
        self.buffer_size = buffer_size

    def __iter__(self) -> Iterator[PretrainingBatch]:
        worker_idx, num_workers = _find_worker()
        num_dropped = -(-(self.num_skipped - worker_idx) // num_workers) * self.multiple
        batches = chain.from_iterable(map(self.iterate_epoch, count()))
        for position, batch in enumerate(batches):
            yield batch if position >= num_dropped else PretrainingBatch(batch.epoch, [])

    def iterate_epoch(self, epoch: int) -> Iterator[PretrainingBatch]:
        """Yield the share of this worker in the batches of an epoch."""
        worker_idx, num_workers = _find_worker()
        multiple = num_workers * self.multiple
        generator = np.random.default_rng((self.seed, epoch))
        position = 0
        for rows in self._iterate_buffers(epoch, min_rows=multiple):
            num_nodes, features = rows.pop(LENGTH_COLUMN), rows.pop(FEATURES_COLUMN)
            batches = form_batches(num_nodes, multiple=multiple, generator=generator, **self.limits)
            for batch in batches:
                # a dataloader takes one batch of every worker in turn
                if position % num_workers == worker_idx:
                    columns = {name: [its[row] for row in batch] for name, its in rows.items()}
                    yield PretrainingBatch(epoch, [features[row] for row in batch], columns)
                position += 1

    def _iterate_buffers(self, epoch: int, *, min_rows: int) -> Iterator[dict[str, list[Any]]]:
        """Yield rows, as columns, in buffers; the last has at least `min_rows` if there are."""
        rows: dict[str, list[Any]] = {}
        size = self.buffer_size
        # The buffer shuffles the rows. Mixing those of several shards takes thrice as long, and a
        # pause of 5 seconds in every epoch.
        # A data set keeps its epoch in memory that it shares with the workers, each of which may
        # be in another epoch: so everyone shuffles its own.
        dataset = self.dataset.shuffle(seed=self.seed, buffer_size=1, max_buffer_input_shards=1)
        dataset.set_epoch(epoch)
        # unlike the iterator over rows, this one does not divide the shards between the workers
        for chunk in dataset.iter(batch_size=STREAM_CHUNK_SIZE):
            rows = {name: rows.get(name, []) + values for name, values in chunk.items()}
            while len(rows[FEATURES_COLUMN]) >= size + min_rows:
                yield {name: values[:size] for name, values in rows.items()}
                rows = {name: values[size:] for name, values in rows.items()}
        if rows:
            yield rows


def _find_worker() -> tuple[int, int]:
    worker = get_worker_info()
    return (worker.id, worker.num_workers) if worker else (0, 1)


def _choose_masking(**options: Any) -> PretrainingArguments:
    return PretrainingArguments(corpus="none", output_dir="none", **options)


@dataclass
class RMatDataCollatorForPreTraining:
    """Makes a padded batch of featurized rows, hides what is to be found, and adds the labels.

    Where some objectives hide a part of the molecules and others do not, a molecule is masked with
    a chance of one half and asked for the ones, else it is whole, as it is in finetuning, and asked
    for the others.

    Args:
        objectives (`Mapping[str, Objective]`):
            What is learned, by name: those of a model with [`from_pretrained`], or fitted to a
            corpus by `OBJECTIVES[name].fit`.
        processor ([`RMatProcessor`]): Featurized the rows.
        arguments ([`PretrainingArguments`], *optional*):
            Those of a run, of which `seed`, `mask_ratio` (share of atoms, 0.15) and
            `masked_distances` are read.

    Raises:
        ValueError: The rows lack the descriptors that an objective asks for.
        KeyError: They lack a column that an objective reads, as `smiles`.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatDataCollatorForPreTraining, RMatForPreTraining
    >>> from rmat_hf import checkpoint_path, featurize_dataset
    >>> collator = RMatDataCollatorForPreTraining.from_pretrained("rmat-small", mask_ratio=0.2)
    >>> table = Dataset.from_dict({"smiles": ["CCO", "c1ccccc1"]})
    >>> batch = collator(list(featurize_dataset(table, collator.processor)))
    >>> batch["context_labels"].shape  # (batch_size, num_nodes)
    torch.Size([2, 7])
    >>> batch["descriptor_labels"].shape  # (batch_size, number of descriptors)
    torch.Size([2, 215])
    >>> RMatForPreTraining.from_pretrained(checkpoint_path("rmat-small"))(**batch).loss.ndim
    0

    ```
    """

    objectives: Mapping[str, Objective]
    _: KW_ONLY
    processor: RMatProcessor
    arguments: PretrainingArguments = field(default_factory=_choose_masking)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, revision: str | None = None, **options: Any
    ) -> Self:
        """Return the collator of a pretrained model, whose processor computes what it asks for.

        Args:
            model (`str` or `Path`): Folder, Hub id, or a name of [`list_checkpoints`].
            revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
            options: `seed`, `mask_ratio` and `masked_distances` of `rmat pretrain`.

        Raises:
            UserError: The model was not pretrained here, or an option is out of bounds.
        """
        objectives = load_objectives(model, revision=revision)
        names = [name for it in objectives.values() for name in it.list_descriptors()]
        processor = load_processor(model, revision=revision, molecule_descriptors=names or None)
        return cls(objectives, processor=processor, arguments=_choose_masking(**options))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `pretraining_targets.json`, which tells what the outputs of a model mean."""
        save_objectives(folder, self.objectives)

    def __call__(
        self, batches: Sequence[PretrainingBatch] | Sequence[Mapping[str, Any]]
    ) -> dict[str, torch.Tensor]:
        """Return model inputs, and the labels of every head, see [`RMatForPreTraining`].

        Args:
            batches (`Sequence`):
                Rows of [`featurize_dataset`], which are masked anew whenever they come, or the
                items of [`CorpusBatches`], which are masked by their epoch.
        """
        formed = [it for it in batches if isinstance(it, PretrainingBatch)]
        packed = [molecule for batch in formed for molecule in batch.features]
        read = {name for objective in self.objectives.values() for name in objective.columns}
        sources = [batch.columns for batch in formed]
        if not formed:
            rows = [cast("Mapping[str, Any]", row) for row in batches]
            packed = list(map(pack_features, read_rows([row[FEATURES_COLUMN] for row in rows])))
            sources = [{name: [row[name]] for name in read} for row in rows]
        if not packed:  # a batch that a resumed run skips
            return {}
        columns = {name: [it for source in sources for it in source[name]] for name in read}
        # a row knows no epoch
        epochs = {batch.epoch for batch in formed} or {int(torch.randint(2**31, ()))}
        seed = (self.arguments.seed, *epochs)
        is_masked = self._draw_roles(packed, seed=(*seed, ROLE_DRAW))
        inputs = expand_features(packed)
        if self.processor.molecule_descriptors and "molecule_descriptors" not in inputs:
            raise ValueError(
                "The rows have no molecule descriptors to learn. Featurize them with the "
                "processor of the collator."
            )
        labels: dict[str, np.ndarray] = {}
        hidden: dict[str, np.ndarray] = {}
        for objective in self.objectives.values():
            is_asked = is_masked if objective.hides_input else ~is_masked
            labels[f"{objective.head}_labels"], changed = objective.prepare(
                ObjectiveBatch(
                    packed, inputs, is_asked, seed, self.processor, self.arguments, columns
                )
            )
            hidden |= changed
        inputs.pop("molecule_descriptors", None)
        arrays = {**inputs, **hidden, **labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _draw_roles(self, packed: list[bytes], *, seed: tuple[int, ...]) -> np.ndarray:
        # a molecule's draw depends on the seed and itself alone
        kinds = {objective.hides_input for objective in self.objectives.values()}
        if len(kinds) == 1:
            return np.full(len(packed), kinds.pop())
        generators = [np.random.default_rng([*seed, zlib.crc32(molecule)]) for molecule in packed]
        return np.array([generator.random() < 0.5 for generator in generators])


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
        weights (`Mapping[str, float]`, *optional*): Of their losses, by default 1.
        options: As in [`Trainer`].
    """

    def __init__(
        self,
        *,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.objectives = objectives
        self.weights = {it.head: weights.get(name, 1.0) for name, it in objectives.items()}
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
        """Return the weighted loss, and note down its parts, without weights, for the log."""
        outputs = model(**inputs)
        parts = [self.weights[head] * loss for head, loss in outputs["losses"].items()]
        loss = torch.stack(parts).sum()
        if model.training:
            for head, part in outputs["losses"].items():
                name = f"{head}_loss"
                self._sums[name] = self._sums.get(name, part.new_zeros(())) + part.detach()
            self._num_batches += 1
            self._num_molecules += len(inputs["node_features"])
        return (loss, outputs) if return_outputs else loss

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

    def compute_report(self) -> dict[str, Any]:
        """Return the metrics of valid, also those that are tables."""
        self.evaluate()
        return self.last_report

    def evaluation_loop(
        self, dataloader: DataLoader[Any], *args: Any, **options: Any
    ) -> EvalLoopOutput:
        """Return the metrics that are numbers; `last_report` has the tables too."""
        model = cast(nn.Module, self.model)
        was_training = model.training
        model.eval()
        sums: dict[str, torch.Tensor] = {}
        for inputs in dataloader:
            prepared = cast("dict[str, Any]", self._prepare_inputs(inputs))
            with torch.no_grad(), self.compute_loss_context_manager():
                logits = model(**prepared)["logits"]
            for name, objective in self.objectives.items():
                labels = prepared[f"{objective.head}_labels"]
                added = objective.compute_sums(logits[objective.head], labels=labels)
                sums[name] = added + sums.get(name, 0)
        model.train(was_training)
        self.last_report = {"loss": 0.0}
        for name, objective in self.objectives.items():
            of_all = self.accelerator.reduce(sums[name].to(self.args.device), "sum").cpu()
            metrics = objective.compute_metrics(of_all)
            loss = metrics.get(f"{objective.head}_loss", 0.0)
            self.last_report["loss"] += self.weights[objective.head] * loss
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
