"""Where distances come from: conformer, distance bounds, drawing, or what a molecule brings along.

To add a geometry, add a function to `GEOMETRIES` and its name to `Geometry`. Every generated
geometry is computed in canonical atom order and mapped back, so that it does not depend on how the
atoms of a molecule are numbered or its SMILES is written.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

import numpy as np
from huggingface_hub.dataclasses import strict
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor, rdDistGeom, rdForceFieldHelpers
from transformers.utils.type_validators import interval

from .configuration_rmat import BEYOND_CUTOFF
from .features_rmat import MoleculeError, RMatParsedMolecule

Geometry = Literal["conformer", "bounds", "2d", "given"]
ConformerFailure = Literal["raise", "bounds", "2d"]
ConformerMethod = Literal["etkdg_v3", "etkdg_v2", "sr_etkdg_v3", "etdg", "kdg", "distance_geometry"]
ForceField = Literal["none", "uff", "mmff"]
# A geometry in the short form that is stored, and its origin. Coordinates `(num_atoms, 3)`, int16
# or float32, or the distances above the diagonal, `(num_atoms * (num_atoms - 1) / 2,)`, uint16 or
# float32: integers are steps of 0.001 Å, floating-point numbers Å.
Found = tuple[np.ndarray, str]

EMBED_PARAMETERS = {
    "etkdg_v3": rdDistGeom.ETKDGv3,
    "etkdg_v2": rdDistGeom.ETKDGv2,
    "sr_etkdg_v3": rdDistGeom.srETKDGv3,
    "etdg": rdDistGeom.ETDG,
    "kdg": rdDistGeom.KDG,
    "distance_geometry": rdDistGeom.EmbedParameters,
}

# RDKit's random numbers are the same for the seeds 0, 1 and 2**31 - 1, so ours start at its 1.
MAX_INT = 2**31 - 3
MAX_FORCE_FIELD_ITERATIONS = 200
# With more atoms, hydrogens included, the clock is read this often; 200 steps take seconds there.
LARGE_MOLECULE, LARGE_MOLECULE_ITERATIONS = 150, 50
# Part of the reason of a failure that another machine or time limit may not have.
TIME_LIMIT = "the time limit of"

# Å; atoms of one fragment that are closer than this mark a broken conformer.
MIN_ATOM_SEPARATION = 0.01

# Generated geometries are whole numbers of 0.001 Å: conformer noise is a hundred times larger.
STEPS_PER_ANGSTROM = 1000

_ISOTOPE_OR_MAP = re.compile(r"\[\d|:\d+\]")


@strict
@dataclass(kw_only=True, eq=False, repr=False)
class RMatGeometryOptions:
    """Which geometry molecules get; see [`RMatProcessor`] for every option."""

    geometry: Geometry = "conformer"
    conformer_method: ConformerMethod = "etkdg_v3"
    conformer_hydrogens: bool = True
    force_field: ForceField = "none"
    conformer_seed: int = interval(min=0, max=MAX_INT)(default=0)
    max_conformer_attempts: int = interval(min=1, max=MAX_INT)(default=1000)
    conformer_time_limit_s: int = interval(min=1, max=MAX_INT)(default=30)
    on_conformer_failure: ConformerFailure = "raise"

    def validate_force_field(self) -> None:
        """Raise if the force field needs the hydrogens that the embedding leaves out."""
        if self.force_field == "mmff" and not self.conformer_hydrogens:
            raise ValueError(
                "The force field 'mmff' types atoms by their hydrogens. Keep the hydrogens in the "
                "conformer or choose 'uff'."
            )


class ConformerError(MoleculeError):
    """A molecule without a usable geometry."""

    way_out = "Fix or drop the row, choose another geometry or set on_conformer_failure"


# One order of atoms and bonds for every way of writing a molecule


def build_canonical_mol(parsed: RMatParsedMolecule) -> tuple[Chem.Mol, np.ndarray]:
    """Return the molecule in canonical atom and bond order, and each of its atoms' index before.

    Isotopes, but those of hydrogen, and atom maps take no part. A molecule is in this order already
    if it was parsed from its canonical SMILES: then it comes back itself.
    """
    mol = bare_mol = parsed.mol
    canonical_smiles = parsed.written_smiles or Chem.MolToSmiles(mol)
    if _ISOTOPE_OR_MAP.search(canonical_smiles):
        bare_mol = Chem.Mol(mol)
        for atom in bare_mol.GetAtoms():
            # RDKit drops a hydrogen atom that is no isotope when it reads the SMILES
            if atom.GetAtomicNum() != 1:
                atom.SetIsotope(0)
            atom.SetAtomMapNum(0)
        canonical_smiles = Chem.MolToSmiles(bare_mol)
    with rdBase.BlockLogs():
        is_canonical = canonical_smiles == parsed.smiles
        canonical_mol = mol if is_canonical else Chem.MolFromSmiles(canonical_smiles)
    if canonical_mol is not None and canonical_mol.GetNumAtoms() == mol.GetNumAtoms():
        properties = bare_mol.GetPropsAsDict(includePrivate=True, includeComputed=True)
        return canonical_mol, np.array(properties["_smilesAtomOutputOrder"], dtype=np.int64)
    # Some metal complexes have no SMILES that RDKit reads back: here the bond order of `mol`
    # stays, so another way of writing the molecule can give another conformer.
    bare_mol = Chem.Mol(bare_mol)
    bare_mol.RemoveAllConformers()
    atom_order = np.argsort(list(Chem.CanonicalRankAtoms(bare_mol)))
    return Chem.RenumberAtoms(bare_mol, atom_order.tolist()), atom_order


def _read_positions(canonical_mol: Chem.Mol, atom_order: np.ndarray) -> np.ndarray:
    """Return the positions of the heavy atoms, which come first, in the order before."""
    coordinates = np.empty((len(atom_order), 3))
    coordinates[atom_order] = canonical_mol.GetConformer().GetPositions()[: len(atom_order)]
    return coordinates


def _embed(mol: Chem.Mol, options: RMatGeometryOptions) -> str:
    """Add a conformer to a molecule; return why there is none, or nothing."""
    method, limit_s = options.conformer_method, options.conformer_time_limit_s
    parameters: Any = EMBED_PARAMETERS[method]()
    parameters.randomSeed = options.conformer_seed + 1
    parameters.maxIterations = options.max_conformer_attempts
    parameters.timeout = limit_s
    parameters.trackFailures = True
    if rdDistGeom.EmbedMolecule(mol, parameters) != -1:
        return ""
    if parameters.GetFailureCounts()[rdDistGeom.EmbedFailureCauses.EXCEEDED_TIMEOUT]:
        limit = f"{TIME_LIMIT} {limit_s} s (geometry bounds needs no conformer)"
        return f"no conformer with {method} within {limit}"
    return f"no conformer with {method} in {options.max_conformer_attempts} attempts"


def _relax(mol: Chem.Mol, options: RMatGeometryOptions) -> str:
    """Relax a conformer if that was chosen; return why that is impossible, or nothing."""
    name, limit_s = options.force_field, options.conformer_time_limit_s
    deadline = monotonic() + limit_s
    field = None
    if name == "none":
        return ""
    if name == "uff" and rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
    elif name == "mmff" and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    if field is None:
        return f"the force field {name} has no parameters for the molecule"
    field.Initialize()
    is_large = mol.GetNumAtoms() > LARGE_MOLECULE
    num_steps = LARGE_MOLECULE_ITERATIONS if is_large else MAX_FORCE_FIELD_ITERATIONS
    for _ in range(0, MAX_FORCE_FIELD_ITERATIONS, num_steps):
        if field.Minimize(maxIts=num_steps) == 0:
            break
        if monotonic() > deadline:
            return f"{name} took more than {TIME_LIMIT} {limit_s} s"
    return ""  # a relaxation that does not converge is no failure


def validate_coordinates(mol: Chem.Mol, coordinates: np.ndarray) -> None:
    """Raise `ConformerError` if a position is not finite or atoms of one fragment coincide."""
    if not np.isfinite(coordinates).all():
        raise ConformerError("the conformer has positions that are not finite")
    distances = np.sqrt(compute_squared_distances(coordinates))
    np.fill_diagonal(distances, np.inf)
    for first, second in np.argwhere(distances < MIN_ATOM_SEPARATION):
        if any({first, second} <= {*fragment} for fragment in Chem.GetMolFrags(mol)):
            raise ConformerError(f"atoms {first} and {second} of the conformer coincide")


# The list of geometries; a molecule without the one that is asked for raises a `ConformerError`


def find_given_conformer(parsed: RMatParsedMolecule, options: RMatGeometryOptions) -> Found:
    """Return the first 3D conformer that the molecule brings along."""
    for conformer in parsed.mol.GetConformers():
        if conformer.Is3D():
            validate_coordinates(parsed.mol, conformer.GetPositions())
            return center_coordinates(conformer.GetPositions()), "given"
    raise ConformerError(f"it brings no 3D conformer, which geometry={options.geometry!r} needs")


def find_or_generate_conformer(parsed: RMatParsedMolecule, options: RMatGeometryOptions) -> Found:
    """Return the conformer that the molecule brings along, else a generated one or a step down."""
    if any(conformer.Is3D() for conformer in parsed.mol.GetConformers()):
        return find_given_conformer(parsed, options)
    try:
        return generate_conformer(parsed, options)
    except ConformerError as error:
        if options.on_conformer_failure == "raise":
            raise
        geometry, source = GEOMETRIES[options.on_conformer_failure](parsed, options)
        return geometry, f"{source} (step down: {error.reason})"


def generate_conformer(parsed: RMatParsedMolecule, options: RMatGeometryOptions) -> Found:
    """Embed a molecule in three dimensions (RDKit; ETKDG: doi 10.1021/acs.jcim.5b00654).

    The same molecule and options give the same conformer, whatever its atom order. Fragments are
    embedded each for itself: their positions relative to each other mean nothing.
    """
    with rdBase.BlockLogs():
        try:
            canonical_mol, atom_order = build_canonical_mol(parsed)
            add_hydrogens = Chem.AddHs if options.conformer_hydrogens else Chem.Mol
            work_mol = add_hydrogens(canonical_mol)
            fault = _embed(work_mol, options) or _relax(work_mol, options)
        except (RuntimeError, ValueError) as error:
            fault = f"RDKit's embedding with {options.conformer_method} stopped: {error}"
    if fault:
        raise ConformerError(fault)
    coordinates = _read_positions(work_mol, atom_order)
    validate_coordinates(parsed.mol, coordinates)
    return quantize_coordinates(coordinates), options.conformer_method


def compute_bounds(parsed: RMatParsedMolecule, options: RMatGeometryOptions) -> Found:
    """Return the midpoints of RDKit's distance bounds: a geometry from the bond graph alone.

    Nothing bounds the distance between fragments: about 500 Å there.
    """
    canonical_mol, atom_order = build_canonical_mol(parsed)
    with rdBase.BlockLogs():
        try:
            bounds = rdDistGeom.GetMoleculeBoundsMatrix(canonical_mol)
        except (RuntimeError, ValueError) as error:
            raise ConformerError(f"RDKit has no distance bounds: {error}") from error
    # Upper bounds stand above the diagonal, lower bounds below it.
    midpoints = (bounds + bounds.T) / 2
    distances = np.empty_like(midpoints)
    distances[np.ix_(atom_order, atom_order)] = midpoints
    return quantize_distances(distances), "bounds"


def compute_drawing(parsed: RMatParsedMolecule, options: RMatGeometryOptions) -> Found:
    """Return the positions in RDKit's drawing; bonds of 1.5 Å."""
    canonical_mol, atom_order = build_canonical_mol(parsed)
    flat_mol = Chem.Mol(canonical_mol)
    with rdBase.BlockLogs():
        rdDepictor.Compute2DCoords(flat_mol)
    return quantize_coordinates(_read_positions(flat_mol, atom_order)), "2d"


