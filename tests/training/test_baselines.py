import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from rdkit import Chem
from rdkit.Chem import Descriptors

from rmat_hf.data.splits.column_splits import split_by_column
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.training_table import load_training_table
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training import baselines
from rmat_hf.training.baselines import (
    BASELINES,
    BOOSTING,
    FOREST,
    FOREST_BOTH,
    MEAN,
    SHOWN,
    SVM,
    SVM_BOTH,
    SVM_COUNTS,
    compute_descriptors,
    compute_fingerprints,
    fit_baseline,
    fit_baselines,
    standardize_descriptors,
)
from rmat_hf.training.metrics import compute_metrics

PARTS = ["train", "valid", "test"]
SMILES = [
    chain + end
    for end in ("O", "N", "F", "Cl", "C#N", "")
    for chain in ("C" * i for i in range(1, 9))
]
SPLIT = SplitIndices(
    *(
        np.array([row for row in range(48) if row % 6 in residues])
        for residues in ([0, 1, 2, 3], [4], [5])
    )
)


@pytest.fixture(autouse=True, scope="module")
def few_trees() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in (FOREST, FOREST_BOTH):
            grid = {**BASELINES[name].grid, "num_trees": (20,)}
            patch.setitem(BASELINES, name, replace(BASELINES[name], grid=grid))
        yield


def fit(labels: np.ndarray, problem_type: str, **options: Any) -> dict[str, dict[str, Any]]:
    labels = labels.reshape(len(SMILES), -1)
    names = [f"label {i}" for i in range(labels.shape[1])]
    options = {"split": SPLIT, "seed": 0, "label_names": names, **options}
    dataset = Dataset.from_dict({"smiles": SMILES, "labels": labels.tolist()})
    kinds = {"problem_type": problem_type, "label_names": options["label_names"]}
    results: dict[str, dict[str, Any]] = {}
    for name, (values, setting) in fit_baselines(dataset, **{**options, **kinds}).items():
        results[name] = {
            part: compute_metrics(predictions=values[rows], labels=labels[rows], **kinds)
            for part, rows in vars(options["split"]).items()
        }
        results[name]["setting"] = setting
    return results


@pytest.fixture(scope="module")
def masses() -> np.ndarray:
    return np.array([Descriptors.MolWt(Chem.MolFromSmiles(smiles)) for smiles in SMILES])


@pytest.fixture(scope="module")
def results(masses: np.ndarray) -> dict[str, dict[str, Any]]:
    return fit(masses, "regression")


def test_all_models_learn_a_descriptor(results: dict[str, dict[str, Any]]) -> None:
    assert list(results) == list(SHOWN)
    for model in results.values():
        assert list(model) == [*PARTS, "setting"]
        assert list(model["test"]) == ["rmse", "mae", "r2", "spearman"]
        assert model["test"]["r2"] > 0.8
    assert results[SVM_BOTH]["test"]["r2"] > 0.95
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_units_of_a_regression_do_not_matter(masses: np.ndarray, results: Any) -> None:
    scaled = fit(masses * 1000 + 5e6, "regression")
    for part in PARTS:
        for name in (SVM_COUNTS, SVM_BOTH):
            expected = 1000 * results[name][part]["rmse"]
            assert scaled[name][part]["rmse"] == pytest.approx(expected, rel=1e-4)


def test_test_labels_have_no_influence_on_the_fit(masses: np.ndarray, results: Any) -> None:
    changed = masses.copy()
    changed[SPLIT.test] = 0.5
    other = fit(changed, "regression")
    for name in SHOWN:
        for part in ("train", "valid", "setting"):
            assert results[name][part] == other[name][part]


def test_missing_labels_are_fitted_per_label(masses: np.ndarray, results: Any) -> None:
    sparse = masses.copy()
    sparse[SPLIT.train[::2]] = np.nan
    together = fit(np.stack([masses, sparse], axis=1), "regression")
    for name, model in together.items():
        assert list(model["test"]["per_label"]) == ["label 0", "label 1"]
        if name != MEAN:
            assert model["setting"]["label 1"]["num_train_rows"] == len(SPLIT.train) // 2
    assert together[SVM_BOTH]["test"]["per_label"]["label 0"] == results[SVM_BOTH]["test"]


def test_three_classes_are_learned(masses: np.ndarray) -> None:
    classes = np.digitize(masses, np.quantile(masses, [0.33, 0.66])).astype(float)
    results = fit(classes, "single_label_classification")
    assert results[SVM_BOTH]["test"]["roc_auc"] > 0.9
    assert results[SVM_BOTH]["test"]["accuracy"] > 0.7


def test_one_class_in_train_is_predicted_everywhere() -> None:
    labels = np.ones(len(SMILES))
    labels[SPLIT.valid[0]] = labels[SPLIT.test[0]] = 0.0
    for model in fit(labels, "multi_label_classification").values():
        assert model["train"]["accuracy"] == 1.0
        assert model["test"]["roc_auc"] == 0.5


