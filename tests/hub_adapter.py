"""What users of adapters do on the Hub: push one beside its base, and predict. Run as a script.

    python hub_adapter.py FOLDER USER

The report, `report.json` in the folder, has what each way of loading predicted.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, pipeline

from rmat_hf.adapters import add_adapter, save_model
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.inference.sharing import push_folder
from rmat_hf.loading import checkpoint_path
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.recipe import load_for_finetuning

MOLECULES = ["CCN", "CCOC"]


def main(folder: Path, user: str) -> None:
    """Push a base and an adapter of it, and use the adapter by its name."""
    base_id, adapter_id = f"{user}/base", f"{user}/adapter"
    push_folder("rmat-small", base_id)
    rows = Dataset.from_dict({"labels": [[-5.0], [-1.0], [3.0]]})
    model: Any = load_for_finetuning(base_id, rows, label_columns=["dG"])
    names = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
    adapted = add_adapter(model, LoraConfig(**names)).eval()
    (folder / "adapter").mkdir()
    save_model(adapted, folder / "adapter")
    processor = RMatProcessor.from_pretrained(checkpoint_path("rmat-small"))
    processor.save_pretrained(folder / "adapter")
    push = push_folder(folder / "adapter", adapter_id)
    with torch.no_grad():
        expected = adapted(**processor(MOLECULES, return_tensors="pt")).logits
    loaded = AutoModelForSequenceClassification.from_pretrained(adapter_id).eval()
    pipe = pipeline("molecule-property-prediction", model=adapter_id)
    report = {
        "files": sorted(push.files),
        "expected": expected.tolist(),
        "predict": predict(adapter_id, MOLECULES).values.tolist(),
        "class": predict(loaded, MOLECULES, processor=processor).values.tolist(),
        "pipeline": [[it["predictions"][0]["value"]] for it in pipe(MOLECULES)],
        "labels": pipe.model.config.output_names,
        "vector": embed(adapter_id, MOLECULES).values.shape,
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
