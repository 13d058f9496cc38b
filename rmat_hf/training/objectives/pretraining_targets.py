"""What pretraining hides and asks for: masked nodes, their contexts, molecule descriptors."""

import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmat_hf.data.stored_features import expand_features
from rmat_hf.model.configuration_rmat import (
    BEYOND_CUTOFF,
    DUMMY_NODE_IDX,
    MASK_COLUMN,
    MASKED_BOND_TYPE,
    NO_BOND_TYPE,
)
from rmat_hf.model.losses_rmat import IGNORED_LABEL
from rmat_hf.output_folder import save_json
from rmat_hf.training.objectives.atom_contexts import AtomContextVocabulary, compute_atom_contexts
from rmat_hf.training.objectives.descriptor_quantiles import DescriptorQuantiles

TARGETS_FILE = "pretraining_targets.json"
_CHUNK_SIZE = 256
_NUM_DIGITS = 9  # tell any two float32 apart


@dataclass(frozen=True)
class PretrainingTargets:
    """What the outputs of `RMatForPreTraining` mean; saved beside its weights.

    Args:
        vocabulary (`AtomContextVocabulary`): Classes of the contextual atom prediction.
        quantiles (`DescriptorQuantiles`, *optional*):
            Names and scale of the descriptor labels; `None` if none are learned.
    """

    vocabulary: AtomContextVocabulary
    quantiles: DescriptorQuantiles | None

    def save(self, folder: str | Path) -> None:
        """Write `pretraining_targets.json`."""
        content: dict[str, object] = {"atom_contexts": self.vocabulary.contexts}
        if self.quantiles is not None:
            columns = self.quantiles.quantiles.T
            content["descriptor_quantiles"] = {
                name: [float(f"{value:.{_NUM_DIGITS}g}") for value in column]
                for name, column in zip(self.quantiles.names, columns, strict=True)
            }
        save_json(Path(folder) / TARGETS_FILE, content, indent=None)

    @classmethod
    def load(cls, folder: str | Path) -> "PretrainingTargets":
        """Read `pretraining_targets.json`.

        Raises:
            ValueError: If it is missing or damaged.
        """
        path = Path(folder) / TARGETS_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            vocabulary = AtomContextVocabulary(content["atom_contexts"])
            columns = content.get("descriptor_quantiles")
            quantiles = None
            if columns is not None:
                values = np.array(list(columns.values()), dtype=np.float32).T
                quantiles = DescriptorQuantiles(list(columns), values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Cannot read {TARGETS_FILE} of {str(folder)!r}: {error}. A model has it if "
                "rmat pretrain wrote it; without it pretraining has to start from scratch."
            ) from error
        return cls(vocabulary, quantiles)


def count_atom_contexts(packed: Sequence[bytes]) -> Counter[int]:
    """Return how often each context occurs in molecules, by the keys of `compute_atom_contexts`.

    Args:
        packed (`Sequence[bytes]`): Molecules from `pack_features`.
    """
    counts: Counter[int] = Counter()
    for start in range(0, len(packed), _CHUNK_SIZE):
        batch = expand_features(packed[start : start + _CHUNK_SIZE])
        keys = compute_atom_contexts(batch["node_features"], batch["bond_types"])
        values, numbers = np.unique(keys[keys >= 0], return_counts=True)
        counts.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return counts


def draw_masked_centers(
    packed: Sequence[bytes], attention_mask: np.ndarray, *, mask_ratio: float, seed: Sequence[int]
) -> np.ndarray:
    """Draw the atoms whose context is asked for, at least one in every molecule.

    A molecule's draw depends on the seed and the molecule alone: not on what stands beside it, the
    number of processes or where an interrupted run continues.

    Args:
        packed (`Sequence[bytes]`): The molecules.
        attention_mask (`np.ndarray` of shape `(batch_size, num_nodes)`): Dummy node at index 0.
        mask_ratio (`float`): Chance of each atom.
        seed (`Sequence[int]`): For example the seed of the run and the epoch.

    Returns:
        `np.ndarray` of shape `(batch_size, num_nodes)`, bool; never the dummy node.
    """
    centers = np.zeros(attention_mask.shape, dtype=bool)
    for row, generator in enumerate(_build_generators(packed, seed)):
        num_atoms = int(attention_mask[row].sum()) - 1
        draws = generator.random(num_atoms)
        is_center = draws < mask_ratio
        is_center[draws.argmin()] = True
        centers[row, DUMMY_NODE_IDX + 1 : DUMMY_NODE_IDX + 1 + num_atoms] = is_center
    return centers


