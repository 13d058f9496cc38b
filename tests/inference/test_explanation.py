"""Explanations: what is taken out is what is said, whatever the order, the model and the batch."""

import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from rdkit import Chem
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf import (
    RMatEnsembleForSequenceClassification,
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatProcessor,
    compute_attention_maps,
    explain,
    featurize_dataset,
    find_counterfactuals,
    fit_kernel_head,
    predict,
)
from rmat_hf.errors import UserError
from rmat_hf.inference.attribution import METHODS, FeaturizedMol, list_environments
from rmat_hf.inference.explanation import PARTS, Contributions, Explanation
from rmat_hf.inference.pictures import draw_contributions, draw_pairs
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import (
    FINGERPRINTS,
    compute_fingerprint_counts,
    compute_molecule_descriptors,
)

SMILES = "CC(=O)Nc1ccc(O)cc1"
# float32 sums, of outputs of about 1
TOLERANCE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def build_model(seed: int = 0, **fields: Any) -> RMatForSequenceClassification:
    """A tiny model on which every part of a molecule has a say."""
    torch.manual_seed(seed)
    options = {"num_labels": 1, "problem_type": "regression", "initializer_range": 0.5, **fields}
    return RMatForSequenceClassification(RMatConfig(**TINY_ARCHITECTURE, **options)).eval()


def explain_one(model: Any, molecule: Any, processor: RMatProcessor, **options: Any) -> Explanation:
    found = explain(model, [molecule], processor=processor, **options)
    assert found.errors == [None]
    assert found[0] is not None
    return found[0]


def test_a_dropped_atom_is_one_that_nothing_sees(processor: RMatProcessor) -> None:
    model = build_model(label_mean=[2.0], label_std=[3.0])
    found = explain_one(model, SMILES, processor, method="drop", by=("fragment",))
    mol = Chem.MolFromSmiles(SMILES)
    batch = dict(processor([mol], return_tensors="pt"))
    whole = model(**batch).logits.item()
    assert found.prediction == pytest.approx(whole, abs=1e-5)
    for atom in range(mol.GetNumAtoms()):
        mask = batch["attention_mask"].clone()
        mask[0, atom + 1] = 0
        fall = whole - model(**{**batch, "attention_mask": mask}).logits.item()
        assert found.atoms.values[atom] == pytest.approx(fall, abs=1e-5)
    acetyl = next(it for it in found.fragments if it.kind == "brics" and it.atoms == (0, 1, 2))
    mask = batch["attention_mask"].clone()
    mask[0, 1:4] = 0
    fall = whole - model(**{**batch, "attention_mask": mask}).logits.item()
    assert acetyl.contribution == pytest.approx(fall, abs=1e-5)
    assert {(it.kind, it.atoms) for it in found.fragments} >= {
        ("scaffold", (4, 5, 6, 7, 9, 10)),
        ("substituent", (0, 1, 2, 3)),
        ("substituent", (8,)),
    }


@pytest.mark.parametrize(
    "method",
    [it if it == "environments" else pytest.param(it, marks=pytest.mark.slow) for it in METHODS],
)
def test_the_order_of_atoms_does_not_matter(method: str, processor: RMatProcessor) -> None:
    model = build_model()
    found = explain_one(model, SMILES, processor, method=method)
    order = np.random.default_rng(0).permutation(found.mol.GetNumAtoms())
    other = Chem.MolToSmiles(Chem.RenumberAtoms(found.mol, order.tolist()), canonical=False)
    match = Chem.MolFromSmiles(other).GetSubstructMatches(found.mol, uniquify=False)[0]
    again = explain_one(model, other, processor, method=method)
    ours, theirs = again.atoms.values[list(match)], found.atoms.values
    # the two halves of the ring are the same, so the match may take one for the other
    np.testing.assert_allclose(
        ours[[0, 1, 2, 3, 4, 7, 8]], theirs[[0, 1, 2, 3, 4, 7, 8]], **TOLERANCE
    )
    assert again.faithfulness == pytest.approx(found.faithfulness, abs=1e-3, nan_ok=True)


