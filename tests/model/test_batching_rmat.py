"""Padding keeps every feature and refuses what does not fit; the batch is a full BatchFeature."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.model.batching_rmat import (
    NODE_INPUTS,
    Padding,
    RMatBatchFeature,
    build_empty_batch,
    pad_features,
)

NUM_COLUMNS = 5
INPUTS = [name for name in NODE_INPUTS if name != "attention_mask"]


def build_features(num_nodes: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (num_nodes, num_nodes)
    return {
        "node_features": generator.integers(0, 2, (num_nodes, NUM_COLUMNS), dtype=np.uint8),
        "bond_types": generator.integers(0, 33, shape, dtype=np.uint8),
        "topological_distances": generator.integers(0, 255, shape, dtype=np.uint8),
        "interatomic_distances": generator.random(shape, dtype=np.float32),
    }


def slice_row(batch: RMatBatchFeature, name: str, row: int, num_nodes: int) -> np.ndarray:
    num_node_axes = NODE_INPUTS[name][2]
    return batch[name][row][tuple([slice(num_nodes)] * num_node_axes)]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    multiple=st.sampled_from([None, 1, 4]),
)
def test_padding_keeps_every_feature_and_fills_the_rest(
    sizes: list[int], multiple: int | None
) -> None:
    rows = [build_features(size, seed) for seed, size in enumerate(sizes)]
    batch = pad_features(rows, pad_to_multiple_of=multiple)
    num_nodes = batch["node_features"].shape[1]
    assert num_nodes == -(-max(sizes) // (multiple or 1)) * (multiple or 1)
    for row, (features, size) in enumerate(zip(rows, sizes, strict=True)):
        assert batch["attention_mask"][row].tolist() == [1] * size + [0] * (num_nodes - size)
        for name in INPUTS:
            np.testing.assert_array_equal(slice_row(batch, name, row, size), features[name])
            dtype, padding_value, num_node_axes = NODE_INPUTS[name]
            assert batch[name].dtype == dtype
            assert batch[name].shape[1 : num_node_axes + 1] == (num_nodes,) * num_node_axes
            rest = np.ones(batch[name].shape[1:], dtype=bool)
            rest[tuple([slice(size)] * num_node_axes)] = False
            assert (batch[name][row][rest] == padding_value).all()


@pytest.mark.parametrize(
    ("options", "num_nodes"),
    [
        ({}, 5),
        ({"padding": "longest"}, 5),
        ({"padding": "max_length", "max_length": 7}, 7),
        ({"padding": "max_length", "max_length": 7, "pad_to_multiple_of": 8}, 8),
        ({"pad_to_multiple_of": 4}, 8),
    ],
)
def test_padding_option_decides_the_number_of_nodes(
    options: dict[str, Any], num_nodes: int
) -> None:
    batch = pad_features([build_features(3), build_features(5)], **options)
    assert batch["bond_types"].shape == (2, num_nodes, num_nodes)


@pytest.mark.parametrize("padding", [False, "do_not_pad"])
def test_without_padding_every_molecule_keeps_its_size(padding: Padding) -> None:
    batch = pad_features([build_features(3), build_features(5)], padding=padding)
    assert [array.shape for array in batch["bond_types"]] == [(3, 3), (5, 5)]
    assert [mask.tolist() for mask in batch["attention_mask"]] == [[1] * 3, [1] * 5]
    with pytest.raises(ValueError, match=r"3 to 5 nodes .* Pass padding=True, or return_tensors"):
        pad_features([build_features(3), build_features(5)], padding=padding, return_tensors="pt")
    equal = pad_features([build_features(3)] * 2, padding=padding, return_tensors="pt")
    assert equal["bond_types"].shape == (2, 3, 3)


@pytest.mark.parametrize("as_type", [lambda array: array.tolist(), torch.from_numpy])
def test_lists_and_tensors_become_the_same_batch(as_type: Any) -> None:
    rows = [build_features(3), build_features(4)]
    other_rows = [{name: as_type(array) for name, array in row.items()} for row in rows]
    batch, other = pad_features(rows), pad_features(other_rows)
    for name in NODE_INPUTS:
        assert batch[name].dtype == other[name].dtype
        np.testing.assert_array_equal(batch[name], other[name])


def test_unpadded_and_padded_batches_can_be_padded_again() -> None:
    rows = [build_features(3), build_features(4)]
    once = pad_features(rows, padding="max_length", max_length=8)
    from_lists = pad_features(pad_features(rows, padding=False), padding="max_length", max_length=8)
    from_padded = pad_features(pad_features(rows), padding="max_length", max_length=8)
    for name in NODE_INPUTS:
        np.testing.assert_array_equal(from_lists[name], once[name])
        np.testing.assert_array_equal(from_padded[name], once[name])


def test_other_keys_are_carried_along() -> None:
    rows = [build_features(3) | {"labels": [1.0, float("nan")], "smiles": "CC"}] * 2
    batch = pad_features(rows, return_tensors="pt")
    assert batch["labels"].shape == (2, 2)
    assert batch["smiles"] == ["CC", "CC"]


def test_tensors_have_the_dtypes_of_the_arrays() -> None:
    rows = [build_features(3) | {"molecule_descriptors": [1.0, np.nan]}]
    batch = pad_features(rows, return_tensors="pt")
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "node_features": torch.uint8,
        "bond_types": torch.uint8,
        "topological_distances": torch.uint8,
        "interatomic_distances": torch.float32,
        "attention_mask": torch.int64,
        "molecule_descriptors": torch.float32,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": "max_length"}, 'padding="max_length" needs a max_length'),
        ({"max_length": 9}, "nothing else reads it"),
        ({"padding": "max_length", "max_length": 2}, "Row 1 has 5 nodes .* max_length=2"),
        ({"padding": "max_length", "max_length": 0}, "max_length is 0"),
        ({"padding": "all"}, "padding is 'all'. Choose one of"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0"),
        ({"padding": False, "pad_to_multiple_of": 8}, "pad_to_multiple_of needs padding"),
        ({"return_tensors": "tf"}, "tf is not a valid TensorType"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pad_features([build_features(3), build_features(5)], **options)


def test_wrong_features_are_refused() -> None:
    with pytest.raises(ValueError, match="no features to pad"):
        pad_features([])
    with pytest.raises(ValueError, match=r"Row 0 has no bond_types, only \['node_features'\]"):
        pad_features([{"node_features": np.zeros((3, 5))}])
    with pytest.raises(ValueError, match="Row 1 has the keys"):
        pad_features([build_features(3), build_features(3) | {"labels": 1}])
    with pytest.raises(ValueError, match=r"bond_types of row 0 has the shape \(4, 4\)"):
        pad_features([build_features(3) | {"bond_types": np.zeros((4, 4))}])
    with pytest.raises(ValueError, match="does not fit one molecule"):
        pad_features(build_features(3))  # one molecule instead of a list of them


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
@pytest.mark.parametrize("num_descriptors", [0, 2])
def test_empty_batch_has_zero_rows(return_tensors: str | None, num_descriptors: int) -> None:
    empty = build_empty_batch(NUM_COLUMNS, num_descriptors, return_tensors=return_tensors)
    features = build_features(1)
    if num_descriptors:
        features["molecule_descriptors"] = np.zeros(num_descriptors)
    full = pad_features([features], return_tensors=return_tensors)
    assert empty.keys() == full.keys()
    for name, values in empty.items():
        assert values.shape == (0, *full[name].shape[1:])
        assert values.dtype == full[name].dtype


def test_empty_batch_without_padding_has_empty_lists() -> None:
    assert set(map(len, build_empty_batch(NUM_COLUMNS, 0, padding=False).values())) == {0}


# RMatBatchFeature


@pytest.fixture
def batch() -> RMatBatchFeature:
    rows = [build_features(3), build_features(4)]
    batch = pad_features(rows, return_tensors="pt")
    batch.row_indices, batch.skipped_rows = [0, 2], {1: "broken"}
    batch.geometry_sources = ["given", "2d"]
    return batch


def has_attributes(batch: RMatBatchFeature) -> bool:
    return (batch.row_indices, batch.skipped_rows, batch.geometry_sources) == (
        [0, 2],
        {1: "broken"},
        ["given", "2d"],
    )


def test_keys_are_model_inputs_only(batch: RMatBatchFeature) -> None:
    assert list(dict(**batch)) == list(NODE_INPUTS)


def test_attributes_survive_pickling_copying_moving_and_pinning_rules(
    batch: RMatBatchFeature,
) -> None:
    assert has_attributes(pickle.loads(pickle.dumps(batch)))
    assert has_attributes(copy.copy(batch))
    assert has_attributes(copy.deepcopy(batch))
    assert has_attributes(send_to_device(batch, torch.device("cpu")))
    assert has_attributes(batch.to("cpu"))
    restored = pickle.loads(pickle.dumps(batch)).convert_to_tensors("np")
    assert has_attributes(restored)


def test_a_plain_mapping_makes_a_batch_without_attributes() -> None:
    batch = RMatBatchFeature({"bond_types": [1]})
    assert (batch.row_indices, batch.skipped_rows, batch.geometry_sources) == ([], {}, [])


def test_a_dtype_casts_no_distances(batch: RMatBatchFeature) -> None:
    before = batch["interatomic_distances"].clone()
    batch["molecule_descriptors"] = torch.ones(2, 1)
    batch.to(torch.bfloat16).to("cpu", torch.float16)
    assert torch.equal(batch["interatomic_distances"], before)
    assert batch["molecule_descriptors"].dtype == torch.float16
    assert batch["node_features"].dtype == torch.uint8
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
