import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_disks import mounted_disk, resize_disk, small_files
from tiny import TINY_SMILES

from rmat_hf.data import corpus_shards, featurization_stream
from rmat_hf.data.corpus import load_corpus
from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus, featurize_shards
from rmat_hf.data.corpus_summary import CorpusReport
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

SMILES = [*TINY_SMILES, "C1CC", "C" * 30, "", "CCN"]
SHARDS = [f"part-{idx:05}.parquet" for idx in range(4)]
RUN = """
import sys
from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus
from rmat_hf.model.processing_rmat import RMatProcessor

featurize_corpus(
    sys.argv[1], sys.argv[2], processor=RMatProcessor(geometry="bounds"),
    options=CorpusOptions(shard_size=16), num_workers=int(sys.argv[3]),
)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "input.parquet"
    pq.write_table(pa.table({"smiles": SMILES}), path)
    return path


def featurize(source: Path, folder: Path, **changes: Any) -> CorpusReport:
    arguments: dict[str, Any] = {
        "processor": RMatProcessor(geometry="bounds", max_atoms=20),
        "options": CorpusOptions(shard_size=3),
    }
    return featurize_corpus(source, folder, **(arguments | changes))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_corpus_has_the_features_of_its_molecules(source: Path, tmp_path: Path) -> None:
    report = featurize(source, tmp_path / "corpus")
    processor = RMatProcessor(geometry="bounds", max_atoms=20)
    kept = [0, 1, 2, 3, 4, 5, 9]
    rows = load_corpus(tmp_path / "corpus").dataset[:]
    assert rows["row"] == kept
    assert rows["smiles"] == [SMILES[row] for row in kept]
    outcomes = featurize_molecules(rows["smiles"], processor)
    assert rows["features"] == [outcome.features for outcome in outcomes]
    assert (report.num_shards, report.num_rows, report.num_molecules) == (4, 10, 7)
    assert sorted(read_files(tmp_path / "corpus")) == [
        "README.md",
        "corpus.json",
        "failed_rows.csv",
        *SHARDS,
        "preprocessor_config.json",
    ]
    loaded = RMatProcessor.from_pretrained(tmp_path / "corpus")
    assert loaded.to_dict() == processor.to_dict()


def test_descriptors_are_in_the_features(source: Path, tmp_path: Path) -> None:
    processor = RMatProcessor(geometry="2d", molecule_descriptors=["MolWt", "TPSA"])
    featurize(source, tmp_path / "corpus", processor=processor)
    corpus = load_corpus(tmp_path / "corpus")
    assert corpus.processor.molecule_descriptors == ["MolWt", "TPSA"]
    expected = featurize_molecules(["CCO"], processor)[0].features
    assert corpus.dataset[0]["features"] == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_run_that_continues_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, num_workers: int
) -> None:
    featurize(source, tmp_path / "whole")
    whole = read_files(tmp_path / "whole")
    for lost in (SHARDS[:1], SHARDS[1:3], ["corpus.json"], list(whole)):
        folder = tmp_path / "again"
        featurize(source, folder)
        for name in lost:
            (folder / name).unlink()
        (folder / f".{SHARDS[0]}.123.tmp").write_bytes(b"half")
        featurize(source, folder, num_workers=num_workers)
        assert read_files(folder) == whole


def test_shard_that_cannot_be_opened_is_written_anew(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    featurize(source, tmp_path / "corpus")
    whole = read_files(tmp_path / "corpus")
    path = tmp_path / "corpus" / SHARDS[2]
    path.write_bytes(path.read_bytes()[:-20])
    featurize(source, tmp_path / "corpus")
    assert read_files(tmp_path / "corpus") == whole
    assert "part-00002.parquet cannot be read and is written anew" in caplog.text


def test_finished_corpus_is_not_featurized_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = featurize(source, tmp_path / "corpus")
    monkeypatch.setattr(featurization_stream, "_featurize", None)
    assert featurize(source, tmp_path / "corpus") == report


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_killed_run_continues_to_the_same_bytes(tmp_path: Path, num_workers: int) -> None:
    source = tmp_path / "input.parquet"
    smiles = [("C" * (row % 13 + 1)) + "(N)" * (row % 3) + "O" for row in range(2000)]
    pq.write_table(pa.table({"smiles": smiles}), source)

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", RUN, str(source), str(folder), str(num_workers)]
        return subprocess.Popen(command)

    assert start(tmp_path / "whole").wait() == 0
    for num_shards in (1, 80):
        process = start(tmp_path / "killed")
        while len(list((tmp_path / "killed").glob("part-*.parquet"))) < num_shards:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert not (tmp_path / "killed" / "corpus.json").exists()
    assert start(tmp_path / "killed").wait() == 0
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    source = tmp_path / "input.parquet"
    pq.write_table(pa.table({"smiles": ["CCO"] * 100_000}), source)
    command = [sys.executable, "-c", RUN, str(source), str(tmp_path / "corpus"), "2"]
    process = subprocess.Popen(command)
    while not list((tmp_path / "corpus").glob("part-*.parquet")):
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": CorpusOptions(shard_size=4)}, "shard_size is 3 in one and 4 in the other"),
        ({"options": CorpusOptions(shard_size=3, max_rows=4)}, "num_rows is 10 in one and 4"),
        ({"processor": RMatProcessor(geometry="2d", max_atoms=20)}, 'geometry is "bounds" in one'),
        ({"processor": RMatProcessor(geometry="bounds")}, "max_atoms is 20 in one and 256"),
    ],
)
def test_other_options_are_refused_with_the_difference(
    source: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    featurize(source, tmp_path / "corpus")
    before = read_files(tmp_path / "corpus")
    with pytest.raises(UserError, match=message):
        featurize(source, tmp_path / "corpus", **changes)
    assert read_files(tmp_path / "corpus") == before


def test_input_that_has_changed_is_refused(source: Path, tmp_path: Path) -> None:
    featurize(source, tmp_path / "corpus")
    (tmp_path / "corpus" / SHARDS[3]).unlink()
    pq.write_table(pa.table({"smiles": [*SMILES[:3], "CCC", *SMILES[4:]]}), source)
    with pytest.raises(UserError, match=r"part-00001\.parquet holds other molecules"):
        featurize(source, tmp_path / "corpus")


def test_folder_with_other_parquet_files_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input\.parquet is no shard"):
        featurize(source, tmp_path)


def test_input_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"smiles": pa.array([], pa.string())}), tmp_path / "input.parquet")
    with pytest.raises(UserError, match="has no rows"):
        featurize(tmp_path / "input.parquet", tmp_path / "corpus")


def test_too_many_shards_are_refused_with_the_size_to_choose(source: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_shards, "MAX_SHARDS", 2)
        with pytest.raises(UserError, match="--shard-size 5 or more"):
            featurize(source, tmp_path / "corpus")


def test_first_rows_only(source: Path, tmp_path: Path) -> None:
    report = featurize(source, tmp_path / "corpus", options=CorpusOptions(max_rows=2))
    assert (report.num_shards, report.num_rows, report.num_molecules) == (1, 2, 2)


def test_no_file_names_a_folder_of_this_machine(source: Path, tmp_path: Path) -> None:
    featurize(source, tmp_path / "corpus")
    for name, content in read_files(tmp_path / "corpus").items():
        assert str(tmp_path).encode() not in content, name
    options = json.loads((tmp_path / "corpus" / "corpus.json").read_text())["options"]
    assert options["input"] == "input.parquet"


def test_shards_of_several_tasks_are_those_of_one_run(source: Path, tmp_path: Path) -> None:
    featurize(source, tmp_path / "whole")
    arguments: dict[str, Any] = {
        "processor": RMatProcessor(geometry="bounds", max_atoms=20),
        "options": CorpusOptions(shard_size=3),
    }
    for rank in (1, 0):
        featurize_shards(source, tmp_path / "parts", task=(rank, 2), **arguments)
        written = sorted(path.name for path in (tmp_path / "parts").glob("part-*"))
        assert written == (SHARDS[1::2] if rank else SHARDS)
    featurize(source, tmp_path / "parts")
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


def test_row_that_kills_its_worker_is_a_failed_row(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = featurize(source, tmp_path / "whole")
    compute = featurization_stream._featurize

    def die(row: Any, processor: RMatProcessor) -> Any:
        if row.row == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(row, processor)

    monkeypatch.setattr(featurization_stream, "_featurize", die)
    report = featurize(source, tmp_path / "corpus", num_workers=2)
    assert (report.num_rows, report.num_failed) == (whole.num_rows, whole.num_failed + 1)
    failed = (tmp_path / "corpus" / "failed_rows.csv").read_text()
    assert re.search(r"^4,.*the process that featurizes it was killed by signal 9", failed, re.M)
    ours, theirs = (read_files(tmp_path / name) for name in ("corpus", "whole"))
    assert [name for name in SHARDS if ours[name] != theirs[name]] == [SHARDS[1]]


# Disks


def test_file_that_cannot_grow_is_one_error_and_no_half_shard(source: Path, tmp_path: Path) -> None:
    """As on a full disk: the first bytes of a file can be written, the others cannot."""
    featurize(source, tmp_path / "whole")
    smallest = (tmp_path / "whole" / SHARDS[3]).stat().st_size
    with (
        small_files(smallest - 500),
        pytest.raises(UserError, match=r"part-00000\.parquet cannot be written: File too"),
    ):
        featurize(source, tmp_path / "corpus")
    assert sorted(read_files(tmp_path / "corpus")) == ["preprocessor_config.json"]
    featurize(source, tmp_path / "corpus")
    assert read_files(tmp_path / "corpus") == read_files(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 12 KB, where mounting one is permitted."""
    with mounted_disk(tmp_path / "disk", "size=12k") as folder:
        yield folder


def test_full_disk_is_one_error_and_keeps_what_was_written(
    source: Path, small_disk: Path, tmp_path: Path
) -> None:
    featurize(source, tmp_path / "whole")
    folder = small_disk / "corpus"
    with pytest.raises(UserError, match=r"cannot be written: No space left on device\. What was"):
        featurize(source, folder)
    shards = sorted(
        path.name for path in folder.iterdir() if path.name != "preprocessor_config.json"
    )
    assert 0 < len(shards) < len(SHARDS)
    assert shards == SHARDS[: len(shards)]
    assert len(load_corpus(folder).dataset) == 3 * len(shards)
    resize_disk(small_disk, "1m")
    featurize(source, folder)
    assert read_files(folder) == read_files(tmp_path / "whole")


def test_output_folder_must_be_one(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        featurize(source, tmp_path / "file")
    with pytest.raises(UserError, match="Cannot create"):
        featurize(source, tmp_path / "file" / "corpus")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_one_error(source: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir(mode=0o500)
    with pytest.raises(UserError, match="is not writable"):
        featurize(source, tmp_path / "corpus")
