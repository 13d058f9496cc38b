"""Distances between the atoms of a molecule, and the exact short form that a store keeps."""

import numpy as np

from .configuration_rmat import BEYOND_CUTOFF, UNREACHABLE_DISTANCE

# Generated geometries are whole numbers of 0.001 Å: conformer noise is a hundred times larger.
STEPS_PER_ANGSTROM = 1000
DECIMALS = 3


def quantize_coordinates(coordinates: np.ndarray) -> np.ndarray:
    """Return generated coordinates as whole steps of 0.001 Å around their center.

    Args:
        coordinates (`np.ndarray` of shape `(num_atoms, 3)`): Atom positions in Å.

    Returns:
        `np.ndarray` of the same shape: int16 steps; a molecule too large for them has float32 Å.
    """
    steps = np.rint(coordinates * STEPS_PER_ANGSTROM)
    steps -= np.rint((steps.min(axis=0) + steps.max(axis=0)) / 2)
    if np.abs(steps).max() <= np.iinfo(np.int16).max:
        return steps.astype(np.int16)
    return (steps / STEPS_PER_ANGSTROM).astype(np.float32)


def center_coordinates(coordinates: np.ndarray) -> np.ndarray:
    """Return given coordinates around their center, where float32 is finest.

    Returns:
        `np.ndarray` of the same shape, float32, in Å.
    """
    center = (coordinates.min(axis=0) + coordinates.max(axis=0)) / 2
    return (coordinates - center).astype(np.float32)


def quantize_distances(distances: np.ndarray) -> np.ndarray:
    """Return every distance once, as whole steps of 0.001 Å.

    Args:
        distances (`np.ndarray` of shape `(num_atoms, num_atoms)`): Symmetric, in Å.

    Returns:
        `np.ndarray` of shape `(num_atoms * (num_atoms - 1) / 2,)`: the rows above the diagonal,
        uint16 steps; float32 Å if one is too large for them.
    """
    num_atoms = len(distances)
    # several times faster than np.triu_indices
    values = distances[np.arange(num_atoms)[:, None] < np.arange(num_atoms)]
    steps = np.rint(values * STEPS_PER_ANGSTROM)
    if steps.max(initial=0) <= np.iinfo(np.uint16).max:
        return steps.astype(np.uint16)
    return (steps / STEPS_PER_ANGSTROM).astype(np.float32)


def compute_interatomic_distances(coordinates: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance between every two atoms.

    Args:
        coordinates (`np.ndarray` of shape `(..., num_atoms, 3)`):
            Atom positions: integers are steps of 0.001 Å, floating-point numbers are in Å.

    Returns:
        `np.ndarray` of shape `(..., num_atoms, num_atoms)`, float64, in Å.
    """
    squares = compute_squared_distances(coordinates.astype(np.float64))
    distances = np.sqrt(squares, out=squares)
    if coordinates.dtype.kind == "i":
        distances /= STEPS_PER_ANGSTROM
    return distances


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


def build_distance_matrix(
    geometry: np.ndarray, topological_distances: np.ndarray, *, is_given: bool
) -> np.ndarray:
    """Return the distances between all nodes; those to the dummy node are beyond every cutoff.

    Args:
        geometry (`np.ndarray`):
            Coordinates `(num_atoms, 3)` or distances above the diagonal, as the functions above
            return them.
        topological_distances (`np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`):
            Generated geometries place fragments on top of or beside each other as it comes:
            distances between them are beyond every cutoff too.
        is_given (`bool`): Whether the molecule brought the coordinates.

    Returns:
        `np.ndarray` of shape `(num_atoms + 1, num_atoms + 1)`, float32, in Å.
    """
    num_nodes = len(topological_distances)
    distances = np.full((num_nodes, num_nodes), BEYOND_CUTOFF, dtype=np.float32)
    atom_distances = distances[1:, 1:]
    if geometry.ndim == 2:
        atom_distances[...] = compute_interatomic_distances(geometry)
    else:
        atom_distances[...] = expand_upper_triangle(geometry, num_atoms=num_nodes - 1)
    if not is_given:
        distances[topological_distances == UNREACHABLE_DISTANCE] = BEYOND_CUTOFF
    return distances


def expand_upper_triangle(values: np.ndarray, *, num_atoms: int) -> np.ndarray:
    """Return the symmetric matrix of the distances that `quantize_distances` keeps.

    Returns:
        `np.ndarray` of shape `(num_atoms, num_atoms)`, float32, in Å.
    """
    if values.dtype.kind == "u":
        values = values / STEPS_PER_ANGSTROM
    distances = np.zeros((num_atoms, num_atoms), dtype=np.float32)
    distances[np.arange(num_atoms)[:, None] < np.arange(num_atoms)] = values
    distances += distances.T.copy()
    return distances
