"""Classical models, fitted on the same split as the finetuned one to stand beside it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from rdkit import Chem
from scipy.special import softmax
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score, root_mean_squared_error
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR

from rmat_hf.data.measurements import read_exact_labels
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import (
    compute_fingerprint_counts,
    compute_molecule_descriptors,
    list_molecule_descriptor_names,
    parse_molecule,
)

logger = logging.getLogger(__name__)

LARGEST_DESCRIPTOR = 8.0  # standard deviations
MAX_SVM_ROWS = 5_000  # the time to fit an SVM grows with the square of the rows or faster
MAX_ROWS_TO_CHOOSE = 2_000  # of those, to choose a setting on folds
NUM_FOLDS = 5
MAX_ATOMS = 1_000_000  # the loader has set the limit already
_ROWS_PER_CHUNK = 1_000


def compute_fingerprints(mols: list[Chem.Mol]) -> np.ndarray:
    """Return ECFP4 counts, float32 `(num_mols, 2048)` (doi 10.1021/ci100050t)."""
    return np.array([compute_fingerprint_counts(mol, ["ecfp4"]) for mol in mols], dtype=np.float32)


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


# Features by name: how they are computed, and made ready with the statistics of the rows of train.
COUNTS, DESCRIPTORS = "ecfp4_counts", "rdkit_descriptors"
FEATURES: dict[str, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    COUNTS: (compute_fingerprints, lambda counts, train: np.log1p(counts)),
    DESCRIPTORS: (compute_descriptors, standardize_descriptors),
}


@dataclass(frozen=True)
class Baseline:
    """A classical model: an estimator on features, or the mean of other baselines.

    Args:
        estimator (`str`): `"svm"`, `"forest"`, `"boosting"`; empty for a mean.
        features (`Sequence[str]`): Of `FEATURES`; an SVM adds up a kernel of each.
        grid (`Mapping`): What is tried. `gamma_factor` is in units of one over the variance of all
            features, `insensitivity`, of a regression only, in standard deviations of the labels.
        chooses_on_valid (`bool`): Else on five folds of train.
        members (`Sequence[str]`): The baselines of a mean.
    """

    estimator: str = ""
    features: Sequence[str] = ()
    grid: Mapping[str, Sequence[float]] = field(default_factory=dict)
    chooses_on_valid: bool = False
    members: Sequence[str] = ()

    @property
    def chosen_on(self) -> str | None:
        """Where the setting is chosen, if there is a choice."""
        has_choice = any(len(values) > 1 for values in self.grid.values())
        part = "valid" if self.chooses_on_valid else "folds of train"
        return part if has_choice or self.members else None


INSENSITIVITY = "insensitivity"
FOREST, SVM = "random_forest_ecfp4_counts", "svm_rdkit_descriptors"
BOOSTING = "gradient_boosting_rdkit_descriptors"
SVM_COUNTS, SVM_BOTH = "svm_log_ecfp4_counts", "svm_descriptors_and_counts"
FOREST_BOTH, MEAN = "random_forest_descriptors_and_counts", "mean_of_the_baselines"
_SVM_GRID: dict[str, Sequence[float]] = {
    "penalty": (1.0, 3.0, 10.0, 30.0),
    "gamma_factor": (0.1, 0.3, 1.0, 3.0),
    INSENSITIVITY: (0.1,),
}
BASELINES: dict[str, Baseline] = {
    SVM_COUNTS: Baseline("svm", (COUNTS,), _SVM_GRID),
    SVM_BOTH: Baseline("svm", (DESCRIPTORS, COUNTS), _SVM_GRID),
    FOREST_BOTH: Baseline(
        "forest", (DESCRIPTORS, COUNTS), {"num_trees": (200,), "feature_share": (0.33,)}
    ),
    MEAN: Baseline(members=(SVM_COUNTS, SVM_BOTH, FOREST_BOTH)),
    FOREST: Baseline("forest", (COUNTS,), {"num_trees": (500,)}),
    SVM: Baseline(
        "svm",
        (DESCRIPTORS,),
        {
            "penalty": (1.0, 3.0, 10.0, 30.0, 100.0),
            "gamma_factor": (0.1, 0.3, 1.0, 3.0),
            INSENSITIVITY: (0.01, 0.1),
        },
        chooses_on_valid=True,
    ),
    BOOSTING: Baseline(
        "boosting",
        (DESCRIPTORS,),
        {"learning_rate": (0.03, 0.1), "max_iter": (100, 300), "max_leaf_nodes": (8, 31)},
        chooses_on_valid=True,
    ),
}
# What stands beside every run that asks for baselines; the others are for protocols.
SHOWN = (SVM_COUNTS, SVM_BOTH, FOREST_BOTH, MEAN)


def fit_baselines(
    dataset: Dataset, *, split: SplitIndices, **options: Any
) -> dict[str, tuple[np.ndarray, dict[str, dict[str, Any]]]]:
    """Fit the baselines that stand beside a finetuned model, `SHOWN`.

    Args:
        dataset (`datasets.Dataset`): With `labels`, of which bounds are left out, and
            the molecules in `mol` or `smiles`.

    Returns:
        `dict` with, for each of them, the values or probabilities `(num_rows, num_outputs)` of all
        rows, as [`compute_metrics`] takes them, and the setting by label name.
    """
    logger.info("Fitting the baselines.")
    molecules: list[str | Chem.Mol] = dataset["smiles"][:]
    if "mol" in dataset.column_names:
        molecules = [Chem.Mol(binary) for binary in dataset["mol"]]
    labels = read_exact_labels(dataset)
    fitted = fit_several(SHOWN, molecules, labels=labels, split=split, **options)
    return {
        name: (stack_outputs(found, problem_type=options["problem_type"]), setting)
        for name, (found, setting) in fitted.items()
    }


def stack_outputs(outputs: Sequence[np.ndarray], *, problem_type: str) -> np.ndarray:
    """Return what [`fit_baseline`] says of each label as one array, as metrics take it."""
    is_yes_no = problem_type == "multi_label_classification"
    return np.column_stack([output[:, 1] if is_yes_no else output for output in outputs])


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

    Each label is fitted alone, on the train rows where it is known: with the setting of the grid
    that does best, by RMSE or ROC AUC, on five folds of train or on valid. An SVM has a sum of RBF
    kernels, one for the logarithms of the counts and one for the descriptors (standardized on
    train, undefined ones set to the train median, clipped at 8 standard deviations); of more than
    5,000 train rows it sees a random choice of so many.

    Args:
        labels (`np.ndarray` of shape `(num_rows, num_labels)`):
            Labels, NaN where missing; the class index for a single-label classification.

    Returns:
        For each label predictions `(num_rows,)` or probabilities `(num_rows, num_classes)`; and
        what was chosen, by label name.
    """
    options: dict[str, Any] = {"problem_type": problem_type, "label_names": label_names}
    fitted = fit_several((name,), molecules, labels=labels, split=split, seed=seed, **options)
    return fitted[name]


