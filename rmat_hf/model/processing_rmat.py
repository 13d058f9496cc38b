"""RMatProcessor: SMILES or RDKit molecules → one padded batch of compact arrays."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from rdkit import Chem
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import TensorType, logging

from .atom_codes_rmat import (
    NUM_NODE_FEATURES,
    RMatCompactFeatures,
    compute_atom_codes,
    compute_bonds,
)
from .batching_rmat import (
    NODE_INPUTS,
    Padding,
    RMatBatchFeature,
    build_empty_batch,
    pad_features,
    validate_padding,
)
from .conformers_rmat import (
    ConformerError,
    ConformerMethod,
    ForceField,
    compute_2d_coordinates,
    compute_bounds_distances,
    extract_given_coordinates,
    generate_conformer,
    validate_conformer_options,
)
from .distances_rmat import (
    build_distance_matrix,
    center_coordinates,
    quantize_coordinates,
    quantize_distances,
)
from .molecule_features_rmat import (
    Molecule,
    MoleculeError,
    compute_bond_types,
    compute_molecule_descriptors,
    compute_node_features,
    compute_topological_distances,
    describe_molecule,
    list_molecules,
    parse_molecule,
    validate_molecule_descriptor_names,
)

logger = logging.get_logger(__name__)

# Goes up whenever the features of a molecule change, so that caches and checkpoints notice.
FEATURIZER_VERSION = 2

Geometry = Literal["conformer", "bounds", "2d", "given"]
GraphGeometry = Literal["bounds", "2d"]
ConformerFailure = Literal["raise", "bounds", "2d"]
Errors = Literal["raise", "skip"]

# What saved processors hold beside the arguments of __init__.
_SAVED_KEYS = ("auto_map", "feature_extractor_type", "processor_class", "custom_pipelines")


class RMatProcessor(FeatureExtractionMixin):
    r"""Turns SMILES and RDKit molecules into the inputs of [`RMatModel`].

    A molecule gets the same features whatever stands beside or before it, in every process.

    Args:
        geometry (`str`, *optional*, defaults to `"conformer"`):
            Where interatomic distances come from. `"conformer"`: the first 3D conformer that the
            molecule brings along, else a generated one. `"given"`: the former only, a molecule
            without one is an error. `"bounds"`: midpoints of RDKit's distance bounds. `"2d"`:
            RDKit's drawing. The last two come from the bond graph, even if there is a conformer.
            Only a given conformer has distances between fragments (salts); elsewhere these are
            beyond every cutoff.
        conformer_method (`str`, *optional*, defaults to `"etkdg_v3"`):
            `"etkdg_v3"`, `"etkdg_v2"`, `"sr_etkdg_v3"`, `"etdg"`, `"kdg"` or
            `"distance_geometry"`.
        conformer_hydrogens (`bool`, *optional*, defaults to `True`):
            Whether hydrogen atoms take part in the embedding.
        force_field (`str`, *optional*, defaults to `"none"`):
            `"none"`, `"uff"` or `"mmff"`: what relaxes generated conformers.
        conformer_seed (`int`, *optional*, defaults to 0):
            Seed of every embedding.
        max_conformer_attempts (`int`, *optional*, defaults to 1000):
            Number of embeddings tried per fragment.
        conformer_time_limit_s (`int`, *optional*, defaults to 30):
            Time limit of an embedding in seconds.
        on_conformer_failure (`str`, *optional*, defaults to `"raise"`):
            What follows if no conformer can be generated: `"raise"`, or a step down to
            `"bounds"` or `"2d"`, which the batch records in `geometry_sources`.
        max_atoms (`int`, *optional*, defaults to 256):
            Largest number of heavy atoms of a molecule.
        molecule_descriptors (`list[str]`, *optional*):
            Names of the RDKit descriptors to compute as `molecule_descriptors`.
        featurizer_version (`int`, *optional*):
            Version of the features in saved processors; one that is not the code's is refused.
    """

    model_input_names = [*NODE_INPUTS]

    def __init__(  # noqa: PLR0913 - every option is a key of preprocessor_config.json
        self,
        *,
        geometry: Geometry = "conformer",
        conformer_method: ConformerMethod = "etkdg_v3",
        conformer_hydrogens: bool = True,
        force_field: ForceField = "none",
        conformer_seed: int = 0,
        max_conformer_attempts: int = 1000,
        conformer_time_limit_s: int = 30,
        on_conformer_failure: ConformerFailure = "raise",
        max_atoms: int = 256,
        molecule_descriptors: list[str] | None = None,
        featurizer_version: int = FEATURIZER_VERSION,
        **kwargs: Any,
    ) -> None:
        if featurizer_version != FEATURIZER_VERSION:
            raise ValueError(
                f"The processor was saved with featurizer version {featurizer_version!r}, this "
                f"code has {FEATURIZER_VERSION}. Use the release of rmat_hf that saved it."
            )
        if unknown := [key for key in kwargs if key not in _SAVED_KEYS]:
            raise TypeError(f"RMatProcessor has no option {unknown[0]!r}. See its documentation.")
        _validate_choice("geometry", geometry, kind=Geometry)
        _validate_choice("on_conformer_failure", on_conformer_failure, kind=ConformerFailure)
        if type(max_atoms) is not int or max_atoms < 1:
            raise ValueError(f"max_atoms is {max_atoms!r}. Choose a positive integer.")
        if molecule_descriptors is not None:
            validate_molecule_descriptor_names(molecule_descriptors)
        validate_conformer_options(
            method=conformer_method,
            hydrogens=conformer_hydrogens,
            force_field=force_field,
            seed=conformer_seed,
            max_attempts=max_conformer_attempts,
            time_limit_s=conformer_time_limit_s,
        )
        super().__init__(**kwargs)
        self.geometry = geometry
        self.conformer_method = conformer_method
        self.conformer_hydrogens = conformer_hydrogens
        self.force_field = force_field
        self.conformer_seed = conformer_seed
        self.max_conformer_attempts = max_conformer_attempts
        self.conformer_time_limit_s = conformer_time_limit_s
        self.on_conformer_failure = on_conformer_failure
        self.max_atoms = max_atoms
        self.molecule_descriptors = molecule_descriptors and list(molecule_descriptors)
        self.featurizer_version = featurizer_version
        if self.molecule_descriptors:
            self.model_input_names = [*NODE_INPUTS, "molecule_descriptors"]

    def to_dict(self) -> dict[str, Any]:
        """Return what a saved processor holds: the arguments of `__init__`."""
        saved = super().to_dict()
        saved.pop("model_input_names", None)  # follows from molecule_descriptors
        saved["processor_class"] = type(self).__name__  # found without a model if installed
        return saved

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Save the options, and the code as well once the class is registered for Auto classes."""
        if self._auto_class is not None:
            class_path = "processing_rmat.RMatProcessor"
            self.auto_map = {"AutoProcessor": class_path, "AutoFeatureExtractor": class_path}
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def __call__(
        self,
        molecules: Molecule | Iterable[Molecule],
        *,
        errors: Errors = "raise",
        padding: Padding = True,
        pad_to_multiple_of: int | None = None,
        max_length: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> RMatBatchFeature:
        """Featurize one molecule or several into one batch.

        Args:
            molecules (`str`, `Chem.Mol` or an iterable of them):
                SMILES and RDKit molecules. One molecule makes a batch of one.
            errors (`str`, *optional*, defaults to `"raise"`):
                `"raise"` stops at the first molecule without features. `"skip"` leaves such
                molecules out; `row_indices` and `skipped_rows` of the result tell which. If none
                is left, every array has zero rows.
            padding, pad_to_multiple_of, max_length, return_tensors:
                As in [`~RMatProcessor.pad`].

        Returns:
            `RMatBatchFeature`: see [`~RMatProcessor.pad`].
        """
        _validate_choice("errors", errors, kind=Errors)
        padding_options: dict[str, Any] = {
            "padding": padding,
            "max_length": max_length,
            "pad_to_multiple_of": pad_to_multiple_of,
            "return_tensors": return_tensors,
        }
        validate_padding(**padding_options)
        rows = list_molecules(molecules)
        features, row_indices, geometry_sources = [], [], []
        skipped_rows: dict[int, str] = {}
        for row, molecule in enumerate(rows):
            try:
                molecule_features, geometry_source = self.featurize(molecule)
            except (MoleculeError, ConformerError) as error:
                if errors == "raise":
                    raise ValueError(
                        f"Row {row}: cannot featurize {describe_molecule(molecule)}: "
                        f'{error.reason}. {error.way_out}, or pass errors="skip".'
                    ) from error
                skipped_rows[row] = error.reason
                continue
            features.append(molecule_features)
            row_indices.append(row)
            geometry_sources.append(geometry_source)
        if skipped_rows:
            logger.info("Skipped %d of %d molecules.", len(skipped_rows), len(rows))
        batch = self.pad(features, **padding_options)
        batch.row_indices = row_indices
        batch.skipped_rows = skipped_rows
        batch.geometry_sources = geometry_sources
        return batch

    def featurize(self, molecule: Molecule) -> tuple[dict[str, np.ndarray], str]:
        """Return the features of one molecule, without padding, and the origin of its distances.

        Returns:
            `tuple[dict[str, np.ndarray], str]`: `node_features` `(num_nodes, 37)`, `bond_types`,
            `topological_distances` and `interatomic_distances` (in Å) `(num_nodes, num_nodes)`,
            `molecule_descriptors` `(num_descriptors,)` if the processor has any; the entry of
            `geometry_sources`.

        Raises:
            MoleculeError, ConformerError: It is no valid molecule, or has no geometry.
        """
        mol, geometry, geometry_source = self._parse(molecule)
        topological_distances = compute_topological_distances(mol)
        features = {
            "node_features": compute_node_features(mol),
            "bond_types": compute_bond_types(mol),
            "topological_distances": topological_distances,
            "interatomic_distances": build_distance_matrix(
                geometry, topological_distances, is_given=geometry_source == "given"
            ),
        }
        if self.molecule_descriptors:
            values = compute_molecule_descriptors(mol, self.molecule_descriptors)
            features["molecule_descriptors"] = values
        return features, geometry_source

    def featurize_compactly(self, molecule: Molecule) -> RMatCompactFeatures:
        """Return what [`~RMatProcessor.featurize`] gives, in a form without pairs of nodes."""
        mol, geometry, geometry_source = self._parse(molecule)
        descriptors = None
        if self.molecule_descriptors:
            descriptors = compute_molecule_descriptors(mol, self.molecule_descriptors)
        return RMatCompactFeatures(
            compute_atom_codes(mol), compute_bonds(mol), geometry, geometry_source, descriptors
        )

    def pad(
        self,
        features: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
        padding: Padding = True,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> RMatBatchFeature:
        """Stack the features of molecules into one batch.

        Args:
            features (`Sequence[Mapping[str, np.ndarray]]`):
                One entry per molecule, as [`~RMatProcessor.featurize`] returns them, or the result
                of a call with `padding=False`. An empty list gives arrays with zero rows.
            padding (`bool` or `str`, *optional*, defaults to `True`):
                `True` or `"longest"`: to the largest molecule. `"max_length"`: to `max_length`
                nodes. `False` or `"do_not_pad"`: lists of arrays of every molecule's own size.
            max_length (`int`, *optional*):
                Number of nodes, dummy node included, read with `padding="max_length"`.
            pad_to_multiple_of (`int`, *optional*):
                Number of which the number of nodes is a multiple.
            return_tensors (`str`, *optional*):
                `"pt"` for tensors, `"np"` for arrays; by default arrays too.

        Returns:
            `RMatBatchFeature`: the features with a batch axis in front, and `attention_mask`.
        """
        padding_options: dict[str, Any] = {
            "padding": padding,
            "max_length": max_length,
            "pad_to_multiple_of": pad_to_multiple_of,
            "return_tensors": return_tensors,
        }
        if len(features):
            return pad_features(features, **padding_options)
        num_descriptors = len(self.molecule_descriptors or [])
        return build_empty_batch(NUM_NODE_FEATURES, num_descriptors, **padding_options)

    def _parse(self, molecule: Molecule) -> tuple[Chem.Mol, np.ndarray, str]:
        """Return the heavy-atom molecule, its coordinates or distances, and their origin."""
        mol = parse_molecule(molecule, max_atoms=self.max_atoms)
        smiles = molecule if isinstance(molecule, str) else None
        if self.geometry == "bounds" or self.geometry == "2d":
            return mol, _compute_graph_geometry(mol, self.geometry, smiles=smiles), self.geometry
        coordinates = extract_given_coordinates(mol)
        if coordinates is not None:
            return mol, center_coordinates(coordinates), "given"
        if self.geometry == "given":
            raise ConformerError("it brings no 3D conformer, which geometry='given' needs")
        try:
            coordinates = generate_conformer(
                mol,
                method=self.conformer_method,
                hydrogens=self.conformer_hydrogens,
                force_field=self.force_field,
                seed=self.conformer_seed,
                max_attempts=self.max_conformer_attempts,
                time_limit_s=self.conformer_time_limit_s,
                smiles=smiles,
            )
        except ConformerError as error:
            if self.on_conformer_failure == "raise":
                raise
            geometry = _compute_graph_geometry(mol, self.on_conformer_failure, smiles=smiles)
            return mol, geometry, f"{self.on_conformer_failure} (step down: {error.reason})"
        return mol, quantize_coordinates(coordinates), self.conformer_method


def _compute_graph_geometry(
    mol: Chem.Mol, geometry: GraphGeometry, *, smiles: str | None
) -> np.ndarray:
    if geometry == "bounds":
        return quantize_distances(compute_bounds_distances(mol, smiles=smiles))
    return quantize_coordinates(compute_2d_coordinates(mol, smiles=smiles))


def _validate_choice(name: str, value: object, *, kind: Any) -> None:
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}. Choose one of {list(get_args(kind))}.")
