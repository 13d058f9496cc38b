"""A finetuned model beside its ONNX program: the difference, the file, the time of a molecule.

    python tests/benchmarks/bench_export.py TABLE.csv FOLDER [FOLDER ...]

FOLDER is one of `rmat finetune`, TABLE has `smiles`. PyTorch and onnxruntime have one thread each
and run in turns, in one process, on the same batches of 32; the ratio is the median over rounds.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch

from rmat_hf import export_onnx
from rmat_hf.loading import load_predictor

BATCH_SIZE = 32
NUM_ROUNDS = 9


def measure(folder: Path, smiles: list[str]) -> dict[str, Any]:
    """Return the row of one model."""
    model, processor = load_predictor(folder, device="cpu")
    model.eval()
    starts = range(0, len(smiles), BATCH_SIZE)
    texts = [smiles[start : start + BATCH_SIZE] for start in starts]
    batches = [dict(processor(it, return_tensors="np", errors="skip")) for it in texts]
    tensors = [{name: torch.from_numpy(it) for name, it in batch.items()} for batch in batches]
    with tempfile.TemporaryDirectory() as work:
        path = export_onnx(model, Path(work) / "model.onnx", processor=processor).path
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        megabytes = path.stat().st_size / 1e6

        def run_torch() -> list[np.ndarray]:
            with torch.inference_mode():
                outputs = [model(**batch).logits.double() for batch in tensors]
            return [model.meaning.compute_values(it).numpy() for it in outputs]

        def run_onnx() -> list[np.ndarray]:
            return [session.run(None, batch)[0] for batch in batches]

        # which also warms both up
        pairs = zip(run_torch(), run_onnx(), batches, strict=True)
        differences = []
        for ours, theirs, batch in pairs:
            found = np.abs(ours - theirs) / np.array(model.config.label_std or [1.0])
            # of nodes, those that are atoms
            is_shown = batch["attention_mask"][:, 1:] == 1
            differences.append(found.max() if found.ndim < 3 else found[:, 1:][is_shown].max())
        seconds = []
        for _ in range(NUM_ROUNDS):
            times = [time.perf_counter()]
            for run in (run_torch, run_onnx):
                run()
                times.append(time.perf_counter())
            seconds.append(np.diff(times))
    milliseconds = 1e3 * np.array(seconds) / sum(len(batch["node_features"]) for batch in batches)
    ratios = milliseconds[:, 0] / milliseconds[:, 1]
    return {
        "model": folder.name,
        "largest difference": f"{max(differences):.1e}",
        "MB": round(megabytes, 1),
        "torch, ms": round(float(np.median(milliseconds[:, 0])), 2),
        "onnxruntime, ms": round(float(np.median(milliseconds[:, 1])), 2),
        "times faster": round(float(np.median(ratios)), 2),
        "rounds": f"{ratios.min():.2f} to {ratios.max():.2f}",
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    table, *folders = sys.argv[1:]
    molecules = pd.read_csv(table)["smiles"].tolist()
    rows = pd.DataFrame([measure(Path(folder), molecules) for folder in folders])
    sys.stdout.write(f"{rows.to_string(index=False)}\n")
