"""What has to be in a saved folder so that it works for somebody without this package."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
AUTO_CLASSES = {
    "AutoConfig": "configuration_rmat.RMatConfig",
    "AutoModel": "modeling_rmat.RMatModel",
    "AutoModelForPreTraining": "modeling_rmat.RMatForPreTraining",
    "AutoModelForSequenceClassification": "modeling_rmat.RMatForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_rmat.RMatForTokenClassification",
}
ENSEMBLE_CLASSES = {
    "AutoConfig": "configuration_rmat.RMatEnsembleConfig",
    "AutoModelForSequenceClassification": "ensemble_rmat.RMatEnsembleForSequenceClassification",
}
KERNEL_CLASSES = {
    "AutoConfig": "configuration_rmat.RMatKernelConfig",
    "AutoModelForSequenceClassification": "kernel_rmat.RMatKernelForSequenceClassification",
}
STACK_CLASSES = {
    "AutoConfig": "configuration_rmat.RMatStackConfig",
    "AutoModelForSequenceClassification": "stack_rmat.RMatStackForSequenceClassification",
}
PROCESSOR_CLASSES = {
    "AutoFeatureExtractor": "processing_rmat.RMatProcessor",
    "AutoProcessor": "processing_rmat.RMatProcessor",
}
PIPELINES = {
    "RMatModel": ("molecule-feature-extraction", "RMatFeatureExtractionPipeline", "AutoModel"),
    "RMatForPreTraining": (
        *("molecule-feature-extraction", "RMatFeatureExtractionPipeline", "AutoModel"),
    ),
    "RMatForSequenceClassification": (
        *("molecule-property-prediction", "RMatPropertyPredictionPipeline"),
        "AutoModelForSequenceClassification",
    ),
}
PIPELINES["RMatForTokenClassification"] = (
    *("atom-property-prediction", "RMatAtomPropertyPredictionPipeline"),
    "AutoModelForTokenClassification",
)
for _kind in ("Ensemble", "Kernel", "Stack"):
    PIPELINES[f"RMat{_kind}ForSequenceClassification"] = PIPELINES["RMatForSequenceClassification"]


def iterate_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".py", ".md"}:
            yield path.name, path.read_text(encoding="utf-8")


def assert_folder_is_self_contained(
    folder: Path, name: str, *, classes: Mapping[str, str] = AUTO_CLASSES
) -> None:
    """All code is there, every class path leads to a class, and nothing leads elsewhere."""
    config = json.loads((folder / "config.json").read_text())
    options = json.loads((folder / "preprocessor_config.json").read_text())
    assert config["auto_map"] == classes
    assert options["auto_map"] == PROCESSOR_CLASSES
    task, pipeline_class, auto_class = PIPELINES[name]
    impl = f"pipeline_rmat.{pipeline_class}"
    assert config["custom_pipelines"] == {task: {"impl": impl, "pt": [auto_class]}}
    assert config["architectures"] == [name]
    for class_path in {*classes.values(), *PROCESSOR_CLASSES.values(), impl}:
        module, class_name = class_path.split(".")
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        assert class_name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    for path in folder.glob("*.py"):
        assert path.read_bytes() == (REPO_ROOT / "rmat_hf" / "model" / path.name).read_bytes()
        for module in re.findall(r"^\s*from \.(\w+) import", path.read_text(), re.M):
            assert (folder / f"{module}.py").is_file(), f"{path.name} needs {module}.py"
    for file_name, text in iterate_texts(folder):
        for place in (str(folder.parent), str(REPO_ROOT), "/tmp/", "--modeling", "--pipeline"):
            assert place not in text, f"{file_name} names {place}"
