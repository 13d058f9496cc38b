"""The dataclasses behind every CLI flag: a field is a flag, its `help` is the flag's help."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from rmat_hf.data.splits.random_splits import validate_fold
from rmat_hf.data.splits.registry import SPLITS, find_split_options, validate_split
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.model.geometry_rmat import ConformerFailure, Geometry

ProblemType = Literal["regression", "multi_label_classification", "single_label_classification"]
DescriptorSet = Literal["none", "rdkit_2d"]
ClassWeighting = Literal["none", "balanced"]
BenchmarkStep = Literal["featurize", "predict", "embed", "forward", "train"]
BenchmarkDtype = Literal["float32", "bfloat16"]

SCRATCH = "scratch"
DEFAULT_MODEL = "rmat-small"
DEFAULT_CACHE = "default"
NO_CACHE = "none"
RESERVED_COLUMNS = ("row", "smiles", "split", "error")
# What a few hundred to a few thousand labels can fill, trained from random weights.
SCRATCH_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_head_layers": 2,
    "hidden_dropout_prob": 0.1,
}


@dataclass(kw_only=True)
class FinetuningArguments:
    """Everything `run_finetuning` needs to know; each field is a flag of `rmat finetune`."""

    dataset: str = declare_required(
        "CSV, Parquet or SDF file, bundled name (freesolv) or Hub data set."
    )
    label_columns: list[str] = declare_required(
        "Columns with the labels; several make it multi-task."
    )
    output_dir: str = declare_required("Folder to write; it becomes the whole predictor.")
    model: str = declare_flag(
        DEFAULT_MODEL, "Bundled name, model folder, Hub id, or 'scratch' for random weights."
    )
    model_revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    model_config: str | None = declare_flag(None, "JSON file with RMatConfig fields to override.")
    dataset_revision: str | None = declare_flag(
        None, "Branch, tag or commit of a data set on the Hub."
    )
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    label_units: list[str] = declare_flag([], "Unit of each label, for example kcal/mol.")
    problem_type: ProblemType = declare_flag("regression", "What the labels are.")
    split: str = declare_flag(
        "random", "How rows are divided into train, valid and test.", choices=SPLITS
    )
    split_column: str | None = declare_flag(
        None, "Column with train / valid / test, for --split column."
    )
    time_column: str | None = declare_flag(
        None, "Column of ISO dates or numbers, for --split time: the newest are test."
    )
    cluster_cutoff: float | None = declare_flag(
        None,
        "Largest Tanimoto distance to the center, for --split cluster. Default: 0.6.",
        above=0,
        below=1,
    )
    num_folds: int | None = declare_flag(None, "Number of folds, for --split kfold.", least=3)
    fold: int | None = declare_flag(
        None, "Fold that is test, from 0, for --split kfold; the next one is valid.", least=0
    )
    seed: int = declare_flag(0, "Seed of split, weights and training.", least=0)
    overwrite: bool = declare_flag(False, "Replace the output folder if it has files.")
    resume: bool = declare_flag(False, "Continue an interrupted run of the same output folder.")
    geometry: Geometry | None = declare_flag(
        None, "Where distances come from. Default: the model's."
    )
    on_conformer_failure: ConformerFailure | None = declare_flag(
        None, "Geometry to step down to when no conformer is found. Default: drop the row."
    )
    molecule_descriptors: DescriptorSet | None = declare_flag(
        None,
        "Molecule descriptors to concatenate before the head. Default: the model's, else none.",
    )
    class_weighting: ClassWeighting = declare_flag(
        "none", "Weight classes against their imbalance."
    )
    conflict_tolerance: float = declare_flag(
        0.1,
        "Labels of one molecule further apart than this many standard deviations conflict.",
        least=0,
    )
    learning_rate: float | None = declare_flag(
        None,
        "Peak learning rate of AdamW. Default: 5e-4 from scratch, 3e-4 for a trained model.",
        least=0,
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
    batch_size: int = declare_flag(32, "Molecules in a batch.", least=1)
    weight_decay: float = declare_flag(0.01, "Weight decay of AdamW.", least=0)
    dropout: float | None = declare_flag(
        None, "Dropout of the hidden layers. Default: the model's.", least=0, below=1
    )
    ema_decay: float = declare_flag(
        0.99,
        "Decay per step of the moving average of the weights, which is what valid chooses and the "
        "run keeps; 0 keeps the weights themselves.",
        least=0,
        below=1,
    )
    warmup_ratio: float = declare_flag(
        0.1, "Share of the steps with a rising learning rate.", least=0
    )
    early_stopping_patience: int = declare_flag(
        30, "Epochs without a better validation metric after which training stops.", least=1
    )
    num_members: int = declare_flag(
        1,
        "Models to train with different seeds; several become one ensemble with a spread.",
        least=1,
    )
    member_folds: bool = declare_flag(
        False, "Hold another fold of train and valid out of each member, to choose its epoch on."
    )
    hpo_trials: int = declare_flag(
        0,
        "Settings of learning rate, dropout, weight decay and batch size to try on valid first.",
        least=0,
    )
    num_workers: int = declare_flag(1, "Processes that featurize.", least=0)
    feature_cache: str | None = declare_flag(
        DEFAULT_CACHE,
        "Folder that keeps features for later runs: 'default' is ~/.cache/rmat-hf/features, "
        "'none' keeps nothing.",
    )
    license: str | None = declare_flag(
        None, "License of the model for its card, for example cc-by-4.0."
    )
    with_baselines: bool = declare_flag(
        False, "Fit random forest and SVM on the same split to compare."
    )
    report_to: list[str] = declare_flag(
        ["none"], "Experiment trackers: tensorboard, trackio and so on."
    )
    training_arguments: str | None = declare_flag(
        None, "JSON file with transformers.TrainingArguments to override, for example bf16."
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for values that contradict each other."""
        if self.label_units and len(self.label_units) != len(self.label_columns):
            raise ValueError(
                f"--label-units has {len(self.label_units)} entries for "
                f"{len(self.label_columns)} label columns. Give one per column."
            )
        if self.label_units and self.problem_type != "regression":
            raise ValueError("--label-units is for regression: a class has no unit. Leave it out.")
        added = {
            f"{kind}_{name}" for kind in ("prediction", "spread") for name in self.label_columns
        }
        added |= set(RESERVED_COLUMNS)
        for name in self.label_columns:
            if name in added or self.label_columns.count(name) > 1:
                raise ValueError(
                    f"--label-columns: {name!r} is there twice, or is a column that the results "
                    f"add ({', '.join(sorted(added))}). Rename it in the table."
                )
        validate_flags(self)
        if self.member_folds and self.num_members < 2:
            raise ValueError("--member-folds needs --num-members 2 or more: one fold for each.")
        validate_split(self.split, find_split_options(self))
        if self.fold is not None and self.num_folds is not None:
            validate_fold(self.fold, num_folds=self.num_folds)
        if self.feature_cache == "":
            raise ValueError("--feature-cache is empty. Name a folder, 'default' or 'none'.")
        if self.overwrite and self.resume:
            raise ValueError("--overwrite starts anew and --resume continues: choose one.")


