from collections import Counter

import numpy as np
import pytest
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.atom_contexts import (
    ELEMENTS,
    MAX_NEIGHBORS,
    AtomContextVocabulary,
    compute_atom_contexts,
    describe_context,
    parse_context,
)

SMILES = [*TINY_SMILES, "CC(=O)Oc1ccccc1C(=O)O", "C[Si](C)(C)OB(O)O", "N#Cc1ccc(I)cc1"]


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
    with pytest.raises(ValueError, match="no atom context"):
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
    with pytest.raises(ValueError, match="occurs 5 times"):
        AtomContextVocabulary.build({7: 4}, min_count=5)


def test_a_context_must_not_be_twice_in_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="twice"):
        AtomContextVocabulary(["C", "O", "C"])
