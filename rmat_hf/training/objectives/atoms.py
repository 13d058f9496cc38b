"""Objective `atoms`: what chemistry says of a masked atom, its distances hidden as well."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors, rdPartialCharges
from rdkit.Chem.EState import EStateIndices

from rmat_hf.data.stored_features import unpack_features
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import DUMMY_NODE_IDX
from rmat_hf.model.features_rmat import (
    ATOM_FEATURES,
    MoleculeError,
    compute_bonds,
    parse_canonical,
    silence_rdkit,
)
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.contexts import draw_asked_centers, mask_contexts
from rmat_hf.training.objectives.objective import (
    NO_COLUMNS,
    ObjectiveBatch,
    RegressionObjective,
    measure_scale,
    round_floats,
    spread_evenly,
    standardize,
)

MAX_MOLECULES_FITTED = 5_000


def compute_charges(mol: Chem.Mol) -> list[float]:
    """Return Gasteiger's partial charges, with those of the hydrogens of an atom left out."""
    copy = Chem.Mol(mol)
    rdPartialCharges.ComputeGasteigerCharges(copy)
    return [atom.GetDoubleProp("_GasteigerCharge") for atom in copy.GetAtoms()]


# Numbers of every atom: name → function of the molecule.
ATOM_PROPERTIES: dict[str, Callable[[Chem.Mol], Sequence[float]]] = {
    "crippen_logp": lambda mol: [it[0] for it in rdMolDescriptors._CalcCrippenContribs(mol)],
    "crippen_mr": lambda mol: [it[1] for it in rdMolDescriptors._CalcCrippenContribs(mol)],
    "tpsa": rdMolDescriptors._CalcTPSAContribs,
    "gasteiger_charge": compute_charges,
    "estate": lambda mol: EStateIndices(Chem.Mol(mol)),
}


class AtomObjective(RegressionObjective):
    """Regression of properties of the centers that `contexts` masks, standardized.

    Args:
        state (`dict[str, list[float]]`): Mean and standard deviation of each property.
    """

    head = "atom"
    state_key = "atom_properties"
    hides_input = True
    columns = ("smiles",)
    number = "num_atoms_asked"

    def __init__(self, state: dict[str, list[float]]) -> None:
        super().__init__(state)
        self.names = list(state)
        self._means, self._stds = np.array(list(state.values()), dtype=np.float64).T

    @classmethod
    def fit(
        cls,
        sample: Sequence[bytes],
        *,
        processor: RMatProcessor,
        arguments: Any,
        columns: Mapping[str, Sequence[Any]] = NO_COLUMNS,
    ) -> "AtomObjective":
        """Return the objective with the scale of the properties in the sample."""
        rows = spread_evenly(
            list(zip(columns["smiles"], sample, strict=True)), MAX_MOLECULES_FITTED
        )
        found = [compute_properties(*row, processor=processor) for row in rows]
        values = np.concatenate([it for it in found if it is not None] or [np.zeros((1, 5))])
        means, stds = measure_scale(values)
        state = {
            name: round_floats([mean, std])
            for name, mean, std in zip(ATOM_PROPERTIES, means, stds, strict=True)
            if std > 0
        }
        if not state:
            raise UserError(
                "No molecule of the corpus is what its SMILES says, so atoms have no properties. "
                "Featurize a table with SMILES, or leave out --objective atoms."
            )
        return cls(state)

    def describe_head(self) -> dict[str, str | int]:
        """Return a head of the nodes."""
        return {"level": "node", "size": len(self.names), "loss": "regression"}

    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the properties of the centers, NaN for other nodes, and the masked molecules."""
        centers = draw_asked_centers(batch)
        labels = np.full((*centers.shape, len(self.names)), np.nan, dtype=np.float32)
        kept = [idx for idx, name in enumerate(ATOM_PROPERTIES) if name in self.names]
        for row in np.flatnonzero(batch.is_asked).tolist():
            values = compute_properties(
                batch.columns["smiles"][row], batch.packed[row], processor=batch.processor
            )
            if values is not None:
                scaled = standardize(values[:, kept], means=self._means, stds=self._stds)
                first = DUMMY_NODE_IDX + 1
                labels[row, first : first + len(scaled)] = scaled
        labels[~centers] = np.nan
        # bond lengths would tell
        return labels, mask_contexts(batch.inputs, centers, hides_distances=True)


def compute_properties(
    smiles: str | None, packed: bytes, *, processor: RMatProcessor
) -> np.ndarray | None:
    """Return `ATOM_PROPERTIES` of a molecule, `(num_atoms, 5)`, NaN where undefined."""
    features = unpack_features(packed)
    try:
        parsed = parse_canonical(smiles or "", **processor.parsing_options)
    except MoleculeError:
        return None
    # a corpus has the canonical order, the processor alone that of the SMILES
    for mol in (parsed.mol, parsed.given_mol):
        if mol is not None and (
            np.array_equal(ATOM_FEATURES.compute_codes(mol), features.atom_codes)
            and np.array_equal(compute_bonds(mol), features.bonds)
        ):
            break
    else:
        return None
    with silence_rdkit():
        columns = [np.array(compute(mol), dtype=np.float64) for compute in ATOM_PROPERTIES.values()]
    values = np.stack(columns, axis=1)
    values[~np.isfinite(values)] = np.nan
    return values
