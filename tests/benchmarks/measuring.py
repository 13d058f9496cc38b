"""What the benchmarks share: models, batches, and turns against the plain form of the attention.

One thread, one process. In every round each variant runs once, the plain model too; a speedup is
the median over the rounds of their ratios, by the molecule.
"""

import copy
import csv
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rdkit import RDLogger

from rmat_hf.model.attention_rmat import (
    RMatPairFeatures,
    RMatSelfAttention,
    compute_plain_attention,
)
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


class PlainPairFeatures(RMatPairFeatures):
    """Gives all features of every pair side by side in the place of its code."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pair_codes, radial_basis = super().forward(*inputs)
        return torch.cat((self.code_features[pair_codes], radial_basis), dim=-1), radial_basis


class PlainSelfAttention(RMatSelfAttention):
    """Pair by pair, with every pair bias a tensor of nodes x nodes x hidden size."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        padding: torch.Tensor,
        pair_codes: torch.Tensor,
        **_: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return compute_plain_attention(
            self, hidden_states, padding=padding, pair_features=pair_codes
        )


def build_plain(model: RMatForSequenceClassification) -> RMatForSequenceClassification:
    """Return a copy of a model, with its weights, that computes attention as the equations read."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, RMatSelfAttention):
            module.__class__ = PlainSelfAttention
        elif isinstance(module, RMatPairFeatures):
            module.__class__ = PlainPairFeatures
    return plain


class Predictor:
    """A model with its optimizer and a common way to call it."""

    def __init__(self, model: torch.nn.Module, *, precision: str = "float32") -> None:
        self.model = model
        self.precision = precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def predict(self, inputs: Batch) -> torch.Tensor:
        with autocast(self.precision):
            return self.model(**{key: it for key, it in inputs.items() if key != "labels"}).logits

    def compute_gradients(self, inputs: Batch) -> None:
        torch.nn.functional.mse_loss(self.predict(inputs), inputs["labels"]).backward()

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
    return Predictor(build_plain(model)), Predictor(model)


def check_equal(plain: Predictor, ours: Predictor, batch: Batch) -> float:
    """Return the largest difference of the outputs; raise if they, or gradients, differ."""
    with torch.no_grad():
        expected, outputs = plain.predict(batch), ours.predict(batch)
    torch.testing.assert_close(outputs, expected, atol=TOLERANCE, rtol=TOLERANCE)
    gradients = []
    for predictor in (plain, ours):
        predictor.compute_gradients(batch)
        gradients.append(predictor.model.get_parameter("rmat.embeddings.node_proj.weight").grad)
        predictor.model.zero_grad()
    scale = gradients[0].abs().max()
    torch.testing.assert_close(gradients[1] / scale, gradients[0] / scale, atol=1e-3, rtol=1e-3)
    return float((outputs - expected).abs().max())


def take_turns(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of every function in every round; the order turns round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    gc.collect()
    for number in range(rounds):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            start = clock()
            functions[name]()
            seconds[name].append(clock() - start)
    return seconds


def describe_ratios(ratios: np.ndarray) -> list[str]:
    """Return the median, and the lowest to the highest, as cells of a table."""
    return [f"{np.median(ratios):.3f}", f"{ratios.min():.2f} to {ratios.max():.2f}"]


@contextmanager
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)