def test_equal_atoms_contribute_the_same_and_all_add_up(processor: RMatProcessor) -> None:
    model = build_model()
    molecules = [*TINY_SMILES, SMILES, "FC(F)(F)c1ccccc1"]
    found = explain(model, molecules, processor=processor)
    for row, smiles in zip(found.rows, molecules, strict=True):
        assert row is not None
        assert row.atoms.values.sum() == pytest.approx(row.prediction - row.baseline, abs=1e-5)
        assert row.residual == pytest.approx(0, abs=1e-5)
        classes = np.array(
            list(Chem.CanonicalRankAtoms(Chem.MolFromSmiles(smiles), breakTies=False))
        )
        for kind in np.unique(classes):
            assert np.ptp(row.atoms.values[classes == kind]) < 1e-5, smiles
    dropped = explain_one(model, SMILES, processor, method="drop")
    assert abs(dropped.residual) > 1e-3


def test_rows_and_reasons_are_those_of_predict_and_batches_do_not_matter(
    processor: RMatProcessor,
) -> None:
    model, molecules = build_model(), ["C1CC", *TINY_SMILES[:3], None, ""]
    predictions = predict(model, molecules, processor=processor)
    found = explain(model, molecules, processor=processor, batch_size=64)
    again = explain(model, molecules, processor=processor, batch_size=7)
    assert found.errors == again.errors == predictions.errors
    for row, other, value in zip(found.rows, again.rows, predictions.values[:, 0], strict=True):
        assert (row is None) == np.isnan(value)
        if row is not None and other is not None:
            assert row.prediction == pytest.approx(value, abs=1e-5)
            np.testing.assert_allclose(row.atoms.values, other.atoms.values, **TOLERANCE)
    columns = found.to_columns()
    assert columns["atom_contributions"][0] is None
    assert len(columns["atom_contributions"][2]) == 9


def test_what_a_model_does_not_read_has_no_effect(processor: RMatProcessor) -> None:
    model = build_model(pair_relations=["bond"])
    found = explain_one(model, SMILES, processor, by=PARTS)
    for name in ("distance", "neighborhood"):
        effects = (found.totals[name], found.relations[name].values, found.pairs[name])
        assert max(np.abs(it).max() for it in effects) < 1e-6
    assert abs(found.totals["bond"]) > 1e-4
    matrix = found.pairs["bond"]
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(matrix != 0, Chem.GetAdjacencyMatrix(found.mol) != 0)


def test_classes_have_logits_and_probabilities_and_members_a_spread(
    processor: RMatProcessor,
) -> None:
    fields: dict[str, Any] = {"num_labels": 3, "problem_type": "single_label_classification"}
    fields |= {"id2label": {0: "low", 1: "mid", 2: "high"}, "label_name": "dose"}
    members = [build_model(seed, **fields) for seed in range(3)]
    ensemble = RMatEnsembleForSequenceClassification.from_members(members)
    with pytest.raises(UserError, match="'low', 'mid', 'high'"):
        explain(ensemble, [SMILES], processor=processor)
    found = explain(ensemble, [SMILES], label="high", processor=processor, method="drop")
    row = found[0]
    assert row is not None
    assert (found.label, found.units) == ("dose = high", "logit")
    probability = predict(ensemble, [SMILES], processor=processor).values[0, 2]
    assert row.probability == pytest.approx(probability, abs=1e-6)
    assert row.prediction == pytest.approx(np.log(probability / (1 - probability)), abs=1e-4)
    alone = [explain_one(it, SMILES, processor, label="high", method="drop") for it in members]
    spread = np.std([it.atoms.values for it in alone], axis=0)
    assert row.atoms.spread is not None
    assert row.atoms.probabilities is not None
    np.testing.assert_allclose(row.atoms.spread, spread, **TOLERANCE)


