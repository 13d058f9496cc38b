"""What a finetuning run starts from and how it trains: the choices of docs/finetuning_recipe.md."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import ClassLabel, Dataset
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

from rmat_hf.adapters import DEFAULT_RANK, PEFT_METHODS, add_adapter
from rmat_hf.data.featurization import LENGTH_COLUMN, choose_cache_dir
from rmat_hf.data.labels import LISTS, flatten_labels, has_atom_labels
from rmat_hf.data.measurements import LabelOptions, read_covariates, read_exact_labels
from rmat_hf.data.splits.column_splits import TimeColumn
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.splits.registry import can_carve, find_split_options, split_into_folds, split_rows
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    pack_dataset,
    read_molecule_descriptors,
)
from rmat_hf.data.training_table import DroppedRow, Rows, load_training_table
from rmat_hf.errors import UserError
from rmat_hf.loading import Checkpoint, load_processor, read_checkpoint
from rmat_hf.model.configuration_rmat import FOREST_FINGERPRINT, RMatConfig
from rmat_hf.model.covariates_rmat import count_covariates
from rmat_hf.model.features_rmat import FINGERPRINTS, list_molecule_descriptor_names
from rmat_hf.model.losses_rmat import choose
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatForTokenClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import (
    RECIPES,
    REGRESSION_HEAD,
    SCRATCH,
    SCRATCH_ARCHITECTURE,
    STACKS,
    ClassWeighting,
    FinetuningArguments,
    build_config,
    build_trainer_arguments,
    load_json_fields,
)
from rmat_hf.training.metrics import METRICS, list_metrics

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")
# Into which train and valid are divided to predict each row without it and its like.
NUM_FOLDS = 5
# With fewer rows a metric is luck.
MIN_PART_ROWS = 5
# For classes, for which that of a regression was no better.
CLASS_HEAD: dict[str, Any] = {
    "head_hidden_size": 128,
    "head_norm": True,
    "classifier_dropout": None,
}
REGRESSION_HEAD_LEARNING_RATE = 3e-3
# Peak learning rate by whether training starts from random weights.
DEFAULT_LEARNING_RATES = {True: 5e-4, False: 3e-4}
ADAPTER_LEARNING_RATE = 3e-3
DEFAULT_NUM_EPOCHS = 60
# From a trained model, by whether the problem is a regression.
FINETUNING_EPOCHS = {True: 40, False: 10}
LEAST_FINETUNING_STEPS = 500
# Flags that a recipe sets → the fields of the training arguments.
RECIPE_FLAGS = {
    **{name: name for name in ("learning_rate", "head_learning_rate", "num_train_epochs")},
    **{name: name for name in ("noam_factor", "weight_decay", "ema_decay")},
    "batch_size": "per_device_train_batch_size",
    "warmup_ratio": "warmup_steps",
}


@dataclass(frozen=True)
class FinetuningTask:
    """Featurized rows, divided into parts, and the processor that featurized them.

    `class_names` are of a single-label classification; without `checkpoint` weights are random.
    With a `peft_config` an adapter is trained. `notes` say what was done with labels. Members have
    the parts of `member_splits`, if there are some.
    """

    dataset: Dataset
    split: SplitIndices
    dropped: list[DroppedRow]
    class_names: list[str] | None
    processor: RMatProcessor
    checkpoint: Checkpoint | None
    peft_config: Any = None
    notes: list[str] = field(default_factory=list)
    member_splits: Sequence[SplitIndices] = ()

    def select(self, part: str) -> Dataset:
        """Return the rows of train, valid or test."""
        return self.dataset.select(getattr(self.split, part))

    def labels(self, part: str) -> np.ndarray:
        """Return the measured labels of a part, `(num_rows, num_labels)`, NaN where missing."""
        return read_exact_labels(self.select(part))

    @property
    def num_dropped(self) -> int:
        """How many rows were left out, without those that were merged into others."""
        return sum(not it.is_merged for it in self.dropped)


def build_finetuning_task(
    arguments: FinetuningArguments, rows: Rows | None = None, *, peft_config: Any = None
) -> FinetuningTask:
    """Load, check, featurize and split the training table, or rows in memory."""
    checkpoint = None
    if arguments.model != SCRATCH:
        checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
    if peft_config is not None and (arguments.peft is not None or arguments.head != "network"):
        raise UserError("peft_config excludes peft, and every head but network. Pass one of them.")
    if arguments.peft is not None:
        peft_config = PEFT_METHODS[arguments.peft](arguments.peft_rank or DEFAULT_RANK)
    if peft_config is not None and (checkpoint is None or checkpoint.adapter is not None):
        raise UserError(
            f"{arguments.model!r} is no base model of an adapter. Name a model with weights of its "
            "own, such as rmat-small; an adapter can be merged with merge_and_unload() of peft."
        )
    processor = build_finetuning_processor(arguments, checkpoint)
    time_column = TimeColumn(arguments.time_column) if arguments.time_column else None
    loaded = load_training_table(
        arguments.dataset if rows is None else rows,
        processor,
        smiles_column=arguments.smiles_column,
        label_columns=arguments.label_columns,
        problem_type=arguments.problem_type,
        level=arguments.level,
        split_column=time_column or arguments.split_column,
        group_column=arguments.group_column,
        revision=arguments.dataset_revision,
        conflict_tolerance=arguments.conflict_tolerance,
        label_options=arguments.label_options,
        num_workers=arguments.num_workers,
        cache_dir=choose_cache_dir(arguments.feature_cache),
        show_progress=True,
    )
    dataset = loaded.dataset
    labels = flatten_labels(dataset["labels"][:])
    if arguments.problem_type == "regression" and set(labels[~np.isnan(labels)]) <= {0.0, 1.0}:
        logger.warning(
            "The labels are only 0 and 1: for yes/no labels pass --problem-type "
            "multi_label_classification."
        )
    options = find_split_options(arguments)
    # parts that come with the data set hold for every family that can divide train once more
    if "split" in dataset.column_names and can_carve(arguments.split):
        options["split_column"] = arguments.split_column or "split"
    split = split_rows(dataset, arguments.split, seed=arguments.seed, **options)
    if len(split.valid) == 0:
        raise UserError("The valid part is empty, and the best checkpoint is chosen on it.")
    for part in ("valid", "test"):
        if (num_rows := len(getattr(split, part))) < MIN_PART_ROWS:
            logger.warning("%s has %d rows: its metrics say little.", part, num_rows)
    known = (loaded.dropped, loaded.class_names, processor, checkpoint, peft_config, loaded.notes)
    return FinetuningTask(dataset, split, *known)


def split_for_members(arguments: FinetuningArguments, task: FinetuningTask) -> list[SplitIndices]:
    """Return the parts of every member: those of the task, or its own fold of train and valid.

    A fold is valid of one member and train of the others.
    """
    if task.member_splits or not arguments.member_folds:
        return [*task.member_splits] or [task.split] * arguments.num_members
    rows, folds = fold_known_rows(arguments, task, num_folds=arguments.num_members)
    if (found := 1 + folds.max()) < arguments.num_members:
        raise UserError(
            f"Train and valid have {found} folds of what --split {arguments.split} keeps together, "
            f"too few for {arguments.num_members} members. Take fewer, or another split."
        )
    return hold_folds_out(rows, folds, test=task.split.test)


def hold_folds_out(rows: np.ndarray, folds: np.ndarray, *, test: np.ndarray) -> list[SplitIndices]:
    """Return for each fold the parts of which it is valid, and the others are train."""
    return [
        SplitIndices(train=rows[folds != fold], valid=rows[folds == fold], test=test)
        for fold in range(1 + folds.max())
    ]


def fold_known_rows(
    arguments: FinetuningArguments, task: FinetuningTask, *, num_folds: int = NUM_FOLDS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of train and valid, and the fold of each, of the family of `--split`.

    Everything that is chosen or calibrated on predictions of rows held out takes these folds.
    """
    rows = np.sort(np.concatenate([task.split.train, task.split.valid]))
    known, options = task.dataset.select(rows), find_split_options(arguments)
    folds = split_into_folds(
        known, arguments.split, most_folds=num_folds, seed=arguments.seed, **options
    )
    if not folds.any():
        folds = split_into_folds(known, most_folds=num_folds, seed=arguments.seed)
        note = (
            f"train and valid are one group of the {arguments.split} split: the folds are of "
            "molecules at random, and what they say holds for molecules of this group"
        )
        if note not in task.notes:
            task.notes.append(note)
    return rows, folds


