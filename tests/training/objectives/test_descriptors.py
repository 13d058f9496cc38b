import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import r2_score

from rmat_hf.training.objectives.descriptors import DescriptorObjective, DescriptorQuantiles

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
    "values", [np.zeros((5, 3)), np.array([[1.0, 0.0], [0.0, 1.0]])], ids=["shape", "order"]
)
def test_damaged_quantiles_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no rising quantiles of 2 descriptors"):
        DescriptorQuantiles(["a", "b"], values)


# Metrics

LEARNED = ["MolWt", "TPSA", "RingCount", "qed"]


def build_answers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random labels of 24 molecules, of which half are masked, and logits."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=(24, 4))
    logits = labels + rng.normal(size=labels.shape)
    labels[rng.random(24) < 0.5] = np.nan
    labels[rng.random(labels.shape) < 0.1] = np.nan
    return torch.from_numpy(labels.astype(np.float32)), torch.from_numpy(logits)


def score(*answers: tuple[torch.Tensor, torch.Tensor]) -> dict:
    ramps = np.tile(np.linspace(0, 1, 11)[:, None], (1, 4))
    objective = DescriptorObjective(DescriptorQuantiles(LEARNED, ramps))
    sums = objective.build_sums()
    for labels, logits in answers:
        objective.add_to_sums(sums, logits, labels=labels)
    return objective.compute_metrics(sums)


def test_r2_of_every_descriptor_is_that_of_sklearn_on_all_batches() -> None:
    answers = [build_answers(seed) for seed in range(5)]
    labels = np.concatenate([labels.numpy() for labels, _ in answers])
    values = np.concatenate([logits.numpy() for _, logits in answers])
    known = ~np.isnan(labels)
    expected = {
        name: r2_score(labels[known[:, idx], idx], values[known[:, idx], idx])
        for idx, name in enumerate(LEARNED)
    }
    metrics = score(*answers)
    assert metrics["worst_descriptors"] == pytest.approx(expected, abs=1e-6)
    assert list(metrics["worst_descriptors"]) == sorted(expected, key=expected.__getitem__)
    assert metrics["descriptor_r2"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert min(expected.values()) <= metrics["descriptor_r2_median"] <= max(expected.values())
    error = np.square(values - labels)[known].mean()
    assert metrics["descriptor_loss"] == pytest.approx(error, abs=1e-6)
    assert metrics["num_described_molecules"] == known.sum(0).max()


@pytest.mark.parametrize("value", [torch.nan, 0.25])
def test_a_descriptor_without_labels_or_variance_has_no_r2(value: float) -> None:
    labels, logits = build_answers(0)
    without = score((labels, logits))["worst_descriptors"]
    changed = labels.clone()
    changed[~labels[:, 1].isnan(), 1] = value
    metrics = score((changed, logits))
    assert metrics["worst_descriptors"] == {
        name: r2 for name, r2 in without.items() if name != "TPSA"
    }
    assert np.isfinite([metrics["descriptor_r2"], metrics["descriptor_r2_median"]]).all()
    known = ~changed.isnan()
    error = ((logits - changed)[known] ** 2).mean().item()
    assert metrics["descriptor_loss"] == pytest.approx(error, abs=1e-6)


def test_what_was_never_asked_has_no_metric() -> None:
    labels, logits = build_answers(0)
    assert score() == score((torch.full_like(labels, torch.nan), logits)) == {}
