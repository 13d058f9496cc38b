import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from full_disks import small_files
from hypothesis import given
from hypothesis import strategies as st
from processes import run_python
from tiny import TINY_SMILES

from rmat_hf.data import shards
from rmat_hf.data.corpus import (
    CorpusReport,
    FeaturizationArguments,
    load_corpus,
    run_featurization,
)
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.shards import (
    RunTask,
    describe_input,
    find_difference,
    parse_task,
    run_distributed,
    take_best,
)
from rmat_hf.data.sources import open_table
from rmat_hf.data.stored_features import pack_dataset
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

SMILES = [*TINY_SMILES, "C1CC", "C" * 30, "", "CCN"]
SHARDS = [f"part-{idx:05}.parquet" for idx in range(4)]
RUN = """
import sys
from rmat_hf.data.corpus import FeaturizationArguments, run_featurization

run_featurization(FeaturizationArguments(
    input=sys.argv[1], output_dir=sys.argv[2], shard_size=16, num_proc=int(sys.argv[3])
))
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


def build_arguments(source: Path, folder: Path, **changes: Any) -> FeaturizationArguments:
    options: dict[str, Any] = {"max_atoms": 20, "shard_size": 3, "num_proc": 0} | changes
    return FeaturizationArguments(input=str(source), output_dir=str(folder), **options)


def featurize(source: Path, folder: Path, **changes: Any) -> CorpusReport:
    return run_featurization(build_arguments(source, folder, **changes))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_corpus_has_the_features_of_its_molecules(source: Path, tmp_path: Path) -> None:
    report = featurize(source, tmp_path / "corpus")
    processor = RMatProcessor(geometry="bounds", max_atoms=20)
    kept = [0, 1, 2, 3, 4, 5, 9]
    dataset = load_corpus(tmp_path / "corpus").dataset
    rows = dataset[:]
    assert rows["row"] == kept
    assert rows["smiles"] == [SMILES[row] for row in kept]
    outcomes = featurize_molecules(rows["smiles"], processor)
    assert pack_dataset(dataset) == [outcome.features for outcome in outcomes]
    assert (report.num_shards, report.num_rows, report.num_molecules) == (4, 10, 7)
    assert sorted(read_files(tmp_path / "corpus")) == [
        "README.md",
        "corpus.json",
        "failed_rows.csv",
        "manifest.json",
        *SHARDS,
        "preprocessor_config.json",
    ]
    loaded = RMatProcessor.from_pretrained(tmp_path / "corpus")
    assert loaded.to_dict() == processor.to_dict()


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
        (folder / f".{SHARDS[1]}.lock").touch()
        featurize(source, folder, num_proc=num_workers)
        assert read_files(folder) == whole


def test_damaged_shard_is_named_with_the_way_out(source: Path, tmp_path: Path) -> None:
    featurize(source, tmp_path / "corpus")
    path = tmp_path / "corpus" / SHARDS[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"part-00002\.parquet.*Delete it and repeat the command"):
        featurize(source, tmp_path / "corpus")
    path.unlink()
    featurize(source, tmp_path / "corpus")
    assert path.read_bytes() == whole


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard_size": 4}, "shard_size is 3 in one and 4 in the other"),
        ({"max_rows": 4}, "num_rows is 10 in one and 4"),
        ({"geometry": "2d"}, 'geometry is "bounds" in one'),
        ({"max_atoms": 256}, "max_atoms is 20 in one and 256"),
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


def test_shards_of_several_tasks_are_those_of_one_run(source: Path, tmp_path: Path) -> None:
    featurize(source, tmp_path / "whole")
    step = RunTask(run_featurization, build_arguments(source, tmp_path / "parts"))
    for rank in (1, 0):
        step(None, rank, 2)
        written = sorted(path.name for path in (tmp_path / "parts").glob("part-*"))
        assert written == (SHARDS[1::2] if rank else SHARDS)
        assert (tmp_path / "parts" / "corpus.json").exists() == (rank == 0)
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


# What is in the way


def test_other_input_and_another_folder_are_refused(source: Path, tmp_path: Path) -> None:
    featurize(source, tmp_path / "corpus")
    (tmp_path / "corpus" / SHARDS[3]).unlink()
    pq.write_table(pa.table({"smiles": [*SMILES[:3], "CCC", *SMILES[4:]]}), source)
    with pytest.raises(UserError, match="input_sha256 is"):
        featurize(source, tmp_path / "corpus")
    with pytest.raises(UserError, match=r"has files but no manifest\.json"):
        featurize(source, tmp_path)
    for folder in (source, source / "corpus"):
        with pytest.raises(UserError, match="Choose another output folder"):
            featurize(source, folder)


def test_no_rows_and_too_many_shards_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "MAX_SHARDS", 2)
    with pytest.raises(UserError, match="--shard-size 5 or more"):
        featurize(source, tmp_path / "corpus")
    pq.write_table(pa.table({"smiles": pa.array([], pa.string())}), source)
    with pytest.raises(UserError, match="has 0 rows"):
        featurize(source, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


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
    assert sorted(read_files(tmp_path / "corpus")) == ["manifest.json"]
    featurize(source, tmp_path / "corpus")
    assert read_files(tmp_path / "corpus") == read_files(tmp_path / "whole")


# The best rows


VALUES = st.lists(
    st.one_of(st.none(), st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf])),
    max_size=40,
)
SCHEMA = pa.schema([("y", pa.float64()), ("name", pa.string()), ("row", pa.int64())])


def split_rows(values: list[Any], size: int = 7) -> Iterator[pa.Table]:
    yield SCHEMA.empty_table()
    for start in range(0, len(values), size):
        rows = list(range(start, min(start + size, len(values))))
        columns = [[values[row] for row in rows], [f"#{row}" for row in rows], rows]
        yield pa.table(columns, schema=SCHEMA)


@pytest.mark.parametrize("num_unsorted", [0, 20_000])
@given(VALUES, st.integers(1, 50), st.sampled_from(["descending", "ascending"]))
def test_best_rows_are_the_first_of_the_sorted_ones_and_best_of_the_best_of_parts(
    num_unsorted: int, values: list[float | None], num_rows: int, order: Any
) -> None:
    sign = -1 if order == "descending" else 1
    numbers = [
        (sign * y, row) for row, y in enumerate(values) if y is not None and math.isfinite(y)
    ]
    expected = [row for _, row in sorted(numbers)][:num_rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_NUM_UNSORTED", num_unsorted)
        best = take_best(split_rows(values), num_rows, column="y", order=order)
    assert best["row"].to_pylist() == expected
    assert best["y"].to_pylist() == [values[row] for row in expected]
    assert best["name"].to_pylist() == [f"#{row}" for row in expected]
    parts = [take_best([it], num_rows, column="y", order=order) for it in split_rows(values, 5)]
    assert take_best(parts, num_rows, column="y", order=order).equals(best)


# What decides, and who does what


def test_difference_names_option_and_values() -> None:
    assert find_difference({"a": 1}, {"a": 1}) == ""
    assert find_difference({"a": 1}, {"a": 2}) == "a is 1 in one and 2 in the other"
    assert find_difference({"a": 1}, {}) == "a is 1 in one and null in the other"
    first, second = ({"a": a, "b": {"c": a}} for a in (1, 2))
    assert find_difference(first, second) == "c is 1 in one and 2 in the other"
    assert find_difference({"b": {"c": 1}}, {"b": None}).startswith('b is {"c": 1} in one')


def test_input_is_described_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    descriptions = []
    for name, text in (("a", "smiles\nC\n"), ("b", "smiles\nC\n"), ("c", "smiles\nN\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "in.csv").write_text(text)
        descriptions.append(describe_input(open_table(tmp_path / name / "in.csv")))
    assert descriptions[0] == descriptions[1] != descriptions[2]
    assert descriptions[0]["input"] == "in.csv"
    assert str(tmp_path) not in json.dumps(descriptions)


def test_task_is_a_rank_of_a_number() -> None:
    assert parse_task("2/5") == (2, 5)
    for text in ("5/5", "0/0", "1", "-1/2", "a/b"):
        with pytest.raises(UserError, match="is not RANK/NUM"):
            parse_task(text)


RUN_TASKS = """
import sys
from rmat_hf.data.corpus import FeaturizationArguments, run_featurization
from rmat_hf.data.shards import run_distributed

