"""Objective `contexts`: the element of a masked atom with the elements and bonds around it.

The contextual property prediction of GROVER (arXiv 2007.02835, 4.1), with one difference: keys are
sorted, so that an atom has one context however its molecule is written.
"""

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from rdkit import Chem
from torch import nn

from rmat_hf.data.stored_features import expand_features
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import (
    BEYOND_CUTOFF,
    DUMMY_NODE_IDX,
    MASK_COLUMN,
    MASKED_BOND_TYPE,
    NO_BOND_TYPE,
    NUM_BOND_ORDERS,
)
from rmat_hf.model.features_rmat import ATOM_FEATURES, BOND_ORDERS
from rmat_hf.model.losses_rmat import IGNORED_LABEL
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.objective import NO_COLUMNS, Objective, ObjectiveBatch

# The element of class 0, that of the contexts which are too rare for one of their own.
RARE_CONTEXT = "rare"
# Key of a node that has no context: dummy node, padding, atoms with too many neighbors.
NO_CONTEXT = -1
MAX_NEIGHBORS = 10  # as many as an int64 has room for

# Keeps the draw of the centers apart from others of the same molecule and epoch.
CENTER_DRAW = 0
_CHUNK_SIZE = 256

_OTHER = "*"
_TABLE = Chem.GetPeriodicTable()
ELEMENTS = [
    _OTHER if n is None else _TABLE.GetElementSymbol(n)
    for n in ATOM_FEATURES.features["atomic_number"].classes
]
# RDKit's other bond types have the code of the last one
_ORDERS = [order.name.lower() for order in BOND_ORDERS]
# A neighbor is a digit of the key: 1 + its element and bond order; 0 stands for none.
_BASE = 1 + len(ELEMENTS) * NUM_BOND_ORDERS


def compute_atom_contexts(node_features: np.ndarray, bond_types: np.ndarray) -> np.ndarray:
    """Return an integer for the context of every node, -1 without one; see [`describe_context`]."""
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


def draw_masked_centers(
    packed: Sequence[bytes], attention_mask: np.ndarray, *, mask_ratio: float, seed: Sequence[int]
) -> np.ndarray:
    """Draw the atoms whose context is asked for, at least one in every molecule: bool, by node.

    A molecule's draw depends on the seed and the molecule alone: not on what stands beside it, the
    number of processes or where an interrupted run continues.
    """
    centers = np.zeros(attention_mask.shape, dtype=bool)
    for row, molecule in enumerate(packed):
        num_atoms = int(attention_mask[row].sum()) - 1
        draws = np.random.default_rng([*seed, zlib.crc32(molecule)]).random(num_atoms)
        is_center = draws < mask_ratio
        is_center[draws.argmin()] = True
        centers[row, DUMMY_NODE_IDX + 1 : DUMMY_NODE_IDX + 1 + num_atoms] = is_center
    return centers


def draw_asked_centers(batch: ObjectiveBatch) -> np.ndarray:
    """Draw the centers of the molecules of a batch that are asked, the same for each objective."""
    centers = draw_masked_centers(
        batch.packed,
        batch.inputs["attention_mask"],
        mask_ratio=batch.arguments.mask_ratio,
        seed=(*batch.seed, CENTER_DRAW),
    )
    centers[~batch.is_asked] = False
    return centers


def mask_contexts(
    inputs: Mapping[str, np.ndarray], centers: np.ndarray, *, hides_distances: bool = False
) -> dict[str, np.ndarray]:
    """Return what changes where the centers, atoms bonded to them and the bonds between are hidden.

    The features of these nodes are replaced by the mask flag, so are the bond types of the pairs
    (i, i), (i, j) and (j, i) of a center i and its neighbor j. Topological distances stay, and
    interatomic ones too, which tell elements and bond orders, unless they are to be hidden.
    """
    bond_types = inputs["bond_types"]
    is_bond = bond_types != NO_BOND_TYPE
    is_masked = centers | (is_bond & centers[:, None, :]).any(axis=2)
    node_features = inputs["node_features"].copy()
    node_features[is_masked] = 0
    node_features[is_masked, MASK_COLUMN] = 1
    is_masked_bond = is_bond & (centers[:, :, None] | centers[:, None, :])
    is_masked_bond |= centers[:, :, None] & np.eye(centers.shape[1], dtype=bool)
    bond_types = np.where(is_masked_bond, np.uint8(MASKED_BOND_TYPE), bond_types)
    hidden = {"node_features": node_features, "bond_types": bond_types}
    if hides_distances:
        is_hidden = is_masked[:, :, None] | is_masked[:, None, :]
        distances = inputs["interatomic_distances"]
        hidden["interatomic_distances"] = np.where(is_hidden, np.float32(BEYOND_CUTOFF), distances)
    return hidden