@dataclass(kw_only=True)
class ConversionArguments:
    """Everything `rmat convert` needs to know."""

    weights: str = declare_required(
        "Weights of the authors' code: .safetensors, or .pt, of which tensors only are read."
    )
    config: str = declare_required("The authors' JSON configuration.")
    output_dir: str = declare_required("Folder to write.")
    pooling: Literal["attention", "mean", "dummy_node"] | None = declare_flag(
        None, "Pooling of the model. Default: the one in the weights, else mean."
    )


@dataclass(kw_only=True)
class BenchmarkArguments:
    """Everything `run_benchmark` needs to know; each field is a flag of `rmat bench`."""

    model: str = declare_flag(
        SCRATCH, "Model folder, Hub id, or random weights of a size: scratch, small or published."
    )
    revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    input: str = declare_flag("freesolv", "CSV, Parquet or SDF file, bundled name or Hub data set.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    num_molecules: int = declare_flag(
        256, "Molecules to measure with, evenly spaced over the table.", least=1
    )
    what: list[str] = declare_flag(
        list(get_args(BenchmarkStep)),
        f"What to measure, of {', '.join(get_args(BenchmarkStep))}.",
        choices=get_args(BenchmarkStep),
    )
    batch_size: int = declare_flag(32, "Molecules in a batch.", least=1)
    num_workers: int = declare_flag(
        0, "Processes that featurize beside the one that computes.", least=0
    )
    geometry: Geometry | None = declare_flag(
        None, "Where distances come from. Default: the model's."
    )
    device: str | None = declare_flag(
        None, "Torch device. Default: the accelerator if there is one."
    )
    dtype: BenchmarkDtype = declare_flag("float32", "Precision; bfloat16 is by autocast.")
    repeats: int = declare_flag(
        3, "Timed passes over the molecules, after one that is not timed.", least=1
    )
    output_json: str | None = declare_flag(
        None, "JSON file to write beside the table on the screen."
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for an unknown choice or a count that is too small."""
        if not self.what:
            raise ValueError(f"--what is empty. Known: {list(get_args(BenchmarkStep))}.")
        validate_flags(self)
