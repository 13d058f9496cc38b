"""Molecule descriptors on a common scale: their rank in the corpus."""

import math
from collections.abc import Sequence

import numpy as np
from sklearn.preprocessing import QuantileTransformer

MAX_QUANTILES = 100
MAX_MOLECULES_FITTED = 100_000
# A uniform distribution from 0 to 1 gets mean 0 and variance 1, the scale of a cross-entropy.
_CENTER = 0.5
_SCALE = math.sqrt(12)


class DescriptorQuantiles:
    """Quantiles of descriptors in a corpus, and labels for the regression from them.

    The label of a descriptor is the share of the corpus below it, shifted and scaled to mean 0 and
    variance 1 for a continuous descriptor. The least value has share 0, other frequent values have
    the middle of theirs: a count that is nearly always 0 keeps a small variance, and with it a
    small part in the loss.

    Args:
        names (`Sequence[str]`): Descriptors of RDKit.
        quantiles (`np.ndarray` of shape `(num_quantiles, num_descriptors)`):
            Values at evenly spaced shares of the corpus, from the least to the greatest.
    """

    def __init__(self, names: Sequence[str], quantiles: np.ndarray) -> None:
        self.names = list(names)
        self.quantiles = np.asarray(quantiles, dtype=np.float64)
        if self.quantiles.ndim != 2 or self.quantiles.shape[1] != len(self.names):
            raise ValueError(
                f"The quantiles of {len(self.names)} descriptors have the shape "
                f"{self.quantiles.shape}. Use the file as it was saved."
            )
        if not (np.diff(self.quantiles, axis=0) >= 0).all():
            raise ValueError("Descriptor quantiles do not rise. Use the file as it was saved.")
        self._transformer = QuantileTransformer(n_quantiles=len(self.quantiles))
        self._transformer.quantiles_ = self.quantiles
        self._transformer.references_ = np.linspace(0, 1, len(self.quantiles))
        self._transformer.n_quantiles_ = len(self.quantiles)
        self._transformer.n_features_in_ = len(self.names)

    @classmethod
    def fit(
        cls, descriptors: np.ndarray, *, names: Sequence[str], seed: int
    ) -> "DescriptorQuantiles":
        """Return the quantiles of a corpus, without descriptors that never vary or are unknown.

        Args:
            descriptors (`np.ndarray` of shape `(num_molecules, num_descriptors)`):
                NaN where undefined. More than 100,000 molecules are sampled.
            names (`Sequence[str]`): Their names.
            seed (`int`): Seed of the sample.

        Raises:
            ValueError: If no descriptor varies.
        """
        known = np.isfinite(descriptors)
        lowest = np.where(known, descriptors, np.inf).min(axis=0)
        highest = np.where(known, descriptors, -np.inf).max(axis=0)
        varies = lowest < highest
        if not varies.any():
            raise ValueError("No descriptor varies in the corpus. Give more molecules.")
        num_quantiles = min(MAX_QUANTILES, len(descriptors))
        transformer = QuantileTransformer(
            n_quantiles=num_quantiles, subsample=MAX_MOLECULES_FITTED, random_state=seed
        )
        values = np.where(known, descriptors, np.nan)[:, varies].astype(np.float64)
        transformer.fit(values)
        kept = [name for name, is_kept in zip(names, varies, strict=True) if is_kept]
        # rounded as they are saved, so that a loaded corpus gives the same labels
        return cls(kept, transformer.quantiles_.astype(np.float32))

    def transform(self, descriptors: np.ndarray) -> np.ndarray:
        """Return the labels of molecules.

        Args:
            descriptors (`np.ndarray` of shape `(num_molecules, num_descriptors)`):
                In the order of `names`, NaN where undefined.

        Returns:
            `np.ndarray` of the same shape, float32, from -1.73 to 1.73; NaN stays NaN.
        """
        finite = np.where(np.isfinite(descriptors), descriptors, np.nan).astype(np.float64)
        ranks = self._transformer.transform(finite)
        return ((ranks - _CENTER) * _SCALE).astype(np.float32)
