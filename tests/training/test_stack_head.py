"""A stack of kernel head and forest: beside scikit-learn, weighted by folds, saved and loaded."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from processes import predict_without_package
from saved_folder import STACK_CLASSES, assert_folder_is_self_contained
from sklearn.ensemble import ExtraTreesRegressor
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import build_tiny_arguments
from transformers import AutoModelForSequenceClassification, pipeline

from rmat_hf import (
    RMatProcessor,
    RMatStackForSequenceClassification,
    embed,
    featurize_dataset,
    fit_stack_head,
    predict,
    push_folder,
)
from rmat_hf.errors import UserError
from rmat_hf.loading import load_predictor, read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training import finetuning, kernel_head, stack_head
from rmat_hf.training.finetuning import finetune, run_finetuning
from rmat_hf.training.stack_head import fit_stack_with_held_out

SMILES = ["C" * size + end for end in ("O", "N", "F", "C#N", "") for size in range(1, 9)]
NEW_SMILES = ["CCCCCCCCCO", "CC(C)N", "c1ccccc1"]
SIZES = np.array([len(smiles.replace("#", "")) for smiles in SMILES], dtype=float)
FOLDS = np.arange(len(SMILES)) % 4
NAME = "RMatStackForSequenceClassification"


@pytest.fixture(scope="module")
def reading() -> RMatProcessor:
    return RMatProcessor(
        geometry="bounds",
        fingerprints=["fcfp4", "ecfp4"],
        molecule_descriptors=["MolWt", "TPSA", "MolLogP"],
    )


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack_head, "_NUM_TREES", 10)
        yield


def fit(tiny_encoder: Path, reading: RMatProcessor, labels: Any, **options: Any) -> Any:
    values = np.array(labels, dtype=float).reshape(len(SMILES), -1)
    names = [f"y{idx}" for idx in range(values.shape[1])]
    columns = dict(zip(names, values.T, strict=True))
    fields = {"kernel_features": ["vectors", "fcfp4"], "problem_type": "regression", "seed": 0}
    fields |= {"label_units": (), "label_columns": names, "folds": FOLDS, **options}
    rows = featurize_dataset(
        Dataset.from_dict({"smiles": SMILES, **columns}),
        reading,
        label_columns=names,
        problem_type=fields["problem_type"],
    )
    return fit_stack_with_held_out(read_checkpoint(tiny_encoder), rows, **fields)


@pytest.fixture(scope="module")
def fitted(tiny_encoder: Path, reading: RMatProcessor) -> Any:
    sparse = SIZES**2
    sparse[::7] = np.nan
    return fit(tiny_encoder, reading, np.stack([SIZES, sparse], axis=1))


@pytest.fixture
def folder(fitted: Any, reading: RMatProcessor, tmp_path: Path) -> Path:
    fitted[0].save_pretrained(tmp_path / "model")
    reading.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def read_features(model: Any, reading: RMatProcessor, smiles: list[str]) -> torch.Tensor:
    batch = dict(reading(smiles, return_tensors="pt"))
    descriptors = model.descriptor_scaler(batch["molecule_descriptors"])
    features = model.read_forest_features(batch["fingerprint_counts"], descriptors)
    assert isinstance(features, torch.Tensor)
    return features


def test_trees_decide_as_those_of_scikit_learn(fitted: Any, reading: RMatProcessor) -> None:
    model = fitted[0]
    features = read_features(model, reading, [*SMILES, *NEW_SMILES])
    options: dict[str, Any] = {**stack_head._TREE_OPTIONS, "random_state": 0}
    for label, labels in enumerate((SIZES, SIZES**2)):
        known = np.arange(len(SMILES)) if label == 0 else np.flatnonzero(np.arange(40) % 7)
        forest = ExtraTreesRegressor(10, **options)
        mean, std = model.config.label_mean[label], model.config.label_std[label]
        forest.fit(features.numpy()[known], (labels[known] - mean) / std)
        expected = forest.predict(features.numpy())
        np.testing.assert_allclose(model.forest(features)[:, label], expected, rtol=0, atol=1e-6)


def test_a_value_on_the_threshold_goes_where_scikit_learn_sends_it(
    fitted: Any, reading: RMatProcessor
) -> None:
    # thresholds of float64 between neighbors of float32, of which half round up
    neighbors = np.array([[8.0], [np.nextafter(np.float32(8), np.float32(9))]], dtype=np.float32)
    features, labels = neighbors.repeat(4, axis=0), np.array([[0.0], [1.0]]).repeat(4, axis=0)
    model = RMatStackForSequenceClassification(copy.deepcopy(fitted[0].config))
    forests = [stack_head._grow(features, labels, seed=0)]
    stack_head._keep_trees(model, forests * 2)
    expected = forests[0].predict(features)
    assert expected.tolist() == [0.0] * 4 + [1.0] * 4
    np.testing.assert_array_equal(model.forest(torch.from_numpy(features))[:, 0], expected)


@pytest.mark.parametrize("name", ["fit", "predict"])
def test_threads_of_the_forest_leave_the_filters_of_warnings(
    monkeypatch: pytest.MonkeyPatch, tiny_encoder: Path, reading: RMatProcessor, name: str
) -> None:
    usual = getattr(ExtraTreesRegressor, name)

    def empty(self: Any, *arguments: Any) -> Any:
        # as threads that restore filters in another order than they took them
        warnings.resetwarnings()
        return usual(self, *arguments)

    monkeypatch.setattr(ExtraTreesRegressor, name, empty)
    before = list(warnings.filters)
    fit(tiny_encoder, reading, SIZES)
    assert list(warnings.filters) == before


def test_the_sum_is_weighted_by_rows_held_out(fitted: Any, reading: RMatProcessor) -> None:
    model, outputs, variances = fitted
    weights = model.member_weights.weights
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(2))
    found = predict(model, [*SMILES, *NEW_SMILES], processor=reading)
    assert found.values.shape == (43, 2) and found.spread is not None
    # held out is another matter than fitted, and the spread is that of the errors held out
    errors = outputs[:, 0] - SIZES
    assert np.abs(found.values[:40, 0] - SIZES).mean() < np.abs(errors).mean()
    assert np.mean(errors**2) == pytest.approx(np.mean(variances[:, 0]), rel=1e-3)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_shares_are_those_of_the_least_loss(problem_type: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(400, 1, generator=generator).double()
    noise = torch.randn(3, 400, 1, generator=generator).double()
    if problem_type == "regression":
        outputs = torch.stack([labels + noise[0], labels + noise[1] / 2, 5 * noise[2]])
        # the shares of two unbiased members go with one over their variances
        expected = [0.2, 0.8, 0.0]
    else:
        labels = (labels > 0).double()
        outputs = torch.stack([5 * (2 * labels - 1), 5 * noise[0], 5 * noise[1]])
        expected = [1.0, 0.0, 0.0]
    shares = stack_head._minimize(outputs, labels, problem_type=problem_type)
    assert shares.sum().item() == pytest.approx(1)
    np.testing.assert_allclose(shares, expected, atol=0.05)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_classes_are_probabilities(
    tiny_encoder: Path, reading: RMatProcessor, num_classes: int
) -> None:
    bounds = np.quantile(SIZES, np.arange(1, num_classes) / num_classes)
    labels = np.digitize(SIZES, bounds).astype(float)
    kinds = {2: "multi_label_classification", 3: "single_label_classification"}
    model, outputs, _ = fit(tiny_encoder, reading, labels, problem_type=kinds[num_classes])
    found = predict(model, SMILES, processor=reading)
    assert found.spread is None
    if num_classes == 2:
        assert ((found.values[:, 0] > 0.5) == labels).mean() > 0.9
        assert (1 / (1 + np.exp(-outputs[:, 0]))).mean() == pytest.approx(labels.mean(), abs=0.05)
    else:
        assert model.forest.values.shape[1] == 3
        assert (found.values.argmax(1) == labels).mean() > 0.9
        assert (outputs.argmax(1) == labels).mean() > 0.7


def test_a_saved_stack_loads_with_the_same_predictions(
    fitted: Any, folder: Path, tiny_encoder: Path, reading: RMatProcessor
) -> None:
    expected = predict(fitted[0], NEW_SMILES, processor=reading)
    found = predict(folder, NEW_SMILES)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found.spread, expected.spread, rtol=1e-5, atol=1e-5)
    assert type(AutoModelForSequenceClassification.from_pretrained(folder)) is type(fitted[0])
    half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    in_half = predict(half, NEW_SMILES, processor=reading)
    np.testing.assert_allclose(in_half.values, expected.values, rtol=0.02, atol=0.02)
    cast = AutoModelForSequenceClassification.from_pretrained(folder).half()
    np.testing.assert_allclose(
        predict(cast, NEW_SMILES, processor=reading).values, expected.values, rtol=0.02, atol=0.02
    )
    half.save_pretrained(folder.parent / "half")
    reading.save_pretrained(folder.parent / "half")
    again = predict(folder.parent / "half", NEW_SMILES)
    np.testing.assert_allclose(again.values, in_half.values, rtol=0.02, atol=0.02)
    assert_folder_is_self_contained(folder, NAME, classes=STACK_CLASSES)
    assert not [*folder.glob("*.bin"), *folder.glob("*.pkl"), *folder.glob("*.joblib")]
    vectors = embed(folder, NEW_SMILES).values
    np.testing.assert_allclose(vectors, embed(tiny_encoder, NEW_SMILES).values, atol=1e-6)
    with pytest.raises(UserError, match=r"--share molecules .*--head network"):
        push_folder(folder, "me/model", dry_run=True)


@pytest.mark.slow
def test_a_saved_stack_works_without_the_package(folder: Path, tmp_path: Path) -> None:
    (here,) = pipeline("molecule-property-prediction", model=folder)(["CCO"])
    (there,) = predict_without_package(folder, ["CCO"], folder=tmp_path)
    for found, own in zip(there["predictions"], here["predictions"], strict=True):
        assert found["value"] == pytest.approx(own["value"], abs=1e-5)


def test_a_run_writes_a_stack_that_predicts_what_it_reported(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    columns = {"y": list(range(12)), "part": ["train"] * 8 + ["valid"] * 2 + ["test"] * 2}
    arguments = build_tiny_arguments(tmp_path, columns, model=str(tiny_encoder), head="auto")
    result = run_finetuning(arguments)
    assert result.head.startswith("stack: the default up to 4,000 rows")
    settings = json.loads((result.output_dir / "finetuning_arguments.json").read_text())
    assert settings["head"] == "stack"
    table = np.genfromtxt(
        result.output_dir / "predictions.csv",
        delimiter=",",
        names=True,
        dtype=None,
        encoding="utf-8",
    )
    is_test = table["split"] == "test"
    found = predict(result.output_dir, table["smiles"].tolist())
    np.testing.assert_allclose(found.values[is_test, 0], table["prediction_y"][is_test], atol=1e-5)
    assert found.spread is not None
    np.testing.assert_allclose(found.spread[is_test, 0], table["spread_y"][is_test], atol=1e-5)
    card = (result.output_dir / "README.md").read_text(encoding="utf-8")
    assert (
        "what learned: stack; the default up to 4,000 rows" in card
        and "weights by held-out folds: kernel" in card
        and "beside it a forest" in card
    )


@pytest.mark.slow
def test_networks_that_were_trained_without_a_fold_are_a_member(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    parts = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2
    columns = {"y": range(12), "pH": [7.0, 5.0, 3.0] * 4, "part": parts}
    options: dict[str, Any] = {"num_train_epochs": 3.0, "learning_rate": 0.01, "ema_decay": 0.0}
    arguments = build_tiny_arguments(
        tmp_path,
        columns,
        model=str(tiny_encoder),
        head="stack+network",
        label_columns=["y"],
        feature_columns=["pH"],
        **options,
    )
    result = run_finetuning(arguments)
    assert "forest" in result.head and "networks" in result.head
    model, _ = load_predictor(result.output_dir, device="cpu")
    assert model.config.num_networks == len(model.networks.members) == 5
    weights = model.member_weights.weights
    assert weights.shape == (3, 1) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    # beside a molecule the networks read pH alone, the other members descriptors too
    assert model.networks.config.num_molecule_descriptors == 1
    assert model.config.num_molecule_descriptors > 100
    first, second = (dict(it.named_parameters()) for it in model.networks.members[:2])
    assert any((first[name] != second[name]).any() for name in first)
    table = pd.read_csv(result.output_dir / "predictions.csv")
    chosen = table[table["split"] == "test"]
    cells = {"pH": [columns["pH"][row] for row in chosen["row"]]}
    found = predict(result.output_dir, chosen["smiles"].tolist(), covariates=cells)
    np.testing.assert_allclose(found.values[:, 0], chosen["prediction_y"], atol=1e-5)
    np.testing.assert_allclose(found.spread[:, 0], chosen["spread_y"], atol=1e-5)
    log = json.loads((result.output_dir / "training_log.json").read_text())
    assert {it["member"] for it in log} == set(range(5))
    # nothing is chosen on the fold that a network was trained without
    assert max(it["epoch"] for it in log) == 3 and not any("eval_loss" in it for it in log)
    card = (result.output_dir / "README.md").read_text(encoding="utf-8")
    assert "5 networks, each finetuned for 3 epochs with another fold left out" in " ".join(
        card.split()
    )
    settings = json.loads((result.output_dir / "finetuning_arguments.json").read_text())
    assert settings["batch_size"] == 32 and settings["num_members"] == 1
    vectors = embed(result.output_dir, NEW_SMILES).values
    np.testing.assert_allclose(vectors, embed(tiny_encoder, NEW_SMILES).values, atol=1e-6)
    assert_folder_is_self_contained(result.output_dir, NAME, classes=STACK_CLASSES)


def test_too_many_rows_are_refused_before_networks_are_trained(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_head, "MAX_ROWS", 9)
    monkeypatch.setattr(finetuning, "_train", None)
    arguments = build_tiny_arguments(tmp_path, model=str(tiny_encoder), head="stack+network")
    with pytest.raises(UserError, match="more than the 9 that a kernel head can keep"):
        run_finetuning(arguments)


@pytest.mark.slow
def test_networks_leave_out_the_folds_of_the_other_members(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    # five periods asked for, three found, and of three two
    times = [2001] * 15 + [2003] * 6 + [2004] * 3 + [2005] * 3 + [2006] * 3
    table = Dataset.from_dict({"smiles": SMILES[:30], "y": SIZES[:30], "t": times})
    result = finetune(
        table,
        label_columns=["y"],
        output_dir=tmp_path / "run",
        model=str(tiny_encoder),
        head="stack+network",
        num_train_epochs=1,
        num_workers=0,
        feature_cache="none",
        split="time",
        time_column="t",
    )
    model, _ = load_predictor(result.output_dir, device="cpu")
    assert model.config.num_networks == 3


@pytest.mark.slow
def test_networks_of_a_stack_count_by_their_errors(
    tiny_encoder: Path, reading: RMatProcessor
) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, problem_type="regression")
    fields = {"label_mean": [SIZES.mean()], "label_std": [SIZES.std()]}
    fields |= {"id2label": {0: "y0"}, "label2id": {"y0": 0}}
    for name, value in fields.items():
        setattr(config, name, value)
    networks = RMatEnsembleForSequenceClassification.from_members(
        [RMatForSequenceClassification(config) for _ in range(2)]
    )
    noise = np.random.default_rng(0).normal(size=(40, 1))
    shares = []
    for error in (1e-3, 10.0):
        logits = SIZES[:, None] + error * noise
        model, outputs, _ = fit(tiny_encoder, reading, SIZES, networks=(networks, logits))
        shares.append(model.member_weights.weights[-1, 0].item())
        assert np.abs(outputs[:, 0] - SIZES).mean() < 1
    assert shares[0] > 0.9 and shares[1] < 0.1


def test_rows_without_descriptors_are_refused(tiny_encoder: Path) -> None:
    processor = RMatProcessor(geometry="bounds", fingerprints=["ecfp4"])
    table = Dataset.from_dict({"smiles": SMILES, "y": SIZES})
    rows = featurize_dataset(table, processor, label_columns=["y"])
    with pytest.raises(UserError, match="no molecule descriptors"):
        fit_stack_head(tiny_encoder, rows, label_columns=["y"])