def test_one_label_of_several_is_explained(processor: RMatProcessor) -> None:
    names = {0: "logS", 1: "logP"}
    model = build_model(num_labels=2, id2label=names, label_units=["mol/l", "1"])
    found = explain(model, ["CCO"], label="logP", processor=processor)
    values = predict(model, ["CCO"], processor=processor).values[0]
    assert found[0] is not None
    assert found[0].prediction == pytest.approx(values[1], abs=1e-5)
    assert (found.label, found.units) == ("logP", "1")
    with pytest.raises(UserError, match=r"several outputs\. .*--label: 'logS', 'logP'"):
        explain(model, ["CCO"], processor=processor)
    for wrong in ({"label": "pH"}, {"label": "logP", "by": ["atoms"]}, {"method": "lime"}):
        with pytest.raises(UserError, match=r"Choose|Name one"):
            explain(model, ["CCO"], processor=processor, **wrong)


def test_models_of_atoms_are_refused(processor: RMatProcessor) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, problem_type="regression")
    with pytest.raises(UserError, match="atoms"):
        explain(RMatForTokenClassification(config), ["CCO"], processor=processor)


@pytest.mark.parametrize("name", [*FINGERPRINTS])
def test_every_substructure_that_is_counted_has_atoms(name: str) -> None:
    mol = Chem.MolFromSmiles("CC(C)(C)OC(=O)N1CCC(c2ccccc2Cl)CC1")
    counts = compute_fingerprint_counts(mol, [name])
    columns = [column for column, _ in list_environments(mol, name)]
    assert np.array_equal(np.bincount(columns, minlength=2048), counts)
    molecule = FeaturizedMol(mol, b"", [name])
    assert np.array_equal(molecule.count_without([]), counts)
    assert not molecule.count_without(range(molecule.num_atoms)).any()
    # what is left without the chlorine is there without it too
    without = molecule.count_without([mol.GetNumAtoms() - 7 + 5])
    assert (without <= counts).all()
    assert without.sum() < counts.sum()


@pytest.mark.slow
def test_a_kernel_head_loses_the_counts_of_an_atom(processor: RMatProcessor) -> None:
    kinds = ["ecfp4", "atom_pairs", "torsions"]
    counting = RMatProcessor(geometry="bounds", fingerprints=kinds)
    smiles = ["C" * size + end for end in ("O", "N", "F") for size in range(1, 9)]
    table = Dataset.from_dict({"smiles": smiles, "y": [float(len(it)) for it in smiles]})
    rows = featurize_dataset(table, counting, label_columns=["y"])
    model = fit_kernel_head(
        "rmat-small", rows, label_columns=["y"], kernel_features=["vectors", *kinds]
    )
    molecule = Chem.MolFromSmiles("CCCCCO")
    found = explain_one(model, molecule, counting, method="drop", by=())
    batch = dict(counting([molecule], return_tensors="pt"))
    batch["attention_mask"][0, 6] = 0
    counts = FeaturizedMol(molecule, b"", kinds).count_without([5])
    batch["fingerprint_counts"] = torch.from_numpy(counts)[None]
    with torch.inference_mode():
        fall = found.prediction - model.eval()(**batch).logits.item()
    assert found.atoms.values[5] == pytest.approx(fall, abs=1e-5)


