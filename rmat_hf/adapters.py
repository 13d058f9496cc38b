"""LoRA adapters of peft: small folders that turn a base model into a finetuned one."""

import copy
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.utils import ADAPTER_CONFIG_NAME, is_peft_available
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME

from rmat_hf.errors import UserError
from rmat_hf.model.losses_rmat import resolve_base
from rmat_hf.output_folder import load_json, save_json

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers.modeling_utils import PreTrainedModel

# The projections of the attention, of the feed-forward networks and of the pooling.
TARGET_MODULES = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
    *("hidden_proj", "score_proj"),
]
# Parts that an adapter holds whole, beside what it adds to the layers.
HEAD_MODULES = ("classifier", "descriptor_scaler")
# One more, which is fitted after the training.
TRUST_MODULE = "trust_head"
DEFAULT_RANK = 8

# Of `LoraConfig`: what decides the numbers, and what says nothing about them. peft itself reads
# no file of a stranger, whose other fields could import modules or name files.
_USED_FIELDS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "use_rslora"),
    *("fan_in_fan_out", "bias", "rank_pattern", "alpha_pattern"),
}
_IDLE_FIELDS = {
    *("peft_type", "base_model_name_or_path", "revision", "inference_mode", "task_type"),
    *("auto_mapping", "peft_version", "init_lora_weights"),
}
# Of these fields: what names modules.
_NAMES: dict[str, type] = {
    **dict.fromkeys(("target_modules", "modules_to_save"), list),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), dict),
}
_NAME = re.compile(r"[\w.]+")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # of a model on the Hub
MERGE = "Merge it into its base with merge_and_unload() of peft, and give the saved model."
_PREFIX = "base_model.model."
# In the header of the weights: that of the encoder which they were trained on.
_BASE_HASH = "base_sha256"


@dataclass(frozen=True)
class Adapter:
    """An adapter of which the configuration and the headers of the weights have been read.

    Args:
        options (`dict`): Fields of `LoraConfig`.
        base (`str`): Base model: a folder, a Hub id, or one that comes with the package.
        base_revision (`str`, *optional*): Branch, tag or commit of the base.
        weights (`str`): File of the weights.
        whole_shapes (`dict[str, tuple[int, ...]]`): Of weights that replace the base model's.
    """

    options: dict[str, Any]
    base: str
    base_revision: str | None
    weights: str
    whole_shapes: dict[str, tuple[int, ...]]


@contextmanager
def _explained_import() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        way_out = "Install the extra: pip install 'rmat-hf[peft]'."
        raise UserError(f"An adapter needs peft ({error}). {way_out}") from error