def build_finetuning_processor(
    arguments: FinetuningArguments, checkpoint: Checkpoint | None
) -> RMatProcessor:
    """Return the model's processor, or a new one, with the geometry that was asked for."""
    names = ("geometry", "on_conformer_failure")
    options = {name: it for name in names if (it := getattr(arguments, name)) is not None}
    if arguments.molecule_descriptors == "rdkit_2d":
        options["molecule_descriptors"] = list_molecule_descriptor_names()
    elif arguments.molecule_descriptors == "none" or arguments.level == "atom":
        options["molecule_descriptors"] = None
    if arguments.standardize:
        options["standardize"] = arguments.standardize
    options["fingerprints"] = None
    if arguments.head != "network":
        has_forest = arguments.head in STACKS
        counted = [name for name in arguments.kernel_features if name in FINGERPRINTS]
        counted = list(dict.fromkeys([*counted, *[FOREST_FINGERPRINT] * has_forest]))
        described = has_forest or "descriptors" in arguments.kernel_features
        options["fingerprints"] = counted or None
        options["molecule_descriptors"] = list_molecule_descriptor_names() if described else None
    if checkpoint is None:
        return RMatProcessor(**options)
    return load_processor(checkpoint.name, revision=checkpoint.revision, **options)


@dataclass
class RMatTrainingArguments(TrainingArguments):
    """The training arguments of transformers with the recipe of `rmat finetune` as their defaults.

    Rates, epochs and metric that are `None` are chosen by [`RMatTrainer`], by what the model's
    labels are, whether its encoder and its head are trained, and how many rows there are
    (`docs/finetuning_recipe.md`). What is given is taken.

    Args:
        output_dir (`str`): Folder of the checkpoints.
        recipe (`str`, *optional*, defaults to `"rmat"`):
            A name in `RECIPES`; `"authors"` has the defaults of the authors' code: Noam's schedule
            with a fifth of warm-up, 100 epochs, batches of 16, Adam, no moving average and no rate
            of the head, and keeps the last epoch.
        noam_factor (`float`, *optional*):
            Without a `learning_rate` its peak is `noam_factor / sqrt(hidden_size * warm-up steps)`.
            5e-3 in the recipe of the authors: 100 times their nominal rate, the one value that
            they tuned, from 1e-6 to 1e-3.
        learning_rate (`float`, *optional*):
            Peak rate of AdamW. 3e-4 for a pretrained encoder, 5e-4 for random weights, 3e-3 for an
            adapter.
        head_learning_rate (`float`, *optional*):
            Peak rate of the prediction head. 3e-3 for the untrained head of a regression on a
            pretrained encoder, else that of the rest.
        num_train_epochs (`float`, *optional*):
            From a pretrained encoder 40, for classes 10, or the 500 steps that few rows need, at
            most 60; from random weights 60.
        ema_decay (`float`, *optional*, defaults to 0.99):
            Decay per step of the moving average of the weights, which is evaluated and saved; 0
            for none.
        num_frozen_epochs (`float`, *optional*, defaults to 0):
            First epochs in which the encoder stays as it is and the head alone learns; `math.inf`
            for all of them.
        early_stopping_patience (`int`, *optional*, defaults to 30):
            Evaluations without a better metric, then training stops; `None` for never.
        metric_for_best_model (`str`, *optional*):
            `"rmse"` for a regression, `"roc_auc"` for classes, or another one of `METRICS`.
        kwargs: Other fields of [`~transformers.TrainingArguments`].

    Raises:
        ValueError: Fields contradict each other, as `TrainingArguments` says.

    Example:
    ```python
    >>> from rmat_hf import RMatTrainingArguments
    >>> args = RMatTrainingArguments("runs/by_hand", num_train_epochs=20)
    >>> args.ema_decay, args.per_device_train_batch_size, args.lr_scheduler_type.value
    (0.99, 32, 'cosine')

    ```
    """

    # the types are those of transformers, which knows no choice to be made later
    recipe: str = "rmat"
    noam_factor: float | None = None
    learning_rate: float = cast(Any, None)
    head_learning_rate: float | None = None
    num_train_epochs: float = cast(Any, None)
    ema_decay: float = cast(Any, None)
    num_frozen_epochs: float = 0.0
    early_stopping_patience: int | None = 30
    per_device_train_batch_size: int = cast(Any, None)
    per_device_eval_batch_size: int = 64
    weight_decay: float = cast(Any, None)
    warmup_steps: float = cast(Any, None)
    lr_scheduler_type: str = cast(Any, None)
    seed: int = 0
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    logging_strategy: str = "epoch"
    save_total_limit: int | None = 1
    load_best_model_at_end: bool = cast(Any, None)
    report_to: None | str | list[str] = "none"  # noqa: RUF036 - as `HfArgumentParser` needs it
    # the collator reads the column of features, which is no argument of the model
    remove_unused_columns: bool = False
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    train_sampling_strategy: str = "group_by_length"
    length_column_name: str = LENGTH_COLUMN
    dataloader_pin_memory: bool = field(default_factory=torch.accelerator.is_available)

    def __post_init__(self) -> None:
        """Fill in the recipe; tell of a known metric whether more is better, keep none open."""
        for name, value in choose(RECIPES, self.recipe).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        metric = self.metric_for_best_model
        if self.greater_is_better is None and metric is not None:
            known = METRICS.get(metric.removeprefix("eval_"))
            self.greater_is_better = None if known is None else known.greater_is_better
        super().__post_init__()
        self.metric_for_best_model = metric

    def choose_defaults(
        self, config: RMatConfig, *, num_train_rows: int, has_adapter: bool = False
    ) -> None:
        """Set the fields that are left to the recipe, for a model that is about to be trained."""
        problem_type, is_pretrained = config.problem_type, bool(config.architectures)
        if self.num_train_epochs is None:
            self.num_train_epochs = compute_num_epochs(
                problem_type,
                num_train_rows=num_train_rows,
                batch_size=self.per_device_train_batch_size,
                is_pretrained=is_pretrained,
            )
        # CODEPATH: the recipe of the authors has one rate.
        if self.noam_factor is not None:
            if self.learning_rate is None:
                self.learning_rate = self._compute_noam_peak(config, num_train_rows=num_train_rows)
        else:
            if self.learning_rate is None:
                usual = DEFAULT_LEARNING_RATES[not is_pretrained]
                self.learning_rate = ADAPTER_LEARNING_RATE if has_adapter else usual
            has_new_head = has_new_regression_head(problem_type, config.architectures)
            if self.head_learning_rate is None and has_new_head:
                self.head_learning_rate = REGRESSION_HEAD_LEARNING_RATE
        # CODEPATH: numbers and classes have no metric in common.
        if self.metric_for_best_model is None and config.label_types is not None:
            self.metric_for_best_model, self.greater_is_better = "loss", False
        if self.metric_for_best_model is None:
            metric = list_metrics(problem_type or "regression")[0]
            self.metric_for_best_model = metric.name
            self.greater_is_better = metric.greater_is_better

    def _compute_noam_peak(self, config: RMatConfig, *, num_train_rows: int) -> float:
        num_batches = math.ceil(num_train_rows / self.per_device_train_batch_size)
        num_steps = self.get_warmup_steps(math.ceil(num_batches * self.num_train_epochs))
        return float(self.noam_factor or 0.0) / math.sqrt(config.hidden_size * max(num_steps, 1))


