"""Batches of molecules of similar size: padding costs the square of the difference."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Padded pairs of nodes in one batch of a prediction: 15 molecules of 256 atoms, a few hundred MB
# of a model of the published size.
MAX_PAIRS = 2**20
# Batches out of which the rows of a training batch are sorted together, at most; and at least so
# many such groups in an epoch, so that a batch is never the same twice.
MAX_BATCHES_SORTED = 50
MIN_NUM_GROUPS = 4


def compute_length_order(num_nodes: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the positions of molecules from the largest to the smallest.

    Args:
        num_nodes (`Sequence[int]`): Nodes of every molecule.

    Returns:
        `np.ndarray` of shape `(num_molecules,)`, int64. Equal sizes keep their order.
    """
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
