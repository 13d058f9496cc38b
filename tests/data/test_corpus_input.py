from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem

from rmat_hf.data.corpus_input import CorpusOptions, iterate_input_rows, open_corpus_input


def test_structures_of_an_sdf_file_keep_their_coordinates(tmp_path: Path) -> None:
    mol = Chem.MolFromMolBlock(Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")))
    mol.GetConformer().SetAtomPosition(0, (1.0, 2.0, 3.0))
    (tmp_path / "input.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    table = open_corpus_input(tmp_path / "input.sdf", smiles_column="smiles")
    (row,) = iterate_input_rows(table, smiles_column="smiles")
    assert row.smiles == "CCO"
    assert row.mol is not None
    assert list(Chem.Mol(row.mol).GetConformer().GetAtomPosition(0)) == [1.0, 2.0, 3.0]


def test_null_in_a_parquet_file_is_an_empty_smiles(tmp_path: Path) -> None:
    pq.write_table(pa.table({"smiles": ["C", None]}), tmp_path / "input.parquet")
    table = open_corpus_input(tmp_path / "input.parquet", smiles_column="smiles")
    rows = list(iterate_input_rows(table, smiles_column="smiles"))
    assert [row.smiles for row in rows] == ["C", ""]


@pytest.mark.parametrize("name", ["shard_size", "max_rows"])
def test_counts_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 0\. Choose at least 1"):
        CorpusOptions(**{name: 0})
