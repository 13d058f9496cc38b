"""Molecules per second, memory and operations on the machine of a user: `make bench-machine`.

python tests/benchmarks/machine.py --model rmat-small [--what predict train] [--help]
"""

import os
import platform
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import psutil
import rdkit
import torch
import transformers
from measuring import ARCHITECTURES
from torch.utils.flop_counter import FlopCounterMode
from transformers import HfArgumentParser
from versions import write_rows

from rmat_hf import __version__
from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.sources import open_table
from rmat_hf.data.stored_features import count_nodes, group_by_length, unpack_features
from rmat_hf.data.tables import validate_columns
from rmat_hf.errors import UserError
from rmat_hf.flags import declare_flag, validate_flags
from rmat_hf.inference.prediction import Molecule, embed, predict
from rmat_hf.loading import find_device, load_processor, read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import save_json
from rmat_hf.training.arguments import SCRATCH, SCRATCH_ARCHITECTURE, name_source
from rmat_hf.training.trainer import RMatDataCollator

SAMPLING_INTERVAL_S = 0.02
BYTES_PER_MIB = 2**20
SIZE_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Sizes that `--model` knows by name; their weights are random.
MODEL_SIZES: dict[str, dict[str, Any]] = {SCRATCH: SCRATCH_ARCHITECTURE, **ARCHITECTURES}
EXPLANATION = """
The median of the timed passes, with the slowest and the fastest. predict and embed start from the
molecules, as `rmat predict` does; forward and train (with AdamW) from batches that are ready.
Memory: peak above the idle process with its model; device memory: peak, weights included.
TFLOP/s: the products that torch counts in a forward or a training pass, padding included.
""".strip()
SHOWN_FLAGS = ("batch_size", "num_workers", "dtype", "repeats")
BenchmarkStep = Literal["featurize", "predict", "embed", "forward", "train"]
BenchmarkDtype = Literal["float32", "bfloat16"]


