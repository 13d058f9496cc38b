"""Classical models, fitted on the same split as the finetuned one to stand beside it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from scipy.special import softmax
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score, root_mean_squared_error
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
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
INSENSITIVITY = "insensitivity"
# What is tried on valid; gamma in units of one over the variance of all features, insensitivity (of
# a regression only) in standard deviations of the labels.
GRIDS: dict[str, dict[str, Sequence[float]]] = {
    FOREST: {"num_trees": (500,)},
    SVM: {
        "penalty": (1.0, 3.0, 10.0, 30.0, 100.0),
        "gamma_factor": (0.1, 0.3, 1.0, 3.0),
        INSENSITIVITY: (0.01, 0.1),
    },
    BOOSTING: {"learning_rate": (0.03, 0.1), "max_iter": (100, 300), "max_leaf_nodes": (8, 31)},
}
BASELINES = tuple(GRIDS)

FINGERPRINT_RADIUS = 2
FINGERPRINT_SIZE = 2048
LARGEST_DESCRIPTOR = 8.0  # standard deviations
MAX_SVM_ROWS = 10_000  # the time to fit an SVM grows with the square of the rows or faster
MAX_ATOMS = 1_000_000  # the loader has set the limit already


def fit_baselines(
    dataset: Dataset, *, split: SplitIndices, **options: Any
) -> dict[str, dict[str, Any]]:
    """Fit a random forest on ECFP4 counts and an SVM on RDKit descriptors.

    Args:
        dataset (`datasets.Dataset`): With `labels`, and the molecules in `mol` or `smiles`.
        split, options: As in [`fit_baseline`].

    Returns:
        `dict` with the metrics of `train`, `valid` and `test` and the `setting` by label name, for
        each of the two.
    """
    logger.info("Fitting the baselines.")
    molecules: list[str | Chem.Mol] = dataset["smiles"][:]
    if "mol" in dataset.column_names:
        molecules = [Chem.Mol(binary) for binary in dataset["mol"]]
    labels = np.array(dataset["labels"][:], dtype=np.float64)
    results: dict[str, dict[str, Any]] = {}
    kinds = {name: options[name] for name in ("problem_type", "label_names")}
    is_yes_no = options["problem_type"] == "multi_label_classification"
    for name in (FOREST, SVM):
        found, setting = fit_baseline(name, molecules, labels=labels, split=split, **options)
        outputs = np.column_stack([output[:, 1] if is_yes_no else output for output in found])
        results[name] = {
            part: compute_metrics(predictions=outputs[rows], labels=labels[rows], **kinds)
            for part, rows in vars(split).items()
        }
        results[name]["setting"] = setting
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
) -> tuple[list[np.ndarray], dict[str, dict[str, Any]]]:
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

    Returns:
        For each label predictions `(num_rows,)` or probabilities `(num_rows, num_classes)`; and
        what was chosen on valid, by label name.

    Raises:
        UserError: If a label is unknown in all of train or valid.
    """
    labels = np.asarray(labels, dtype=np.float64).reshape(len(molecules), len(label_names))
    mols = [parse_molecule(molecule, max_atoms=MAX_ATOMS) for molecule in molecules]
    num_classes = 0 if problem_type == "regression" else 2
    if problem_type == "single_label_classification":
        num_classes = 1 + int(np.nanmax(labels))
    if name == FOREST:
        features = compute_fingerprints(mols)
    else:
        features = standardize_descriptors(compute_descriptors(mols), train=split.train)
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
        grid = {it: GRIDS[name][it] for it in GRIDS[name] if not num_classes or it != INSENSITIVITY}
        if num_classes and len(np.unique(column[train])) == 1:
            grid = {}  # the estimators refuse a single class
        variance = features[train].var() * features.shape[1] or 1.0
        options: Any = {"variance": variance, "is_class": num_classes > 0, "seed": seed}
        # `GridSearchCV` would fit the best one again on train and valid together
        trials = []
        for choice in ParameterGrid(grid):
            model = _build_estimator(name, choice, **options) if grid else DummyClassifier()
            model.fit(features[train], column[train])
            output = _predict(model, features, num_classes=num_classes)
            trials.append((_compute_score(output[valid], column[valid]), output, choice))
        _, output, choice = max(trials, key=lambda trial: trial[0])
        outputs.append(output)
        setting[label_name] = {**choice, "num_train_rows": len(train)}
    return outputs, setting


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
    """Impute, standardize and clip descriptors with the statistics of the rows `train`.

    Descriptors that are undefined, NaN, on all of these are left out.
    """
    prepare = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    standardized = prepare.fit(descriptors[train]).transform(descriptors)
    return np.clip(standardized, -LARGEST_DESCRIPTOR, LARGEST_DESCRIPTOR)


def _build_estimator(
    name: str, choice: Mapping[str, Any], *, variance: float, is_class: bool, seed: int
) -> Any:
    options: dict[str, Any] = {"random_state": seed}
    if name == FOREST:
        kinds: tuple[Any, Any] = (RandomForestRegressor, RandomForestClassifier)
        options |= {"n_estimators": choice["num_trees"]}
    elif name == BOOSTING:
        kinds = (HistGradientBoostingRegressor, HistGradientBoostingClassifier)
        options |= {**choice, "early_stopping": False}
    else:
        kinds = (SVR, SVC)
        options = {"C": choice["penalty"], "gamma": choice["gamma_factor"] / variance}
        options |= {} if is_class else {"epsilon": choice[INSENSITIVITY]}
    model = kinds[is_class](**options)
    if name == FOREST or is_class:
        return model
    # so that one grid fits every unit
    return TransformedTargetRegressor(model, transformer=StandardScaler())


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
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        scores = softmax(scores, axis=1)
    probabilities = np.zeros((len(features), num_classes))
    probabilities[:, model.classes_.astype(np.int64)] = scores
    return probabilities


def _compute_score(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Return -RMSE or ROC AUC (the accuracy where there is one class), largest for the best."""
    if outputs.ndim == 1:
        return -float(root_mean_squared_error(labels, outputs))
    present = np.unique(labels).astype(np.int64)
    if len(present) == 1:
        return float(np.mean(outputs.argmax(axis=1) == labels))
    return float(np.mean([roc_auc_score(labels == idx, outputs[:, idx]) for idx in present]))
