"""The ways to divide a table. To add one, write its function and give it a name in `SPLITS`."""

import inspect
import sys
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from rmat_hf.data.splits.column_splits import (
    TimeColumn,
    group_by_period,
    parse_split_cells,
    split_by_column,
    split_by_time,
)
from rmat_hf.data.splits.molecule_splits import (
    fill_folds,
    group_by_cluster,
    group_by_molecule,
    group_by_scaffold,
    name_by_parent,
    split_by_balanced_scaffold,
    split_by_cluster,
    split_by_fold,
    split_by_scaffold,
    split_randomly,
)
from rmat_hf.data.splits.parts import DEFAULT_FRACTIONS, SplitIndices
from rmat_hf.errors import UserError
from rmat_hf.flags import name_flag
from rmat_hf.model.features_rmat import MoleculeError, parse_canonical

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

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
# What a split keeps together, with parameters likewise; the others keep molecules.
GROUPS: dict[str, Callable[..., dict[str, list[int]]]] = {
    "scaffold": group_by_scaffold,
    "scaffold_balanced": group_by_scaffold,
    "cluster": group_by_cluster,
    "time": group_by_period,
}
# parameter → the column of `load_training_table` that it takes
COLUMNS = {"smiles": "canonical_smiles", "words": "split", "times": "time"}
# Of `load_training_table`, with what else rows have in common that stand in one part.
GROUP_COLUMN = "group"
# Splits that know molecules alone, and so divide by groups of them as well.
_OF_NAMES = ("random", "kfold")


def split_dataset(
    dataset: "Dataset",
    method: str = "random",
    *,
    seed: int = 0,
    smiles_column: str = "smiles",
    **options: Any,
) -> "DatasetDict":
    """Divide the rows of a data set into train, valid and test (80, 10 and 10 %).

    Rows of one molecule, its salts, charges and tautomers are in one part, except that the words
    of a column are taken as they are. A metric says something only beside others of the same split.

    Args:
        dataset (`datasets.Dataset`): From [`featurize_dataset`], or any with a column of SMILES.
        method (`str`, *optional*, defaults to `"random"`):
            `"scaffold"` (deterministic: the rarest Bemis-Murcko scaffolds to test),
            `"scaffold_balanced"` (seeded, easier), `"cluster"` (Butina clusters of ECFP4),
            `"time"`, `"kfold"`, `"column"` or another name in `SPLITS`. With a `split_column` that
            has no valid rows, what divides train once more.
        seed (`int`, *optional*, defaults to 0): For those that draw.
        smiles_column (`str`, *optional*, defaults to `"smiles"`):
            Of rows that are not featurized yet.
        options: What the method needs or takes: `split_column` (with the words train, valid and
            test), `group_column` (rows of one value stand in one part), `time_column` (numbers or
            dates), `num_folds` and `fold`, `cluster_cutoff` (Tanimoto distance), `fractions`.

    Returns:
        `datasets.DatasetDict` with `"train"`, `"valid"` and `"test"`: together all rows, in order.

    Raises:
        UserError: A SMILES cannot be parsed, an option is missing or of another method, or train or
            test would be empty.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import split_dataset
    >>> table = Dataset.from_dict({"smiles": ["C" * size for size in range(1, 21)]})
    >>> parts = split_dataset(table, "random", seed=0)
    >>> {part: len(rows) for part, rows in parts.items()}
    {'train': 16, 'valid': 2, 'test': 2}

    ```
    """
    from datasets import DatasetDict

    validate_split(method, options)
    columns: dict[str, Any] = {}
    groups_column = COLUMNS["smiles"]
    if groups_column in dataset.column_names:
        columns[groups_column] = dataset[groups_column][:]
    else:
        columns[groups_column] = list(map(_canonicalize, dataset[smiles_column][:], count()))
    if "time_column" in options:
        options["time_column"] = TimeColumn(options["time_column"])
    for name in (options.get("split_column"), options.get("time_column")):
        if name is not None:
            groups, rows = name_by_parent(columns[groups_column]), range(len(dataset))
            columns |= parse_split_cells(name, dataset[name][:], rows=rows, groups=groups)
    if group_column := options.get("group_column"):
        columns[GROUP_COLUMN] = dataset[group_column][:]
    split = split_rows(columns, method, seed=seed, **options)
    return DatasetDict({part: dataset.select(rows) for part, rows in vars(split).items()})


