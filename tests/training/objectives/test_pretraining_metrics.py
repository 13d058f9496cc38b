import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from rmat_hf.training.objectives.atom_contexts import AtomContextVocabulary
from rmat_hf.training.objectives.descriptor_quantiles import DescriptorQuantiles
from rmat_hf.training.objectives.pretraining_metrics import PretrainingMetrics
from rmat_hf.training.objectives.pretraining_targets import PretrainingTargets

CONTEXTS = ["C: 2 single C", "C: 1 single C", "O: 1 single C"]
# the element of each class; class 0 is that of the rare contexts
ELEMENTS = ["rare", "C", "C", "O"]
DESCRIPTORS = ["MolWt", "TPSA", "RingCount", "qed"]
TARGETS = PretrainingTargets(
    AtomContextVocabulary(CONTEXTS),
    DescriptorQuantiles(DESCRIPTORS, np.tile(np.linspace(0, 1, 11)[:, None], (1, 4))),
)


def build_batch(seed: int, num_molecules: int = 24) -> tuple[dict, dict]:
    """Random labels and outputs; half of the molecules have contexts, the others descriptors."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=(num_molecules, 7))
    labels[rng.random(labels.shape) < 0.6] = -100
    descriptors = rng.normal(size=(num_molecules, 4))
    is_masked = rng.random(num_molecules) < 0.5
    labels[~is_masked] = -100
    descriptors[is_masked] = np.nan
    descriptors[rng.random(descriptors.shape) < 0.1] = np.nan
    inputs = {"labels": labels, "descriptor_labels": descriptors.astype(np.float32)}
    outputs = {
        "context_logits": rng.normal(size=(num_molecules, 7, 4)).astype(np.float32),
        "descriptor_logits": (np.nan_to_num(descriptors) + rng.normal(size=descriptors.shape)),
    }
    return convert(inputs), convert(outputs)


def convert(arrays: dict) -> dict:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def score(batches: list[tuple[dict, dict]]) -> dict:
    metrics = PretrainingMetrics(TARGETS)
    for inputs, outputs in batches:
        metrics.update(inputs, outputs)
    return metrics.compute()


def join(batches: list[tuple[dict, dict]], place: int, name: str) -> np.ndarray:
    return np.concatenate([batch[place][name].numpy() for batch in batches])


def test_accuracy_and_cross_entropy_are_those_of_all_centers_of_all_batches() -> None:
    batches = [build_batch(seed) for seed in range(5)]
    labels, logits = join(batches, 0, "labels"), join(batches, 1, "context_logits")
    is_center = labels >= 0
    labels, logits = labels[is_center], logits[is_center].astype(np.float64)
    is_correct = logits.argmax(-1) == labels
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(shares[np.arange(len(labels)), labels])

    metrics = score(batches)
    assert metrics["num_centers"] == len(labels) > 40
    assert metrics["context_accuracy"] == pytest.approx(is_correct.mean(), abs=1e-9)
    assert metrics["context_loss"] == pytest.approx(losses.mean(), abs=1e-6)
    elements = np.array(ELEMENTS)[labels]
    assert metrics["context_accuracy_by_element"] == pytest.approx(
        {element: is_correct[elements == element].mean() for element in set(ELEMENTS)}, abs=1e-9
    )


def test_r2_of_every_descriptor_is_that_of_sklearn_on_all_batches() -> None:
    batches = [build_batch(seed) for seed in range(5)]
    labels, values = join(batches, 0, "descriptor_labels"), join(batches, 1, "descriptor_logits")
    known = ~np.isnan(labels)
    expected = {
        name: r2_score(labels[known[:, idx], idx], values[known[:, idx], idx])
        for idx, name in enumerate(DESCRIPTORS)
    }
    metrics = score(batches)
    assert metrics["worst_descriptors"] == pytest.approx(expected, abs=1e-6)
    assert list(metrics["worst_descriptors"]) == sorted(expected, key=expected.__getitem__)
    assert metrics["descriptor_r2"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert min(expected.values()) <= metrics["descriptor_r2_median"] <= max(expected.values())
    error = np.square(values - labels)[known].mean()
    assert metrics["descriptor_loss"] == pytest.approx(error, abs=1e-6)
    assert metrics["num_described_molecules"] == known.sum(0).max()
    assert metrics["loss"] == metrics["context_loss"] + metrics["descriptor_loss"]


@pytest.mark.parametrize("cut", [1, 2])
def test_reduced_sums_of_two_processes_give_the_metrics_of_one(cut: int) -> None:
    batches = [build_batch(seed) for seed in range(4)]
    first, second = PretrainingMetrics(TARGETS), PretrainingMetrics(TARGETS)
    for inputs, outputs in batches[:cut]:
        first.update(inputs, outputs)
    for inputs, outputs in batches[cut:]:
        second.update(inputs, outputs)
    others = iter([second.contexts, second.descriptors])
    first.reduce(lambda sums: sums + next(others))
    reduced, whole = first.compute(), score(batches)
    assert list(reduced) == list(whole)
    for name, value in whole.items():
        assert reduced[name] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("value", "is_known"), [(np.nan, False), (0.25, True)])
def test_a_descriptor_without_labels_or_variance_has_no_r2(value: float, is_known: bool) -> None:
    inputs, outputs = build_batch(0)
    without = score([(inputs, outputs)])
    inputs["descriptor_labels"] = inputs["descriptor_labels"].clone()
    is_labeled = ~inputs["descriptor_labels"].isnan()
    inputs["descriptor_labels"][is_labeled[:, 1], 1] = value
    metrics = score([(inputs, outputs)])
    names = set(metrics["worst_descriptors"])
    assert names == {"MolWt", "RingCount", "qed"}
    assert {without["worst_descriptors"][name] for name in names} == set(
        metrics["worst_descriptors"].values()
    )
    assert np.isfinite(metrics["descriptor_r2"]) and np.isfinite(metrics["descriptor_loss"])
    assert np.isfinite(metrics["descriptor_r2_median"])
    labels = inputs["descriptor_labels"].numpy()
    known = ~np.isnan(labels)
    assert known[:, 1].any() == is_known
    error = np.square(outputs["descriptor_logits"].numpy() - labels)[known].mean()
    assert metrics["descriptor_loss"] == pytest.approx(error, abs=1e-6)


def test_a_task_without_labels_is_left_out() -> None:
    inputs, outputs = build_batch(0)
    no_centers = inputs | {"labels": torch.full_like(inputs["labels"], -100)}
    metrics = score([(no_centers, outputs)])
    assert metrics["loss"] == metrics["descriptor_loss"]
    assert not [name for name in metrics if "context" in name or "centers" in name]
    metrics = score([({"labels": inputs["labels"]}, outputs)])
    assert metrics["loss"] == metrics["context_loss"]
    assert not [name for name in metrics if "descri" in name]
    assert score([]) == {}


def test_targets_without_descriptors_are_scored() -> None:
    metrics = PretrainingMetrics(PretrainingTargets(TARGETS.vocabulary, None))
    inputs, outputs = build_batch(0)
    metrics.update({"labels": inputs["labels"]}, outputs)
    assert 0 <= metrics.compute()["context_accuracy"] <= 1


def test_centers_of_an_element_that_does_not_occur_have_no_accuracy() -> None:
    inputs, outputs = build_batch(0)
    inputs["labels"][inputs["labels"] == ELEMENTS.index("O")] = -100
    accuracies = score([(inputs, outputs)])["context_accuracy_by_element"]
    assert set(accuracies) == {"C", "rare"}
