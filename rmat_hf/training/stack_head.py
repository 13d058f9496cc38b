"""fit_stack_head(...): a kernel head, a forest, perhaps networks, weighted by rows held out."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from rmat_hf.loading import Checkpoint, read_checkpoint
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.losses_rmat import LOSSES
from rmat_hf.model.processing_rmat import DESCRIPTOR_INPUT, FINGERPRINT_INPUT
from rmat_hf.model.stack_rmat import (
    STACK_MEMBERS,
    RMatForest,
    RMatMemberWeights,
    RMatStackForSequenceClassification,
    standardize_outputs,
)
from rmat_hf.training.kernel_head import FittedKernel, calibrate, fit_kernel

# Extremely randomized trees (Geurts, Ernst and Wehenkel 2006, doi 10.1007/s10994-006-6226-1).
_NUM_TREES = 100
_TREE_OPTIONS: dict[str, Any] = {"min_samples_leaf": 2, "max_features": 0.2, "n_jobs": -1}
# so that the logarithm of the error of what is predicted exactly is a number
_LEAST_ERROR = 1e-6
# Of the logarithms of shares.
_PRIOR_VARIANCE = 4.0


def fit_stack_head(  # noqa: PLR0913 - those of a kernel head, and folds
    model: str | Path | Checkpoint,
    dataset: Dataset,
    *,
    label_columns: Sequence[str],
    kernel_features: Sequence[str] = ("vectors", "ecfp4"),
    problem_type: str = "regression",
    label_units: Sequence[str] = (),
    label_transforms: Sequence[str] = (),
    folds: Sequence[int] | np.ndarray | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> RMatStackForSequenceClassification:
    """Fit the kernel head of [`fit_kernel_head`] and a forest, and weigh them by held-out rows.

    The forest, 100 extremely randomized trees for each label, reads counts of ECFP4 and molecule
    descriptors; what the kernel head expects takes the place of bounds, which have no part in the
    weights. Kernel head and forest predict each fold without it; weights that are positive and
    add up to 1 minimize the error of their sum (its log loss, of calibrated logits, for classes).

    Args:
        model, label_columns, problem_type, label_units, label_transforms, revision:
            As in [`fit_kernel_head`].
        dataset (`datasets.Dataset`):
            The training rows alone, as [`featurize_dataset`] gives them, with the fingerprints in
            `kernel_features` and `"ecfp4"`, and with molecule descriptors.
        kernel_features (`Sequence[str]`, *optional*, defaults to `("vectors", "ecfp4")`):
            What has a kernel.
        folds (`Sequence[int]` or `np.ndarray`, *optional*):
            The fold of each row, held out together; by default five at random.
        seed (`int`, *optional*, defaults to 0): Of trees, folds and rows that are chosen.

    Returns:
        [`RMatStackForSequenceClassification`].

    Raises:
        UserError: As in [`fit_kernel_head`], or the rows have no descriptors.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatProcessor, featurize_dataset, fit_stack_head, predict
    >>> table = Dataset.from_dict({"smiles": ["C" * n for n in range(1, 31)], "y": range(30)})
    >>> reading = {"fingerprints": ["ecfp4"], "molecule_descriptors": ["MolWt", "TPSA"]}
    >>> processor = RMatProcessor(geometry="bounds", **reading)
    >>> rows = featurize_dataset(table, processor, label_columns=["y"])
    >>> model = fit_stack_head("rmat-small", rows, label_columns=["y"])
    >>> predict(model, ["CCCCCC"], processor=processor).spread.shape
    (1, 1)

    ```
    """
    options: dict[str, Any] = {"label_columns": label_columns, "kernel_features": kernel_features}
    options |= {"problem_type": problem_type, "label_units": label_units, "seed": seed}
    options["label_transforms"] = label_transforms
    if folds is None:
        folds = np.random.default_rng(seed).permutation(len(dataset)) % 5
    checkpoint = (
        model if isinstance(model, Checkpoint) else read_checkpoint(model, revision=revision)
    )
    return fit_stack_with_held_out(checkpoint, dataset, folds=np.asarray(folds), **options)[0]


def fit_stack_with_held_out(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    networks: tuple[RMatEnsembleForSequenceClassification, np.ndarray] | None = None,
    **options: Any,
) -> tuple[RMatStackForSequenceClassification, np.ndarray, np.ndarray]:
    """Return the model of [`fit_stack_head`] and what it says of each row without its fold.

    As [`fit_with_held_out`]; the weights of the members are those of all rows. `networks` are an
    ensemble, which becomes a part of the model, and its logits of each row without its fold.
    """
    fitted = fit_kernel(
        checkpoint, dataset, model_class=RMatStackForSequenceClassification, **options
    )
    model = cast(RMatStackForSequenceClassification, fitted.model)
    members = [fitted.outputs, _fit_forest(model, fitted, seed=options["seed"])]
    if networks is not None:
        model.networks, logits = networks
        model.config.num_networks = len(model.networks.members)
        model.member_weights = RMatMemberWeights(model.config)
        members.append(standardize_outputs(torch.from_numpy(logits), model.config))
    weights, intercepts = _weigh_members(members, fitted)
    head = model.member_weights
    head.weights.copy_(weights)
    head.intercepts.copy_(intercepts)
    if model.config.problem_type == "regression":
        total, _ = head(members, fitted.variances)
        errors = (total - fitted.exact_targets) ** 2
        is_known = ~errors.isnan()
        expected = fitted.variances.masked_fill(~is_known, torch.nan).nanmean(0)
        head.variance_scale.copy_(errors.nanmean(0) / expected)
    return fitted.finish(*head(members, fitted.variances))


def describe_shares(model: Any) -> str:
    """Return a text about the shares of a stack's members, the mean over its labels."""
    if not isinstance(model, RMatStackForSequenceClassification):
        return ""
    weights = model.member_weights.weights
    shares = (weights / weights.sum(0)).mean(1).tolist()
    pairs = zip(STACK_MEMBERS, shares, strict=False)
    return f"; weights by held-out folds: {', '.join(f'{name} {it:.2f}' for name, it in pairs)}"


def _fit_forest(
    model: RMatStackForSequenceClassification, fitted: FittedKernel, *, seed: int
) -> torch.Tensor:
    """Give a model its trees; return what they say of each row without its fold."""
    scaler, inputs = cast(Any, model.descriptor_scaler), fitted.inputs
    features = model.read_forest_features(
        inputs[FINGERPRINT_INPUT], scaler(inputs[DESCRIPTOR_INPUT])
    ).numpy()
    is_shared = model.config.problem_type == "single_label_classification"
    targets, row_weights = fitted.targets.numpy(), model.classifier.row_weights
    weights = np.ones(len(targets)) if row_weights is None else row_weights.numpy()
    columns = [targets] if is_shared else list(targets.T[:, :, None])
    grown, outputs = [], np.empty_like(targets)
    for idx, values in enumerate(columns):
        place = slice(None) if is_shared else slice(idx, idx + 1)
        known = np.flatnonzero(~np.isnan(values).any(1))
        forest = _grow(features[known], values[known], weights=weights[known], seed=seed)
        outputs[:, place] = _predict(forest, features)
        folds = fitted.folds.numpy()[known]
        for fold in np.unique(folds):
            inside, outside = known[folds == fold], known[folds != fold]
            # of nothing, the mean
            outputs[inside, place] = 0.0
            if len(outside):
                data, of_rows = (features[outside], values[outside]), weights[outside]
                partial = _grow(*data, weights=of_rows, seed=seed)
                outputs[inside, place] = _predict(partial, features[inside])
        grown.append(forest)
    _keep_trees(model, grown)
    return torch.from_numpy(outputs)


def _grow(
    features: np.ndarray, targets: np.ndarray, *, seed: int, weights: np.ndarray | None = None
) -> Any:
    # of classes too: of two, and of several as so many outputs, the variance is Gini's impurity
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(_NUM_TREES, random_state=seed, **_TREE_OPTIONS)
    # its threads race for the filters of warnings; emptied, they let thousands through
    with warnings.catch_warnings():
        return forest.fit(features, targets if targets.shape[1] > 1 else targets[:, 0], weights)


def _predict(forest: Any, features: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        return np.asarray(forest.predict(features)).reshape(len(features), -1)


def _keep_trees(model: RMatStackForSequenceClassification, forests: Sequence[Any]) -> None:
    """Keep the trees of scikit-learn as arrays, which decide as these do."""
    trees = [it.tree_ for forest in forests for it in forest.estimators_]
    sizes = np.array([tree.node_count for tree in trees])
    starts = np.cumsum(sizes) - sizes
    config = model.config
    config.num_trees = _NUM_TREES
    config.num_tree_nodes = int(sizes.sum())
    config.max_tree_depth = int(max(tree.max_depth for tree in trees))
    model.forest = RMatForest(config)
    columns = [np.where(tree.children_left < 0, -1, tree.feature) for tree in trees]
    rights = [
        np.maximum(tree.children_right, 0) + start
        for tree, start in zip(trees, starts, strict=True)
    ]
    exact = np.concatenate([tree.threshold for tree in trees])
    rounded = exact.astype(np.float32)
    # the largest float32 that is no larger: those of the features are on the same side of both
    rounded = np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    arrays = {"roots": starts.reshape(len(forests), -1), "columns": np.concatenate(columns)}
    arrays |= {"right_nodes": np.concatenate(rights), "thresholds": rounded}
    arrays["values"] = np.concatenate([tree.value[:, :, 0] for tree in trees])
    for name, array in arrays.items():
        getattr(model.forest, name).copy_(torch.from_numpy(array))


def _weigh_members(
    members: Sequence[torch.Tensor], fitted: FittedKernel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights `(num_members, num_labels)` and the intercepts `(num_labels,)`."""
    problem_type = cast(str, fitted.model.config.problem_type)
    outputs = torch.stack(list(members))
    options: dict[str, Any] = {"problem_type": problem_type}
    if problem_type == "regression":
        columns = [
            _minimize(outputs[:, :, idx, None], fitted.exact_targets[:, idx, None], **options)
            for idx in range(outputs.shape[2])
        ]
        return torch.stack(columns, dim=1), torch.zeros(outputs.shape[2])
    # that of the kernel head is calibrated
    scales, shifts = torch.ones(outputs[:, 0].shape).double(), torch.zeros(outputs[:, 0].shape)
    for idx in range(1, len(outputs)):
        scales[idx], shifts[idx] = calibrate(outputs[idx], fitted.labels, **options)
    logits = outputs * scales[:, None] + shifts[:, None]
    if problem_type == "multi_label_classification":
        columns = [
            _minimize(logits[:, :, idx, None], fitted.labels[:, idx, None], **options)
            for idx in range(outputs.shape[2])
        ]
        shares = torch.stack(columns, dim=1)
    else:
        shares = _minimize(logits, fitted.labels, **options)[:, None]
    total = (shares[:, None] * logits).sum(0)
    scale, shift = calibrate(total, fitted.labels, start=1.0, **options)
    return scale * shares * scales, scale * (shares * shifts).sum(0) + shift


@torch.enable_grad()
def _minimize(outputs: torch.Tensor, labels: torch.Tensor, *, problem_type: str) -> torch.Tensor:
    """Return the shares `(num_members,)` with which the sum of outputs has the least loss."""
    loss, options = LOSSES[problem_type], nn.Parameter(torch.zeros(len(outputs)).double())
    num_known = (~labels.isnan()).sum()

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        total = (options.softmax(0)[:, None, None] * outputs).sum(0)
        value = loss(total, loss.arrange_labels(labels, total))
        if problem_type == "regression":
            value = 0.5 * (value + _LEAST_ERROR).log()
        # a normal prior around equal shares
        value = num_known * value + (options**2).sum() / (2 * _PRIOR_VARIANCE)
        value.backward()
        return value.detach()

    optimizer = torch.optim.LBFGS([options], max_iter=100, line_search_fn="strong_wolfe")
    optimizer.step(evaluate)
    return options.detach().softmax(0)
