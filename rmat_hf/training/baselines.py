"""Classical models, fitted on the same split as the finetuned one to stand beside it."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from scipy.special import expit, softmax
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import ParameterGrid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import (
    compute_molecule_descriptors,
    list_molecule_descriptor_names,
    parse_molecule,
)
from rmat_hf.training.metrics import compute_metrics

logger = logging.getLogger(__name__)

FOREST = "random_forest_ecfp4_counts"
SVM = "svm_rdkit_descriptors"
BOOSTING = "gradient_boosting_rdkit_descriptors"
BASELINES = (FOREST, SVM, BOOSTING)

FINGERPRINT_RADIUS = 2
FINGERPRINT_SIZE = 2048
LARGEST_DESCRIPTOR = 8.0  # standard deviations
NUM_TREES = 500
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
GAMMA_FACTORS = (0.1, 0.3, 1.0, 3.0)
INSENSITIVITIES = (0.01, 0.1)  # regression only; standard deviations of the labels
BOOSTING_GRID = {"learning_rate": (0.03, 0.1), "max_iter": (100, 300), "max_leaf_nodes": (8, 31)}
MAX_SVM_ROWS = 10_000  # the time to fit an SVM grows with the square of the rows or faster
MAX_ATOMS = 1_000_000  # the loader has set the limit already

Candidate = tuple[Any, dict[str, Any]]  # an estimator and its setting


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


def fit_baselines(
    molecules: Sequence[str | Chem.Mol],
    labels: np.ndarray,
    *,
    split: SplitIndices,
    problem_type: str,
    label_names: Sequence[str],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Fit a random forest on ECFP4 counts and an SVM on RDKit descriptors, and score both.

    Args:
        molecules, labels, split, problem_type, label_names, seed: As in [`fit_baseline`].

    Returns:
        `dict` with `random_forest_ecfp4_counts` and `svm_rdkit_descriptors`, each with the metrics
        of `train`, `valid` and `test` and the `setting` by label name.
    """
    options: dict[str, Any] = {"problem_type": problem_type, "label_names": label_names}
    results: dict[str, dict[str, Any]] = {}
    for name in (FOREST, SVM):
        fitted = fit_baseline(name, molecules, labels=labels, split=split, seed=seed, **options)
        is_yes_no = problem_type == "multi_label_classification"
        outputs = np.column_stack([it[:, 1] if is_yes_no else it for it in fitted.outputs])
        results[name] = {
            part: compute_metrics(
                predictions=outputs[rows], labels=np.asarray(labels)[rows], **options
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
) -> FittedBaseline:
    """Fit one of `BASELINES` and predict every row.

    Each label is fitted alone, on the train rows where it is known. The forest has 500 trees. The
    SVM (RBF kernel; descriptors standardized on train, undefined ones set to the train median,
    clipped at 8 standard deviations) takes the penalty and kernel width that do best on valid; of
    more than 10,000 train rows it sees a random choice of so many. Gradient boosting, on the same
    descriptors, takes learning rate, number of trees and leaves of a tree that do best on valid.

    Args:
        name (`str`): Of `BASELINES`.
        molecules (`Sequence[str]` or `Sequence[Chem.Mol]`): Valid molecules.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Labels, NaN where missing; the class index for a single-label classification.
        split (`SplitIndices`): Rows of train, valid and test; none may be empty.
        problem_type (`str`): As in the model's config.
        label_names (`Sequence[str]`): Name of each label column.
        seed (`int`): Seed of forest and boosting, and of the choice of rows.

    Raises:
        UserError: If a label is unknown in all of train or valid.
    """
    labels = np.asarray(labels, dtype=np.float64).reshape(len(molecules), len(label_names))
    mols = [parse_molecule(molecule, max_atoms=MAX_ATOMS) for molecule in molecules]
    num_classes = 0 if problem_type == "regression" else 2
    if problem_type == "single_label_classification":
        num_classes = 1 + int(np.nanmax(labels))
    features = compute_fingerprints(mols) if name == FOREST else compute_descriptors(mols)
    if name != FOREST:
        features = standardize_descriptors(features, train=split.train)
    build = {FOREST: _build_forest, SVM: _build_svms, BOOSTING: _build_boosting}[name]
    outputs, setting = [], {}
    for label_name, column in zip(label_names, labels.T, strict=True):
        train, valid = (rows[~np.isnan(column[rows])] for rows in (split.train, split.valid))
        if not (len(train) and len(valid)):
            raise UserError(
                f"Label {label_name!r} is not known in any row of train or of valid, so the "
                "baselines cannot be fitted. Choose another split or leave the baselines out."
            )
        if name == SVM and len(train) > MAX_SVM_ROWS:
            logger.warning("The SVM baseline sees %d of %d train rows.", MAX_SVM_ROWS, len(train))
            train = np.random.default_rng(seed).choice(train, MAX_SVM_ROWS, replace=False)
        candidates = build(features[train], num_classes=num_classes, seed=seed)
        if num_classes and len(np.unique(column[train])) == 1:  # others refuse a single class
            candidates = [(DummyClassifier(), {})]
        output, choice = _choose_on_valid(
            candidates, features, labels=column, train=train, valid=valid, num_classes=num_classes
        )
        outputs.append(output)
        setting[label_name] = {**choice, "num_train_rows": len(train)}
    return FittedBaseline(outputs, setting)


def compute_fingerprints(mols: list[Chem.Mol]) -> np.ndarray:
    """Return ECFP4 counts, float32 `(num_mols, 2048)` (doi 10.1021/ci100050t)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_SIZE
    )
    return np.array([generator.GetCountFingerprintAsNumPy(mol) for mol in mols], dtype=np.float32)


def compute_descriptors(mols: list[Chem.Mol]) -> np.ndarray:
    """Return RDKit's 2D descriptors, float64 `(num_mols, num_descriptors)`, NaN where undefined."""
    names = list_molecule_descriptor_names()
    return np.array([compute_molecule_descriptors(mol, names) for mol in mols], dtype=np.float64)


def standardize_descriptors(descriptors: np.ndarray, *, train: np.ndarray) -> np.ndarray:
    """Impute, standardize and clip descriptors with the statistics of the train rows.

    Args:
        descriptors (`np.ndarray` of shape `(num_rows, num_descriptors)`): NaN where undefined.
        train (`np.ndarray`): Indices of the train rows.

    Returns:
        `np.ndarray` of shape `(num_rows, num_known)`, without descriptors that are undefined on
        all train rows.
    """
    known = descriptors[:, ~np.isnan(descriptors[train]).all(axis=0)]
    filled = np.where(np.isnan(known), np.nanmedian(known[train], axis=0), known)
    standardized = StandardScaler().fit(filled[train]).transform(filled)
    return np.clip(standardized, -LARGEST_DESCRIPTOR, LARGEST_DESCRIPTOR)


def _build_forest(train: np.ndarray, *, num_classes: int, seed: int) -> list[Candidate]:
    forest = RandomForestClassifier if num_classes else RandomForestRegressor
    return [(forest(n_estimators=NUM_TREES, random_state=seed), {"num_trees": NUM_TREES})]


def _build_svms(train: np.ndarray, *, num_classes: int, seed: int) -> list[Candidate]:
    variance = train.var() * train.shape[1] or 1.0
    grid = {"penalty": PENALTIES, "gamma_factor": GAMMA_FACTORS}
    if not num_classes:
        grid["insensitivity"] = INSENSITIVITIES
    candidates: list[Candidate] = []
    for choice in ParameterGrid(grid):
        options = {"C": choice["penalty"], "gamma": choice["gamma_factor"] / variance}
        if num_classes:
            candidates.append((SVC(**options), choice))
        else:
            svm = SVR(**options, epsilon=choice["insensitivity"])
            candidates.append((_with_standardized_labels(svm), choice))
    return candidates


def _build_boosting(train: np.ndarray, *, num_classes: int, seed: int) -> list[Candidate]:
    boosting = HistGradientBoostingClassifier if num_classes else HistGradientBoostingRegressor
    candidates = []
    for choice in ParameterGrid(BOOSTING_GRID):
        model = boosting(**choice, early_stopping=False, random_state=seed)
        candidates.append((model if num_classes else _with_standardized_labels(model), choice))
    return candidates


def _with_standardized_labels(regressor: Any) -> TransformedTargetRegressor:
    """Return the regressor so that one grid fits every unit."""
    return TransformedTargetRegressor(regressor, transformer=StandardScaler())


def _choose_on_valid(
    candidates: list[Candidate],
    features: np.ndarray,
    *,
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    num_classes: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Fit the candidates on train; return outputs and setting of the first that is best on valid.

    `GridSearchCV` would fit the best one again on train and valid together.
    """
    trials = []
    for model, choice in candidates:
        model.fit(features[train], labels[train])
        outputs = _predict(model, features, num_classes=num_classes)
        trials.append((_compute_score(outputs[valid], labels[valid]), outputs, choice))
    _, outputs, choice = max(trials, key=lambda trial: trial[0])
    return outputs, choice


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
        if scores.ndim == 1:
            scores = np.stack([1 - expit(scores), expit(scores)], axis=1)
        else:
            scores = softmax(scores, axis=1)
    probabilities = np.zeros((len(features), num_classes))
    probabilities[:, model.classes_.astype(np.int64)] = scores
    return probabilities


def _compute_score(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return -RMSE or ROC AUC (the accuracy where there is one class), largest for the best."""
    if outputs.ndim == 1:
        return -math.sqrt(np.mean((outputs - labels) ** 2))
    present = np.unique(labels).astype(np.int64)
    if len(present) == 1:
        return float(np.mean(outputs.argmax(axis=1) == labels))
    return float(np.mean([roc_auc_score(labels == idx, outputs[:, idx]) for idx in present]))
