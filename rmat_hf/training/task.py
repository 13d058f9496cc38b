"""The data of a finetuning run: featurized rows, their parts and their labels."""

import logging
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from rmat_hf.data.featurization import choose_cache_dir
from rmat_hf.data.splits.column_splits import TimeColumn
from rmat_hf.data.splits.molecule_splits import assign_folds
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.splits.registry import find_split_options, split_dataset
from rmat_hf.data.training_table import DroppedRow, load_training_table
from rmat_hf.errors import UserError
from rmat_hf.loading import Checkpoint, load_processor, read_checkpoint
from rmat_hf.model.features_rmat import list_molecule_descriptor_names
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import (
    SCRATCH,
    FinetuningArguments,
)

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")
# With fewer rows a metric is luck.
MIN_PART_ROWS = 5
FLOAT32_PRECISION = 1e-5  # of which a label should have a few steps


@dataclass(frozen=True)
class FinetuningTask:
    """Featurized rows, divided into parts, and the processor that featurized them.

    Args:
        dataset (`datasets.Dataset`): Rows of the table with packed features.
        split (`SplitIndices`): Positions in `dataset` of train, valid and test.
        dropped (`list[DroppedRow]`): Rows of the table that are not in `dataset`.
        class_names (`list[str]`, *optional*): Classes of a single-label classification.
        processor (`RMatProcessor`): Saved with the model.
        checkpoint (`Checkpoint`, *optional*): The model to start from; `None` for random weights.
    """

    dataset: Dataset
    split: SplitIndices
    dropped: list[DroppedRow]
    class_names: list[str] | None
    processor: RMatProcessor
    checkpoint: Checkpoint | None

    def select(self, part: str) -> Dataset:
        """Return the rows of train, valid or test."""
        return self.dataset.select(getattr(self.split, part))

    def labels(self, part: str) -> np.ndarray:
        """Return the labels of a part, `(num_rows, num_labels)`, NaN where missing."""
        return np.array(self.select(part)["labels"], dtype=np.float64)


def build_finetuning_task(arguments: FinetuningArguments) -> FinetuningTask:
    """Load, check, featurize and split the training table.

    Raises:
        UserError: If a column is missing, a label cannot be read or a part would be empty.
    """
    checkpoint = None
    if arguments.model != SCRATCH:
        checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
    processor = _build_processor(arguments, checkpoint)
    time_column = TimeColumn(arguments.time_column) if arguments.time_column else None
    loaded = load_training_table(
        arguments.dataset,
        processor,
        smiles_column=arguments.smiles_column,
        label_columns=arguments.label_columns,
        problem_type=arguments.problem_type,
        split_column=time_column or arguments.split_column,
        revision=arguments.dataset_revision,
        conflict_tolerance=arguments.conflict_tolerance,
        num_workers=arguments.num_workers,
        cache_dir=choose_cache_dir(arguments.feature_cache),
        show_progress=True,
    )
    dataset = loaded.dataset
    if arguments.problem_type == "regression":
        _warn_of_doubtful_labels(np.array(dataset["labels"][:], dtype=np.float64), arguments)
    options = find_split_options(arguments)
    split = split_dataset(dataset, arguments.split, seed=arguments.seed, **options)
    if len(split.valid) == 0:
        raise UserError("The valid part is empty, and the best checkpoint is chosen on it.")
    for part in ("valid", "test"):
        if (num_rows := len(getattr(split, part))) < MIN_PART_ROWS:
            logger.warning("%s has %d rows: its metrics say little.", part, num_rows)
    return FinetuningTask(dataset, split, loaded.dropped, loaded.class_names, processor, checkpoint)


def split_for_members(arguments: FinetuningArguments, task: FinetuningTask) -> list[SplitIndices]:
    """Return the parts of every member: those of the task, or its own fold of them.

    With `member_folds`, train and valid together are divided into as many folds as there are
    members, equal molecules into one; a fold is the valid part of one member and train of the
    others. Test is the same for all.

    Raises:
        UserError: If there are fewer molecules than folds.
    """
    if not arguments.member_folds:
        return [task.split] * arguments.num_members
    rows = np.sort(np.concatenate([task.split.train, task.split.valid]))
    smiles = task.dataset["canonical_smiles"][:]
    folds = assign_folds(
        [smiles[row] for row in rows], num_folds=arguments.num_members, seed=arguments.seed
    )
    return [
        SplitIndices(train=rows[folds != idx], valid=rows[folds == idx], test=task.split.test)
        for idx in range(arguments.num_members)
    ]


def _warn_of_doubtful_labels(labels: np.ndarray, arguments: FinetuningArguments) -> None:
    """Warn of yes/no labels, and of those that the model cannot tell apart."""
    if set(labels[~np.isnan(labels)]) <= {0.0, 1.0}:
        logger.warning(
            "The labels are only 0 and 1: for yes/no labels pass --problem-type "
            "multi_label_classification."
        )
    for name, column in zip(arguments.label_columns, labels.T, strict=True):
        if np.nanmax(np.abs(column)) * FLOAT32_PRECISION > np.nanstd(column):
            logger.warning(
                "The values of %r differ by less than the model's 7 digits: subtract what they "
                "have in common.",
                name,
            )


def _build_processor(
    arguments: FinetuningArguments, checkpoint: Checkpoint | None
) -> RMatProcessor:
    """Return the model's processor, or a new one, with the geometry that was asked for."""
    names = ("geometry", "on_conformer_failure")
    options = {name: it for name in names if (it := getattr(arguments, name)) is not None}
    if arguments.molecule_descriptors == "rdkit_2d":
        options["molecule_descriptors"] = list_molecule_descriptor_names()
    elif arguments.molecule_descriptors == "none":
        options["molecule_descriptors"] = None
    if checkpoint is None:
        return RMatProcessor(**options)
    return load_processor(checkpoint.name, revision=checkpoint.revision, **options)
