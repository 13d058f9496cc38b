"""Weights from safetensors only: a pickled file can run code and is never opened."""

import json
import os
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

SAFE_SUFFIX = ".safetensors"
ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
# Options of `from_pretrained` that say where a file is.
HUB_OPTIONS = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


def validate_weight_files(model: str | os.PathLike[str], **options: Any) -> None:
    """Raise unless a model has weights in safetensors, all of them files of its own.

    Args:
        model (`str` or `os.PathLike`): Folder, Hub id or file.
        options: As in [`PreTrainedModel.from_pretrained`]; what does not matter here is ignored.

    Raises:
        OSError: There are no weights, or pickled ones only.
        ValueError: Pickled ones are asked for, or an index names something else than a file of
            safetensors beside itself.
    """
    _validate_options(options)
    if options.get("state_dict") is not None:
        return
    if os.path.isfile(model):
        if not os.fspath(model).endswith(SAFE_SUFFIX):
            raise OSError(f"{os.fspath(model)!r} is no .safetensors file. {_describe_way_out()}")
        return
    hub_options = {name: options[name] for name in HUB_OPTIONS if name in options}
    _validate_adapter(model, hub_options)
    variant = options.get("variant")
    safe_name, index_name, pickle_name, pickle_index_name = (
        _add_variant(name, variant)
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
    )
    if _find_file(model, safe_name, options=hub_options) is not None:
        return
    index_file = _find_file(model, index_name, options=hub_options)
    if index_file is not None:
        validate_weight_index(index_file)
        return
    message = f"There is no file named {safe_name} in {os.fspath(model)!r}"
    for name in (pickle_name, pickle_index_name):
        if _find_file(model, name, options=hub_options) is not None:
            raise OSError(f"{message}, but {name}. {_describe_way_out()}")
    # a repository that is not there or cannot be reached is told by the loading that follows
    if _find_file(model, CONFIG_NAME, options=hub_options) is not None:
        if not os.path.isdir(model):
            cached_file(model, safe_name, **hub_options)  # raises if the Hub refused, says why
        raise OSError(f"{message}. Copy or download the model again.")


def validate_weight_index(index_file: str | os.PathLike[str]) -> None:
    """Raise unless the index of sharded weights names files of safetensors beside itself.

    Args:
        index_file (`str` or `os.PathLike`): `model.safetensors.index.json`.

    Raises:
        ValueError: With the name of the file.
    """
    name = os.path.basename(index_file)
    try:
        with open(index_file, encoding="utf-8") as stream:
            index = json.load(stream)
        shards = {str(shard) for shard in index["weight_map"].values()}
        # transformers needs these
        _ = dict(index["metadata"])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} is damaged. Copy or download the model again.") from error
    for shard in sorted(shards):
        names = {PurePosixPath(shard).name, PureWindowsPath(shard).name}
        if names != {shard} or not shard.endswith(SAFE_SUFFIX):
            raise ValueError(
                f"{name} names {shard!r}, which is no .safetensors file beside it, and is not "
                "loaded: it could lead out of the folder or run code. Get the model elsewhere."
            )


def _validate_options(options: dict[str, Any]) -> None:
    if options.get("use_safetensors") is False:
        raise ValueError(
            "use_safetensors=False would load a pickle, which can run code. Leave it out."
        )
    if options.get("gguf_file") is not None:
        raise ValueError("R-MAT has no GGUF weights. Leave gguf_file out.")


def _validate_adapter(model: str | os.PathLike[str], hub_options: dict[str, Any]) -> None:
    folder = os.fspath(model)
    if find_adapter_config_file(folder, **hub_options) is None:
        return
    found = [
        name for name in ADAPTER_NAMES if _find_file(model, name, options=hub_options) is not None
    ]
    if found == [ADAPTER_NAMES[1]]:
        raise OSError(f"The adapter of {folder!r} is {found[0]}. {_describe_way_out()}")


def _find_file(model: str | os.PathLike[str], name: str, *, options: dict[str, Any]) -> str | None:
    return cached_file(
        model,
        name,
        **options,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _add_variant(name: str, variant: str | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return name if variant is None else f"{stem}.{variant}.{suffix}"


def _describe_way_out() -> str:
    return (
        "It is a pickle, which can run code, and is not loaded: R-MAT needs model.safetensors. Ask "
        "for it, or if you trust the file, write it with safetensors.torch.save_file(torch.load("
        "'pytorch_model.bin', weights_only=True), 'model.safetensors', metadata={'format': 'pt'})."
    )


__all__ = ["validate_weight_files", "validate_weight_index"]
