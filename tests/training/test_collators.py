import datasets
import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Descriptors
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.data.featurization import featurize_dataset
from rmat_hf.data.stored_features import (
    expand_features,
    pack_features,
    read_molecule_descriptors,
)
from rmat_hf.model.configuration_rmat import BEYOND_CUTOFF, MASK_COLUMN, RMatConfig
from rmat_hf.model.modeling_rmat import RMatForPreTraining, RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.collators import PretrainingCollator, RMatDataCollator
from rmat_hf.training.objectives.atom_contexts import AtomContextVocabulary
from rmat_hf.training.objectives.descriptor_quantiles import DescriptorQuantiles
from rmat_hf.training.objectives.pretraining_targets import PretrainingTargets, count_atom_contexts
from rmat_hf.training.pretraining_batches import PretrainingBatch


def featurize(
    processor: RMatProcessor, labels: list[list[float]], smiles: list[str] = TINY_SMILES
) -> datasets.Dataset:
    columns = {"row": list(range(len(smiles))), "smiles": smiles, "labels": labels}
    return featurize_dataset(datasets.Dataset.from_dict(columns), processor)[0]


@pytest.mark.parametrize("descriptors", [None, ["MolWt", "TPSA"]])
def test_batch_is_the_one_of_the_processor_with_labels(descriptors: list[str] | None) -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=descriptors)
    rows = featurize(processor, [[float(i)] for i in range(len(TINY_SMILES))])
    batch = RMatDataCollator(processor)([rows[i] for i in range(len(rows))])
    labels = batch.pop("labels")
    expected = dict(processor(list(map(Chem.CanonSmiles, TINY_SMILES)), return_tensors="pt"))
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert batch[name].dtype == tensor.dtype, name
        assert torch.equal(batch[name], tensor), name
    assert labels.tolist() == [[float(i)] for i in range(len(TINY_SMILES))]


def test_rows_are_padded_to_the_largest_of_their_batch(processor: RMatProcessor) -> None:
    rows = featurize(processor, [[0.0]] * len(TINY_SMILES))
    batch = RMatDataCollator(processor)([rows[2], rows[0]])
    # methane and ethanol, each with its dummy node
    assert batch["attention_mask"].sum(1).tolist() == [2, 4]
    assert batch["node_features"].shape[:2] == (2, 4)