def fit_several(
    names: Sequence[str],
    molecules: Sequence[str | Chem.Mol],
    *,
    labels: np.ndarray,
    split: SplitIndices,
    problem_type: str,
    label_names: Sequence[str],
    seed: int,
) -> dict[str, tuple[list[np.ndarray], dict[str, dict[str, Any]]]]:
    """Return what [`fit_baseline`] does for each name; a member of another is fitted once."""
    labels = np.asarray(labels, dtype=np.float64).reshape(len(molecules), len(label_names))
    mols = [parse_molecule(molecule, max_atoms=MAX_ATOMS) for molecule in molecules]
    num_classes = 0 if problem_type == "regression" else 2
    if problem_type == "single_label_classification":
        num_classes = 1 + int(np.nanmax(labels))
    members = dict.fromkeys(it for name in names for it in BASELINES[name].members or (name,))
    needed = {it for member in members for it in BASELINES[member].features}
    features = {}
    for name in needed:
        compute, prepare = FEATURES[name]
        features[name] = prepare(compute(mols), train=split.train)
    options: dict[str, Any] = {"num_classes": num_classes, "seed": seed}
    fitted: dict[str, Any] = {}
    for name in members:
        outputs, setting = [], {}
        blocks = [features[it] for it in BASELINES[name].features]
        for label_name, column in zip(label_names, labels.T, strict=True):
            known = [rows[~np.isnan(column[rows])] for rows in (split.train, split.valid)]
            if not all(map(len, known)):
                raise UserError(
                    f"Label {label_name!r} is not known in any row of train or of valid, so the "
                    "baselines cannot be fitted. Choose another split or leave the baselines out."
                )
            output, setting[label_name] = _fit_label(name, blocks, column, *known, **options)
            outputs.append(output)
        fitted[name] = outputs, setting
    for name in names:
        if own := BASELINES[name].members:
            found = zip(*(fitted[member][0] for member in own), strict=True)
            settings = {it: {"members": list(own)} for it in label_names}
            fitted[name] = [np.mean(outputs, axis=0) for outputs in found], settings
    return {name: fitted[name] for name in names}