def resolve_defaults(
    arguments: FinetuningArguments,
    config: RMatConfig,
    *,
    num_train_rows: int,
    has_adapter: bool = False,
) -> FinetuningArguments:
    """Return the arguments with the rates and epochs that the Trainer would choose itself."""
    chosen = build_training_arguments(arguments, Path(arguments.output_dir))
    chosen.choose_defaults(config, num_train_rows=num_train_rows, has_adapter=has_adapter)
    return replace(arguments, **{flag: getattr(chosen, it) for flag, it in RECIPE_FLAGS.items()})


def compute_num_epochs(
    problem_type: str | None, *, num_train_rows: int, batch_size: int, is_pretrained: bool
) -> float:
    """Return the most epochs of the recipe, for so many rows of train."""
    if not is_pretrained:
        return float(DEFAULT_NUM_EPOCHS)
    steps_per_epoch = math.ceil(num_train_rows / batch_size)
    needed = math.ceil(LEAST_FINETUNING_STEPS / max(steps_per_epoch, 1))
    usual = FINETUNING_EPOCHS[problem_type == "regression"]
    return float(min(max(usual, needed), DEFAULT_NUM_EPOCHS))


def has_new_regression_head(problem_type: str | None, architectures: list[str] | None) -> bool:
    """Return whether a regression starts from trained weights of other classes only."""
    heads = {RMatForSequenceClassification.__name__, RMatForTokenClassification.__name__}
    is_new = not heads & {*(architectures or [])}
    return problem_type == "regression" and bool(architectures) and is_new


