"""Find the shards of a featurized corpus: in a folder, by a pattern or on the Hub."""

import glob
import json
import logging
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import snapshot_download

from rmat_hf.data.corpus_format import (
    CORPUS_FILE,
    PROCESSOR_FILE,
)
from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

HUB_PREFIX = "hf://"
NOT_FEATURIZED = "Its molecules have no features: run `rmat featurize` first and load its folder."

_EXTENSIONS = (".csv", ".parquet", ".sdf", ".gz", ".smi")


def find_shards(
    name: str, *, revision: str | None, split: str, with_download: bool
) -> tuple[list[str], dict[str, Any] | None]:
    """Return where the shards are, and the options of the processor beside them, if any.

    Args:
        name (`str`): A folder, a shard, a glob of shards or a data set on the Hub.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        split (`str`): Split of a data set on the Hub; local shards are all `"train"`.
        with_download (`bool`):
            Whether shards on the Hub are downloaded first, else they are named by address.

    Raises:
        UserError: There is none, or one is missing.
    """
    if not _is_local(name):
        return _find_hub_shards(name, revision=revision, split=split, with_download=with_download)
    if revision is not None or split != "train":
        raise UserError(
            f"{name} is not on the Hub: it has no revision and no split but 'train'. Leave "
            "revision and split out."
        )
    return _find_local_shards(name)


def _is_local(name: str) -> bool:
    path = Path(name)
    is_there = path.exists() or glob.has_magic(name)
    return is_there or path.is_absolute() or path.suffix in _EXTENSIONS


def _find_local_shards(name: str) -> tuple[list[str], dict[str, Any] | None]:
    path = Path(name)
    if path.is_dir():
        return _find_shards_of_folder(path)
    if path.is_file():
        if path.suffix != ".parquet":
            raise UserError(f"{name} is not a featurized corpus. {NOT_FEATURIZED}")
        return [name], None
    paths = sorted(glob.glob(name, recursive=True))
    if not paths:
        raise UserError(f"{name}: there is no such file. Name a folder of `rmat featurize`.")
    return paths, None


def _find_shards_of_folder(folder: Path) -> tuple[list[str], dict[str, Any] | None]:
    paths = sorted(str(path) for path in folder.glob("*.parquet"))
    corpus_path, processor_path = folder / CORPUS_FILE, folder / PROCESSOR_FILE
    if not paths:
        way_out = (
            "Repeat the `rmat featurize` command that made it."
            if processor_path.is_file()
            else "Name a folder written by `rmat featurize`."
        )
        raise UserError(f"The folder {folder} has no shard (part-*.parquet). {way_out}")
    if corpus_path.is_file():
        num_shards = _read_json(corpus_path).get("num_shards")
        if num_shards != len(paths):
            raise UserError(
                f"{folder} has {len(paths)} shards, {corpus_path.name} counts {num_shards}. Repeat "
                "the `rmat featurize` command that made it, or copy the folder anew."
            )
    elif processor_path.is_file():
        logger.warning(
            "%s is not finished: it has %d shards so far. Repeat the `rmat featurize` command "
            "that made it for the others.",
            folder,
            len(paths),
        )
    return paths, _read_json(processor_path) if processor_path.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Copy it anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object. Copy it anew.")
    return content


def _find_hub_shards(
    name: str, *, revision: str | None, split: str, with_download: bool
) -> tuple[list[str], dict[str, Any] | None]:
    """Return local paths after a download, else addresses for streaming."""
    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        files_of_split = builder.config.data_files or {}
        if split not in files_of_split:
            raise UserError(
                f"{name} on the Hub has no split {split!r}, but {', '.join(files_of_split)}."
            )
        addresses = [str(address) for address in files_of_split[split]]
        if not all(address.endswith(".parquet") for address in addresses):
            raise UserError(f"{name} on the Hub is no featurized corpus. {NOT_FEATURIZED}")
        locations = [_split_address(address) for address in addresses]
        repo_id, commit, _ = locations[0]
        shards = [path for _, _, path in locations]
        wanted = [PROCESSOR_FILE, *(shards if with_download else [])]
        folder = Path(
            snapshot_download(repo_id, repo_type="dataset", revision=commit, allow_patterns=wanted)
        )
    except (DatasetsError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name!r} is neither a file nor a folder, and the Hub gives: {reason}"
        ) from error
    if with_download:
        addresses = [str(folder / path) for path in shards]
    processor_path = folder / PROCESSOR_FILE
    return addresses, _read_json(processor_path) if processor_path.is_file() else None


def _split_address(address: str) -> tuple[str, str, str]:
    """Return repository, commit and path of hf://datasets/USER/NAME@COMMIT/PATH."""
    repo_id, _, rest = address.removeprefix(f"{HUB_PREFIX}datasets/").partition("@")
    commit, _, path = rest.partition("/")
    return repo_id, commit, path
