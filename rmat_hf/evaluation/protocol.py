"""The protocol of an accuracy benchmark: a JSON file, checked before anything is computed."""

import hashlib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rmat_hf.data.sources import list_bundled_datasets, open_table
from rmat_hf.data.splits.registry import SPLITS
from rmat_hf.data.tables import find_kind, validate_columns
from rmat_hf.errors import UserError
from rmat_hf.loading import find_checkpoint
from rmat_hf.training.arguments import FinetuningArguments, load_json_fields
from rmat_hf.training.baselines import BASELINES

PROBLEM_TYPES = ("regression", "multi_label_classification")
# What the benchmark itself decides for each run.
MANAGED_FIELDS = {
    *("output_dir", "split", "split_column", "fold", "seed", "overwrite", "resume"),
    *("with_baselines", "report_to", "num_workers", "feature_cache", "license"),
}
DATASET_FIELDS = (
    *("dataset", "dataset_revision", "label_columns", "label_units", "problem_type"),
    *("smiles_column", "conflict_tolerance", "time_column", "num_folds", "cluster_cutoff"),
)
REQUIRED = ("dataset", "label_columns", "problem_type", "splits", "seeds")
KFOLD_PREFIX = "fold_"
ANY_NAME = "*"


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

    Raises:
        UserError: If a field is unknown or of the wrong kind, or a file or column is missing.
    """
    content = load_json_fields(str(path))
    for problem in _iterate_problems(content, folder=Path(data)):
        raise UserError(f"{Path(path).name}: {problem}")
    datasets = {
        name: _build_dataset(options, folder=Path(data), where=f"{Path(path).name}: {name}")
        for name, options in content["datasets"].items()
    }
    predictions = {name: Path(file) for name, file in content.get("predictions", {}).items()}
    return Protocol(datasets, content["models"], content.get("baselines", []), predictions, content)


def compute_file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def compute_model_checksum(model: str) -> str:
    """Return the SHA-256 of weights, configuration and processor in a folder; empty for others."""
    folder = Path(find_checkpoint(model))
    if not folder.is_dir():
        return ""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])
    checksums = "".join(f"{path.name} {compute_file_checksum(path)}\n" for path in files)
    return hashlib.sha256(checksums.encode()).hexdigest()


def _build_dataset(options: dict[str, Any], *, folder: Path, where: str) -> DatasetProtocol:
    chosen = {name: value for name, value in options.items() if name not in ("splits", "seeds")}
    name, revision = options["dataset"], options.get("dataset_revision")
    if (folder / name).is_file():
        chosen["dataset"] = str(folder / name)
    table = open_table(chosen["dataset"], revision=revision, joins_splits=True)
    is_file = name in list_bundled_datasets() or (folder / name).is_file()
    checksum = compute_file_checksum(Path(table.files[0])) if is_file else f"{name}@{revision}"
    splits = options["splits"]
    has_split_columns = isinstance(splits, list)
    columns = [chosen.get("smiles_column", "smiles"), *chosen["label_columns"]]
    columns += splits if has_split_columns else []
    columns += [chosen["time_column"]] if chosen.get("time_column") is not None else []
    validate_columns(table.column_names, columns, source=f"{where}: {name}")
    if splits == "kfold":
        splits = [f"{KFOLD_PREFIX}{idx}" for idx in range(chosen["num_folds"])]
    elif not has_split_columns:
        splits = [splits]
    return DatasetProtocol(chosen, splits, has_split_columns, options["seeds"], checksum)


# What may be wrong with it


def _iterate_problems(content: dict[str, Any], *, folder: Path) -> Iterator[str]:
    """Yield sentences on what is wrong; each may rely on what the ones before it have checked."""
    hints = get_type_hints(FinetuningArguments)
    model = {field.name: hints[field.name] for field in fields(FinetuningArguments)}
    dataset = {name: model.pop(name) for name in DATASET_FIELDS}
    dataset |= {"splits": list[str] | str, "seeds": list[int]}
    for name in MANAGED_FIELDS:
        del model[name]
    known = {"datasets": {ANY_NAME: dataset}, "models": {ANY_NAME: model}}
    known |= {"baselines": list[str], "predictions": {ANY_NAME: str}}  # type: ignore[dict-item]  # kinds
    yield from _find_kinds(content, known, where="")
    for name in ("datasets", "models"):
        if not content.get(name):
            yield f"{name!r} must be an object with one entry per name."
    for name, options in content["datasets"].items():
        for problem in _find_contradictions(options, folder=folder):
            yield f"data set {name!r}: {problem}"
    baselines, predictions = content.get("baselines", []), content.get("predictions", {})
    if unknown := [name for name in baselines if name not in BASELINES]:
        yield f"baselines: {unknown[0]!r} is unknown. Known: {', '.join(BASELINES)}."
    for name, file in predictions.items():
        if not Path(file).is_file():
            yield f"predictions: {name!r}: there is no file {file!r}."
    yield from _find_repeated([*content["models"], *baselines, *predictions])


def _find_contradictions(options: Mapping[str, Any], *, folder: Path) -> Iterator[str]:
    for name in REQUIRED:
        if name not in options:
            yield f"the field {name!r} is missing. Add it."
        if options[name] in ([], ""):
            yield f"{name} is empty. Name at least one."
    if options["problem_type"] not in PROBLEM_TYPES:
        yield (
            f"problem_type {options['problem_type']!r} cannot be benchmarked. Choose one of "
            f"{', '.join(PROBLEM_TYPES)}; classes become one 0/1 column each."
        )
    splits = options["splits"]
    names = [name for name in SPLITS if name != "column"]
    if isinstance(splits, str) and splits not in names:
        yield f"splits is {splits!r}. Give a list of columns, or one of {', '.join(names)}."
    if splits == "kfold" and not options.get("num_folds"):
        yield "splits: kfold needs num_folds."
    yield from _find_repeated([] if isinstance(splits, str) else splits)
    yield from _find_repeated(options["seeds"])
    name = options["dataset"]
    if (folder / name).is_file() or name in list_bundled_datasets():
        return
    if find_kind(name):
        yield f"there is no file {name!r} in the data folder {folder.name!r}."
    if options.get("dataset_revision") is None:
        yield (
            f"{name!r} is no file in the data folder {folder.name!r}. If it is a data set on the "
            "Hub, set dataset_revision to a commit, so that everybody has the same rows."
        )


def _find_repeated(names: Sequence[object]) -> Iterator[str]:
    for name in names:
        if names.count(name) > 1:
            yield f"{name!r} is there twice. Every entry needs its own name."


def _find_kinds(value: Any, kind: Any, *, where: str) -> Iterator[str]:
    """Yield what is of another kind: a type, or for an object the kinds of its fields by name."""
    if not isinstance(kind, dict):
        if not _is_of_kind(value, kind):
            name = str(kind) if get_args(kind) else kind.__name__
            yield f"{where}is {value!r}, which is no {name}."
        return
    if not isinstance(value, dict):
        yield f"{where}must be an object of fields."
        return
    for name, item in value.items():
        if name not in kind and ANY_NAME not in kind:
            yield f"{where}unknown field {name!r}. Known: {', '.join(kind)}."
        else:
            yield from _find_kinds(
                item, kind.get(name, kind.get(ANY_NAME)), where=f"{where}{name}: "
            )


def _is_of_kind(value: object, kind: Any) -> bool:
    if isinstance(kind, types.UnionType) or get_origin(kind) not in (None, list, Literal):
        return any(_is_of_kind(value, option) for option in get_args(kind))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of_kind(it, get_args(kind)[0]) for it in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)
