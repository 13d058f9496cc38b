"""The features of a molecule as a short byte string, and a batch of them as model inputs.

Layout, little-endian: header (8 bytes), atom codes (uint16), first atoms, second atoms and types of
the bonds (uint8, or uint16 beyond 256 atoms), geometry, molecule descriptors (float32).
"""

from collections.abc import Sequence

import numpy as np

from rmat_hf.data.graph_distances import compute_graph_distances
from rmat_hf.model.atom_codes_rmat import (
    DUMMY_NODE_CODE,
    NODE_FEATURES_OF_CODE,
    PADDING_CODE,
    RMatCompactFeatures,
)
from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF, NO_BOND_TYPE, UNREACHABLE_DISTANCE
from rmat_hf.model.distances_rmat import STEPS_PER_ANGSTROM, compute_squared_distances

# Kinds of geometry: coordinates or distances above the diagonal, in steps of 0.001 Å or in Å.
_GEOMETRIES = (("i2", 2), ("f4", 2), ("u2", 1), ("f4", 1))
_GIVEN = len(_GEOMETRIES)
_HEADER = np.dtype(
    [("kind", "<u2"), ("num_atoms", "<u2"), ("num_bonds", "<u2"), ("num_descriptors", "<u2")]
)
MAX_ATOMS_OF_SHORT_BONDS = 256


def pack_features(features: RMatCompactFeatures) -> bytes:
    """Return the features as bytes, without `geometry_source`: of it only given or generated.

    Args:
        features (`RMatCompactFeatures`): As from `RMatProcessor.featurize_compactly`.
    """
    geometry = features.geometry
    kind = _GEOMETRIES.index((geometry.dtype.str[1:], geometry.ndim))
    is_given = features.geometry_source == "given"
    num_atoms, descriptors = len(features.atom_codes), features.molecule_descriptors
    num_descriptors = 0 if descriptors is None else len(descriptors)
    header = np.array(
        (kind + _GIVEN * is_given, num_atoms, len(features.bonds), num_descriptors), dtype=_HEADER
    )
    parts = [
        header,
        features.atom_codes.astype("<u2"),
        features.bonds.T.astype(_get_bond_type(num_atoms)),
        geometry.astype(geometry.dtype.newbyteorder("<")),
    ]
    if descriptors is not None:
        parts.append(descriptors.astype("<f4"))
    return b"".join(part.tobytes() for part in parts)


def count_nodes(packed: Sequence[bytes]) -> list[int]:
    """Return the number of nodes of every molecule, dummy node included."""
    return (_read_headers(packed)["num_atoms"].astype(np.int64) + 1).tolist()


def read_molecule_descriptors(packed: Sequence[bytes]) -> np.ndarray:
    """Return the molecule descriptors, `(num_molecules, num_descriptors)`, float32."""
    num_descriptors = _read_headers(packed)["num_descriptors"]
    if len(set(num_descriptors.tolist())) > 1:
        raise ValueError("The molecules have different numbers of descriptors. Featurize anew.")
    size = int(num_descriptors[0]) * 4
    values = b"".join([features[len(features) - size :] for features in packed])
    return np.frombuffer(values, dtype="<f4").reshape(len(packed), -1).astype(np.float32)


