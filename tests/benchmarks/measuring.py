"""What the benchmarks share: models, batches, turns against the plain model, rows of the report.

One thread, one process. In every round each variant runs once after the plain model; a speedup is
the median over the rounds of their ratios, by the molecule.
"""

import csv
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from plain_model import PlainPredictor, build_dense_inputs
from rdkit import RDLogger

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

Batch = dict[str, torch.Tensor]
Features = dict[str, np.ndarray]

ARCHITECTURES: dict[str, dict[str, int]] = {
    "small": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
    },
    "published": {},
}
DATA_SETS = {"drug-like": "pretraining/moses.parquet", "BBBP": "mat_benchmark/bbbp.csv"}
BATCH_SIZE = 32
NUM_MOLECULES = 31 * BATCH_SIZE
TOLERANCE = 1e-4
PROCESSOR = RMatProcessor(geometry="bounds")


def build_model(
    size: str, form: str, *, num_labels: int = 1, seed: int = 0, **options: Any
) -> RMatForSequenceClassification:
    """Return a random regression model; its biases are random too, so that every term counts."""
    torch.manual_seed(seed)
    config = RMatConfig(
        **ARCHITECTURES[size] | options,
        attention_form=form,
        id2label={idx: f"label_{idx}" for idx in range(num_labels)},
        problem_type="regression",
    )
    model = RMatForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


def read_smiles(data_dir: Path, data_set: str) -> list[str]:
    path = data_dir / DATA_SETS[data_set]
    if not path.is_file():
        pytest.skip(f"needs {DATA_SETS[data_set]} in the data folder: make bench DATA=FOLDER")
    if path.suffix == ".parquet":
        return pq.read_table(path).slice(0, 1000).column("smiles").to_pylist()
    with path.open(encoding="utf-8") as file:
        smiles = [row["smiles"] for row in csv.DictReader(file)]
    return [smiles[row] for row in np.random.default_rng(0).permutation(len(smiles))]


def load_features(data_dir: Path, data_set: str) -> list[Features]:
    """Return the features of `NUM_MOLECULES` molecules in random order."""
    features = featurize(read_smiles(data_dir, data_set)[: NUM_MOLECULES + 8])
    rows = np.random.default_rng(0).permutation(len(features))[:NUM_MOLECULES]
    return [features[row] for row in rows]


def featurize(smiles: Sequence[str]) -> list[Features]:
    """Return the features of the molecules that have any."""
    RDLogger.DisableLog("rdApp.*")
    batch = PROCESSOR(smiles, errors="skip", padding=False)
    rows = range(len(batch["node_features"]))
    return [{name: values[row] for name, values in batch.items()} for row in rows]


def build_batches(features: Sequence[Features], *, grouped: bool) -> list[Batch]:
    """Return padded batches with labels: in the given order, or molecules of one size together."""
    if grouped:
        features = sorted(features, key=lambda row: len(row["node_features"]))
    batches = []
    for start in range(0, len(features), BATCH_SIZE):
        batch = dict(PROCESSOR.pad(features[start : start + BATCH_SIZE], return_tensors="pt"))
        generator = torch.Generator().manual_seed(start)
        batch["labels"] = torch.randn(len(batch["node_features"]), 1, generator=generator)
        batches.append(batch)
    return batches


def pick_evenly(batches: Sequence[Batch], count: int) -> list[Batch]:
    """Return the middle ones of `count` equal parts of the batches, which are sorted by size."""
    ordered = sorted(batches, key=lambda batch: batch["node_features"].shape[1])
    middles = (np.arange(count) + 0.5) * len(ordered) / count
    return [ordered[int(middle)] for middle in middles]


def count_molecules(batches: Sequence[Batch]) -> int:
    return sum(len(batch["labels"]) for batch in batches)


def autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


