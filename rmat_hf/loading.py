"""Load R-MAT models and their processors from a folder or the Hub, or say why not."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.processing_auto import AutoProcessor
from transformers.utils import CONFIG_NAME, FEATURE_EXTRACTOR_NAME

from rmat_hf.bundled_checkpoints import find_checkpoint
from rmat_hf.checkpoint_files import (
    find_broken_weight,
    load_checkpoint_json,
    silence_loading_report,
    validate_weight_types,
)
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleConfig
from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatModel,
)
from rmat_hf.model.processing_rmat import RMatProcessor

# Parts that depend on what a model was trained for.
_OPTIONAL_PART = re.compile(
    r"(members\.\d+\.)?(rmat\.)?"
    r"(pooler|classifier|descriptor_scaler|\w+_head)\."
)


def load_processor(
    model: str | Path, *, revision: str | None = None, **options: Any
) -> RMatProcessor:
    """Load the processor saved with a model.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.
        options: Options of [`RMatProcessor`] that replace the saved ones.

    Raises:
        UserError: If there is none, or it is not R-MAT's.
    """
    model = find_checkpoint(model)
    try:
        saved = load_checkpoint_json(model, FEATURE_EXTRACTOR_NAME, revision=revision)
        kind = saved.get("feature_extractor_type")
        if kind != RMatProcessor.__name__ or "featurizer_version" not in saved:
            raise ValueError(f"{FEATURE_EXTRACTOR_NAME} is that of a {kind}, not of R-MAT")
        # `False`: transformers would offer to run the code of a repository
        processor = AutoProcessor.from_pretrained(
            model, revision=revision, trust_remote_code=False, **options
        )
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"Cannot load the processor of {str(model)!r}: {_first_line(error)}. "
            "A model folder has a preprocessor_config.json; save the processor with the model."
        ) from error
    if type(processor).__name__ != RMatProcessor.__name__:
        raise UserError(f"{str(model)!r} holds a {type(processor).__name__}, not an R-MAT model.")
    return processor


def load_config(
    model: str | Path, *, revision: str | None = None, allows_ensemble: bool = False
) -> RMatConfig:
    """Load the configuration of an R-MAT model with weights from a folder or the Hub.

    Raises:
        UserError: If it cannot be loaded, is not R-MAT's or is an ensemble's, or if there
            are no weights in safetensors with it.
    """
    model = find_checkpoint(model)
    if Path(model).is_file():
        raise UserError(f"{str(model)!r} is a file. Give the folder that holds it.")
    try:
        fields = load_checkpoint_json(model, CONFIG_NAME, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load a model from {str(model)!r}: {_first_line(error)}. "
            "Give a folder written by rmat finetune, or a Hub id; a private one needs HF_TOKEN."
        ) from error
    model_type = fields.get("model_type")
    if model_type not in (RMatConfig.model_type, RMatEnsembleConfig.model_type):
        raise UserError(f"{str(model)!r} is a {model_type!r} model, not R-MAT.")
    config_class = RMatConfig if model_type == RMatConfig.model_type else RMatEnsembleConfig
    try:
        config = config_class.from_dict(fields)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(
            f"Cannot load a model from {str(model)!r}: {_first_line(error)}. Restore the "
            f"{CONFIG_NAME} that was saved with the weights."
        ) from error
    if config.num_node_features != ATOM_FEATURES.num_node_features:
        raise UserError(
            f"{str(model)!r} takes {config.num_node_features} features of an atom, this release of "
            f"rmat_hf makes {ATOM_FEATURES.num_node_features}. Use the release that saved it."
        )
    if config.model_type == RMatEnsembleConfig.model_type and not allows_ensemble:
        raise UserError(
            f"{str(model)!r} is an ensemble. It predicts, but has no single encoder to train "
            "further or to take vectors from. Give the model that its members started from."
        )
    try:
        validate_weight_types(model, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"Cannot load the weights of {str(model)!r}: {_first_line(error)}."
        ) from error
    return config


def load_for_finetuning(
    model: str | Path, *, config: RMatConfig, revision: str | None = None
) -> RMatForSequenceClassification:
    """Load a model to finetune; head and pooling that do not fit `config` start untrained.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        config (`RMatConfig`): The model's architecture with the labels to learn.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.

    Raises:
        UserError: If it cannot be loaded or is not R-MAT.
    """
    options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True}
    return _load_model(AutoModelForSequenceClassification, model, revision=revision, **options)[0]


def load_for_pretraining(
    model: str | Path, *, config: RMatConfig, revision: str | None = None
) -> RMatForPreTraining:
    """Load a model to pretrain further; heads and pooling that do not fit start untrained.

    Args:
        model (`str` or `Path`): Folder or Hub id.
        config (`RMatConfig`): The model's architecture with the classes and descriptors to learn.
        revision (`str`, *optional*): Branch, tag or commit of a repository on the Hub.

    Raises:
        UserError: If it cannot be loaded or is not R-MAT.
    """
    options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True}
    return _load_model(AutoModelForPreTraining, model, revision=revision, **options)[0]


def load_predictor(
    model: str | Path, *, revision: str | None = None, device: str | torch.device | None = None
) -> tuple[RMatForSequenceClassification, RMatProcessor]:
    """Load a finetuned model or ensemble with its processor from a folder or the Hub.

    Raises:
        UserError: If it cannot be loaded, is not R-MAT or has no trained prediction head.
    """
    loaded, missing = _load_model(
        AutoModelForSequenceClassification, model, revision=revision, allows_ensemble=True
    )
    if missing:
        raise UserError(
            f"{str(model)!r} has no trained prediction head ({missing[0]} is missing), so its "
            "predictions would be random. Finetune it first: rmat finetune --model ..."
        )
    processor = load_processor(model, revision=revision)
    num_descriptors = len(processor.molecule_descriptors or [])
    if num_descriptors != loaded.config.num_molecule_descriptors:
        raise UserError(
            f"Processor and model of {str(model)!r} do not belong together: "
            f"{FEATURE_EXTRACTOR_NAME} names {num_descriptors} molecule descriptors, {CONFIG_NAME} "
            f"{loaded.config.num_molecule_descriptors}. Restore the folder's own files."
        )
    return loaded.to(find_device(device)), processor


def load_embedder(
    model: str | Path, *, revision: str | None = None, device: str | torch.device | None = None
) -> tuple[RMatModel, RMatProcessor]:
    """Load the encoder of a model with its processor from a folder or the Hub.

    Raises:
        UserError: If it cannot be loaded, is not R-MAT or has untrained pooling.
    """
    loaded, missing = _load_model(AutoModel, model, revision=revision)
    if missing:
        raise UserError(
            f"{str(model)!r} has no trained {missing[0]}, so its embeddings would be random. "
            "Convert it with mean pooling (rmat convert --pooling mean) or finetune it first."
        )
    return loaded.to(find_device(device)), load_processor(model, revision=revision)


def _load_model(
    auto_class: Any,
    model: str | Path,
    *,
    revision: str | None,
    allows_ensemble: bool = False,
    **options: Any,
) -> tuple[Any, list[str]]:
    """Return the model and the parameters that were not in the checkpoint."""
    load_config(model, revision=revision, allows_ensemble=allows_ensemble)
    model = find_checkpoint(model)
    try:
        with silence_loading_report():
            loaded, info = auto_class.from_pretrained(
                model,
                revision=revision,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=False,
                **options,
            )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"Cannot load the weights of {str(model)!r}: {_first_line(error)}."
        ) from error
    if (broken := find_broken_weight(loaded.state_dict().items())) is not None:
        raise UserError(
            f"The weights of {str(model)!r} are broken: {broken} has a value that is no finite "
            "number. Copy or download the model again, or train it anew."
        )
    for problem, names in _list_foreign_weights(info).items():
        if names:
            raise UserError(
                f"Weights and configuration of {str(model)!r} do not belong together: {names[0]} "
                f"and {len(names) - 1} more {problem}. Restore the folder's own {CONFIG_NAME}."
            )
    return loaded, sorted(info["missing_keys"])


def _list_foreign_weights(info: dict[str, Any]) -> dict[str, list[str]]:
    """Return the weights of the encoder's layers that checkpoint and model do not share."""

    def select(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if not _OPTIONAL_PART.match(name))

    return {
        "are missing": select(info["missing_keys"]),
        "are left over": select(info["unexpected_keys"]),
        "have another shape": select(mismatched[0] for mismatched in info["mismatched_keys"]),
    }


def _find_connection_error(error: BaseException | None) -> BaseException | None:
    """Return why a connection broke, which transformers leaves out; answers are OSErrors too."""
    while error is not None and (isinstance(error, OSError) or not isinstance(error, HTTPError)):
        error = error.__cause__ or error.__context__
    return error


def _first_line(error: BaseException) -> str:
    if "ignore_mismatched_sizes" in str(error):
        return f"they have another shape than {CONFIG_NAME} says. Restore the folder's own"
    error = _find_connection_error(error) or error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # the first line of these names the field only, the next one what is wrong with it
    first_lines = lines[:2] if isinstance(error, StrictDataclassError) else lines[:1]
    return " ".join(line.strip() for line in first_lines).rstrip(".?")


def find_device(device: str | torch.device | None) -> torch.device:
    """Return the device that was asked for, or the accelerator if there is one."""
    if device is None:
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        resolved = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"There is no device {str(device)!r}: {_first_line(error)}. Use cpu, or leave it out."
        ) from error
    if resolved.type == "meta":
        raise UserError("The device 'meta' holds no values. Use cpu, or leave it out.")
    return resolved
