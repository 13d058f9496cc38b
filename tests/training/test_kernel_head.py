"""A kernel head: beside an oracle, with missing labels and classes, saved, loaded and shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from processes import predict_without_package
from saved_folder import KERNEL_CLASSES, assert_folder_is_self_contained
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from tiny_finetuning import build_tiny_arguments
from transformers import AutoModelForSequenceClassification, AutoProcessor, pipeline

from rmat_hf import (
    RMatForSequenceClassification,
    RMatKernelForSequenceClassification,
    RMatProcessor,
    embed,
    export_onnx,
    featurize_dataset,
    fit_kernel_head,
    predict,
    push_folder,
)
from rmat_hf.data.table_writer import Predictions
from rmat_hf.errors import UserError
from rmat_hf.loading import read_checkpoint
from rmat_hf.model.features_rmat import FINGERPRINTS
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.kernel_head import calibrate, fit_with_held_out

ENDS = ("O", "N", "F", "C#N", "")
SMILES = ["C" * size + end for end in ENDS for size in range(1, 9)]
NEW_SMILES = ["CCCCCCCCCO", "CC(C)N", "c1ccccc1"]
KINDS = ["vectors", "environments", *FINGERPRINTS, "descriptors"]
SIZES = np.array([len(smiles.replace("#", "")) for smiles in SMILES], dtype=float)
DESCRIPTORS = ["MolWt", "TPSA"]


@pytest.fixture(scope="module")
def counting() -> RMatProcessor:
    return RMatProcessor(
        geometry="bounds", fingerprints=[*FINGERPRINTS], molecule_descriptors=DESCRIPTORS
    )


def featurize(labels: Any, processor: RMatProcessor, problem_type: str = "regression") -> Dataset:
    values = np.array(labels, dtype=float).reshape(len(SMILES), -1)
    names = [f"y{idx}" for idx in range(values.shape[1])]
    columns = {name: values[:, idx] for idx, name in enumerate(names)}
    table = Dataset.from_dict({"smiles": SMILES, **columns})
    return featurize_dataset(table, processor, label_columns=names, problem_type=problem_type)


def fit(
    tiny_encoder: Path, rows: Dataset, *, num_labels: int = 1, **options: Any
) -> tuple[RMatKernelForSequenceClassification, np.ndarray, np.ndarray]:
    fields = {"kernel_features": KINDS, "problem_type": "regression", "label_units": (), "seed": 0}
    names = [f"y{idx}" for idx in range(num_labels)]
    fields |= {"label_columns": names, **options}
    return fit_with_held_out(read_checkpoint(tiny_encoder), rows, **fields)


@pytest.fixture(scope="module")
def fitted(tiny_encoder: Path, counting: RMatProcessor) -> Any:
    return fit(tiny_encoder, featurize(SIZES, counting))


@pytest.fixture
def folder(fitted: Any, counting: RMatProcessor, tmp_path: Path) -> Path:
    fitted[0].save_pretrained(tmp_path / "model")
    counting.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def predict_new(model: Any, processor: RMatProcessor) -> Predictions:
    return predict(model, [*SMILES, *NEW_SMILES], processor=processor)


def test_mean_and_variance_are_those_of_scikit_learn(
    tiny_encoder: Path,
) -> None:
    counting_nothing = RMatProcessor(geometry="bounds")
    model = fit(tiny_encoder, featurize(SIZES, counting_nothing), kernel_features=["vectors"])[0]
    vectors = embed(tiny_encoder, [*SMILES, *NEW_SMILES]).values.astype(float)
    train = vectors[: len(SMILES)]
    scaled = np.clip((vectors - train.mean(0)) / train.std(0), -8, 8)
    head = model.classifier
    weight, noise = head.log_weights[0, 0].exp().item(), head.log_noise[0].exp().item()
    width = (head.distance_scales[0] * (2 * head.log_widths[0, 0]).exp()).sqrt().item()
    oracle = GaussianProcessRegressor(
        ConstantKernel(weight) * RBF(width), alpha=noise, optimizer=None
    )
    mean, std = SIZES.mean(), SIZES.std()
    oracle.fit(scaled[: len(SMILES)], (SIZES - mean) / std)
    means, stds = oracle.predict(scaled, return_std=True)
    found = predict_new(model, counting_nothing)
    np.testing.assert_allclose(found.values[:, 0], means * std + mean, atol=2e-3)
    expected = np.sqrt(stds**2 + noise) * std
    assert found.spread is not None
    np.testing.assert_allclose(found.spread[:, 0], expected, rtol=2e-2)


@pytest.mark.parametrize("num_folds", [len(SMILES), 4])
def test_what_it_says_without_a_fold_is_what_a_fit_without_it_says(
    tiny_encoder: Path, counting: RMatProcessor, num_folds: int
) -> None:
    folds = np.random.default_rng(0).permutation(len(SMILES)) % num_folds
    model, outputs, variances = fit(tiny_encoder, featurize(SIZES, counting), folds=folds)
    features, _ = model.classifier.solve()
    distances = model.classifier.compute_distances(features, features)
    kernel = model.classifier.compute_label_kernel(distances, 0).numpy()
    noise = model.classifier.log_noise[0].double().exp().item()
    rows, others = np.flatnonzero(folds == folds[7]), np.flatnonzero(folds != folds[7])
    among = kernel[np.ix_(others, others)] + noise * np.eye(len(others))
    standardized = (SIZES - SIZES.mean()) / SIZES.std()
    weights = np.linalg.solve(among, kernel[np.ix_(others, rows)])
    expected = weights.T @ standardized[others] * SIZES.std() + SIZES.mean()
    np.testing.assert_allclose(outputs[rows, 0], expected, atol=1e-4)
    variance = kernel[rows, rows] - (weights * kernel[np.ix_(others, rows)]).sum(0) + noise
    np.testing.assert_allclose(variances[rows, 0], variance * SIZES.var(), rtol=1e-3)


def test_it_learns_and_knows_what_it_does_not_know(fitted: Any, counting: RMatProcessor) -> None:
    model, outputs, _ = fitted
    assert np.corrcoef(outputs[:, 0], SIZES)[0, 1] > 0.95
    spread = predict_new(model, counting).spread
    assert spread is not None
    assert spread[-1, 0] > spread[: len(SMILES), 0].max()


def test_labels_with_gaps_are_fitted_on_the_rows_that_have_them(
    tiny_encoder: Path, counting: RMatProcessor
) -> None:
    sparse = SIZES.copy()
    sparse[::3] = np.nan
    rows = featurize(np.stack([sparse, -SIZES], axis=1), counting)
    both, outputs, _ = fit(tiny_encoder, rows, num_labels=2)
    known = np.flatnonzero(~np.isnan(sparse))
    full = rows.select(known)
    alone = fit(
        tiny_encoder,
        full.remove_columns("labels").add_column("labels", full["labels"][:]),
        num_labels=2,
    )[0]
    values = predict_new(both, counting).values
    assert np.isfinite(values).all() and np.isfinite(outputs).all()
    # the vectors are standardized on all rows, so not to the digit
    np.testing.assert_allclose(values[:, 0], predict_new(alone, counting).values[:, 0], atol=0.5)
    np.testing.assert_allclose(values[: len(SMILES), 1], -SIZES, atol=0.5)
    np.testing.assert_allclose(values[known, 0], SIZES[known], atol=0.5)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_classes_have_probabilities_that_leave_one_out_supports(
    tiny_encoder: Path, counting: RMatProcessor, num_classes: int
) -> None:
    bounds = np.quantile(SIZES, np.arange(1, num_classes) / num_classes)
    labels = np.digitize(SIZES, bounds).astype(float)
    problem_type = "multi_label_classification"
    if num_classes > 2:
        problem_type = "single_label_classification"
    rows = featurize(labels, counting, problem_type)
    model, outputs, _ = fit(tiny_encoder, rows, problem_type=problem_type)
    found = predict_new(model, counting)
    assert found.spread is None
    if num_classes == 2:
        assert (((found.values[: len(SMILES), 0] > 0.5) == labels).mean()) > 0.9
        held_out = 1 / (1 + np.exp(-outputs[:, 0]))
        assert held_out.mean() == pytest.approx(labels.mean(), abs=0.05)
    else:
        assert (found.values[: len(SMILES)].argmax(1) == labels).mean() > 0.9
        assert (outputs.argmax(1) == labels).mean() > 0.7


def test_a_saved_head_loads_with_the_same_predictions(
    fitted: Any, folder: Path, counting: RMatProcessor
) -> None:
    expected, found = predict_new(fitted[0], counting), predict(folder, [*SMILES, *NEW_SMILES])
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    np.testing.assert_allclose(found.spread, expected.spread, atol=1e-5)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded) is RMatKernelForSequenceClassification
    assert AutoProcessor.from_pretrained(folder).fingerprints == [*FINGERPRINTS]
    pipe = pipeline("molecule-property-prediction", model=folder)
    (entry,) = pipe(NEW_SMILES[0])["predictions"]
    # alone in its batch too: last digits decide between kinds of atoms that are equally near
    alone = predict(folder, NEW_SMILES[:1])
    assert entry["value"] == pytest.approx(alone.values[0, 0], abs=1e-5)
    assert entry["spread"] == pytest.approx(alone.spread[0, 0], abs=1e-5)
    assert not list(folder.glob("*.bin"))
    name = "RMatKernelForSequenceClassification"
    assert_folder_is_self_contained(folder, name, classes=KERNEL_CLASSES)


def test_half_precision_of_the_encoder_leaves_the_head_as_it_is(
    fitted: Any, folder: Path, counting: RMatProcessor
) -> None:
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float16)
    assert loaded.classifier.coefficients.dtype == torch.float32
    assert loaded.rmat.embeddings.node_proj.weight.dtype == torch.float16
    exact = predict_new(fitted[0], counting)
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16):
        narrow = cast(AutoModelForSequenceClassification.from_pretrained(folder))
        assert narrow.classifier.coefficients.dtype == torch.float32
        found = predict_new(narrow, counting)
        np.testing.assert_allclose(found.values, exact.values, rtol=0.01)
        np.testing.assert_allclose(found.spread, exact.spread, rtol=0.05)


def test_other_labels_are_refused(folder: Path, counting: RMatProcessor) -> None:
    options = {"num_labels": 3, "problem_type": "multi_label_classification"}
    with pytest.raises(ValueError, match=r"learns no others\. finetune\(model"):
        AutoModelForSequenceClassification.from_pretrained(
            folder, ignore_mismatched_sizes=True, **options
        )
    model = RMatForSequenceClassification.from_pretrained(folder, **options)
    assert model.classifier.out_proj.out_features == 3


def test_training_by_gradients_is_refused(folder: Path, counting: RMatProcessor) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = counting(["CCO", "C"], return_tensors="pt") | {"labels": torch.zeros(2)}
    assert model(**batch).loss.isfinite()
    with pytest.raises(ValueError, match="not trained by gradients"):
        model.train()(**batch)


@pytest.mark.slow
def test_a_saved_head_works_without_the_package(folder: Path, tmp_path: Path) -> None:
    good, bad = predict_without_package(folder, ["CCO", "C1CC"], folder=tmp_path)
    expected = predict(folder, ["CCO"])
    (entry,) = good["predictions"]
    assert entry["value"] == pytest.approx(expected.values[0, 0], abs=1e-5)
    assert entry["spread"] == pytest.approx(expected.spread[0, 0], abs=1e-5)
    assert bad["predictions"] is None


def test_its_encoder_gives_vectors_and_starts_a_finetuning(
    tiny_encoder: Path, folder: Path, tmp_path: Path
) -> None:
    expected = embed(tiny_encoder, NEW_SMILES).values
    np.testing.assert_allclose(embed(folder, NEW_SMILES).values, expected, atol=1e-6)
    arguments = build_tiny_arguments(tmp_path, model=str(folder), num_train_epochs=1)
    result = run_finetuning(arguments)
    assert AutoProcessor.from_pretrained(result.output_dir).fingerprints is None


def test_a_run_writes_a_folder_that_predicts_what_it_reported(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    columns = {"y": list(range(12)), "part": ["train"] * 8 + ["valid"] * 2 + ["test"] * 2}
    arguments = build_tiny_arguments(
        tmp_path, columns, model=str(tiny_encoder), head="kernel", label_units=["kcal/mol"]
    )
    result = run_finetuning(arguments)
    rows = np.genfromtxt(
        result.output_dir / "predictions.csv",
        delimiter=",",
        names=True,
        dtype=None,
        encoding="utf-8",
    )
    is_test = rows["split"] == "test"
    found = predict(result.output_dir, rows["smiles"].tolist())
    assert found.spread is not None
    np.testing.assert_allclose(found.values[is_test, 0], rows["prediction_y"][is_test], atol=1e-5)
    np.testing.assert_allclose(found.spread[is_test, 0], rows["spread_y"][is_test], atol=1e-5)
    # train and valid leave out the row that is predicted
    assert np.abs(found.values[~is_test, 0] - rows["prediction_y"][~is_test]).min() > 1e-3
    errors = (rows["prediction_y"] - rows["y"])[rows["split"] == "valid"]
    assert result.metrics["valid"]["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-4)
    card = (result.output_dir / "README.md").read_text(encoding="utf-8")
    assert "Gaussian process" in card and "can be reconstructed" in card


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"kernel_features": ["maccs"]}, "kernel-features maccs"),
        ({"kernel_features": ["ecfp4", "ecfp4"]}, "each once"),
        ({"model": "scratch"}, "scratch has none"),
        ({"num_members": 3, "dropout": 0.1}, "does not read --dropout, --num-members"),
    ],
)
def test_flags_that_a_kernel_head_cannot_follow_are_refused(
    options: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=fault):
        build_tiny_arguments(tmp_path, **{"model": "rmat-small", "head": "kernel", **options})


def test_rows_without_what_has_a_kernel_are_refused(
    tiny_encoder: Path, counting: RMatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = featurize(SIZES, RMatProcessor(geometry="bounds", fingerprints=["ecfp4"]))
    for kinds, fault in (
        (["vectors"], "2048 columns of counts"),
        (["ecfp4", "descriptors"], "descriptors"),
    ):
        with pytest.raises(UserError, match=fault):
            fit_kernel_head(tiny_encoder, rows, label_columns=["y0"], kernel_features=kinds)
    monkeypatch.setattr("rmat_hf.training.kernel_head.MAX_ROWS", 10)
    with pytest.raises(UserError, match="40 rows are more than the 10"):
        fit_kernel_head(tiny_encoder, rows, label_columns=["y0"], kernel_features=["ecfp4"])


def test_a_processor_that_counts_other_fingerprints_is_refused(folder: Path) -> None:
    options = {"fingerprints": ["ecfp4"], "molecule_descriptors": DESCRIPTORS}
    RMatProcessor(geometry="bounds", **options).save_pretrained(folder)
    with pytest.raises(UserError, match="with the fingerprints"):
        predict(folder, ["CCO"])


def test_molecules_in_its_weights_leave_only_if_they_are_to(folder: Path, counting: Any) -> None:
    with pytest.raises(UserError, match=r"--share molecules .*--head network"):
        push_folder(folder, "me/model", dry_run=True)
    push = push_folder(folder, "me/model", share="molecules", dry_run=True)
    assert "model.safetensors" in push.files
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with pytest.raises(UserError, match="no ONNX program"):
        export_onnx(model, folder / "model.onnx", processor=counting)


def test_calibration_never_turns_a_label_round() -> None:
    labels = torch.tensor([[0.0], [1.0]] * 20)
    outputs = 1 - 2 * labels.double()
    scale, shift = calibrate(outputs, labels, problem_type="multi_label_classification")
    assert scale.item() == 0 and abs(shift.item()) < 0.1
    scale, _ = calibrate(-outputs, labels, problem_type="multi_label_classification")
    assert scale.item() > 1
