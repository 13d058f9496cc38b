"""The files of a model folder or repository before anything is built from them."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

# What weights may be stored as; a network computes with nothing else.
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


def load_checkpoint_json(
    model: str | Path, file_name: str, *, revision: str | None
) -> dict[str, Any]:
    """Return the object in a JSON file of a model.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        file_name (`str`): For example `"config.json"`.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.

    Raises:
        OSError: There is no such file.
        ValueError: It is no JSON, or no object.
    """
    path = cached_file(model, file_name, revision=revision)
    try:
        fields = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file_name} is not a valid JSON file") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{file_name} holds a {type(fields).__name__}, not an object of fields")
    return fields


def validate_weight_types(model: str | Path, *, revision: str | None) -> None:
    """Raise if weights are stored as something else than floating-point numbers.

    transformers would convert integers and truth values without a word.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.

    Raises:
        OSError, ValueError: With the name of the file; as in [`find_weight_files`].
    """
    for path in find_weight_files(model, revision=revision):
        try:
            with safe_open(path, framework="pt") as weights:
                types = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} is damaged or cut off ({error})") from error
        for name, dtype in types.items():
            if dtype not in FLOAT_TYPES:
                raise ValueError(
                    f"{path.name} holds {name} as {dtype}, which is no floating-point type"
                )


def find_broken_weight(named_tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """Return the name of the first tensor with a value that is no finite number, if any."""
    for name, tensor in named_tensors:
        if not bool(torch.isfinite(tensor).all()):
            return name
    return None


@contextmanager
def silence_loading_report() -> Iterator[None]:
    """Keep transformers from its table of missing weights; the caller decides what it means."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    # not its level: a high one makes transformers check, and report, a plan for parallel tensors
    logger.addFilter(is_error)
    try:
        yield
    finally:
        logger.removeFilter(is_error)


def find_weight_files(model: str | Path, *, revision: str | None) -> list[Path]:
    """Return the safetensors that hold a model's weights; a pickle can run code and is refused.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.

    Raises:
        OSError: There are none, or pickled ones only.
        ValueError: An index is damaged, or names something else than safetensors beside itself.
    """

    def find(name: str) -> Path | None:
        missing = {"_raise_exceptions_for_missing_entries": False}
        path = cached_file(model, name, revision=revision, **missing)
        return None if path is None else Path(path)

    if find(ADAPTER_CONFIG_NAME) and not find(ADAPTER_SAFE_WEIGHTS_NAME):
        _refuse_missing_weights(ADAPTER_SAFE_WEIGHTS_NAME, pickle=find(ADAPTER_WEIGHTS_NAME))
    if (single := find(SAFE_WEIGHTS_NAME)) is not None:
        return [single]
    if find(SAFE_WEIGHTS_INDEX_NAME) is None:
        pickle = find(WEIGHTS_NAME) or find(WEIGHTS_INDEX_NAME)
        _refuse_missing_weights(SAFE_WEIGHTS_NAME, pickle=pickle)
    index = load_checkpoint_json(model, SAFE_WEIGHTS_INDEX_NAME, revision=revision)
    try:
        shards = sorted({str(shard) for shard in index["weight_map"].values()})
        _ = dict(index["metadata"])  # transformers needs it
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{SAFE_WEIGHTS_INDEX_NAME} is damaged. Copy the model again") from error
    for shard in shards:
        names = {PurePosixPath(shard).name, PureWindowsPath(shard).name}
        if names != {shard} or not shard.endswith(".safetensors"):
            raise ValueError(
                f"{SAFE_WEIGHTS_INDEX_NAME} names {shard!r}, which is no .safetensors file beside "
                "it: it could lead out of the folder or run code, and is not loaded"
            )
    return [Path(str(cached_file(model, shard, revision=revision))) for shard in shards]


def _refuse_missing_weights(name: str, *, pickle: Path | None) -> NoReturn:
    reason = "Copy or download the model again"
    if pickle is not None:
        reason = (
            f"{pickle.name} is a pickle, which can run code, and is not loaded: ask for {name}, or "
            "if you trust the file, write it with safetensors.torch.save_file"
        )
    raise OSError(f"There is no file named {name}; {reason}")
