"""The protocol of an accuracy benchmark: a JSON file, checked before anything is computed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from huggingface_hub.dataclasses import type_validator

from rmat_hf.data.sources import list_bundled_datasets, open_table
from rmat_hf.data.splits.registry import SPLITS
from rmat_hf.data.tables import find_kind, validate_columns
from rmat_hf.errors import UserError
from rmat_hf.loading import find_checkpoint
from rmat_hf.output_folder import load_json
from rmat_hf.training.arguments import FinetuningArguments
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
    """A data set of the benchmark."""

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
    - `models`: by name every other field of `FinetuningArguments`.
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
    model = {name: _allow_int(hint) for name, hint in get_type_hints(FinetuningArguments).items()}
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


def _allow_int(hint: Any) -> Any:
    """JSON writes 1.0 as 1."""
    return hint | int if float in (hint, *get_args(hint)) else hint


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
        try:
            type_validator(where.removesuffix(": "), value, kind)
        except TypeError as error:
            yield f"{error.__cause__ or error}."
        return
    if not isinstance(value, dict):
        yield f"{where}must be an object of fields."
        return
    for name, item in value.items():
        if name not in kind and ANY_NAME not in kind:
            yield f"{where}unknown field {name!r}. Known: {', '.join(kind)}."
        else:
            item_kind = kind.get(name, kind.get(ANY_NAME))
            yield from _find_kinds(item, item_kind, where=f"{where}{name}: ")
