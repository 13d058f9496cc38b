"""Features of molecules: typed columns of a data set, their short form in memory, batches.

A featurized data set, from [`featurize_dataset`] or `rmat featurize`, has a molecule in every row.
Its columns, `num_atoms` and `num_bonds` those of the molecule:

- `features.atom_codes`, `list<uint16>` of `num_atoms`: the classes of an atom in the features of
  `ATOM_FEATURES`, as one number.
- `features.bond_begins`, `features.bond_ends`, `list<uint16>` of `num_bonds`: the two atoms of a
  bond, from 0. Topological distances follow from them.
- `features.bond_types`, `list<uint8>` of `num_bonds`: as from [`compute_bonds`].
- `features.coordinates`, `list<float32>` of `3 * num_atoms`: in Å, x, y and z of one atom after
  the other. Null where there are distances.
- `features.distances`, `list<float32>` of `num_atoms * (num_atoms - 1) / 2`: in Å, between the
  atoms 0 and 1, 0 and 2, ..., 1 and 2, ... Null where there are coordinates.
- `features.molecule_descriptors`, `list<float32>`: in the order of the processor's names. Null
  without.
- `features.fingerprint_columns`, `list<uint16>`, and `features.fingerprint_counts`, `list<uint8>`:
  the columns of fingerprints with a count that is not 0, and these; of all there are
  `features.num_fingerprint_columns`, `uint16`, null without.
- `features.is_given`, `bool`: whether the conformer came with the molecule. Only then fragments
  have a distance to each other; other geometries are whole steps of 0.001 Å.
- `num_nodes`, `int32`: `num_atoms` and the dummy node.
- `geometry_source`, `string`: the conformer method, `bounds`, `2d`, `given`, or with its reason a
  step down to another geometry.
- `processor`, `ClassLabel`: its one name has the options of the [`RMatProcessor`] as JSON.
  `datasets` keeps it wherever rows go, so that a pushed data set tells how it was made, and two
  that were made differently do not concatenate.
- `label_assays`, `label_kinds` and `label_values`, of a corpus with labels: see assay_labels.py.

The model inputs that come out are those of the processor bit for bit. Version rule: `processor` has
the `featurizer_version`, and code of another one refuses the rows, which are featurized anew.

In memory, in the feature cache and between processes a molecule is a short byte string,
little-endian: header (8 bytes), atom codes, first atoms, second atoms and types of the bonds
(uint8, or uint16 beyond 256 atoms), geometry (coordinates or distances, int16 or uint16 in steps of
0.001 Å, or float32 in Å), fingerprint counts (number of columns and of those that are not 0, these
columns, uint16, and their counts, uint8), molecule descriptors (float32).
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Sampler

from rmat_hf.model.configuration_rmat import MASKED_BOND_TYPE
from rmat_hf.model.features_rmat import ATOM_FEATURES
from rmat_hf.model.geometry_rmat import STEPS_PER_ANGSTROM
from rmat_hf.model.processing_rmat import RMatCompactFeatures, build_batch

FEATURES_COLUMN = "features"
_BOND_FIELDS = ("bond_begins", "bond_ends", "bond_types")
_NUMBERS = pa.list_(pa.float32())
FEATURES_TYPE = pa.struct(
    {
        "atom_codes": pa.list_(pa.from_numpy_dtype(ATOM_FEATURES.code_dtype)),
        "bond_begins": pa.list_(pa.uint16()),
        "bond_ends": pa.list_(pa.uint16()),
        "bond_types": pa.list_(pa.uint8()),
        "coordinates": _NUMBERS,
        "distances": _NUMBERS,
        "molecule_descriptors": _NUMBERS,
        "fingerprint_columns": pa.list_(pa.uint16()),
        "fingerprint_counts": pa.list_(pa.uint8()),
        "num_fingerprint_columns": pa.uint16(),
        "is_given": pa.bool_(),
    }
)
LIST_FIELDS = [field.name for field in FEATURES_TYPE if pa.types.is_list(field.type)]
# Kinds of geometry: coordinates or distances above the diagonal, in steps of 0.001 Å or in Å.
_GEOMETRIES = (("i2", 2), ("f4", 2), ("u2", 1), ("f4", 1))
_GEOMETRY_TYPES = [np.dtype("<" + name) for name, _ in _GEOMETRIES]
_KINDS = {(dtype, _GEOMETRIES[kind][1]): kind for kind, dtype in enumerate(_GEOMETRY_TYPES)}
_BOND_TYPES = (np.dtype("<u1"), np.dtype("<u2"))
_GIVEN = len(_GEOMETRIES)
_COUNTED = 2 * _GIVEN
_HEADER = np.dtype(
    [("kind", "<u2"), ("num_atoms", "<u2"), ("num_bonds", "<u2"), ("num_descriptors", "<u2")]
)
# writes one header several times faster
_HEADER_FORM = struct.Struct("<4H")
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
    """Return the features as bytes, without `geometry_source`: of it only given or generated."""
    geometry, descriptors = features.geometry, features.molecule_descriptors
    kind = _KINDS[geometry.dtype, geometry.ndim]
    dtype = _GEOMETRY_TYPES[kind]
    is_given, counts = features.geometry_source == "given", features.fingerprint_counts
    kind += _GIVEN * is_given + _COUNTED * (counts is not None)
    num_atoms = len(features.atom_codes)
    num_descriptors = 0 if descriptors is None else len(descriptors)
    parts = [
        _HEADER_FORM.pack(kind, num_atoms, len(features.bonds), num_descriptors),
        features.atom_codes.astype(_CODE, copy=False).tobytes(),
        features.bonds.T.astype(_get_bond_type(num_atoms)).tobytes(),
        geometry.astype(dtype, copy=False).tobytes(),
    ]
    if counts is not None:
        columns = np.flatnonzero(counts)
        numbers = np.array([len(counts), len(columns), *columns], dtype="<u2")
        parts += [numbers.tobytes(), counts[columns].astype(np.uint8).tobytes()]
    parts += [] if descriptors is None else [descriptors.astype("<f4", copy=False).tobytes()]
    return b"".join(parts)


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


def has_features(schema: pa.Schema) -> bool:
    """Return whether a table has the typed column `features`."""
    return FEATURES_COLUMN in schema.names and pa.types.is_struct(
        schema.field(FEATURES_COLUMN).type
    )


def build_features_column(packed: Iterable[bytes]) -> pa.StructArray:
    """Return molecules, each from [`pack_features`], as the typed column `features`."""
    molecules = [unpack_features(features) for features in packed]
    bonds = [molecule.bonds.T for molecule in molecules]
    geometries = [molecule.geometry for molecule in molecules]
    counts = [molecule.fingerprint_counts for molecule in molecules]
    values: dict[str, list[Any]] = {
        "atom_codes": [molecule.atom_codes for molecule in molecules],
        "coordinates": [_measure(it) if it.ndim == 2 else None for it in geometries],
        "distances": [_measure(it) if it.ndim == 1 else None for it in geometries],
        "molecule_descriptors": [molecule.molecule_descriptors for molecule in molecules],
        "fingerprint_columns": [None if it is None else np.flatnonzero(it) for it in counts],
        "fingerprint_counts": [None if it is None else it[it > 0] for it in counts],
        "num_fingerprint_columns": [None if it is None else len(it) for it in counts],
        "is_given": [molecule.geometry_source == "given" for molecule in molecules],
    }
    for idx, name in enumerate(_BOND_FIELDS):
        values[name] = [of_molecule[idx] for of_molecule in bonds]
    columns = [
        _build_lists(values[field.name], field.type)
        if field.name in LIST_FIELDS
        else pa.array(values[field.name], field.type)
        for field in FEATURES_TYPE
    ]
    return pa.StructArray.from_arrays(columns, fields=list(FEATURES_TYPE))


def _measure(geometry: np.ndarray) -> np.ndarray:
    """Return a geometry in Å, with the bits that its distances have in a batch."""
    is_short = geometry.dtype.kind != "f"
    return geometry.ravel() / (np.float64(STEPS_PER_ANGSTROM) if is_short else np.float32(1))


def _build_lists(arrays: Sequence[np.ndarray | None], kind: pa.ListType) -> pa.ListArray:
    sizes = [0 if array is None else len(array) for array in arrays]
    dtype = kind.value_type.to_pandas_dtype()
    values = np.concatenate([np.empty(0, dtype), *(it for it in arrays if it is not None)])
    offsets = pa.array(np.cumsum([0, *sizes]), pa.int32())
    is_null = pa.array([array is None for array in arrays], pa.bool_())
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(dtype)), mask=is_null)


def read_column(column: pa.Array | pa.ChunkedArray) -> list[RMatCompactFeatures]:
    """Return the molecules of a typed column `features`, as [`unpack_features`] does."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.type != FEATURES_TYPE:
        array = array.cast(FEATURES_TYPE)
    lists = {name: _read_lists(array.field(name)) for name in LIST_FIELDS}
    is_given = array.field("is_given").to_numpy(zero_copy_only=False).astype(bool)
    # by column, as `build_batch` reads them
    bonds = np.stack([lists[name][0] for name in _BOND_FIELDS]).T
    parts = zip(
        _split(*lists["atom_codes"]),
        _split(bonds, lists["bond_types"][1]),
        _read_geometries(*lists["coordinates"], is_given=is_given, short=np.int16),
        _read_geometries(*lists["distances"], is_given=is_given, short=np.uint16),
        is_given.tolist(),
        _split_filled(*lists["molecule_descriptors"]),
        _read_counts(array.field("num_fingerprint_columns"), lists),
        strict=True,
    )
    return [
        RMatCompactFeatures(
            atom_codes,
            bonds_of_atoms,
            coordinates.reshape(-1, 3) if len(coordinates) else distances,
            "given" if given else "",
            descriptors,
            counts,
        )
        for atom_codes, bonds_of_atoms, coordinates, distances, given, descriptors, counts in parts
    ]


