"""Many molecules through a model: featurized ahead, in batches of similar sizes, in input order."""

import copy
import functools
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem

from rmat_hf.data.feature_cache import FeaturizedMolecule
from rmat_hf.data.featurization import (
    build_death,
    featurize_molecules,
    featurize_one_by_one,
    find_item_time_limit,
)
from rmat_hf.data.length_grouping import group_by_length
from rmat_hf.data.stored_features import count_nodes, expand_features
from rmat_hf.data.worker_pool import WorkerPool
from rmat_hf.errors import is_out_of_memory
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.model.modeling_rmat import RMatPreTrainedModel
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

TOO_LARGE_FOR_MODEL = "the model needs more memory for it than there is"
# Batches whose molecules are grouped by size together; the features wait in compact form.
BATCHES_GROUPED = 32


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
        with closing(self._iterate_featurized(rows)) as featurized:
            for outcomes in featurized:
                for outcome in outcomes:
                    if not outcome.failure:
                        waiting[len(errors)] = outcome.features
                    errors.append(outcome.failure or None)
                if len(waiting) >= BATCHES_GROUPED * self.batch_size or len(errors) == len(rows):
                    for position, reason in self._run_grouped(waiting, values).items():
                        errors[position] = reason
                    waiting.clear()
        failed = ~np.isfinite(values).all(axis=1)
        values[failed] = np.nan
        for row in np.flatnonzero(failed):
            errors[row] = errors[row] or "the model's output is not a finite number"
        return values, errors

    def _iterate_featurized(
        self, rows: list[Molecule]
    ) -> Generator[list[FeaturizedMolecule], None, None]:
        processor = self.processor
        if getattr(self.model, "descriptor_scaler", None) is None:
            processor = copy.copy(processor)
            processor.molecule_descriptors = None
        starts = range(0, len(rows), self.batch_size)
        chunks = (rows[start : start + self.batch_size] for start in starts)
        if self.num_workers == 0:
            for chunk in chunks:
                yield featurize_molecules(chunk, processor, cache_dir=self.cache_dir)
            return
        pool = WorkerPool(
            functools.partial(featurize_one_by_one, processor=processor, cache_dir=self.cache_dir),
            build_death,
            num_workers=self.num_workers,
            item_time_limit_s=find_item_time_limit(processor),
        )
        with closing(pool.iterate_outcomes(chunks)) as computed:
            for _, outcomes in computed:
                yield outcomes

    def _run_grouped(self, waiting: dict[int, bytes], values: np.ndarray) -> dict[int, str]:
        """Write the model's output for the molecules that wait; return those without, and why."""
        rows = np.array([*waiting], dtype=np.int64)
        features = [*waiting.values()]
        num_nodes = count_nodes(features)
        failures = {}
        for batch in group_by_length(num_nodes, batch_size=self.batch_size):
            if self._run_batch(rows[batch], features=features, batch=batch, values=values):
                continue
            logger.warning(
                "A batch of %d molecules needs more memory than there is: they go one by one.",
                len(batch),
            )
            for position in batch[:, None]:
                row = rows[position]
                if not self._run_batch(row, features=features, batch=position, values=values):
                    num_atoms = num_nodes[int(position[0])] - 1
                    failures[int(row[0])] = f"{TOO_LARGE_FOR_MODEL} ({num_atoms} atoms)"
        return failures

    def _run_batch(
        self, rows: np.ndarray, *, features: list[bytes], batch: np.ndarray, values: np.ndarray
    ) -> bool:
        """Write the model's output of a batch; return whether there was enough memory."""
        try:
            arrays = expand_features([features[position] for position in batch])
            inputs = {
                name: torch.from_numpy(array).to(self.model.device)
                for name, array in arrays.items()
            }
            with torch.inference_mode():
                output = self.read_output(self.model(**inputs))
            values[rows] = output.double().cpu().numpy()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True


def list_molecules(molecules: Iterable[Molecule]) -> list[Molecule]:
    """Return molecules as a list; raise `TypeError` for one alone or a table."""
    if isinstance(molecules, str | bytes | Chem.Mol | Mapping) or not isinstance(
        molecules, Iterable
    ):
        raise TypeError("Pass a list of molecules, for example ['CCO'].")
    return list(molecules)
