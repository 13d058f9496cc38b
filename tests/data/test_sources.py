import gzip
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import run_hub
from processes import run_python
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data.sources import list_bundled_datasets, open_table
from rmat_hf.data.tables import Table
from rmat_hf.errors import UserError
from rmat_hf.loading import find_checkpoint

HUB_FILES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "train.csv": b"smiles,y\nCCO,1.5\nC,2\nN,2.5\n",
    "test.csv": b"smiles,y\nbad,1\nO,4\n",
}
VISIT = """
import json
from rmat_hf.data.sources import open_table
from rmat_hf.errors import UserError

for name, revision in [
    ("lab/solubility", "main"), ("lab/solubility", None),
    ("lab/nothing", None), ("nothing", None), ("lab/solubility", "v9"),
]:
    try:
        table = open_table(name, revision=revision, joins_splits=True)
        print(json.dumps([next(table.iterate_chunks(9)).table.to_pydict(), table.split_column]))
    except UserError as error:
        print(error)
"""


def write_folder(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.mark.slow
def test_hub_data_set_is_read_with_its_splits_or_one_line_tells_why(tmp_path: Path) -> None:
    with run_hub() as hub:
        hub.create({"type": "dataset", "organization": "lab", "name": "solubility"})
        hub.find("datasets", "lab/solubility", is_known=True).add_commit("main", HUB_FILES)
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        done = run_python(["-c", VISIT], folder=tmp_path, environment=online)
    assert done.returncode == 0, done.stderr
    first, second, *errors = done.stdout.splitlines()
    assert json.loads(first) == [
        {
            "smiles": ["CCO", "C", "N", "bad", "O"],
            "y": ["1.5", "2", "2.5", "1", "4"],
            "split": ["train", "train", "train", "test", "test"],
        },
        "split",
    ]
    assert first == second
    errors += run_python(["-c", VISIT], folder=tmp_path / "hf_home").stdout.splitlines()  # offline
    assert len(errors) == 8
    for error in errors:
        assert re.match(r"(lab/)?(nothing|solubility) cannot be read: ", error)
        assert "neither a file, a folder nor a bundled data set (freesolv)" in error


def read_all(table: Table) -> dict[str, list[object]]:
    return pa.concat_tables(chunk.table for chunk in table.iterate_chunks(4)).to_pydict()


CSV = "id,smiles\n" + "".join(f"{i},{text}\n" for i, text in enumerate(TINY_SMILES))
SMI = "".join(f"{text}\tname {i}\n\n" for i, text in enumerate(TINY_SMILES))
SDF = "".join(f"{Chem.MolToMolBlock(Chem.MolFromSmiles(text))}$$$$\n" for text in TINY_SMILES)
ROWS = [f"id,smiles\n{i},{text}\n" for i, text in enumerate(TINY_SMILES)]


def build_parquet(columns: dict[str, list[Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, row_group_size=2)
    return stream.getvalue()


PARTS = {f"in/{i}.parquet": build_parquet({"smiles": [text]}) for i, text in enumerate(TINY_SMILES)}
# what is opened → the files that there are
INPUTS: dict[str, dict[str, str | bytes]] = {
    "in.csv": {"in.csv": CSV},
    "in.csv.gz": {"in.csv.gz": gzip.compress(CSV.encode())},
    "in.smi": {"in.smi": SMI},
    "in.smi.gz": {"in.smi.gz": gzip.compress(SMI.encode())},
    "in.sdf.gz": {"in.sdf.gz": gzip.compress(SDF.encode())},
    "in.parquet": {
        "in.parquet": build_parquet({"id": [*range(len(TINY_SMILES))], "smiles": TINY_SMILES})
    },
    "in": {**PARTS},
    "in/*.parquet": {**PARTS},
    "tables": {
        **{f"tables/{i}.csv": text for i, text in enumerate(ROWS) if i % 2},
        **{
            f"tables/{i}.csv.gz": gzip.compress(text.encode())
            for i, text in enumerate(ROWS)
            if i % 2 == 0
        },
        **{"tables/notes.txt": "no table", "tables/.6.csv": "half a table"},
    },
    "*.smi": {f"{i}.smi": f"{text}\n" for i, text in enumerate(TINY_SMILES)},
    "copy": {"copy/data/train.csv": CSV},
}


@pytest.mark.parametrize("name", INPUTS)
def test_every_kind_of_input_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    table = pickle.loads(pickle.dumps(open_table(write_folder(tmp_path, INPUTS[name]) / name)))
    assert table.num_rows == 6
    assert table.files
    found = read_all(table)
    assert list(map(Chem.CanonSmiles, found["smiles"])) == list(map(Chem.CanonSmiles, TINY_SMILES))
    if "id" in found:
        assert list(map(int, found["id"])) == list(range(6))


def test_sdf_files_go_together_with_the_properties_of_all(tmp_path: Path) -> None:
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCN"))
    other = f"{block}>  <logS>\n-0.5\n\n$$$$\n"
    table = open_table(write_folder(tmp_path, {"1.sdf": SDF, "2.sdf": other}))
    assert (table.num_rows, table.column_names) == (7, ["smiles", "logS"])
    assert read_all(table)["logS"] == [None] * 6 + ["-0.5"]
    chunks = list(table.iterate_chunks(4))
    assert all(all(chunk.molecules("smiles")) for chunk in chunks)


def test_bundled_data_sets_are_listed_and_open_by_name() -> None:
    assert list_bundled_datasets() == ["freesolv"]
    table = open_table("freesolv")
    assert (table.num_rows, table.split_column) == (642, None)
    assert table.column_names[:2] == ["smiles", "hydration_free_energy"]


def test_what_is_nearly_a_name_of_ours_is_answered_with_it() -> None:
    with pytest.raises(UserError, match="Did you mean 'freesolv'"):
        open_table("FreeSolv".lower()[:-1])
    with pytest.raises(UserError, match="Did you mean 'rmat-small'"):
        find_checkpoint("rmat-smal")
    assert find_checkpoint("someone/rmat-smal") == "someone/rmat-smal"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.csv", "no such file"),
        ("missing.SDF", "no such file"),
        ("missing/*.parquet", "no such file"),
        ("table.ods", r"Use \.csv, \.tsv, .*\.parquet, \.sdf"),
    ],
)
def test_what_is_no_table_is_not_looked_for_on_the_hub(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "table.ods").write_text("x")
    with pytest.raises(UserError, match=words):
        open_table(tmp_path / name)


@pytest.mark.parametrize("dataset", ["freesolv", "table.csv"])
def test_revision_is_for_the_hub_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str
) -> None:
    monkeypatch.chdir(write_folder(tmp_path, {"table.csv": "smiles\nC\n"}))
    with pytest.raises(UserError, match="is not on the Hub, so it has no revision 'main'"):
        open_table(dataset, revision="main")


