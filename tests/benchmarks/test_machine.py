"""What is measured is what it says, of the whole process tree; the machine has no name."""

import json
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from machine import (
    BenchmarkArguments,
    MemorySampler,
    Workload,
    compute_memory_mib,
    describe_machine,
    load_molecules,
    run_benchmark,
)
from tiny_finetuning import TABLE_SMILES, write_table

STEPS = ["featurize", "predict", "embed", "forward", "train"]
SIZE_MIB = 200
# what the interpreter itself may take or give back meanwhile
TOLERANCE_MIB = 40


def build_arguments(source: Any, folder: Path, **options: Any) -> BenchmarkArguments:
    fields: dict[str, Any] = {
        "model": str(source),
        "input": str(write_table(folder / "table.csv", {"smiles": TABLE_SMILES})),
        "num_molecules": len(TABLE_SMILES),
        "batch_size": 5,
        "repeats": 1,
        "device": "cpu",
    }
    return BenchmarkArguments(**fields | options)


@pytest.mark.slow
def test_every_step_has_a_row_with_figures_that_belong_together(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "benchmark.json"
    arguments = build_arguments(tiny_model_folder, tmp_path, output_json=str(output), repeats=2)
    result = run_benchmark(arguments)
    assert json.loads(output.read_text()) == result
    assert str(tmp_path) not in output.read_text()
    assert [row["what"] for row in result["rows"]] == STEPS
    for row in result["rows"]:
        assert 0 < row["min"] <= row["molecules/s"] <= row["max"]
        assert row["ms/molecule"] == pytest.approx(1000 / row["molecules/s"])
        assert row["memory MiB"] >= 0
        assert row["device MiB"] is None
        assert (row["TFLOP/s"] is None) == (row["what"] == "featurize")
    settings = result["settings"]
    assert (settings["num_molecules"], settings["batch_size"]) == (12, 5)
    assert settings["heavy_atoms"] == [3.0, 4.0, 6.0, 6.25, 7.0]


def test_molecules_are_different_ones_evenly_spaced_over_the_table(tmp_path: Path) -> None:
    smiles = ["C" * (row + 1) for row in range(11)]
    table = str(write_table(tmp_path / "alkanes.csv", {"smiles": smiles}))
    arguments = build_arguments("scratch", tmp_path, input=table, num_molecules=3)
    assert load_molecules(arguments) == [smiles[0], smiles[5], smiles[10]]
    smiles = ["CCO", "C1CC", "CCN", "CCO", "C"]
    table = str(write_table(tmp_path / "some.csv", {"smiles": smiles}))
    options = {"input": table, "num_molecules": 5, "geometry": "bounds"}
    workload = Workload(build_arguments("scratch", tmp_path, **options))
    assert workload.molecules == ["CCO", "CCN", "C"]
    assert workload.num_nodes.tolist() == [4, 4, 2]


def test_only_training_changes_the_weights(tiny_model_folder: Path, tmp_path: Path) -> None:
    workload = Workload(build_arguments(tiny_model_folder, tmp_path, dtype="bfloat16"))
    before = {name: weight.clone() for name, weight in workload.model.state_dict().items()}
    for what in STEPS:
        workload.run(what)
        after = workload.model.state_dict()
        is_same = all(torch.equal(after[name], weight) for name, weight in before.items())
        assert is_same == (what != "train"), what
        assert all(weight.isfinite().all() for weight in after.values())


@pytest.mark.gpu
def test_device_memory_is_measured_on_a_gpu(tiny_model_folder: Path, tmp_path: Path) -> None:
    result = run_benchmark(build_arguments(tiny_model_folder, tmp_path, device="cuda"))
    assert all(row["device MiB"] > 0 for row in result["rows"])


# Memory and machine


def allocate(num_mib: int) -> np.ndarray:
    return np.ones(num_mib * 2**20, dtype=np.uint8)


def hold_memory(num_mib: int) -> None:
    held = allocate(num_mib)
    time.sleep(0.3)
    del held


@pytest.mark.slow
def test_peak_of_a_child_that_is_over_counts_and_shared_pages_count_once() -> None:
    shared = allocate(SIZE_MIB)
    idle = compute_memory_mib()
    with MemorySampler() as memory:
        process = multiprocessing.get_context("fork").Process(target=hold_memory, args=(SIZE_MIB,))
        process.start()
        process.join()
    assert memory.peak_mib - idle == pytest.approx(SIZE_MIB, abs=TOLERANCE_MIB)
    assert shared.nbytes == SIZE_MIB * 2**20


def test_machine_is_described_in_json_without_its_name() -> None:
    machine = describe_machine(torch.device("cpu"))
    assert machine["device"] == "cpu" and machine["cpu"]
    assert machine["num_threads"] == torch.get_num_threads()
    assert platform.node() not in json.dumps(machine) or not platform.node()
