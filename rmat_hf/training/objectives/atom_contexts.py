"""The context of an atom: its element and the counted elements and bonds around it.

The contextual property prediction of GROVER (arXiv 2007.02835, 4.1), with one difference: keys are
sorted, so that an atom has one context however its molecule is written.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from rdkit import Chem

from rmat_hf.model.configuration_rmat import NO_BOND_TYPE, NUM_BOND_ORDERS
from rmat_hf.model.features_rmat import ATOM_FEATURES, BOND_ORDERS

# Class of contexts that are too rare to be in the vocabulary.
RARE_CONTEXT = "rare"
RARE_CONTEXT_CLASS = 0
# Key of a node that has no context: dummy node, padding, atoms with too many neighbors.
NO_CONTEXT = -1
MAX_NEIGHBORS = 10  # as many as an int64 has room for

_OTHER = "*"
_TABLE = Chem.GetPeriodicTable()
ELEMENTS = [
    _OTHER if n is None else _TABLE.GetElementSymbol(n)
    for n in ATOM_FEATURES.get_classes("atomic_number")
]
# RDKit's other bond types have the code of the last one
_ORDERS = [order.name.lower() for order in BOND_ORDERS]
# A neighbor is a digit of the key: 1 + its element and bond order; 0 stands for none.
_BASE = 1 + len(ELEMENTS) * NUM_BOND_ORDERS
_NEIGHBOR_PATTERN = re.compile(r"(\d+) (\w+) (\*|\w+)")


def compute_atom_contexts(node_features: np.ndarray, bond_types: np.ndarray) -> np.ndarray:
    """Return the context of every node as an integer.

    Args:
        node_features (`np.ndarray` of shape `(batch_size, num_nodes, num_node_features)`):
            As `RMatProcessor` makes them. Elements without a column of their own are one.
        bond_types (`np.ndarray` of shape `(batch_size, num_nodes, num_nodes)`): Likewise.

    Returns:
        `np.ndarray` of shape `(batch_size, num_nodes)`, int64: equal for equal contexts, -1 for
        nodes without one. [`describe_context`] puts it into words.
    """
    one_hots = node_features[..., ATOM_FEATURES.columns["atomic_number"]]
    elements = one_hots.argmax(axis=-1).astype(np.int64)
    keys = elements.copy()
    molecules, atoms, neighbors = np.nonzero(bond_types != NO_BOND_TYPE)
    orders = (bond_types[molecules, atoms, neighbors].astype(np.int64) - 1) // 8
    digits = 1 + elements[molecules, neighbors] * NUM_BOND_ORDERS + orders
    nodes = molecules * bond_types.shape[1] + atoms
    by_node_and_digit = np.lexsort((digits, nodes))
    nodes, digits = nodes[by_node_and_digit], digits[by_node_and_digit]
    places = np.arange(len(nodes)) - np.searchsorted(nodes, nodes)
    is_kept = places < MAX_NEIGHBORS
    values = digits[is_kept] * _BASE ** places[is_kept]
    np.add.at(keys.reshape(-1), nodes[is_kept], values * len(ELEMENTS))
    keys.reshape(-1)[nodes[~is_kept]] = NO_CONTEXT
    keys[one_hots.sum(axis=-1) == 0] = NO_CONTEXT
    return keys


def describe_context(key: int) -> str:
    """Return a context in words, for example `"C: 2 single C, 1 double O"`."""
    rest, element = divmod(key, len(ELEMENTS))
    digits: Counter[int] = Counter()
    while rest:
        rest, digit = divmod(rest, _BASE)
        digits[digit] += 1
    words = []
    for digit, count in digits.items():
        neighbor, order = divmod(digit - 1, NUM_BOND_ORDERS)
        words.append(f"{count} {_ORDERS[order]} {ELEMENTS[neighbor]}")
    return f"{ELEMENTS[element]}: {', '.join(words)}".rstrip(": ")


def parse_context(text: str) -> int:
    """Return the key of a context from its words.

    Raises:
        ValueError: If these are no words of [`describe_context`].
    """
    element, _, neighbors = text.partition(": ")
    try:
        digits = sorted(
            1 + ELEMENTS.index(symbol) * NUM_BOND_ORDERS + _ORDERS.index(order)
            for count, order, symbol in _NEIGHBOR_PATTERN.findall(neighbors)
            for _ in range(int(count))
        )
        key = ELEMENTS.index(element)
    except ValueError as error:
        raise ValueError(f"{text!r} is no atom context. Use the file as it was saved.") from error
    rest = sum(digit * _BASE**place for place, digit in enumerate(digits[:MAX_NEIGHBORS]))
    key += len(ELEMENTS) * rest
    if len(digits) > MAX_NEIGHBORS or describe_context(key) != text:
        raise ValueError(f"{text!r} is no atom context. Use the file as it was saved.")
    return key


class AtomContextVocabulary:
    """Contexts and their classes; class 0 is for those that are too rare.

    Args:
        contexts (`Sequence[str]`): Contexts in words, without the rare one, from class 1.
    """

    def __init__(self, contexts: Sequence[str]) -> None:
        self.contexts = list(contexts)
        keys = np.array([parse_context(context) for context in self.contexts], dtype=np.int64)
        if len(np.unique(keys)) != len(keys):
            raise ValueError("A context is twice in the vocabulary. Use the file as it was saved.")
        order = np.argsort(keys)
        self._sorted_keys = keys[order]
        self._classes = order + 1

    @classmethod
    def build(cls, counts: Mapping[int, int], *, min_count: int) -> "AtomContextVocabulary":
        """Return the vocabulary of a corpus, the most frequent context first.

        Args:
            counts (`Mapping[int, int]`): How often each key occurs.
            min_count (`int`): Contexts that occur less often are rare.

        Raises:
            ValueError: If none occurs so often.
        """
        frequent = [key for key, count in counts.items() if key >= 0 and count >= min_count]
        if not frequent:
            raise ValueError(
                f"No atom context occurs {min_count} times in the corpus. Lower the least count."
            )
        frequent.sort(key=lambda key: (-counts[key], key))
        return cls([describe_context(key) for key in frequent])

    def __len__(self) -> int:
        return len(self.contexts) + 1

    def encode(self, keys: np.ndarray) -> np.ndarray:
        """Return the class of every key, int64; -1 where there is no context."""
        places = np.searchsorted(self._sorted_keys, keys)
        places = np.minimum(places, len(self._sorted_keys) - 1)
        classes = np.where(
            self._sorted_keys[places] == keys, self._classes[places], RARE_CONTEXT_CLASS
        )
        return np.where(keys == NO_CONTEXT, NO_CONTEXT, classes)

    def list_elements(self) -> list[str]:
        """Return the element of every class; that of the rare ones is `"rare"`."""
        return [RARE_CONTEXT, *(context.partition(":")[0] for context in self.contexts)]
