"""The dataclasses behind every CLI flag: a field is a flag, its `help` is the flag's help."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from rmat_hf.adapters import DEFAULT_RANK, PEFT_METHODS
from rmat_hf.data.measurements import REPLICATES, LabelOptions, find_transform_problem
from rmat_hf.data.splits.molecule_splits import validate_fold
from rmat_hf.data.splits.registry import SPLITS, find_split_options, validate_split
from rmat_hf.data.tables import RESERVED_COLUMNS
from rmat_hf.errors import UserError, hide_credentials
from rmat_hf.flags import (
    DEFAULT_CACHE,
    declare_flag,
    declare_required,
    name_flag,
    normalize_flags,
    validate_flags,
)
from rmat_hf.model.configuration_rmat import TRUST_KINDS, RMatConfig
from rmat_hf.model.features_rmat import ATOM_FEATURES, FINGERPRINTS
from rmat_hf.model.geometry_rmat import ConformerFailure, Geometry
from rmat_hf.model.losses_rmat import PROBLEM_TYPES
from rmat_hf.model.pipeline_rmat import LEVELS
from rmat_hf.model.standardization_rmat import STANDARDIZERS
from rmat_hf.model.transforms_rmat import LABEL_TRANSFORMS
from rmat_hf.output_folder import load_json

DescriptorSet = Literal["none", "rdkit_2d"]
ClassWeighting = Literal["none", "balanced"]

Built = TypeVar("Built")

# In the folder of a finetuning.
ARGUMENTS_FILE = "finetuning_arguments.json"
TRIALS_FILE = "hpo_trials.csv"

# What learns: the whole network, or, on the vectors of one that does not, a Gaussian process, alone
# or with a forest beside it, perhaps with networks too; by default preparation.py says which.
AUTO = "auto"
STACK_WITH_NETWORK = "stack+network"
STACKS = ("stack", STACK_WITH_NETWORK)
HEADS = (AUTO, "network", "kernel", *STACKS)
# Flags of a network that those of a stack take note of too.
TRAINING_FLAGS = (
    *("learning_rate", "head_learning_rate", "num_train_epochs", "batch_size", "weight_decay"),
    *("ema_decay", "warmup_ratio", "training_arguments", "report_to"),
)
# Flags that no other head takes note of.
NETWORK_FLAGS = (
    *TRAINING_FLAGS,
    *("noam_factor", "recipe", "dropout", "early_stopping_patience", "num_members"),
    *("member_folds", "hpo_trials", "peft", "peft_rank", "class_weighting", "level"),
    *("model_config", "molecule_descriptors"),
)
# What the latter can compare.
KERNEL_FEATURES = ("vectors", "environments", *FINGERPRINTS, "descriptors")
SCRATCH = "scratch"
# Of classes; which problem type they are is read off them.
CLASSIFICATION = "classification"
DEFAULT_MODEL = "rmat-small"
# What a few hundred to a few thousand labels can fill, trained from random weights.
SCRATCH_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_head_layers": 2,
    "hidden_dropout_prob": 0.1,
}
# The head of a regression on a pretrained encoder; stands in the configuration of that, so that
# `from_pretrained` gives it to everybody.
REGRESSION_HEAD: dict[str, Any] = {
    "num_head_layers": 2,
    "head_hidden_size": 512,
    "head_norm": False,
    "classifier_dropout": 0.3,
}
# How a finetuning trains, unless it is told otherwise: fields of `RMatTrainingArguments` by recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "rmat": {
        "per_device_train_batch_size": 32,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "cosine",
        "ema_decay": 0.99,
        "load_best_model_at_end": True,
    },
    # That of the authors' code; behind a warm-up, Noam's schedule is `inverse_sqrt`.
    "authors": {
        "per_device_train_batch_size": 16,
        "num_train_epochs": 100.0,
        "noam_factor": 5e-3,
        "weight_decay": 0.0,
        "warmup_steps": 0.2,
        "lr_scheduler_type": "inverse_sqrt",
        "ema_decay": 0.0,
        "load_best_model_at_end": False,
    },
}


@dataclass(kw_only=True)
class RunArguments:
    """The flags that `rmat finetune` and `rmat pretrain` have in common."""

    output_dir: str = declare_required("Folder to write, with all that a model needs.")
    model_revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    model_config: str | None = declare_flag(
        None, "JSON file, or object, with RMatConfig fields to override."
    )
    weight_decay: float | None = declare_flag(0.01, "Weight decay of AdamW.", least=0)
    seed: int = declare_flag(0, "Seed of split, weights, order and masks.", least=0)
    overwrite: bool = declare_flag(False, "Replace the output folder if it has files.")
    resume: bool = declare_flag(False, "Continue an interrupted run of the same output folder.")
    license: str | None = declare_flag(None, "License of the model, for example cc-by-4.0.")
    report_to: list[str] = declare_flag(["none"], "Experiment trackers, for example tensorboard.")
    training_arguments: str | None = declare_flag(
        None, "JSON file, or object, with transformers.TrainingArguments to override, as bf16."
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for values that are out of bounds or contradict each other."""
        for name in ("model_config", "training_arguments"):
            if isinstance(given := getattr(self, name), Mapping):
                setattr(self, name, json.dumps(dict(given)))
        normalize_flags(self)
        validate_flags(self)
        for problem in self.list_contradictions():
            raise UserError(problem)

    def list_contradictions(self) -> Iterator[str]:
        """Say which flags do not go together."""
        if self.overwrite and self.resume:
            yield "--overwrite starts anew and --resume continues: choose one."