def load_for_finetuning(  # noqa: PLR0913 - all that a label has
    model: str | Path | Checkpoint | None,
    dataset: Dataset,
    *,
    label_columns: Sequence[str],
    problem_type: str = "regression",
    label_units: Sequence[str] = (),
    label_transforms: Sequence[str] = (),
    class_columns: Sequence[str] = (),
    class_weighting: ClassWeighting = "none",
    revision: str | None = None,
    seed: int = 0,
    **architecture: Any,
) -> RMatForSequenceClassification | RMatForTokenClassification:
    """Load a pretrained model with the head of the recipe, for labels as the training rows have.

    Mean and standard deviation of regression labels are taken from the rows and saved in the
    configuration: the network learns standardized values, its `logits` are in the labels' units.

    Args:
        model (`str`, `Path` or `None`):
            Folder, Hub id, or a name of [`list_checkpoints`]; `None` for random weights.
        dataset (`datasets.Dataset`):
            The training rows alone, with `labels` of shape `(num_rows, num_labels)`, NaN where
            missing, as [`featurize_dataset`] gives them; those of atoms are lists of lists.
            Molecule descriptors in their features go beside the molecule vector.
        label_columns (`Sequence[str]`): Names of the labels.
        problem_type (`str`, *optional*, defaults to `"regression"`):
            Or `"multi_label_classification"` or `"single_label_classification"`, whose classes
            the column `labels` of the rows names.
        label_units (`Sequence[str]`, *optional*): Unit of each label, as `["kcal/mol"]`.
        label_transforms, class_columns (`Sequence[str]`, *optional*):
            As the rows were made with, see [`featurize_dataset`].
        class_weighting (`str`, *optional*, defaults to `"none"`):
            `"balanced"`: rare and frequent classes cost the same.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        seed (`int`, *optional*, defaults to 0): Of the weights that start untrained.
        architecture: Fields of [`RMatConfig`] to override, as `hidden_dropout_prob=0.1`.

    Returns:
        [`RMatForSequenceClassification`], whose `logits` have the shape
        `(batch_size, num_labels)`; for labels of atoms [`RMatForTokenClassification`].

    Raises:
        UserError: The model cannot be read or does not fit, a label has no value in the rows, or a
            field is unknown.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import load_for_finetuning
    >>> rows = Dataset.from_dict({"labels": [[-5.0], [-1.0], [3.0]]})
    >>> model = load_for_finetuning("rmat-small", rows, label_columns=["dG"])
    >>> model.config.label_mean, model.config.output_names, model.config.head_hidden_size
    ([-1.0], ['dG'], 512)

    ```
    """
    checkpoint = model if isinstance(model, Checkpoint) else None
    if isinstance(model, str | Path):
        checkpoint = read_checkpoint(model, revision=revision)
    config = build_labeled_config(
        checkpoint,
        dataset,
        label_columns=label_columns,
        problem_type=problem_type,
        label_options=LabelOptions(
            label_units=label_units, label_transforms=label_transforms, class_columns=class_columns
        ),
        class_weighting=class_weighting,
        overrides=architecture,
    )
    set_seed(seed)
    is_of_atoms = has_atom_labels(dataset)
    model_class: Any = RMatForTokenClassification if is_of_atoms else RMatForSequenceClassification
    if checkpoint is None:
        built = model_class(config)
    else:
        built = checkpoint.load_model(model_class, config=config, overrides=architecture)
    if getattr(built, "descriptor_scaler", None) is not None:
        blocks = [read_covariates(dataset)]
        if _count_descriptors(dataset):
            blocks.insert(0, read_molecule_descriptors(pack_dataset(dataset)))
        known = np.concatenate([it for it in blocks if it is not None], axis=1)
        built.descriptor_scaler.fit(torch.from_numpy(known))
    return built


