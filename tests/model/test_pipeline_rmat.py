"""The pipelines in this process: what comes out, for every kind of model and of input."""

import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from rdkit import Chem
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from transformers import pipeline
from transformers.models.auto.modeling_auto import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

import rmat_hf
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.loading import checkpoint_path
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.model.pipeline_rmat import (
    RMatAtomPropertyPredictionPipeline,
    RMatFeatureExtractionPipeline,
    RMatPropertyPredictionPipeline,
    describe_pipeline,
)
from rmat_hf.model.processing_rmat import RMatProcessor

BAD_MOLECULES = {
    "C1CC": "unclosed ring",
    "": "empty",
    None: "missing",
    "C*": "dummy atom",
    "C" * 300: "max_atoms",
    7: "but 7",
}
# Of values around 1; batches of another size sum in another order in float32.
TOLERANCE = 1e-6


def build_pipeline(processor: RMatProcessor, **options: Any) -> RMatPropertyPredictionPipeline:
    torch.manual_seed(0)
    options = {"problem_type": "regression", "id2label": {0: "y"}, **options}
    model = RMatForSequenceClassification(RMatConfig(**TINY_ARCHITECTURE, **options)).train()
    return RMatPropertyPredictionPipeline(model=model, feature_extractor=processor)


@pytest.fixture
def pipe(
    tiny_model: RMatForSequenceClassification, processor: RMatProcessor
) -> RMatPropertyPredictionPipeline:
    return RMatPropertyPredictionPipeline(model=tiny_model, feature_extractor=processor)


@pytest.fixture
def expected(tiny_model: RMatForSequenceClassification, processor: RMatProcessor) -> list[float]:
    return predict(tiny_model, TINY_SMILES, processor=processor).values[:, 0].tolist()


def test_a_molecule_without_the_covariates_of_a_model_is_told_of(
    processor: RMatProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    beside = [{"name": "pH of its assay"}, {"name": "salt", "categories": ["Na", "K"]}]
    pipe = build_pipeline(processor, covariates=beside, num_molecule_descriptors=3)
    assert pipe({"smiles": "CCO", "pH of its assay": 7.4, "salt": None})["error"] is None
    assert not caplog.text
    assert pipe({"smiles": "CCO", "pH of its assay": 7.4})["error"] is None
    assert "salt: the model was trained with it" in caplog.text
    caplog.clear()
    assert [it["error"] for it in pipe(["CCO", "CC"])] == [None, None]
    assert caplog.text.count("pH of its assay, salt: the model was trained with it") == 1


def read_values(results: list[dict[str, Any]]) -> list[float]:
    assert all(result["error"] is None for result in results)
    return [result["predictions"][0]["value"] for result in results]


# Regression and classification


def test_a_regression_gives_label_value_and_unit(processor: RMatProcessor) -> None:
    pipe = build_pipeline(
        processor,
        id2label={0: "logS", 1: "E"},
        label_units=["log(mol/l)", "kcal/mol"],
        label_mean=[5.0, -7.0],
        label_std=[2.0, 0.5],
    )
    values = predict(pipe.model, TINY_SMILES, processor=processor).values
    for result, row in zip(pipe(TINY_SMILES), values, strict=True):
        first, second = (pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE) for value in row)
        assert result == {
            "predictions": [
                {"label": "logS", "unit": "log(mol/l)", "value": first},
                {"label": "E", "unit": "kcal/mol", "value": second},
            ],
            "error": None,
        }


