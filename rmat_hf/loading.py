"""Read a model folder or repository once, and load from it what R-MAT needs, or say why not."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import safe_open
from transformers.initialization import no_init_weights
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_WEIGHTS_NAME

from rmat_hf.adapters import MERGE, Adapter, merge_adapter, read_adapter
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.model.configuration_rmat import (
    RMatConfig,
    RMatEnsembleConfig,
    RMatKernelConfig,
    RMatStackConfig,
)
from rmat_hf.model.covariates_rmat import count_covariates
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.kernel_rmat import RMatKernelForSequenceClassification
from rmat_hf.model.losses_rmat import without_loading_report
from rmat_hf.model.modeling_rmat import (
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
    RMatPreTrainedModel,
)
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.model.stack_rmat import RMatStackForSequenceClassification
from rmat_hf.output_folder import load_json

# What weights may be stored as; a network computes with nothing else.
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
# Of the rows that a kernel head, or the trust of any model, keeps, and of trees.
INTEGER_TYPES = ("I32", "U8")
_INTEGERS = re.compile(
    r"classifier\.(count_\w+|is_labeled)|forest\.(roots|columns|right_nodes)"
    r"|trust_head\.(fingerprints|is_positive)"
)
# Most values that start untrained, where the files have fewer: the memory of a head, no more.
MAX_UNTRAINED_VALUES = 10_000_000

# of a file beside the index that names it
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_BUNDLED = Path(__file__).parent / "checkpoints"
_RESTORE = f"Restore the saved {CONFIG_NAME}, or use the release of rmat_hf that saved it"
_LEAVE_OUT = "Leave that out, or train from random weights: model=None, as a flag --model scratch"
_ENCODER = f".{RMatPreTrainedModel.base_model_prefix}."
# And of the members of a stack.
_FOREST, _NETWORKS = "forest.", "networks."
# Where a model came from and how it was saved: nothing that it computes depends on it.
_IRRELEVANT_FIELDS = ("_name_or_path", "architectures", "auto_map", "transformers_version")
_CONFIG_CLASSES: dict[Any, type[RMatConfig]] = {
    RMatConfig.model_type: RMatConfig,
    RMatEnsembleConfig.model_type: RMatEnsembleConfig,
    RMatKernelConfig.model_type: RMatKernelConfig,
    RMatStackConfig.model_type: RMatStackConfig,
}
_PREDICTORS: dict[str, Any] = {
    RMatConfig.model_type: RMatForSequenceClassification,
    RMatEnsembleConfig.model_type: RMatEnsembleForSequenceClassification,
    RMatKernelConfig.model_type: RMatKernelForSequenceClassification,
    RMatStackConfig.model_type: RMatStackForSequenceClassification,
}

ModelT = TypeVar("ModelT", bound=RMatPreTrainedModel)


@dataclass(frozen=True)
class Checkpoint:
    """A model of which the configuration and the headers of the weights have been read.

    Args:
        name (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.
        config (`RMatConfig`): The saved configuration.
        shapes (`Mapping[str, tuple[int, ...]]`): Shape of each weight in the files.
        adapter ([`Adapter`], *optional*): What the files add to the weights of a base model.
    """

    name: str | Path
    revision: str | None
    config: RMatConfig
    shapes: Mapping[str, tuple[int, ...]]
    adapter: Adapter | None = None

    def load_model(
        self,
        model_class: type[ModelT],
        *,
        config: RMatConfig | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> ModelT:
        """Load a model; head and pooling that do not fit the configuration start untrained.

        `overrides` are what the caller changed of the architecture, for the message if it fits no
        more.
        """
        config = config or self.config
        untrained = self.find_untrained(model_class, config=config, overrides=overrides)
        with _explained(self.name), without_loading_report():
            adapter = self.adapter
            model = model_class.from_pretrained(
                self.name if adapter is None else adapter.base,
                config=config,
                revision=(self.revision if adapter is None else adapter.base_revision) or "main",
                use_safetensors=True,
                ignore_mismatched_sizes=bool(untrained) or adapter is not None,
            )
            if adapter is not None:
                model = merge_adapter(model, adapter, untrained=untrained)
            for name, tensor in model.state_dict().items():
                if not bool(torch.isfinite(tensor).all()):
                    raise ValueError(
                        f"{name} has a value that is no finite number. Copy or download the model "
                        "again, or train it anew."
                    )
        return model

    def find_untrained(
        self,
        model_class: type[RMatPreTrainedModel],
        *,
        config: RMatConfig | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Return the names of weights of head and pooling that are not in the files."""
        with _explained(self.name):
            with torch.device("meta"), no_init_weights():
                weights = model_class(config or self.config).state_dict()
            expected = _name_in_full({name: tuple(it.shape) for name, it in weights.items()})
            found = _name_in_full(self.shapes)
            if misfit := _find_misfit(expected, found):
                given = (overrides or {}).items()
                changed = [
                    f"{name}={it!r}" for name, it in given if it != getattr(self.config, name)
                ]
                if changed:
                    self.find_untrained(model_class)  # says so if they did not fit before either
                way_out = _LEAVE_OUT if changed else _RESTORE
                raise ValueError(
                    f"weights and {', '.join(changed) or CONFIG_NAME} do not fit: {misfit} are "
                    f"missing, left over or of another shape. {way_out}. An encoder with other "
                    "sizes, pair_relations or pair_terms has to start from random weights."
                )
        return sorted(name for name in expected if found.get(name) != expected[name])


def read_checkpoint(
    model: str | Path,
    *,
    revision: str | None = None,
    allows_ensemble: bool = False,
    allows_adapter: bool = True,
) -> Checkpoint:
    """Read the configuration of an R-MAT model and the headers of its weights.

    Args:
        allows_ensemble (`bool`, *optional*, defaults to `False`):
            An ensemble predicts, but has no single encoder to train further or to take vectors of.
    """
    name = find_checkpoint(model)
    way_out = "Give a folder written by rmat finetune, or a Hub id; a private one needs HF_TOKEN."
    with _explained(model, way_out=way_out):
        path = cached_file(name, CONFIG_NAME, revision=revision)
    with _explained(model):
        if path is None and _find_file(name, ADAPTER_CONFIG_NAME, revision=revision):
            raise ValueError(
                f"it is an adapter without {CONFIG_NAME}, which knows head and labels. Write that "
                "of the model it was trained on beside it: model.config.save_pretrained(folder)."
            )
        fields = load_json(path or Path(name, CONFIG_NAME))
        config_class = _CONFIG_CLASSES.get(str(fields.get("model_type")))
        if config_class is None:
            raise ValueError(f"it is a {fields.get('model_type')!r} model, not R-MAT.")
        if config_class is RMatEnsembleConfig and not allows_ensemble:
            raise ValueError("it is an ensemble, which only predicts. Give the model it began as.")
        if "quantization_config" in fields:
            raise ValueError(
                "its weights are quantized. Load it with from_pretrained and pass model and "
                "processor to rmat_hf.predict, or give the model that it was made of."
            )
        adapter = _find_adapter(name, revision=revision)
        if adapter is None:
            shapes = _read_shapes(_list_weight_files(name, revision=revision))
        elif not allows_adapter:
            raise ValueError(f"it is an adapter itself. {MERGE}")
        else:
            shapes = {**_name_in_full(_read_base(adapter).shapes), **adapter.whole_shapes}
        for problem in _iterate_config_problems(fields, shapes):
            raise ValueError(f"{CONFIG_NAME} does not fit: {problem}. {_RESTORE}.")
        return Checkpoint(name, revision, config_class.from_dict(fields), shapes, adapter)


def _find_adapter(name: str | Path, *, revision: str | None) -> Adapter | None:
    """Return the adapter of a folder or repository that has no model of its own.

    One in the folder of a model is checked, and left to transformers, which applies it.
    """
    find = partial(_find_file, name, revision=revision)
    config_file, weights = find(ADAPTER_CONFIG_NAME), find(ADAPTER_SAFE_WEIGHTS_NAME)
    if config_file is None or weights is None:
        return None  # a pickle of one is refused with those of models
    is_within_model = find(SAFE_WEIGHTS_NAME) or find(SAFE_WEIGHTS_INDEX_NAME)
    base = str(name) if is_within_model else None
    adapter = read_adapter(name, config_file=config_file, weights=weights, base=base)
    return None if is_within_model else adapter


def _read_base(adapter: Adapter) -> Checkpoint:
    try:
        return read_checkpoint(adapter.base, revision=adapter.base_revision, allows_adapter=False)
    except UserError as error:
        raise UserError(
            f"The adapter's base model ({ADAPTER_CONFIG_NAME}, base_model_name_or_path) is needed "
            f"too. {error}"
        ) from error


def load_processor(
    model: str | Path, *, revision: str | None = None, **options: Any
) -> RMatProcessor:
    """Load the processor saved with a model."""
    with _explained(model):
        name = find_checkpoint(model)
        fields = load_json(str(cached_file(name, FEATURE_EXTRACTOR_NAME, revision=revision)))
        kind = fields.get("feature_extractor_type")
        if kind != RMatProcessor.__name__ or "featurizer_version" not in fields:
            raise ValueError(f"{FEATURE_EXTRACTOR_NAME} is that of a {kind}, not of R-MAT.")
        return cast(RMatProcessor, RMatProcessor.from_dict(fields | options))


def load_predictor(
    model: str | Path, *, revision: str | None = None, device: str | torch.device | None = None
) -> tuple[RMatForSequenceClassification | RMatForTokenClassification, RMatProcessor]:
    """Load a finetuned model or ensemble with its processor from a folder or the Hub."""
    checkpoint = read_checkpoint(model, revision=revision, allows_ensemble=True)
    model_class = _PREDICTORS[checkpoint.config.model_type]
    if RMatForTokenClassification.__name__ in (checkpoint.config.architectures or []):
        model_class = RMatForTokenClassification
    predictor, processor = _load_trained(checkpoint, model_class, device=device)
    counted = processor.fingerprints or []
    if counted != getattr(checkpoint.config, "fingerprints", counted):
        raise UserError(
            f"The model {str(model)!r} has a {FEATURE_EXTRACTOR_NAME} with the fingerprints "
            f"{counted}, which are not those of its {CONFIG_NAME}. Restore the folder's own files."
        )
    found = len(processor.molecule_descriptors or [])
    config = checkpoint.config
    expected = config.num_molecule_descriptors - count_covariates(config.covariates)
    if found != expected:
        raise UserError(
            f"The model {str(model)!r} has a {FEATURE_EXTRACTOR_NAME} with {found} molecule "
            f"descriptors and a {CONFIG_NAME} with {expected}. Restore the folder's own files."
        )
    return predictor, processor


def load_embedder(
    model: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    needs_pooling: bool = True,
) -> tuple[RMatModel, RMatProcessor]:
    """Load the encoder of a model with its processor from a folder or the Hub."""
    checkpoint = read_checkpoint(model, revision=revision)
    return _load_trained(checkpoint, RMatModel, device=device, needs_pooling=needs_pooling)


def _load_trained(
    checkpoint: Checkpoint,
    model_class: type[ModelT],
    *,
    device: str | torch.device | None,
    needs_pooling: bool = True,
) -> tuple[ModelT, RMatProcessor]:
    processor = load_processor(checkpoint.name, revision=checkpoint.revision)
    untrained = checkpoint.find_untrained(model_class)
    if untrained and needs_pooling:
        way_out = "For embeddings rmat embed and embed(...) need no head."
        if model_class is RMatModel:
            way_out = "Or convert it with mean pooling (rmat convert --pooling mean)."
        raise UserError(
            f"The model {str(checkpoint.name)!r} has no trained {untrained[0]}: the output would "
            f"be random. Finetune it first (rmat finetune --model ...). {way_out}"
        )
    model: Any = checkpoint.load_model(model_class)
    return model.to(find_device(device)), processor


def _find_file(model: str | Path, name: str, *, revision: str | None) -> str | None:
    missing = {"_raise_exceptions_for_missing_entries": False}
    return cached_file(model, name, revision=revision, **missing)


def _list_weight_files(model: str | Path, *, revision: str | None) -> list[str]:
    """Return the safetensors that hold a model's weights; a pickle can run code and is refused."""
    find = partial(_find_file, model, revision=revision)
    wanted = f"{SAFE_WEIGHTS_NAME} is not there"
    if find(ADAPTER_CONFIG_NAME) and not find(ADAPTER_SAFE_WEIGHTS_NAME):
        wanted = f"{ADAPTER_SAFE_WEIGHTS_NAME} is not there"
    elif single := find(SAFE_WEIGHTS_NAME):
        return [single]
    elif index := find(SAFE_WEIGHTS_INDEX_NAME):
        content = load_json(index)
        weight_map = content.get("weight_map")
        shards = set(map(str, weight_map.values())) if isinstance(weight_map, dict) else set()
        # transformers needs the metadata; a path could lead out of the folder
        if shards and "metadata" in content and all(map(_SHARD.fullmatch, shards)):
            return [str(cached_file(model, name, revision=revision)) for name in sorted(shards)]
        wanted = f"{SAFE_WEIGHTS_INDEX_NAME} is damaged or names no .safetensors file beside it"
    raise OSError(
        f"{wanted}. Copy or download the model again. A pickle ({WEIGHTS_NAME}, "
        f"{ADAPTER_WEIGHTS_NAME}) can run code and is not loaded; write one that you trust with "
        "safetensors.torch.save_file."
    )


def _read_shapes(paths: list[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for path in paths:
        with explained_reading(path), safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                weight = weights.get_slice(name)
                known = INTEGER_TYPES if _INTEGERS.fullmatch(name) else FLOAT_TYPES
                if weight.get_dtype() not in known:
                    raise ValueError(f"{name} is stored as {weight.get_dtype()}, not as floats.")
                shapes[name] = tuple(weight.get_shape())
    return shapes


def _iterate_config_problems(
    fields: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """Say what cannot be used with these weights and this release, before anything is built."""
    num_features, own = fields.get("num_node_features"), ATOM_FEATURES.num_node_features
    if num_features not in (None, own):
        yield f"it has {num_features} features of an atom, this release of rmat_hf makes {own}"
    # a layer or a member has a weight of its own at least, a label a row of one
    num_rows = sum(shape[0] for shape in shapes.values() if shape)
    limits = dict.fromkeys(("num_hidden_layers", "num_members"), len(shapes))
    for name, limit in (limits | dict.fromkeys(("num_labels", "id2label"), num_rows)).items():
        value = fields.get(name)
        count = len(value) if isinstance(value, dict) else value
        if isinstance(count, int) and count > limit:
            yield f"{name} {count} are too many for its weights"


def _name_in_full(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Name the weights of an encoder as those of a model with a head are named."""
    if any(_ENCODER in f".{name}" for name in shapes):
        return dict(shapes)
    return {f"{_ENCODER[1:]}{name}": shape for name, shape in shapes.items()}


def _find_misfit(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str | None:
    """Return the weights that do not fit, if more than pooling and head would start untrained."""
    if not any(name.startswith(_FOREST) for name in expected):
        # of a stack its encoder alone is wanted
        found = {name: it for name, it in found.items() if not name.startswith(_NETWORKS)}
    names = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
    of_layers = {
        it for it in names if _ENCODER in f".{it}" and f"{_ENCODER}pooler." not in f".{it}"
    }
    sizes = {name: torch.Size(expected.get(name, ())).numel() for name in names & expected.keys()}
    num_found = sum(torch.Size(shape).numel() for shape in found.values())
    if of_layers or sum(sizes.values()) > max(num_found, MAX_UNTRAINED_VALUES):
        return f"{min(of_layers or sizes)} and {len(names) - 1} more"
    return None


def _explained(model: str | Path, *, way_out: str = "") -> AbstractContextManager[None]:
    # a stranger's numbers overflow, and his names are unknown, anywhere below transformers
    also = (KeyError, RuntimeError, TypeError)
    return explained_reading(f"The model {str(model)!r}", way_out=way_out, also=also)


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the device that was asked for, or the accelerator if there is one."""
    if device is None:
        # a build for CUDA names it where there is no driver too
        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        return found or torch.device("cpu")
    problems = (RuntimeError, AssertionError)
    with explained_reading(f"The device {str(device)!r}", way_out="Use cpu.", also=problems):
        return torch.zeros(1, device=device).device


def compute_model_hash(model: RMatPreTrainedModel) -> str:
    """Return the SHA-256 of weights and configuration, whatever file or device they are in."""
    config = model.config.to_dict()
    for name in _IRRELEVANT_FIELDS:
        config.pop(name, None)
    checksum = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, weight in sorted(model.state_dict().items()):
        checksum.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        checksum.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return checksum.hexdigest()


def list_checkpoints() -> list[str]:
    """Return the names of the pretrained models that come with the package.

    Example:
    ```python
    >>> from rmat_hf import list_checkpoints
    >>> list_checkpoints()
    ['rmat-small']

    ```
    """
    return sorted(path.parent.name for path in _BUNDLED.glob("*/config.json"))


def checkpoint_path(name: str) -> Path:
    """Return the folder of a pretrained model that comes with the package, for `from_pretrained`.

    Args:
        name (`str`): One of `list_checkpoints()`, for example `"rmat-small"`.

    Raises:
        UserError: If there is no model of that name.

    Example:
    ```python
    >>> from rmat_hf import RMatModel, checkpoint_path
    >>> RMatModel.from_pretrained(checkpoint_path("rmat-small")).config.hidden_size
    128

    ```
    """
    if name not in list_checkpoints():
        raise UserError(f"No model {name!r} comes with rmat_hf. Known: {list_checkpoints()}.")
    return _BUNDLED / name


def find_checkpoint(model: str | Path) -> str | Path:
    """Return the folder of a model named like one of the package's, else the argument itself.

    A folder of the user's that has the name goes first.
    """
    if not isinstance(model, str) or Path(model).exists():
        return model
    if model in list_checkpoints():
        return checkpoint_path(model)
    # an id on the Hub has an owner, and a path its separators
    similar = difflib.get_close_matches(model, list_checkpoints(), n=1)
    if similar and "/" not in model:
        raise UserError(f"There is no model {model!r} here. Did you mean {similar[0]!r}?")
    return model
