"""Features of single molecules → one padded batch. Knows no chemistry."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import TensorType

from .configuration_rmat import BEYOND_CUTOFF, NO_BOND_TYPE, UNREACHABLE_DISTANCE

MASK_INPUT = "attention_mask"

Padding = bool | Literal["longest", "max_length", "do_not_pad"]

# Type, padding value and number of node axes of every model input that has nodes.
NODE_INPUTS: dict[str, tuple[type[np.generic], float, int]] = {
    "node_features": (np.uint8, 0, 1),
    "bond_types": (np.uint8, NO_BOND_TYPE, 2),
    "topological_distances": (np.uint8, UNREACHABLE_DISTANCE, 2),
    "interatomic_distances": (np.float32, BEYOND_CUTOFF, 2),
    MASK_INPUT: (np.int64, 0, 1),
}


class RMatBatchFeature(BatchFeature):
    """Model inputs of a batch of molecules, and where they come from.

    The keys are model inputs only, so `model(**batch)` works. The rest are attributes.

    Args:
        row_indices (`Sequence[int]`, *optional*):
            Position in the call's input of every molecule in the batch.
        skipped_rows (`Mapping[int, str]`, *optional*):
            Position and reason of every molecule left out.
        geometry_sources (`Sequence[str]`, *optional*):
            Origin of the distances of every molecule in the batch: `"given"`, the conformer
            method, `"bounds"`, `"2d"`, or e.g. `"bounds (step down: <reason>)"`.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        tensor_type: str | TensorType | None = None,
        *,
        row_indices: Sequence[int] = (),
        skipped_rows: Mapping[int, str] | None = None,
        geometry_sources: Sequence[str] = (),
    ) -> None:
        super().__init__(dict(data or {}), tensor_type)
        self.row_indices = list(row_indices)
        self.skipped_rows = dict(skipped_rows or {})
        self.geometry_sources = list(geometry_sources)

    # The base class pickles the keys only.
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def to(self, *args: Any, **kwargs: Any) -> "RMatBatchFeature":
        """Move the tensors; a dtype casts no distances, half precision is too coarse for them."""
        distances = self.data.get("interatomic_distances")
        super().to(*args, **kwargs)
        if isinstance(distances, torch.Tensor):
            device = self.data["interatomic_distances"].device
            self.data["interatomic_distances"] = distances.to(device)
        return self


def pad_features(
    features: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
    *,
    padding: Padding = True,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    return_tensors: str | TensorType | None = None,
) -> RMatBatchFeature:
    """Stack the features of molecules into one batch; see [`RMatProcessor.pad`].

    Args:
        features (`Sequence[Mapping[str, np.ndarray]]`):
            One entry per molecule, at least one, or one list per key.
        padding (`bool` or `str`, *optional*, defaults to `True`):
            `True` or `"longest"`, `"max_length"`, `False` or `"do_not_pad"`.
        max_length (`int`, *optional*):
            Number of nodes for `padding="max_length"`.
        pad_to_multiple_of (`int`, *optional*):
            Number of which the number of nodes is a multiple.
        return_tensors (`str`, *optional*):
            `"pt"` for tensors, `"np"` for arrays; by default arrays too.

    Returns:
        `RMatBatchFeature`: the features with a batch axis in front, and `attention_mask`
        `(batch_size, num_nodes)`, int64.
    """
    validate_padding(
        padding=padding,
        max_length=max_length,
        pad_to_multiple_of=pad_to_multiple_of,
        return_tensors=return_tensors,
    )
    rows = _build_rows(features)
    sizes = [len(row["node_features"]) for row in rows]
    is_padded = padding not in (False, "do_not_pad")
    if not is_padded and return_tensors is not None and len(set(sizes)) > 1:
        raise ValueError(
            f"Molecules of {min(sizes)} to {max(sizes)} nodes do not fit one tensor without "
            "padding. Pass padding=True, or return_tensors=None for a list of arrays."
        )
    num_nodes = _compute_num_nodes(
        sizes, max_length=max_length, pad_to_multiple_of=pad_to_multiple_of
    )
    batch: dict[str, Any] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if is_padded and name in NODE_INPUTS:
            batch[name] = _pad_and_stack(values, name=name, num_nodes=num_nodes)
        elif is_padded and name == "molecule_descriptors":
            batch[name] = np.stack(values)
        else:
            batch[name] = values
    return RMatBatchFeature(batch, return_tensors)