@pytest.mark.parametrize(
    ("problem_type", "num_labels"),
    [
        ("single_label_classification", 2),
        ("single_label_classification", 3),
        ("multi_label_classification", 1),
        ("multi_label_classification", 3),
    ],
)
def test_a_classification_gives_one_probability_per_class(
    problem_type: str, num_labels: int, processor: RMatProcessor
) -> None:
    names = ["toxic", "safe", "unclear"][:num_labels]
    pipe = build_pipeline(processor, id2label=dict(enumerate(names)), problem_type=problem_type)
    expected = predict(pipe.model, TINY_SMILES, processor=processor).values
    for result, row in zip(pipe(TINY_SMILES, batch_size=4), expected, strict=True):
        assert result["predictions"] == [
            {"label": name, "score": pytest.approx(score, abs=TOLERANCE)}
            for name, score in zip(names, row, strict=True)
        ]
        assert ((row > 0) & (row < 1)).all()
        if problem_type == "single_label_classification":
            assert row.sum() == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("molecule-property-prediction", AutoModelForSequenceClassification),
        ("atom-property-prediction", AutoModelForTokenClassification),
    ],
)
def test_a_head_that_never_learned_is_refused_and_one_that_did_is_not(task: str, head: Any) -> None:
    folder = checkpoint_path("rmat-small")
    with pytest.raises(ValueError, match=r"no trained classifier.*[Ff]inetune"):
        pipeline(task, model=folder)
    assert pipeline("molecule-feature-extraction", model=folder)("CCO")["embedding"]
    model = head.from_pretrained(folder, num_labels=1)
    torch.nn.init.constant_(model.classifier.out_proj.bias, 0.5)
    processor = RMatProcessor.from_pretrained(folder)
    assert pipeline(task, model=model, feature_extractor=processor)("CCO")["error"] is None


def test_a_head_that_only_an_adapter_changed_is_not_refused() -> None:
    peft = pytest.importorskip("peft")
    folder = checkpoint_path("rmat-small")
    model = RMatForSequenceClassification.from_pretrained(folder, num_labels=1)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear"))
    processor = RMatProcessor.from_pretrained(folder)
    pipe = RMatPropertyPredictionPipeline(model.merge_and_unload(), feature_extractor=processor)
    assert pipe("CCO")["error"] is None


# Batches and bad molecules


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (2, 0), (3, 1), (20, 0)])
def test_bad_molecules_keep_their_place_and_say_why(
    batch_size: int, num_workers: int, pipe: RMatPropertyPredictionPipeline, expected: list[float]
) -> None:
    # bad ones alone in a batch, first, last and between good ones
    molecules: list[Any] = [*list(BAD_MOLECULES)[:3], *TINY_SMILES[:3]]
    molecules += [*list(BAD_MOLECULES)[3:5], *TINY_SMILES[3:], *list(BAD_MOLECULES)[5:]]
    results = pipe(molecules, batch_size=batch_size, num_workers=num_workers)
    assert len(results) == len(molecules)
    good = []
    for molecule, result in zip(molecules, results, strict=True):
        if molecule in BAD_MOLECULES:
            assert result["predictions"] is None
            assert BAD_MOLECULES[molecule] in result["error"]
        else:
            good.append(result)
    assert read_values(good) == pytest.approx(expected, abs=TOLERANCE)


def test_batches_need_no_workers_where_python_forks_none(
    pipe: RMatPropertyPredictionPipeline, expected: list[float]
) -> None:
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        results = pipe(TINY_SMILES, batch_size=3, num_workers=1)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert read_values(results) == pytest.approx(expected, abs=TOLERANCE)


