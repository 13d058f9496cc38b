"""Sizes of adapters, and how equal their outputs are however they are loaded.

    python tests/benchmarks/bench_adapters.py RUN RUN ...

Each RUN is a folder of `rmat finetune --peft lora`, all of one base model; one label each. The
differences are from the run's own `predictions.csv`, the largest, in the units of the labels.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peft import PeftModel
from safetensors.torch import load_file

from rmat_hf import (
    RMatConfig,
    RMatForSequenceClassification,
    RMatProcessor,
    checkpoint_path,
    predict,
)


def load_base(config: RMatConfig | None = None) -> RMatForSequenceClassification:
    """Return `rmat-small`, with an untrained head."""
    path = checkpoint_path("rmat-small")
    return RMatForSequenceClassification.from_pretrained(path, config=config)


def measure(run: Path, *, shared: RMatForSequenceClassification) -> dict[str, Any]:
    """Return a row of the table; `shared` has the adapters of all runs, by their names."""
    table, processor = pd.read_csv(run / "predictions.csv"), RMatProcessor.from_pretrained(run)
    smiles = table["smiles"].tolist()
    (column,) = [name for name in table if name.startswith("prediction_")]

    def compute_difference(model: Any) -> float:
        values = predict(model, smiles, processor=processor).values[:, 0]
        return float(np.abs(values - table[column]).max())

    alone = RMatForSequenceClassification.from_pretrained(run).eval()
    values_alone = predict(alone, smiles, processor=processor).values
    shared.set_adapter(run.name)
    values_shared = predict(shared, smiles, processor=processor).values
    base = load_base(RMatConfig.from_pretrained(run))
    with tempfile.TemporaryDirectory() as folder:
        PeftModel.from_pretrained(base, run).merge_and_unload().save_pretrained(folder)
        processor.save_pretrained(folder)
        values_merged = predict(folder, smiles).values[:, 0]
        full_bytes = Path(folder, "model.safetensors").stat().st_size
    weights = load_file(run / "adapter_model.safetensors")
    return {
        "adapter": run.name,
        "parameters": sum(it.numel() for it in weights.values()),
        "of them in layers": sum(it.numel() for name, it in weights.items() if ".lora_" in name),
        "bytes": (run / "adapter_model.safetensors").stat().st_size,
        "bytes of a full model": full_bytes,
        "reloaded": compute_difference(alone),
        "two on one base, from alone": float(np.abs(values_shared - values_alone).max()),
        "merged": float(np.abs(values_merged - table[column]).max()),
    }


def main(runs: list[Path]) -> pd.DataFrame:
    """Return one row for each run."""
    shared = load_base().eval()
    for run in runs:
        shared.load_adapter(str(run), adapter_name=run.name)
    return pd.DataFrame([measure(run, shared=shared) for run in runs])


if __name__ == "__main__":
    sys.stdout.write(main([Path(name) for name in sys.argv[1:]]).T.to_string(header=False) + "\n")
