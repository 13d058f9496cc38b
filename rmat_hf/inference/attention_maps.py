"""compute_attention_maps(...): what attends to what in a molecule, and what relations change."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdkit import Chem

from rmat_hf.data.stored_features import pack_features
from rmat_hf.inference.attribution import RELATION_INPUTS, Edit, FeaturizedMol, build_variants
from rmat_hf.inference.prediction import open_model
from rmat_hf.loading import load_predictor
from rmat_hf.model.features_rmat import Molecule, RMatParsedMolecule, parse_molecule
from rmat_hf.model.modeling_rmat import RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor


@dataclass(frozen=True)
class AttentionMaps:
    """Attention probabilities of one molecule.

    Args:
        mol (`Chem.Mol`): Its heavy atoms in the order in which they were given.
        probabilities (`np.ndarray` of shape
            `(num_encoders, num_layers, num_heads, num_nodes, num_nodes)`): Row: the node that
            attends. Node 0 is the dummy node, then follow the atoms; of an ensemble there are
            several encoders.
        relations (`dict[str, np.ndarray]`, each of that shape):
            What the distances, the bonds and the neighborhood orders of atoms add to these, by
            what is lost when all of one kind are taken out.
    """

    mol: Chem.Mol
    probabilities: np.ndarray
    relations: dict[str, np.ndarray]

    def average(self, relation: str | None = None, *, layer: int | None = None) -> np.ndarray:
        """Return the mean over heads, and layers unless one is named, `(num_atoms, num_atoms)`."""
        values = self.probabilities if relation is None else self.relations[relation]
        chosen = values if layer is None else values[:, [layer]]
        return np.asarray(chosen.mean((0, 1, 2))[1:, 1:])


def compute_attention_maps(
    model: str | Path | Any,
    molecule: Molecule,
    *,
    processor: RMatProcessor | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
) -> AttentionMaps:
    """Return what attends to what in a molecule: the figure of the publication, and its causes.

    Attention shows what a network looks at, not what its prediction comes from; [`explain`] tells
    that.

    Args:
        model, processor, revision, device: As in [`predict`].
        molecule (`str` or `Chem.Mol`): One molecule.

    Returns:
        [`AttentionMaps`], which `rmat_hf.inference.pictures.draw_pairs` draws.

    Raises:
        MoleculeError: It is no molecule, or has no geometry.

    Example:
    ```python
    >>> from rmat_hf import RMatForSequenceClassification, RMatProcessor, checkpoint_path
    >>> from rmat_hf import compute_attention_maps
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     checkpoint_path("rmat-small"), num_labels=1, problem_type="regression"
    ... )
    >>> maps = compute_attention_maps(model, "OCC", processor=RMatProcessor(geometry="bounds"))
    >>> maps.probabilities.shape, maps.average("distance").shape
    ((1, 4, 8, 4, 4), (3, 3))

    ```
    """
    predictor, processor = open_model(
        load_predictor, model, processor=processor, revision=revision, device=device
    )
    mol = parse_molecule(molecule, **processor.parsing_options)
    features = processor.featurize_compactly(RMatParsedMolecule(mol))
    featurized = FeaturizedMol(mol, pack_features(features))
    atoms = featurized.atoms
    edits = [None, *(Edit(name, atoms, atoms) for name in RELATION_INPUTS)]
    inputs = {
        name: torch.from_numpy(array).to(predictor.device)
        for name, array in build_variants([(featurized, edit) for edit in edits]).items()
    }
    encoders = [it for it in predictor.eval().modules() if isinstance(it, RMatModel)]
    found = []
    with torch.inference_mode():
        for encoder in encoders:
            output = encoder(**inputs, output_attentions=True, return_dict=True)
            found.append(torch.stack(output.attentions, dim=1).double().cpu().numpy())
    whole, *without = np.stack(found, axis=1)
    relations = dict(zip(RELATION_INPUTS, without, strict=True))
    return AttentionMaps(mol, whole, {name: whole - it for name, it in relations.items()})