if __name__ == "__main__":
    arguments = FeaturizationArguments(
        input=sys.argv[1], output_dir=sys.argv[2], shard_size=3, max_atoms=20, num_proc=0
    )
    run_distributed(run_featurization, arguments, num_tasks=2, logging_dir=sys.argv[3])
"""


@pytest.mark.slow
def test_two_local_tasks_write_the_corpus_of_one_process(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    featurize(source, tmp_path / "whole")
    (tmp_path / "run.py").write_text(RUN_TASKS)
    command = ["run.py", source, tmp_path / "parts", tmp_path / "logs"]
    for lost in (None, tmp_path / "parts" / "part-00001.parquet"):
        if lost is not None:
            lost.unlink()
        done = run_python(command, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-4000:]
        assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


@pytest.mark.parametrize("executor", ["cloud", "local"])
def test_executor_that_is_not_there_is_an_error_with_the_way_out(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: Any
) -> None:
    monkeypatch.setitem(sys.modules, "datatrove", None)
    arguments = build_arguments(source, tmp_path / "corpus")
    where: dict[str, Any] = {"logging_dir": str(tmp_path), "executor": executor}
    with pytest.raises(UserError, match=r"pip install 'rmat-hf\[distributed\]'"):
        run_distributed(run_featurization, arguments, num_tasks=2, **where)
