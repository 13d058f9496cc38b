"""Rows of a featurized data set → a batch of the model, one collator per training stage."""

from typing import Any

import numpy as np
import torch

from rmat_hf.data.featurization import unpack_features
from rmat_hf.processing_rmat import RMatProcessor


class FinetuningCollator:
    """Pads the features of a batch and adds the labels.

    Args:
        processor (`RMatProcessor`): Pads the features.
    """

    def __init__(self, processor: RMatProcessor) -> None:
        self.processor = processor

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return model inputs and `labels` `(batch_size, num_labels)`, float32, NaN = missing."""
        features = [unpack_features(row) for row in rows]
        batch = dict(self.processor.pad(features, return_tensors="pt"))
        batch["labels"] = torch.from_numpy(
            np.array([row["labels"] for row in rows], dtype=np.float32)
        )
        return batch
