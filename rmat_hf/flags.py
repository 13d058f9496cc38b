"""The fields of the argument classes, which become flags of the command line."""

from dataclasses import field
from typing import Any, get_args

SMALLEST_VALUES = {
    "seed": 0,
    "hpo_trials": 0,
    "num_workers": 0,
    "conflict_tolerance": 0,
    "weight_decay": 0,
    "warmup_ratio": 0,
    "learning_rate": 0,
    "head_learning_rate": 0,
    "num_train_epochs": 1e-6,
    "batch_size": 1,
    "early_stopping_patience": 1,
    "num_molecules": 1,
    "num_members": 1,
    "repeats": 1,
    "min_context_count": 1,
    "max_steps": 1,
    "max_pairs": 1,
    "gradient_accumulation_steps": 1,
    "num_evaluations": 1,
    "num_proc": 0,
    "num_resamples": 2,
    "num_folds": 3,
    "fold": 0,
}
# field → the split that it belongs to, what its flag takes, and whether that split needs it
SPLIT_FIELDS = {
    "split_column": ("column", "NAME", True),
    "time_column": ("time", "NAME", True),
    "num_folds": ("kfold", "K", True),
    "fold": ("kfold", "I", True),
    "cluster_cutoff": ("cluster", "DISTANCE", False),
}


def declare_flag(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and a help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def declare_required(text: str) -> Any:
    """Return a dataclass field that has to be given."""
    return field(metadata={"help": text})


def validate_choice(name: str, value: str | None, *, choice: Any) -> None:
    """Raise `ValueError` if a value is none of a `Literal`."""
    if value is not None and value not in get_args(choice):
        raise ValueError(f"{name}={value!r} is unknown. Known: {list(get_args(choice))}.")


def validate_smallest_values(arguments: object) -> None:
    """Raise `ValueError` if a field is below its value in `SMALLEST_VALUES`."""
    for name, smallest in SMALLEST_VALUES.items():
        value = getattr(arguments, name, None)
        if value is not None and not value >= smallest:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {value} is too small. The least is {smallest}.")


def validate_split_flags(arguments: Any) -> None:
    """Raise `ValueError` if a split lacks a flag of its own, or a flag is of another split.

    Args:
        arguments: With `split`, the fields of `SPLIT_FIELDS`, `num_members` and `member_folds`.
    """
    if arguments.member_folds and arguments.num_members < 2:
        raise ValueError("--member-folds needs --num-members 2 or more: one fold for each.")
    for name, (split, placeholder, is_needed) in SPLIT_FIELDS.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(arguments, name)
        if value is None and is_needed and arguments.split == split:
            raise ValueError(f"--split {split} needs {flag} {placeholder}.")
        if value is not None and arguments.split != split:
            raise ValueError(f"{flag} {value} needs --split {split}, not {arguments.split}.")
    if arguments.cluster_cutoff is not None and not 0 < arguments.cluster_cutoff < 1:
        raise ValueError(
            f"--cluster-cutoff {arguments.cluster_cutoff} is no distance between 0 and 1."
        )
    if arguments.fold is not None and arguments.fold >= arguments.num_folds:
        raise ValueError(
            f"--fold {arguments.fold} is not there: {arguments.num_folds} folds count from 0 to "
            f"{arguments.num_folds - 1}."
        )
