"""What the author of a model does with the Hub. Run as a script, with the name of a report."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from hub_server import DATA, MODEL, PARTS, PRIVATE
from huggingface_hub import HfApi, ModelCard, ModelCardData
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_SMILES
from transformers import AutoFeatureExtractor, AutoProcessor

from rmat_hf import (
    RMatConfig,
    RMatForSequenceClassification,
    RMatProcessor,
    RMatPropertyPredictionPipeline,
)

# No value is a default, so one that gets lost shows.
PROCESSOR_OPTIONS: dict[str, Any] = {
    "geometry": "2d",
    "conformer_method": "kdg",
    "conformer_hydrogens": False,
    "force_field": "uff",
    "conformer_seed": 7,
    "max_conformer_attempts": 11,
    "conformer_time_limit_s": 13,
    "on_conformer_failure": "bounds",
    "hydrogens": "rdkit",
    "max_atoms": 77,
    "molecule_descriptors": ["MolWt", "TPSA"],
}


def build_model() -> RMatForSequenceClassification:
    """Return a tiny model whose predictions have a name and a unit."""
    torch.manual_seed(0)
    labels: dict[str, Any] = {"id2label": {0: "logS"}, "label2id": {"logS": 0}}
    config = RMatConfig(
        **TINY_ARCHITECTURE, **labels, problem_type="regression", label_units=["log(mol/l)"]
    )
    return RMatForSequenceClassification(config).eval()


def publish_models(api: HfApi) -> None:
    """Push a pipeline with its card, tag it, then push another version part by part."""
    model, processor = build_model(), RMatProcessor(geometry="bounds")
    api.create_repo(MODEL)
    data = ModelCardData(
        library_name="transformers", pipeline_tag="graph-ml", license="apache-2.0", datasets=[DATA]
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n# Tiny solubility model\n").push_to_hub(MODEL)
    pipe = RMatPropertyPredictionPipeline(model=model, feature_extractor=processor)
    pipe.push_to_hub(MODEL)
    api.create_tag(MODEL, tag="v1")
    with torch.no_grad():
        model.classifier.out_proj.bias += 100.0
    model.push_to_hub(MODEL)
    pipe.push_to_hub(PRIVATE, private=True)
    # the model first, as in most tutorials; no pipeline is ever saved
    model.push_to_hub(PARTS)
    RMatProcessor(**PROCESSOR_OPTIONS).push_to_hub(PARTS)


def publish_data() -> None:
    """Push a table of molecules with two splits."""
    rows = {"smiles": TABLE_SMILES, "y": [float(idx) for idx in range(len(TABLE_SMILES))]}
    table = Dataset.from_dict(rows)
    parts = {"train": table.select(range(10)), "test": table.select(range(10, 12))}
    DatasetDict(parts).push_to_hub(DATA)


def main(report_file: str) -> None:
    """Publish everything and report what comes back."""
    api = HfApi()
    publish_models(api)
    publish_data()
    report = {
        "user": api.whoami()["name"],
        "files": api.list_repo_files(MODEL),
        "tags": [tag.name for tag in api.list_repo_refs(MODEL).tags],
        "card": ModelCard.load(MODEL).data.to_dict(),
        "processor": AutoProcessor.from_pretrained(PARTS).to_dict(),
        "extractor": AutoFeatureExtractor.from_pretrained(PARTS).to_dict(),
    }
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