class ContextObjective(Objective):
    """Classification of the contexts of masked atoms.

    Args:
        state (`list[str]`):
            Frequent contexts in words, from class 1; class 0 is for those that are too rare.
    """

    head = "context"
    state_key = "atom_contexts"
    hides_input = True

    def __init__(self, state: list[str]) -> None:
        super().__init__(state)
        self._classes = {context: idx for idx, context in enumerate(state, start=1)}
        self._elements = np.array([RARE_CONTEXT, *(text.partition(":")[0] for text in state)])

    @classmethod
    def fit(
        cls,
        sample: Sequence[bytes],
        *,
        processor: RMatProcessor,
        arguments: Any,
        columns: Mapping[str, Sequence[Any]] = NO_COLUMNS,
    ) -> "ContextObjective":
        """Return the objective with the contexts that are frequent in the sample."""
        counts: Counter[int] = Counter()
        for start in range(0, len(sample), _CHUNK_SIZE):
            batch = expand_features(sample[start : start + _CHUNK_SIZE])
            keys = compute_atom_contexts(batch["node_features"], batch["bond_types"])
            counts.update(keys[keys != NO_CONTEXT].tolist())
        min_count = arguments.min_context_count
        frequent = [key for key, count in counts.items() if count >= min_count]
        if not frequent:
            raise UserError(
                f"No atom context occurs {min_count} times in the corpus. Lower "
                "--min-context-count, or give more molecules."
            )
        frequent.sort(key=lambda key: (-counts[key], key))
        return cls([describe_context(key) for key in frequent])

    def classify(self, keys: np.ndarray) -> np.ndarray:
        """Return the class of every key, int64; -1 where there is no context."""
        unique, places = np.unique(keys, return_inverse=True)
        classes = [
            self._classes.get(describe_context(key), 0) if key != NO_CONTEXT else NO_CONTEXT
            for key in unique.tolist()
        ]
        return np.array(classes, dtype=np.int64)[places].reshape(keys.shape)

    def describe_head(self) -> dict[str, str | int]:
        """Return a head of the nodes with an output for every class."""
        size = len(self._elements)
        return {"level": "node", "size": size, "loss": "single_label_classification"}

    def prepare(self, batch: ObjectiveBatch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the classes of the centers, -100 for other nodes, and the masked molecules."""
        centers = draw_asked_centers(batch)
        keys = compute_atom_contexts(batch.inputs["node_features"], batch.inputs["bond_types"])
        classes = self.classify(keys)
        labels = np.where(centers & (classes >= 0), classes, IGNORED_LABEL)
        hides_distances = batch.arguments.masked_distances == "hidden"
        return labels, mask_contexts(batch.inputs, centers, hides_distances=hides_distances)

    def compute_sums(self, logits: torch.Tensor, *, labels: torch.Tensor) -> torch.Tensor:
        """Return rows for centers, correct ones, and the sum of the cross-entropies, by class."""
        is_center = labels != IGNORED_LABEL
        classes, scores = labels[is_center], logits[is_center].float()
        losses = nn.functional.cross_entropy(scores, classes, reduction="none")
        parts = (torch.ones_like(losses), (scores.argmax(-1) == classes).float(), losses)
        sums = torch.zeros(3, len(self._elements), dtype=torch.float64)
        return sums.index_add_(1, classes.cpu(), torch.stack(parts).double().cpu())

    def compute_metrics(self, sums: torch.Tensor) -> dict[str, Any]:
        """Return cross-entropy, accuracy (also by element) and the number of centers."""
        table = pd.DataFrame(sums.numpy().T, columns=["number", "correct", "loss"])
        table = table.groupby(self._elements).sum().query("number > 0")
        if table.empty:
            return {}
        total = table.sum()
        return {
            "context_loss": float(total.loss / total.number),
            "context_accuracy": float(total.correct / total.number),
            "context_accuracy_by_element": (table.correct / table.number).to_dict(),
            "num_centers": int(total.number),
        }
