"""The features of a molecule as a short byte string, and a batch of them as model inputs.

Layout, little-endian: header (8 bytes), atom codes (uint16, or what the list of atom features
needs), first atoms, second atoms and types of the bonds (uint8, or uint16 beyond 256 atoms),
geometry, molecule descriptors (float32).
"""

from collections.abc import Sequence

import numpy as np

from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.processing_rmat import RMatCompactFeatures, build_batch

# Kinds of geometry: coordinates or distances above the diagonal, in steps of 0.001 Å or in Å.
_GEOMETRIES = (("i2", 2), ("f4", 2), ("u2", 1), ("f4", 1))
_GIVEN = len(_GEOMETRIES)
_HEADER = np.dtype(
    [("kind", "<u2"), ("num_atoms", "<u2"), ("num_bonds", "<u2"), ("num_descriptors", "<u2")]
)
_CODE = ATOM_FEATURES.code_dtype.newbyteorder("<")
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
        features.atom_codes.astype(_CODE),
        features.bonds.T.astype(_get_bond_type(num_atoms)),
        geometry.astype(geometry.dtype.newbyteorder("<")),
    ]
    if descriptors is not None:
        parts.append(descriptors.astype("<f4"))
    return b"".join(part.tobytes() for part in parts)


def unpack_features(packed: bytes) -> RMatCompactFeatures:
    """Return the features behind the bytes; `geometry_source` is `"given"` or nothing."""
    kind, num_atoms, num_bonds, num_descriptors = np.frombuffer(packed, _HEADER, 1)[0].item()
    start = _HEADER.itemsize
    codes = np.frombuffer(packed, _CODE, num_atoms, start)
    start += codes.nbytes
    bonds = np.frombuffer(packed, _get_bond_type(num_atoms), 3 * num_bonds, start)
    start += bonds.nbytes
    dtype, num_axes = _GEOMETRIES[kind % _GIVEN]
    size = 3 * num_atoms if num_axes == 2 else num_atoms * (num_atoms - 1) // 2
    geometry = np.frombuffer(packed, "<" + dtype, size, start)
    return RMatCompactFeatures(
        codes,
        bonds.reshape(3, -1).T,
        geometry.reshape(-1, 3) if num_axes == 2 else geometry,
        "given" if kind >= _GIVEN else "",
        np.frombuffer(packed, "<f4", num_descriptors, start + geometry.nbytes)
        if num_descriptors
        else None,
    )


def expand_features(packed: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Return the model inputs of a batch, bit for bit those of `RMatProcessor.pad`.

    Args:
        packed (`Sequence[bytes]`): Molecules, at least one, each from [`pack_features`].

    Returns:
        `dict[str, np.ndarray]`: as from `build_batch`.
    """
    return build_batch([unpack_features(features) for features in packed])


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


def _get_bond_type(num_atoms: int) -> str:
    return "<u1" if num_atoms <= MAX_ATOMS_OF_SHORT_BONDS else "<u2"


def _read_headers(packed: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join([features[: _HEADER.itemsize] for features in packed]), _HEADER)
