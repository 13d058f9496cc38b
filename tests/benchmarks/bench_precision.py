"""Error of bf16 autocast, relative to how much the outputs of a random model vary."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measuring import (
    Batch,
    Predictor,
    build_batches,
    build_model,
    load_features,
    pick_evenly,
    report,
)

pytestmark = pytest.mark.benchmark

NUM_LABELS = 8
NUM_BATCHES = 2
NUM_SEEDS = {"small": 24, "published": 3}


def compute_outputs(model: torch.nn.Module, batches: list[Batch], *, precision: str) -> np.ndarray:
    predictor = Predictor(model, precision=precision)
    with torch.no_grad():
        return torch.cat([predictor.predict(batch) for batch in batches]).double().numpy()


@pytest.mark.parametrize("form", ["paper", "reference"])
@pytest.mark.parametrize("size", list(NUM_SEEDS))
def test_error_of_bf16(benchmark: Any, data_dir: Path, size: str, form: str) -> None:
    features = load_features(data_dir, "drug-like")
    batches = pick_evenly(build_batches(features, grouped=True), NUM_BATCHES)
    errors: list[float] = []

    def run_seed() -> None:
        model = build_model(size, form, num_labels=NUM_LABELS, seed=len(errors))
        exact = compute_outputs(model, batches, precision="float32")
        half = compute_outputs(model, batches, precision="bf16")
        rms = np.sqrt(np.mean((half - exact) ** 2))
        errors.append(float(rms / exact.std(axis=0).mean()))

    benchmark.pedantic(run_seed, rounds=NUM_SEEDS[size])
    row = {
        "model": f"{size}, {form}",
        "seeds": str(len(errors)),
        "median": f"{np.median(errors):.3f}",
        "highest": f"{max(errors):.3f}",
    }
    report(benchmark, "bf16: rms error over the spread of the outputs", [row])