def test_a_mistake_in_the_code_is_no_bad_molecule(
    pipe: RMatPropertyPredictionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(RMatProcessor, "featurize_compactly", fail)
    with pytest.raises(ValueError, match="a bug"):
        pipe("CCO")


# Kinds of input


def test_one_molecule_gives_one_result(
    pipe: RMatPropertyPredictionPipeline, expected: list[float]
) -> None:
    assert read_values([pipe(TINY_SMILES[0])]) == pytest.approx(expected[:1], abs=TOLERANCE)
    assert pipe("C1CC")["predictions"] is None
    assert "but {'C': 'CCO'}" in pipe({"C": "CCO"})["error"]
    with pytest.raises(TypeError, match="takes no option 'top_k'"):
        pipe("CCO", top_k=3)


def test_lists_and_columns_give_lists(
    pipe: RMatPropertyPredictionPipeline, expected: list[float]
) -> None:
    column = Dataset.from_dict({"smiles": TINY_SMILES})["smiles"]
    mols = map(Chem.MolFromSmiles, TINY_SMILES)
    for molecules in (tuple(TINY_SMILES), np.array(TINY_SMILES), column, mols):
        results = pipe(molecules, batch_size=4)
        assert isinstance(results, list)
        assert read_values(results) == pytest.approx(expected, abs=TOLERANCE)
    assert pipe([]) == pipe(()) == pipe(np.array([], dtype=str)) == []


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_generator_is_read_as_results_are_taken(
    batch_size: int, pipe: RMatPropertyPredictionPipeline, expected: list[float]
) -> None:
    read: list[str] = []

    def generate() -> Iterator[str]:
        for smiles in TINY_SMILES:
            read.append(smiles)
            yield smiles

    results = pipe(generate(), batch_size=batch_size)
    next(iter(results))
    assert len(read) <= batch_size + 1
    rest = list(pipe((smiles for smiles in TINY_SMILES), batch_size=batch_size))
    assert read_values(rest) == pytest.approx(expected, abs=TOLERANCE)


# Models


def test_a_model_in_training_mode_predicts_without_dropout(processor: RMatProcessor) -> None:
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    pipe = build_pipeline(processor, **dropout)
    assert not any(module.training for module in pipe.model.modules())
    assert read_values(pipe(TINY_SMILES)) == read_values(pipe(TINY_SMILES))
    assert pipe.model.classifier.out_proj.weight.grad is None


def test_a_model_with_descriptors_gets_them(processor: RMatProcessor) -> None:
    with_descriptors = RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt", "TPSA"])
    pipe = build_pipeline(with_descriptors, num_molecule_descriptors=2)
    pipe.model.descriptor_scaler.fit(torch.tensor([[10.0, 0.0], [200.0, 90.0]]))
    expected = predict(pipe.model, TINY_SMILES, processor=with_descriptors).values[:, 0].tolist()
    results = pipe([*TINY_SMILES, "C1CC"], batch_size=4)
    assert read_values(results[:-1]) == pytest.approx(expected, abs=TOLERANCE)
    assert results[-1]["predictions"] is None
    pipe.feature_extractor = processor
    with pytest.raises(ValueError, match="Use the processor saved with the model"):
        pipe("CCO")


# Feature extraction


@pytest.mark.parametrize(
    ("model_class", "pooling"),
    [
        (RMatModel, "attention"),
        (RMatModel, "mean"),
        (RMatModel, "dummy_node"),
        (RMatForPreTraining, "attention"),
        (RMatForSequenceClassification, "attention"),
    ],
)
def test_feature_extraction_gives_the_pooler_output(
    model_class: type, pooling: str, processor: RMatProcessor
) -> None:
    torch.manual_seed(0)
    model = model_class(RMatConfig(**TINY_ARCHITECTURE, pooling=pooling)).train()
    pipe = RMatFeatureExtractionPipeline(model=model, feature_extractor=processor)
    expected = embed(model, TINY_SMILES, processor=processor).values
    for batch_size in (1, 2, 4):
        results = pipe([*TINY_SMILES, "C1CC"], batch_size=batch_size)
        assert results[-1]["embedding"] is None
        assert "unclosed ring" in results[-1]["error"]
        vectors = np.array([result["embedding"] for result in results[:-1]])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(vectors / scale, expected / scale, rtol=0, atol=TOLERANCE)


def test_vectors_of_atoms_come_in_the_order_of_the_smiles(processor: RMatProcessor) -> None:
    torch.manual_seed(0)
    model = RMatModel(RMatConfig(**TINY_ARCHITECTURE)).eval()
    pipe = RMatFeatureExtractionPipeline(model=model, feature_extractor=processor)
    expected = embed(model, TINY_SMILES, processor=processor, level="atom").values
    for batch_size in (1, 4):
        *results, bad = pipe([*TINY_SMILES, "C1CC"], level="atom", batch_size=batch_size)
        assert bad["embedding"] is None and "unclosed ring" in bad["error"]
        for result, vectors in zip(results, expected, strict=True):
            np.testing.assert_allclose(result["embedding"], vectors, rtol=0, atol=1e-5)
    assert len(pipe("CCO")["embedding"]) == 4 * 32
    with pytest.raises(ValueError, match=r"'bond'.*molecule, atom"):
        pipe("CCO", level="bond")


def test_properties_of_atoms_have_label_value_and_unit_for_each(processor: RMatProcessor) -> None:
    torch.manual_seed(0)
    fields = {"id2label": {0: "charge", 1: "logP"}, "label_units": ["e", "1"]}
    scaling = {"label_mean": [5.0, -7.0], "label_std": [2.0, 0.5], "problem_type": "regression"}
    model = RMatForTokenClassification(RMatConfig(**TINY_ARCHITECTURE, **fields, **scaling)).eval()
    pipe = RMatAtomPropertyPredictionPipeline(model=model, feature_extractor=processor)
    *results, bad = pipe([*TINY_SMILES, "C1CC"], batch_size=4)
    assert bad["predictions"] is None and "unclosed ring" in bad["error"]
    for smiles, result in zip(TINY_SMILES, results, strict=True):
        with torch.no_grad():
            logits = model(**processor(smiles, return_tensors="pt")).logits[0, 1:].tolist()
        assert result["predictions"] == [
            [
                {"label": "charge", "value": pytest.approx(charge, abs=1e-5), "unit": "e"},
                {"label": "logP", "value": pytest.approx(log_p, abs=1e-5), "unit": "1"},
            ]
            for charge, log_p in logits
        ]


# Registration


@pytest.mark.parametrize(
    ("model_class", "pipeline_class"),
    [
        (RMatModel, RMatFeatureExtractionPipeline),
        (RMatForPreTraining, RMatFeatureExtractionPipeline),
        (RMatForSequenceClassification, RMatPropertyPredictionPipeline),
        (RMatForTokenClassification, RMatAtomPropertyPredictionPipeline),
    ],
)
def test_importing_the_package_registers_the_pipeline_of_every_class(
    model_class: type, pipeline_class: Any
) -> None:
    assert getattr(rmat_hf, pipeline_class.__name__) is pipeline_class
    _, registered, _ = PIPELINE_REGISTRY.check_task(pipeline_class.task_name)
    assert registered["impl"] is pipeline_class
    assert registered["pt"] == (pipeline_class.auto_class,)
    described = {
        "impl": f"pipeline_rmat.{pipeline_class.__name__}",
        "pt": [pipeline_class.auto_class.__name__],
    }
    assert describe_pipeline(model_class.__name__) == {pipeline_class.task_name: described}


@pytest.mark.parametrize("task", ["molecule-property-prediction", None])
@pytest.mark.parametrize(
    "options",
    [{}, {"trust_remote_code": True}, {"pipeline_class": RMatPropertyPredictionPipeline}],
)
def test_a_saved_folder_opens_as_a_pipeline_of_the_package_without_trust(
    task: str | None,
    options: dict[str, Any],
    tiny_model_folder: Path,
    remote_code_cache: Path,
    expected: list[float],
) -> None:
    pipe = pipeline(task, model=str(tiny_model_folder), **options)
    assert (pipe.task, type(pipe)) == (
        "molecule-property-prediction",
        RMatPropertyPredictionPipeline,
    )
    assert read_values(pipe(TINY_SMILES, batch_size=4)) == pytest.approx(expected, abs=TOLERANCE)
    assert not list(remote_code_cache.rglob("*_rmat.py"))


def test_a_pipeline_of_the_package_saves_what_opens_without_it(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    config = RMatConfig.from_pretrained(tiny_model_folder)
    config.save_pretrained(tmp_path / "again")
    saved = [
        json.loads((folder / "config.json").read_text())["custom_pipelines"]
        for folder in (tiny_model_folder, tmp_path / "again")
    ]
    assert saved == [describe_pipeline("RMatForSequenceClassification")] * 2
