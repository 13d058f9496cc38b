"""Folders of shards: every row once, in order, the same bytes however the work was done."""

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from processes import run_python
from tiny import TINY_SMILES

from rmat_hf.errors import UserError
from rmat_hf.inference import screening
from rmat_hf.inference.prediction import embed
from rmat_hf.inference.screening import (
    PredictionArguments,
    ScreeningResult,
    run_embedding,
    run_prediction,
)
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

PREDICTION = "prediction_LABEL_0"
NUM_ROWS = 23
OPTIONS: dict[str, Any] = {"shard_size": 6, "chunk_size": 4, "batch_size": 3, "num_workers": 0}
SHARDS = [f"part-{idx:05}.parquet" for idx in range(4)]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """23 rows in row groups that end where no shard ends; every seventh row is no molecule."""
    smiles = [TINY_SMILES[row % len(TINY_SMILES)] for row in range(NUM_ROWS)]
    smiles[3::7] = ["C1CC", None, "not a molecule"]
    path = tmp_path / "library.parquet"
    pq.write_table(
        pa.table({"id": pa.array(range(NUM_ROWS), pa.int16()), "smiles": smiles}),
        path,
        row_group_size=5,
    )
    return path


@pytest.fixture
def screen(tiny_model_folder: Path, library: Path, tmp_path: Path) -> Any:
    def run(name: str = "screen", **changes: Any) -> ScreeningResult:
        arguments: dict[str, Any] = {"model": str(tiny_model_folder), "input": str(library)}
        arguments |= {"output": str(tmp_path / name)} | OPTIONS | changes
        return run_prediction(PredictionArguments(**arguments))

    return run


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_have_all_rows_in_order_with_their_columns(
    screen: Any, library: Path, tmp_path: Path
) -> None:
    result = screen()
    assert (result.num_rows, result.num_failed, result.is_complete) == (NUM_ROWS, 3, True)
    assert sorted(read_files(tmp_path / "screen")) == ["manifest.json", *SHARDS, "summary.json"]
    shards = [pq.read_table(tmp_path / "screen" / name) for name in SHARDS]
    assert [shard.num_rows for shard in shards] == [6, 6, 6, 5]
    whole = pa.concat_tables(shards)
    assert whole.select(["id", "smiles"]).equals(pq.read_table(library))
    screen("one.parquet")
    one = pq.read_table(tmp_path / "one.parquet")
    assert whole.schema.equals(one.schema)
    assert whole["error"].to_pylist() == one["error"].to_pylist()
    for ours, theirs in zip(
        whole[PREDICTION].to_pylist(), one[PREDICTION].to_pylist(), strict=True
    ):
        assert ours == (None if theirs is None else pytest.approx(theirs, abs=1e-6))
    summary = json.loads((tmp_path / "screen" / "summary.json").read_text())
    assert (summary["num_rows"], summary["num_written"], summary["num_shards"]) == (23, 23, 4)
    assert sum(summary["failures"].values()) == summary["num_failed"] == 3


@pytest.mark.parametrize("output_format", ["parquet", "csv"])
def test_run_that_continues_ends_with_the_same_bytes(
    screen: Any, tmp_path: Path, output_format: Any
) -> None:
    options: dict[str, Any] = {"output_format": output_format}
    screen("whole", **options)
    whole = read_files(tmp_path / "whole")
    shards = [name for name in whole if name.startswith("part-")]
    for lost in (shards[:1], shards[1:3], ["summary.json"], list(whole)):
        for name in lost:
            (tmp_path / "whole" / name).unlink()
        if len(lost) < len(whole):
            (tmp_path / "whole" / f".{shards[0]}.123.tmp").write_bytes(b"half")
        screen("whole", **options)
        assert read_files(tmp_path / "whole") == whole