def test_svm_sees_a_limited_number_of_rows(
    masses: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(baselines, "MAX_SVM_ROWS", 10)
    results = fit(masses, "regression")
    assert results[SVM_COUNTS]["setting"]["label 0"]["num_train_rows"] == 10
    assert results[FOREST_BOTH]["setting"]["label 0"]["num_train_rows"] == len(SPLIT.train)
    assert "sees 10 of 32 train rows" in caplog.text


@pytest.mark.parametrize("part", ["train", "valid"])
def test_label_unknown_in_a_part_is_an_error(masses: np.ndarray, part: str) -> None:
    labels = masses.copy()
    labels[getattr(SPLIT, part)] = np.nan
    with pytest.raises(UserError, match=f"Label 'label 0' .* {part}"):
        fit(labels, "regression")


@pytest.mark.slow
def test_gradient_boosting_learns_a_descriptor_and_chooses_on_valid(
    masses: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"learning_rate": (0.001, 0.3), "max_iter": (30,), "max_leaf_nodes": (8,)}
    monkeypatch.setitem(BASELINES, BOOSTING, replace(BASELINES[BOOSTING], grid=grid))
    # repeated, because a leaf needs 20 rows
    molecules, labels = SMILES * 3, np.tile(masses, 3)
    split = SplitIndices(
        *(np.concatenate([rows + 48 * i for i in range(3)]) for rows in vars(SPLIT).values())
    )

    def fit_boosting(labels: np.ndarray, problem_type: str) -> Any:
        options: dict[str, Any] = {"split": split, "label_names": ["mass"], "seed": 0}
        return fit_baseline(
            BOOSTING, molecules, labels=labels, problem_type=problem_type, **options
        )

    (output,), setting = fit_boosting(labels, "regression")
    assert np.corrcoef(output[split.test], labels[split.test])[0, 1] > 0.9
    assert setting["mass"]["learning_rate"] == 0.3
    is_heavy = (labels > np.median(labels)).astype(float)
    (output,), _ = fit_boosting(is_heavy, "multi_label_classification")
    assert output.shape == (len(molecules), 2)
    one_class = np.where(np.arange(len(labels)) == split.valid[0], 0.0, 1.0)
    (output,), _ = fit_boosting(one_class, "multi_label_classification")
    assert (output[:, 1] == 1).all()


def test_fingerprints_count_and_descriptors_are_finite_or_nan() -> None:
    mols = [Chem.MolFromSmiles(smiles) for smiles in ("CCO", "c1ccccc1", "C")]
    fingerprints = compute_fingerprints(mols)
    assert fingerprints.shape == (3, 2048)
    assert fingerprints[1].max() == 6
    descriptors = compute_descriptors(mols)
    assert descriptors.shape[0] == 3
    assert not np.isinf(descriptors).any()


@pytest.mark.slow
def test_the_setting_is_chosen_on_train_alone_and_the_mean_is_that_of_its_members(
    masses: np.ndarray,
) -> None:
    changed = masses.copy()
    changed[SPLIT.valid] = changed[SPLIT.valid][::-1]
    options: dict[str, Any] = {"split": SPLIT, "label_names": ["mass"], "seed": 0}
    options["problem_type"] = "regression"
    outputs, settings = {}, {}
    for name in SHOWN:
        (outputs[name],), settings[name] = fit_baseline(name, SMILES, labels=masses, **options)
        if name == MEAN:
            continue
        (again,), setting = fit_baseline(name, SMILES, labels=changed, **options)
        assert setting == settings[name]
        np.testing.assert_array_equal(again, outputs[name])
    expected = np.mean([outputs[name] for name in SHOWN[:-1]], axis=0)
    np.testing.assert_allclose(outputs[MEAN], expected)
    assert settings[MEAN] == {"mass": {"members": list(SHOWN[:-1])}}


def test_undefined_descriptors_are_filled_with_the_train_median() -> None:
    descriptors = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0], [np.nan, 2.0, 900.0]])
    prepared = standardize_descriptors(descriptors, train=np.array([0, 1]))
    np.testing.assert_allclose(prepared, [[-1, 0], [1, 0], [0, 8]], atol=1e-12)


@pytest.mark.slow
def test_freesolv_figures(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split 0 in standardized units. An independent fit gave .249 (SVM), choosing among fewer
    settings on valid: ours may be better, but a weaker one would flatter R-MAT.
    """
    monkeypatch.undo()
    loaded = load_training_table(
        shared_dir / "data" / "mat_benchmark" / "freesolv.csv",
        RMatProcessor(geometry="bounds"),
        smiles_column="smiles",
        label_columns=["y"],
        problem_type="regression",
        split_column="split_0",
    )
    fitted = {
        name: fit_baseline(
            name,
            loaded.dataset["smiles"][:],
            labels=np.array(loaded.dataset["labels"][:]),
            split=split_by_column(loaded.dataset["split"], split_column="split_0"),
            problem_type="regression",
            label_names=["y"],
            seed=0,
        )[0][0]
        for name in (SVM, FOREST)
    }
    labels = np.array(loaded.dataset["labels"][:])[:, 0]
    is_test = np.array(loaded.dataset["split"][:]) == "test"
    errors = {
        name: float(np.sqrt(np.mean((output - labels)[is_test] ** 2)))
        for name, output in fitted.items()
    }
    assert 0.22 < errors[SVM] < 0.254
    assert errors[FOREST] == pytest.approx(0.471, abs=0.02)
