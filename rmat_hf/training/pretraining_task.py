"""A corpus → molecules to train on, molecules held out, and what is learned of them."""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from transformers.utils.hub import cached_file

from rmat_hf.data.corpus import load_corpus
from rmat_hf.data.stored_features import read_molecule_descriptors
from rmat_hf.loading import find_checkpoint
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import SCRATCH
from rmat_hf.training.objectives.atom_contexts import AtomContextVocabulary
from rmat_hf.training.objectives.descriptor_quantiles import DescriptorQuantiles
from rmat_hf.training.objectives.pretraining_targets import (
    TARGETS_FILE,
    PretrainingTargets,
    count_atom_contexts,
)
from rmat_hf.training.pretraining_arguments import PretrainingArguments

logger = logging.getLogger(__name__)

# Molecules from which vocabulary and quantiles are made, evenly spaced over a table, the first
# ones of a stream.
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
        targets (`PretrainingTargets`): Contexts, and descriptors where the corpus has some.
    """

    train: datasets.Dataset | datasets.IterableDataset
    valid: datasets.Dataset
    processor: RMatProcessor
    targets: PretrainingTargets


def build_pretraining_task(arguments: PretrainingArguments) -> PretrainingTask:
    """Load and divide the corpus; build targets, or take those of the model to continue from.

    A molecule is held out by a checksum of its features: whatever stands beside it, in a table and
    in a stream.

    Raises:
        ValueError: If the corpus cannot be read or has too few molecules, or descriptors are to be
            learned and it has none.
    """
    corpus = load_corpus(
        arguments.corpus, revision=arguments.corpus_revision, streaming=arguments.streaming
    )
    has_descriptors = bool(corpus.processor.molecule_descriptors)
    if arguments.objective != "contexts" and not has_descriptors:
        raise ValueError(
            f"{arguments.corpus!r} has no molecule descriptors to learn. Featurize it with "
            "--molecule-descriptors rdkit_2d, or pass --objective contexts."
        )
    columns = ["features", "num_nodes"]
    train: datasets.Dataset | datasets.IterableDataset
    if isinstance(corpus.dataset, datasets.IterableDataset):
        train, valid = _split_stream(
            corpus.dataset.select_columns(columns), fraction=arguments.valid_fraction
        )
        sample = _read_first_molecules(train)
        if not sample:
            raise ValueError(
                "No molecule of the stream is in the train part. "
                f"Lower --valid-fraction {arguments.valid_fraction}."
            )
    else:
        train, valid = _split_table(
            corpus.dataset.select_columns(columns), fraction=arguments.valid_fraction
        )
        rows = np.linspace(0, len(train) - 1, min(len(train), MAX_MOLECULES_COUNTED)).astype(int)
        sample = train[np.unique(rows)]["features"]
    targets = _load_targets(arguments)
    if targets is None or (targets.quantiles is None and has_descriptors):
        targets = _build_targets(
            sample, arguments=arguments, processor=corpus.processor, known=targets
        )
    return PretrainingTask(train, valid, corpus.processor, targets)


def is_held_out(features: bytes, fraction: float) -> bool:
    """Return whether a molecule belongs to the valid part.

    Args:
        features (`bytes`): Packed.
        fraction (`float`): Share of the molecules that do.
    """
    return zlib.crc32(features) < fraction * 2**32


def _is_trained_on(features: bytes, fraction: float) -> bool:
    return not is_held_out(features, fraction)


def _split_table(
    dataset: datasets.Dataset, *, fraction: float
) -> tuple[datasets.Dataset, datasets.Dataset]:
    held_out = np.concatenate(
        [
            [is_held_out(features, fraction) for features in chunk["features"]]
            for chunk in dataset.iter(batch_size=_CHUNK_SIZE)
        ]
    )
    for part, number in (("train", (~held_out).sum()), ("valid", held_out.sum())):
        if number == 0:
            raise ValueError(
                f"None of the {len(dataset)} molecules of the corpus is in the {part} part with "
                f"--valid-fraction {fraction}. Choose another one, for example 0.1."
            )
    return dataset.select(np.flatnonzero(~held_out)), dataset.select(np.flatnonzero(held_out))


def _split_stream(
    dataset: datasets.IterableDataset, *, fraction: float
) -> tuple[datasets.IterableDataset, datasets.Dataset]:
    rows = dataset.take(int(MAX_STREAMED_VALID / fraction))
    valid = [row for row in rows if is_held_out(row["features"], fraction)]
    if not valid:
        raise ValueError(
            "No molecule at the beginning of the stream is in the valid part. "
            f"Raise --valid-fraction {fraction}."
        )
    train = dataset.filter(
        _is_trained_on, input_columns=["features"], fn_kwargs={"fraction": fraction}
    )
    features = datasets.Features(
        {"features": datasets.Value("large_binary"), "num_nodes": datasets.Value("int32")}
    )
    return train, datasets.Dataset.from_list(valid, features=features)


def _read_first_molecules(dataset: datasets.IterableDataset) -> list[bytes]:
    return [row["features"] for row in dataset.take(MAX_MOLECULES_COUNTED)]


def _load_targets(arguments: PretrainingArguments) -> PretrainingTargets | None:
    """Return the targets of the model to continue from, `None` if it has none."""
    if arguments.model == SCRATCH:
        return None
    path = cached_file(
        find_checkpoint(arguments.model),
        TARGETS_FILE,
        revision=arguments.model_revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is None:
        logger.warning(
            "%s has no %s: its heads start untrained, for the contexts of this corpus.",
            arguments.model,
            TARGETS_FILE,
        )
        return None
    return PretrainingTargets.load(Path(path).parent)


def _build_targets(
    sample: Sequence[bytes],
    *,
    arguments: PretrainingArguments,
    processor: RMatProcessor,
    known: PretrainingTargets | None,
) -> PretrainingTargets:
    if known is not None:
        vocabulary = known.vocabulary
    else:
        vocabulary = AtomContextVocabulary.build(
            count_atom_contexts(sample), min_count=arguments.min_context_count
        )
    quantiles = None
    if processor.molecule_descriptors:
        quantiles = DescriptorQuantiles.fit(
            read_molecule_descriptors(sample),
            names=processor.molecule_descriptors,
            seed=arguments.seed,
        )
    return PretrainingTargets(vocabulary, quantiles)