def _read_lists(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of all lists one after the other, and where each begins, and the end."""
    offsets = column.offsets.to_numpy()
    if column.null_count == len(column):
        return column.values.to_numpy()[:0], np.zeros_like(offsets)
    if column.null_count:  # there may be values behind an empty cell
        sizes = pc.fill_null(column.value_lengths(), 0).to_numpy()
        return column.flatten().to_numpy(), np.cumsum([0, *sizes])
    return column.values.to_numpy()[offsets[0] : offsets[-1]], offsets - offsets[0]


def _read_counts(
    sizes: pa.Array, lists: dict[str, tuple[np.ndarray, np.ndarray]]
) -> list[np.ndarray | None]:
    """Return the counts of all columns of fingerprints, `None` for molecules without."""
    dense: list[Any] = [None] * len(sizes)
    if sizes.null_count == len(sizes):
        return dense
    columns, counts = (_split(*lists[f"fingerprint_{name}"]) for name in ("columns", "counts"))
    for row, size in enumerate(sizes.to_pylist()):
        if size is not None:
            dense[row] = np.zeros(size, dtype=np.uint8)
            dense[row][columns[row]] = counts[row]
    return dense


def _split(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    return [values[start:stop] for start, stop in pairwise(offsets.tolist())]


def _split_filled(values: np.ndarray, offsets: np.ndarray) -> list[np.ndarray | None]:
    """Return the same with `None` for empty lists."""
    if not len(values):
        return [None] * (len(offsets) - 1)
    return [array if len(array) else None for array in _split(values, offsets)]


def _read_geometries(
    values: np.ndarray,
    offsets: np.ndarray,
    *,
    is_given: np.ndarray,
    short: type[np.int16 | np.uint16],
) -> list[np.ndarray]:
    """Return geometries as from `GEOMETRIES`: generated ones are steps, unless too long."""
    if not len(values):
        return [np.empty(0, dtype=short)] * len(is_given)
    steps, limit = np.rint(values * np.float32(STEPS_PER_ANGSTROM)), np.iinfo(short).max
    if not is_given.any() and -limit <= steps.min() <= steps.max() <= limit:
        return _split(steps.astype(short), offsets)
    pairs = zip(_split(steps, offsets), _split(values, offsets), is_given, strict=True)
    return [
        rounded.astype(short) if not given and np.abs(rounded).max(initial=0) <= limit else whole
        for rounded, whole, given in pairs
    ]


def find_fault(features: RMatCompactFeatures, *, max_atoms: int) -> str:
    """Return why features, perhaps a stranger's, are those of no molecule here, or nothing."""
    num_atoms, geometry = len(features.atom_codes), features.geometry
    num_values = num_atoms * (num_atoms - 1) // 2 if geometry.ndim == 1 else 3 * num_atoms
    if not 0 < num_atoms <= max_atoms:
        return f"its features have {num_atoms} atoms; max_atoms={max_atoms} is the most"
    if geometry.size != num_values or not np.isfinite(geometry).all():
        return "its features have no finite geometry of all atoms"
    if (features.bonds >= (num_atoms, num_atoms, MASKED_BOND_TYPE)).any():
        return "its features have bonds of other atoms or of an unknown type"
    return ""


def read_rows(features: Sequence[Any]) -> list[RMatCompactFeatures]:
    """Return molecules that are read already, or are cells of `features`, as any format has them.

    That is `Dataset.with_format`: Python lists, arrays of numpy or tensors.
    """
    if isinstance(features[0], RMatCompactFeatures):
        return list(features)
    cells = [
        {name: it.tolist() if hasattr(it, "tolist") else it for name, it in cell.items()}
        for cell in features
    ]
    return read_column(pa.array(cells, FEATURES_TYPE))


def pack_column(column: pa.Array | pa.ChunkedArray) -> list[bytes]:
    """Return the molecules of a typed column `features` as from [`pack_features`]."""
    return [pack_features(features) for features in read_column(column)]


def pack_dataset(dataset: Any) -> list[bytes]:
    """Return the molecules of a `datasets.Dataset` with such a column."""
    table = dataset.select_columns([FEATURES_COLUMN]).with_format("arrow")[:]
    return pack_column(table[FEATURES_COLUMN])


def expand_features(packed: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Return the model inputs of a batch, bit for bit those of `RMatProcessor.pad`."""
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


def _get_bond_type(num_atoms: int) -> np.dtype[Any]:
    return _BOND_TYPES[num_atoms > MAX_ATOMS_OF_SHORT_BONDS]


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
        max_pairs (`int`, *optional*, defaults to 2**20):
            Most pairs of nodes in a batch, padding included. A single molecule may have more.
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