def test_error_halfway_keeps_the_shards_before_it(
    screen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen("whole")
    compute = screening.predict
    num_calls = 0

    def fail_later(*arguments: Any, **options: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:
            raise RuntimeError("out of memory")
        return compute(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(screening, "predict", fail_later)
        with pytest.raises(RuntimeError, match="out of memory"):
            screen()
    assert sorted(read_files(tmp_path / "screen")) == ["manifest.json", SHARDS[0]]
    result = screen()
    assert read_files(tmp_path / "screen") == read_files(tmp_path / "whole")
    # what is there is not computed again
    monkeypatch.setattr(screening, "predict", int)
    assert screen() == result


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(screen: Any, tmp_path: Path) -> None:
    screen("whole")
    (tmp_path / "parts").mkdir()
    result = screen("parts", num_proc=2)
    assert (result.num_rows, result.num_failed) == (NUM_ROWS, 3)
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")


def test_embeddings_are_shards_too(tiny_model_folder: Path, library: Path, tmp_path: Path) -> None:
    options = {"model": str(tiny_model_folder), "input": str(library), **OPTIONS}
    arguments = PredictionArguments(output=str(tmp_path / "screen"), **options)
    run_embedding(arguments)
    run_embedding(PredictionArguments(output=str(tmp_path / "one.parquet"), **options))
    whole = pa.concat_tables([pq.read_table(tmp_path / "screen" / name) for name in SHARDS])
    one = pq.read_table(tmp_path / "one.parquet")
    assert whole["id"].equals(one["id"])
    expected = embed(tiny_model_folder, whole["smiles"].to_pylist()).values
    for column in (whole["embedding"].to_pylist(), one["embedding"].to_pylist()):
        rows = [row or [np.nan] * expected.shape[1] for row in column]
        np.testing.assert_allclose(rows, expected, rtol=0, atol=1e-5)
    assert one["error"].null_count == NUM_ROWS - 3
    with pytest.raises(UserError, match='command is "embed" in one and "predict" in the'):
        run_prediction(arguments)
    run_embedding(replace(arguments, output=str(tmp_path / "csv"), output_format="csv"))
    parts = [pd.read_csv(tmp_path / "csv" / name.replace(".parquet", ".csv")) for name in SHARDS]
    columns = [f"embedding_{idx}" for idx in range(expected.shape[1])]
    np.testing.assert_allclose(pd.concat(parts)[columns], expected, rtol=0, atol=1e-5)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_format": "csv"}, 'output_format is "parquet" in one and "csv" in the other'),
        ({"batch_size": 4}, "batch_size is 3 in one and 4"),
        ({"top_k": 2}, "top_k is null in one and"),
    ],
)
def test_other_options_are_refused_with_the_difference(
    screen: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    screen()
    before = read_files(tmp_path / "screen")
    with pytest.raises(UserError, match=message):
        screen(**changes)
    assert read_files(tmp_path / "screen") == before


def test_another_model_or_input_is_refused(
    screen: Any,
    tiny_model: RMatForSequenceClassification,
    tiny_model_folder: Path,
    library: Path,
    tmp_path: Path,
) -> None:
    screen()
    table = pq.read_table(library)
    other = table.set_column(0, "id", pa.array(range(1, NUM_ROWS + 1), pa.int16()))
    pq.write_table(other, library)
    with pytest.raises(UserError, match="input_sha256 is"):
        screen()
    pq.write_table(table, library, row_group_size=5)
    assert screen().is_complete
    RMatProcessor(geometry="2d").save_pretrained(tiny_model_folder)
    with pytest.raises(UserError, match='geometry is "bounds" in one and "2d" in the other'):
        screen()
    RMatProcessor(geometry="bounds").save_pretrained(tiny_model_folder)
    tiny_model.classifier.out_proj.bias.data += 1
    tiny_model.save_pretrained(tiny_model_folder)
    with pytest.raises(UserError, match="model_sha256 is"):
        screen()


def test_damaged_shard_is_named_with_the_way_out(screen: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output_format": "csv"}
    screen(**options)
    path = tmp_path / "screen" / "part-00002.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b",")])
    with pytest.raises(UserError, match=r"part-00002\.csv.*Delete it and repeat"):
        screen(**options)
    path.write_bytes(whole)
    path = tmp_path / "screen" / "part-00001.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"part-00001\.csv .*has 5 rows instead of 6\. Delete it"):
        screen(**options)


# The best rows


@pytest.mark.parametrize(
    ("order", "output_format"), [("descending", "parquet"), ("ascending", "csv")]
)
def test_best_rows_are_those_of_the_sorted_whole(
    screen: Any, tmp_path: Path, order: Any, output_format: Any
) -> None:
    options: dict[str, Any] = {"top_k": 8, "top_k_order": order, "output_format": output_format}
    sign = -1 if order == "descending" else 1
    # A shard's batches are others than those of one file, and rounding follows the batch: equal
    # molecules may then differ in the last digit. Each way has its own whole.
    for whole_name, best_name, top_name in (
        ("whole.parquet", f"best.{output_format}", ""),
        ("whole", "best", f"top.{output_format}"),
    ):
        screen(whole_name)
        parts = sorted((tmp_path / whole_name).glob("part-*")) or [tmp_path / whole_name]
        whole = [row for part in parts for row in pq.read_table(part).to_pylist()]
        values = [(row[PREDICTION], idx) for idx, row in enumerate(whole) if row["error"] is None]
        # of equal predictions the first rows count
        ordered = sorted(values, key=lambda pair: (sign * pair[0], pair[1]))
        expected = [idx for _, idx in ordered][:8]
        result = screen(best_name, **options)
        assert (result.num_rows, result.num_failed, result.num_written) == (NUM_ROWS, 3, 8)
        path = tmp_path / best_name / top_name
        if output_format == "parquet":
            best = pq.read_table(path).to_pylist()
        else:
            best = list(csv.DictReader(path.open()))
        assert [int(row["row"]) for row in best] == expected
        assert [int(row["id"]) for row in best] == [int(row["row"]) for row in best]
        found = [sign * float(row[PREDICTION]) for row in best]
        assert found == sorted(found)


def test_best_rows_need_a_label_that_is_there(screen: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"top_k": 3, "top_k_label": "logP"}
    with pytest.raises(UserError, match=r"'logP'.*Choose one of: prediction_LABEL_0"):
        screen(**options)
    assert not (tmp_path / "screen").exists()


# Processes


COMMAND = [sys.executable, "-c", "from rmat_hf.cli import main; main()", "predict"]


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
def test_killed_screen_continues_to_the_same_bytes(
    tiny_model_folder: Path, tmp_path: Path, num_proc: int
) -> None:
    source = tmp_path / "input.smi"
    smiles = [("C" * (row % 13 + 1)) + "(N)" * (row % 3) + "O" for row in range(3000)]
    source.write_text("\n".join(smiles))

    def start(name: str) -> subprocess.Popen[bytes]:
        flags = ["--model", tiny_model_folder, "--input", source, "--output", tmp_path / name]
        flags += ["--shard-size", "20", "--num-proc", num_proc]
        return subprocess.Popen(
            [*COMMAND, *map(str, flags)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    process = start("whole")
    assert process.wait() == 0
    for num_shards in (1, 60):
        process = start("killed")
        while len(list((tmp_path / "killed").glob("part-*.parquet"))) < num_shards:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    process = start("killed")
    assert process.wait() == 0, process.stderr and process.stderr.read()
    assert read_files(tmp_path / "killed") == read_files(tmp_path / "whole")


def test_shard_of_another_run_is_refused(screen: Any, tmp_path: Path) -> None:
    screen()
    (tmp_path / "screen" / SHARDS[1]).unlink()
    hold = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""
    lock = tmp_path / "screen" / f".{SHARDS[1]}.lock"
    command = [sys.executable, "-c", hold, str(lock)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=r"^Another run is writing"):
            screen()
        process.kill()
    assert screen().is_complete


@pytest.mark.slow
def test_torchrun_takes_every_row_once(screen: Any, library: Path, tmp_path: Path) -> None:
    screen("whole")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    command += [*COMMAND, "--model", tmp_path / "tiny_model", "--input", library]
    command += ["--output", tmp_path / "parts", "--shard-size", "6", "--chunk-size", "4"]
    done = run_python([*command, "--batch-size", "3"], folder=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert read_files(tmp_path / "parts") == read_files(tmp_path / "whole")