def test_splits_of_a_folder_follow_each_other_and_validation_is_called_valid(
    tmp_path: Path,
) -> None:
    parts = {"test": "O,3", "train": "C,1", "validation": "N,2"}
    files = {f"{part}.csv": f"smiles,y\n{row}\n" for part, row in parts.items()}
    table = open_table(write_folder(tmp_path / "set", files), joins_splits=True)
    assert table.split_column == "split"
    assert read_all(table) == {
        "smiles": ["C", "N", "O"],
        "y": ["1", "2", "3"],
        "split": ["train", "valid", "test"],
    }


def test_one_split_of_a_folder_is_chosen(tmp_path: Path) -> None:
    files = {
        "data/train-00000-of-00002.csv": "smiles\nC\n",
        "data/train-00001-of-00002.csv": "smiles\nN\n",
        "data/test-00000-of-00001.csv": "smiles\nO\n",
    }
    folder = write_folder(tmp_path / "set", files)
    assert read_all(open_table(folder, split="train")) == {"smiles": ["C", "N"]}
    for split in (None, "valid"):
        with pytest.raises(UserError, match=r"has the splits train, test\. Choose"):
            open_table(folder, split=split)
    with pytest.raises(UserError, match="has no splits: leave"):
        open_table(folder / "data" / "test-00000-of-00001.csv", split="train")


