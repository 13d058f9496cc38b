"""Objective `counts`: how often a molecule has the substructures of fingerprints."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import FINGERPRINT_SIZE
from rmat_hf.model.features_rmat import MoleculeError, compute_fingerprint_counts, parse_molecule
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.objective import (
    NO_COLUMNS,
    ObjectiveBatch,
    RegressionObjective,
    measure_scale,
    round_floats,
    spread_evenly,
    standardize,
)

# Columns to which the 2,048 of a fingerprint are folded.
FOLDED_SIZES = {"ecfp4": 1024, "fcfp4": 512, "atom_pairs": 1024, "torsions": 1024}
# Of the molecules of the corpus, those that have to have a substructure.
MIN_SHARE = 0.001
MAX_MOLECULES_FITTED = 20_000
# Channels between the vector and thousands of outputs.
HEAD_RANK = 128


class CountObjective(RegressionObjective):
    """Regression of log(1 + count), standardized, of the columns that are in use.

    Args:
        state (`dict[str, list[list[float]]]`):
            For every fingerprint the columns that are learned, their means and their standard
            deviations.
    """

    head = "count"
    state_key = "fingerprint_counts"
    columns = ("smiles",)
    number = "num_counted_molecules"

    def __init__(self, state: dict[str, list[list[float]]]) -> None:
        super().__init__(state)
        starts = dict(zip(FOLDED_SIZES, np.cumsum([0, *FOLDED_SIZES.values()]), strict=False))
        kept = [(name, int(column)) for name, of_it in state.items() for column in of_it[0]]
        self.names = [f"{name}:{column}" for name, column in kept]
        self._kept = np.array([starts[name] + column for name, column in kept])
        scales = [np.array(of_it[1:]) for of_it in state.values()]
        self._means, self._stds = np.concatenate(scales, axis=1)

    @classmethod
    def fit(
        cls,
        sample: Sequence[bytes],
        *,
        processor: RMatProcessor,
        arguments: Any,
        columns: Mapping[str, Sequence[Any]] = NO_COLUMNS,
    ) -> "CountObjective":
        """Return the objective with the columns that are in use in the sample."""
        counts = count_substructures(
            spread_evenly(columns["smiles"], MAX_MOLECULES_FITTED), processor=processor
        )
        counts = counts[~np.isnan(counts).any(1)]
        means, stds = measure_scale(counts)
        is_kept = ((counts > 0).sum(0) > MIN_SHARE * len(counts)) & (stds > 0)
        state: dict[str, list[list[float]]] = {}
        start = 0
        for name, size in FOLDED_SIZES.items():
            kept = np.flatnonzero(is_kept[start : start + size])
            places = kept + start
            if len(kept):
                scales = round_floats(means[places]), round_floats(stds[places])
                state[name] = [round_floats(kept), *scales]
            start += size
        if not state:
            raise UserError(
                "No molecule of the corpus has a SMILES to count substructures of. Featurize a "
                "table with SMILES, or leave out --objective counts."
            )
        return cls(state)

    def describe_head(self) -> dict[str, str | int]:
        """Return a head of the molecule of low rank."""
        size = len(self.names)
        return {"level": "molecule", "size": size, "loss": "regression", "rank": HEAD_RANK}

    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the standardized counts, NaN for molecules that are not asked."""
        asked = [
            text if is_asked else None
            for text, is_asked in zip(batch.columns["smiles"], batch.is_asked, strict=True)
        ]
        counts = count_substructures(asked, processor=batch.processor)[:, self._kept]
        return standardize(counts, means=self._means, stds=self._stds), {}


def count_substructures(smiles: Sequence[str | None], *, processor: RMatProcessor) -> np.ndarray:
    """Return log(1 + count) of all folded columns, float32; NaN of what is no SMILES."""
    rows = np.full((len(smiles), sum(FOLDED_SIZES.values())), np.nan, dtype=np.float32)
    for row, text in enumerate(smiles):
        if text is None:
            continue
        try:
            mol = parse_molecule(text, **processor.parsing_options)
        except MoleculeError:
            continue
        counts = compute_fingerprint_counts(mol, [*FOLDED_SIZES]).astype(np.float32)
        blocks = counts.reshape(-1, FINGERPRINT_SIZE)
        folded = [
            block.reshape(-1, size).sum(0)
            for block, size in zip(blocks, FOLDED_SIZES.values(), strict=True)
        ]
        rows[row] = np.log1p(np.concatenate(folded))
    return rows
