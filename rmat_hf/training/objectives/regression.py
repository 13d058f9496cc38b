"""What objectives with numbers as labels share: their scale, and metrics from sums."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from rmat_hf.model.losses_rmat import LOSSES
from rmat_hf.training.objectives.objective import Objective

# Standardized labels end here (CheMeleon, arXiv 2506.15792).
WINSOR_LIMIT = 6.0
NUM_WORST = 10
_NUM_DIGITS = 9  # tell any two float32 apart


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
