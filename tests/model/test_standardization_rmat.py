from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from huggingface_hub.errors import StrictDataclassError
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from rmat_hf import predict
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.splits.molecule_splits import name_by_parent
from rmat_hf.data.splits.registry import split_rows
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.model.standardization_rmat import STANDARDIZERS, standardize_mol

STEPS = [*STANDARDIZERS]
# A parent, and the step that makes it of each of its forms.
FORMS = {
    "CC(=O)O": {"CC(=O)[O-]": "uncharge", "CC(=O)[O-].[Na+]": ""},
    "CCN": {"CCN.Cl": "largest_fragment", "CC[NH3+]": "uncharge", "CC[NH3+].[Cl-]": ""},
    "O=c1cccc[nH]1": {"Oc1ccccn1": "tautomer"},
    "C[N+](C)(C)CC(=O)O": {"C[N+](C)(C)CC(=O)[O-]": "uncharge"},
    "C[C@H](N)C(=O)O": {"C[C@H]([NH3+])C(=O)[O-]": "uncharge"},
}
PAIRS = [(parent, form, step) for parent, forms in FORMS.items() for form, step in forms.items()]


@pytest.mark.parametrize(("parent", "form", "step"), PAIRS)
def test_each_step_gives_the_parent_of_its_forms(parent: str, form: str, step: str) -> None:
    given = Chem.MolFromSmiles(form)
    found = standardize_mol(given, [step] if step else STEPS)
    assert Chem.MolToSmiles(found) == Chem.CanonSmiles(parent)
    assert Chem.MolToSmiles(given) == Chem.CanonSmiles(form)
    assert len({*name_by_parent([parent, form])}) == 1


def test_salts_ions_and_tautomers_are_predicted_alike_after_a_round_trip(
    tiny_model: RMatForSequenceClassification, tmp_path: Path
) -> None:
    RMatProcessor(geometry="bounds", standardize=STEPS).save_pretrained(tmp_path)
    processor = RMatProcessor.from_pretrained(tmp_path)
    assert processor.standardize == STEPS
    parents, forms, _ = zip(*PAIRS, strict=True)
    values = [predict(tiny_model, it, processor=processor).values for it in (parents, forms)]
    np.testing.assert_array_equal(*values)
    plain = RMatProcessor(geometry="bounds")
    others = [predict(tiny_model, it, processor=plain).values for it in (parents, forms)]
    assert (others[0] != others[1]).any(axis=1).all()


def test_the_molecule_itself_is_standardized_too_and_keeps_its_conformer() -> None:
    processor = RMatProcessor(geometry="given", standardize=STEPS)
    mol = Chem.AddHs(Chem.MolFromSmiles("CC[NH3+].[Cl-]"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=0)
    batch = processor([mol])
    assert batch["node_features"].shape[1] == 1 + 3
    (outcome,) = featurize_molecules(["CC[NH3+].[Cl-]"], RMatProcessor(geometry="bounds"))
    (same,) = featurize_molecules(
        ["CC[NH3+].[Cl-]"], RMatProcessor(geometry="bounds", standardize=STEPS)
    )
    assert (outcome.canonical_smiles, same.canonical_smiles) == ("CC[NH3+].[Cl-]", "CCN")


def test_a_processor_without_steps_is_saved_as_before_and_versions_are_checked() -> None:
    assert not {"standardize", "standardizer_version"} & {*RMatProcessor().to_dict()}
    with pytest.raises(StrictDataclassError, match=r"standardize is \['salt'\]\. Pass a list"):
        RMatProcessor(standardize=["salt"])
    with pytest.raises(StrictDataclassError, match="standardizer version 99"):
        RMatProcessor(standardize=STEPS, standardizer_version=99)


SETS = [f"mat_benchmark/{name}.csv" for name in ("freesolv", "esol", "bbbp", "estrogen-beta")]
SETS += [f"activity/CHEMBL{name}.csv" for name in ("1862_Ki", "1871_Ki", "2047_EC50", "231_Ki")]
SETS += [f"activity/CHEMBL{name}.csv" for name in ("237_EC50", "238_Ki", "2835_Ki", "287_Ki")]
SETS += ["activity/CHEMBL4203_Ki.csv", "activity/CHEMBL4792_Ki.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_no_split_of_real_data_parts_a_parent_from_the_forms_of_it(
    shared_dir: Path, name: str
) -> None:
    smiles = pd.read_csv(shared_dir / "data" / name)["smiles"].head(300)
    mols = [Chem.MolFromSmiles(text) for text in smiles]
    parents = [standardize_mol(mol, STEPS[:2]) for mol in mols]
    rows = [Chem.MolToSmiles(mol) for mol in mols]
    # of every molecule its parent, and of acids a sodium salt, of others a hydrochloride
    rows += [Chem.MolToSmiles(mol) for mol in parents]
    acid = Chem.MolFromSmarts("[CX3](=O)[OX2H1]")
    for mol in parents:
        form = Chem.RWMol(mol)
        for _, _, oxygen in mol.GetSubstructMatches(acid):
            form.GetAtomWithIdx(oxygen).SetFormalCharge(-1)
            form.GetAtomWithIdx(oxygen).SetNumExplicitHs(0)
            form.GetAtomWithIdx(form.AddAtom(Chem.Atom("Na"))).SetFormalCharge(1)
        Chem.SanitizeMol(form)
        rows.append(Chem.MolToSmiles(form) + ".Cl" * (not mol.HasSubstructMatch(acid)))
    for split in ("random", "scaffold", "scaffold_balanced", "cluster"):
        parts = split_rows({"canonical_smiles": rows}, split, seed=0)
        part_of_row = np.zeros(len(rows), dtype=int)
        part_of_row[parts.valid], part_of_row[parts.test] = 1, 2
        of_forms = part_of_row.reshape(3, -1)
        assert (of_forms == of_forms[0]).all(), split
