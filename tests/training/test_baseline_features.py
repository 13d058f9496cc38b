import numpy as np
from rdkit import Chem

from rmat_hf.training.baseline_features import (
    compute_descriptors,
    compute_fingerprints,
    prepare_descriptors,
)


def test_fingerprints_count_and_descriptors_are_finite_or_nan() -> None:
    mols = [Chem.MolFromSmiles(smiles) for smiles in ("CCO", "c1ccccc1", "C")]
    fingerprints = compute_fingerprints(mols)
    assert fingerprints.shape == (3, 2048)
    assert fingerprints[1].max() == 6
    descriptors = compute_descriptors(mols)
    assert descriptors.shape[0] == 3
    assert not np.isinf(descriptors).any()


def test_undefined_descriptors_are_filled_with_the_train_median() -> None:
    descriptors = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0], [np.nan, 2.0, 900.0]])
    prepared = prepare_descriptors(descriptors, train=np.array([0, 1]))
    np.testing.assert_allclose(prepared, [[-1, 0], [1, 0], [0, 8]], atol=1e-12)
