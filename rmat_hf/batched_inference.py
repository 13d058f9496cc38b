"""Many molecules through a model: featurized ahead, in batches of similar sizes, in input order."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem
from torch.utils.data import DataLoader

from rmat_hf.data.compact_features import count_nodes, expand_features
from rmat_hf.data.feature_cache import FeaturizedMolecule
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.length_grouping import group_by_length
from rmat_hf.modeling_rmat import RMatPreTrainedModel
from rmat_hf.molecule_features_rmat import Molecule
from rmat_hf.processing_rmat import RMatProcessor

# Batches whose molecules are grouped by size together; the features wait in compact form.
BATCHES_GROUPED = 32


class _Featurizer:
    """Featurizes a list of molecules; runs in the dataloader's workers."""

    def __init__(self, processor: RMatProcessor, cache_dir: str | Path | None) -> None:
        self.processor = processor
        self.cache_dir = cache_dir

    def __call__(self, molecules: list[Molecule]) -> list[FeaturizedMolecule]:
        return featurize_molecules(molecules, self.processor, cache_dir=self.cache_dir)


@dataclass(frozen=True)
class BatchedInference:
    """A model and how molecules go through it; the result depends on the first three alone.

    Args:
        model (`RMatPreTrainedModel`): With or without a head.
        processor (`RMatProcessor`): The one that was saved with the model.
        read_output (`Callable`): Takes the output, returns `(batch_size, num_columns)`.
        num_columns (`int`): Numbers per molecule.
        batch_size (`int`): Most molecules in one forward pass.
        num_workers (`int`): Processes that featurize beside this one.
        cache_dir (`str` or `Path`, *optional*): Folder of a feature cache.
    """

    model: RMatPreTrainedModel
    processor: RMatProcessor
    read_output: Callable[[Any], torch.Tensor]
    num_columns: int
    batch_size: int
    num_workers: int
    cache_dir: str | Path | None

    def run(self, molecules: Iterable[Molecule]) -> tuple[np.ndarray, list[str | None]]:
        """Return the numbers of every molecule, NaN where there are none, and why.

        Args:
            molecules (`Iterable[str | Chem.Mol | None]`): In any number.

        Returns:
            `np.ndarray` of shape `(num_molecules, num_columns)`, float64, and one error each.
        """
        rows = list_molecules(molecules)
        self.model.eval()
        values = np.full((len(rows), self.num_columns), np.nan)
        errors: list[str | None] = []
        waiting: dict[int, bytes] = {}
        for outcomes in self._build_loader(rows):
            for outcome in outcomes:
                if not outcome.failure:
                    waiting[len(errors)] = outcome.features
                errors.append(outcome.failure or None)
            if len(waiting) >= BATCHES_GROUPED * self.batch_size or len(errors) == len(rows):
                self._run_grouped(waiting, values)
                waiting.clear()
        failed = ~np.isfinite(values).all(axis=1)
        values[failed] = np.nan
        for row in np.flatnonzero(failed):
            errors[row] = errors[row] or "the model's output is not a finite number"
        return values, errors

    def _build_loader(self, rows: list[Molecule]) -> DataLoader[Any]:
        processor = self.processor
        if getattr(self.model, "descriptor_scaler", None) is None:
            processor = copy.copy(processor)
            processor.molecule_descriptors = None
        return DataLoader(
            rows,  # type: ignore[arg-type]  # any sequence is a map-style dataset
            batch_size=self.batch_size,
            collate_fn=_Featurizer(processor, self.cache_dir),
            num_workers=self.num_workers,
        )

    def _run_grouped(self, waiting: dict[int, bytes], values: np.ndarray) -> None:
        """Write the model's output for the molecules that wait into their rows."""
        rows = np.array([*waiting], dtype=np.int64)
        features = [*waiting.values()]
        for batch in group_by_length(count_nodes(features), batch_size=self.batch_size):
            arrays = expand_features([features[position] for position in batch])
            inputs = {
                name: torch.from_numpy(array).to(self.model.device)
                for name, array in arrays.items()
            }
            with torch.inference_mode():
                output = self.read_output(self.model(**inputs))
            values[rows[batch]] = output.double().cpu().numpy()


def list_molecules(molecules: Iterable[Molecule]) -> list[Molecule]:
    """Return molecules as a list; raise `TypeError` for one alone or a table."""
    if isinstance(molecules, str | bytes | Chem.Mol | Mapping) or not isinstance(
        molecules, Iterable
    ):
        raise TypeError("Pass a list of molecules, for example ['CCO'].")
    return list(molecules)