GEOMETRIES: dict[str, Callable[[RMatParsedMolecule, RMatGeometryOptions], Found]] = {
    "conformer": find_or_generate_conformer,
    "bounds": compute_bounds,
    "2d": compute_drawing,
    "given": find_given_conformer,
}


# Short form and distances


def quantize_coordinates(coordinates: np.ndarray) -> np.ndarray:
    """Return generated coordinates around their center: int16 steps of 0.001 Å, or float32 Å."""
    steps = np.rint(coordinates * STEPS_PER_ANGSTROM)
    steps -= np.rint((steps.min(axis=0) + steps.max(axis=0)) / 2)
    if np.abs(steps).max() <= np.iinfo(np.int16).max:
        return steps.astype(np.int16)
    return (steps / STEPS_PER_ANGSTROM).astype(np.float32)


def center_coordinates(coordinates: np.ndarray) -> np.ndarray:
    """Return given coordinates, float32 in Å, around their center, where float32 is finest."""
    center = (coordinates.min(axis=0) + coordinates.max(axis=0)) / 2
    return (coordinates - center).astype(np.float32)


def quantize_distances(distances: np.ndarray) -> np.ndarray:
    """Return the distances above the diagonal by rows: uint16 steps of 0.001 Å, or float32 Å."""
    num_atoms = len(distances)
    # several times faster than np.triu_indices
    values = distances[np.arange(num_atoms)[:, None] < np.arange(num_atoms)]
    steps = np.rint(values * STEPS_PER_ANGSTROM)
    if steps.max(initial=0) <= np.iinfo(np.uint16).max:
        return steps.astype(np.uint16)
    return (steps / STEPS_PER_ANGSTROM).astype(np.float32)


