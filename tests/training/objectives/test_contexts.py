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
    ContextObjective,
    compute_atom_contexts,
    describe_context,
    draw_masked_centers,
    mask_contexts,
)
from rmat_hf.training.pretraining_arguments import PretrainingArguments

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


def fit(packed: list[bytes], processor: RMatProcessor, min_count: int) -> ContextObjective:
    arguments = PretrainingArguments(corpus="c", output_dir="o", min_context_count=min_count)
    return ContextObjective.fit(packed, processor=processor, arguments=arguments)


def test_frequent_contexts_of_the_corpus_have_classes_and_the_others_are_rare(
    packed: list[bytes], processor: RMatProcessor
) -> None:
    counts = sum((spell_contexts(smiles) for smiles in (*SMILES, LONG)), Counter())
    objective = fit(packed, processor, 4)
    assert set(objective.state) == {text for text, count in counts.items() if count >= 4}
    numbers = [counts[text] for text in objective.state]
    assert numbers == sorted(numbers, reverse=True)
    # the sample is counted in chunks
    assert fit(packed * 100, processor, 400).state == objective.state
    classes = {text: idx for idx, text in enumerate(objective.state, start=1)}
    keys = list_contexts(processor, "CCCNBr")
    expected = [-1, *(classes.get(describe_context(key), 0) for key in keys[1:])]
    assert {0, 1} <= set(expected)
    assert objective.classify(np.array([keys])).tolist() == [expected]
    assert objective.describe_head()["size"] == len(objective.state) + 1


def test_a_corpus_without_a_frequent_context_is_refused(
    packed: list[bytes], processor: RMatProcessor
) -> None:
    with pytest.raises(ValueError, match="--min-context-count"):
        fit(packed, processor, 1000)


# Masks


@pytest.fixture(scope="module")
def packed(processor: RMatProcessor) -> list[bytes]:
    return [pack_features(processor.featurize_compactly(smiles)) for smiles in (*SMILES, LONG)]


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


def test_a_draw_depends_on_the_molecule_and_the_seed_alone(packed: list[bytes]) -> None:
    centers = draw(packed)
    alone = draw(packed[-1:])
    np.testing.assert_array_equal(alone[0], centers[-1, : alone.shape[1]])
    np.testing.assert_array_equal(draw(packed[::-1])[::-1], centers)
    assert (draw(packed, seed=(0, 1)) != centers).any()
    assert (draw(packed, seed=(1, 0)) != centers).any()


@pytest.mark.parametrize("hides_distances", [True, False])
def test_centers_their_neighbors_and_the_bonds_between_are_hidden(
    packed: list[bytes], hides_distances: bool
) -> None:
    batch, inputs = expand_features(packed), expand_features(packed)
    nodes, bonds = batch["node_features"], batch["bond_types"]
    centers = draw(packed)
    hidden = mask_contexts(inputs, centers, hides_distances=hides_distances)
    for name, array in batch.items():
        np.testing.assert_array_equal(inputs[name], array)
    is_masked = np.zeros(centers.shape, dtype=bool)
    for row, center_row in enumerate(centers):
        for i in range(nodes.shape[1]):
            neighbors = np.flatnonzero(bonds[row, i] != NO_BOND_TYPE)
            is_masked[row, i] = center_row[i] or center_row[neighbors].any()
            expected = np.zeros_like(nodes[row, i])
            expected[MASK_COLUMN] = 1
            expected = expected if is_masked[row, i] else nodes[row, i]
            np.testing.assert_array_equal(hidden["node_features"][row, i], expected)
            for j in range(nodes.shape[1]):
                is_bond = bonds[row, i, j] != NO_BOND_TYPE
                is_hidden_pair = (is_bond and (center_row[i] or center_row[j])) or (
                    i == j and center_row[i]
                )
                value = MASKED_BOND_TYPE if is_hidden_pair else bonds[row, i, j]
                assert hidden["bond_types"][row, i, j] == value
    assert ("interatomic_distances" in hidden) == hides_distances
    if hides_distances:
        is_hidden = is_masked[:, :, None] | is_masked[:, None, :]
        expected = np.where(is_hidden, BEYOND_CUTOFF, batch["interatomic_distances"])
        np.testing.assert_array_equal(hidden["interatomic_distances"], expected)


# Metrics

CONTEXTS = ["C: 2 single C", "C: 1 single C", "O: 1 single C"]
CLASS_ELEMENTS = np.array(["rare", "C", "C", "O"])


def build_answers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random labels of 24 molecules of 7 nodes, and logits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size=(24, 7))
    labels[rng.random(labels.shape) < 0.6] = -100
    logits = rng.normal(size=(24, 7, 4)).astype(np.float32)
    return torch.from_numpy(labels), torch.from_numpy(logits)


def score(*answers: tuple[torch.Tensor, torch.Tensor]) -> dict:
    objective = ContextObjective(CONTEXTS)
    sums = [objective.compute_sums(logits, labels=labels) for labels, logits in answers]
    return objective.compute_metrics(torch.stack(sums).sum(0))


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
    assert score((torch.full_like(labels, -100), logits)) == {}
    labels[labels == 3] = -100
    assert set(score((labels, logits))["context_accuracy_by_element"]) == {"C", "rare"}