def build_finetuning_model(arguments: FinetuningArguments, task: FinetuningTask) -> Any:
    """Return the model to train, with the scaling of labels and descriptors fitted on train.

    With an adapter that is a `PeftModel`.
    """
    options, overrides = _read_options(arguments, task)
    options |= arguments.label_options.of_model
    model = load_for_finetuning(
        task.checkpoint, task.select("train"), seed=arguments.seed, **options, **overrides
    )
    if task.peft_config is None or task.checkpoint is None:
        return model
    untrained = task.checkpoint.find_untrained(type(model), config=model.config)
    return add_adapter(
        model,
        task.peft_config,
        whole_modules=["pooler"] if any(".pooler." in name for name in untrained) else [],
        revision=task.checkpoint.revision,
    )


def build_finetuning_config(arguments: FinetuningArguments, task: FinetuningTask) -> RMatConfig:
    """Return the architecture of the model to start from, with the labels of the task."""
    options, overrides = _read_options(arguments, task)
    return build_labeled_config(
        task.checkpoint,
        task.select("train"),
        overrides=overrides,
        source=arguments.model_config,
        label_options=arguments.label_options,
        **options,
    )


def _read_options(
    arguments: FinetuningArguments, task: FinetuningTask
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of [`load_for_finetuning`], and the fields of the architecture."""
    known = RMatConfig.list_architecture_fields()
    overrides = load_json_fields(arguments.model_config, known=known)
    if arguments.dropout is not None:
        overrides["hidden_dropout_prob"] = arguments.dropout
    names = ("label_columns", "problem_type", "class_weighting")
    options = {name: getattr(arguments, name) for name in names}
    return options, overrides


def build_labeled_config(
    checkpoint: Checkpoint | None,
    dataset: Dataset,
    *,
    label_columns: Sequence[str],
    problem_type: str,
    label_options: LabelOptions,
    class_weighting: ClassWeighting,
    overrides: dict[str, Any],
    source: str | None = None,
) -> RMatConfig:
    """Return the configuration of the model that [`load_for_finetuning`] loads.

    `source` is the file of the overrides, for messages.
    """
    labels, kind = flatten_labels(dataset["labels"][:]), dataset.features["labels"]
    while isinstance(kind, LISTS):
        kind = kind.feature
    names = list(kind.names if isinstance(kind, ClassLabel) else label_columns)
    own: dict[str, Any] = {
        "num_molecule_descriptors": 0 if has_atom_labels(dataset) else _count_descriptors(dataset),
        "id2label": dict(enumerate(names)),
        "label2id": {name: idx for idx, name in enumerate(names)},
        "problem_type": problem_type,
        **label_options.build_fields(
            dataset, label_columns=label_columns, problem_type=problem_type
        ),
    }
    own["num_molecule_descriptors"] += count_covariates(own.get("covariates"))
    if problem_type == "regression":
        own |= compute_label_scaling(labels, label_columns=names)
        for name, neutral in (("label_mean", 0.0), ("label_std", 1.0)):
            pairs = zip(own[name], label_columns, strict=True)
            own[name] = [neutral if it in label_options.class_columns else x for x, it in pairs]
    elif problem_type == "single_label_classification":
        own["label_name"] = label_columns[0]
    if class_weighting == "balanced":
        own["loss_weights"] = compute_balanced_weights(
            labels, problem_type=problem_type, num_outputs=len(names)
        )
    default = dict(SCRATCH_ARCHITECTURE)
    if checkpoint is not None:
        # tells the Trainer what is trained already
        own["architectures"] = checkpoint.config.architectures
        default = checkpoint.config.get_architecture()
        if has_new_regression_head(problem_type, own["architectures"]):
            default |= REGRESSION_HEAD
        elif problem_type != "regression" and default.items() >= REGRESSION_HEAD.items():
            default |= CLASS_HEAD
    return build_config(default, overrides=overrides, own=own, source=source)


def _count_descriptors(dataset: Dataset) -> int:
    if FEATURES_COLUMN not in dataset.column_names:
        return 0
    return read_molecule_descriptors(pack_dataset(dataset.select(range(1)))).shape[1]


def compute_label_scaling(
    labels: Any, *, label_columns: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """Return mean and standard deviation of regression labels, as fields of [`RMatConfig`].

    A model with them learns standardized values, and its `logits` are in the labels' units.

    Args:
        labels (array of shape `(num_rows,)` or `(num_rows, num_labels)`):
            Labels of the training rows alone, in the user's units; NaN or `None` where missing. Of
            atoms a list of `(num_atoms, num_labels)`.
        label_columns (`Sequence[str]`, *optional*): Their names, for messages.

    Returns:
        `dict`: `label_mean` and `label_std`, a list of `num_labels` numbers each. A label that is
        constant is centered and keeps its scale.

    Raises:
        UserError: A label has no value.

    Example:
    ```python
    >>> from rmat_hf import RMatForSequenceClassification, checkpoint_path, compute_label_scaling
    >>> scaling = compute_label_scaling([-3.0, 1.0, None])
    >>> scaling
    {'label_mean': [-1.0], 'label_std': [2.0]}
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     checkpoint_path("rmat-small"), num_labels=1, problem_type="regression", **scaling
    ... )

    ```
    """
    values = flatten_labels(labels)
    names = label_columns or range(values.shape[1])
    unlabeled = np.flatnonzero(np.isnan(values).all(axis=0))
    if len(unlabeled):
        raise UserError(
            f"Label {names[unlabeled[0]]!r} has no value in the train part. "
            "Drop the label, or choose another split."
        )
    # a label that is constant on train is centered and keeps its scale; its computed standard
    # deviation may be a rounding error instead of 0
    is_constant = np.nanmax(values, axis=0) == np.nanmin(values, axis=0)
    return {
        "label_mean": np.nanmean(values, axis=0).tolist(),
        "label_std": np.where(is_constant, 1.0, np.nanstd(values, axis=0)).tolist(),
    }


def compute_balanced_weights(
    labels: np.ndarray, *, problem_type: str, num_outputs: int
) -> list[float]:
    """Return weights under which rare and frequent classes cost the same.

    Negatives per positive for each label of a multi-label classification, else one for each class.
    """
    if problem_type == "multi_label_classification":
        counts = np.stack([(labels == 0).sum(axis=0), (labels == 1).sum(axis=0)])
        weights = counts[0] / np.maximum(counts[1], 1)
    else:
        counts = np.bincount(labels[~np.isnan(labels)].astype(int), minlength=num_outputs)
        weights = counts.sum() / (num_outputs * np.maximum(counts, 1))
    if not counts.all():
        raise UserError("A class has no row in the train part, so it cannot be balanced.")
    return weights.tolist()


def build_training_arguments(
    arguments: FinetuningArguments, checkpoint_dir: Path
) -> RMatTrainingArguments:
    """Return the training arguments of a finetuning run, overridden by `--training-arguments`."""
    overrides = load_json_fields(arguments.training_arguments)
    metrics = {metric.name: metric for metric in list_metrics(arguments.problem_type)}
    # numbers and classes have no metric in common
    usual = "loss" if arguments.class_columns else next(iter(metrics))
    metric = str(overrides.get("metric_for_best_model", usual))
    name = metric.removeprefix("eval_")
    if name != "loss" and name not in metrics:
        raise UserError(
            f"{arguments.training_arguments}: metric_for_best_model is {metric!r}. Choose one of "
            f"{['loss', *metrics]}."
        )
    return build_trainer_arguments(
        RMatTrainingArguments,
        arguments,
        folder=checkpoint_dir,
        recipe=arguments.recipe,
        noam_factor=arguments.noam_factor,
        # that of the recipe
        lr_scheduler_type=None,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size and 2 * arguments.batch_size,
        head_learning_rate=arguments.head_learning_rate,
        ema_decay=arguments.ema_decay,
        early_stopping_patience=arguments.early_stopping_patience,
        metric_for_best_model=metric,
        greater_is_better=name in metrics and metrics[name].greater_is_better,
    )
