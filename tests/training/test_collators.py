import datasets
import numpy as np
import pytest
import torch
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.trainer import RMatDataCollator


def featurize(
    processor: RMatProcessor, labels: list[list[float]], smiles: list[str] = TINY_SMILES
) -> datasets.Dataset:
    features = [outcome.features for outcome in featurize_molecules(smiles, processor)]
    return datasets.Dataset.from_dict({"features": features, "labels": labels})


@pytest.mark.parametrize("descriptors", [None, ["MolWt", "TPSA"]])
def test_batch_is_the_one_of_the_processor_with_labels(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    rows = featurize(processor, [[float(i)] for i in range(len(TINY_SMILES))])
    batch = RMatDataCollator(processor)([rows[i] for i in range(len(rows))])
    labels = batch.pop("labels")
    expected = dict(processor(list(map(Chem.CanonSmiles, TINY_SMILES)), return_tensors="pt"))
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert batch[name].dtype == tensor.dtype, name
        assert torch.equal(batch[name], tensor), name
    assert labels.tolist() == [[float(i)] for i in range(len(TINY_SMILES))]


def test_rows_are_padded_to_the_largest_of_their_batch(processor: RMatProcessor) -> None:
    rows = featurize(processor, [[0.0]] * len(TINY_SMILES))
    batch = RMatDataCollator(processor)([rows[2], rows[0]])
    # methane and ethanol, each with its dummy node
    assert batch["attention_mask"].sum(1).tolist() == [2, 4]
    assert batch["node_features"].shape[:2] == (2, 4)


def test_rows_without_the_descriptors_of_the_processor_are_refused() -> None:
    rows = featurize(RMatProcessor(geometry="bounds"), [[0.0]], ["C"])
    collator = RMatDataCollator(RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt"]))
    with pytest.raises(ValueError, match="not featurized with the 1 molecule descriptors"):
        collator(list(rows))


def test_missing_labels_stay_nan_in_float32(processor: RMatProcessor) -> None:
    labels = [[0.1, float("nan")], [float("nan"), 2.0], [float("nan")] * 2]
    rows = featurize(processor, labels, ["CCO", "CCN", "C"])
    batch = RMatDataCollator(processor)(list(rows))
    assert batch["labels"].dtype == torch.float32
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array(labels, dtype=np.float32))
