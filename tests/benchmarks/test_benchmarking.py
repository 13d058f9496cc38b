"""Every row that was asked for, and the same figures on the screen and in the file."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import benchmarking
import pytest
from benchmark_workload import BenchmarkArguments
from benchmarking import BenchmarkResult, describe_benchmark, run_benchmark
from tiny_finetuning import TABLE_SMILES, write_table

from rmat_hf.errors import UserError

STEPS = ["featurize", "predict", "embed", "forward", "train"]


def run_tiny(model_folder: Path, folder: Path, **options: Any) -> BenchmarkResult:
    fields: dict[str, Any] = {
        "model": str(model_folder),
        "input": str(write_table(folder / "table.csv", {"smiles": TABLE_SMILES})),
        "num_molecules": len(TABLE_SMILES),
        "batch_size": 5,
        "device": "cpu",
    }
    return run_benchmark(BenchmarkArguments(**{**fields, **options}))


def test_every_step_has_a_row_with_figures_that_belong_together(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    result = run_tiny(tiny_model_folder, tmp_path)
    assert [row.what for row in result.rows] == STEPS
    for row in result.rows:
        slowest, fastest = row.molecules_per_second_min, row.molecules_per_second_max
        assert 0 < slowest <= row.molecules_per_second <= fastest
        assert row.milliseconds_per_molecule == pytest.approx(1000 / row.molecules_per_second)
        assert row.peak_memory_mib >= 0
        assert row.peak_device_memory_mib is None
        assert (row.teraflops_per_second is None) == (row.what == "featurize")
    settings = result.settings
    assert (settings["num_molecules"], settings["batch_size"]) == (12, 5)
    assert settings["heavy_atoms"] == [3.0, 4.0, 6.0, 6.25, 7.0]
    assert result.machine["device"] == "cpu"


def test_table_and_file_agree_and_name_no_path_of_the_machine(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "benchmark.json"
    result = run_tiny(tiny_model_folder, tmp_path, output_json=str(output), repeats=1)
    text, table = output.read_text(), describe_benchmark(result)
    assert json.loads(text) == asdict(result)
    assert str(tmp_path) not in text + table
    for row in json.loads(text)["rows"]:
        (line,) = re.findall(rf"^{row.pop('what')} .*$", table, re.M)
        cells = line.split()[1:]
        assert len(cells) == len(row)
        for cell, value in zip(cells, row.values(), strict=True):
            assert (cell == "-") == (value is None)
            assert cell == "-" or float(cell) == pytest.approx(value, rel=1e-3)
    assert "model tiny_model, " in table
    assert "12 molecules of table.csv, 3 to 7 heavy atoms (median 6), geometry bounds" in table


def test_steps_come_in_their_own_order_and_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    what = ["train", "featurize", "train"]
    rows = run_tiny(tiny_model_folder, tmp_path, what=what, repeats=1).rows
    assert [row.what for row in rows] == ["featurize", "train"]


def test_time_is_the_median_of_the_repeats(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([4.0, 1.0, 3.0])
    monkeypatch.setattr(benchmarking, "_time", lambda step, device: next(seconds))
    (row,) = run_tiny(tiny_model_folder, tmp_path, what=["forward"]).rows
    assert row.molecules_per_second == pytest.approx(12 / 3)
    assert row.molecules_per_second_min == pytest.approx(12 / 4)
    assert row.molecules_per_second_max == pytest.approx(12 / 1)
    assert row.milliseconds_per_molecule == pytest.approx(250)


def test_workers_featurize(tiny_model_folder: Path, tmp_path: Path) -> None:
    result = run_tiny(tiny_model_folder, tmp_path, what=["predict"], num_workers=2, repeats=1)
    assert result.settings["num_workers"] == 2
    assert result.rows[0].molecules_per_second > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output_json": "no/such/folder/b.json"}, UserError, "does not exist"),
        ({"output_json": "benchmark.csv"}, UserError, r"Use \.json"),
        ({"device": "abacus"}, UserError, "no device 'abacus'"),
        ({"model": "no/such/model"}, UserError, "no/such/model"),
        ({"input": "missing.csv"}, UserError, "missing.csv: no such file"),
        ({"num_molecules": 13}, UserError, "fewer than --num-molecules 13"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    tiny_model_folder: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run_tiny(tiny_model_folder, tmp_path, **options)


@pytest.mark.gpu
def test_device_memory_and_operations_are_measured_on_a_gpu(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    result = run_tiny(tiny_model_folder, tmp_path, device="cuda", dtype="bfloat16")
    assert all(row.peak_device_memory_mib > 0 for row in result.rows)
    assert result.rows[-1].peak_device_memory_mib >= result.rows[-2].peak_device_memory_mib
