"""The dataclasses behind every CLI flag: a field is a flag, its `help` is the flag's help."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

ProblemType = Literal["regression", "multi_label_classification", "single_label_classification"]
SplitName = Literal["random", "scaffold", "column"]
Geometry = Literal["conformer", "bounds", "2d", "given"]
ConformerFallback = Literal["raise", "bounds", "2d"]
DescriptorSet = Literal["none", "rdkit_2d"]
ClassWeighting = Literal["none", "balanced"]
BenchmarkStep = Literal["featurize", "predict", "embed", "forward", "train"]
BenchmarkDtype = Literal["float32", "bfloat16"]

SCRATCH = "scratch"
DEFAULT_CACHE = "default"
NO_CACHE = "none"
RESERVED_COLUMNS = ("row", "smiles", "split", "error")
SMALLEST_VALUES = {
    "seed": 0,
    "hpo_trials": 0,
    "num_workers": 0,
    "conflict_tolerance": 0,
    "weight_decay": 0,
    "warmup_ratio": 0,
    "learning_rate": 0,
    "num_train_epochs": 1e-6,
    "batch_size": 1,
    "early_stopping_patience": 1,
    "num_molecules": 1,
    "repeats": 1,
}
# What a few hundred to a few thousand labels can fill, trained from random weights.
SCRATCH_ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_head_layers": 2,
    "hidden_dropout_prob": 0.1,
}


def _flag(default: Any, text: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def _required(text: str) -> Any:
    return field(metadata={"help": text})


def _validate_choice(name: str, value: str | None, *, choice: Any) -> None:
    if value is not None and value not in get_args(choice):
        raise ValueError(f"{name}={value!r} is unknown. Known: {list(get_args(choice))}.")


def _validate_smallest_values(arguments: object) -> None:
    for name, smallest in SMALLEST_VALUES.items():
        value = getattr(arguments, name, None)
        if value is not None and not value >= smallest:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {value} is too small. The least is {smallest}.")


@dataclass(kw_only=True)
class FinetuningArguments:
    """Everything `run_finetuning` needs to know; each field is a flag of `rmat finetune`."""

    dataset: str = _required("CSV, Parquet or SDF file, bundled name (freesolv) or Hub data set.")
    label_columns: list[str] = _required("Columns with the labels; several make it multi-task.")
    output_dir: str = _required("Folder to write; it becomes the whole predictor.")
    model: str = _flag(SCRATCH, "Model folder, Hub id, or 'scratch' for random weights.")
    model_revision: str | None = _flag(None, "Branch, tag or commit of a model on the Hub.")
    model_config: str | None = _flag(None, "JSON file with RMatConfig fields to override.")
    dataset_revision: str | None = _flag(None, "Branch, tag or commit of a data set on the Hub.")
    smiles_column: str = _flag("smiles", "Column with the SMILES.")
    label_units: list[str] = _flag([], "Unit of each label, for example kcal/mol.")
    problem_type: ProblemType = _flag("regression", "What the labels are.")
    split: SplitName = _flag("random", "How rows are divided into train, valid and test.")
    split_column: str | None = _flag(None, "Column with train / valid / test, for --split column.")
    seed: int = _flag(0, "Seed of split, weights and training.")
    overwrite: bool = _flag(False, "Replace the output folder if it has files.")
    resume: bool = _flag(False, "Continue an interrupted run of the same output folder.")
    geometry: Geometry | None = _flag(None, "Where distances come from. Default: the model's.")
    on_conformer_failure: ConformerFallback | None = _flag(
        None, "Geometry to step down to when no conformer is found. Default: drop the row."
    )
    molecule_descriptors: DescriptorSet | None = _flag(
        None,
        "Molecule descriptors to concatenate before the head. Default: the model's, else none.",
    )
    class_weighting: ClassWeighting = _flag("none", "Weight classes against their imbalance.")
    conflict_tolerance: float = _flag(
        0.1, "Labels of one molecule further apart than this many standard deviations conflict."
    )
    learning_rate: float | None = _flag(
        None, "Peak learning rate of AdamW. Default: 5e-4 from scratch, 1e-4 for a trained model."
    )
    num_train_epochs: float = _flag(60.0, "Most epochs.")
    batch_size: int = _flag(32, "Molecules in a batch.")
    weight_decay: float = _flag(0.01, "Weight decay of AdamW.")
    dropout: float | None = _flag(None, "Dropout of the hidden layers. Default: the model's.")
    warmup_ratio: float = _flag(0.1, "Share of the steps with a rising learning rate.")
    early_stopping_patience: int = _flag(
        30, "Epochs without a better validation metric after which training stops."
    )
    hpo_trials: int = _flag(
        0, "Settings of learning rate, dropout, weight decay and batch size to try on valid first."
    )
    num_workers: int = _flag(1, "Processes that featurize.")
    feature_cache: str | None = _flag(
        DEFAULT_CACHE,
        "Folder that keeps features for later runs: 'default' is ~/.cache/rmat-hf/features, "
        "'none' keeps nothing.",
    )
    license: str | None = _flag(None, "License of the model for its card, for example cc-by-4.0.")
    with_baselines: bool = _flag(False, "Fit random forest and SVM on the same split to compare.")
    report_to: list[str] = _flag(["none"], "Experiment trackers: tensorboard, trackio and so on.")
    training_arguments: str | None = _flag(
        None, "JSON file with transformers.TrainingArguments to override, for example bf16."
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for values that contradict each other."""
        if self.split == "column" and self.split_column is None:
            raise ValueError("--split column needs --split-column NAME.")
        if self.split != "column" and self.split_column is not None:
            raise ValueError(
                f"--split-column {self.split_column} needs --split column, not {self.split}."
            )
        if self.label_units and len(self.label_units) != len(self.label_columns):
            raise ValueError(
                f"--label-units has {len(self.label_units)} entries for "
                f"{len(self.label_columns)} label columns. Give one per column."
            )
        if self.label_units and self.problem_type != "regression":
            raise ValueError("--label-units is for regression: a class has no unit. Leave it out.")
        added = {*RESERVED_COLUMNS, *(f"prediction_{name}" for name in self.label_columns)}
        for name in self.label_columns:
            if name in added or self.label_columns.count(name) > 1:
                raise ValueError(
                    f"--label-columns: {name!r} is there twice, or is a column that the results "
                    f"add ({', '.join(sorted(added))}). Rename it in the table."
                )
        choices = {"problem_type": ProblemType, "split": SplitName}
        choices |= {"molecule_descriptors": DescriptorSet, "class_weighting": ClassWeighting}
        for name, choice in choices.items():
            _validate_choice(name, getattr(self, name), choice=choice)
        self._validate_values()
        if self.overwrite and self.resume:
            raise ValueError("--overwrite starts anew and --resume continues: choose one.")

    def _validate_values(self) -> None:
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"--dropout {self.dropout} is not a share from 0 to below 1.")
        if self.feature_cache == "":
            raise ValueError("--feature-cache is empty. Name a folder, 'default' or 'none'.")
        _validate_smallest_values(self)