def test_files_beside_those_of_splits_are_left_out_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = dict.fromkeys(("train.csv", "test.csv", "names.csv"), "smiles\nC\n")
    table = open_table(write_folder(tmp_path / "set", files), joins_splits=True)
    assert table.num_rows == 2
    assert "names.csv" in caplog.text


@pytest.mark.parametrize("parts", [("train", "validation"), ("train", "test", "extra")])
def test_splits_without_train_and_test_or_with_others_are_not_taken_unasked(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {part}\n    path: {part}.csv\n" for part in parts
    )
    files = {f"{part}.csv": "smiles,y\nC,1\n" for part in parts}
    folder = write_folder(tmp_path / "set", {**files, "README.md": f"{card}---\n"})
    table = open_table(folder, joins_splits=True)
    assert table.split_column is None
    assert table.num_rows == len(parts)
    assert open_table(folder, split=parts[-1]).num_rows == 1


@pytest.mark.parametrize(
    "data_files", ["part-*.csv", "[part-1.csv, ./part-2.csv]", "{train: '**/part-*'}"]
)
def test_card_names_the_files_in_any_form(tmp_path: Path, data_files: str) -> None:
    files = dict.fromkeys(("part-1.csv", "part-2.csv", "failed.csv"), "smiles\nC\n")
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n"
    folder = write_folder(tmp_path / "set", {**files, "README.md": card})
    assert open_table(folder).num_rows == 2


SECRET = "smiles\nSECRET\n"


def build_card(path: str) -> str:
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {path}
---
"""


@pytest.mark.parametrize(
    "card",
    [
        *map(build_card, ("../secret.csv", "FOLDER/secret.csv", "http://host/a.csv")),
        *map(
            build_card, ("s3://bucket/a.csv", "hf://datasets/a/b/c.csv", "zip://a.csv::train.zip")
        ),
        *map(build_card, ("!!python/object/apply:os.system ['touch pwned']", "[[1]]", "{a: b}")),
        "---\nconfigs: 3\n---\n",
        "---\nconfigs: [{data_files: 3}]\n---\n",
        "---\n[1]\n---\n",
        "---\nconfigs: " + "[" * 5000 + "\n---\n",
    ],
)
def test_card_of_a_folder_reaches_nothing_but_its_own_files(
    tmp_path: Path, card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"a.csv": "smiles\nC\n", "README.md": card.replace("FOLDER", str(tmp_path))}
    folder = write_folder(tmp_path / "set", files)
    (tmp_path / "secret.csv").write_text(SECRET)
    for options in ({}, {"joins_splits": True}):
        with pytest.raises(UserError, match=str(folder)) as caught:
            open_table(folder, **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text(SECRET)
    folder = write_folder(tmp_path / "set", {"a.csv": "smiles\nC\n"})
    (folder / "train.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(UserError, match=r"train\.csv is a link .* outside .*Name that file"):
        open_table(folder)


@pytest.mark.parametrize("name", ["train.zip", "train.csv.zip", "train.tar", "train.pkl", "a.bin"])
def test_archives_and_other_files_of_a_folder_are_never_opened(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    os.mkfifo(folder / f"never_opened_{name}")
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("train.csv", SECRET)
    with pytest.raises(UserError, match=r"set is a folder without the files .* It needs \.csv"):
        open_table(folder)
    (folder / "a.csv").write_text("smiles\nC\n")
    assert read_all(open_table(folder)) == {"smiles": ["C"]}


@pytest.mark.parametrize("name", ["http://host/a", "s3://bucket/a.csv", "github://a", "zip://a"])
def test_an_address_is_no_source(name: str) -> None:
    with pytest.raises(UserError, match=name):
        open_table(name)
