"""What an objective of pretraining is: labels, what it hides, its head, its metrics, its state."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch

from rmat_hf.model.losses_rmat import LOSSES
from rmat_hf.model.processing_rmat import RMatProcessor

NO_COLUMNS: Mapping[str, Sequence[Any]] = MappingProxyType({})

# Standardized labels end here (CheMeleon, arXiv 2506.15792).
WINSOR_LIMIT = 6.0
NUM_WORST = 10
_NUM_DIGITS = 9  # tell any two float32 apart


@dataclass(frozen=True)
class ObjectiveBatch:
    """Molecules of one batch, of which nothing is hidden yet.

    Args:
        packed (`list[bytes]`): The molecules, from `pack_features`.
        inputs (`dict[str, np.ndarray]`):
            Inputs of the model, and `molecule_descriptors` where the corpus has them.
        is_asked (`np.ndarray` of shape `(batch_size,)`): Bool: whom this objective is asked of.
        seed (`tuple[int, ...]`): Of the run and the epoch.
        processor (`RMatProcessor`): Featurized the corpus.
        arguments (`PretrainingArguments`): Options of the run.
        columns (`Mapping[str, Sequence]`, *optional*):
            Of the molecules, the columns of the corpus that objectives ask for.
    """

    packed: list[bytes]
    inputs: dict[str, np.ndarray]
    is_asked: np.ndarray
    seed: tuple[int, ...]
    processor: RMatProcessor
    arguments: Any
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class Objective(ABC):
    """Something to learn from the molecules of a corpus.

    Class attributes: `head`, the name of its head, of which `<head>_head` are the weights,
    `<head>_labels` the labels and `<head>_loss` the loss; `state_key`, its place in
    `pretraining_targets.json`; `hides_input`, whether molecules are masked for it; `columns`, what
    it reads of the corpus beside the features.

    Args:
        state: What the outputs mean, as JSON can hold it.
    """

    head: ClassVar[str]
    state_key: ClassVar[str]
    hides_input: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()

    def __init__(self, state: Any) -> None:
        self.state = state

    @classmethod
    @abstractmethod
    def fit(
        cls,
        sample: Sequence[bytes],
        *,
        processor: RMatProcessor,
        arguments: Any,
        columns: Mapping[str, Sequence[Any]] = NO_COLUMNS,
    ) -> Self:
        """Return the objective of a corpus, from packed molecules of its train part.

        `columns` has those of the corpus that it asks for, of the same molecules.
        """

    @abstractmethod
    def describe_head(self) -> dict[str, str | int]:
        """Return its entry in `RMatConfig.pretraining_heads`."""

    def list_descriptors(self) -> list[str]:
        """Return the molecule descriptors that a processor has to compute for it."""
        return []

    def validate_corpus(self, processor: RMatProcessor) -> None:  # noqa: B027 - most need nothing
        """Raise a `UserError` if the corpus lacks what this objective asks for."""

    @abstractmethod
    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the labels of a batch, and the inputs that differ because something is hidden."""

    @abstractmethod
    def compute_sums(self, logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
        """Return what the metrics need of a batch, float64, on the CPU.

        Those of all batches and processes are added up, so memory does not grow with the corpus.
        """

    @abstractmethod
    def compute_metrics(self, sums: torch.Tensor) -> dict[str, Any]:
        """Return the metrics of all batches, `<head>_loss` among them; empty if nothing was asked.

        Numbers appear in the log, everything in `metrics.json` and in the card of the model.
        """


def spread_evenly(values: Sequence[Any], number: int) -> list[Any]:
    """Return at most a number of values, evenly spaced."""
    places = np.linspace(0, len(values) - 1, min(len(values), number))
    return [values[place] for place in np.unique(places.astype(int)).tolist()]


def round_floats(values: Sequence[float] | np.ndarray) -> list[float]:
    """Return numbers with as many digits as tell any two float32 apart, for a file."""
    return [float(f"{value:.{_NUM_DIGITS}g}") for value in values]


def measure_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column without NaN; of an empty one 0 and 0."""
    known = np.isfinite(values)
    numbers = np.maximum(known.sum(0), 1)
    filled = np.where(known, values, 0.0).astype(np.float64)
    means = filled.sum(0) / numbers
    return means, np.sqrt((np.where(known, filled - means, 0.0) ** 2).sum(0) / numbers)


def standardize(values: np.ndarray, *, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """Return float32 on a scale of mean 0 and variance 1, winsorized; NaN where not finite."""
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    return np.clip((finite - means) / stds, -WINSOR_LIMIT, WINSOR_LIMIT).astype(np.float32)


class RegressionObjective(Objective):
    """Regression of numbers, NaN where unknown; `names` has one for every output.

    Class attributes: `number`, how its metrics call the number of molecules or atoms asked.
    """

    number: ClassVar[str]
    names: list[str]

    def compute_sums(self, logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
        """Return rows for labels, their sum and that of squares, squared errors and losses."""
        outputs, given = logits.double().flatten(0, -2), labels.double().flatten(0, -2)
        known, values = ~given.isnan(), given.nan_to_num(0.0)
        loss = LOSSES[str(self.describe_head()["loss"])]
        losses = loss.compute_elements(outputs, values, None)
        parts = (known.double(), values, values**2, (outputs - values) ** 2, losses)
        return torch.stack([part.masked_fill(~known, 0.0).sum(0) for part in parts]).cpu()

    def compute_metrics(self, sums: torch.Tensor) -> dict[str, Any]:
        """Return the loss, R² (mean, median, the worst) and the number of molecules or atoms."""
        known, values, squares, errors, losses = sums
        if known.sum() == 0:
            return {}
        metrics: dict[str, Any] = {f"{self.head}_loss": float(losses.sum() / known.sum())}
        variances = squares - values**2 / known.clamp(min=1)
        # what hardly varies here has no meaningful R²
        varies = variances > 1e-6 * known.clamp(min=1)
        r2 = (1 - errors / variances)[varies]
        if len(r2):
            names = np.array(self.names)[varies.numpy()]
            metrics[f"{self.head}_r2"] = float(r2.mean())
            metrics[f"{self.head}_r2_median"] = float(r2.median())
            worst = r2.argsort()[:NUM_WORST].tolist()
            metrics[f"worst_{self.head}s"] = {str(names[idx]): float(r2[idx]) for idx in worst}
        metrics[self.number] = int(known.max())
        return metrics