def expand_features(packed: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Return the model inputs of a batch, bit for bit those of `RMatProcessor.pad`.

    Args:
        packed (`Sequence[bytes]`): Molecules, at least one, each from [`pack_features`].

    Returns:
        `dict[str, np.ndarray]`: `node_features`, `bond_types`, `topological_distances`,
        `interatomic_distances`, `attention_mask` and, if there are any, `molecule_descriptors`.
    """
    headers = _read_headers(packed)
    num_atoms = headers["num_atoms"].astype(np.int64)
    num_bonds = headers["num_bonds"].astype(np.int64)
    batch_size, num_nodes = len(packed), int(num_atoms.max()) + 1
    codes, bonds, geometries = _read_parts(packed, headers)

    molecule_of_atom = np.repeat(np.arange(batch_size), num_atoms)
    first_atoms = np.cumsum(num_atoms) - num_atoms
    node_of_atom = np.arange(1, len(codes) + 1) - first_atoms[molecule_of_atom]
    node_codes = np.full((batch_size, num_nodes), PADDING_CODE)
    node_codes[:, 0] = DUMMY_NODE_CODE
    node_codes[molecule_of_atom, node_of_atom] = codes

    molecule_of_bond = np.repeat(np.arange(batch_size), num_bonds)
    begins, ends, types = bonds
    bond_types = np.full((batch_size, num_nodes, num_nodes), NO_BOND_TYPE, dtype=np.uint8)
    bond_types[molecule_of_bond, begins + 1, ends + 1] = types
    bond_types[molecule_of_bond, ends + 1, begins + 1] = types

    offsets = first_atoms[molecule_of_bond]
    topological_distances = np.full(bond_types.shape, UNREACHABLE_DISTANCE, dtype=np.uint8)
    topological_distances[:, 0, 0] = 0
    topological_distances[molecule_of_atom, node_of_atom, 1:] = compute_graph_distances(
        begins + offsets, ends + offsets, positions=node_of_atom - 1, max_size=num_nodes - 1
    )

    attention_mask = np.arange(num_nodes) <= num_atoms[:, None]
    is_beyond = topological_distances == UNREACHABLE_DISTANCE
    is_given = headers["kind"] >= _GIVEN
    if is_given.any():
        is_node = attention_mask[is_given]
        is_beyond[is_given] = ~(is_node[:, :, None] & is_node[:, None, :])
    interatomic_distances = _expand_geometries(geometries, headers)
    np.copyto(interatomic_distances, BEYOND_CUTOFF, where=is_beyond)
    batch = {
        "node_features": NODE_FEATURES_OF_CODE[node_codes],
        "bond_types": bond_types,
        "topological_distances": topological_distances,
        "interatomic_distances": interatomic_distances,
        "attention_mask": attention_mask.astype(np.int64),
    }
    if headers["num_descriptors"].any():
        batch["molecule_descriptors"] = read_molecule_descriptors(packed)
    return batch


def _get_bond_type(num_atoms: int) -> str:
    return "<u1" if num_atoms <= MAX_ATOMS_OF_SHORT_BONDS else "<u2"


def _read_headers(packed: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join([features[: _HEADER.itemsize] for features in packed]), _HEADER)


def _read_parts(
    packed: Sequence[bytes], headers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return all atom codes, all bonds `(3, num_bonds)` and the flat geometries."""
    codes, bonds, geometries = [], [], []
    for features, (kind, num_atoms, num_bonds, _) in zip(packed, headers.tolist(), strict=True):
        bond_type = _get_bond_type(num_atoms)
        start = _HEADER.itemsize
        codes.append(features[start : start + 2 * num_atoms])
        start += 2 * num_atoms
        bonds.append(np.frombuffer(features, bond_type, 3 * num_bonds, start).reshape(3, -1))
        start += bonds[-1].nbytes
        dtype, num_axes = _GEOMETRIES[kind % _GIVEN]
        size = 3 * num_atoms if num_axes == 2 else num_atoms * (num_atoms - 1) // 2
        geometries.append(np.frombuffer(features, "<" + dtype, size, start))
    all_codes = np.frombuffer(b"".join(codes), "<u2")
    return all_codes, np.concatenate(bonds, axis=1).astype(np.int64), geometries


def _expand_geometries(geometries: list[np.ndarray], headers: np.ndarray) -> np.ndarray:
    """Return the distances between all nodes; what stands outside the atoms has no meaning."""
    num_atoms = headers["num_atoms"].astype(np.int64)
    kinds = headers["kind"] % _GIVEN
    max_atoms = int(num_atoms.max())
    distances = np.full((len(headers),) + (max_atoms + 1,) * 2, BEYOND_CUTOFF, dtype=np.float32)
    # float32 has room for every int16 and uint16, so both can stand in one array
    scales = np.array([STEPS_PER_ANGSTROM, 1, STEPS_PER_ANGSTROM, 1])[kinds][:, None, None]
    for num_axes in (2, 1):
        rows = np.flatnonzero(np.array([axes for _, axes in _GEOMETRIES])[kinds] == num_axes)
        if not len(rows):
            continue
        values = np.concatenate([geometries[row] for row in rows])
        atoms = np.arange(max_atoms)
        is_atom = atoms < num_atoms[rows][:, None]
        if num_axes == 2:
            coordinates = np.zeros((len(rows), max_atoms, 3))
            coordinates[is_atom] = values.reshape(-1, 3)
            matrices = compute_squared_distances(coordinates)
            np.sqrt(matrices, out=matrices)
        else:
            matrices = np.zeros((len(rows), max_atoms, max_atoms))
            matrices[(atoms[:, None] < atoms) & is_atom[:, None, :]] = values
            matrices += matrices.transpose(0, 2, 1).copy()
        matrices /= scales[rows]
        distances[rows, 1:, 1:] = matrices
    return distances
