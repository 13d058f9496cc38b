"""predict(...) and embed(...): many molecules in, one row per molecule out, nothing lost."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rmat_hf.data.predictions import Predictions, is_ensemble
from rmat_hf.inference.batched_inference import BatchedInference
from rmat_hf.loading import load_embedder, load_predictor
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatPreTrainedModel
from rmat_hf.model.probabilities_rmat import compute_probabilities, compute_spread
from rmat_hf.model.processing_rmat import RMatProcessor


class Embeddings(NamedTuple):
    """Molecule vectors, one row per molecule in input order.

    Args:
        values (`np.ndarray` of shape `(num_molecules, pooled_size)`): float32; NaN with an error.
        errors (`list[str | None]` of length `num_molecules`): Why a row has no embedding.
    """

    values: np.ndarray
    errors: list[str | None]

    def to_columns(self) -> dict[str, list[Any]]:
        """Return table columns: `embedding` (a list, None where there is no value) and `error`."""
        embeddings = [
            None if error is not None else row.tolist()
            for row, error in zip(self.values, self.errors, strict=True)
        ]
        return {"embedding": embeddings, "error": list(self.errors)}


def predict(
    model: str | Path | RMatForSequenceClassification,
    molecules: Iterable[Molecule],
    *,
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
) -> Predictions:
    """Predict the properties of molecules with a finetuned model.

    Args:
        model (`str`, `Path` or a loaded model): Folder, Hub id or finetuned model or ensemble.
        molecules (`Iterable[str | Chem.Mol | None]`): SMILES or RDKit molecules, a column too.
        processor (`RMatProcessor`, *optional*): Needed with a loaded model.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        batch_size (`int`, *optional*, defaults to 32):
            Most molecules in one forward pass, which takes molecules of similar sizes.
        num_workers (`int`, *optional*, defaults to 0): Processes that featurize.
        device (`str` or `torch.device`, *optional*): By default the loaded model's.
        cache_dir (`str` or `Path`, *optional*): Folder of a feature cache; by default none.

    Returns:
        [`Predictions`] with one row per molecule; an invalid molecule has NaN and a reason.

    Raises:
        ValueError: If a loaded model comes without its processor, or with a revision.
    """
    if isinstance(model, str | Path):
        model, processor = load_predictor(model, revision=revision, device=device)
    else:
        processor = _validate_loaded(processor, revision=revision)
    config = model.config
    num_outputs = len(config.output_names)
    inference = BatchedInference(
        model=_move(model, device),
        processor=processor,
        read_output=lambda output: _read_predictions(output, config.problem_type),
        num_columns=num_outputs * (2 if is_ensemble(config) else 1),
        batch_size=batch_size,
        num_workers=num_workers,
        cache_dir=cache_dir,
    )
    values, errors = inference.run(molecules)
    spread = values[:, num_outputs:] if is_ensemble(config) else None
    return Predictions(values[:, :num_outputs], errors, config, spread)


def embed(
    model: str | Path | RMatPreTrainedModel,
    molecules: Iterable[Molecule],
    *,
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    cache_dir: str | Path | None = None,
) -> Embeddings:
    """Compute one vector per molecule, the `pooler_output`; padding takes no part in it.

    Args:
        model (`str`, `Path` or a loaded model): Folder, Hub id or model, with any head or none.
        molecules, processor, revision, batch_size, num_workers, device, cache_dir:
            As in [`predict`].

    Returns:
        [`Embeddings`] with one row per molecule; an invalid molecule has NaN and a reason.

    Raises:
        ValueError: As in [`predict`].
    """
    if isinstance(model, str | Path):
        model, processor = load_embedder(model, revision=revision, device=device)
    else:
        processor = _validate_loaded(processor, revision=revision)
    encoder: RMatPreTrainedModel = model.base_model  # type: ignore[assignment]  # typed Module
    inference = BatchedInference(
        model=_move(encoder, device),
        processor=processor,
        read_output=lambda output: output.pooler_output,
        num_columns=encoder.config.pooled_size,
        batch_size=batch_size,
        num_workers=num_workers,
        cache_dir=cache_dir,
    )
    values, errors = inference.run(molecules)
    return Embeddings(values.astype(np.float32), errors)


def _read_predictions(output: Any, problem_type: str | None) -> torch.Tensor:
    """Return what a user reads off a model's output, followed by the spread of an ensemble."""
    values = compute_probabilities(output.logits, problem_type)
    if "member_logits" not in output:
        return values
    spread = compute_spread(output.member_logits, problem_type)
    return torch.cat((values, spread), dim=1)


def _move(model: RMatPreTrainedModel, device: str | torch.device | None) -> RMatPreTrainedModel:
    if device is not None:
        model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its signature
    return model


def _validate_loaded(processor: RMatProcessor | None, *, revision: str | None) -> RMatProcessor:
    """Return the processor of a model that was given as an object."""
    if processor is None:
        raise ValueError(
            "A loaded model needs its processor: pass processor=AutoProcessor.from_pretrained(...)."
        )
    if revision is not None:
        raise ValueError(
            f"A loaded model has no other revision, so {revision!r} cannot be had. Pass its name "
            "on the Hub, or load that revision."
        )
    return processor