def compute_squared_distances(coordinates: np.ndarray) -> np.ndarray:
    """Return the squares of the distances, `(..., num_atoms, num_atoms)`, in the same type.

    The order of the sums is fixed: one molecule and a batch have the same bits.
    """
    x, y, z = (coordinates[..., axis] for axis in range(3))
    squares = np.square(x[..., :, None] - x[..., None, :])
    for positions in (y, z):
        differences = positions[..., :, None] - positions[..., None, :]
        squares += np.square(differences, out=differences)
    return squares


def compute_interatomic_distances(
    geometries: Sequence[np.ndarray], *, num_atoms: np.ndarray, num_nodes: int
) -> np.ndarray:
    """Return the distances between the nodes of every molecule of a batch.

    Args:
        geometries: As from `GEOMETRIES`.
        num_atoms: Of every molecule, `(batch_size,)`.
        num_nodes: Of the batch, padding included.

    Returns:
        `np.ndarray` of shape `(batch_size, num_nodes, num_nodes)`, float32, in Å: those to the
        dummy node are beyond every cutoff, those outside a molecule have no meaning.
    """
    max_atoms = num_nodes - 1
    atoms = np.arange(max_atoms)
    distances = np.full((len(geometries), num_nodes, num_nodes), BEYOND_CUTOFF, dtype=np.float32)
    for num_axes in (2, 1):
        rows = [row for row, geometry in enumerate(geometries) if geometry.ndim == num_axes]
        if not rows:
            continue
        of_rows = [geometries[row] for row in rows]
        # float32 has room for every int16 and uint16, so both can stand in one array
        values = np.concatenate(of_rows)
        is_atom = atoms < num_atoms[rows][:, None]
        if num_axes == 2:
            coordinates = np.zeros((len(rows), max_atoms, 3))
            coordinates[is_atom] = values
            matrices = compute_squared_distances(coordinates)
            np.sqrt(matrices, out=matrices)
        else:
            matrices = np.zeros((len(rows), max_atoms, max_atoms))
            matrices[(atoms[:, None] < atoms) & is_atom[:, None, :]] = values
            matrices += matrices.transpose(0, 2, 1).copy()
        scales = [1 if geometry.dtype.kind == "f" else STEPS_PER_ANGSTROM for geometry in of_rows]
        matrices /= np.array(scales)[:, None, None]
        distances[rows, 1:, 1:] = matrices
    return distances
