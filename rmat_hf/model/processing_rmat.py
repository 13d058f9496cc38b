"""RMatProcessor: SMILES or RDKit molecules → one padded batch of compact arrays."""

import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from huggingface_hub.dataclasses import strict
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature, FeatureExtractionMixin
from transformers.utils import TensorType, logging
from transformers.utils.type_validators import interval

from .configuration_rmat import (
    BEYOND_CUTOFF,
    DUMMY_COLUMN,
    DUMMY_NODE_IDX,
    NO_BOND_TYPE,
    UNREACHABLE_DISTANCE,
)
from .features_rmat import (
    ATOM_FEATURES,
    ELEMENT_SYMBOLS,
    FEATURIZER_VERSION,
    FINGERPRINTS,
    FIRST_ATOM_COLUMN,
    Hydrogens,
    Molecule,
    MoleculeError,
    RMatParsedMolecule,
    compute_bonds,
    compute_fingerprint_counts,
    compute_molecule_descriptors,
    describe_molecule,
    list_molecule_descriptor_names,
    list_molecules,
    parse_molecule,
)
from .geometry_rmat import (
    GEOMETRIES,
    RMatGeometryOptions,
    compute_interatomic_distances,
    compute_squared_distances,
)
from .standardization_rmat import STANDARDIZER_VERSION, STANDARDIZERS

logger = logging.get_logger(__name__)

MASK_INPUT = "attention_mask"
DESCRIPTOR_INPUT = "molecule_descriptors"
FINGERPRINT_INPUT = "fingerprint_counts"
# Type of every model input of a molecule as a whole.
MOLECULE_INPUTS: dict[str, type[np.generic]] = {
    DESCRIPTOR_INPUT: np.float32,
    FINGERPRINT_INPUT: np.uint8,
}
LABELS = "labels"

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
UNPADDED = (False, "do_not_pad")
PADDINGS = (*UNPADDED, True, "longest", "max_length")
_LIMITS = ("max_length", "pad_to_multiple_of")
Errors = Literal["raise", "skip"]

# Columns of a data set that are no features of a molecule, but go into a batch.
LABEL_KEYS = (LABELS, "label", "label_ids")

# Type, padding value and number of node axes of every model input that has nodes.
NODE_INPUTS: dict[str, tuple[type[np.generic], float, int]] = {
    "node_features": (np.uint8, 0, 1),
    "bond_types": (np.uint8, NO_BOND_TYPE, 2),
    "topological_distances": (np.uint8, UNREACHABLE_DISTANCE, 2),
    "interatomic_distances": (np.float32, BEYOND_CUTOFF, 2),
    MASK_INPUT: (np.int64, 0, 1),
}

# What saved processors hold beside their options.
_SAVED_KEYS = ("auto_map", "feature_extractor_type", "processor_class", "custom_pipelines")


