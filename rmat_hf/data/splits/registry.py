"""The ways to divide a table. To add one, write its function and give it a name in `SPLITS`."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rmat_hf.data.splits.column_splits import split_by_column, split_by_time
from rmat_hf.data.splits.molecule_splits import (
    split_by_balanced_scaffold,
    split_by_cluster,
    split_by_fold,
    split_by_scaffold,
    split_randomly,
)
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.errors import UserError
from rmat_hf.flags import name_flag

# A function takes columns, by the names in `COLUMNS`, a seed if it draws, and options, which are
# the other parameters: those without a default have to be given, as flags of `rmat finetune`.
SPLITS: dict[str, Callable[..., SplitIndices]] = {
    "random": split_randomly,
    "scaffold": split_by_scaffold,
    "scaffold_balanced": split_by_balanced_scaffold,
    "cluster": split_by_cluster,
    "time": split_by_time,
    "kfold": split_by_fold,
    "column": split_by_column,
}
# parameter → the column of `load_training_table` that it takes
COLUMNS = {"smiles": "canonical_smiles", "words": "split", "times": "time"}


def split_dataset(
    dataset: Any, split: str = "random", *, seed: int = 0, **options: Any
) -> SplitIndices:
    """Divide the rows of a table into train, valid and test.

    Args:
        dataset (`datasets.Dataset` or `Mapping[str, Sequence]`):
            With the column `canonical_smiles`, and `split` or `time` if the split is by one.
        split (`str`, *optional*, defaults to `"random"`): A name in `SPLITS`.
        seed (`int`, *optional*, defaults to 0): For those that draw.
        **options: Of the function in `SPLITS`, for example `num_folds=5, fold=0`.

    Raises:
        UserError: If an option is missing or of another split, or a part would be empty.
    """
    validate_split(split, options)
    values = {"seed": seed, **options}
    parameters = inspect.signature(SPLITS[split]).parameters
    values |= {name: dataset[COLUMNS[name]][:] for name in parameters if name in COLUMNS}
    return SPLITS[split](**{name: values[name] for name in parameters if name in values})


def find_split_options(arguments: Any) -> dict[str, Any]:
    """Return the fields of a dataclass of flags that are options of a split and are given."""
    names = sorted({name for split in SPLITS for name in _find_options(split)})
    values = {name: getattr(arguments, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def validate_split(split: str, options: Mapping[str, Any]) -> None:
    """Raise a `UserError` if a split is unknown, lacks an option, or has one of another split."""
    if split not in SPLITS:
        raise UserError(f"--split {split!r} is unknown. Known: {list(SPLITS)}.")
    own = _find_options(split)
    for name, is_needed in own.items():
        if is_needed and name not in options:
            raise UserError(f"--split {split} needs {name_flag(name)}.")
    for name in options.keys() - own.keys():
        owners = " or ".join(other for other in SPLITS if name in _find_options(other))
        raise UserError(f"{name_flag(name)} {options[name]} needs --split {owners}, not {split}.")


def _find_options(split: str) -> dict[str, bool]:
    """Return the options of a split, and whether they have to be given."""
    parameters = inspect.signature(SPLITS[split]).parameters
    return {
        name: parameter.default is parameter.empty
        for name, parameter in parameters.items()
        if name != "seed" and name not in COLUMNS
    }
