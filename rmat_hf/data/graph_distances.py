"""Shortest paths in many small graphs at once."""

import numpy as np

from rmat_hf.model.configuration_rmat import UNREACHABLE_DISTANCE

WORD_BITS = 64


def compute_graph_distances(
    begins: np.ndarray, ends: np.ndarray, *, positions: np.ndarray, max_size: int
) -> np.ndarray:
    """Return the number of bonds on the shortest path between the atoms of every molecule.

    All searches of the batch take their breadth-first steps together; the atoms that one has
    reached are the bits of machine words.

    Args:
        begins, ends (`np.ndarray` of shape `(num_bonds,)`): Bonds between atoms of the batch.
        positions (`np.ndarray` of shape `(num_atoms,)`):
            Position of every atom of the batch in its molecule, from 0.
        max_size (`int`): Number of atoms of the largest molecule.

    Returns:
        `np.ndarray` of shape `(num_atoms, max_size)`, uint8: to the atoms of the same molecule by
        position, clipped at 254; 255 where there is no path or no atom.
    """
    num_atoms = len(positions)
    neighbors = _build_neighbor_table(begins, ends, num_atoms=num_atoms)
    reached = np.zeros((num_atoms, -(-max_size // WORD_BITS)), dtype="<u8")
    bits = np.left_shift(np.uint64(1), (positions % WORD_BITS).astype(np.uint64))
    reached[np.arange(num_atoms), positions // WORD_BITS] = bits
    # Bit planes of the distances: a path of 5 bonds sets its bit in the planes 0 and 2.
    planes: list[np.ndarray] = []
    num_bonds = 0
    while True:
        grown = reached | np.bitwise_or.reduce(reached[neighbors], axis=0)
        new = grown ^ reached
        if not new.any():
            break
        num_bonds = min(num_bonds + 1, UNREACHABLE_DISTANCE - 1)
        if num_bonds.bit_length() > len(planes):
            planes.append(np.zeros_like(reached))
        for plane_idx, plane in enumerate(planes):
            if num_bonds >> plane_idx & 1:
                plane |= new
        reached = grown
    distances = (1 - _unpack_bits(reached, max_size)) * np.uint8(UNREACHABLE_DISTANCE)
    for plane_idx, plane in enumerate(planes):
        distances |= _unpack_bits(plane, max_size) << plane_idx
    return distances


def _build_neighbor_table(begins: np.ndarray, ends: np.ndarray, *, num_atoms: int) -> np.ndarray:
    """Return the neighbors of every atom, `(max_neighbors, num_atoms)`; free places hold itself."""
    sources, targets = np.concatenate([begins, ends]), np.concatenate([ends, begins])
    order = np.argsort(sources, kind="stable")
    sources, targets = sources[order], targets[order]
    degrees = np.bincount(sources, minlength=num_atoms)
    first_bonds = np.cumsum(degrees) - degrees
    table = np.tile(np.arange(num_atoms), (max(int(degrees.max(initial=0)), 1), 1))
    table[np.arange(len(sources)) - first_bonds[sources], sources] = targets
    return table


def _unpack_bits(words: np.ndarray, num_bits: int) -> np.ndarray:
    """Return the first bits of every row, `(num_rows, num_bits)`, uint8."""
    used_bytes = words.view(np.uint8)[:, : -(-num_bits // 8)]
    return np.unpackbits(used_bytes, axis=1, count=num_bits, bitorder="little")