@dataclass(kw_only=True)
class FinetuningArguments(RunArguments):
    """Everything `run_finetuning` needs to know; each field is a flag of `rmat finetune`."""

    dataset: str = declare_required(
        "CSV, Parquet or SDF file, freesolv, or Hub data set; features that it has are used."
    )
    label_columns: list[str] = declare_flag(
        [],
        "Columns with the labels. Default: all of numbers, or of yes and no, that do not count or "
        "name rows.",
    )
    model: str = declare_flag(
        DEFAULT_MODEL, "Bundled name, model folder, Hub id, or 'scratch' for random weights."
    )
    dataset_revision: str | None = declare_flag(None, "Branch, tag or commit of a Hub data set.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES; else it is found.")
    label_units: list[str] = declare_flag([], "Unit of each label, for example kcal/mol.")
    label_transform: list[str] = declare_flag(
        [],
        "What labels are learned as, one for all or one for each: none, log10 or pIC50 (-log10 of "
        "the molar value, of labels in --label-units nM and the like). Predictions are in the "
        "units of the table.",
        choices=LABEL_TRANSFORMS,
    )
    class_columns: list[str] = declare_flag(
        [],
        "Label columns that are yes or no (1 or 0) among the numbers of a regression. Default: "
        "those that are, where no labels are named; else those of words.",
    )
    weight_column: str | None = declare_flag(
        None, "Column with what each row counts in the loss; empty cells count 1."
    )
    feature_columns: list[str] = declare_flag(
        [],
        "Columns that say more of a row than its molecule, as pH or the assay: numbers or "
        "categories, which rmat predict then reads too. Missing ones count as their mean.",
    )
    replicates: str = declare_flag(
        "keep",
        "What becomes of rows of one molecule: each is learned, or one row with the mean or median "
        "of their labels.",
        choices=REPLICATES,
    )
    problem_type: str = declare_flag(
        "regression",
        "What the labels are; classification is one of the last two, as the labels tell.",
        choices=(*PROBLEM_TYPES, CLASSIFICATION),
    )
    level: str = declare_flag(
        "molecule",
        "What has a label. atom: a cell lists one for each heavy atom, in the order of the SMILES.",
        choices=LEVELS,
    )
    split: str = declare_flag("random", "What divides the rows into parts.", choices=SPLITS)
    split_column: str | None = declare_flag(
        None, "Column of train, valid (val, dev) and test. Without valid --split takes it of train."
    )
    group_column: str | None = declare_flag(
        None, "For --split random or kfold: rows of one value, as a project, stay together."
    )
    time_column: str | None = declare_flag(
        None,
        "Column of dates (2019-05-31 or 31.05.2019) or numbers, for --split time: the newest are "
        "test.",
    )
    cluster_cutoff: float | None = declare_flag(
        None, "For --split cluster: largest Tanimoto distance. Default: 0.6.", above=0, below=1
    )
    num_folds: int | None = declare_flag(None, "Number of folds, for --split kfold.", least=3)
    fold: int | None = declare_flag(None, "For --split kfold: test; the next is valid.", least=0)
    geometry: Geometry | None = declare_flag(None, "Source of distances. Default: the model's.")
    on_conformer_failure: ConformerFailure | None = declare_flag(
        None, "Geometry to step down to when no conformer is found. Default: drop the row."
    )
    standardize: list[str] = declare_flag(
        [],
        "What every molecule becomes first, here and in prediction: largest_fragment, uncharge, "
        "tautomer, or several. Default: the model's, else nothing.",
        choices=STANDARDIZERS,
    )
    molecule_descriptors: DescriptorSet | None = declare_flag(
        None,
        "Molecule descriptors to concatenate before the head. Default: the model's, else none.",
    )
    head: str = declare_flag(
        AUTO,
        "What learns: the network; kernel: a Gaussian process on its frozen vectors and on "
        "fingerprints, fitted in seconds on train and valid together; stack: this and a forest; "
        f"{STACK_WITH_NETWORK}: a stack and up to five networks, each trained with another fold "
        "left out, in minutes. "
        "Default: network or stack, by the number of rows; the network with a flag of its own.",
        choices=HEADS,
    )
    kernel_features: list[str] = declare_flag(
        ["vectors", "ecfp4", "fcfp4", "atom_pairs", "descriptors"],
        f"What a kernel head compares, each with a kernel: of {', '.join(KERNEL_FEATURES)}.",
    )
    class_weighting: ClassWeighting = declare_flag("none", "Weight of rare classes.")
    conflict_tolerance: float = declare_flag(
        0.1, "Standard deviations between labels of one molecule that do not conflict.", least=0
    )
    recipe: str = declare_flag(
        "rmat",
        "Defaults of the flags that follow: ours, or those of the authors' code (Noam's schedule, "
        "100 epochs, batches of 16, no average of the weights, the last epoch).",
        choices=RECIPES,
    )
    noam_factor: float | None = declare_flag(
        None,
        "Without --learning-rate: its peak is this over the root of (width x steps of warm-up). "
        "Default of the authors: 0.005, 100 times their nominal rate.",
        above=0,
    )
    learning_rate: float | None = declare_flag(
        None, "Peak of AdamW. Default: 5e-4 from scratch, 3e-4 for a trained model.", least=0
    )
    head_learning_rate: float | None = declare_flag(
        None,
        "Peak learning rate of the prediction head. Default: 3e-3 for a regression from a "
        "pretrained model, otherwise as the rest.",
        least=0,
    )
    num_train_epochs: float | None = declare_flag(
        None,
        "Most epochs. Default: 60; from a trained model 40, for classes 10, or the 500 steps that "
        "few rows need.",
        least=1e-6,
    )
    batch_size: int | None = declare_flag(
        None, "Molecules in a batch. Default: 32; of the authors 16.", least=1
    )
    weight_decay: float | None = declare_flag(
        None, "Weight decay of AdamW. Default: 0.01; of the authors 0.", least=0
    )
    peft: str | None = declare_flag(
        None,
        "Train and save a small adapter and the head alone; several members are merged.",
        choices=PEFT_METHODS,
    )
    peft_rank: int | None = declare_flag(
        None, f"Rank of --peft lora. Default: {DEFAULT_RANK}.", least=1
    )
    dropout: float | None = declare_flag(
        None, "Dropout of the hidden layers. Default: the model's.", least=0, below=1
    )
    ema_decay: float | None = declare_flag(
        None,
        "Decay of the average of the weights that the run keeps; 0: none. Default: 0.99; of the "
        "authors 0.",
        least=0,
        below=1,
    )
    warmup_ratio: float | None = declare_flag(
        None, "Share of steps with a rising rate. Default: 0.1; of the authors 0.2.", least=0
    )
    early_stopping_patience: int = declare_flag(
        30, "Epochs without a better validation metric, then training stops.", least=1
    )
    refit: bool = declare_flag(
        False,
        "Train the network once more on train and valid together, to the epoch that valid chose. "
        "A kernel and a stack are always fitted on both.",
    )
    num_members: int = declare_flag(
        1, "Models with different seeds; several become one ensemble with a spread.", least=1
    )
    member_folds: bool = declare_flag(
        False, "Hold another fold of train and valid out of each member, to choose its epoch on."
    )
    hpo_trials: int = declare_flag(
        0, "Settings of rates, dropout, weight decay and batch size to try first.", least=0
    )
    num_workers: int = declare_flag(1, "Processes that featurize.", least=0)
    feature_cache: str | None = declare_flag(
        DEFAULT_CACHE,
        "Folder that keeps features for later runs: 'default' is ~/.cache/rmat-hf/features, "
        "'none' keeps nothing.",
    )
    trust: str = declare_flag(
        "fingerprints",
        "What the model keeps of the molecules of training, to tell how sure it is of others: "
        "fingerprints, from which they can be reconstructed, centers of its own vectors, or "
        "nothing (none: no intervals).",
        choices=("none", *TRUST_KINDS),
    )
    with_baselines: bool = declare_flag(
        False, "Fit SVMs and a forest on fingerprints and descriptors on the same split."
    )

    @property
    def label_options(self) -> LabelOptions:
        """How labels are learned, and what of their rows counts."""
        names = ("label_units", "class_columns", "weight_column", "feature_columns", "replicates")
        transforms, classes = self.label_transform, self.class_columns
        if len(transforms) == 1:
            # one for all, and classes have none
            transforms = [
                *("none" if it in classes else transforms[0] for it in self.label_columns)
            ]
        return LabelOptions(
            label_transforms=transforms,
            **{name: getattr(self, name) for name in names},
        )

    def list_contradictions(self) -> Iterator[str]:
        """Say which flags do not go together."""
        yield from super().list_contradictions()
        validate_split(self.split, find_split_options(self))
        if self.fold is not None and self.num_folds is not None:
            validate_fold(self.fold, num_folds=self.num_folds)
        labels, units = self.label_columns, self.label_units
        added = {f"{kind}_{name}" for kind in ("prediction", "spread") for name in labels}
        reserved = sorted({*RESERVED_COLUMNS, *added})
        if units and labels and len(units) != len(labels):
            yield (
                f"--label-units has {len(units)} entries for {len(labels)} label columns. Give one "
                "per column."
            )
        if set(reserved) & set(labels) or len(set(labels)) < len(labels):
            yield (
                f"--label-columns {' '.join(labels)}: one is there twice, or is a column that the "
                f"results add ({', '.join(reserved)}). Rename it in the table."
            )
        yield from self._list_label_contradictions()
        if self.class_weighting == "balanced" and self.problem_type == "regression":
            yield "--class-weighting balanced is for classification. Leave it out."
        if self.member_folds and self.num_members < 2:
            yield "--member-folds needs --num-members 2 or more: one fold for each."
        if self.refit and (self.num_members > 1 or self.level == "atom"):
            yield "--refit is for one model of molecules. Leave out --num-members and --level atom."
        if self.head not in {AUTO, "network"}:
            yield from self._list_kernel_contradictions()
        if self.level == "atom" and (
            self.num_members > 1
            or self.with_baselines
            or self.standardize
            or self.molecule_descriptors == "rdkit_2d"
        ):
            yield (
                "--num-members, --with-baselines, --standardize and --molecule-descriptors are for "
                "labels of molecules. Leave them out with --level atom."
            )
        yield from self._list_peft_contradictions()
        if self.feature_cache == "":
            yield "--feature-cache is empty. Name a folder, 'default' or 'none'."

    def _list_label_contradictions(self) -> Iterator[str]:
        labels, transforms = self.label_columns, self.label_transform
        is_regression = self.problem_type == "regression"
        num_wanted = {1, len(labels) or len(transforms)}
        if transforms and (len(transforms) not in num_wanted or not is_regression):
            yield (
                f"--label-transform has {len(transforms)} entries for {len(labels)} label columns "
                f"of a {self.problem_type}. Give one, or one for each label, of a regression."
            )
        # without units here, those in the names of columns are found later
        if self.label_units and (problem := find_transform_problem(self.label_options)):
            yield problem
        # labels that are not named are found later
        if labels and (unknown := sorted({*self.class_columns} - {*labels})):
            yield f"--class-columns {' '.join(unknown)}: name some of the --label-columns."
        if self.class_columns and (not is_regression or {*self.class_columns} == {*labels}):
            yield (
                "--class-columns are for labels beside numbers. If all are yes or no, pass "
                "--problem-type multi_label_classification instead."
            )
        if self.weight_column and self.problem_type == "single_label_classification":
            yield "--weight-column is for numbers and yes/no labels. Leave it out."
        of_molecules = (transforms, self.class_columns, self.weight_column, self.feature_columns)
        if self.level == "atom" and any(of_molecules):
            yield (
                "--label-transform, --class-columns, --weight-column and --feature-columns are for "
                "labels of molecules. Leave them out with --level atom."
            )
        if both := sorted({*self.feature_columns} & {*labels}):
            yield f"--feature-columns {' '.join(both)}: these are labels. Name other columns."

    def _list_peft_contradictions(self) -> Iterator[str]:
        if self.peft is not None and self.model == SCRATCH:
            yield "--peft needs a model to adapt, and --model scratch is random. Name one."
        if self.peft_rank is not None and self.peft is None:
            yield "--peft-rank is of --peft lora. Pass that too, or leave it out."

    def _list_kernel_contradictions(self) -> Iterator[str]:
        known = len({*self.kernel_features} & {*KERNEL_FEATURES})
        if not known or known < len(self.kernel_features):
            yield (
                f"--kernel-features {' '.join(self.kernel_features)}: name some of "
                f"{', '.join(KERNEL_FEATURES)}, each once."
            )
        if self.model == SCRATCH:
            yield (
                f"--head {self.head} takes the vectors of a trained --model, and scratch has none."
            )
        if self.head in STACKS and self.class_columns:
            yield (
                f"{', '.join(self.class_columns)}: yes or no beside numbers (--class-columns) is "
                "for --head kernel and network. Choose one, or name other --label-columns."
            )
        if given := self.list_network_flags():
            yield f"--head {self.head} does not read {', '.join(given)}. Leave it out."

    def list_network_flags(self) -> list[str]:
        """Return the flags that are given, of a network, and this head does not read."""
        defaults = {field.name: field for field in fields(self)}
        known = TRAINING_FLAGS if self.head == STACK_WITH_NETWORK else ()
        given = []
        for name in (it for it in NETWORK_FLAGS if it not in known):
            default, factory = defaults[name].default, defaults[name].default_factory
            if getattr(self, name) != (factory() if callable(factory) else default):
                given.append(name_flag(name))
        return given