def test_a_dropped_atom_leaves_the_descriptors_of_the_rest() -> None:
    mol, names = Chem.MolFromSmiles("NCCO"), ["MolWt", "NumHDonors", "TPSA"]
    molecule = FeaturizedMol(mol, b"", (), names)
    whole = compute_molecule_descriptors(mol, names)
    np.testing.assert_allclose(molecule.describe_without([]), whole)
    without = molecule.describe_without([3])
    # the oxygen goes with its hydrogen, and the carbon takes one
    assert whole[0] - without[0] == pytest.approx(15.999, abs=1e-2)
    assert without[1] == 1 and without[2] == pytest.approx(26.02, abs=1e-2)
    # nitrogen and oxygen are donors as before without the carbon between them
    assert molecule.describe_without([1])[1:] == pytest.approx(whole[1:])
    # of no atoms they are nothing, not the mean of other molecules
    np.testing.assert_allclose(molecule.describe_without(range(4)), 0, atol=1e-6)
    assert np.isnan(FeaturizedMol(mol, b"", (), ["BalabanJ"]).describe_without(range(4))).all()


def test_replaced_groups_are_predicted_by_the_model(processor: RMatProcessor) -> None:
    model = build_model()
    others = ["Cc1ccccc1", "CCC", "Oc1ccccc1", "OC", "Brc1ccccc1", "not a molecule"]
    found = find_counterfactuals(
        model, ["Clc1ccccc1", "C1CC", "c1ccccc1"], replacements=others, processor=processor
    )
    assert {it.smiles for it in found[0]} == {"Cc1ccccc1", "Oc1ccccc1"}
    assert found[1:] == [[], []]
    values = predict(model, ["Clc1ccccc1", *(it.smiles for it in found[0])], processor=processor)
    changes = values.values[1:, 0] - values.values[0, 0]
    np.testing.assert_allclose([it.change for it in found[0]], changes, **TOLERANCE)
    assert abs(found[0][0].change) >= abs(found[0][1].change)
    common = find_counterfactuals(model, ["Clc1ccccc1"], processor=processor, num_best=100)
    assert "c1ccccc1" in {it.smiles for it in common[0]}


def test_attention_is_that_of_the_model_and_of_its_relations(processor: RMatProcessor) -> None:
    model = build_model(pair_relations=["bond", "neighborhood"])
    maps = compute_attention_maps(model, "OCC", processor=processor)
    np.testing.assert_allclose(maps.probabilities.sum(-1), 1, atol=1e-5)
    batch = processor(["OCC"], return_tensors="pt")
    first = model.rmat(**batch, output_attentions=True).attentions[0][0].detach().numpy()
    np.testing.assert_allclose(maps.probabilities[0, 0], first, atol=1e-5)
    assert not maps.relations["distance"].any()
    assert maps.relations["bond"].any()
    assert maps.average("bond", layer=1).shape == (3, 3)


def test_pictures_are_valid_and_show_signs_units_and_doubt() -> None:
    mol = Chem.MolFromSmiles("CCO")
    sure = Contributions(np.array([-1.0, 0.0, 2.0]))
    text = draw_contributions(mol, sure, units="log <mol/l>", title="a & b")
    ET.fromstring(text)
    assert "log &lt;mol/l&gt;" in text
    assert "a &amp; b" in text
    assert "#F28419" in text  # the strongest atom, which raises
    doubtful = sure._replace(spread=np.array([0.0, 0.0, 3.0]))
    assert "#F28419" not in draw_contributions(mol, doubtful, units="1")
    salt = Chem.MolFromSmiles("CC(=O)[O-].[Na+]")
    values = np.array([-0.39, -3.6, -2.0, -1.6, 0.8])
    tree = ET.fromstring(draw_contributions(salt, Contributions(values), units="1"))
    shown = {it.text: it for it in tree if it.tag.endswith("text")}
    # every atom has its number, none on another, and the cation stands off the anion
    places = [shown[f"{it:+.2g}"] for it in values]
    points = np.array([[float(it.attrib[axis]) for axis in "xy"] for it in places])
    gaps = np.abs(points[:, None] - points) / [25, 10]
    assert (gaps.max(axis=2)[np.triu_indices(5, 1)] > 1).all()
    assert points[4, 0] > points[:4, 0].max() + 40
    ET.fromstring(draw_pairs(mol, np.eye(3)[::-1], units="attention"))