class Predictor:
    """A model with its optimizer and a common way to call it; for the plain model dense inputs."""

    def __init__(self, model: torch.nn.Module, *, precision: str = "float32") -> None:
        self.model = model
        self.precision = precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def predict(self, inputs: Batch) -> torch.Tensor:
        inputs = {name: values for name, values in inputs.items() if name != "labels"}
        with autocast(self.precision):
            output = self.model(**inputs)
        return output if isinstance(output, torch.Tensor) else output.logits

    def compute_gradients(self, inputs: Batch) -> None:
        loss = torch.nn.functional.mse_loss(self.predict(inputs), inputs["labels"])
        loss.backward()

    def run(self, batches: Sequence[Batch], *, task: str) -> None:
        if task == "train":
            for inputs in batches:
                self.compute_gradients(inputs)
                self.optimizer.step()
                self.optimizer.zero_grad()
            return
        # one autocast for all batches converts the weights once, as around `predict`
        with torch.no_grad(), autocast(self.precision):
            for inputs in batches:
                self.predict(inputs)


def build_pair(size: str, form: str, **options: Any) -> tuple[Predictor, Predictor]:
    """Return the plain model and ours with the same weights."""
    model = build_model(size, form, **options)
    return Predictor(PlainPredictor.from_model(model)), Predictor(model)


def build_plain_batches(ours: Predictor, batches: Sequence[Batch]) -> list[Batch]:
    model: Any = ours.model
    with torch.no_grad():
        return [build_dense_inputs(model, batch) | {"labels": batch["labels"]} for batch in batches]


def check_equal(plain: Predictor, ours: Predictor, batch: Batch, *, task: str) -> float:
    """Return the largest difference of the outputs; raise if they, or gradients, differ."""
    dense = build_plain_batches(ours, [batch])[0]
    with torch.no_grad():
        expected, outputs = plain.predict(dense), ours.predict(batch)
    torch.testing.assert_close(outputs, expected, atol=TOLERANCE, rtol=TOLERANCE)
    if task == "train":
        gradients = []
        for predictor, inputs in ((plain, dense), (ours, batch)):
            predictor.compute_gradients(inputs)
            gradients.append(predictor.model.get_parameter("rmat.embeddings.node_proj.weight").grad)
            predictor.model.zero_grad()
        scale = gradients[0].abs().max()
        torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, atol=1e-3, rtol=1e-3)
    return float((outputs - expected).abs().max())


def measure_seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def take_turns(
    benchmark: Any, functions: dict[str, Callable[[], None]], *, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every function in every round; pytest-benchmark times the last one."""
    *first, last = functions
    seconds: dict[str, list[float]] = {name: [] for name in functions}

    def run_others() -> None:
        for name in first:
            seconds[name].append(measure_seconds(functions[name]))

    def run_last() -> None:
        seconds[last].append(measure_seconds(functions[last]))

    gc.collect()
    benchmark.pedantic(run_last, setup=run_others, rounds=rounds)
    return seconds


def describe_speed(
    plain_seconds: Sequence[float], our_seconds: Sequence[float], *, counts: tuple[int, int]
) -> dict[str, str]:
    """Return the cells of a row; `counts` are the molecules of a plain round and of ours."""
    plain_times = np.array(plain_seconds) / counts[0]
    our_times = np.array(our_seconds) / counts[1]
    ratios = plain_times / our_times
    return {
        "times plain": f"{np.median(ratios):.2f}",
        "lowest to highest": f"{ratios.min():.2f} to {ratios.max():.2f}",
        "plain, molecules/s": f"{1 / np.median(plain_times):.1f}",
        "ours, molecules/s": f"{1 / np.median(our_times):.1f}",
    }


def report(benchmark: Any, title: str, rows: Sequence[dict[str, str]]) -> None:
    """Keep rows for the tables at the end and for the JSON file."""
    benchmark.extra_info["title"] = title
    benchmark.extra_info["rows"] = list(rows)


def format_tables(entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of one Markdown table per title."""
    titles = dict.fromkeys(entry["title"] for entry in entries)
    for title in titles:
        rows = [row for entry in entries if entry["title"] == title for row in entry["rows"]]
        yield from ("", f"### {title}", "")
        yield "| " + " | ".join(rows[0]) + " |"
        yield "|" + " --- |" * len(rows[0])
        for row in rows:
            yield "| " + " | ".join(row.values()) + " |"


@contextmanager
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