def is_adapted(model: Any) -> bool:
    """Return whether peft has wrapped a model, so that adapters alone are trained and saved."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def build_lora_config(rank: int = DEFAULT_RANK) -> Any:
    """Return the `peft.LoraConfig` of `--peft lora`: every projection."""
    with _explained_import():
        from peft import LoraConfig
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGET_MODULES))


# What `--peft` can be.
PEFT_METHODS: dict[str, Callable[[int], Any]] = {"lora": build_lora_config}


def add_adapter(
    model: "PreTrainedModel",
    peft_config: Any,
    *,
    whole_modules: Iterable[str] = (),
    revision: str | None = None,
) -> "PeftModel":
    """Return a model of which an adapter and the head learn, and nothing else."""
    with _explained_import():
        from peft import get_peft_model
    parts = {name for name in HEAD_MODULES if getattr(model, name, None) is not None}
    chosen = copy.deepcopy(peft_config)
    chosen.modules_to_save = sorted(parts | {*whole_modules, *(chosen.modules_to_save or [])})
    # peft would call a model with a task with the arguments of a language model
    chosen.task_type, chosen.base_model_name_or_path = None, None
    chosen.target_modules = chosen.target_modules or {*TARGET_MODULES}
    try:
        adapted = get_peft_model(model, chosen)
        read_options(list_fields(chosen), source="peft_config")
    except ValueError as error:
        way_out = f"Without target_modules it adds to {', '.join(TARGET_MODULES)}."
        raise UserError(f"peft_config does not fit: {error} {way_out}") from error
    chosen.revision = revision
    return adapted


def save_model(model: Any, folder: Path) -> None:
    """Write a model to a folder; of one that peft has wrapped the adapter.

    Beside the files of peft there is the model's configuration, which knows head and labels. A
    base model in a folder is named relative to the adapter's.
    """
    if not is_adapted(model):
        model.save_pretrained(folder)
        return
    from peft import get_peft_model_state_dict

    from rmat_hf.model.pipeline_rmat import describe_pipeline

    base = model.get_base_model()
    weights = {name: it.contiguous() for name, it in get_peft_model_state_dict(model).items()}
    metadata = {"format": "pt", _BASE_HASH: compute_encoder_hash(base)}
    fields = list_fields(model.peft_config[model.active_adapter])
    if base.trust_head is not None:
        prefix = f"{_PREFIX}{TRUST_MODULE}."
        weights |= {prefix + name: it for name, it in base.trust_head.state_dict().items()}
        fields["modules_to_save"] = [*fields["modules_to_save"], TRUST_MODULE]
    save_file(weights, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata=metadata)
    place = {"base_model_name_or_path": _name_base(str(base.name_or_path), folder)}
    save_json(folder / ADAPTER_CONFIG_NAME, {**fields, **place, "inference_mode": True})
    base.config.architectures = [type(base).__name__]
    base.config.custom_pipelines = describe_pipeline(type(base).__name__)
    base.config.save_pretrained(folder)


def load_adapter_weights(model: "PeftModel", folder: Path) -> None:
    """Give a model that peft has wrapped the weights of an adapter that was saved from it."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, load_file(folder / ADAPTER_SAFE_WEIGHTS_NAME))


def list_fields(peft_config: Any) -> dict[str, Any]:
    """Return the fields of a `LoraConfig` as JSON has them."""
    with _explained_import():
        from peft import LoraConfig
    if not isinstance(peft_config, LoraConfig):
        raise UserError(f"peft_config is a {type(peft_config).__name__}. Pass a peft.LoraConfig.")
    fields = peft_config.to_dict()
    return {name: sorted(it) if isinstance(it, set) else it for name, it in fields.items()}


def _name_base(place: str, folder: Path) -> str:
    """Return a base model's name in the package, its folder relative to another, or its Hub id."""
    if not os.path.isdir(place):
        return place
    path = Path(place).resolve()
    is_bundled = resolve_base(path.name, folder=os.devnull) == str(path)
    return path.name if is_bundled else os.path.relpath(path, folder.resolve())


def read_adapter(
    name: str | Path, *, config_file: str, weights: str, base: str | None = None
) -> Adapter:
    """Read what a folder or repository adds to a base model, by default the one that it names."""
    fields = load_json(config_file)
    options = read_options(fields, source=ADAPTER_CONFIG_NAME)
    if base is None:
        given = str(fields.get("base_model_name_or_path") or "")
        base = resolve_base(given, folder=str(name))
        if not os.path.isabs(base) and not HUB_ID.fullmatch(base):
            raise ValueError(
                f"its base model {given!r} is not there. Set base_model_name_or_path in "
                f"{ADAPTER_CONFIG_NAME} to a folder, relative to the adapter's, or to a Hub id."
            )
    with safe_open(weights, framework="pt") as file:
        shapes = {
            name.removeprefix(_PREFIX): tuple(file.get_slice(name).get_shape())
            for name in file.keys()  # noqa: SIM118 - no mapping
        }
    # before memory is taken for it
    most = max((shape[0] for name, shape in shapes.items() if ".lora_A." in name), default=0)
    ranks = [options.get("r", most), *options.get("rank_pattern", {}).values()]
    if any(rank > most for rank in ranks):
        raise ValueError(f"{ADAPTER_CONFIG_NAME} has a rank above that of its weights, {most}.")
    whole = {*options["modules_to_save"]}
    whole_shapes = {name: it for name, it in shapes.items() if whole & {*name.split(".")}}
    return Adapter(options, base, fields.get("revision"), weights, whole_shapes)