@dataclass(kw_only=True)
class PredictionArguments:
    """Everything `run_prediction` and `run_embedding` need to know."""

    model: str = _required("Model folder written by rmat finetune, or Hub id.")
    output: str = _required("File to write: .csv or .parquet; embeddings: .parquet.")
    smiles: list[str] = _flag([], "Molecules as SMILES.")
    input: str | None = _flag(None, "CSV, Parquet or SDF file with the molecules.")
    smiles_column: str = _flag("smiles", "Column with the SMILES.")
    revision: str | None = _flag(None, "Branch, tag or commit of a model on the Hub.")
    batch_size: int = _flag(32, "Most molecules in one forward pass.")
    num_workers: int = _flag(0, "Processes that featurize beside the one that computes.")
    chunk_size: int = _flag(2048, "Rows in memory at a time.")
    feature_cache: str | None = _flag(
        NO_CACHE, "Folder of features to look up and to keep, 'default', or 'none'."
    )
    device: str | None = _flag(None, "Torch device. Default: the accelerator if there is one.")

    def __post_init__(self) -> None:
        """Raise a `ValueError` unless there is exactly one source of molecules."""
        if bool(self.smiles) == (self.input is not None):
            raise ValueError("Give the molecules either with --smiles or with --input.")


@dataclass(kw_only=True)
class ConversionArguments:
    """Everything `rmat convert` needs to know."""

    weights: str = _required("Weights of the authors' code: .pt or .safetensors.")
    config: str = _required("The authors' JSON configuration.")
    output_dir: str = _required("Folder to write.")
    pooling: Literal["attention", "mean", "dummy_node"] | None = _flag(
        None, "Pooling of the model. Default: the one in the weights, else mean."
    )


@dataclass(kw_only=True)
class BenchmarkArguments:
    """Everything `run_benchmark` needs to know; each field is a flag of `rmat bench`."""

    model: str = _flag(
        SCRATCH, "Model folder, Hub id, or random weights of a size: scratch, small or published."
    )
    revision: str | None = _flag(None, "Branch, tag or commit of a model on the Hub.")
    input: str = _flag("freesolv", "CSV, Parquet or SDF file, bundled name or Hub data set.")
    smiles_column: str = _flag("smiles", "Column with the SMILES.")
    num_molecules: int = _flag(256, "Molecules to measure with, evenly spaced over the table.")
    what: list[str] = _flag(
        list(get_args(BenchmarkStep)), f"What to measure, of {', '.join(get_args(BenchmarkStep))}."
    )
    batch_size: int = _flag(32, "Molecules in a batch.")
    num_workers: int = _flag(0, "Processes that featurize beside the one that computes.")
    geometry: Geometry | None = _flag(None, "Where distances come from. Default: the model's.")
    device: str | None = _flag(None, "Torch device. Default: the accelerator if there is one.")
    dtype: BenchmarkDtype = _flag("float32", "Precision; bfloat16 is by autocast.")
    repeats: int = _flag(3, "Timed passes over the molecules, after one that is not timed.")
    output_json: str | None = _flag(None, "JSON file to write beside the table on the screen.")

    def __post_init__(self) -> None:
        """Raise a `ValueError` for an unknown choice or a count that is too small."""
        if not self.what:
            raise ValueError(f"--what is empty. Known: {list(get_args(BenchmarkStep))}.")
        for step in self.what:
            _validate_choice("what", step, choice=BenchmarkStep)
        _validate_choice("geometry", self.geometry, choice=Geometry)
        _validate_choice("dtype", self.dtype, choice=BenchmarkDtype)
        _validate_smallest_values(self)
