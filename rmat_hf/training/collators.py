"""Rows of a featurized data set → a batch of the model, one collator per training stage."""

from typing import Any

import numpy as np
import torch

from rmat_hf.data.stored_features import expand_features
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.pretraining_targets import (
    PretrainingTargets,
    compute_context_labels,
    draw_masked_centers,
    draw_roles,
    hide_distances,
    mask_contexts,
)
from rmat_hf.training.pretraining_batches import PretrainingBatch

# Draws of one molecule and epoch must not be the same numbers.
_CENTER_DRAW, _ROLE_DRAW = 0, 1


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


class PretrainingCollator:
    """Expands the packed features of a batch, masks atoms and adds the labels of pretraining.

    Where both contexts and descriptors are learned, a molecule is masked with a chance of one half
    and asked for contexts, else it is whole and asked for descriptors, as it is in finetuning.

    Args:
        processor (`RMatProcessor`): Featurized the corpus.
        targets (`PretrainingTargets`): Classes of the contexts, scale of the descriptors.
        contexts, descriptors (`bool`): What is learned.
        mask_ratio (`float`): Chance of every atom to be a center.
        hides_distances (`bool`): Whether the 3D distances of masked nodes are hidden as well.
        seed (`int`): Seed of the masks.
    """

    def __init__(
        self,
        processor: RMatProcessor,
        targets: PretrainingTargets,
        *,
        contexts: bool,
        descriptors: bool,
        mask_ratio: float,
        hides_distances: bool,
        seed: int,
    ) -> None:
        self.targets = targets
        self.contexts = contexts
        self.mask_ratio = mask_ratio
        self.hides_distances = hides_distances
        self.seed = seed
        self.columns: list[int] | None = None
        if descriptors:
            if targets.quantiles is None:
                raise ValueError("These targets have no descriptors. Learn contexts alone.")
            names = processor.molecule_descriptors or []
            missing = [name for name in targets.quantiles.names if name not in names]
            if missing:
                raise ValueError(
                    f"The corpus has no descriptor {missing[0]!r} ({len(missing)} are missing). "
                    "Featurize it with --molecule-descriptors rdkit_2d, or learn contexts alone."
                )
            self.columns = [names.index(name) for name in targets.quantiles.names]

    def __call__(self, batches: list[PretrainingBatch]) -> dict[str, torch.Tensor]:
        """Return model inputs, `labels` and `descriptor_labels`, see [`RMatForPreTraining`]."""
        epochs = {batch.epoch for batch in batches}
        packed = [molecule for batch in batches for molecule in batch.features]
        if not packed:  # a batch that a resumed run skips
            return {}
        seed = (self.seed, *epochs)
        inputs = expand_features(packed)
        descriptors = inputs.pop("molecule_descriptors", None)
        is_masked = np.full(len(packed), self.contexts)
        if self.contexts and self.columns is not None:
            is_masked = draw_roles(packed, seed=(*seed, _ROLE_DRAW))
        if self.contexts:
            centers = draw_masked_centers(
                packed,
                inputs["attention_mask"],
                mask_ratio=self.mask_ratio,
                seed=(*seed, _CENTER_DRAW),
            )
            centers[~is_masked] = False
            nodes, bonds = inputs["node_features"], inputs["bond_types"]
            inputs["labels"] = compute_context_labels(
                nodes, bonds, centers=centers, vocabulary=self.targets.vocabulary
            )
            inputs["node_features"], inputs["bond_types"] = mask_contexts(
                nodes, bonds, centers=centers
            )
            if self.hides_distances:
                inputs["interatomic_distances"] = hide_distances(
                    inputs["interatomic_distances"], inputs["node_features"]
                )
        if self.columns is not None and self.targets.quantiles is not None:
            if descriptors is None:
                raise ValueError("The molecules come without descriptors. Featurize them anew.")
            labels = self.targets.quantiles.transform(descriptors[:, self.columns])
            labels[is_masked] = np.nan
            inputs["descriptor_labels"] = labels
        return {name: torch.from_numpy(array) for name, array in inputs.items()}
