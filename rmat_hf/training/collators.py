"""Rows of a featurized table → a batch of the model."""

from typing import Any

import numpy as np
import torch

from rmat_hf.data.stored_features import expand_features
from rmat_hf.model.processing_rmat import RMatProcessor


class RMatDataCollator:
    """Expands the packed features of a batch, padded as `RMatProcessor.pad` does, adds the labels.

    Args:
        processor (`RMatProcessor`): Featurized the rows.
    """

    def __init__(self, processor: RMatProcessor) -> None:
        self.num_descriptors = len(processor.molecule_descriptors or [])

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return model inputs and `labels` `(batch_size, num_labels)`, float32, NaN = missing."""
        features = expand_features([row["features"] for row in rows])
        if self.num_descriptors != features.get("molecule_descriptors", np.empty((0, 0))).shape[1]:
            raise ValueError(
                f"The rows were not featurized with the {self.num_descriptors} molecule "
                "descriptors of the processor. Featurize them with it."
            )
        batch = {name: torch.from_numpy(array) for name, array in features.items()}
        labels = np.array([row["labels"] for row in rows], dtype=np.float32)
        return {**batch, "labels": torch.from_numpy(labels)}