class RMatBatchFeature(BatchFeature):
    """Model inputs of a batch of molecules, and where they come from.

    The keys are model inputs only, so `model(**batch)` works. The rest are attributes.

    Attributes:
        row_indices: Position in the call's input of every molecule in the batch.
        skipped_rows: Position and reason of every molecule left out.
        geometry_sources: Origin of the distances of every molecule in the batch: `"given"`, the
            conformer method, `"bounds"`, `"2d"`, or e.g. `"bounds (step down: <reason>)"`.
        compact_features: Every molecule in the batch in its short form.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.row_indices: list[int] = []
        self.skipped_rows: dict[int, str] = {}
        self.geometry_sources: list[str] = []
        self.compact_features: list[RMatCompactFeatures] = []

    # The base class pickles the keys only.
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def to(self, *args: Any, **kwargs: Any) -> "RMatBatchFeature":
        """Move the tensors; a dtype casts no distances, half precision is too coarse for them."""
        distances = self.get("interatomic_distances")
        super().to(*args, **kwargs)
        # not torch's type: a processor works without torch
        if distances is not None and not isinstance(distances, np.ndarray):
            self["interatomic_distances"] = distances.to(self["interatomic_distances"].device)
        return self


# One molecule in its short form → a batch of model inputs


class RMatCompactFeatures(NamedTuple):
    """Everything the model sees of a molecule, before it becomes one value per pair of nodes.

    In the form of `ATOM_FEATURES`, [`compute_bonds`], `GEOMETRIES`, and, if there are any,
    [`compute_molecule_descriptors`] and [`compute_fingerprint_counts`].
    """

    atom_codes: np.ndarray
    bonds: np.ndarray
    geometry: np.ndarray
    geometry_source: str
    molecule_descriptors: np.ndarray | None
    fingerprint_counts: np.ndarray | None = None


def build_batch(
    features: Sequence[RMatCompactFeatures], *, num_nodes: int | None = None
) -> dict[str, np.ndarray]:
    """Return the model inputs of molecules, at least one, padded to the largest or `num_nodes`.

    Returns:
        `dict[str, np.ndarray]`: `node_features` `(batch_size, num_nodes, num_node_features)`,
        `bond_types`, `topological_distances` and `interatomic_distances` (in Å)
        `(batch_size, num_nodes, num_nodes)`, `molecule_descriptors` and `fingerprint_counts` if
        there are any, and `attention_mask`.
    """
    codes, bonds, geometries, sources, *of_molecules = zip(*features, strict=True)
    num_atoms, num_bonds = (np.array([len(array) for array in arrays]) for arrays in (codes, bonds))
    batch_size, num_nodes = len(features), num_nodes or int(num_atoms.max()) + 1
    molecule_of_atom = np.repeat(np.arange(batch_size), num_atoms)
    first_atoms = np.cumsum(num_atoms) - num_atoms
    node_of_atom = np.arange(1, len(molecule_of_atom) + 1) - first_atoms[molecule_of_atom]
    node_features = np.zeros(
        (batch_size, num_nodes, ATOM_FEATURES.num_node_features), dtype=np.uint8
    )
    node_features[:, DUMMY_NODE_IDX, DUMMY_COLUMN] = 1
    node_features[molecule_of_atom, node_of_atom, FIRST_ATOM_COLUMN:] = ATOM_FEATURES.expand_codes(
        np.concatenate(codes)
    )

    molecule_of_bond = np.repeat(np.arange(batch_size), num_bonds)
    begins, ends, types = np.concatenate(bonds).T.astype(np.int64)
    bond_types = np.full((batch_size, num_nodes, num_nodes), NO_BOND_TYPE, dtype=np.uint8)
    bond_types[molecule_of_bond, begins + 1, ends + 1] = types
    bond_types[molecule_of_bond, ends + 1, begins + 1] = types

    offsets = first_atoms[molecule_of_bond]
    topological_distances = np.full(bond_types.shape, UNREACHABLE_DISTANCE, dtype=np.uint8)
    topological_distances[:, DUMMY_NODE_IDX, DUMMY_NODE_IDX] = 0
    topological_distances[molecule_of_atom, node_of_atom, 1:] = compute_graph_distances(
        begins + offsets, ends + offsets, positions=node_of_atom - 1, max_size=num_nodes - 1
    )

    is_node = np.arange(num_nodes) <= num_atoms[:, None]
    # Generated geometries place fragments on top of or beside each other as it comes: distances
    # between them are beyond every cutoff. A conformer that was given has them.
    is_beyond = topological_distances == UNREACHABLE_DISTANCE
    is_given = np.array([source == "given" for source in sources])
    if is_given.any():
        is_inside = is_node[is_given]
        is_beyond[is_given] = ~(is_inside[:, :, None] & is_inside[:, None, :])
    interatomic_distances = compute_interatomic_distances(
        geometries, num_atoms=num_atoms, num_nodes=num_nodes
    )
    np.copyto(interatomic_distances, BEYOND_CUTOFF, where=is_beyond)
    batch = {
        "node_features": node_features,
        "bond_types": bond_types,
        "topological_distances": topological_distances,
        "interatomic_distances": interatomic_distances,
    }
    for name, rows in zip(MOLECULE_INPUTS, of_molecules, strict=True):
        if any(values is not None for values in rows):
            batch[name] = np.stack(rows)
    batch[MASK_INPUT] = is_node.astype(np.int64)
    return batch


def compute_graph_distances(
    begins: np.ndarray, ends: np.ndarray, *, positions: np.ndarray, max_size: int
) -> np.ndarray:
    """Return the bonds on the shortest path between the atoms of every molecule of a batch.

    All searches take their breadth-first steps together.

    Args:
        begins, ends: Bonds between atoms of the batch, `(num_bonds,)`.
        positions: Of every atom in its molecule, from 0, `(num_atoms,)`.
        max_size: Number of atoms of the largest molecule.

    Returns:
        `np.ndarray` of shape `(num_atoms, max_size)`, uint8: by position, at most 254; or 255.
    """
    num_atoms, num_bonds = len(positions), 0
    neighbors = _build_neighbor_table(begins, ends, num_atoms=num_atoms)
    reached = np.zeros((num_atoms, max_size), dtype=bool)
    reached[np.arange(num_atoms), positions] = True
    distances = np.where(reached, np.uint8(0), np.uint8(UNREACHABLE_DISTANCE))
    while True:
        grown = np.bitwise_or.reduce(reached.take(neighbors, axis=0), axis=0)
        new = grown ^ reached
        if not np.count_nonzero(new):
            return distances
        num_bonds = min(num_bonds + 1, UNREACHABLE_DISTANCE - 1)
        np.putmask(distances, new, np.uint8(num_bonds))
        reached = grown


def _build_neighbor_table(begins: np.ndarray, ends: np.ndarray, *, num_atoms: int) -> np.ndarray:
    """Return every atom and its neighbors, `(1 + max_neighbors, num_atoms)`, itself repeated."""
    sources, targets = np.concatenate([begins, ends]), np.concatenate([ends, begins])
    order = np.argsort(sources, kind="stable")
    sources, targets = sources[order], targets[order]
    degrees = np.bincount(sources, minlength=num_atoms)
    first_bonds = np.cumsum(degrees) - degrees
    table = np.empty((1 + int(degrees.max(initial=0)), num_atoms), dtype=np.int64)
    table[:] = np.arange(num_atoms)
    table[1 + np.arange(len(sources)) - first_bonds[sources], sources] = targets
    return table


@strict(accept_kwargs=True)
@dataclass(kw_only=True, eq=False, repr=False)
class RMatProcessor(RMatGeometryOptions, SequenceFeatureExtractor):
    r"""Turns SMILES and RDKit molecules into the inputs of [`RMatModel`].

    A molecule gets the same features whatever stands beside or before it, in every process. Types,
    limits and defaults stand with the fields.

    Args:
        geometry: Where interatomic distances come from. `"conformer"`: the first 3D conformer that
            the molecule brings along, else a generated one. `"given"`: the former only, a molecule
            without one is an error. `"bounds"`: midpoints of RDKit's distance bounds. `"2d"`:
            RDKit's drawing. The last two come from the bond graph, even if there is a conformer.
            Only a given conformer has distances between fragments (salts); elsewhere these are
            beyond every cutoff.
        conformer_method: `"etkdg_v3"`, `"etkdg_v2"`, `"sr_etkdg_v3"` (small rings), `"etdg"`,
            `"kdg"` or `"distance_geometry"` (neither torsion preferences nor basic knowledge).
        conformer_hydrogens: Whether hydrogen atoms take part in the embedding.
        force_field: `"none"`, `"uff"` or `"mmff"`: what relaxes generated conformers, in at most
            200 steps, converged or not.
        conformer_seed: Seed of every embedding.
        max_conformer_attempts: Number of embeddings tried per fragment.
        conformer_time_limit_s: Limit in seconds of each fragment's embedding and of the relaxation.
        on_conformer_failure: What follows if no conformer can be generated: `"raise"`, or a step
            down to `"bounds"` or `"2d"`, which the batch records in `geometry_sources`.
        hydrogens: Which hydrogen atoms are nodes: `"none"`, or, as in the authors' code, those that
            RDKit's `RemoveHs` keeps (`"rdkit"`): isotopes, hydrides and bridging ones, for example.
        max_atoms: Largest number of heavy atoms, and of atoms that are nodes, of a molecule.
        molecule_descriptors: Names of the RDKit descriptors to compute.
        fingerprints: Names of the fingerprints of which to compute counts, out of `FINGERPRINTS`:
            `"ecfp4"`, `"atom_pairs"`, `"fcfp4"`, `"torsions"`.
        standardize: Names of steps out of `STANDARDIZERS` that every molecule goes through first:
            `"largest_fragment"`, `"uncharge"`, `"tautomer"`. With all of them a salt, an ion or a
            tautomer is its parent. By default there are none.
        standardizer_version: Of saved processors with such steps; as the following.
        featurizer_version: Of saved processors; one that is not the code's is refused.

    Raises:
        TypeError: There is no such option.
        ValueError: A value is out of bounds; when it is called, a molecule has no features.

    Example:
    ```python
    >>> processor = RMatProcessor(geometry="bounds")
    >>> batch = processor(["CCO", "c1ccccc1"], return_tensors="pt")
    >>> batch["node_features"].shape  # (batch_size, num_nodes, num_node_features)
    torch.Size([2, 7, 37])
    >>> batch["interatomic_distances"].shape  # in Å: (batch_size, num_nodes, num_nodes)
    torch.Size([2, 7, 7])
    >>> processor(["CCO", "C1"], errors="skip").skipped_rows
    {1: "SMILES Parse Error: unclosed ring for input: 'C1'"}

    ```
    """

    _auto_class = "AutoProcessor"

    hydrogens: Hydrogens = "none"
    max_atoms: int = interval(min=1)(default=256)
    molecule_descriptors: list[str] | None = None
    fingerprints: list[str] | None = None
    standardize: list[str] | None = None
    standardizer_version: int = STANDARDIZER_VERSION
    featurizer_version: int = FEATURIZER_VERSION

    def __post_init__(self, **saved: Any) -> None:
        if unknown := [key for key in saved if key not in _SAVED_KEYS]:
            raise TypeError(f"RMatProcessor has no option {unknown[0]!r}. See its documentation.")
        # a sequence is what `Trainer` pads by `pad`; a sampling rate it has not
        FeatureExtractionMixin.__init__(self, **saved)

    def validate_features(self) -> None:
        """Raise if this code cannot compute the features."""
        if self.featurizer_version != FEATURIZER_VERSION:
            raise ValueError(
                f"The processor was saved with featurizer version {self.featurizer_version}, this "
                f"code has {FEATURIZER_VERSION}. Use the release of rmat_hf that saved it."
            )
        names, known = self.molecule_descriptors, {*list_molecule_descriptor_names("all_2d")}
        if names is not None and (not names or len(known & {*names}) < len(names)):
            raise ValueError(
                f"Molecule descriptors are {sorted({*names} - known) or names}. Pass a list of "
                "different names of RDKit's Descriptors.descList, or of AUTOCORR2D_1 to _192."
            )
        counted = self.fingerprints
        if counted is not None and (
            not counted or len({*FINGERPRINTS} & {*counted}) < len(counted)
        ):
            raise ValueError(
                f"fingerprints are {counted}. Pass a list of different names out of "
                f"{[*FINGERPRINTS]}."
            )

    def validate_standardize(self) -> None:
        """Raise if this code cannot standardize as the processor does."""
        if self.standardize is None:
            return
        if not self.standardize or len({*STANDARDIZERS} & {*self.standardize}) < len(
            self.standardize
        ):
            raise ValueError(
                f"standardize is {self.standardize}. Pass a list of different names out of "
                f"{[*STANDARDIZERS]}."
            )
        if self.standardizer_version != STANDARDIZER_VERSION:
            raise ValueError(
                f"The processor was saved with standardizer version {self.standardizer_version}, "
                f"this code has {STANDARDIZER_VERSION}. Use the release of rmat_hf that saved it."
            )

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a batch holds."""
        asked = {DESCRIPTOR_INPUT: self.molecule_descriptors, FINGERPRINT_INPUT: self.fingerprints}
        return [*NODE_INPUTS, *(name for name in MOLECULE_INPUTS if asked[name])]

    @property
    def parsing_options(self) -> dict[str, Any]:
        """Arguments of [`parse_molecule`] and [`parse_canonical`]."""
        return {
            "max_atoms": self.max_atoms,
            "hydrogens": self.hydrogens,
            "standardize": self.standardize or (),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the options. The name of the class lets a processor be found without a model."""
        options = {**super().to_dict(), "processor_class": type(self).__name__}
        # as releases that know neither have it
        if self.fingerprints is None:
            del options["fingerprints"]
        if self.standardize is None:
            del options["standardize"], options["standardizer_version"]
        return options

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
        return_tensors: str | TensorType | None = None,
        **limits: Any,
    ) -> RMatBatchFeature:
        """Featurize one molecule or several into one batch.

        Args:
            molecules: SMILES and RDKit molecules. One molecule makes a batch of one.
            errors: `"raise"` stops at the first molecule without features. `"skip"` leaves such
                molecules out; `row_indices` and `skipped_rows` of the result tell which. If none
                is left, every array has zero rows.
            padding, return_tensors: As in [`~RMatProcessor.pad`].
            limits: `max_length` and `pad_to_multiple_of`, as there.
        """
        if errors not in get_args(Errors):
            raise ValueError(f"errors is {errors!r}. Choose one of {get_args(Errors)}.")
        if unknown := [name for name in limits if name not in _LIMITS]:
            raise TypeError(
                f"RMatProcessor takes no {unknown[0]!r}. Leave it out: molecules are never cut, "
                "and one larger than max_atoms is an error."
            )
        rows = list_molecules(molecules)
        features: dict[int, RMatCompactFeatures] = {}
        skipped_rows: dict[int, str] = {}
        for row, molecule in enumerate(rows):
            try:
                features[row] = self.featurize_compactly(molecule)
            except MoleculeError as error:
                if errors == "raise":
                    raise ValueError(
                        f"Row {row}: cannot featurize {describe_molecule(molecule)}: "
                        f'{error.reason}. {error.way_out}, or pass errors="skip".'
                    ) from error
                skipped_rows[row] = error.reason
        if skipped_rows:
            logger.info("Skipped %d of %d molecules.", len(skipped_rows), len(rows))
        known = list(features.values())
        if known and padding not in UNPADDED:
            sizes = [1 + len(molecule.atom_codes) for molecule in known]
            num_nodes = choose_num_nodes(sizes, padding, **limits)
            batch = RMatBatchFeature(build_batch(known, num_nodes=num_nodes), return_tensors)
        else:
            dense = [_expand(molecule) for molecule in known]
            batch = self.pad(dense, padding, return_tensors=return_tensors, **limits)
        batch.row_indices, batch.skipped_rows = list(features), skipped_rows
        batch.geometry_sources = [molecule.geometry_source for molecule in known]
        batch.compact_features = known
        return batch

    def featurize(
        self, molecule: Molecule | RMatParsedMolecule
    ) -> tuple[dict[str, np.ndarray], str]:
        """Return a molecule's part of [`build_batch`], without mask, and its geometry's origin.

        Raises:
            MoleculeError: It is no valid molecule, or has no geometry.
        """
        features = self.featurize_compactly(molecule)
        return _expand(features), features.geometry_source

    def featurize_compactly(self, molecule: Molecule | RMatParsedMolecule) -> RMatCompactFeatures:
        """Return what [`~RMatProcessor.featurize`] gives, in a form without pairs of nodes."""
        if not isinstance(molecule, RMatParsedMolecule):
            mol = parse_molecule(molecule, **self.parsing_options)
            text = molecule if isinstance(molecule, str) and not self.standardize else None
            molecule = RMatParsedMolecule(mol, text)
        geometry, geometry_source = GEOMETRIES[self.geometry](molecule, self)
        descriptors = None
        if self.molecule_descriptors:
            descriptors = compute_molecule_descriptors(molecule.mol, self.molecule_descriptors)
        counts = None
        if self.fingerprints:
            counts = compute_fingerprint_counts(molecule.mol, self.fingerprints)
        return RMatCompactFeatures(
            ATOM_FEATURES.compute_codes(molecule.mol),
            compute_bonds(molecule.mol),
            geometry,
            geometry_source,
            descriptors,
            counts,
        )

    def pad(  # type: ignore[override]  # molecules are never cut, so nothing is truncated
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
            features: One entry per molecule, as [`~RMatProcessor.featurize`] returns them, or the
                result of a call with `padding=False`. An empty list gives arrays with zero rows.
                `labels` may stand beside them, a number or a list of a molecule, `None` or NaN
                where missing: they become an array, float32 unless they are integers. `label` and
                `label_ids` are other names of theirs, as for the collators of transformers.
                Those of atoms are `(num_atoms, num_labels)`, two axes also for one label, in
                the order of the atoms; see [`stack_labels`].
            padding: `True` or `"longest"`: to the largest molecule. `"max_length"`: to `max_length`
                nodes. `False` or `"do_not_pad"`: lists of arrays of every molecule's own size.
            max_length: Number of nodes, dummy node included, read with `padding="max_length"`.
            pad_to_multiple_of: Number of which the number of nodes is a multiple.
            return_tensors: `"pt"` for tensors, `"np"` for arrays; by default arrays too.

        Returns:
            The features with a batch axis in front, and `attention_mask`.
        """
        if isinstance(features, Mapping):
            lists = zip(*features.values(), strict=True)
            features = [dict(zip(features, values, strict=True)) for values in lists]
        # without molecules, the keys and sizes are those of any molecule
        names = ("molecule_descriptors", "fingerprints")
        other = type(self)(geometry="2d", **{name: getattr(self, name) for name in names})
        given = features or [other.featurize("C")[0]]
        rows = [_build_row(row, idx=idx, keys=given[0].keys()) for idx, row in enumerate(given)]
        num_nodes = choose_num_nodes(
            [len(row["node_features"]) for row in rows],
            padding,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
        )
        batch: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        if own := find_labels(batch):
            batch[LABELS] = batch.pop(own)
        if padding not in UNPADDED:
            for name in batch.keys() & {*NODE_INPUTS, *MOLECULE_INPUTS}:
                batch[name] = _pad_and_stack(batch[name], name=name, num_nodes=num_nodes)
            num_atoms = [len(row["node_features"]) - 1 for row in rows]
            for name in batch.keys() & {*LABEL_KEYS}:
                batch[name] = stack_labels(batch[name], num_atoms, num_nodes=num_nodes)
        if not features:
            batch = {name: values[:0] for name, values in batch.items()}
        return RMatBatchFeature(batch, return_tensors)


# Å; heavy atoms closer than this are no conformer, though they do not coincide.
_MIN_SEPARATION = 0.5


def list_warnings(features: RMatCompactFeatures, trust: Mapping[str, Any]) -> list[str]:
    """Return what a model cannot see of a molecule, and what no molecule of its training has.

    Args:
        features: Of the molecule.
        trust: Of the configuration of the model.
    """
    columns = ATOM_FEATURES.expand_codes(features.atom_codes)

    def find_classes(name: str) -> np.ndarray:
        block = ATOM_FEATURES.columns[name]
        own = columns[:, block.start - FIRST_ATOM_COLUMN : block.stop - FIRST_ATOM_COLUMN]
        return np.any(own, axis=0)

    elements, num_atoms = find_classes("atomic_number"), len(columns)
    new = np.setdiff1d(elements[:-1].nonzero()[0], trust.get("elements", range(len(elements))))
    symbols = [ELEMENT_SYMBOLS[idx] for idx in new.tolist()]
    is_given = features.geometry_source == "given"
    found = {
        f"an element that is none of {' '.join(ELEMENT_SYMBOLS)}": elements[-1],
        "a charge below -5 or above +4": find_classes("formal_charge")[-1],
        "an atom with five neighbors or more": find_classes("num_neighbors")[-1],
        "a single heavy atom, without bonds": num_atoms == 1,
        "several fragments, whose distance is not known": not is_given
        and _count_fragments(features) > 1,
        f"no molecule of training has {' '.join(symbols)}": symbols,
        f"{num_atoms} heavy atoms, more than any molecule of training": num_atoms
        > trust.get("max_atoms", num_atoms),
        "no conformer was found": "step down" in features.geometry_source,
    }
    if is_given and num_atoms > 1:
        distances = np.sqrt(compute_squared_distances(features.geometry.astype(np.float64)))
        is_close = distances[~np.eye(num_atoms, dtype=bool)].min() < _MIN_SEPARATION
        found[f"its conformer has atoms closer than {_MIN_SEPARATION} Å"] = is_close
        is_flat = num_atoms > 3 and not np.ptp(features.geometry[:, 2])
        found["its conformer is flat: every z is the same"] = is_flat
    return [text for text, is_so in found.items() if is_so]


def _count_fragments(features: RMatCompactFeatures) -> int:
    parents = list(range(len(features.atom_codes)))

    def find_root(atom: int) -> int:
        while parents[atom] != atom:
            atom = parents[atom]
        return atom

    for begin, end in features.bonds[:, :2].tolist():
        parents[find_root(begin)] = find_root(end)
    return sum(parent == atom for atom, parent in enumerate(parents))


def _expand(features: RMatCompactFeatures) -> dict[str, np.ndarray]:
    batch = build_batch([features])
    del batch[MASK_INPUT]
    return {name: values[0] for name, values in batch.items()}


def choose_num_nodes(
    sizes: Sequence[int],
    padding: Padding,
    *,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
) -> int:
    """Return the number of nodes of a batch, see [`~RMatProcessor.pad`]."""
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}. Choose one of {PADDINGS}.")
    if (padding == "max_length") != (max_length is not None):
        raise ValueError(
            f"max_length is {max_length!r} and padding is {padding!r}: 'max_length' needs one, "
            "and nothing else reads it. Molecules are never cut."
        )
    largest, multiple = max(sizes), pad_to_multiple_of or 1
    if max_length is not None and largest > max_length:
        raise ValueError(
            f"Row {sizes.index(largest)} has {largest} nodes (one is the dummy node), more than "
            f"max_length={max_length}. Raise max_length or drop the row."
        )
    return -(-(max_length or largest) // multiple) * multiple


def find_labels(names: Container[str]) -> str | None:
    """Return the name that the labels of a row have, if it has some."""
    return next((name for name in LABEL_KEYS if name in names), None)


def stack_labels(labels: Sequence[Any], num_atoms: Sequence[int], *, num_nodes: int) -> np.ndarray:
    """Return the labels of a batch as one array, of atoms NaN at the dummy node and at padding.

    Args:
        labels: Of every molecule a number or `(num_labels,)`, or those of its atoms,
            `(num_atoms, num_labels)`; `None` or NaN where missing.
        num_atoms: Of every molecule, without the dummy node.
        num_nodes: Of the batch, with it.

    Returns:
        `np.ndarray` of shape `(batch_size, [num_labels])`, float32 unless they are integers; of
        atoms `(batch_size, num_nodes, num_labels)`, float32.

    Raises:
        ValueError: A molecule has not one row of labels for each of its atoms.
    """
    if np.ndim(labels[0]) < 2:
        values = np.array(labels)
        is_integer = np.issubdtype(values.dtype, np.integer)
        return values if is_integer else np.array(labels, dtype=np.float32)
    arrays = [np.array(values, dtype=np.float32) for values in labels]
    shape = (len(arrays), num_nodes, *arrays[0].shape[1:])
    padded = np.full(shape, np.nan, dtype=np.float32)
    for idx, (array, size) in enumerate(zip(arrays, num_atoms, strict=True)):
        if array.shape != (size, *shape[2:]):
            raise ValueError(
                f"Row {idx} has labels of shape {array.shape} and {size} atoms. Give every atom a "
                "list of its labels, NaN where one is missing: [[0.1], [nan]] for two atoms."
            )
        padded[idx, 1 : 1 + size] = array
    return padded


def _build_row(row: Mapping[str, Any], *, idx: int, keys: Iterable[str]) -> dict[str, Any]:
    """Return the features of a molecule: known inputs as arrays, other keys as they are."""
    built, fits = dict(row), row.keys() == keys and NODE_INPUTS.keys() <= {*row, MASK_INPUT}
    for name, (dtype, _, num_node_axes) in NODE_INPUTS.items() if fits else ():
        num_nodes = len(row["node_features"])
        built[name] = np.asarray(row.get(name, np.ones(num_nodes)), dtype=dtype)
        fits = fits and built[name].shape[:num_node_axes] == (num_nodes,) * num_node_axes
    if not fits:
        raise ValueError(
            f"Row {idx} is not one molecule with the keys of row 0, {sorted(keys)}. Featurize "
            "first, with one processor: table.map(lambda row: processor.featurize(row['smiles'])"
            "[0]). A Trainer removes what is no input of the model, as SMILES are. Rows of "
            "rmat_hf.featurize_dataset need the collator RMatDataCollator and "
            "remove_unused_columns=False."
        )
    return built


def _pad_and_stack(arrays: Sequence[np.ndarray], *, name: str, num_nodes: int) -> np.ndarray:
    if name in MOLECULE_INPUTS:
        return np.stack(arrays).astype(MOLECULE_INPUTS[name])
    dtype, padding_value, num_node_axes = NODE_INPUTS[name]
    shape = (len(arrays), *[num_nodes] * num_node_axes, *arrays[0].shape[num_node_axes:])
    padded = np.full(shape, padding_value, dtype=dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return padded
