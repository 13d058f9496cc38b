"""A corpus → molecules to train on, molecules held out, and what is learned of them."""

import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from transformers.utils.hub import cached_file

from rmat_hf.data.corpus import load_corpus
from rmat_hf.errors import UserError
from rmat_hf.loading import find_checkpoint
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import SCRATCH
from rmat_hf.training.objectives import OBJECTIVES, TARGETS_FILE, load_objectives
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining_arguments import PretrainingArguments

logger = logging.getLogger(__name__)

# Molecules to which objectives are fitted, evenly spaced over a table, the first ones of a stream.
MAX_MOLECULES_COUNTED = 100_000
# Held out of a stream: as many of its first molecules as this times 1 / valid_fraction hold.
MAX_STREAMED_VALID = 2048
_CHUNK_SIZE = 4096


@dataclass(frozen=True)
class PretrainingTask:
    """What there is to learn.

    Args:
        train (`datasets.Dataset` or `datasets.IterableDataset`): With `features`, `num_nodes`.
        valid (`datasets.Dataset`): Molecules held out.
        processor (`RMatProcessor`): Featurized both.
        objectives (`dict[str, Objective]`):
            By name, in the order of the registry: those of the run and of the model before it.
    """

    train: datasets.Dataset | datasets.IterableDataset
    valid: datasets.Dataset
    processor: RMatProcessor
    objectives: dict[str, Objective]


def build_pretraining_task(arguments: PretrainingArguments) -> PretrainingTask:
    """Load and divide the corpus; fit objectives, or take those of the model to continue from.

    A molecule is held out by a checksum of its features: whatever stands beside it, in a table and
    in a stream.
    """
    corpus = load_corpus(
        arguments.corpus, revision=arguments.corpus_revision, streaming=arguments.streaming
    )
    dataset = corpus.dataset.select_columns(["features", "num_nodes"])
    train: datasets.Dataset | datasets.IterableDataset
    if isinstance(dataset, datasets.IterableDataset):
        train, valid = _split_stream(dataset, fraction=arguments.valid_fraction)
        sample = [row["features"] for row in train.take(MAX_MOLECULES_COUNTED)]
    else:
        train, valid = _split_table(dataset, fraction=arguments.valid_fraction)
        rows = np.linspace(0, len(train) - 1, min(len(train), MAX_MOLECULES_COUNTED)).astype(int)
        sample = train[np.unique(rows)]["features"]
    for part, is_empty in (("train", not sample), ("valid", not len(valid))):
        if is_empty:
            raise UserError(
                f"No molecule of {arguments.corpus!r} (of a stream: of its beginning) is in the "
                f"{part} part with --valid-fraction {arguments.valid_fraction}. Choose another "
                "one, for example 0.1, or give more molecules."
            )
    objectives = _load_objectives(arguments)
    for name in {name for stage in arguments.stages.values() for name in stage}:
        if name in objectives:
            objectives[name].validate_corpus(corpus.processor)
        else:
            objectives[name] = OBJECTIVES[name].fit(
                sample, processor=corpus.processor, arguments=arguments
            )
    ordered = {name: objectives[name] for name in OBJECTIVES if name in objectives}
    return PretrainingTask(train, valid, corpus.processor, ordered)


def is_held_out(features: bytes, fraction: float) -> bool:
    """Return whether a packed molecule is one of the share of molecules that are valid."""
    return zlib.crc32(features) < fraction * 2**32


def _is_trained_on(features: bytes, fraction: float) -> bool:
    return not is_held_out(features, fraction)


def _split_table(
    dataset: datasets.Dataset, *, fraction: float
) -> tuple[datasets.Dataset, datasets.Dataset]:
    held_out = [
        is_held_out(features, fraction)
        for chunk in dataset.iter(batch_size=_CHUNK_SIZE)
        for features in chunk["features"]
    ]
    valid, train = np.flatnonzero(held_out), np.flatnonzero(~np.array(held_out))
    return dataset.select(train), dataset.select(valid)


def _split_stream(
    dataset: datasets.IterableDataset, *, fraction: float
) -> tuple[datasets.IterableDataset, datasets.Dataset]:
    rows = dataset.take(int(MAX_STREAMED_VALID / fraction))
    valid = [row for row in rows if is_held_out(row["features"], fraction)]
    train = dataset.filter(
        _is_trained_on, input_columns=["features"], fn_kwargs={"fraction": fraction}
    )
    columns = {name: [row[name] for row in valid] for name in ("features", "num_nodes")}
    return train, datasets.Dataset.from_dict(columns)


def _load_objectives(arguments: PretrainingArguments) -> dict[str, Objective]:
    """Return the objectives of the model to continue from; none if it has none."""
    if arguments.model == SCRATCH:
        return {}
    path = cached_file(
        find_checkpoint(arguments.model),
        TARGETS_FILE,
        revision=arguments.model_revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is not None:
        return load_objectives(Path(path).parent)
    logger.warning(
        "%s has no %s: its heads start untrained, for this corpus.", arguments.model, TARGETS_FILE
    )
    return {}
