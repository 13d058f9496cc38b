"""Classical models, fitted on the same split as the finetuned one to stand beside it."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import Chem
from scipy.special import expit, softmax
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import ParameterGrid
from sklearn.svm import SVC, SVR

from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import parse_molecule
from rmat_hf.training.baseline_features import (
    compute_descriptors,
    compute_fingerprints,
    prepare_descriptors,
)
from rmat_hf.training.metrics import (
    compute_classification_metrics,
    compute_multi_class_metrics,
    compute_regression_metrics,
)

logger = logging.getLogger(__name__)

FOREST = "random_forest_ecfp4_counts"
SVM = "svm_rdkit_descriptors"
BOOSTING = "gradient_boosting_rdkit_descriptors"
BASELINES = (FOREST, SVM, BOOSTING)

NUM_TREES = 500
GAMMA_FACTORS = (0.1, 0.3, 1.0, 3.0)
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
INSENSITIVITIES = (0.01, 0.1)  # regression only; standard deviations of the labels
BOOSTING_GRID = {"learning_rate": (0.03, 0.1), "max_iter": (100, 300), "max_leaf_nodes": (8, 31)}
MAX_SVM_ROWS = 10_000  # the time to fit an SVM grows with the square of the rows or faster
MAX_ATOMS = 1_000_000  # the loader has set the limit already

Fit = tuple[np.ndarray, dict[str, Any]]  # outputs for every row, chosen setting


@dataclass(frozen=True)
class FittedBaseline:
    """What a fitted baseline says about every row.

    Args:
        outputs (`list[np.ndarray]`):
            For each label predictions `(num_rows,)` or probabilities `(num_rows, num_classes)`.
        setting (`dict[str, dict[str, Any]]`): What was chosen on valid, by label name.
    """

    outputs: list[np.ndarray]
    setting: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Task:
    """What all models need to know; `num_classes` is 0 for a regression."""

    split: SplitIndices
    num_classes: int
    seed: int
    num_jobs: int


def fit_baselines(
    molecules: Sequence[str | Chem.Mol],
    labels: np.ndarray,
    *,
    split: SplitIndices,
    problem_type: str,
    label_names: Sequence[str],
    seed: int,
    num_jobs: int = 1,
) -> dict[str, dict[str, Any]]:
    """Fit a random forest on ECFP4 counts and an SVM on RDKit descriptors, and score both.

    Each label is fitted alone, on the train rows where it is known. The forest has 500 trees. The
    SVM (RBF kernel; descriptors standardized on train, non-finite ones set to the train median,
    clipped at 8 standard deviations) takes the penalty and kernel width that do best on valid; of
    more than 10,000 train rows it sees a random choice of so many.

    Args:
        molecules (`Sequence[str]` or `Sequence[Chem.Mol]`): Valid molecules.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Labels, NaN where missing; the class index for a single-label classification.
        split (`SplitIndices`): Rows of train, valid and test; none may be empty.
        problem_type (`str`): As in the model's config.
        label_names (`Sequence[str]`): Name of each label column.
        seed (`int`): Seed of the forest and of the choice of rows.
        num_jobs (`int`, *optional*, defaults to 1): Processor cores of the forest.

    Returns:
        `dict` with `random_forest_ecfp4_counts` and `svm_rdkit_descriptors`, each with the metrics
        of `train`, `valid` and `test` and the `setting` by label name.
    """
    results: dict[str, dict[str, Any]] = {}
    for name in (FOREST, SVM):
        fitted = fit_baseline(
            name,
            molecules,
            labels=labels,
            split=split,
            problem_type=problem_type,
            label_names=label_names,
            seed=seed,
            num_jobs=num_jobs,
        )
        results[name] = {
            part: _compute_metrics(
                [output[rows] for output in fitted.outputs],
                np.asarray(labels, dtype=np.float64).reshape(len(molecules), -1)[rows],
                problem_type=problem_type,
                label_names=label_names,
            )
            for part, rows in vars(split).items()
        }
        results[name]["setting"] = fitted.setting
    return results


def fit_baseline(
    name: str,
    molecules: Sequence[str | Chem.Mol],
    *,
    labels: np.ndarray,
    split: SplitIndices,
    problem_type: str,
    label_names: Sequence[str],
    seed: int,
    num_jobs: int = 1,
) -> FittedBaseline:
    """Fit one of `BASELINES` and predict every row; the arguments are those of `fit_baselines`.

    Gradient boosting (on the descriptors of the SVM) takes learning rate, number of trees and
    leaves of a tree that do best on valid.

    Raises:
        ValueError: If there is no such baseline, or a label is unknown in all of train or valid.
    """
    if name not in BASELINES:
        raise ValueError(f"There is no baseline {name!r}. Known: {', '.join(BASELINES)}.")
    labels = np.asarray(labels, dtype=np.float64).reshape(len(molecules), len(label_names))
    _validate_known_labels(labels, split=split, label_names=label_names)
    mols = [parse_molecule(molecule, max_atoms=MAX_ATOMS) for molecule in molecules]
    num_classes = 0 if problem_type == "regression" else 2
    if problem_type == "single_label_classification":
        num_classes = 1 + int(np.nanmax(labels))
    task = _Task(split, num_classes, seed, num_jobs)
    if name == FOREST:
        features = compute_fingerprints(mols)
    else:
        features = prepare_descriptors(compute_descriptors(mols), train=split.train)
    fit = {FOREST: _fit_forest, SVM: _fit_svm, BOOSTING: _fit_boosting}[name]
    fits = [fit(features, column, task=task) for column in labels.T]
    settings = dict(zip(label_names, (setting for _, setting in fits), strict=True))
    return FittedBaseline([output for output, _ in fits], settings)


def _validate_known_labels(
    labels: np.ndarray, *, split: SplitIndices, label_names: Sequence[str]
) -> None:
    for part in ("train", "valid"):
        num_known = np.count_nonzero(~np.isnan(labels[getattr(split, part)]), axis=0)
        for name, number in zip(label_names, num_known, strict=True):
            if number == 0:
                raise UserError(
                    f"Label {name!r} is not known in any row of {part}, so the baselines cannot be "
                    "fitted. Choose another split or leave the baselines out."
                )


def _fit_forest(features: np.ndarray, labels: np.ndarray, *, task: _Task) -> Fit:
    rows = _select_known(labels, task.split.train)
    forest = RandomForestClassifier if task.num_classes else RandomForestRegressor
    model = forest(n_estimators=NUM_TREES, n_jobs=task.num_jobs, random_state=task.seed)
    model.fit(features[rows], labels[rows])
    setting = {"num_trees": NUM_TREES, "num_train_rows": len(rows)}
    return _predict(model, features, num_classes=task.num_classes), setting


def _fit_svm(features: np.ndarray, labels: np.ndarray, *, task: _Task) -> Fit:
    train = _select_known(labels, task.split.train)
    if len(train) > MAX_SVM_ROWS:
        logger.warning("The SVM baseline sees %d of %d train rows.", MAX_SVM_ROWS, len(train))
        train = np.random.default_rng(task.seed).choice(train, MAX_SVM_ROWS, replace=False)
    variance = features[train].var() * features.shape[1]
    grid = {"penalty": PENALTIES, "gamma_factor": GAMMA_FACTORS}
    if not task.num_classes:
        grid["insensitivity"] = INSENSITIVITIES
    models: list[tuple[Any, dict[str, Any]]] = []
    for choice in ParameterGrid(grid):
        gamma = choice["gamma_factor"] / (variance or 1.0)
        if task.num_classes:
            model = SVC(C=choice["penalty"], gamma=gamma)
        else:
            model = SVR(C=choice["penalty"], gamma=gamma, epsilon=choice["insensitivity"])
        models.append((model, choice))
    return _choose_on_valid(models, features, labels=labels, train=train, task=task)


def _fit_boosting(features: np.ndarray, labels: np.ndarray, *, task: _Task) -> Fit:
    boosting = HistGradientBoostingClassifier if task.num_classes else HistGradientBoostingRegressor
    models = [
        (boosting(**choice, early_stopping=False, random_state=task.seed), choice)
        for choice in ParameterGrid(BOOSTING_GRID)
    ]
    train = _select_known(labels, task.split.train)
    return _choose_on_valid(models, features, labels=labels, train=train, task=task)


def _choose_on_valid(
    models: Iterable[tuple[Any, dict[str, Any]]],
    features: np.ndarray,
    *,
    labels: np.ndarray,
    train: np.ndarray,
    task: _Task,
) -> Fit:
    """Fit every model on the train rows; return outputs and setting of the best one on valid."""
    valid = _select_known(labels, task.split.valid)
    target = labels[train]
    mean, scale = 0.0, 1.0
    if not task.num_classes:  # so that one grid fits every unit
        mean, scale = target.mean(), target.std() or 1.0
    is_one_class = task.num_classes > 0 and len(np.unique(target)) == 1
    trials: list[tuple[float, np.ndarray, dict[str, Any]]] = []
    for candidate, choice in models:
        model = DummyClassifier() if is_one_class else candidate  # others refuse a single class
        model.fit(features[train], (target - mean) / scale)
        outputs = _predict(model, features, num_classes=task.num_classes) * scale + mean
        score = _compute_score(outputs[valid], labels[valid], num_classes=task.num_classes)
        trials.append((score, outputs, {**choice, "num_train_rows": len(train)}))
    _, outputs, setting = max(trials, key=lambda trial: trial[0])
    return outputs, setting


def _select_known(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows[~np.isnan(labels[rows])]


def _predict(model: Any, features: np.ndarray, *, num_classes: int) -> np.ndarray:
    """Return predictions `(num_rows,)` or probabilities `(num_rows, num_classes)`.

    Those of an SVM rank and decide as its decision function does, but are not calibrated.
    """
    if not num_classes:
        return np.asarray(model.predict(features), dtype=np.float64)
    if hasattr(model, "predict_proba"):
        scores = model.predict_proba(features)
    else:
        scores = model.decision_function(features)
        positive = expit(scores)
        scores = (
            np.stack([1 - positive, positive], axis=1)
            if scores.ndim == 1
            else softmax(scores, axis=1)
        )
    probabilities = np.zeros((len(features), num_classes))
    probabilities[:, model.classes_.astype(np.int64)] = scores
    return probabilities


def _compute_score(outputs: np.ndarray, labels: np.ndarray, *, num_classes: int) -> float:
    """Return -RMSE or ROC AUC (the accuracy where there is one class), largest for the best."""
    if not num_classes:
        return -math.sqrt(np.mean((outputs - labels) ** 2))
    present = np.unique(labels).astype(np.int64)
    if len(present) == 1:
        return float(np.mean(outputs.argmax(axis=1) == labels))
    return float(np.mean([roc_auc_score(labels == idx, outputs[:, idx]) for idx in present]))


def _compute_metrics(
    outputs: list[np.ndarray],
    labels: np.ndarray,
    *,
    problem_type: str,
    label_names: Sequence[str],
) -> dict[str, Any]:
    if problem_type == "regression":
        predictions = np.stack(outputs, axis=1)
        return compute_regression_metrics(predictions, labels, label_names=label_names)
    if problem_type == "multi_label_classification":
        probabilities = np.stack([output[:, 1] for output in outputs], axis=1)
        return compute_classification_metrics(probabilities, labels, label_names=label_names)
    return dict(compute_multi_class_metrics(outputs[0], labels))
