import re
from collections import Counter

import numpy as np
import pytest
import torch
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data.stored_features import expand_features, pack_features
from rmat_hf.model.configuration_rmat import (
    BEYOND_CUTOFF,
    MASK_COLUMN,
    MASKED_BOND_TYPE,
    NO_BOND_TYPE,
)
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.contexts import (
    ELEMENTS,
    MAX_NEIGHBORS,
    AtomContextVocabulary,
    ContextObjective,
    compute_atom_contexts,
    count_atom_contexts,
    describe_context,
    draw_masked_centers,
    hide_distances,
    mask_contexts,
    parse_context,
)

SMILES = [
    *TINY_SMILES,
    "CC(=O)Oc1ccccc1C(=O)O",
    "CCCCCCCCCCCCCCCCCCCC",
    "C[Si](C)(C)OB(O)O",
    "N#Cc1ccc(I)cc1",
]
LONG = "C" * 20


def list_contexts(processor: RMatProcessor, smiles: str) -> list[int]:
    batch = processor(smiles, return_tensors="np")
    return compute_atom_contexts(batch["node_features"], batch["bond_types"])[0].tolist()


def spell_contexts(smiles: str) -> Counter[str]:
    """The contexts of the atoms of a molecule, written from RDKit's objects."""
    contexts: Counter[str] = Counter()

    def spell(atom: Chem.Atom) -> str:
        return atom.GetSymbol() if atom.GetSymbol() in ELEMENTS else "*"

    for atom in Chem.MolFromSmiles(smiles).GetAtoms():
        neighbors = Counter(
            (bond.GetBondType().name.lower(), spell(bond.GetOtherAtom(atom)))
            for bond in atom.GetBonds()
        )
        orders = ["single", "aromatic", "double", "triple"]
        ordered = sorted(neighbors, key=lambda n: (ELEMENTS.index(n[1]), orders.index(n[0])))
        words = ", ".join(f"{neighbors[n]} {n[0]} {n[1]}" for n in ordered)
        contexts[f"{spell(atom)}: {words}".rstrip(": ")] += 1
    return contexts


@pytest.mark.parametrize("smiles", SMILES)
def test_contexts_are_the_counted_elements_and_bonds_around_each_atom(
    processor: RMatProcessor, smiles: str
) -> None:
    keys = [key for key in list_contexts(processor, smiles) if key >= 0]
    assert Counter(map(describe_context, keys)) == spell_contexts(smiles)


@pytest.mark.parametrize("smiles", SMILES)
def test_an_atom_has_one_context_however_the_molecule_is_written(
    processor: RMatProcessor, smiles: str
) -> None:
    expected = Counter(list_contexts(processor, smiles))
    mol = Chem.MolFromSmiles(smiles)
    for text in Chem.MolToRandomSmilesVect(mol, 5, randomSeed=0):
        assert Counter(list_contexts(processor, text)) == expected


def test_dummy_node_and_padding_have_no_context(processor: RMatProcessor) -> None:
    batch = processor(["C", "CCO"], return_tensors="np")
    keys = compute_atom_contexts(batch["node_features"], batch["bond_types"])
    assert (keys >= 0).tolist() == [[False, True, False, False], [False, True, True, True]]


def test_atoms_with_more_neighbors_than_a_key_can_count_have_no_context(
    processor: RMatProcessor,
) -> None:
    batch = processor("CC", return_tensors="np")
    num_nodes = MAX_NEIGHBORS + 3
    nodes = np.repeat(batch["node_features"][:, 1:2], num_nodes, axis=1)
    bonds = np.zeros((1, num_nodes, num_nodes), dtype=np.uint8)
    bonds[0, 0, 1 : MAX_NEIGHBORS + 1] = bonds[0, 1 : MAX_NEIGHBORS + 1, 0] = 1
    keys = compute_atom_contexts(nodes, bonds)[0]
    assert describe_context(int(keys[0])) == f"C: {MAX_NEIGHBORS} single C"
    bonds[0, 0, -1] = bonds[0, -1, 0] = 1
    keys = compute_atom_contexts(nodes, bonds)[0]
    assert keys[0] == -1
    assert (keys[1:] >= 0).all()


def test_the_largest_key_fits_and_comes_back() -> None:
    text = f"*: {MAX_NEIGHBORS} triple *"
    assert parse_context(text) < 2**63
    assert describe_context(parse_context(text)) == text


@pytest.mark.parametrize(
    "text", ["Q", "C: 1 single", "C: 1 double O, 2 single C", "C: 11 single C"]
)
def test_what_is_no_context_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_context(text)