def read_options(fields: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """Return the fields of a `LoraConfig` that decide the numbers, checked."""
    with _explained_import():
        from peft import LoraConfig
    usual = LoraConfig().to_dict()
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{source} is of {fields.get('peft_type')!r}. Only LORA is known. {MERGE}")
    for name, value in fields.items():
        is_usual = value == usual.get(name) or not value
        if name not in {*_USED_FIELDS, *_IDLE_FIELDS} and not is_usual:
            raise ValueError(f"{source} has {name}={value!r}, which is not read here. {MERGE}")
    options = {name: fields[name] for name in _USED_FIELDS if fields.get(name) is not None}
    if (
        not isinstance(fields.get("init_lora_weights", True), bool)
        or options.get("bias", "none") != "none"
    ):
        raise ValueError(f"{source} changes weights of the base model itself. {MERGE}")
    options.setdefault("modules_to_save", [])
    for name, kind in _NAMES.items():
        names: Any = options.get(name, kind())
        is_known = isinstance(names, kind)
        if not is_known or not all(_NAME.fullmatch(str(it)) for it in names):
            raise ValueError(f"{source} has {name}={names!r}. List the names of modules. {MERGE}")
    return options


def merge_adapter(model: "PreTrainedModel", adapter: Adapter, *, untrained: Iterable[str]) -> Any:
    """Return a model with an adapter added to its weights: a plain model as any other.

    Args:
        model ([`RMatPreTrainedModel`]): The base model with the head of the adapter's labels, or
            of others, or without one.
    """
    with _explained_import():
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    with safe_open(adapter.weights, framework="pt") as file:
        expected = (file.metadata() or {}).get(_BASE_HASH)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if expected not in (None, compute_encoder_hash(model)):
        raise ValueError(
            f"it was trained on other weights than those of its base model {adapter.base!r}. Give "
            f"the base its weights back, or set base_model_name_or_path in {ADAPTER_CONFIG_NAME}."
        )
    parts = {part for name, _ in model.named_modules() for part in name.split(".")}
    parts -= {part for name in untrained for part in name.split(".")}
    whole = parts & {*adapter.options["modules_to_save"]}
    left_out = {*adapter.options["modules_to_save"]} - whole
    options = {**adapter.options, "modules_to_save": sorted(whole)}
    adapted = get_peft_model(model, LoraConfig(**options, inference_mode=True))
    # an encoder of its own has no name of its own
    encoder = "" if model.base_model is model else f"{model.base_model_prefix}."
    found: Any = set_peft_model_state_dict(
        adapted,
        {
            name.replace(f"{_PREFIX}{model.base_model_prefix}.", f"{_PREFIX}{encoder}"): it
            for name, it in weights.items()
            if not left_out & {*name.split(".")}
        },
    )
    own = (".lora_", ".modules_to_save.")
    problems = {*found.unexpected_keys} | {
        name for name in found.missing_keys if any(it in name for it in own)
    }
    if problems:
        raise ValueError(f"{len(problems)} weights of it, as {min(problems)}, fit no module.")
    return adapted.merge_and_unload()


def compute_encoder_hash(model: "PreTrainedModel") -> str:
    """Return the SHA-256 of the weights that an adapter adds to: the encoder's, without pooling."""
    checksum = hashlib.sha256()
    state = model.base_model.state_dict()
    weights = {name.replace(".base_layer.", "."): it for name, it in state.items()}
    for name, weight in sorted(weights.items()):
        if ".lora_" not in name and not name.startswith("pooler."):
            checksum.update(name.encode())
            checksum.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return checksum.hexdigest()
