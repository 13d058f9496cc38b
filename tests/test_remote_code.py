"""A saved folder works for somebody who does not have this package, and stays so when re-saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from outsider import AUTO_MODELS, BAD_SMILES, compute_outputs
from processes import TESTS, run_python
from saved_folder import AUTO_CLASSES, PIPELINES, PROCESSOR_CLASSES, assert_folder_is_self_contained
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForTokenClassification,
    AutoProcessor,
)

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.model.pipeline_rmat import (
    RMatFeatureExtractionPipeline,
    RMatPropertyPredictionPipeline,
)
from rmat_hf.model.processing_rmat import RMatProcessor

HEADS = [RMatModel, RMatForPreTraining, RMatForSequenceClassification]
HEAD_NAMES = [head.__name__ for head in HEADS]
# Parts of the loaded class that are not among the weights of the saved one.
UNTRAINED = {
    "RMatModel": [],
    "RMatForPreTraining": ["context_head", "descriptor_head"],
    "RMatForSequenceClassification": ["classifier"],
}
TOLERANCE = 1e-6

each_head = pytest.mark.parametrize("head", HEADS, ids=HEAD_NAMES)
each_head_name = pytest.mark.parametrize("name", HEAD_NAMES)


class Saved(NamedTuple):
    """A head that the package saved, and what it computes."""

    folder: Path
    outputs: dict[str, list[Any]]


def save_head(head: type, folder: Path) -> Any:
    torch.manual_seed(0)
    labels = {"label2id": {"logS": 0, "logP": 1}, "label_units": ["mol/l", "1"]}
    config = RMatConfig(
        **TINY_ARCHITECTURE,
        id2label={0: "logS", 1: "logP"},
        problem_type="regression",
        label_mean=[1.0, -2.0],
        label_std=[0.5, 0.25],
        **labels,
    )
    model = head(config).eval()
    model.save_pretrained(folder)
    RMatProcessor(geometry="bounds", max_atoms=99).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    return dict(RMatProcessor(geometry="bounds")(TINY_SMILES, return_tensors="pt"))


@pytest.fixture(scope="module")
def saved(
    tmp_path_factory: pytest.TempPathFactory, batch: dict[str, torch.Tensor]
) -> dict[str, Saved]:
    root = tmp_path_factory.mktemp("saved")
    heads = {}
    for head in HEADS:
        folder = root / head.__name__
        model = save_head(head, folder)
        outputs = {head.__name__: compute_outputs(model, batch)}
        outputs["RMatModel"] = compute_outputs(model.base_model, batch)
        heads[head.__name__] = Saved(folder, outputs)
    return heads


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outsider")


def send_outsider(work: Path, name: str, *, blocked: list[str], **job: Any) -> dict[str, Any]:
    """Run the script tests/outsider.py in a process that cannot import some modules."""
    folder = work / name
    folder.mkdir()
    job |= {"report": str(folder / "report.json")}
    done = run_python([TESTS / "outsider.py", json.dumps(job)], folder=folder, blocked=blocked)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert all(report["import_errors"][name] for name in blocked)
    return report


@pytest.fixture(scope="module")
def first_visit(saved: dict[str, Saved], work: Path) -> dict[str, Any]:
    """The folders of the package, opened and saved again without it."""
    models = {name: str(head.folder) for name, head in saved.items()}
    resave = str(work / "resaved")
    return send_outsider(work, "first", blocked=["rmat_hf"], models=models, resave=resave)


@pytest.fixture(scope="module")
def saved_again(first_visit: dict[str, Any], work: Path) -> dict[str, Path]:
    """What was saved without the package, opened and saved once more with it."""
    folders = {}
    for name in first_visit["visits"]:
        source, folder = work / "resaved" / name / "parts", work / "again" / name
        # no trust_remote_code: the package's own classes are taken
        AUTO_MODELS[name].from_pretrained(source).save_pretrained(folder)
        AutoProcessor.from_pretrained(source).save_pretrained(folder)
        folders[name] = folder
    return folders


@pytest.fixture(scope="module")
def second_visit(saved_again: dict[str, Path], work: Path) -> dict[str, Any]:
    """Everything that was saved again, opened in one more process without the package."""
    models = {f"again {name}": str(folder) for name, folder in saved_again.items()}
    for name in saved_again:
        for part in ("parts", "pipeline"):
            models[f"{part} {name}"] = str(work / "resaved" / name / part)
    return send_outsider(work, "second", blocked=["rmat_hf"], models=models)


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=0, atol=TOLERANCE)


def assert_visit_is_complete(visit: dict[str, Any], head: Saved) -> None:
    """All six Auto classes and the pipeline work, with the numbers of the package."""
    name = head.folder.name
    assert visit["config"] == "RMatConfig"
    assert visit["processor"] == visit["extractor"] == "RMatProcessor"
    assert visit["options"]["max_atoms"] == 99
    assert visit["extractors_agree"]
    for class_name, loaded in visit["models"].items():
        assert loaded["class"] == class_name
        assert loaded["module"].startswith("transformers_modules.")
        assert loaded["missing"] == ([] if class_name == name else UNTRAINED[class_name])
        if class_name in head.outputs:
            assert_close(loaded["outputs"], head.outputs[class_name])
    pipe = visit["pipeline"]
    assert (pipe["task"], pipe["class"]) == PIPELINES[name][:2]
    assert_pipeline_results(pipe, head)


def assert_pipeline_results(pipe: dict[str, Any], head: Saved) -> None:
    is_predictor = pipe["task"] == "molecule-property-prediction"

    def read(results: list[dict[str, Any]]) -> list[list[float]]:
        known = [result for result in results if result["error"] is None]
        if is_predictor:
            return [[entry["value"] for entry in result["predictions"]] for result in known]
        return [result["embedding"] for result in known]

    for results in (pipe["single"], pipe["batched"]):
        assert BAD_SMILES in results[3]["error"]
        assert [result["error"] for result in results].count(None) == len(TINY_SMILES)
        expected = head.outputs["RMatForSequenceClassification" if is_predictor else "RMatModel"]
        assert_close(read(results), expected)


# What is in a folder


@each_head
def test_a_saved_folder_is_self_contained(head: type, tmp_path: Path) -> None:
    save_head(head, tmp_path / "saved")
    assert_folder_is_self_contained(tmp_path / "saved", head.__name__)


def test_a_configuration_saved_alone_brings_its_code(tmp_path: Path) -> None:
    RMatConfig(**TINY_ARCHITECTURE).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {"AutoConfig": AUTO_CLASSES["AutoConfig"]}
    assert (tmp_path / "configuration_rmat.py").is_file()


@pytest.mark.parametrize("is_pipeline_first", [True, False])
def test_a_saved_pipeline_is_self_contained(is_pipeline_first: bool, tmp_path: Path) -> None:
    for head, pipeline_class in (
        (RMatForSequenceClassification, RMatPropertyPredictionPipeline),
        (RMatModel, RMatFeatureExtractionPipeline),
    ):
        folder = tmp_path / head.__name__
        model = save_head(head, folder / "parts")
        pipe = pipeline_class(model=model, feature_extractor=RMatProcessor())
        if not is_pipeline_first:
            model.save_pretrained(folder / "pipeline")
        pipe.save_pretrained(folder / "pipeline")
        assert_folder_is_self_contained(folder / "pipeline", head.__name__)


def test_references_to_the_repository_a_model_came_from_are_not_saved(tmp_path: Path) -> None:
    """transformers writes them into the configuration when it downloads code from the Hub."""
    model = save_head(RMatForSequenceClassification, tmp_path / "first")
    model.config.auto_map = {key: f"user/repo--{value}" for key, value in AUTO_CLASSES.items()}
    impl = "user/repo--pipeline_rmat.RMatPropertyPredictionPipeline"
    # and classes in the place of their names, when a pipeline was built from it
    classes = (AUTO_MODELS["RMatForSequenceClassification"],)
    model.config.custom_pipelines = {"molecule-property-prediction": {"impl": impl, "pt": classes}}
    processor = RMatProcessor()
    processor.auto_map = {key: f"user/repo--{value}" for key, value in PROCESSOR_CLASSES.items()}
    model.save_pretrained(tmp_path / "second")
    processor.save_pretrained(tmp_path / "second")
    assert_folder_is_self_contained(tmp_path / "second", "RMatForSequenceClassification")


@pytest.mark.parametrize(
    "name", [*AUTO_MODELS, "AutoConfig", "AutoProcessor", "AutoFeatureExtractor"]
)
def test_with_the_package_no_trust_is_needed(name: str, saved: dict[str, Saved]) -> None:
    classes: dict[str, Callable[..., Any]] = {
        **{key: value.from_pretrained for key, value in AUTO_MODELS.items()},
        "AutoConfig": AutoConfig.from_pretrained,
        "AutoProcessor": AutoProcessor.from_pretrained,
        "AutoFeatureExtractor": AutoFeatureExtractor.from_pretrained,
    }
    for head in saved.values():
        assert type(classes[name](head.folder)).__module__.startswith("rmat_hf.")


# In other processes


@pytest.mark.slow
@each_head_name
def test_every_auto_class_opens_every_head_without_the_package(
    name: str, first_visit: dict[str, Any], saved: dict[str, Saved]
) -> None:
    assert_visit_is_complete(first_visit["visits"][name], saved[name])


@pytest.mark.slow
@each_head_name
@pytest.mark.parametrize("part", ["parts", "pipeline", "again"])
def test_every_auto_class_opens_what_was_saved_again(
    part: str,
    name: str,
    second_visit: dict[str, Any],
    saved_again: dict[str, Path],
    saved: dict[str, Saved],
    work: Path,
) -> None:
    head = saved[name]
    # a pipeline holds the model it uses
    if part == "pipeline" and name != "RMatForSequenceClassification":
        outputs = {"RMatModel": head.outputs["RMatModel"]}
        head = Saved(saved["RMatModel"].folder, outputs)
    folder = saved_again[name] if part == "again" else work / "resaved" / name / part
    assert_folder_is_self_contained(folder, head.folder.name)
    assert_visit_is_complete(second_visit["visits"][f"{part} {name}"], head)


@pytest.mark.slow
@each_head_name
def test_the_package_opens_what_was_saved_without_it(
    name: str,
    saved_again: dict[str, Path],
    saved: dict[str, Saved],
    batch: dict[str, torch.Tensor],
) -> None:
    model = AUTO_MODELS[name].from_pretrained(saved_again[name])
    assert_close(compute_outputs(model, batch), saved[name].outputs[name])


@pytest.mark.slow
def test_without_rdkit_models_load_and_the_rest_says_what_to_install(
    saved: dict[str, Saved], work: Path, batch: dict[str, torch.Tensor]
) -> None:
    torch.save(batch, work / "features.pt")
    report = send_outsider(
        work,
        "without_rdkit",
        blocked=["rmat_hf", "rdkit"],
        models={name: str(head.folder) for name, head in saved.items()},
        features=str(work / "features.pt"),
    )
    for name, visit in report["visits"].items():
        for class_name, outputs in saved[name].outputs.items():
            assert_close(visit["models"][class_name]["outputs"], outputs)
        for part in ("processor", "pipeline"):
            assert "rdkit" in visit[part]


# Atoms

VISIT_OF_ATOMS = """
import json, sys
import torch
from transformers import AutoModelForTokenClassification, AutoProcessor, pipeline

