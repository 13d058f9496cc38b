import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import TINY_SMILES
from tiny_corpus import write_corpus, write_shard

from rmat_hf.data.corpus import load_corpus
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.stored_features import expand_features
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

COLUMNS = ["row", "smiles", "features", "num_nodes", "geometry_source"]
each_way = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


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
    assert [row["features"] for row in rows] == [outcome.features for outcome in outcomes]
    assert [row["num_nodes"] for row in rows] == [4, 10, 2, 6, 10, 8]
    assert {row["geometry_source"] for row in rows} == {"bounds"}
    assert expand_features([row["features"] for row in rows])["node_features"].shape == (6, 10, 37)


def test_processor_is_the_one_of_the_shards(tmp_path: Path) -> None:
    processor = RMatProcessor(geometry="2d", molecule_descriptors=["MolWt"], max_atoms=50)
    write_shard(tmp_path / "part-00000.parquet", ["CCO"], processor=processor)
    loaded = load_corpus(tmp_path / "part-00000.parquet").processor
    assert isinstance(loaded, RMatProcessor)
    assert loaded.to_dict() == processor.to_dict()


@pytest.mark.parametrize(("pattern", "num_rows"), [("part-*.parquet", 6), ("part-00001.*", 2)])
def test_pattern_and_single_shard_load_without_a_folder(
    tmp_path: Path, pattern: str, num_rows: int
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    assert len(load_corpus(f"{folder}/{pattern}").dataset) == num_rows


@each_way
def test_shards_of_different_processors_are_refused(tmp_path: Path, streaming: bool) -> None:
    folder = write_corpus(tmp_path / "corpus")
    write_shard(folder / "part-00002.parquet", ["CCO"], processor=RMatProcessor(geometry="2d"))
    with pytest.raises(UserError, match=r"part-00000.*part-00002.*geometry is \"bounds\" in one"):
        load_corpus(folder, streaming=streaming)


def test_shards_of_another_featurizer_version_are_refused(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", ["CCO"])
    options = json.loads((folder / "preprocessor_config.json").read_text())

    def age(table: pa.Table) -> pa.Table:
        old = json.dumps({**options, "featurizer_version": 1})
        return table.replace_schema_metadata({"rmat_hf.processor": old})

    change_table(folder / "part-00000.parquet", age)
    with pytest.raises(UserError, match="contradict each other: featurizer_version"):
        load_corpus(folder)
    with pytest.raises(UserError, match="featurizer version 1"):
        load_corpus(folder / "part-00000.parquet")


@each_way
@pytest.mark.parametrize("num_bytes", [0, 3, 200, -1])
def test_cut_shard_is_an_error_that_names_it(
    tmp_path: Path, num_bytes: int, streaming: bool
) -> None:
    folder = write_corpus(tmp_path / "corpus")
    path = folder / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(UserError, match=r"part-00001\.parquet is damaged.*Delete it"):
        load_corpus(folder, streaming=streaming)


def test_shard_with_damaged_pages_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus")
    path = folder / "part-00001.parquet"
    content = bytearray(path.read_bytes())
    content[4:300] = bytes(296)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"part-00001\.parquet is damaged"):
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


def build_raw(folder: Path) -> Path:
    path = folder / "raw.parquet"
    pq.write_table(pa.table({"smiles": TINY_SMILES}), path)
    return path


def build_csv(folder: Path) -> Path:
    path = folder / "raw.csv"
    path.write_text("smiles\nCCO\n")
    return path


@each_way
@pytest.mark.parametrize("build", [build_raw, build_csv])
def test_molecules_without_features_are_refused_with_the_way_out(
    tmp_path: Path, build: Callable[[Path], Path], streaming: bool
) -> None:
    with pytest.raises(UserError, match=r"raw\.\w+ .*run `rmat featurize` first"):
        load_corpus(build(tmp_path), streaming=streaming)


@each_way
def test_corpus_without_a_molecule_is_refused(tmp_path: Path, streaming: bool) -> None:
    folder = write_corpus(tmp_path / "corpus", ["C1CC", "no molecule"])
    with pytest.raises(UserError, match=r"has no molecule. failed_rows.csv tells why"):
        load_corpus(folder, streaming=streaming)


def test_shard_without_a_molecule_is_no_obstacle(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", ["C1CC", "C1CC", "CCO"], shard_size=1)
    for streaming in (False, True):
        assert [row["row"] for row in load_corpus(folder, streaming=streaming).dataset] == [2]