def test_frequent_contexts_have_classes_and_the_others_are_rare() -> None:
    frequent, common, rare = map(
        parse_context, ["C: 2 aromatic C", "O: 1 double C", "Br: 1 single N"]
    )
    vocabulary = AtomContextVocabulary.build({rare: 2, common: 3, frequent: 9, -1: 50}, min_count=3)
    assert vocabulary.contexts == ["C: 2 aromatic C", "O: 1 double C"]
    assert len(vocabulary) == 3
    classes = vocabulary.encode(np.array([rare, common, frequent, -1, 2**62]))
    assert classes.tolist() == [0, 2, 1, -1, 0]
    assert vocabulary.list_elements() == ["rare", "C", "O"]
    again = AtomContextVocabulary(vocabulary.contexts)
    assert again.encode(np.array([common])).tolist() == [2]


def test_a_corpus_without_a_frequent_context_is_refused() -> None:
    with pytest.raises(ValueError, match="--min-context-count"):
        AtomContextVocabulary.build({7: 4}, min_count=5)


# Masks


@pytest.fixture(scope="module")
def packed(processor: RMatProcessor) -> list[bytes]:
    return [pack_features(processor.featurize_compactly(smiles)) for smiles in (*SMILES, LONG)]


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


def test_distances_to_masked_nodes_are_beyond_the_cutoff(
    batch: dict[str, np.ndarray], packed: list[bytes]
) -> None:
    nodes, _ = mask_contexts(batch["node_features"], batch["bond_types"], centers=draw(packed))
    before = batch["interatomic_distances"]
    distances = hide_distances(before, nodes)
    is_masked = nodes[..., MASK_COLUMN] == 1
    is_hidden = is_masked[:, :, None] | is_masked[:, None, :]
    assert (distances[is_hidden] == BEYOND_CUTOFF).all()
    np.testing.assert_array_equal(distances[~is_hidden], before[~is_hidden])


def test_contexts_are_counted_over_all_molecules(
    batch: dict[str, np.ndarray], packed: list[bytes]
) -> None:
    keys = compute_atom_contexts(batch["node_features"], batch["bond_types"])
    counts = count_atom_contexts(packed * 100)
    assert sum(counts.values()) == 100 * (keys >= 0).sum()
    assert counts[int(keys[0, 1])] == 100 * (keys == keys[0, 1]).sum()


# Metrics

CONTEXTS = ["C: 2 single C", "C: 1 single C", "O: 1 single C"]
# the element of each class; class 0 is that of the rare contexts
CLASS_ELEMENTS = np.array(["rare", "C", "C", "O"])


def build_answers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random labels of 24 molecules of 7 nodes, and logits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=(24, 7))
    labels[rng.random(labels.shape) < 0.6] = -100
    logits = rng.normal(size=(24, 7, 4)).astype(np.float32)
    return torch.from_numpy(labels), torch.from_numpy(logits)


def score(*answers: tuple[torch.Tensor, torch.Tensor]) -> dict:
    objective = ContextObjective(AtomContextVocabulary(CONTEXTS))
    sums = objective.build_sums()
    for labels, logits in answers:
        objective.add_to_sums(sums, logits, labels=labels)
    return objective.compute_metrics(sums)


def test_accuracy_and_cross_entropy_are_those_of_all_centers_of_all_batches() -> None:
    answers = [build_answers(seed) for seed in range(5)]
    labels = np.concatenate([labels.numpy() for labels, _ in answers])
    logits = np.concatenate([logits.numpy() for _, logits in answers])
    is_center = labels >= 0
    labels, logits = labels[is_center], logits[is_center].astype(np.float64)
    is_correct = logits.argmax(-1) == labels
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    losses = -np.log(shares[np.arange(len(labels)), labels])

    metrics = score(*answers)
    assert metrics["num_centers"] == len(labels) > 40
    assert metrics["context_accuracy"] == pytest.approx(is_correct.mean(), abs=1e-9)
    assert metrics["context_loss"] == pytest.approx(losses.mean(), abs=1e-6)
    elements = CLASS_ELEMENTS[labels]
    assert metrics["context_accuracy_by_element"] == pytest.approx(
        {element: is_correct[elements == element].mean() for element in ("rare", "C", "O")}
    )


def test_what_was_never_asked_has_no_metric() -> None:
    labels, logits = build_answers(0)
    assert score() == score((torch.full_like(labels, -100), logits)) == {}
    labels[labels == 3] = -100
    assert set(score((labels, logits))["context_accuracy_by_element"]) == {"C", "rare"}
