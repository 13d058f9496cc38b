"""The features of a molecule as a short byte string, and batches of similar sizes of them.

Layout, little-endian: header (8 bytes), atom codes (uint16, or what the list of atom features
needs), first atoms, second atoms and types of the bonds (uint8, or uint16 beyond 256 atoms),
geometry, fingerprint counts (number of columns and of those that are not 0, these columns, uint16,
and their counts, uint8), molecule descriptors (float32).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.processing_rmat import RMatCompactFeatures, build_batch

# Kinds of geometry: coordinates or distances above the diagonal, in steps of 0.001 Å or in Å.
_GEOMETRIES = (("i2", 2), ("f4", 2), ("u2", 1), ("f4", 1))
_GIVEN = len(_GEOMETRIES)
_COUNTED = 2 * _GIVEN
_HEADER = np.dtype(
    [("kind", "<u2"), ("num_atoms", "<u2"), ("num_bonds", "<u2"), ("num_descriptors", "<u2")]
)
_CODE = ATOM_FEATURES.code_dtype.newbyteorder("<")
MAX_ATOMS_OF_SHORT_BONDS = 256
# Padded pairs of nodes in one batch of a prediction: 15 molecules of 256 atoms, a few hundred MB
# of a model of the published size.
MAX_PAIRS = 2**20
# Batches out of which the rows of a training batch are sorted together, at most; and at least so
# many such groups in an epoch, so that a batch is never the same twice.
MAX_BATCHES_SORTED = 50
MIN_NUM_GROUPS = 4


def pack_features(features: RMatCompactFeatures) -> bytes:
    """Return the features as bytes, without `geometry_source`: of it only given or generated.

    Args:
        features (`RMatCompactFeatures`): As from `RMatProcessor.featurize_compactly`.
    """
    geometry = features.geometry
    kind = _GEOMETRIES.index((geometry.dtype.str[1:], geometry.ndim))
    is_given = features.geometry_source == "given"
    num_atoms, descriptors = len(features.atom_codes), features.molecule_descriptors
    counts = features.fingerprint_counts
    kind += _GIVEN * is_given + _COUNTED * (counts is not None)
    num_descriptors = 0 if descriptors is None else len(descriptors)
    header = np.array((kind, num_atoms, len(features.bonds), num_descriptors), dtype=_HEADER)
    parts = [
        header,
        features.atom_codes.astype(_CODE),
        features.bonds.T.astype(_get_bond_type(num_atoms)),
        geometry.astype(geometry.dtype.newbyteorder("<")),
    ]
    if counts is not None:
        columns = np.flatnonzero(counts)
        numbers = np.array([len(counts), len(columns), *columns], dtype="<u2")
        parts += [numbers, counts[columns].astype(np.uint8)]
    parts += [] if descriptors is None else [descriptors.astype("<f4")]
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
    start += geometry.nbytes
    counts = None
    if kind >= _COUNTED:
        num_columns, num_entries = np.frombuffer(packed, "<u2", 2, start).tolist()
        columns = np.frombuffer(packed, "<u2", num_entries, start + 4)
        counts = np.zeros(num_columns, dtype=np.uint8)
        start += 4 + columns.nbytes
        counts[columns] = np.frombuffer(packed, np.uint8, num_entries, start)
        start += num_entries
    descriptors = np.frombuffer(packed, "<f4", num_descriptors, start)
    return RMatCompactFeatures(
        codes,
        bonds.reshape(3, -1).T,
        geometry.reshape(-1, 3) if num_axes == 2 else geometry,
        "given" if kind // _GIVEN % 2 else "",
        descriptors if num_descriptors else None,
        counts,
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


# Padding costs the square of the difference


def compute_length_order(num_nodes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the positions of molecules from the largest to the smallest, equal ones in order."""
    return np.argsort(-np.asarray(num_nodes, dtype=np.int64), kind="stable")


def group_by_length(
    num_nodes: Sequence[int] | np.ndarray, *, batch_size: int, max_pairs: int = MAX_PAIRS
) -> list[np.ndarray]:
    """Divide molecules into batches of similar sizes, the largest first.

    Args:
        num_nodes (`Sequence[int]`): Nodes of every molecule.
        batch_size (`int`): Most molecules in a batch.
        max_pairs (`int`, *optional*, defaults to 2**20):
            Most pairs of nodes in a batch, padding included. A single molecule may have more.

    Returns:
        `list[np.ndarray]`: positions of the molecules of every batch, each molecule once.
    """
    order = compute_length_order(num_nodes)
    batches = []
    start = 0
    while start < len(order):
        pairs_per_molecule = int(num_nodes[order[start]]) ** 2
        stop = start + max(1, min(batch_size, max_pairs // pairs_per_molecule))
        batches.append(order[start:stop])
        start = stop
    return batches


class LengthGroupedSampler(Sampler[int]):
    """Random rows in an order in which every `batch_size` of them have similar lengths.

    Each epoch permutes the rows, sorts large groups of them by length, cuts these into batches and
    permutes the batches: unlike the sampler of transformers, which goes through a group from long
    to short, no epoch ends with the smallest molecules.

    Args:
        lengths (`Sequence[int]`): Length of every row, for molecules the number of nodes.
        batch_size (`int`): Rows of a batch.
        seed (`int`): The order follows from it and the epoch, so that a resumed run repeats it.
    """

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; accelerate calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        rows = generator.permutation(len(self.lengths))
        num_batches = len(rows) // self.batch_size
        # the rows of the last, incomplete batch are a random choice as well
        rows, rest = np.split(rows, [num_batches * self.batch_size])
        num_sorted = min(max(num_batches // MIN_NUM_GROUPS, 1), MAX_BATCHES_SORTED)
        group_size = num_sorted * self.batch_size
        for start in range(0, len(rows), group_size):
            group = rows[start : start + group_size]
            rows[start : start + group_size] = group[np.argsort(self.lengths[group], kind="stable")]
        batches = generator.permutation(rows.reshape(num_batches, self.batch_size))
        yield from np.concatenate((batches.ravel(), rest)).tolist()
