import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Descriptors
from scipy.stats import rankdata
from sklearn.metrics import r2_score
from tiny_pretraining import CORPUS_SMILES

from rmat_hf.data.stored_features import pack_features, read_molecule_descriptors
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.descriptors import DescriptorObjective
from rmat_hf.training.pretraining_arguments import PretrainingArguments

SMILES = [*(smiles for smiles in CORPUS_SMILES if "N#C" not in smiles), "N#CC", "N#CCO"]
# continuous, nearly always 0, and always 0 in the molecules
NAMES = ["MolWt", "fr_nitrile", "NumRadicalElectrons"]


@pytest.fixture(scope="module")
def packed() -> list[bytes]:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=NAMES)
    return [pack_features(processor.featurize_compactly(smiles)) for smiles in SMILES]


def fit(
    packed: list[bytes], names: list[str] | None = NAMES, scale: str = "ranks"
) -> DescriptorObjective:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=names)
    arguments = PretrainingArguments(corpus="c", output_dir="o", descriptor_scale=scale)
    return DescriptorObjective.fit(packed, processor=processor, arguments=arguments)


def test_labels_are_ranks_in_the_corpus_of_the_descriptors_that_vary(packed: list[bytes]) -> None:
    objective = fit(packed)
    assert objective.names == list(objective.state) == NAMES[:2]
    labels = objective.compute_labels(read_molecule_descriptors(packed)[:, :2])
    weights = [Descriptors.MolWt(Chem.MolFromSmiles(smiles)) for smiles in SMILES]
    ranks = (rankdata(weights) - 1) / (len(weights) - 1)
    # straight lines between 100 quantiles
    np.testing.assert_allclose(labels[:, 0] / np.sqrt(12) + 0.5, ranks, atol=0.02)
    assert labels[:, 0].var() == pytest.approx(1.0, abs=0.05)
    # a rare count has a small part in the loss
    assert 0 < labels[:, 1].var() < 0.4
    again = DescriptorObjective(objective.state)
    np.testing.assert_array_equal(
        again.compute_labels(read_molecule_descriptors(packed)[:, :2]), labels
    )


def test_standardized_labels_give_a_rare_count_its_weight_and_end_at_6(
    packed: list[bytes],
) -> None:
    objective = fit(packed, scale="standardized")
    values = read_molecule_descriptors(packed)[:, :2].astype(float)
    expected = (values - values.mean(0)) / values.std(0)
    np.testing.assert_allclose(objective.compute_labels(values), expected.clip(-6, 6), atol=1e-5)
    beyond = objective.compute_labels(np.array([[1e9, np.nan], [-np.inf, -1e9]]))
    np.testing.assert_array_equal(beyond, [[6, np.nan], [np.nan, -6]])
    assert objective.describe_head()["loss"] == "huber"
    again = DescriptorObjective(objective.state)
    np.testing.assert_array_equal(again.compute_labels(values), objective.compute_labels(values))
    # its metric is the loss that is learned by: 1 - 1/2 at an error of 1
    logits = torch.ones(3, 2)
    metrics = again.compute_metrics(again.compute_sums(logits, labels=torch.zeros(3, 2)))
    assert metrics["descriptor_loss"] == 0.5


def test_unknown_values_stay_nan_and_those_beyond_the_corpus_take_the_ends(
    packed: list[bytes],
) -> None:
    rows = np.array([[-1e9, -1e9], [1e9, 1e9], [np.inf, np.nan]], dtype=np.float32)
    expected = [[-np.sqrt(3)] * 2, [np.sqrt(3)] * 2, [np.nan] * 2]
    np.testing.assert_allclose(fit(packed).compute_labels(rows), expected)


@pytest.mark.parametrize(
    "state", [{"a": [0.0, 1.0], "b": [1.0, 0.0]}, {"a": 3.0}, {"a": [], "b": [1]}]
)
def test_damaged_quantiles_are_refused(state: dict) -> None:
    with pytest.raises(ValueError):
        DescriptorObjective(state)


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
    objective = DescriptorObjective({name: [0.0, 0.5, 1.0] for name in LEARNED})
    sums = [objective.compute_sums(logits, labels=labels) for labels, logits in answers]
    return objective.compute_metrics(torch.stack(sums).sum(0))


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
    assert score((torch.full_like(labels, torch.nan), logits)) == {}
