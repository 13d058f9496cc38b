"""The protocol of an accuracy benchmark: a JSON file, checked before anything is computed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from huggingface_hub.dataclasses import type_validator

from rmat_hf.data.sources import list_bundled_datasets, open_table
from rmat_hf.data.splits.registry import SPLITS
from rmat_hf.data.tables import validate_columns
from rmat_hf.errors import UserError
from rmat_hf.loading import find_checkpoint
from rmat_hf.output_folder import load_json
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.baselines import BASELINES

# What the benchmark itself decides for each run.
MANAGED_FIELDS = {
    *("output_dir", "split", "split_column", "fold", "seed", "overwrite", "resume"),
    *("with_baselines", "report_to", "num_workers", "feature_cache", "license"),
}
DATASET_FIELDS = (
    *("dataset", "dataset_revision", "label_columns", "label_units", "problem_type"),
    *("smiles_column", "conflict_tolerance", "time_column", "num_folds", "cluster_cutoff"),
)
# Flags that name a JSON file or are its content.
JSON_FIELDS = ("model_config", "training_arguments")
REQUIRED = ("dataset", "label_columns", "problem_type", "splits", "seeds")
PROBLEM_TYPES = Literal["regression", "multi_label_classification"]
SPLIT_NAMES: Any = Literal[tuple(name for name in SPLITS if name != "column")]
SECTIONS: dict[str, Any] = {
    "datasets": dict[str, dict[str, Any]],
    "models": dict[str, dict[str, Any]],
    "baselines": list[Literal[tuple(BASELINES)]],  # type: ignore[misc]  # known when it runs
    "predictions": dict[str, str],
}


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
    """A data set of the benchmark; `splits` has the `FinetuningArguments` that choose each."""

    options: dict[str, Any]
    splits: dict[str, dict[str, Any]]
    seeds: list[int]
    checksum: str

    @property
    def is_regression(self) -> bool:
        """Whether the labels are numbers and not classes."""
        return bool(self.options["problem_type"] == "regression")


@dataclass(frozen=True)
class Protocol:
    """What to compare, and on what."""

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
    - `models`: by name every other field of `FinetuningArguments`, of which `model_config` and
      `training_arguments` may be objects; and `grid`, by field a list of values, of which all
      combinations are trained and, on each fold, the best on valid is the model.
    - `baselines`: a list of names.
    - `predictions`: by name of a tool the file with its predictions.

    Paths in `models` and `predictions` count from the current folder, as flags do.
    """
    content = load_json(path)
    for problem in _iterate_problems(content, folder=Path(data)):
        raise UserError(f"{Path(path).name}: {problem}")
    datasets = {
        name: _build_dataset(options, folder=Path(data), where=f"{Path(path).name}: {name}")
        for name, options in content["datasets"].items()
    }
    predictions = {name: Path(file) for name, file in content.get("predictions", {}).items()}
    return Protocol(datasets, content["models"], content.get("baselines", []), predictions, content)


def list_settings(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every combination of the values in the grid of a model; without one, an empty one."""
    grid = options.get("grid", {})
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


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
    columns = [chosen.get("smiles_column", "smiles"), *chosen["label_columns"]]
    given = options["splits"]
    if isinstance(given, list):
        columns += given
        splits = {it: {"split": "column", "split_column": it} for it in given}
    elif given == "kfold":
        folds = range(chosen["num_folds"])
        splits = {f"fold_{idx}": {"split": given, "fold": idx} for idx in folds}
    else:
        splits = {given: {"split": given}}
    if chosen.get("time_column") is not None:
        columns.append(chosen["time_column"])
    validate_columns(table.column_names, columns, source=f"{where}: {name}")
    return DatasetProtocol(chosen, splits, options["seeds"], checksum)


# What may be wrong with it


def _iterate_problems(content: dict[str, Any], *, folder: Path) -> Iterator[str]:
    """Yield sentences on what is wrong; each may rely on what the ones before it have checked."""
    model = {name: _allow_int(hint) for name, hint in get_type_hints(FinetuningArguments).items()}
    dataset = {name: model.pop(name) for name in DATASET_FIELDS}
    dataset |= {
        "problem_type": PROBLEM_TYPES,
        "splits": list[str] | SPLIT_NAMES,
        "seeds": list[int],
    }
    model = {name: hint for name, hint in model.items() if name not in MANAGED_FIELDS}
    model |= dict.fromkeys(JSON_FIELDS, str | dict[str, Any] | None)
    yield from _find_wrong(content, SECTIONS, required=("datasets", "models"))
    for name, options in content["datasets"].items():
        for problem in _find_wrong(options, dataset, required=REQUIRED):
            yield f"data set {name!r}: {problem}"
        for problem in _find_contradictions(options, folder=folder):
            yield f"data set {name!r}: {problem}"
    for name, options in content["models"].items():
        for problem in _find_wrong(options, {**model, "grid": dict[str, list[Any]]}):
            yield f"model {name!r}: {problem}"
        settings = list_settings(options)
        if not settings:
            yield f"model {name!r}: a field of the grid has no value. Give it one, or drop it."
        for setting in settings:
            for problem in _find_wrong(setting, model):
                yield f"model {name!r}, grid: {problem}"
    methods = [content["models"], content.get("baselines", []), content.get("predictions", {})]
    yield from _find_repeated([name for names in methods for name in names])


def _allow_int(hint: Any) -> Any:
    """JSON writes 1.0 as 1."""
    return hint | int if float in (hint, *get_args(hint)) else hint


def _find_wrong(
    options: Mapping[str, Any], kinds: Mapping[str, Any], *, required: Sequence[str] = ()
) -> Iterator[str]:
    """Yield what is missing, unknown or of another kind."""
    for name in required:
        if not options.get(name):
            yield f"the field {name!r} is missing or empty. Fill it in."
    for name, value in options.items():
        if name not in kinds:
            yield f"unknown field {name!r}. Known: {', '.join(kinds)}."
        try:
            type_validator(name, value, kinds[name])
        except TypeError as error:
            yield f"{error.__cause__ or error}."


def _find_contradictions(options: Mapping[str, Any], *, folder: Path) -> Iterator[str]:
    name, splits = options["dataset"], options["splits"]
    if splits == "kfold" and not options.get("num_folds"):
        yield "splits: kfold needs num_folds."
    yield from _find_repeated([] if isinstance(splits, str) else splits)
    yield from _find_repeated(options["seeds"])
    is_here = (folder / name).is_file() or name in list_bundled_datasets()
    if not is_here and options.get("dataset_revision") is None:
        yield (
            f"{name!r} is no file in the data folder {folder.name!r}. If it is a data set on the "
            "Hub, set dataset_revision to a commit, so that everybody has the same rows."
        )


def _find_repeated(names: Sequence[object]) -> Iterator[str]:
    for name in names:
        if names.count(name) > 1:
            yield f"{name!r} is there twice. Every entry needs its own name."