folder, smiles = sys.argv[1], sys.argv[2]
model = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(smiles, return_tensors="pt")).logits[0, 1:, 0].tolist()
pipe = pipeline(model=folder, trust_remote_code=True)
values = [atom[0]["value"] for atom in pipe(smiles)["predictions"]]
model.save_pretrained(sys.argv[3])
print(json.dumps([type(model).__module__, pipe.task, logits, values]))
"""


@pytest.mark.slow
def test_a_model_of_atoms_works_without_the_package(tmp_path: Path) -> None:
    model = save_head(RMatForTokenClassification, tmp_path / "saved")
    assert_folder_is_self_contained(tmp_path / "saved", "RMatForTokenClassification")
    arguments = [tmp_path / "saved", "OC(=O)CCl", tmp_path / "again"]
    done = run_python(["-c", VISIT_OF_ATOMS, *arguments], folder=tmp_path, blocked=["rmat_hf"])
    assert done.returncode == 0, done.stderr[-4000:]
    module, task, logits, values = json.loads(done.stdout)
    assert module.startswith("transformers_modules.")
    assert task == "atom-property-prediction"
    batch = RMatProcessor(geometry="bounds")("OC(=O)CCl", return_tensors="pt")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        expected, reloaded = (it(**batch).logits[0, 1:, 0].tolist() for it in (model, again))
    for found in (logits, values, reloaded):
        assert_close(found, expected)
