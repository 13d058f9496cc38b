"""What weights in 8 and 4 bits cost: the error against float32, and whether they are read again.

    pip install bitsandbytes torchao
    python tests/benchmarks/low_precision.py --model runs/quickstart

The errors are those of the predictions for the run's test molecules, in the units of the labels.
"""

import argparse
import csv
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, TorchAoConfig
from versions import write_rows

from rmat_hf.inference.prediction import predict
from rmat_hf.loading import load_processor


def build_torchao_config() -> TorchAoConfig:
    quantization = importlib.import_module("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


# Name → library, and what `from_pretrained` is told; None is torch's own function.
WAYS: dict[str, tuple[str, Any]] = {
    "bitsandbytes 8 bit": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "bitsandbytes 4 bit, nf4": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    ),
    "torchao int8, weights only": ("torchao", build_torchao_config),
    "torch dynamic int8": ("torch", None),
}


def load_quantized(way: str, folder: Path) -> Any:
    """Return the model of a folder in float32, its weights quantized."""
    build_config = WAYS[way][1]
    if build_config is None:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    options = {"quantization_config": build_config(), "dtype": torch.float32, "device_map": "cpu"}
    return AutoModelForSequenceClassification.from_pretrained(folder, **options).eval()


def save_and_reload(way: str, model: Any, *, original: Path, folder: Path) -> Any:
    """Return a saved model, read again; torch's own has no file and is made from float32 anew."""
    if WAYS[way][1] is None:
        return load_quantized(way, original)
    model.save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, device_map="cpu").eval()


def measure(way: str, folder: Path, *, smiles: list[str]) -> list[str]:
    """Return a row of the table."""
    processor = load_processor(folder)

    def compute(model: Any) -> np.ndarray:
        return predict(model, smiles, processor=processor).values

    exact = compute(AutoModelForSequenceClassification.from_pretrained(folder))
    model = load_quantized(way, folder)
    # before it computes: bitsandbytes 0.50 packs 4 bits for the processor then, and saves nonsense
    with tempfile.TemporaryDirectory() as saved:
        again = save_and_reload(way, model, original=folder, folder=Path(saved))
    values = compute(model)
    errors = np.abs(values - exact)
    return [
        way,
        f"{np.sqrt(np.mean(errors**2)):.4f}",
        f"{errors.max():.4f}",
        f"{np.abs(compute(again) - values).max():.1g}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of rmat finetune")
    model = parser.parse_args().model
    with open(model / "predictions.csv", encoding="utf-8") as lines:
        smiles = [row["smiles"] for row in csv.DictReader(lines)]
    rows = [measure(way, model, smiles=smiles) for way in WAYS]
    write_rows([["weights", "rms error", "largest error", "saved and read again"], *rows])


if __name__ == "__main__":
    main()