def _canonicalize(smiles: str, row: int) -> str:
    try:
        parsed = parse_canonical(smiles, max_atoms=sys.maxsize)
    except MoleculeError as error:
        raise UserError(f"Row {row}: {smiles!r}: {error.reason}. Fix or drop the row.") from error
    return parsed.canonical_smiles or ""


def split_rows(
    dataset: Any, split: str = "random", *, seed: int = 0, **options: Any
) -> SplitIndices:
    """Divide the rows of a table into train, valid and test.

    Args:
        dataset (`datasets.Dataset` or `Mapping[str, Sequence]`):
            With the column `canonical_smiles`, and `split` or `time` if the split is by one.
    """
    validate_split(split, options)
    if options.get("split_column") is None:
        return _call(SPLITS[split], dataset, values={"seed": seed, **options})
    column = options.pop("split_column")
    parts = split_by_column(dataset[COLUMNS["words"]][:], split_column=column)
    if len(parts.valid):
        return parts
    # of an own train and test, valid is as large a share of train as of a table without parts
    family = "random" if split == "column" else split
    train, valid, _ = DEFAULT_FRACTIONS
    options["fractions"] = (train / (train + valid), 0.0, valid / (train + valid))
    names = (COLUMNS["smiles"], GROUP_COLUMN)
    known = [name for name in names if name in getattr(dataset, "column_names", dataset)]
    columns = {name: dataset[name][:] for name in known}
    rows = {name: [cells[row] for row in parts.train] for name, cells in columns.items()}
    divided = _call(SPLITS[family], rows, values={"seed": seed, **options})
    return SplitIndices(parts.train[divided.train], parts.train[divided.test], parts.test)


def split_into_folds(
    dataset: Any, split: str = "random", *, most_folds: int, seed: int = 0, **options: Any
) -> np.ndarray:
    """Divide rows into folds of the family of a split: what this keeps together stays together.

    Held out in turn, they tell of train and valid what the split tells of test: of new scaffolds
    for `"scaffold"`, of new clusters for `"cluster"`, of other periods for `"time"`, else of new
    molecules.

    Returns:
        `np.ndarray` of shape `(num_rows,)`, int64: the fold of each row.
    """
    validate_split(split, options)
    values = {**options, "num_folds": most_folds}
    groups = _call(GROUPS.get(split, group_by_molecule), dataset, values=values)
    return fill_folds(groups, num_folds=most_folds, seed=seed)


def _call(function: Callable[..., Any], dataset: Any, *, values: dict[str, Any]) -> Any:
    """Call a function with the columns and those of the values that it takes."""
    parameters = inspect.signature(function).parameters
    values = values | {name: dataset[COLUMNS[name]][:] for name in parameters if name in COLUMNS}
    if "smiles" in values:
        is_grouped = GROUP_COLUMN in getattr(dataset, "column_names", dataset)
        groups = dataset[GROUP_COLUMN][:] if is_grouped else None
        values["smiles"] = name_by_parent(values["smiles"], groups=groups)
    return function(**{name: values[name] for name in parameters if name in values})


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


def can_carve(split: str) -> bool:
    """Tell whether a split takes valid out of train where a column gives train and test."""
    return "split_column" in _find_options(split)


def _find_options(split: str) -> dict[str, bool]:
    """Return the options of a split, and whether they have to be given."""
    parameters = inspect.signature(SPLITS[split]).parameters
    options = {
        name: parameter.default is parameter.empty
        for name, parameter in parameters.items()
        if name != "seed" and name not in COLUMNS
    }
    # what divides molecules into shares divides train as well, where a column gives the parts
    if {"smiles", "fractions"} <= {*parameters} and "times" not in parameters:
        options["split_column"] = False
    if split in _OF_NAMES:
        options["group_column"] = False
    return options
