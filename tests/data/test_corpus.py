import csv
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rdkit
from hub_server import TOKEN, run_hub
from processes import run_python
from tiny import TINY_SMILES
from tiny_corpus import write_corpus, write_shard

from rmat_hf import __version__
from rmat_hf.data.corpus import (
    CorpusReport,
    FeaturizationArguments,
    describe_corpus,
    load_corpus,
    run_featurization,
)
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.stored_features import expand_features, pack_features, read_rows
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import FEATURIZER_VERSION, list_molecule_descriptor_names
from rmat_hf.model.processing_rmat import RMatProcessor

COLUMNS = ["row", "smiles", "features", "num_nodes", "geometry_source", "processor"]
each_way = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def pack(rows: list[dict[str, Any]]) -> list[bytes]:
    return [pack_features(it) for it in read_rows([row["features"] for row in rows])]


@each_way
def test_rows_are_those_of_the_shards_in_order(tmp_path: Path, streaming: bool) -> None:
    corpus = load_corpus(write_corpus(tmp_path / "corpus"), streaming=streaming)
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    assert isinstance(corpus.dataset, kind)
    rows = list(corpus.dataset)
    outcomes = featurize_molecules(TINY_SMILES, RMatProcessor(geometry="bounds"))
    assert [list(row) for row in rows] == [COLUMNS] * 6
    assert [row["row"] for row in rows] == list(range(6))
    assert [row["smiles"] for row in rows] == TINY_SMILES
    assert pack(rows) == [outcome.features for outcome in outcomes]
    assert [row["num_nodes"] for row in rows] == [4, 10, 2, 6, 10, 8]
    assert {row["geometry_source"] for row in rows} == {"bounds"}
    assert expand_features(pack(rows))["node_features"].shape == (6, 10, 37)


@pytest.mark.parametrize(("pattern", "num_rows"), [("part-*.parquet", 6), ("part-00001.*", 2)])
def test_pattern_and_single_shard_load_without_a_folder(
    tmp_path: Path, pattern: str, num_rows: int
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    assert len(load_corpus(f"{folder}/{pattern}").dataset) == num_rows


@each_way
def test_a_saved_folder_is_a_corpus_and_tells_its_processor(
    tmp_path: Path, streaming: bool
) -> None:
    corpus = load_corpus(write_corpus(tmp_path / "corpus"))
    corpus.dataset.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    saved = load_corpus(tmp_path / "saved", streaming=streaming)
    assert isinstance(saved.dataset, datasets.IterableDataset) == streaming
    assert list(saved.dataset) == list(corpus.dataset)
    assert saved.processor.to_dict() == corpus.processor.to_dict()


def test_features_of_an_earlier_release_are_refused_with_the_way_out(tmp_path: Path) -> None:
    columns = {"smiles": ["C"], "features": [b"\2\0\1\0"], "num_nodes": [2]}
    pq.write_table(pa.table(columns), tmp_path / "part-00000.parquet")
    with pytest.raises(UserError, match=r"part-00000.*another form.*run `rmat featurize` first"):
        load_corpus(tmp_path)


@each_way
def test_shards_of_different_processors_are_refused(tmp_path: Path, streaming: bool) -> None:
    folder = write_corpus(tmp_path / "corpus")
    write_shard(folder / "part-00002.parquet", ["CCO"], processor=RMatProcessor(geometry="2d"))
    with pytest.raises(UserError, match=r"part-00000.*part-00002.*geometry is \"bounds\" in one"):
        load_corpus(folder, streaming=streaming)


def test_shards_of_another_featurizer_version_are_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", ["CCO"])
    name, version = rb"featurizer_version\": ", str(FEATURIZER_VERSION).encode()

    def age(table: pa.Table) -> pa.Table:
        types = table.schema.metadata[b"huggingface"]
        old = types.replace(name + version, name + b"1")
        assert old != types
        return table.replace_schema_metadata({"huggingface": old})

    change_table(folder / "part-00000.parquet", age)
    with pytest.raises(UserError, match="featurizer version 1"):
        load_corpus(folder)


@each_way
@pytest.mark.parametrize("num_bytes", [3, -1])
def test_cut_shard_is_an_error_that_names_it(
    tmp_path: Path, num_bytes: int, streaming: bool
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    path = folder / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(
        UserError, match=r"part-00001\.parquet cannot be read.*delete it and repeat"
    ):
        load_corpus(folder, streaming=streaming)


def test_shard_with_damaged_pages_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    path = folder / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:300] = bytes(296)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"corpus cannot be read: .*damaged, delete it and repeat"):
        load_corpus(folder)


