"""Geometry of one molecule: embed, optimize, report failure.

Every function works in canonical atom order and maps the result back, so that the geometry
of a molecule does not depend on how its atoms are numbered or its SMILES is written.
"""

from time import monotonic
from typing import Literal, get_args

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDepictor, rdDistGeom, rdForceFieldHelpers

from .canonical_order_rmat import build_canonical_mol, read_positions
from .distances_rmat import DECIMALS, compute_interatomic_distances

ConformerMethod = Literal["etkdg_v3", "etkdg_v2", "sr_etkdg_v3", "etdg", "kdg", "distance_geometry"]
ForceField = Literal["none", "uff", "mmff"]

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


class ConformerError(ValueError):
    """A molecule without a usable geometry; `reason` says why."""

    way_out = "Fix or drop the row, choose another geometry or set on_conformer_failure"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def generate_conformer(
    mol: Chem.Mol,
    *,
    method: ConformerMethod = "etkdg_v3",
    hydrogens: bool = True,
    force_field: ForceField = "none",
    seed: int = 0,
    max_attempts: int = 1000,
    time_limit_s: int = 30,
    smiles: str | None = None,
) -> np.ndarray:
    """Embed a molecule in three dimensions (RDKit; ETKDG: doi 10.1021/acs.jcim.5b00654).

    The same molecule and options give the same conformer, whatever its atom order. Fragments are
    embedded each for itself: their positions relative to each other mean nothing.

    Args:
        mol (`Chem.Mol`): Sanitized molecule without hydrogen atoms.
        method (`str`, *optional*, defaults to `"etkdg_v3"`):
            `"etkdg_v3"`, `"etkdg_v2"`, `"sr_etkdg_v3"` (small rings), `"etdg"`, `"kdg"` or
            `"distance_geometry"` (neither torsion preferences nor basic knowledge).
        hydrogens (`bool`, *optional*, defaults to `True`): Whether hydrogens are embedded too.
        force_field (`str`, *optional*, defaults to `"none"`):
            `"uff"` or `"mmff"` relax the conformer in at most 200 steps, converged or not.
        seed (`int`, *optional*, defaults to 0): Seed of the embedding.
        max_attempts (`int`, *optional*, defaults to 1000): Embeddings tried per fragment.
        time_limit_s (`int`, *optional*, defaults to 30):
            Time limit in seconds of each fragment's embedding and of the relaxation.
        smiles (`str`, *optional*):
            What `mol` was parsed from, if it has not changed since: saves time if it is canonical.

    Returns:
        `np.ndarray` of shape `(num_atoms, 3)`, float64: positions in Å, rounded to 0.001 Å.

    Raises:
        ConformerError: No conformer in these attempts or time, or no force field parameters.
    """
    validate_conformer_options(
        method=method,
        hydrogens=hydrogens,
        force_field=force_field,
        seed=seed,
        max_attempts=max_attempts,
        time_limit_s=time_limit_s,
    )
    canonical_mol, atom_order = build_canonical_mol(mol, smiles=smiles)
    parameters = EMBED_PARAMETERS[method]()
    options = {"randomSeed": seed + 1, "maxIterations": max_attempts, "timeout": time_limit_s}
    for name, value in {**options, "trackFailures": True}.items():
        setattr(parameters, name, value)
    with rdBase.BlockLogs():
        work_mol = Chem.AddHs(canonical_mol) if hydrogens else Chem.Mol(canonical_mol)
        try:
            conformer_id = rdDistGeom.EmbedMolecule(work_mol, parameters)
        except (RuntimeError, ValueError) as error:
            raise ConformerError(f"RDKit's embedding with {method} stopped: {error}") from error
        if conformer_id == -1:
            raise ConformerError(_describe_failure(parameters, method=method))
        if force_field != "none":
            _relax(work_mol, force_field=force_field, time_limit_s=time_limit_s)
    coordinates = np.round(read_positions(work_mol, atom_order), DECIMALS)
    validate_coordinates(mol, coordinates)
    return coordinates


def compute_bounds_distances(mol: Chem.Mol, *, smiles: str | None = None) -> np.ndarray:
    """Return the midpoints of RDKit's distance bounds: a geometry from the bond graph alone.

    Returns:
        `np.ndarray` of shape `(num_atoms, num_atoms)`, float64: Å, rounded to 0.001 Å. Nothing
        bounds the distance between fragments: the midpoint is about 500 Å there.

    Raises:
        ConformerError: RDKit has no bounds for the molecule.
    """
    canonical_mol, atom_order = build_canonical_mol(mol, smiles=smiles)
    with rdBase.BlockLogs():
        try:
            bounds = rdDistGeom.GetMoleculeBoundsMatrix(canonical_mol)
        except (RuntimeError, ValueError) as error:
            raise ConformerError(f"RDKit has no distance bounds: {error}") from error
    # Upper bounds stand above the diagonal, lower bounds below it.
    midpoints = (bounds + bounds.T) / 2
    distances = np.empty_like(midpoints)
    distances[np.ix_(atom_order, atom_order)] = midpoints
    return np.round(distances, DECIMALS)


