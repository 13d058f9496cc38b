import gzip
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data.corpus_input import CorpusOptions, iterate_input_rows, open_corpus_input
from rmat_hf.data.tables import TableError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_csv(folder: Path) -> Path:
    path = folder / "input.csv"
    path.write_text("id,smiles\n" + "".join(f"{i},{s}\n" for i, s in enumerate(TINY_SMILES)))
    return path


def write_csv_gz(folder: Path) -> Path:
    path = folder / "input.csv.gz"
    path.write_bytes(gzip.compress(write_csv(folder).read_bytes()))
    return path


def write_smi(folder: Path) -> Path:
    path = folder / "input.smi"
    path.write_text("".join(f"{s}\tname {i}\n\n" for i, s in enumerate(TINY_SMILES)))
    return path


def write_smi_gz(folder: Path) -> Path:
    path = folder / "input.smi.gz"
    path.write_bytes(gzip.compress(write_smi(folder).read_bytes()))
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "input.parquet"
    table = pa.table({"id": range(len(TINY_SMILES)), "smiles": TINY_SMILES})
    pq.write_table(table, path, row_group_size=2)
    return path


def write_parquet_folder(folder: Path) -> Path:
    (folder / "input").mkdir()
    for i, smiles in enumerate(TINY_SMILES):
        pq.write_table(pa.table({"smiles": [smiles]}), folder / "input" / f"{i}.parquet")
    return folder / "input"


def name_parquet_files(folder: Path) -> Path:
    return write_parquet_folder(folder) / "*.parquet"


def write_copy_of_hub_data(folder: Path) -> Path:
    (folder / "copy" / "data").mkdir(parents=True)
    write_csv(folder).rename(folder / "copy" / "data" / "train.csv")
    return folder / "copy"


@pytest.mark.parametrize(
    "write",
    [
        write_csv,
        write_csv_gz,
        write_smi,
        write_smi_gz,
        write_parquet,
        write_parquet_folder,
        name_parquet_files,
        write_copy_of_hub_data,
    ],
)
def test_every_kind_of_input_gives_the_same_rows(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    table = open_corpus_input(write(tmp_path), smiles_column="smiles")
    rows = list(iterate_input_rows(table, smiles_column="smiles"))
    assert table.num_rows == 6
    assert [(row.row, row.smiles, row.mol) for row in rows] == [
        (i, smiles, None) for i, smiles in enumerate(TINY_SMILES)
    ]


def test_structures_of_an_sdf_file_keep_their_coordinates(tmp_path: Path) -> None:
    mol = Chem.MolFromMolBlock(Chem.MolToMolBlock(Chem.MolFromSmiles("CCO")))
    mol.GetConformer().SetAtomPosition(0, (1.0, 2.0, 3.0))
    (tmp_path / "input.sdf").write_text(Chem.MolToMolBlock(mol) + "$$$$\n")
    table = open_corpus_input(tmp_path / "input.sdf", smiles_column="smiles")
    (row,) = iterate_input_rows(table, smiles_column="smiles")
    assert row.smiles == "CCO"
    assert row.mol is not None
    assert list(Chem.Mol(row.mol).GetConformer().GetAtomPosition(0)) == [1.0, 2.0, 3.0]


def test_bundled_data_set_is_an_input() -> None:
    assert open_corpus_input("freesolv", smiles_column="smiles").num_rows == 642


def test_splits_of_a_data_set_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "train.csv").write_text("smiles\nCCO\nCCN\n")
    (folder / "test.csv").write_text("smiles\nCCC\n")
    assert open_corpus_input(folder, smiles_column="smiles", split="test").num_rows == 1
    with pytest.raises(TableError, match=r"has the splits train, test\. Choose --split"):
        open_corpus_input(folder, smiles_column="smiles")
    with pytest.raises(TableError, match=r"no split 'valid', but train, test"):
        open_corpus_input(folder, smiles_column="smiles", split="valid")


def test_null_in_a_parquet_file_is_an_empty_smiles(tmp_path: Path) -> None:
    pq.write_table(pa.table({"smiles": ["C", None]}), tmp_path / "input.parquet")
    table = open_corpus_input(tmp_path / "input.parquet", smiles_column="smiles")
    rows = list(iterate_input_rows(table, smiles_column="smiles"))
    assert [row.smiles for row in rows] == ["C", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.csv", None, "there is no such file"),
        ("nowhere/*.parquet", None, "there is no such file"),
        ("input.parquet", b"PAR1", "cannot be read"),
        ("input.csv.gz", gzip.compress(b"smiles\nCCO\n", mtime=0)[:-9], "cannot be read"),
        ("input.csv", b"name\nCCO\n", "no column 'smiles'"),
        ("input.xyz", b"3\n", "cannot read this kind of file"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message):
        open_corpus_input(tmp_path / name, smiles_column="smiles")


def test_a_file_has_no_split(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="leave --revision and --split out"):
        open_corpus_input(write_csv(tmp_path), smiles_column="smiles", split="train")


@pytest.mark.parametrize("name", ["shard_size", "max_rows"])
def test_counts_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 0\. Choose at least 1"):
        CorpusOptions(**{name: 0})