def build_empty_batch(
    num_node_features: int, num_molecule_descriptors: int, **padding_options: Any
) -> RMatBatchFeature:
    """Return what `pad_features` makes of no molecules: the same keys, with zero rows."""
    features: dict[str, Any] = {name: np.zeros((1, 1)) for name in NODE_INPUTS}
    features["node_features"] = np.zeros((1, num_node_features))
    features[MASK_INPUT] = np.ones(1)
    if num_molecule_descriptors:
        features["molecule_descriptors"] = np.zeros(num_molecule_descriptors)
    batch = pad_features([features], **padding_options)
    batch.data = {name: values[:0] for name, values in batch.items()}
    return batch


def validate_padding(
    *,
    padding: Padding,
    max_length: int | None,
    pad_to_multiple_of: int | None,
    return_tensors: str | TensorType | None,
) -> None:
    """Raise `ValueError` if the padding options name something that does not exist."""
    choices = (True, False, *get_args(get_args(Padding)[1]))
    if padding not in choices:
        raise ValueError(f"padding is {padding!r}. Choose one of {list(choices)}.")
    if return_tensors is not None:
        TensorType(return_tensors)
    if (padding == "max_length") != (max_length is not None):
        raise ValueError(
            f'max_length is {max_length!r} and padding is {padding!r}. padding="max_length" needs '
            "a max_length, and nothing else reads it: molecules are never cut."
        )
    if pad_to_multiple_of is not None and padding in (False, "do_not_pad"):
        raise ValueError("pad_to_multiple_of needs padding. Pass padding=True.")
    for name, value in (("max_length", max_length), ("pad_to_multiple_of", pad_to_multiple_of)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}. Choose a positive integer.")


def _build_rows(
    features: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]],
) -> list[dict[str, Any]]:
    """Return one dict per molecule: known inputs as arrays, other keys as they are."""
    if isinstance(features, Mapping):
        names = list(features)
        lists = [features[name] for name in names]
        features = [dict(zip(names, values, strict=True)) for values in zip(*lists, strict=True)]
    if not features:
        raise ValueError("There are no features to pad. Pass those of one molecule at least.")
    rows = []
    for idx, feature in enumerate(features):
        if feature.keys() != features[0].keys():
            raise ValueError(
                f"Row {idx} has the keys {sorted(feature)}, row 0 has {sorted(features[0])}. "
                "Featurize all rows with the same processor."
            )
        rows.append(_build_row(feature, idx=idx))
    return rows


def _build_row(feature: Mapping[str, Any], *, idx: int) -> dict[str, Any]:
    if missing := [name for name in NODE_INPUTS if name not in feature and name != MASK_INPUT]:
        raise ValueError(
            f"Row {idx} has no {missing[0]}, only {sorted(feature)}. Pass what "
            "RMatProcessor.featurize returns."
        )
    num_nodes = len(feature["node_features"])
    row = dict(feature)
    row.setdefault(MASK_INPUT, np.ones(num_nodes))
    for name, (dtype, _, num_node_axes) in NODE_INPUTS.items():
        row[name] = np.asarray(row[name], dtype=dtype)
        node_axes = row[name].shape[:num_node_axes]
        if row[name].ndim != (1 if name == MASK_INPUT else 2) or set(node_axes) != {num_nodes}:
            raise ValueError(
                f"{name} of row {idx} has the shape {row[name].shape}, which does not fit one "
                f"molecule of {num_nodes} nodes. Pass what RMatProcessor.featurize returns."
            )
    if "molecule_descriptors" in row:
        row["molecule_descriptors"] = np.asarray(row["molecule_descriptors"], dtype=np.float32)
    return row


def _compute_num_nodes(
    sizes: Sequence[int], *, max_length: int | None, pad_to_multiple_of: int | None
) -> int:
    num_nodes = max(sizes) if max_length is None else max_length
    if max(sizes) > num_nodes:
        raise ValueError(
            f"Row {sizes.index(max(sizes))} has {max(sizes)} nodes (one is the dummy node), more "
            f"than max_length={max_length}. Raise max_length or drop the row."
        )
    multiple = pad_to_multiple_of or 1
    return -(-num_nodes // multiple) * multiple


def _pad_and_stack(arrays: Sequence[np.ndarray], *, name: str, num_nodes: int) -> np.ndarray:
    dtype, padding_value, num_node_axes = NODE_INPUTS[name]
    shape = (len(arrays), *[num_nodes] * num_node_axes, *arrays[0].shape[num_node_axes:])
    padded = np.full(shape, padding_value, dtype=dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return padded