@dataclass(kw_only=True)
class BenchmarkArguments:
    """Everything `run_benchmark` needs to know; each field is a flag of `make bench-machine`."""

    model: str = declare_flag(
        SCRATCH, "Model folder, Hub id, or random weights of a size: scratch, small or published."
    )
    revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    input: str = declare_flag("freesolv", "CSV, Parquet or SDF file, bundled name or Hub data set.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    num_molecules: int = declare_flag(
        256, "Molecules to measure with, evenly spaced over the table."
    )
    what: list[str] = declare_flag(
        list(get_args(BenchmarkStep)),
        f"What to measure, of {', '.join(get_args(BenchmarkStep))}.",
        choices=get_args(BenchmarkStep),
    )
    batch_size: int = declare_flag(32, "Molecules in a batch.")
    num_workers: int = declare_flag(0, "Processes that featurize beside the one that computes.")
    geometry: str | None = declare_flag(None, "Where distances come from. Default: the model's.")
    device: str | None = declare_flag(
        None, "Torch device. Default: the accelerator if there is one."
    )
    dtype: BenchmarkDtype = declare_flag("float32", "Precision; bfloat16 is by autocast.")
    repeats: int = declare_flag(3, "Timed passes over the molecules, after one that is not timed.")
    output_json: str | None = declare_flag(
        None, "JSON file to write beside the table on the screen."
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for an unknown choice."""
        validate_flags(self)


class MemorySampler:
    """Samples the memory of this process and its children while a `with` block runs."""

    def __init__(self) -> None:
        self.peak_mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *exception_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        is_running = True
        while is_running:
            # once more after the end, so that what is held then is seen too
            is_running = not self._stop.wait(SAMPLING_INTERVAL_S)
            self.peak_mib = max(self.peak_mib, compute_memory_mib())


def compute_memory_mib(pid: int | None = None) -> float:
    """Return the memory of a process, by default this one, and its children in MiB.

    Pages that several of them share count once (on Linux: the proportional set size).
    """
    total = 0
    # one of them may end between the list and the question
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                info = process.memory_full_info()
                total += getattr(info, "pss", info.uss)
    return total / BYTES_PER_MIB


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what decides how fast a computation is, without the name of the machine."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else str(device),
        "cpu": read_cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rdkit": rdkit.__version__,
        "rmat_hf": __version__,
    }


def read_cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load_molecules(arguments: BenchmarkArguments) -> list[Molecule]:
    """Return different molecules of the table, evenly spaced over its rows."""
    table = open_table(arguments.input)
    validate_columns(table.column_names, [arguments.smiles_column], source=table.source)
    count = min(arguments.num_molecules, table.num_rows)
    (chunk,) = table.iterate_chunks(table.num_rows)
    rows = chunk.molecules(arguments.smiles_column)
    positions = np.linspace(0, table.num_rows - 1, count).round().astype(int)
    return list(dict.fromkeys(rows[position] for position in positions))


def build_benchmark_model(
    arguments: BenchmarkArguments,
) -> tuple[RMatForSequenceClassification, RMatProcessor]:
    """Return a model, saved or of a named size, and its processor."""
    options: Any = {} if arguments.geometry is None else {"geometry": arguments.geometry}
    if arguments.model in MODEL_SIZES:
        fields = {**MODEL_SIZES[arguments.model], "num_labels": 1, "problem_type": "regression"}
        return RMatForSequenceClassification(RMatConfig(**fields)), RMatProcessor(**options)
    processor = load_processor(arguments.model, revision=arguments.revision, **options)
    checkpoint = read_checkpoint(arguments.model, revision=arguments.revision)
    model = checkpoint.load_model(RMatForSequenceClassification)
    if model.descriptor_scaler is None:
        processor.molecule_descriptors = None
    return model, processor


class Workload:
    """The molecules that have features, the model, and the steps to measure."""

    def __init__(self, arguments: BenchmarkArguments) -> None:
        self.arguments = arguments
        self.device = find_device(arguments.device)
        molecules = load_molecules(arguments)
        model, self.processor = build_benchmark_model(arguments)
        self.model: Any = model.to(self.device)  # type: ignore[arg-type]  # transformers wraps it
        self.idle_memory_mib = compute_memory_mib()
        outcomes = self.featurize(molecules)
        usable = [idx for idx, outcome in enumerate(outcomes) if not outcome.failure]
        if not usable:
            raise UserError(
                f"No molecule of {arguments.input} has features. The first: {outcomes[0].failure}."
            )
        self.molecules = [molecules[idx] for idx in usable]
        features = [outcomes[idx].features for idx in usable]
        self.num_nodes = np.array(count_nodes(features))
        self.batches = self.build_batches(features)
        self.optimizer = torch.optim.AdamW(model.parameters())

    def featurize(self, molecules: list[Molecule]) -> list[Any]:
        return featurize_molecules(
            molecules, self.processor, num_workers=self.arguments.num_workers
        )

    def build_batches(self, features: list[bytes]) -> list[dict[str, torch.Tensor]]:
        """Return batches of one size, with random labels that every kind of head can learn."""
        shape = (len(features), len(self.model.config.label_columns))
        labels = np.random.default_rng(0).integers(0, 2, size=shape)
        collate = RMatDataCollator(self.processor)
        batches = []
        for positions in group_by_length(
            self.num_nodes.tolist(), batch_size=self.arguments.batch_size
        ):
            rows = [
                {"features": unpack_features(features[idx]), "labels": labels[idx]}
                for idx in positions
            ]
            batches.append({name: it.to(self.device) for name, it in collate(rows).items()})
        return batches

    def run(self, what: str) -> None:
        """Pass over all molecules once."""
        is_half = self.arguments.dtype == "bfloat16"
        if what == "featurize":
            self.featurize(self.molecules)
        elif what == "train":
            self.train(is_half=is_half)
        else:
            # one autocast for all batches converts the weights once
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
                self.infer(what)

    def infer(self, what: str) -> None:
        if what == "forward":
            self.model.eval()
            with torch.inference_mode():
                for batch in self.batches:
                    self.model(**{name: it for name, it in batch.items() if name != "labels"})
            return
        (predict if what == "predict" else embed)(
            self.model,
            self.molecules,
            processor=self.processor,
            batch_size=self.arguments.batch_size,
            num_workers=self.arguments.num_workers,
        )

    def train(self, *, is_half: bool) -> None:
        self.model.train()
        for batch in self.batches:
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_half):
                loss = self.model(**batch).loss
            loss.backward()
            self.optimizer.step()


def run_benchmark(arguments: BenchmarkArguments) -> dict[str, Any]:
    """Measure how fast molecules are featurized, predicted, embedded and trained on.

    Every step passes over all molecules untimed, while memory is sampled, and then `repeats` times
    on the clock.
    """
    workload = Workload(arguments)
    rows = [measure(what, workload) for what in get_args(BenchmarkStep) if what in arguments.what]
    result = {
        "rows": rows,
        "settings": {
            "model": name_source(arguments.model),
            "num_parameters": workload.model.num_parameters(),
            "architecture": workload.model.config.get_architecture(),
            "input": name_source(arguments.input),
            "num_molecules": len(workload.molecules),
            "num_left_out": arguments.num_molecules - len(workload.molecules),
            "heavy_atoms": np.quantile(workload.num_nodes - 1, SIZE_QUANTILES).tolist(),
            "geometry": workload.processor.geometry,
            **{name: getattr(arguments, name) for name in SHOWN_FLAGS},
        },
        "machine": describe_machine(workload.device),
    }
    if arguments.output_json is not None:
        save_json(Path(arguments.output_json), result)
    return result


def measure(what: str, workload: Workload) -> dict[str, Any]:
    """Return what one step costs."""
    device, is_cuda = workload.device, workload.device.type == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with MemorySampler() as memory:
        workload.run(what)
    device_memory_mib = torch.cuda.max_memory_allocated(device) / BYTES_PER_MIB if is_cuda else None
    seconds = []
    for _ in range(workload.arguments.repeats):
        start = time.perf_counter()
        workload.run(what)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    median, num_molecules = float(np.median(seconds)), len(workload.molecules)
    teraflops = None
    if what != "featurize":
        with FlopCounterMode(display=False) as counter:
            workload.run("train" if what == "train" else "forward")
        teraflops = counter.get_total_flops() / median / 1e12
    return {
        "what": what,
        "molecules/s": num_molecules / median,
        "min": num_molecules / max(seconds),
        "max": num_molecules / min(seconds),
        "ms/molecule": 1000 * median / num_molecules,
        "memory MiB": max(0.0, memory.peak_mib - workload.idle_memory_mib),
        "device MiB": device_memory_mib,
        "TFLOP/s": teraflops,
    }


def main() -> None:
    """Print the rows as a table, and what was measured around it."""
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    result = run_benchmark(arguments)
    for name in ("settings", "machine"):
        texts = (f"{key}: {value}" for key, value in result[name].items())
        sys.stdout.write("; ".join(texts) + "\n\n")
    rows = [
        [f"{it:.4g}" if isinstance(it, float) else it or "-" for it in row.values()]
        for row in result["rows"]
    ]
    write_rows([result["rows"][0], *rows])
    sys.stdout.write(f"\n{EXPLANATION}\n")


if __name__ == "__main__":
    main()
