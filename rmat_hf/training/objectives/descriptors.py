"""Objective `descriptors`: molecule descriptors on a common scale, a member of `SCALES`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.preprocessing import QuantileTransformer

from rmat_hf.data.stored_features import read_molecule_descriptors
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.objective import (
    NO_COLUMNS,
    ObjectiveBatch,
    RegressionObjective,
    measure_scale,
    round_floats,
    standardize,
)

MAX_QUANTILES = 100
MAX_MOLECULES_FITTED = 100_000
# A uniform distribution from 0 to 1 gets mean 0 and variance 1, the scale of a cross-entropy.
_CENTER = 0.5
_SCALE = math.sqrt(12)


class DescriptorScale(ABC):
    """Labels of descriptors; its state has a list of numbers for each.

    Args:
        state (`dict[str, list[float]]`): By descriptor.
    """

    loss: ClassVar[str]

    @abstractmethod
    def __init__(self, state: dict[str, list[float]]) -> None:
        pass

    @classmethod
    @abstractmethod
    def fit(cls, values: np.ndarray, *, seed: int) -> np.ndarray:
        """Return the numbers of each descriptor, a row; NaN is left out."""

    @abstractmethod
    def transform(self, values: np.ndarray) -> np.ndarray:
        """Return labels, float32, of one descriptor in each column, NaN where unknown."""


class RankScale(DescriptorScale):
    """The share of the corpus below, shifted and scaled: from -1.73 to 1.73.

    A continuous descriptor has mean 0 and variance 1. The least value has share 0, other frequent
    values have the middle of theirs: a count that is nearly always 0 keeps a small variance, and
    with it a small part in the loss. The state has the values at evenly spaced shares of the
    corpus, from the least to the greatest.
    """

    loss = "regression"

    def __init__(self, state: dict[str, list[float]]) -> None:
        quantiles = np.array(list(state.values()), dtype=np.float32).T
        if quantiles.ndim != 2 or not (np.diff(quantiles, axis=0) >= 0).all():
            raise ValueError("these are no rising quantiles of descriptors")
        self._transformer = QuantileTransformer(n_quantiles=len(quantiles))
        self._transformer.quantiles_ = quantiles.astype(np.float64)
        self._transformer.references_ = np.linspace(0, 1, len(quantiles))
        self._transformer.n_quantiles_ = len(quantiles)
        self._transformer.n_features_in_ = len(state)

    @classmethod
    def fit(cls, values: np.ndarray, *, seed: int) -> np.ndarray:
        """Return the quantiles."""
        transformer = QuantileTransformer(
            n_quantiles=min(MAX_QUANTILES, len(values)),
            subsample=MAX_MOLECULES_FITTED,
            random_state=seed,
        )
        return transformer.fit(values).quantiles_.astype(np.float32).T

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Return ranks; values beyond the corpus take its ends."""
        ranks = self._transformer.transform(values)
        return ((ranks - _CENTER) * _SCALE).astype(np.float32)


class StandardizedScale(DescriptorScale):
    """Mean 0 and variance 1, winsorized: a rare count counts as much as any other descriptor.

    The state has mean and standard deviation.
    """

    loss = "huber"

    def __init__(self, state: dict[str, list[float]]) -> None:
        self._means, self._stds = np.array(list(state.values()), dtype=np.float64).T

    @classmethod
    def fit(cls, values: np.ndarray, *, seed: int) -> np.ndarray:
        """Return mean and standard deviation."""
        return np.stack(measure_scale(values), axis=1)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Return standard deviations from the mean, at most 6 of them."""
        return standardize(values, means=self._means, stds=self._stds)


SCALES: dict[str, type[DescriptorScale]] = {"ranks": RankScale, "standardized": StandardizedScale}


class DescriptorObjective(RegressionObjective):
    """Regression of the descriptors of whole molecules, as they come in finetuning.

    Args:
        state (`dict[str, dict[str, list[float]]]`):
            Name of the scale, and its state; of ranks, the state alone.
    """

    head = "descriptor"
    state_key = "descriptor_quantiles"
    number = "num_described_molecules"

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__(state)
        is_named = len(state) == 1 and SCALES.keys() >= state.keys()
        ((kind, of_scale),) = state.items() if is_named else (("ranks", state),)
        self.names = list(of_scale)
        self.scale = SCALES[kind](of_scale)

    @classmethod
    def fit(
        cls,
        sample: Sequence[bytes],
        *,
        processor: RMatProcessor,
        arguments: Any,
        columns: Mapping[str, Sequence[Any]] = NO_COLUMNS,
    ) -> "DescriptorObjective":
        """Return the objective of the descriptors that the corpus has, and that vary in it."""
        _list_columns([], processor=processor)
        names = processor.molecule_descriptors or []
        values = read_finite(read_molecule_descriptors(sample))
        # these leave NaN out
        varies = np.fmin.reduce(values, axis=0) < np.fmax.reduce(values, axis=0)
        kind = arguments.descriptor_scale
        numbers = SCALES[kind].fit(values[:, varies], seed=arguments.seed)
        kept = [name for name, is_kept in zip(names, varies, strict=True) if is_kept]
        state = {name: round_floats(row) for name, row in zip(kept, numbers, strict=True)}
        return cls(state if kind == "ranks" else {kind: state})

    def compute_labels(self, descriptors: np.ndarray) -> np.ndarray:
        """Return the labels of descriptors in the order of `names`, NaN where undefined."""
        return self.scale.transform(read_finite(descriptors))

    def describe_head(self) -> dict[str, str | int]:
        """Return a head of the molecule with an output for every descriptor."""
        return {"level": "molecule", "size": len(self.names), "loss": self.scale.loss}

    def list_descriptors(self) -> list[str]:
        """Return the names of its outputs."""
        return self.names

    def validate_corpus(self, processor: RMatProcessor) -> None:
        """Raise a `UserError` if the corpus lacks a descriptor."""
        _list_columns(self.names, processor=processor)

    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the labels of the descriptors, NaN for molecules that are not asked."""
        columns = _list_columns(self.names, processor=batch.processor)
        labels = self.compute_labels(batch.inputs["molecule_descriptors"][:, columns])
        labels[~batch.is_asked] = np.nan
        return labels, {}


def read_finite(descriptors: np.ndarray) -> np.ndarray:
    """Return float64, NaN for what is not finite."""
    return np.where(np.isfinite(descriptors), descriptors, np.nan).astype(np.float64)


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