@each_way
@pytest.mark.parametrize("column", ["smiles", "num_nodes"])
def test_missing_column_is_an_error_that_names_shard_and_column(
    tmp_path: Path, column: str, streaming: bool
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    change_table(folder / "part-00001.parquet", lambda table: table.drop_columns(column))
    with pytest.raises(UserError, match=rf"part-00001\.parquet has no column '{column}'"):
        load_corpus(folder, streaming=streaming)


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    change_table(folder / "part-00001.parquet", lambda table: table.drop_columns("row"))
    assert load_corpus(folder).dataset.column_names == COLUMNS[1:]


@each_way
def test_molecules_without_features_are_refused_with_the_way_out(
    tmp_path: Path, streaming: bool
) -> None:
    pq.write_table(pa.table({"smiles": TINY_SMILES}), tmp_path / "raw.parquet")
    (tmp_path / "raw.csv").write_text("smiles\nCCO\n")
    for name in ("raw.parquet", "raw.csv"):
        with pytest.raises(UserError, match=r"raw\.\w+ .*run `rmat featurize` first"):
            load_corpus(tmp_path / name, streaming=streaming)


@each_way
def test_corpus_without_a_molecule_is_refused(tmp_path: Path, streaming: bool) -> None:
    folder = write_corpus(tmp_path / "corpus", ["C1CC", "no molecule"])
    with pytest.raises(UserError, match=r"has no molecule. failed_rows.csv tells why"):
        load_corpus(folder, streaming=streaming)


# Places


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "has 0 shards .*`rmat featurize`"),
        ("nowhere.parquet", "nowhere.* is not there"),
        ("nowhere-*.parquet", "nowhere.* is not there"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        load_corpus(tmp_path / name)


def test_unfinished_corpus_loads_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    with caplog.at_level(logging.WARNING):
        assert len(load_corpus(folder).dataset) == 6
    assert "has 2 shards (part-*.parquet) so far, it is not finished" in caplog.text


def test_lost_shard_of_a_finished_corpus_is_an_error(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    (folder / "corpus.json").write_text(json.dumps({"num_shards": 3}))
    with pytest.raises(UserError, match=r"has 2 shards .*corpus\.json counts 3"):
        load_corpus(folder)


@pytest.mark.parametrize("options", [{"split": "test"}, {"revision": "main"}])
def test_local_corpus_has_no_revision_and_no_other_split(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="is not on the Hub"):
        load_corpus(write_corpus(tmp_path / "corpus"), **options)


HUB_VISIT = """
import json, sys
from huggingface_hub import HfApi
from rmat_hf.data.corpus import load_corpus
from rmat_hf.errors import UserError
from rmat_hf.data.sources import open_table

folder, name = sys.argv[1:]
api = HfApi()
api.create_repo(name, repo_type="dataset")
api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder)
api.create_tag(name, repo_type="dataset", tag="v1")
report = {}
for streaming in (False, True):
    corpus = load_corpus(name, revision="v1", streaming=streaming)
    rows = [[row["row"], row["smiles"], row["features"]] for row in corpus.dataset]
    report[str(streaming)] = [rows, corpus.processor.to_dict()]
for change in ({"split": "test"}, {"revision": "v2"}):
    try:
        load_corpus(name, **change)
    except UserError as error:
        report[next(iter(change))] = str(error)
table = open_table(name, revision="v1")
report["num_rows"], report["files"] = table.num_rows, table.files
print(json.dumps(report))
"""


@pytest.mark.slow
def test_corpus_on_the_hub_has_the_rows_of_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "input.smi"
    source.write_text("\n".join([*TINY_SMILES, "C1CC"]))
    processor = RMatProcessor(geometry="bounds")
    files = {"input": str(source), "output_dir": str(tmp_path / "corpus")}
    run_featurization(FeaturizationArguments(**files, shard_size=3, num_proc=0))
    with run_hub() as hub:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        command = ["-c", HUB_VISIT, tmp_path / "corpus", "chemist/tiny-corpus"]
        done = run_python(command, folder=tmp_path, environment=online)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    rows = [
        [row["row"], row["smiles"], row["features"]]
        for row in load_corpus(tmp_path / "corpus").dataset
    ]
    for streaming in ("False", "True"):
        assert report[streaming] == [rows, processor.to_dict()]
    assert "has no split 'test'" in report["split"]
    assert "v2" in report["revision"]
    assert report["num_rows"] == 6
    # read where they are, at the commit that the revision names
    assert all(
        re.fullmatch(r"hf://.*@[0-9a-f]{40}/part-\d+\.parquet", file) for file in report["files"]
    )


# Writing


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "input.csv"
    path.write_text('smiles\nCCO\nC1CC\nCC2CC\n"C,not one"\n')
    return path


def test_flags_decide_the_corpus(table: Path, tmp_path: Path) -> None:
    arguments = FeaturizationArguments(
        input=str(table),
        output_dir=str(tmp_path / "corpus"),
        molecule_descriptors="rdkit_2d",
        max_atoms=9,
        shard_size=2,
        max_rows=2,
    )
    report = run_featurization(arguments)
    assert (report.num_rows, report.num_molecules, report.num_shards) == (2, 1, 1)
    corpus = load_corpus(tmp_path / "corpus", streaming=True)
    assert (corpus.processor.geometry, corpus.processor.max_atoms) == ("bounds", 9)
    assert corpus.processor.on_conformer_failure == "raise"
    assert corpus.processor.molecule_descriptors == list_molecule_descriptor_names()
    expected = featurize_molecules(["CCO"], corpus.processor)[0].features
    assert pack(list(corpus.dataset)) == [expected]


def test_failures_are_counted_by_reason_and_listed_by_row(table: Path, tmp_path: Path) -> None:
    files = {"input": str(table), "output_dir": str(tmp_path / "corpus")}
    arguments = FeaturizationArguments(**files, shard_size=3, num_proc=0)
    report = run_featurization(arguments)
    with (tmp_path / "corpus" / "failed_rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["row"], row["smiles"]) for row in rows] == [
        ("1", "C1CC"),
        ("2", "CC2CC"),
        ("3", "C,not one"),
    ]
    assert "C1CC" in rows[0]["reason"]
    content = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert list(content["failures"].values()) == [2, 1]
    assert (content["num_molecules"], content["num_failed"]) == (1, 3)
    assert content["versions"] == {"rmat_hf": __version__, "rdkit": rdkit.__version__}
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "corpus").glob("part-*"))
    assert content["bytes_per_molecule"] == report.bytes_per_molecule == num_bytes
    # a card that was edited stays
    assert "data_files: part-*.parquet" in (tmp_path / "corpus" / "README.md").read_text()
    (tmp_path / "corpus" / "README.md").write_text("mine")
    run_featurization(arguments)
    assert (tmp_path / "corpus" / "README.md").read_text() == "mine"


def test_description_has_the_counts_and_the_most_frequent_reasons() -> None:
    reasons = {f"reason {idx}": 20 - idx for idx in range(12)}
    report = CorpusReport(2, 200, 26, 174, reasons, 166.7)
    lines = describe_corpus(report).splitlines()
    assert lines[0] == "200 rows: 26 molecules, 174 failed, 2 shards, 166.7 bytes per molecule."
    assert lines[1].split() == ["20", "reason", "0"]
    assert lines[-1].split() == ["19", "for", "2", "other", "reasons"]
