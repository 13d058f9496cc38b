import json
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY_SMILES

from rmat_hf.data.stored_features import expand_features, pack_features
from rmat_hf.model.configuration_rmat import MASK_COLUMN, MASKED_BOND_TYPE, NO_BOND_TYPE
from rmat_hf.model.losses_rmat import IGNORED_LABEL
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.atom_contexts import AtomContextVocabulary, compute_atom_contexts
from rmat_hf.training.objectives.descriptor_quantiles import DescriptorQuantiles
from rmat_hf.training.objectives.pretraining_targets import (
    PretrainingTargets,
    compute_context_labels,
    count_atom_contexts,
    draw_masked_centers,
    draw_roles,
    mask_contexts,
)

SMILES = [*TINY_SMILES, "CC(=O)Oc1ccccc1C(=O)O", "CCCCCCCCCCCCCCCCCCCC"]


@pytest.fixture(scope="module")
def packed(processor: RMatProcessor) -> list[bytes]:
    return [pack_features(processor.featurize_compactly(smiles)) for smiles in SMILES]


@pytest.fixture(scope="module")
def batch(packed: list[bytes]) -> dict[str, np.ndarray]:
    return expand_features(packed)


def draw(packed: list[bytes], ratio: float = 0.15, seed: tuple[int, ...] = (0, 0)) -> np.ndarray:
    mask = expand_features(packed)["attention_mask"]
    return draw_masked_centers(packed, mask, mask_ratio=ratio, seed=seed)


def test_every_molecule_has_a_center_and_the_dummy_node_is_none(packed: list[bytes]) -> None:
    centers = draw(packed, ratio=1e-9)
    assert centers.sum(axis=1).tolist() == [1] * len(packed)
    assert not centers[:, 0].any()
    everything = draw(packed, ratio=1.0)
    mask = expand_features(packed)["attention_mask"].astype(bool)
    mask[:, 0] = False
    np.testing.assert_array_equal(everything, mask)


def test_the_share_of_centers_is_the_mask_ratio(packed: list[bytes]) -> None:
    numbers = [draw(packed[-1:], seed=(0, epoch)).sum() for epoch in range(300)]
    # at least one in 20 atoms: a little more than .15
    assert np.mean(numbers) / 20 == pytest.approx(0.152, abs=0.015)


def test_a_draw_depends_on_the_molecule_and_the_seed_alone(packed: list[bytes]) -> None:
    centers = draw(packed)
    alone = draw(packed[-1:])
    np.testing.assert_array_equal(alone[0], centers[-1, : alone.shape[1]])
    np.testing.assert_array_equal(draw(packed[::-1])[::-1], centers)
    assert (draw(packed, seed=(0, 1)) != centers).any()
    assert (draw(packed, seed=(1, 0)) != centers).any()


def test_half_of_the_molecules_are_masked_in_joint_pretraining(packed: list[bytes]) -> None:
    roles = np.array([draw_roles(packed, seed=(0, epoch)) for epoch in range(200)])
    assert roles.mean(axis=0).min() > 0.35
    assert roles.mean(axis=0).max() < 0.65


def test_centers_their_neighbors_and_the_bonds_between_are_hidden(
    batch: dict[str, np.ndarray], packed: list[bytes]
) -> None:
    nodes, bonds = batch["node_features"], batch["bond_types"]
    before = nodes.copy(), bonds.copy()
    centers = draw(packed)
    masked_nodes, masked_bonds = mask_contexts(nodes, bonds, centers=centers)
    np.testing.assert_array_equal(nodes, before[0])
    np.testing.assert_array_equal(bonds, before[1])
    for row, center_row in enumerate(centers):
        for i in range(nodes.shape[1]):
            neighbors = np.flatnonzero(bonds[row, i] != NO_BOND_TYPE)
            is_hidden = center_row[i] or center_row[neighbors].any()
            expected = np.zeros_like(nodes[row, i])
            expected[MASK_COLUMN] = 1
            expected = expected if is_hidden else nodes[row, i]
            np.testing.assert_array_equal(masked_nodes[row, i], expected)
            for j in range(nodes.shape[1]):
                is_bond = bonds[row, i, j] != NO_BOND_TYPE
                is_hidden_pair = (is_bond and (center_row[i] or center_row[j])) or (
                    i == j and center_row[i]
                )
                value = MASKED_BOND_TYPE if is_hidden_pair else bonds[row, i, j]
                assert masked_bonds[row, i, j] == value


def test_labels_are_the_contexts_of_the_centers(
    batch: dict[str, np.ndarray], packed: list[bytes]
) -> None:
    vocabulary = AtomContextVocabulary.build(count_atom_contexts(packed), min_count=2)
    centers = draw(packed, ratio=0.5)
    labels = compute_context_labels(
        batch["node_features"], batch["bond_types"], centers=centers, vocabulary=vocabulary
    )
    assert (labels[~centers] == IGNORED_LABEL).all()
    keys = compute_atom_contexts(batch["node_features"], batch["bond_types"])
    np.testing.assert_array_equal(labels[centers], vocabulary.encode(keys[centers]))
    assert {0, 1} <= set(labels[centers].tolist())


def test_contexts_are_counted_over_all_molecules(
    batch: dict[str, np.ndarray], packed: list[bytes]
) -> None:
    keys = compute_atom_contexts(batch["node_features"], batch["bond_types"])
    counts = count_atom_contexts(packed * 100)
    assert sum(counts.values()) == 100 * (keys >= 0).sum()
    assert counts[int(keys[0, 1])] == 100 * (keys == keys[0, 1]).sum()


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_saved_targets_come_back(tmp_path: Path, has_descriptors: bool) -> None:
    values = np.random.default_rng(0).lognormal(size=(50, 2)).astype(np.float32)
    quantiles = DescriptorQuantiles.fit(values, names=["MolWt", "TPSA"], seed=0)
    vocabulary = AtomContextVocabulary(["C: 2 single C", "O"])
    PretrainingTargets(vocabulary, quantiles if has_descriptors else None).save(tmp_path)
    loaded = PretrainingTargets.load(tmp_path)
    assert loaded.vocabulary.contexts == vocabulary.contexts
    if not has_descriptors:
        assert loaded.quantiles is None
        return
    assert loaded.quantiles is not None
    assert loaded.quantiles.names == ["MolWt", "TPSA"]
    np.testing.assert_array_equal(loaded.quantiles.transform(values), quantiles.transform(values))


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"atom_contexts": ["Q"]}', '{"atom_contexts": 3}']
)
def test_missing_or_damaged_targets_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pretraining_targets.json").write_text(content)
    with pytest.raises(ValueError, match=r"Cannot read pretraining_targets\.json"):
        PretrainingTargets.load(tmp_path)


def test_saved_targets_are_plain_words(tmp_path: Path) -> None:
    PretrainingTargets(AtomContextVocabulary(["C: 2 single C"]), None).save(tmp_path)
    text = (tmp_path / "pretraining_targets.json").read_text()
    assert json.loads(text) == {"atom_contexts": ["C: 2 single C"]}
