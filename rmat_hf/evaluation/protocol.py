"""The protocol of an accuracy benchmark: a JSON file, checked before anything is computed."""

import hashlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rmat_hf.data.sources import list_bundled_datasets, open_table
from rmat_hf.data.splits.registry import SPLITS
from rmat_hf.data.tables import find_kind, validate_columns
from rmat_hf.loading import find_checkpoint
from rmat_hf.training.arguments import FinetuningArguments, load_json_fields
from rmat_hf.training.baselines import BASELINES

SECTIONS = ("datasets", "models", "baselines", "predictions")
PROBLEM_TYPES = ("regression", "multi_label_classification")
# What the benchmark itself decides for each run.
MANAGED_FIELDS = {
    *("output_dir", "split", "split_column", "fold", "seed", "overwrite", "resume"),
    "with_baselines",
    *("report_to", "num_workers", "feature_cache", "license"),
}
DATASET_FIELDS = {
    *("dataset", "dataset_revision", "label_columns", "label_units", "problem_type"),
    *("smiles_column", "conflict_tolerance", "time_column", "num_folds", "cluster_cutoff"),
}
CHUNK_SIZE = 1 << 20
KFOLD_PREFIX = "fold_"


@dataclass(frozen=True)
class Fold:
    """One division of a data set into parts, and the seed of everything that is fitted on it."""

    dataset: str
    split: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset}, {self.split}, seed {self.seed}"


