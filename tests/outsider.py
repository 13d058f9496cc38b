"""What somebody without this package does with a shared model. Run as a script, with a job in JSON.

    python outsider.py '{"models": {"NAME": "FOLDER OR HUB ID"}, "report": "FILE", ...}'

Everything comes through the Auto classes and `pipeline`, so the code is the one in the folder.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny import TINY_SMILES
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    pipeline,
)

AUTO_MODELS = {
    "RMatModel": AutoModel,
    "RMatForPreTraining": AutoModelForPreTraining,
    "RMatForSequenceClassification": AutoModelForSequenceClassification,
}
# What is compared of the output of each class.
OUTPUT_FIELDS = {
    "RMatModel": "pooler_output",
    "RMatForPreTraining": "context_logits",
    "RMatForSequenceClassification": "logits",
}
BAD_SMILES = "C1CC"


def try_import(module: str) -> str | None:
    """Return why a module cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return str(error)
    return None


def compute_outputs(model: Any, batch: dict[str, torch.Tensor]) -> list[Any]:
    """Return the molecule vectors or logits of a model, as numbers of JSON."""
    with torch.inference_mode():
        output = model.eval()(**batch)
    return output[OUTPUT_FIELDS[type(model).__name__]].tolist()


def open_models(source: str, batch: dict[str, torch.Tensor]) -> tuple[dict[str, Any], Any]:
    """Return what each Auto class makes of a model, and the loaded model of its own class."""
    own_class = AutoConfig.from_pretrained(source, trust_remote_code=True).architectures[0]
    report: dict[str, Any] = {}
    own_model = None
    for name, auto_class in AUTO_MODELS.items():
        model, info = auto_class.from_pretrained(
            source, trust_remote_code=True, output_loading_info=True
        )
        report[name] = {
            "class": type(model).__name__,
            "module": type(model).__module__,
            "outputs": compute_outputs(model, batch),
            "missing": sorted({key.split(".")[0] for key in info["missing_keys"]}),
        }
        if name == own_class:
            own_model = model
    return report, own_model


def run_pipeline(pipe: Any) -> dict[str, Any]:
    """Return the results of a pipeline one by one and in batches, with a bad SMILES among them."""
    molecules = [*TINY_SMILES[:3], BAD_SMILES, *TINY_SMILES[3:]]
    return {
        "task": pipe.task,
        "class": type(pipe).__name__,
        "single": pipe(molecules),
        "batched": pipe(molecules, batch_size=2),
    }


def visit(source: str, *, resave: Path | None) -> dict[str, Any]:
    """Open a model in every way there is, and save it again if there is a folder for it."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(source, trust_remote_code=True)
    batch = dict(processor(TINY_SMILES, return_tensors="pt"))
    same_batch = dict(extractor(TINY_SMILES, return_tensors="pt"))
    models, own_model = open_models(source, batch)
    pipe = pipeline(model=source, trust_remote_code=True)
    if resave is not None:
        own_model.save_pretrained(resave / "parts")
        # the two Auto classes of the processor take turns
        saver = extractor if "ForPreTraining" in type(own_model).__name__ else processor
        saver.save_pretrained(resave / "parts")
        pipe.save_pretrained(resave / "pipeline")
    return {
        "config": type(config).__name__,
        "processor": type(processor).__name__,
        "extractor": type(extractor).__name__,
        "options": processor.to_dict(),
        "extractors_agree": all(torch.equal(batch[key], same_batch[key]) for key in batch),
        "models": models,
        "pipeline": run_pipeline(pipe),
    }


def visit_without_rdkit(source: str, features: str) -> dict[str, Any]:
    """Open the models with features from elsewhere, and try the parts that need chemistry."""
    batch = torch.load(features, weights_only=True)
    report: dict[str, Any] = {"models": open_models(source, batch)[0]}
    attempts = {"processor": AutoProcessor.from_pretrained, "pipeline": _build_pipeline}
    for name, attempt in attempts.items():
        try:
            attempt(source, trust_remote_code=True)
        except ImportError as error:
            report[name] = str(error)
    return report


def _build_pipeline(source: str, **options: Any) -> Any:
    return pipeline(model=source, **options)


def main(job: dict[str, Any]) -> None:
    """Do one job and write its report."""
    report: dict[str, Any] = {
        "import_errors": {name: try_import(name) for name in ("rmat_hf", "rdkit")},
        "visits": {},
    }
    for name, source in job["models"].items():
        if "features" in job:
            report["visits"][name] = visit_without_rdkit(source, job["features"])
        else:
            resave = Path(job["resave"]) / name if "resave" in job else None
            report["visits"][name] = visit(source, resave=resave)
    Path(job["report"]).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
