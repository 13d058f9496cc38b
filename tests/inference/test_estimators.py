"""Estimators of scikit-learn: its own checks, clones, pipelines, folds and grids."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from sklearn.base import clone
from sklearn.exceptions import SkipTestWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.utils import estimator_checks

from rmat_hf import RMatClassifier, RMatRegressor, RMatTransformer, predict

SMILES = ["C" * size + end for end in ("", "O", "N") for size in range(1, 9)]
SIZES = np.array([len(smiles) for smiles in SMILES], dtype=float)
FAST: dict[str, Any] = {"kernel_features": ["ecfp4"], "feature_cache": "none"}


# Those of its checks that bring no table of numbers as molecules.
API_CHECKS = (
    *("check_do_not_raise_errors_in_init_or_set_param", "check_estimator_cloneable"),
    *("check_estimator_repr", "check_get_params_invariance", "check_mixin_order"),
    *("check_no_attributes_set_in_init", "check_parameters_default_constructible"),
    *("check_set_params", "check_valid_tag_types"),
)


@pytest.mark.parametrize("estimator", [RMatRegressor(), RMatClassifier(), RMatTransformer()])
def test_the_checks_of_scikit_learn_that_apply_are_passed(estimator: Any) -> None:
    with pytest.warns(SkipTestWarning, match="one_d_array=True"):
        found = estimator_checks.check_estimator(estimator, on_fail=None, on_skip=None)
    assert {it["status"] for it in found} == {"passed"}
    for name in API_CHECKS:
        check = getattr(estimator_checks, name, None)
        # some have other names in other releases
        if check is not None:
            check(type(estimator).__name__, clone(estimator))


@pytest.fixture(scope="module")
def regressor() -> RMatRegressor:
    return RMatRegressor(**FAST).fit(SMILES, SIZES)


def test_a_regressor_learns_and_says_how_sure_it_is(regressor: RMatRegressor) -> None:
    values, spread = regressor.predict(SMILES, return_std=True)
    assert values.shape == spread.shape == SIZES.shape
    assert regressor.score(SMILES, SIZES) > 0.9
    assert np.isnan(regressor.predict(["C1"])).all()
    expected = predict(regressor.model_, SMILES, processor=regressor.processor_).values[:, 0]
    np.testing.assert_array_equal(values, expected)


def test_molecules_come_as_a_list_a_column_or_a_table(regressor: RMatRegressor) -> None:
    expected = regressor.predict(SMILES)
    named = clone(regressor).set_params(smiles_column="structure")
    table = pd.DataFrame({"id": range(len(SMILES)), "structure": SMILES})
    for molecules in (np.array(SMILES), np.array(SMILES)[:, None], table["structure"]):
        np.testing.assert_array_equal(regressor.predict(molecules), expected)
    np.testing.assert_array_equal(named.fit(table, SIZES).predict(table), expected)
    with pytest.raises(ValueError, match=r"X has 2 columns\. Give the molecules"):
        regressor.predict(np.array([SMILES, SMILES]).T)


def test_a_clone_and_a_pickle_are_the_same_regressor(regressor: RMatRegressor) -> None:
    again = clone(regressor).fit(SMILES, SIZES)
    expected = regressor.predict(SMILES)
    np.testing.assert_allclose(again.predict(SMILES), expected, rtol=1e-6)
    kept = pickle.loads(pickle.dumps(regressor))
    np.testing.assert_array_equal(kept.predict(SMILES), expected)


def test_several_labels_weights_and_bounds_are_learned() -> None:
    several = np.stack([SIZES, -SIZES], axis=1)
    assert RMatRegressor(**FAST).fit(SMILES, several).predict(SMILES).shape == several.shape
    wrong = np.where(np.arange(len(SMILES)) % 4 == 0, 100.0, SIZES)
    weights = np.where(wrong == 100.0, 1e-9, 1.0)
    weighed = RMatRegressor(**FAST).fit(SMILES, wrong, sample_weight=weights)
    assert np.abs(weighed.predict(SMILES) - SIZES).max() < 3.0
    bounds = [f">{it}" if it > 6 else str(it) for it in SIZES]
    assert RMatRegressor(**FAST).fit(SMILES, bounds).model_.config.loss == "bounded"


def test_a_classifier_gives_classes_and_their_probabilities() -> None:
    classes = np.where(np.char.endswith(SMILES, "O"), "alcohol", "other")
    classifier = RMatClassifier(**FAST).fit(SMILES, classes)
    assert classifier.classes_.tolist() == ["alcohol", "other"]
    assert classifier.score(SMILES, classes) > 0.9
    probabilities = classifier.predict_proba([*SMILES, "C1"])
    np.testing.assert_allclose(probabilities[:-1].sum(1), 1, rtol=1e-6)
    assert np.isnan(probabilities[-1]).all()
    with pytest.raises(ValueError, match=r"1 rows have no prediction.*row 1"):
        classifier.predict(["CCO", "C1"])
    with pytest.raises(ValueError, match="Give two or more"):
        RMatClassifier(**FAST).fit(SMILES, ["same"] * len(SMILES))


CLASSES = ["yes" if smiles.endswith("O") else "no" for smiles in SMILES]
ONES = [float(it == "yes") for it in CLASSES]


@pytest.mark.parametrize(
    ("labels", "missing", "dtype"),
    [
        (ONES, np.nan, float),
        (CLASSES, None, object),
        (ONES, None, "boolean"),
        (CLASSES, None, "string"),
        (CLASSES, None, "category"),
    ],
)
def test_molecules_without_a_class_are_left_out(labels: Any, missing: Any, dtype: Any) -> None:
    known = RMatClassifier(**FAST).fit(SMILES, pd.Series(labels, dtype=dtype))
    column = pd.Series([*labels, missing, missing], dtype=dtype)
    classifier = RMatClassifier(**FAST).fit([*SMILES, "CCO", "CCC"], column)
    assert classifier.classes_.tolist() == known.classes_.tolist() == sorted(set(labels))
    assert classifier.predict(SMILES).tolist() == known.predict(SMILES).tolist()


def test_a_class_without_a_molecule_has_no_probability() -> None:
    classifier = RMatClassifier(**FAST).fit([*SMILES, "C1"], [*CLASSES, "other"])
    assert classifier.classes_.tolist() == ["no", "yes"]
    assert classifier.predict(SMILES[8:16]).tolist() == CLASSES[8:16]
    with pytest.raises(ValueError, match=r"shape \(16, 2\).*one class for each molecule"):
        RMatClassifier(**FAST).fit(SMILES, np.zeros((16, 2)))


def test_a_single_molecule_is_no_list_of_letters(regressor: RMatRegressor) -> None:
    for single in ("CCO", Chem.MolFromSmiles("CCO")):
        for call in (regressor.predict, RMatTransformer().transform):
            with pytest.raises(TypeError, match=r"\['CCO'\]"):
                call(single)


def test_a_transformer_needs_no_fit() -> None:
    vectors = RMatTransformer(feature_cache="none")
    expected = clone(vectors).fit(SMILES).transform(SMILES[:2])
    np.testing.assert_array_equal(vectors.transform(SMILES[:2]), expected)
    assert vectors.get_feature_names_out().shape == expected.shape[1:]


@pytest.mark.slow
def test_vectors_go_through_pipelines_and_unions() -> None:
    vectors = RMatTransformer(feature_cache="none").set_output(transform="pandas")
    shown = vectors.fit(SMILES).transform(SMILES)
    assert list(shown.columns[:2]) == ["embedding_0", "embedding_1"]
    np.testing.assert_allclose(vectors.transform(SMILES[:3]), shown[:3], atol=1e-5)
    both = make_union(
        RMatTransformer(feature_cache="none"), CountVectorizer(analyzer="char", lowercase=False)
    )
    pipeline = make_pipeline(both, Ridge(1e-3)).fit(SMILES, SIZES)
    assert pipeline.score(SMILES, SIZES) > 0.9


@pytest.mark.slow
def test_a_grid_is_searched_within_folds() -> None:
    grid = {"kernel_features": [["ecfp4"], ["atom_pairs"]]}
    search = GridSearchCV(RMatRegressor(feature_cache="none"), grid, cv=2)
    scores = cross_val_score(search, SMILES, SIZES, cv=2)
    assert scores.shape == (2,) and np.isfinite(scores).all()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["stack", "network"])
def test_other_heads_learn_too(head: str) -> None:
    regressor = RMatRegressor(head=head, num_train_epochs=2, **FAST).fit(SMILES, SIZES)
    assert np.isfinite(regressor.predict(SMILES)).all()
    assert regressor.score(SMILES, SIZES) > (0.5 if head == "stack" else -2)