def draw_roles(packed: Sequence[bytes], *, seed: Sequence[int]) -> np.ndarray:
    """Return which molecules are masked in joint pretraining, half of them on average.

    Args:
        packed (`Sequence[bytes]`): The molecules.
        seed (`Sequence[int]`): As in [`draw_masked_centers`].

    Returns:
        `np.ndarray` of shape `(batch_size,)`, bool.
    """
    return np.array([generator.random() < 0.5 for generator in _build_generators(packed, seed)])


def _build_generators(
    packed: Sequence[bytes], seed: Sequence[int]
) -> Iterator[np.random.Generator]:
    for molecule in packed:
        yield np.random.default_rng([*seed, zlib.crc32(molecule)])


def mask_contexts(
    node_features: np.ndarray, bond_types: np.ndarray, *, centers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hide the centers, the atoms bonded to them and the bonds between.

    The features of these nodes are replaced by the mask flag, so are the bond types of the pairs
    (i, i), (i, j) and (j, i) of a center i and its neighbor j. Topological and 3D distances stay.

    Args:
        node_features (`np.ndarray` of shape `(batch_size, num_nodes, num_node_features)`):
            As `RMatProcessor` makes them.
        bond_types (`np.ndarray` of shape `(batch_size, num_nodes, num_nodes)`): Likewise.
        centers (`np.ndarray` of shape `(batch_size, num_nodes)`): Bool.

    Returns:
        `node_features` and `bond_types` with the mask; the arguments stay as they are.
    """
    is_bond = bond_types != NO_BOND_TYPE
    masked_nodes = centers | (is_bond & centers[:, None, :]).any(axis=2)
    masked_features = node_features.copy()
    masked_features[masked_nodes] = 0
    masked_features[masked_nodes, MASK_COLUMN] = 1
    is_masked_bond = is_bond & (centers[:, :, None] | centers[:, None, :])
    is_masked_bond |= centers[:, :, None] & np.eye(centers.shape[1], dtype=bool)
    return masked_features, np.where(is_masked_bond, np.uint8(MASKED_BOND_TYPE), bond_types)


def hide_distances(interatomic_distances: np.ndarray, masked_features: np.ndarray) -> np.ndarray:
    """Move masked nodes beyond the cutoff, because a bond length tells elements and bond order.

    Args:
        interatomic_distances (`np.ndarray` of shape `(batch_size, num_nodes, num_nodes)`): In Å.
        masked_features (`np.ndarray` of shape `(batch_size, num_nodes, num_node_features)`):
            From [`mask_contexts`].

    Returns:
        `np.ndarray` of shape `(batch_size, num_nodes, num_nodes)`, float32, in Å.
    """
    is_masked = masked_features[..., MASK_COLUMN] == 1
    is_hidden = is_masked[:, :, None] | is_masked[:, None, :]
    return np.where(is_hidden, np.float32(BEYOND_CUTOFF), interatomic_distances)


def compute_context_labels(
    node_features: np.ndarray,
    bond_types: np.ndarray,
    *,
    centers: np.ndarray,
    vocabulary: AtomContextVocabulary,
) -> np.ndarray:
    """Return the class of the context of every center, -100 for other nodes.

    Args:
        node_features, bond_types, centers: As in [`mask_contexts`], before the mask.
        vocabulary (`AtomContextVocabulary`): Classes of the contexts.

    Returns:
        `np.ndarray` of shape `(batch_size, num_nodes)`, int64.
    """
    classes = vocabulary.encode(compute_atom_contexts(node_features, bond_types))
    return np.where(centers & (classes >= 0), classes, IGNORED_LABEL)