def test_rows_without_the_descriptors_of_the_processor_are_refused() -> None:
    rows = featurize(RMatProcessor(geometry="bounds"), [[0.0]], ["C"])
    collator = RMatDataCollator(RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt"]))
    with pytest.raises(ValueError, match="not featurized with the 1 molecule descriptors"):
        collator(list(rows))


def test_missing_labels_stay_nan_in_float32(processor: RMatProcessor) -> None:
    labels = [[0.1, float("nan")], [float("nan"), 2.0], [float("nan")] * 2]
    rows = featurize(processor, labels, ["CCO", "CCN", "C"])
    batch = RMatDataCollator(processor)(list(rows))
    assert batch["labels"].dtype == torch.float32
    np.testing.assert_array_equal(batch["labels"].numpy(), np.array(labels, dtype=np.float32))


def test_model_takes_the_batch_and_ignores_missing_labels(
    processor: RMatProcessor, tiny_model: RMatForSequenceClassification
) -> None:
    rows = featurize(processor, [[1.0], [float("nan")], [3.0]], ["CCO", "CCN", "C"])
    output = tiny_model(**RMatDataCollator(processor)(list(rows)))
    known = output.logits[[0, 2]] - torch.tensor([[1.0], [3.0]])
    torch.testing.assert_close(output.loss, (known**2).mean(), rtol=1e-5, atol=1e-6)


NAMES = ["MolWt", "TPSA", "MolLogP"]
CORPUS = [*TINY_SMILES, "CC(=O)Oc1ccccc1C(=O)O", "OCCN1CCCC1", "CCCCCC", "c1ccncc1Br"]


@pytest.fixture(scope="module")
def corpus_processor() -> RMatProcessor:
    return RMatProcessor(geometry="bounds", molecule_descriptors=["TPSA", *NAMES[:1], "MolLogP"])


@pytest.fixture(scope="module")
def corpus(corpus_processor: RMatProcessor) -> list[bytes]:
    return [pack_features(corpus_processor.featurize_compactly(smiles)) for smiles in CORPUS]


@pytest.fixture(scope="module")
def targets(corpus: list[bytes]) -> PretrainingTargets:
    descriptors = read_molecule_descriptors(corpus)[:, [1, 0, 2]]
    return PretrainingTargets(
        AtomContextVocabulary.build(count_atom_contexts(corpus), min_count=1),
        DescriptorQuantiles.fit(descriptors, names=NAMES, seed=0),
    )


def collate(
    corpus: list[bytes],
    processor: RMatProcessor,
    targets: PretrainingTargets,
    *,
    epoch: int = 0,
    contexts: bool = True,
    descriptors: bool = True,
    hides_distances: bool = False,
) -> dict[str, torch.Tensor]:
    collator = PretrainingCollator(
        processor,
        targets,
        contexts=contexts,
        descriptors=descriptors,
        mask_ratio=0.3,
        hides_distances=hides_distances,
        seed=0,
    )
    return collator([PretrainingBatch(epoch, corpus)])


def test_contexts_alone_mask_every_molecule(
    corpus: list[bytes], corpus_processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    batch = collate(corpus, corpus_processor, targets, descriptors=False)
    assert "descriptor_labels" not in batch
    assert "molecule_descriptors" not in batch
    assert ((batch["labels"] >= 0).sum(1) > 0).all()
    assert (batch["node_features"][..., MASK_COLUMN].sum(1) > 0).all()


def test_descriptors_alone_mask_nothing(
    corpus: list[bytes], corpus_processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    batch = collate(corpus, corpus_processor, targets, contexts=False)
    assert "labels" not in batch
    whole = expand_features(corpus)
    del whole["molecule_descriptors"]
    for name, array in whole.items():
        np.testing.assert_array_equal(batch[name].numpy(), array)
    assert batch["descriptor_labels"].shape == (len(CORPUS), 3)
    # the columns follow the names of the targets, not those of the corpus
    weights = [Descriptors.MolWt(Chem.MolFromSmiles(smiles)) for smiles in CORPUS]
    assert batch["descriptor_labels"][:, 0].argsort().tolist() == np.argsort(weights).tolist()


def test_jointly_a_molecule_is_asked_for_contexts_or_descriptors(
    corpus: list[bytes], corpus_processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    seen = set()
    for epoch in range(8):
        batch = collate(corpus, corpus_processor, targets, epoch=epoch)
        has_contexts = (batch["labels"] >= 0).any(1)
        is_masked = batch["node_features"][..., MASK_COLUMN].any(1)
        has_descriptors = ~batch["descriptor_labels"].isnan().any(1)
        assert torch.equal(has_contexts, ~has_descriptors)
        assert torch.equal(has_contexts, is_masked)
        seen.add(tuple(has_contexts.tolist()))
    assert len(seen) > 1


def test_masks_follow_from_epoch_and_molecule(
    corpus: list[bytes], corpus_processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    batch = collate(corpus, corpus_processor, targets)
    again = collate(corpus[::-1], corpus_processor, targets)
    for name, values in batch.items():
        torch.testing.assert_close(again[name].flip(0), values, equal_nan=True, rtol=0, atol=0)
    other = collate(corpus, corpus_processor, targets, epoch=1)
    assert not torch.equal(other["labels"], batch["labels"])


def test_distances_of_masked_nodes_are_hidden_if_asked(
    corpus: list[bytes], corpus_processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    visible = collate(corpus, corpus_processor, targets)
    hidden = collate(corpus, corpus_processor, targets, hides_distances=True)
    is_masked = visible["node_features"][..., MASK_COLUMN] == 1
    is_hidden = is_masked[:, :, None] | is_masked[:, None, :]
    assert is_hidden.any()
    distances = hidden.pop("interatomic_distances")
    assert (distances[is_hidden] == BEYOND_CUTOFF).all()
    before = visible.pop("interatomic_distances")
    assert torch.equal(distances[~is_hidden], before[~is_hidden])
    for name, values in visible.items():
        torch.testing.assert_close(hidden[name], values, equal_nan=True, rtol=0, atol=0)


def test_model_learns_from_the_batch(
    corpus: list[bytes], corpus_processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    sizes = {"num_atom_contexts": len(targets.vocabulary), "num_descriptor_labels": 3}
    model = RMatForPreTraining(RMatConfig(**{**TINY_ARCHITECTURE, **sizes}))
    output = model(**collate(corpus, corpus_processor, targets))
    assert output.context_loss.item() == pytest.approx(np.log(len(targets.vocabulary)), rel=0.5)
    assert torch.equal(output.loss, output.context_loss + output.descriptor_loss)


def test_a_corpus_without_the_descriptors_is_refused(
    corpus_processor: RMatProcessor, processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    with pytest.raises(ValueError, match=r"no descriptor 'MolWt' \(3 are missing\)"):
        collate([], processor, targets)
    contexts_only = PretrainingTargets(targets.vocabulary, None)
    with pytest.raises(ValueError, match="Learn contexts alone"):
        collate([], corpus_processor, contexts_only)


def test_molecules_without_descriptors_are_refused(
    corpus_processor: RMatProcessor, processor: RMatProcessor, targets: PretrainingTargets
) -> None:
    bare = [pack_features(processor.featurize_compactly("CCO"))]
    with pytest.raises(ValueError, match="come without descriptors"):
        collate(bare, corpus_processor, targets)