def compute_2d_coordinates(mol: Chem.Mol, *, smiles: str | None = None) -> np.ndarray:
    """Return the positions of the atoms in RDKit's drawing of the molecule.

    Returns:
        `np.ndarray` of shape `(num_atoms, 3)`, float64: Å, rounded to 0.001 Å; bonds of 1.5 Å.
    """
    canonical_mol, atom_order = build_canonical_mol(mol, smiles=smiles)
    flat_mol = Chem.Mol(canonical_mol)
    with rdBase.BlockLogs():
        rdDepictor.Compute2DCoords(flat_mol)
    return np.round(read_positions(flat_mol, atom_order), DECIMALS)


def extract_given_coordinates(mol: Chem.Mol) -> np.ndarray | None:
    """Return the atom positions of the first 3D conformer that the molecule brings along.

    Returns:
        `np.ndarray` of shape `(num_atoms, 3)`, float64, in Å; `None` without a 3D conformer.

    Raises:
        ConformerError: A position is not finite or two atoms of a fragment coincide.
    """
    for conformer in mol.GetConformers():
        if conformer.Is3D():
            coordinates = conformer.GetPositions()
            validate_coordinates(mol, coordinates)
            return coordinates
    return None


def validate_coordinates(mol: Chem.Mol, coordinates: np.ndarray) -> None:
    """Raise `ConformerError` if a position is not finite or atoms of one fragment coincide."""
    if not np.isfinite(coordinates).all():
        raise ConformerError("the conformer has positions that are not finite")
    distances = compute_interatomic_distances(coordinates)
    np.fill_diagonal(distances, np.inf)
    if distances.min() >= MIN_ATOM_SEPARATION:
        return
    for fragment in Chem.GetMolFrags(mol):
        separations = distances[np.ix_(fragment, fragment)]
        if separations.min() < MIN_ATOM_SEPARATION:
            first, second = np.unravel_index(separations.argmin(), separations.shape)
            raise ConformerError(
                f"atoms {fragment[first]} and {fragment[second]} of the conformer coincide"
            )


def validate_conformer_options(
    *,
    method: str,
    hydrogens: bool,
    force_field: str,
    seed: int,
    max_attempts: int,
    time_limit_s: int,
) -> None:
    """Raise `ValueError` if an option of `generate_conformer` has a value that does not exist."""
    for name, value, choices in (
        ("conformer method", method, list(EMBED_PARAMETERS)),
        ("force field", force_field, list(get_args(ForceField))),
        ("choice of conformer hydrogens", hydrogens, [True, False]),
    ):
        if value not in choices:
            raise ValueError(f"The {name} is {value!r}. Choose one of {choices}.")
    for name, number, smallest in (
        ("conformer seed", seed, 0),
        ("number of conformer attempts", max_attempts, 1),
        ("conformer time limit in seconds", time_limit_s, 1),
    ):
        if type(number) is not int or not smallest <= number <= MAX_INT:
            raise ValueError(
                f"The {name} is {number!r}. Choose an integer from {smallest} to {MAX_INT}."
            )
    if force_field == "mmff" and not hydrogens:
        raise ValueError(
            "The force field 'mmff' types atoms by their hydrogens. Keep the hydrogens in the "
            "conformer or choose 'uff'."
        )


def _describe_failure(parameters: rdDistGeom.EmbedParameters, *, method: str) -> str:
    causes = rdDistGeom.EmbedFailureCauses
    counts = dict(zip(causes.names, parameters.GetFailureCounts(), strict=False))
    if counts["EXCEEDED_TIMEOUT"]:
        limit = f"{TIME_LIMIT} {parameters.timeout} s (geometry bounds needs no conformer)"
        return f"no conformer with {method} within {limit}"
    reason = f"no conformer with {method} in {parameters.maxIterations} attempts"
    most_frequent = max(counts, key=lambda cause: counts[cause])
    if counts[most_frequent]:
        reason += f" (most frequent failure: {most_frequent.lower().replace('_', ' ')})"
    return reason


def _relax(mol: Chem.Mol, *, force_field: ForceField, time_limit_s: int) -> None:
    deadline = monotonic() + time_limit_s
    field = None
    if force_field == "uff" and rdForceFieldHelpers.UFFHasAllMoleculeParams(mol):
        field = rdForceFieldHelpers.UFFGetMoleculeForceField(mol)
    elif force_field == "mmff" and rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties)
    if field is None:
        raise ConformerError(f"the force field {force_field} has no parameters for the molecule")
    field.Initialize()
    is_large = mol.GetNumAtoms() > LARGE_MOLECULE
    num_steps = LARGE_MOLECULE_ITERATIONS if is_large else MAX_FORCE_FIELD_ITERATIONS
    # A relaxation that does not converge is no failure.
    for _ in range(0, MAX_FORCE_FIELD_ITERATIONS, num_steps):
        if field.Minimize(maxIts=num_steps) == 0:
            return
        if monotonic() > deadline:
            raise ConformerError(f"{force_field} took more than {TIME_LIMIT} {time_limit_s} s")