def _fit_label(  # noqa: PLR0917 - what one label is fitted on
    name: str,
    blocks: list[np.ndarray],
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    **options: Any,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return outputs of all rows for one label, and the setting that was chosen for it."""
    baseline, generator = BASELINES[name], np.random.default_rng(options["seed"])
    if baseline.estimator == "svm" and len(train) > MAX_SVM_ROWS:
        logger.warning("The baseline %s sees %d of %d train rows.", name, MAX_SVM_ROWS, len(train))
        train = generator.choice(train, MAX_SVM_ROWS, replace=False)
    is_class, grid = options["num_classes"] > 0, baseline.grid
    choices = list(
        ParameterGrid({it: grid[it] for it in grid if not is_class or it != INSENSITIVITY})
    )
    if is_class and len(np.unique(labels[train])) == 1:
        choices = [{}]  # the estimators refuse a single class
    best = 0
    if len(choices) > 1:
        pairs = [(train, valid)]
        if not baseline.chooses_on_valid:
            rows = generator.permutation(train)[:MAX_ROWS_TO_CHOOSE]
            folds = np.array_split(rows, min(NUM_FOLDS, len(rows)))
            pairs = [(np.setdiff1d(rows, fold), fold) for fold in folds if len(folds) > 1]
        found = [_fit_all(baseline, blocks, labels, choices, *pair, **options) for pair in pairs]
        held = labels[np.concatenate([rows for _, rows in pairs])]
        outputs = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        best = int(np.argmax([_compute_score(output, held) for output in outputs]))
    rows, choice = np.arange(len(labels)), choices[best]
    (output,) = _fit_all(baseline, blocks, labels, [choice], train, rows, **options)
    return output, {**choice, "num_train_rows": len(train)}


def _fit_all(  # noqa: PLR0917 - of each fold and label
    baseline: Baseline,
    blocks: list[np.ndarray],
    labels: np.ndarray,
    choices: Sequence[Mapping[str, Any]],
    train: np.ndarray,
    rows: np.ndarray,
    *,
    num_classes: int,
    seed: int,
) -> list[np.ndarray]:
    """Return the outputs `(len(rows), ...)` of an estimator of each choice."""
    if num_classes and len(np.unique(labels[train])) == 1:
        only = np.eye(num_classes)[int(labels[train[0]])]
        return [np.tile(only, (len(rows), 1))] * len(choices)
    models = [_build_estimator(baseline, it, is_class=num_classes > 0, seed=seed) for it in choices]
    if baseline.estimator != "svm":
        features = np.hstack(blocks)
        outputs = []
        for model in models:
            model.fit(features[train], labels[train])
            outputs.append(_predict(model, features[rows], num_classes=num_classes))
        return outputs
    scaled = [block / np.sqrt(block[train].var(axis=0).sum() or 1.0) for block in blocks]
    chunks = np.array_split(rows, range(_ROWS_PER_CHUNK, len(rows), _ROWS_PER_CHUNK))
    found: list[list[np.ndarray]] = [[] for _ in choices]
    for chunk in [train, *chunks]:
        pairs = [(block[chunk], block[train]) for block in scaled]
        distances = [euclidean_distances(*pair, squared=True) for pair in pairs]
        for model, choice, outputs in zip(models, choices, found, strict=True):
            kernels = [np.exp(-choice["gamma_factor"] * it) for it in distances]
            kernel = np.mean(kernels, axis=0)
            if chunk is train:
                model.fit(kernel, labels[train])
            else:
                outputs.append(_predict(model, kernel, num_classes=num_classes))
    return [np.concatenate(outputs) for outputs in found]


def _build_estimator(
    baseline: Baseline, choice: Mapping[str, Any], *, is_class: bool, seed: int
) -> Any:
    options: dict[str, Any] = {"random_state": seed}
    if baseline.estimator == "forest":
        kinds: tuple[Any, Any] = (RandomForestRegressor, RandomForestClassifier)
        options |= {"n_estimators": choice["num_trees"]}
        options |= {} if is_class else {"max_features": choice.get("feature_share", 1.0)}
    elif baseline.estimator == "boosting":
        kinds = (HistGradientBoostingRegressor, HistGradientBoostingClassifier)
        options |= {**choice, "early_stopping": False}
    else:
        kinds = (SVR, SVC)
        options = {"C": choice["penalty"], "kernel": "precomputed"}
        options |= {} if is_class else {"epsilon": choice[INSENSITIVITY]}
    model = kinds[is_class](**options)
    if baseline.estimator == "forest" or is_class:
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