def describe_arguments(arguments: Any) -> dict[str, Any]:
    """Return what decides the result, without paths of this machine or what only starts it."""
    fields = asdict(arguments)
    for name in ("overwrite", "resume", "num_workers", "feature_cache"):
        fields.pop(name, None)
    for name in fields.keys() & {"dataset", "corpus", "model", "output_dir"}:
        fields[name] = name_source(fields[name])
    for name in ("model_config", "training_arguments"):
        fields[name] = load_json_fields(fields[name])
    return fields


def keeps_last_epoch(recipe: str, training_arguments: dict[str, Any]) -> bool:
    """Return whether a run with these overrides keeps its last epoch, not the best on valid."""
    fields = RECIPES[recipe] | training_arguments
    return not fields["load_best_model_at_end"]


def name_source(source: str) -> str:
    """Return a file's or folder's own name; the id itself for something on the Hub."""
    path = Path(source)
    is_local = path.exists() or path.is_absolute()
    return path.resolve().name if is_local else hide_credentials(source)


def name_split(arguments: FinetuningArguments) -> str:
    """Return the family of the split, with the fold or the cutoff if it has one of its own."""
    if arguments.split == "kfold":
        return f"fold-{arguments.fold}-of-{arguments.num_folds}"
    if arguments.cluster_cutoff is not None:
        return f"{arguments.split}-{arguments.cluster_cutoff}"
    return arguments.split


