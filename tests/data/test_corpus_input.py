import gzip
import pickle
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data.corpus_input import CorpusOptions, iterate_input_rows, open_corpus_input
from rmat_hf.errors import UserError


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


def write_sdf_gz(folder: Path) -> Path:
    path = folder / "input.sdf.gz"
    blocks = [Chem.MolToMolBlock(Chem.MolFromSmiles(smiles)) for smiles in TINY_SMILES]
    path.write_bytes(gzip.compress("$$$$\n".join([*blocks, ""]).encode()))
    return path


def write_csv_folder(folder: Path) -> Path:
    (folder / "input").mkdir()
    for i, smiles in enumerate(TINY_SMILES):
        text = f"id,smiles\n{i},{smiles}\n"
        if i % 2:
            (folder / "input" / f"{i}.csv.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / "input" / f"{i}.csv").write_text(text)
    (folder / "input" / "notes.txt").write_text("no table")
    (folder / "input" / ".6.csv").write_text("half a table")
    return folder / "input"


def name_smi_files(folder: Path) -> Path:
    for i, smiles in enumerate(TINY_SMILES):
        (folder / f"{i}.smi").write_text(f"{smiles}\n")
    return folder / "*.smi"


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
        write_csv_folder,
        name_smi_files,
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


def test_sdf_files_go_together_with_the_properties_of_all(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    plain = write_sdf_gz(tmp_path).rename(tmp_path / "in" / "1.sdf.gz")
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCN"))
    (tmp_path / "in" / "2.sdf").write_text(f"{block}>  <logS>\n-0.5\n\n$$$$\n")
    table = open_corpus_input(plain.parent, smiles_column="smiles", with_all_columns=True)
    assert (table.num_rows, table.column_names) == (7, ["smiles", "logS"])
    chunks = list(table.iterate_chunks(4))
    assert [chunk.columns["logS"] for chunk in chunks] == [[None] * 4, [None] * 2, ["-0.5"]]
    assert all(chunk.mols is not None and all(chunk.mols) for chunk in chunks)


@pytest.mark.parametrize(
    "write",
    [write_csv, write_parquet, write_csv_folder, write_copy_of_hub_data],
)
def test_all_columns_are_there_when_they_are_wanted(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    table = open_corpus_input(write(tmp_path), smiles_column="smiles", with_all_columns=True)
    ids = [int(cell) for chunk in table.iterate_chunks(4) for cell in chunk.columns["id"]]
    assert table.column_names == ["id", "smiles"]
    assert ids == list(range(6))


@pytest.mark.parametrize(
    "write",
    [
        write_csv,
        write_smi_gz,
        write_sdf_gz,
        write_parquet,
        write_csv_folder,
        write_copy_of_hub_data,
    ],
)
def test_ranges_of_every_kind_of_input_are_the_rows_at_these_places(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    table = open_corpus_input(write(tmp_path), smiles_column="smiles", with_all_columns=True)
    table = pickle.loads(pickle.dumps(table))
    chunks = table.iterate_chunks(2, ranges=iter([range(1, 2), range(3, 6)]))
    found = [smiles for chunk in chunks for smiles in chunk.columns["smiles"]]
    canonical = [Chem.CanonSmiles(smiles) for smiles in (TINY_SMILES[1], *TINY_SMILES[3:6])]
    assert [Chem.CanonSmiles(smiles) for smiles in found] == canonical
    assert table.files


def test_files_of_several_kinds_do_not_go_together(tmp_path: Path) -> None:
    write_csv(tmp_path)
    (tmp_path / "input.smi").write_text("C\n")
    with pytest.raises(UserError, match=r"several kinds \(\.csv, \.smi\).* for example"):
        open_corpus_input(tmp_path, smiles_column="smiles")


def test_bundled_data_set_is_an_input() -> None:
    assert open_corpus_input("freesolv", smiles_column="smiles").num_rows == 642


def test_splits_of_a_data_set_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    (folder / "train.csv").write_text("smiles\nCCO\nCCN\n")
    (folder / "test.csv").write_text("smiles\nCCC\n")
    assert open_corpus_input(folder, smiles_column="smiles", split="test").num_rows == 1
    with pytest.raises(UserError, match=r"has the splits train, test\. Choose --split"):
        open_corpus_input(folder, smiles_column="smiles")
    with pytest.raises(UserError, match=r"no split 'valid', but train, test"):
        open_corpus_input(folder, smiles_column="smiles", split="valid")


def test_null_in_a_parquet_file_is_an_empty_smiles(tmp_path: Path) -> None:
    pq.write_table(pa.table({"smiles": ["C", None]}), tmp_path / "input.parquet")
    table = open_corpus_input(tmp_path / "input.parquet", smiles_column="smiles")
    rows = list(iterate_input_rows(table, smiles_column="smiles"))
    assert [row.smiles for row in rows] == ["C", ""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.csv", None, "no such file. Check the path"),
        ("nowhere/*.parquet", None, "no such file. Check the path"),
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
    with pytest.raises(UserError, match=message):
        open_corpus_input(tmp_path / name, smiles_column="smiles")


def test_a_file_has_no_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave --revision and --split out"):
        open_corpus_input(write_csv(tmp_path), smiles_column="smiles", split="train")


@pytest.mark.parametrize("name", ["shard_size", "max_rows"])
def test_counts_are_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is 0\. Choose at least 1"):
        CorpusOptions(**{name: 0})
