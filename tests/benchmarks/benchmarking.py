"""Molecules per second and peak memory on the machine of a user: `make bench-machine`.

python tests/benchmarks/benchmarking.py --model rmat-small [--what predict train] [--help]
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from benchmark_workload import (
    BenchmarkArguments,
    BenchmarkStep,
    Workload,
    build_benchmark_model,
    build_steps,
    build_workload,
    compute_forward_flops,
    load_molecules,
)
from machine import BYTES_PER_MIB, MemorySampler, compute_memory_mib, describe_machine
from transformers import HfArgumentParser

from rmat_hf.data.table_writer import validate_output_path
from rmat_hf.loading import find_device
from rmat_hf.output_folder import save_json
from rmat_hf.training.arguments import name_source

# Matrix products of a step, as a multiple of those of a forward pass: the gradient needs two more.
FLOP_FACTORS = {"predict": 1, "embed": 1, "forward": 1, "train": 3}
SIZE_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
EXPLANATION = """
The median of the timed passes, with the slowest and the fastest. predict and embed start from the
molecules, as `rmat predict` does; forward and train (with AdamW) from batches that are ready.
Memory: peak above the idle process with its model; device memory: peak, weights included.
TFLOP/s: matrix products of the layers, without those of padding.""".strip()


@dataclass(frozen=True)
class BenchmarkRow:
    """What one step costs.

    Args:
        what (`str`): The step.
        molecules_per_second (`float`): Median of the timed passes.
        molecules_per_second_min (`float`): Slowest pass.
        molecules_per_second_max (`float`): Fastest pass.
        milliseconds_per_molecule (`float`): Of the median pass.
        peak_memory_mib (`float`):
            Of this process and its workers in MiB, above the idle process with its model.
        peak_device_memory_mib (`float`, *optional*): Of a CUDA device, weights included.
        teraflops_per_second (`float`, *optional*):
            As in [`compute_forward_flops`], at the median; `None` without a model.
    """

    what: str
    molecules_per_second: float
    molecules_per_second_min: float
    molecules_per_second_max: float
    milliseconds_per_molecule: float
    peak_memory_mib: float
    peak_device_memory_mib: float | None
    teraflops_per_second: float | None


@dataclass(frozen=True)
class BenchmarkResult:
    """What `run_benchmark` measured.

    Args:
        rows (`list[BenchmarkRow]`): One per step.
        settings (`dict[str, Any]`): Model, molecules, batches and precision.
        machine (`dict[str, Any]`): Device, processor and versions.
    """

    rows: list[BenchmarkRow]
    settings: dict[str, Any]
    machine: dict[str, Any]


def run_benchmark(arguments: BenchmarkArguments) -> BenchmarkResult:
    """Measure how fast molecules are featurized, predicted, embedded and trained on.

    Every step passes over all molecules once untimed, while memory is sampled, and then `repeats`
    times on the clock.

    Args:
        arguments (`BenchmarkArguments`): Model, molecules and what to measure.

    Returns:
        [`BenchmarkResult`], also written to `output_json`, without paths of this machine.

    Raises:
        ValueError: If the model or the molecules cannot be loaded, or there is no such device.
    """
    if arguments.output_json is not None:
        validate_output_path(arguments.output_json, extensions=(".json",))
    device = find_device(arguments.device)
    molecules = load_molecules(arguments)
    model, processor = build_benchmark_model(arguments)
    model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its signature
    idle_memory_mib = compute_memory_mib()
    workload = build_workload(arguments, molecules, model=model, processor=processor)
    steps = build_steps(workload)
    rows = [
        _measure(what, steps[what], workload=workload, idle_memory_mib=idle_memory_mib)
        for what in get_args(BenchmarkStep)
        if what in arguments.what
    ]
    result = BenchmarkResult(rows, _describe_settings(workload), describe_machine(device))
    if arguments.output_json is not None:
        save_json(Path(arguments.output_json), asdict(result))
    return result


def describe_benchmark(result: BenchmarkResult) -> str:
    """Return the result as a table with what was measured above it."""
    settings, machine = result.settings, result.machine
    atoms = settings["heavy_atoms"]
    columns = ("molecules/s", "min", "max", "ms/molecule", "memory MiB", "device MiB", "TFLOP/s")
    lines = [
        f"model {settings['model']}, {settings['num_parameters'] / 1e6:.2f} million parameters, "
        f"{settings['dtype']}",
        f"{settings['num_molecules']} molecules of {settings['input']}, {atoms[0]:.0f} to "
        f"{atoms[-1]:.0f} heavy atoms (median {atoms[2]:.0f}), geometry {settings['geometry']}",
        f"batch size {settings['batch_size']}, workers: {settings['num_workers']}, "
        f"timed passes: {settings['repeats']}",
        f"{machine['device']}: {machine['device_name']}; cores: {machine['num_cores']}, "
        f"threads: {machine['num_threads']}",
        "",
        f"{'':9}" + "".join(f"{name:>12}" for name in columns),
    ]
    for row in result.rows:
        values = [value for value in asdict(row).values() if not isinstance(value, str)]
        cells = ["-" if value is None else format(value, ".4g") for value in values]
        lines.append(f"{row.what:9}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join([*lines, "", EXPLANATION])


def _measure(
    what: str, step: Callable[[], object], *, workload: Workload, idle_memory_mib: float
) -> BenchmarkRow:
    device = workload.model.device
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with MemorySampler() as memory:
        step()
    device_memory_mib = torch.cuda.max_memory_allocated(device) / BYTES_PER_MIB if is_cuda else None
    seconds = np.array([_time(step, device) for _ in range(workload.arguments.repeats)])
    median = float(np.median(seconds))
    num_molecules = len(workload.molecules)
    teraflops = None
    if what in FLOP_FACTORS:
        forward_flops = compute_forward_flops(workload.model.config, workload.num_nodes)
        teraflops = FLOP_FACTORS[what] * forward_flops / median / 1e12
    return BenchmarkRow(
        what=what,
        molecules_per_second=num_molecules / median,
        molecules_per_second_min=num_molecules / float(seconds.max()),
        molecules_per_second_max=num_molecules / float(seconds.min()),
        milliseconds_per_molecule=1000 * median / num_molecules,
        peak_memory_mib=max(0.0, memory.peak_mib - idle_memory_mib),
        peak_device_memory_mib=device_memory_mib,
        teraflops_per_second=teraflops,
    )


def _time(step: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one pass, the device's queue included."""
    start = time.perf_counter()
    step()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def _describe_settings(workload: Workload) -> dict[str, Any]:
    arguments = workload.arguments
    return {
        "model": name_source(arguments.model),
        "num_parameters": workload.model.num_parameters(),
        "architecture": workload.model.config.get_architecture(),
        "input": name_source(arguments.input),
        "num_molecules": len(workload.molecules),
        "heavy_atoms": np.quantile(workload.num_nodes - 1, SIZE_QUANTILES).tolist(),
        "batch_size": arguments.batch_size,
        "num_workers": arguments.num_workers,
        "geometry": workload.processor.geometry,
        "dtype": arguments.dtype,
        "repeats": arguments.repeats,
    }


if __name__ == "__main__":
    (given,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    sys.stdout.write(f"{describe_benchmark(run_benchmark(given))}\n")