def load_json_fields(path: str | None, *, known: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the object in the JSON file of a flag, or in the flag itself; empty without a path."""
    if path is not None and path.lstrip().startswith("{"):
        try:
            fields = json.loads(path)
        except ValueError as error:
            raise UserError(
                f'{path} is no JSON: {error}. Write it as {{"name": value}}.'
            ) from error
    else:
        fields = {} if path is None else load_json(path)
    if known is not None and (unknown := sorted(set(fields) - set(known))):
        raise UserError(f"{path} has unknown fields {unknown}. Known: {known}.")
    return fields


def build_config(
    default: dict[str, Any], *, overrides: dict[str, Any], own: dict[str, Any], source: str | None
) -> RMatConfig:
    """Return a default architecture with overrides, which a file may have, and own fields."""
    if unknown := sorted(overrides.keys() - set(RMatConfig.list_architecture_fields())):
        raise UserError(f"RMatConfig has no fields {unknown} of the architecture.")
    fields = {"num_node_features": ATOM_FEATURES.num_node_features, **default, **overrides, **own}
    return build_from_fields(RMatConfig, fields, source=source)


def build_trainer_arguments(
    built_class: type[Built], arguments: Any, *, folder: Path, **fields: Any
) -> Built:
    """Return the arguments of a `Trainer` with checkpoints in a folder.

    They are those of a run, then `fields` that are not `None`, then `--training-arguments`.
    """
    common = {
        "learning_rate": arguments.learning_rate,
        "num_train_epochs": arguments.num_train_epochs,
        "weight_decay": arguments.weight_decay,
        "warmup_steps": arguments.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "save_total_limit": 1,
        "seed": arguments.seed,
        "report_to": arguments.report_to,
    }
    given = {name: value for name, value in {**common, **fields}.items() if value is not None}
    given |= load_json_fields(arguments.training_arguments)
    given["output_dir"] = str(folder)
    return build_from_fields(built_class, given, source=arguments.training_arguments)


def build_from_fields(built_class: type[Built], fields: dict[str, Any], *, source: Any) -> Built:
    """Return an instance of a configuration class, or say which file has a field it refuses."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        return built_class(**fields)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{source or 'Options'}: {reason}.") from error
