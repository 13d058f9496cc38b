"""Objective `descriptors`: molecule descriptors on a common scale, their rank in the corpus."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import QuantileTransformer

from rmat_hf.data.stored_features import read_molecule_descriptors
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.objective import Objective, ObjectiveBatch

MAX_QUANTILES = 100
MAX_MOLECULES_FITTED = 100_000
NUM_WORST_DESCRIPTORS = 10
# A uniform distribution from 0 to 1 gets mean 0 and variance 1, the scale of a cross-entropy.
_CENTER = 0.5
_SCALE = math.sqrt(12)
_NUM_DIGITS = 9  # tell any two float32 apart


class DescriptorObjective(Objective):
    """Regression of the descriptors of whole molecules, as they come in finetuning.

    The label of a descriptor is the share of the corpus below it, shifted and scaled to mean 0 and
    variance 1 for a continuous descriptor. The least value has share 0, other frequent values have
    the middle of theirs: a count that is nearly always 0 keeps a small variance, and with it a
    small part in the loss.

    Args:
        state (`dict[str, list[float]]`):
            For every descriptor its values at evenly spaced shares of the corpus, from the least
            to the greatest.
    """

    head = "descriptor"
    state_key = "descriptor_quantiles"

    def __init__(self, state: dict[str, list[float]]) -> None:
        super().__init__(state)
        quantiles = np.array(list(state.values()), dtype=np.float32).T
        if quantiles.ndim != 2 or not (np.diff(quantiles, axis=0) >= 0).all():
            raise ValueError("these are no rising quantiles of descriptors")
        self.names = list(state)
        self._transformer = QuantileTransformer(n_quantiles=len(quantiles))
        self._transformer.quantiles_ = quantiles.astype(np.float64)
        self._transformer.references_ = np.linspace(0, 1, len(quantiles))
        self._transformer.n_quantiles_ = len(quantiles)
        self._transformer.n_features_in_ = len(self.names)

    @classmethod
    def fit(
        cls, sample: Sequence[bytes], *, processor: RMatProcessor, arguments: Any
    ) -> "DescriptorObjective":
        """Return the objective of the descriptors that the corpus has, and that vary in it."""
        _list_columns([], processor=processor)
        names = processor.molecule_descriptors or []
        descriptors = read_molecule_descriptors(sample)
        values = np.where(np.isfinite(descriptors), descriptors, np.nan).astype(np.float64)
        # these leave NaN out
        varies = np.fmin.reduce(values, axis=0) < np.fmax.reduce(values, axis=0)
        transformer = QuantileTransformer(
            n_quantiles=min(MAX_QUANTILES, len(descriptors)),
            subsample=MAX_MOLECULES_FITTED,
            random_state=arguments.seed,
        )
        quantiles = transformer.fit(values[:, varies]).quantiles_.astype(np.float32).T
        kept = [name for name, is_kept in zip(names, varies, strict=True) if is_kept]
        return cls(
            {
                name: [float(f"{value:.{_NUM_DIGITS}g}") for value in column]
                for name, column in zip(kept, quantiles, strict=True)
            }
        )

    def compute_ranks(self, descriptors: np.ndarray) -> np.ndarray:
        """Return the labels of descriptors in the order of `names`: from -1.73 to 1.73, or NaN."""
        finite = np.where(np.isfinite(descriptors), descriptors, np.nan).astype(np.float64)
        ranks = self._transformer.transform(finite)
        return ((ranks - _CENTER) * _SCALE).astype(np.float32)

    def describe_head(self) -> dict[str, str | int]:
        """Return a head of the molecule with an output for every descriptor."""
        return {"level": "molecule", "size": len(self.names), "loss": "regression"}

    def list_descriptors(self) -> list[str]:
        """Return the names of its outputs."""
        return self.names

    def validate_corpus(self, processor: RMatProcessor) -> None:
        """Raise a `UserError` if the corpus lacks a descriptor."""
        _list_columns(self.names, processor=processor)

    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the ranks of the descriptors, NaN for molecules that are not asked."""
        columns = _list_columns(self.names, processor=batch.processor)
        labels = self.compute_ranks(batch.inputs["molecule_descriptors"][:, columns])
        labels[~batch.is_asked] = np.nan
        return labels, {}

    def compute_sums(self, logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
        """Return rows for molecules, sum of the labels, of their squares, of the errors."""
        known = ~labels.isnan()
        values = labels.nan_to_num(0.0).double()
        errors = (logits.double() - values).masked_fill(~known, 0.0)
        parts = (known.double(), values, values**2, errors**2)
        return torch.stack([part.sum(0) for part in parts]).cpu()

    def compute_metrics(self, sums: torch.Tensor) -> dict[str, Any]:
        """Return the squared error, R² (mean, median, the worst) and the number of molecules."""
        known, values, squares, errors = sums
        if known.sum() == 0:
            return {}
        metrics: dict[str, Any] = {"descriptor_loss": float(errors.sum() / known.sum())}
        variances = squares - values**2 / known.clamp(min=1)
        # a descriptor that hardly varies in these molecules has no meaningful R²
        varies = variances > 1e-6 * known.clamp(min=1)
        r2 = (1 - errors / variances)[varies]
        if len(r2):
            names = np.array(self.names)[varies.numpy()]
            metrics["descriptor_r2"] = float(r2.mean())
            metrics["descriptor_r2_median"] = float(r2.median())
            worst = r2.argsort()[:NUM_WORST_DESCRIPTORS].tolist()
            metrics["worst_descriptors"] = {str(names[idx]): float(r2[idx]) for idx in worst}
        metrics["num_described_molecules"] = int(known.max())
        return metrics


def _list_columns(wanted: Sequence[str], *, processor: RMatProcessor) -> list[int]:
    """Return where descriptors stand in the corpus, which has some."""
    known = processor.molecule_descriptors or []
    missing = [name for name in wanted if name not in known]
    if missing or not known:
        raise UserError(
            f"The corpus lacks molecule descriptors to learn ({', '.join(missing[:3]) or 'all'}). "
            "Featurize it with --molecule-descriptors rdkit_2d, or pass --objective contexts."
        )
    return [known.index(name) for name in wanted]
