"""Counts of substructures as labels, compared with RDKit's."""

from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from tiny_pretraining import CORPUS_SMILES

from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.counts import FOLDED_SIZES, CountObjective, count_substructures
from rmat_hf.training.objectives.objective import ObjectiveBatch

PROCESSOR = RMatProcessor(geometry="2d")
# RDKit's own, of the size to which ours are folded
GENERATORS: dict[str, Any] = {
    "ecfp4": rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024),
    "fcfp4": rdFingerprintGenerator.GetMorganGenerator(
        radius=2,
        fpSize=512,
        atomInvariantsGenerator=rdFingerprintGenerator.GetMorganFeatureAtomInvGen(),
    ),
    "atom_pairs": rdFingerprintGenerator.GetAtomPairGenerator(fpSize=1024),
    "torsions": rdFingerprintGenerator.GetTopologicalTorsionGenerator(fpSize=1024),
}


def count_with_rdkit(smiles: str) -> np.ndarray:
    mol = Chem.MolFromSmiles(smiles)
    counts = [GENERATORS[name].GetCountFingerprintAsNumPy(mol) for name in FOLDED_SIZES]
    return np.log1p(np.concatenate(counts))


@pytest.fixture(scope="module")
def objective() -> CountObjective:
    return CountObjective.fit(
        [], processor=PROCESSOR, arguments=None, columns={"smiles": CORPUS_SMILES}
    )


def prepare(objective: CountObjective, smiles: list[str], is_asked: list[bool]) -> np.ndarray:
    batch = ObjectiveBatch([], {}, np.array(is_asked), (0,), PROCESSOR, None, {"smiles": smiles})
    labels, hidden = objective.prepare(batch)
    assert hidden == {}
    return labels


def test_folded_counts_are_those_of_rdkit_at_that_size() -> None:
    smiles = ["CC(=O)Oc1ccccc1C(=O)O", "CCCCCCCCCCCCCCCC", "OCC[N+](C)(C)C"]
    counts = count_substructures(smiles, processor=PROCESSOR)
    for row, text in zip(counts, smiles, strict=True):
        np.testing.assert_allclose(row, count_with_rdkit(text), rtol=1e-6)
    assert np.isnan(count_substructures([None, "C1"], processor=PROCESSOR)).all()


def test_labels_have_mean_0_and_variance_1_in_the_columns_in_use(
    objective: CountObjective,
) -> None:
    counts = np.stack([count_with_rdkit(smiles) for smiles in CORPUS_SMILES])
    used = counts[:, (counts > 0).any(0) & (counts.std(0) > 0)]
    head = objective.describe_head()
    assert head["size"] == used.shape[1] == len(objective.names) > 100
    labels = prepare(objective, CORPUS_SMILES, [True] * len(CORPUS_SMILES))
    expected = np.clip((used - used.mean(0)) / used.std(0), -6, 6)
    np.testing.assert_allclose(labels, expected, atol=1e-4)


def test_who_is_not_asked_has_no_label_and_the_state_gives_the_same_labels(
    objective: CountObjective,
) -> None:
    smiles, asked = CORPUS_SMILES[:3], [True, False, True]
    labels = prepare(objective, smiles, asked)
    assert np.isnan(labels[1]).all() and np.isfinite(labels[[0, 2]]).all()
    again = prepare(CountObjective(objective.state), smiles, asked)
    np.testing.assert_array_equal(again, labels)
    sums = objective.compute_sums(torch.zeros(labels.shape), labels=torch.from_numpy(labels))
    metrics = objective.compute_metrics(sums)
    assert metrics["count_loss"] == pytest.approx(np.nanmean(labels.astype(float) ** 2))
    assert metrics["num_counted_molecules"] == 2