@dataclass(frozen=True)
class DatasetProtocol:
    """A data set of the benchmark.

    Args:
        options (`dict[str, Any]`): Fields of `FinetuningArguments` that describe it.
        splits (`list[str]`): Columns of the words train, valid and test; or one name of a split,
            `fold_0` and so on for `"kfold"`.
        has_split_columns (`bool`): Which of the two.
        seeds (`list[int]`): Seeds to repeat every split with.
        checksum (`str`): SHA-256 of the file; id and revision of a data set on the Hub.
    """

    options: dict[str, Any]
    splits: list[str]
    has_split_columns: bool
    seeds: list[int]
    checksum: str

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers and not classes."""
        return bool(self.options["problem_type"] == "regression")

    def build_split_fields(self, split: str) -> dict[str, Any]:
        """Return the fields of `FinetuningArguments` that choose a split."""
        if self.has_split_columns:
            return {"split": "column", "split_column": split}
        if split.startswith(KFOLD_PREFIX):
            return {"split": "kfold", "fold": int(split.removeprefix(KFOLD_PREFIX))}
        return {"split": split}


@dataclass(frozen=True)
class Protocol:
    """What to compare, and on what.

    Args:
        datasets (`dict[str, DatasetProtocol]`): Data sets by name.
        models (`dict[str, dict[str, Any]]`): Fields of `FinetuningArguments` by name of a model.
        baselines (`list[str]`): Of `rmat_hf.training.baselines.BASELINES`.
        predictions (`dict[str, Path]`): Files of other tools by name of the tool.
        content (`dict[str, Any]`): The JSON file.
    """

    datasets: dict[str, DatasetProtocol]
    models: dict[str, dict[str, Any]]
    baselines: list[str]
    predictions: dict[str, Path]
    content: dict[str, Any]

    def list_folds(self) -> list[Fold]:
        """Return every data set with each of its splits and seeds, in the order of the file."""
        return [
            Fold(name, split, seed)
            for name, dataset in self.datasets.items()
            for split in dataset.splits
            for seed in dataset.seeds
        ]


def load_protocol(path: str | Path, *, data: str | Path) -> Protocol:
    """Load and check the protocol of a benchmark.

    The file has four objects, of which the last two may be left out:

    - `datasets`: by name `dataset` (a file in the data folder, bundled name or Hub id),
      `label_columns`, `problem_type`, `splits` (a list of columns, or the name of a split of
      `rmat finetune`), `seeds`, and other fields of `FinetuningArguments` that describe data.
    - `models`: by name every other field of `FinetuningArguments`.
    - `baselines`: a list of names.
    - `predictions`: by name of a tool the file with its predictions.

    Paths in `models` and `predictions` count from the current folder, as flags do.

    Args:
        path (`str` or `Path`): The JSON file.
        data (`str` or `Path`): Folder of the tables.

    Returns:
        [`Protocol`].

    Raises:
        ValueError: If a field is unknown or of the wrong kind, or a file or column is missing.
    """
    content = load_json_fields(str(path))
    source = Path(path).name
    _validate_names(content, SECTIONS, required=("datasets", "models"), where=source)
    sections = {name: content.get(name, {}) for name in ("datasets", "models", "predictions")}
    for name, section in sections.items():
        if not isinstance(section, dict) or (name != "predictions" and not section):
            raise ValueError(f"{source}: {name!r} must be an object with one entry per name.")
    for name in ("datasets", "models"):
        for entry, options in sections[name].items():
            if not isinstance(options, dict):
                raise ValueError(f"{source}: {name}: {entry!r} must be an object of fields.")
    datasets = {
        name: _load_dataset(options, folder=Path(data), where=f"{source}: data set {name!r}")
        for name, options in sections["datasets"].items()
    }
    _validate_models(sections["models"], where=source)
    baselines = content.get("baselines", [])
    for name in _expect_list(baselines, str, where=f"{source}: baselines"):
        if name not in BASELINES:
            raise ValueError(
                f"{source}: baselines: {name!r} is unknown. Known: {', '.join(BASELINES)}."
            )
    predictions = _find_prediction_files(sections["predictions"], where=source)
    _validate_distinct([*sections["models"], *baselines, *predictions], where=source)
    return Protocol(datasets, sections["models"], baselines, predictions, content)


def is_dataset_field(name: str) -> bool:
    """Return whether a field of `FinetuningArguments` describes data and not a model."""
    return name in DATASET_FIELDS


def compute_file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


def compute_model_checksum(model: str) -> str:
    """Return the SHA-256 of weights, configuration and processor in a folder; empty for others."""
    folder = Path(find_checkpoint(model))
    if not folder.is_dir():
        return ""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    checksums = "".join(f"{path.name} {compute_file_checksum(path)}\n" for path in files)
    return hashlib.sha256(checksums.encode()).hexdigest()


def _load_dataset(options: dict[str, Any], *, folder: Path, where: str) -> DatasetProtocol:
    known = [field.name for field in fields(FinetuningArguments) if is_dataset_field(field.name)]
    required = ("dataset", "label_columns", "problem_type", "splits", "seeds")
    _validate_names(options, [*sorted(known), "splits", "seeds"], required=required, where=where)
    chosen = {name: value for name, value in options.items() if name not in ("splits", "seeds")}
    _validate_kinds(chosen, where=where)
    if chosen["problem_type"] not in PROBLEM_TYPES:
        raise ValueError(
            f"{where}: problem_type {chosen['problem_type']!r} cannot be benchmarked. Choose one "
            f"of {', '.join(PROBLEM_TYPES)}; classes become one 0/1 column each."
        )
    if not chosen["label_columns"]:
        raise ValueError(f"{where}: label_columns is empty. Name the columns of the labels.")
    splits, has_split_columns = options["splits"], isinstance(options["splits"], list)
    split_names = [name for name in SPLITS if name != "column"]
    if not has_split_columns and splits not in split_names:
        raise ValueError(
            f"{where}: splits is {splits!r}. Give a list of columns, or one of "
            f"{', '.join(split_names)}."
        )
    if has_split_columns:
        splits = _expect_list(splits, str, where=f"{where}: splits")
    elif splits == "kfold":
        splits = [f"{KFOLD_PREFIX}{idx}" for idx in range(chosen.get("num_folds") or 0)]
    else:
        splits = [splits]
    seeds = _expect_list(options["seeds"], int, where=f"{where}: seeds")
    if not splits or not seeds:
        raise ValueError(
            f"{where}: splits and seeds need at least one entry each, and kfold needs num_folds."
        )
    chosen["dataset"], checksum = _find_table(chosen, folder=folder, where=where)
    table = open_table(
        chosen["dataset"], revision=chosen.get("dataset_revision"), joins_splits=True
    )
    columns = [chosen.get("smiles_column", "smiles"), *chosen["label_columns"]]
    columns += splits if has_split_columns else []
    columns += [chosen["time_column"]] if chosen.get("time_column") is not None else []
    validate_columns(table.column_names, columns, source=f"{where}: {options['dataset']}")
    return DatasetProtocol(chosen, splits, has_split_columns, seeds, checksum)


def _validate_models(models: Mapping[str, dict[str, Any]], *, where: str) -> None:
    known = {field.name for field in fields(FinetuningArguments)} - MANAGED_FIELDS
    known = {name for name in known if not is_dataset_field(name)}
    for name, options in models.items():
        _validate_names(options, sorted(known), required=(), where=f"{where}: model {name!r}")
        _validate_kinds(options, where=f"{where}: model {name!r}")


def _find_prediction_files(files: Mapping[str, Any], *, where: str) -> dict[str, Path]:
    for name, file in files.items():
        if not isinstance(file, str) or not Path(file).is_file():
            raise ValueError(f"{where}: predictions: {name!r}: there is no file {file!r}.")
    return {name: Path(file) for name, file in files.items()}


def _find_table(options: Mapping[str, Any], *, folder: Path, where: str) -> tuple[str, str]:
    """Return what `rmat finetune` calls the data set, and its checksum."""
    name, revision = options["dataset"], options.get("dataset_revision")
    path = folder / name
    if path.is_file():
        return str(path), compute_file_checksum(path)
    if find_kind(name):
        raise ValueError(f"{where}: there is no file {name!r} in the data folder {folder.name!r}.")
    if name in list_bundled_datasets():
        return name, compute_file_checksum(Path(open_table(name).files[0]))
    if revision is None:
        raise ValueError(
            f"{where}: {name!r} is no file in the data folder {folder.name!r}. If it is a data set "
            "on the Hub, set dataset_revision to a commit, so that everybody has the same rows."
        )
    return name, f"{name}@{revision}"


def _validate_names(
    content: Mapping[str, Any], known: Sequence[str], *, required: Sequence[str], where: str
) -> None:
    for name in content:
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}. Known: {', '.join(known)}.")
    for name in required:
        if name not in content:
            raise ValueError(f"{where}: the field {name!r} is missing. Add it.")


def _validate_kinds(options: Mapping[str, Any], *, where: str) -> None:
    hints = get_type_hints(FinetuningArguments)
    for name, value in options.items():
        if not _is_of_kind(value, hints[name]):
            kind = getattr(hints[name], "__name__", "") if isinstance(hints[name], type) else ""
            kind = kind or str(hints[name]).replace("typing.", "")
            raise ValueError(f"{where}: {name} is {value!r}, which is no {kind}.")


def _is_of_kind(value: object, hint: Any) -> bool:
    if isinstance(hint, types.UnionType) or get_origin(hint) not in (None, list, Literal):
        return any(_is_of_kind(value, option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is list:
        (kind,) = get_args(hint)
        return isinstance(value, list) and all(_is_of_kind(item, kind) for item in value)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _expect_list(value: Any, kind: type, *, where: str) -> list[Any]:
    if not isinstance(value, list) or not all(_is_of_kind(item, kind) for item in value):
        raise ValueError(f"{where}: {value!r} is no list of {kind.__name__} values.")
    _validate_distinct(value, where=where)
    return value


def _validate_distinct(names: Sequence[object], *, where: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where}: {name!r} is there twice. Every entry needs its own name.")
