import numpy as np
import pytest
from scipy.stats import rankdata

from rmat_hf.training.objectives.descriptor_quantiles import DescriptorQuantiles

GENERATOR = np.random.default_rng(0)
NUM_MOLECULES = 4000


@pytest.fixture
def descriptors() -> np.ndarray:
    """Descriptors: continuous, rarely not 0, constant, never known, unknown in every other row."""
    columns = [
        GENERATOR.lognormal(size=NUM_MOLECULES),
        GENERATOR.random(NUM_MOLECULES) < 0.02,
        np.full(NUM_MOLECULES, 3.0),
        np.full(NUM_MOLECULES, np.nan),
        np.where(
            GENERATOR.random(NUM_MOLECULES) < 0.5, np.nan, GENERATOR.normal(size=NUM_MOLECULES)
        ),
    ]
    return np.stack(columns, axis=1).astype(np.float32)


NAMES = ["continuous", "rare", "constant", "unknown", "gaps"]


def test_labels_are_ranks_in_the_corpus(descriptors: np.ndarray) -> None:
    quantiles = DescriptorQuantiles.fit(descriptors, names=NAMES, seed=0)
    labels = quantiles.transform(descriptors[:, [0, 1, 4]])
    ranks = (rankdata(descriptors[:, 0]) - 1) / (NUM_MOLECULES - 1)
    # straight lines between 100 quantiles
    np.testing.assert_allclose(labels[:, 0] / np.sqrt(12) + 0.5, ranks, atol=0.01)
    assert labels[:, 0].var() == pytest.approx(1.0, abs=0.01)


def test_descriptors_that_never_vary_are_left_out(descriptors: np.ndarray) -> None:
    quantiles = DescriptorQuantiles.fit(descriptors, names=NAMES, seed=0)
    assert quantiles.names == ["continuous", "rare", "gaps"]
    with pytest.raises(ValueError, match="No descriptor varies"):
        DescriptorQuantiles.fit(descriptors[:, 2:4], names=NAMES[2:4], seed=0)


def test_a_rare_count_has_a_small_variance(descriptors: np.ndarray) -> None:
    quantiles = DescriptorQuantiles.fit(descriptors, names=NAMES, seed=0)
    labels = quantiles.transform(descriptors[:, [0, 1, 4]])
    assert 0 < labels[:, 1].var() < 0.4


def test_unknown_values_stay_nan_and_do_not_count(descriptors: np.ndarray) -> None:
    quantiles = DescriptorQuantiles.fit(descriptors, names=NAMES, seed=0)
    rows = descriptors[:, [0, 1, 4]].copy()
    rows[0, 0] = np.inf
    labels = quantiles.transform(rows)
    np.testing.assert_array_equal(np.isnan(labels), ~np.isfinite(rows))
    assert np.nanmean(labels[:, 2]) == pytest.approx(0.0, abs=0.02)


def test_values_beyond_the_corpus_take_the_ends(descriptors: np.ndarray) -> None:
    quantiles = DescriptorQuantiles.fit(descriptors, names=NAMES, seed=0)
    rows = np.array([[-1e9] * 3, [1e9] * 3], dtype=np.float32)
    np.testing.assert_allclose(quantiles.transform(rows), [[-np.sqrt(3)] * 3, [np.sqrt(3)] * 3])


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros((5, 3)), "shape"), (np.array([[1.0, 0.0], [0.0, 1.0]]), "do not rise")],
)
def test_damaged_quantiles_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DescriptorQuantiles(["a", "b"], values)
