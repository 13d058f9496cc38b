"""fit_kernel_head(...): a Gaussian process on the vectors of an encoder, fitted in seconds."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from scipy.special import log_ndtr
from torch import nn

from rmat_hf.data.measurements import (
    BOUNDS_COLUMN,
    WEIGHT_COLUMN,
    LabelOptions,
    read_covariates,
)
from rmat_hf.data.stored_features import (
    count_nodes,
    expand_features,
    group_by_length,
    pack_dataset,
)
from rmat_hf.errors import UserError
from rmat_hf.loading import Checkpoint, read_checkpoint
from rmat_hf.model.configuration_rmat import (
    DUMMY_NODE_IDX,
    FINGERPRINT_SIZE,
    NUM_ENVIRONMENTS,
    RMatKernelConfig,
)
from rmat_hf.model.ensemble_rmat import get_member_fields
from rmat_hf.model.kernel_rmat import (
    RMatEnvironments,
    RMatKernelForSequenceClassification,
    RMatKernelHead,
    compute_kernel,
)
from rmat_hf.model.losses_rmat import (
    LOSSES,
    find_classes,
    restore_labels,
    restore_variances,
)
from rmat_hf.model.modeling_rmat import RMatModel
from rmat_hf.model.processing_rmat import DESCRIPTOR_INPUT, FINGERPRINT_INPUT, MOLECULE_INPUTS
from rmat_hf.training.recipe import build_labeled_config

logger = logging.getLogger(__name__)

# The kernel of so many rows, and what it takes to solve it, are a few GB.
MAX_ROWS = 10_000
# Of which at most so many decide the widths and weights.
MAX_ROWS_TO_CHOOSE = 1_000
_BATCH_SIZE = 64
_MAX_STEPS = 30
# Least variance of the noise, and the widths of a normal prior of all logarithms around their
# start: they keep a few labels from saying what they cannot.
_LEAST_NOISE = 1e-3
_PRIOR_VARIANCE = 5.0
# Of labels with bounds: fits, sweeps over the bounds after each, and a change, in standard
# deviations of the label, that is none.
_NUM_ROUNDS = 3
_MAX_SWEEPS = 50
_SETTLED = 1e-3
_LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


def fit_kernel_head(  # noqa: PLR0913 - all that a label has
    model: str | Path | Checkpoint,
    dataset: Dataset,
    *,
    label_columns: Sequence[str],
    kernel_features: Sequence[str] = ("vectors",),
    problem_type: str = "regression",
    label_units: Sequence[str] = (),
    label_transforms: Sequence[str] = (),
    class_columns: Sequence[str] = (),
    revision: str | None = None,
    seed: int = 0,
) -> RMatKernelForSequenceClassification:
    """Fit an exact Gaussian process on the vectors of a pretrained encoder, which does not learn.

    Its kernel is the sum of one RBF kernel for each of `kernel_features`. Each label has
    widths, weights and noise of its own, those of the largest marginal likelihood (Rasmussen and
    Williams 2006, eq. 5.8), of at most 1,000 rows. Classes are a regression of -1 and 1, brought to
    probabilities by a logistic regression on predictions that leave the row out. A label that is a
    bound takes the mean of the truncated normal distribution that the other rows expect, in three
    rounds of fit and expectation. The weight of a row divides the variance of its noise.

    An encoder that was finetuned on labels of the same rows makes the head too sure of itself.

    Args:
        model (`str` or `Path`): Folder, Hub id, or a name of [`list_checkpoints`].
        dataset (`datasets.Dataset`):
            The training rows alone, as [`featurize_dataset`] gives them: `features` and `labels`,
            `(num_rows, num_labels)`, NaN where missing.
        label_columns (`Sequence[str]`): Names of the labels.
        kernel_features (`Sequence[str]`, *optional*, defaults to `("vectors",)`):
            What has a kernel: `"vectors"`, `"environments"` (kinds of atoms, by k-means of their
            states in the encoder), all fingerprints of the processor that made the features, in
            its order, and `"descriptors"`, if it has them.
        problem_type, label_units, label_transforms, class_columns, revision:
            As in [`load_for_finetuning`].
        seed (`int`, *optional*, defaults to 0): Of the choice of 1,000 rows.

    Returns:
        [`RMatKernelForSequenceClassification`].

    Raises:
        UserError: The model cannot be read, a label has no value, there are more than 10,000 rows,
            or the features of the rows were made with other fingerprints.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import RMatProcessor, featurize_dataset, fit_kernel_head, predict
    >>> table = Dataset.from_dict({"smiles": ["C" * n for n in range(1, 31)], "y": range(30)})
    >>> processor = RMatProcessor(geometry="bounds", fingerprints=["ecfp4"])
    >>> rows = featurize_dataset(table, processor, label_columns=["y"])
    >>> kinds = ["vectors", "ecfp4"]
    >>> model = fit_kernel_head("rmat-small", rows, label_columns=["y"], kernel_features=kinds)
    >>> result = predict(model, ["CCCCCC"], processor=processor)
    >>> result.values.shape, result.spread.shape  # a value and its standard deviation
    ((1, 1), (1, 1))

    ```
    """
    options: dict[str, Any] = {"label_columns": label_columns, "kernel_features": kernel_features}
    options |= {"problem_type": problem_type, "label_units": label_units, "seed": seed}
    options |= {"label_transforms": label_transforms, "class_columns": class_columns}
    checkpoint = (
        model if isinstance(model, Checkpoint) else read_checkpoint(model, revision=revision)
    )
    return fit_with_held_out(checkpoint, dataset, **options)[0]


@dataclass(frozen=True)
class FittedKernel:
    """A fitted kernel head, and what it was fitted on.

    `outputs` and `variances`, `(num_rows, num_labels)`, leave out the fold of each row: in standard
    deviations of the labels, or logits. `inputs` are vectors, counts and raw descriptors. `targets`
    are what is expected where they are no `is_exact`, but bounds.
    """

    model: RMatKernelForSequenceClassification
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    targets: torch.Tensor
    is_exact: torch.Tensor
    folds: torch.Tensor
    outputs: torch.Tensor
    variances: torch.Tensor

    @property
    def exact_targets(self) -> torch.Tensor:
        """The targets that are no bounds, NaN in the place of the others."""
        return self.targets.masked_fill(~self.is_exact, torch.nan)

    def finish(
        self, outputs: torch.Tensor, variances: torch.Tensor
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the model, and outputs and variances as it gives them, in the labels' units."""
        config = self.model.config
        outputs = restore_labels(outputs, config)
        variances = restore_variances(variances, outputs, config=config)
        return self.model.eval(), outputs.numpy(), variances.numpy()


def fit_with_held_out(
    checkpoint: Checkpoint, dataset: Dataset, **options: Any
) -> tuple[RMatKernelForSequenceClassification, np.ndarray, np.ndarray]:
    """Return the model of [`fit_kernel_head`] and what it says of each row without its fold.

    The latter are logits and variances, `(num_rows, num_labels)`, as the outputs of the model, with
    the same widths, weights and noise; of a row without a label they are those of the model itself.
    The options are those of [`fit_kernel`].
    """
    fitted = fit_kernel(
        checkpoint, dataset, model_class=RMatKernelForSequenceClassification, **options
    )
    return fitted.finish(fitted.outputs, fitted.variances)


def fit_kernel(
    checkpoint: Checkpoint,
    dataset: Dataset,
    *,
    model_class: type[RMatKernelForSequenceClassification],
    label_columns: Sequence[str],
    kernel_features: Sequence[str],
    problem_type: str,
    seed: int,
    folds: np.ndarray | None = None,
    **label_options: Any,
) -> FittedKernel:
    """Fit a model with a kernel head; without `folds`, `(num_rows,)`, each row is one."""
    refuse_too_many(len(dataset))
    labeled = build_labeled_config(
        checkpoint,
        dataset,
        label_columns=label_columns,
        problem_type=problem_type,
        label_options=LabelOptions(**label_options),
        class_weighting="none",
        overrides={},
    )
    encoder = checkpoint.load_model(RMatModel).eval()
    config = model_class.config_class(
        **get_member_fields(labeled),
        kernel_features=[*kernel_features, *["covariates"] * bool(labeled.covariates)],
        num_train_rows=len(dataset),
        has_row_weights=WEIGHT_COLUMN in dataset.column_names,
    )
    environments, packed = None, pack_dataset(dataset)
    if config.num_environment_layers:
        environments = _fit_environments(encoder, packed, config=config, seed=seed)
    inputs = _compute_inputs(encoder, packed, environments=environments)
    inputs |= _append_covariates(inputs.get(DESCRIPTOR_INPUT), read_covariates(dataset))
    counts, descriptors = inputs.get(FINGERPRINT_INPUT), inputs.get(DESCRIPTOR_INPUT)
    config.num_count_entries = 0 if counts is None else int((counts > 0).sum())
    model = model_class(config)
    model.rmat, model.environments_head = encoder, environments
    _keep_rows(model, inputs["vectors"], counts=counts, descriptors=descriptors)
    labels = np.array(dataset["labels"][:], dtype=np.float64).reshape(len(dataset), -1)
    targets = torch.from_numpy(_arrange_targets(labels, config))
    head = cast(RMatKernelHead, model.classifier)
    fold_of_row = torch.from_numpy(np.arange(len(dataset)) if folds is None else folds)
    bounds = np.zeros(targets.shape)
    if BOUNDS_COLUMN in dataset.column_names:
        bounds = np.array(dataset[BOUNDS_COLUMN][:])
    if head.row_weights is not None:
        head.row_weights.copy_(torch.tensor(dataset[WEIGHT_COLUMN][:]))
    options: dict[str, Any] = {"folds": fold_of_row, "seed": seed}
    found = [
        _fit_label(head, of_label, bounds=bounds[:, idx], label=idx, **options)
        for idx, of_label in enumerate(targets.T)
    ]
    outputs, variances, targets = (torch.stack(parts, dim=1) for parts in zip(*found, strict=True))
    known, is_class = torch.from_numpy(labels), find_classes(config, outputs)
    if is_class.any():
        # those among numbers are yes or no
        kind = problem_type if is_class.all() else "multi_label_classification"
        of_classes = known if is_class.all() else known[:, is_class]
        scale, shift = calibrate(outputs[:, is_class], of_classes, problem_type=kind)
        outputs[:, is_class] = outputs[:, is_class] * scale + shift
        variances[:, is_class] *= scale**2
        head.output_scale[is_class], head.output_shift[is_class] = scale.float(), shift.float()
    is_exact = torch.from_numpy(bounds == 0)
    fitted = (model, inputs, known, targets, is_exact, fold_of_row, outputs, variances)
    return FittedKernel(*fitted)


def refuse_too_many(num_rows: int) -> None:
    """Raise a `UserError` for more rows than a kernel head can keep."""
    if num_rows > MAX_ROWS:
        raise UserError(
            f"{num_rows} rows are more than the {MAX_ROWS} that a kernel head can keep. Use "
            "--head network, or fewer rows."
        )


def _append_covariates(
    descriptors: torch.Tensor | None, covariates: np.ndarray | None
) -> dict[str, torch.Tensor]:
    """Return descriptors with the covariates behind them, if there are some."""
    if covariates is None:
        return {}
    own = torch.from_numpy(covariates)
    return {DESCRIPTOR_INPUT: own if descriptors is None else torch.cat((descriptors, own), dim=1)}


@torch.no_grad()
def _encode(
    encoder: RMatModel, packed: list[bytes]
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor], Any]]:
    """Yield the rows of each batch, its inputs and what the encoder says of it."""
    for batch in group_by_length(count_nodes(packed), batch_size=_BATCH_SIZE):
        arrays = expand_features([packed[row] for row in batch])
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        read = [name for name in inputs if name not in MOLECULE_INPUTS]
        on_device = {name: inputs[name].to(encoder.device) for name in read}
        yield batch, inputs, encoder(**on_device, output_hidden_states=True)


def _fit_environments(
    encoder: RMatModel, packed: list[bytes], *, config: RMatKernelConfig, seed: int
) -> RMatEnvironments:
    """Return the kinds of the atoms of molecules: k-means of their standardized states."""
    from sklearn.cluster import MiniBatchKMeans

    environments, layers = RMatEnvironments(config), range(config.num_environment_layers)
    states: list[list[torch.Tensor]] = [[] for _ in layers]
    for _, inputs, output in _encode(encoder, packed):
        is_atom = inputs["attention_mask"] != 0
        is_atom[:, DUMMY_NODE_IDX] = False
        for layer in layers:
            states[layer].append(output.hidden_states[1 + layer].float().cpu()[is_atom])
    for layer in layers:
        found = torch.cat(states[layer])
        std, mean = torch.std_mean(found, 0, correction=0)
        scaled = (found - mean) / torch.where(std > 0, std, 1.0)
        kinds = MiniBatchKMeans(
            min(NUM_ENVIRONMENTS, len(scaled)), random_state=seed, n_init=1, batch_size=2048
        ).fit(scaled.numpy())
        environments.state_mean[layer] = mean
        environments.state_std[layer] = torch.where(std > 0, std, 1.0)
        # what is left over is nearest to nothing
        environments.centers[layer] = torch.finfo(torch.float32).max ** 0.25
        centers = torch.from_numpy(kinds.cluster_centers_)
        environments.centers[layer, : len(centers)] = centers
    return environments


@torch.no_grad()
def _compute_inputs(
    encoder: RMatModel, packed: list[bytes], *, environments: RMatEnvironments | None
) -> dict[str, torch.Tensor]:
    """Return vectors, all counts, and the descriptors in the features, of all rows in order."""
    found: dict[str, list[torch.Tensor]] = {}
    batches = []
    for batch, inputs, output in _encode(encoder, packed):
        batches.append(batch)
        values = {name: it for name, it in inputs.items() if name in MOLECULE_INPUTS}
        values["vectors"] = output.pooler_output.float().cpu()
        if environments is not None:
            states = tuple(it.cpu() for it in output.hidden_states)
            counts = environments(states, inputs["attention_mask"])
            own = values.get(FINGERPRINT_INPUT, counts[:, :0])
            values[FINGERPRINT_INPUT] = torch.cat((own, counts), dim=1)
        for name, it in values.items():
            found.setdefault(name, []).append(it)
    place = torch.from_numpy(np.argsort(np.concatenate(batches)))
    return {name: torch.cat(parts)[place] for name, parts in found.items()}


def _arrange_targets(labels: np.ndarray, config: RMatKernelConfig) -> np.ndarray:
    """Return standardized labels, or -1 and 1 for each class, NaN where missing."""
    if config.problem_type == "regression":
        targets = (labels - np.array(config.label_mean)) / np.array(config.label_std)
        is_class = np.array([it != "regression" for it in config.types])
        return np.where(is_class, 2 * labels - 1, targets)
    if config.problem_type == "single_label_classification":
        is_class = labels == np.arange(len(config.output_names))
        labels = np.where(np.isnan(labels), np.nan, is_class)
    return 2 * labels - 1


def _keep_rows(
    model: RMatKernelForSequenceClassification,
    vectors: torch.Tensor,
    *,
    counts: torch.Tensor | None,
    descriptors: torch.Tensor | None,
) -> None:
    """Let the head keep the rows, if they have what it compares."""
    names, num_counted = model.config.counted, 0 if counts is None else counts.shape[1]
    if num_counted != FINGERPRINT_SIZE * len(names):
        raise UserError(
            f"There are {num_counted} columns of counts, which are not those of {names}. "
            "Featurize the rows with these fingerprints."
        )
    if model.descriptor_scaler is None:
        descriptors = None
    elif descriptors is None:
        raise UserError("The rows have no molecule descriptors. Featurize them with some.")
    else:
        model.descriptor_scaler.fit(descriptors)
        descriptors = model.descriptor_scaler(descriptors)
    model.classifier.keep_rows(vectors, counts, descriptors)


@torch.no_grad()
def _fit_label(
    head: RMatKernelHead,
    targets: torch.Tensor,
    *,
    bounds: np.ndarray,
    label: int,
    folds: torch.Tensor,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fit the process of a label; return means and variances that leave out the fold of a row.

    And targets, in which what is expected takes the place of bounds.
    """
    features, known = head.list_row_features(), (~targets.isnan()).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    chosen = known[torch.randperm(len(known), generator=generator)[:MAX_ROWS_TO_CHOOSE]]
    rows = [it[known] for it in features]
    distances = head.compute_distances(rows, rows)
    near = head.compute_distances([it[chosen] for it in features], [it[chosen] for it in features])
    limits, targets = targets[known].numpy(), targets.clone()
    for _ in range(_NUM_ROUNDS if bounds.any() else 1):
        options = _maximize_likelihood(
            near, targets[chosen], noise_scales=head.list_noise_scales(chosen)
        )
        for name, value in zip(("log_weights", "log_widths", "log_noise"), options, strict=True):
            getattr(head, name)[label].copy_(value)
        factor = head.factorize(distances, label, rows=known)
        precision = torch.cholesky_inverse(factor)
        if bounds.any():
            expected = _expect_bounded(
                precision.numpy(), targets[known].numpy(), limits=limits, signs=bounds[known]
            )
            targets[known] = torch.from_numpy(expected)
    head.is_labeled[label, known] = 1
    coefficients = torch.cholesky_solve(targets[known, None], factor)[:, 0]
    head.coefficients[label, known] = coefficients.to(head.coefficients.dtype)
    outputs, variances = torch.empty_like(targets), torch.empty_like(targets)
    # Rasmussen and Williams, eq. 5.12, of blocks
    for fold in folds[known].unique():
        inside = (folds[known] == fold).nonzero()[:, 0]
        covariance = torch.linalg.inv(precision[inside[:, None], inside])
        variances[known[inside]] = covariance.diagonal()
        outputs[known[inside]] = targets[known[inside]] - covariance @ coefficients[inside]
    if len(other := targets.isnan().nonzero()[:, 0]):
        distances = head.compute_distances([it[other] for it in features], rows)
        kernel = head.compute_label_kernel(distances, label)
        outputs[other] = kernel @ coefficients
        variances[other] = head.compute_variance(kernel, factor, label=label)
    return outputs, variances, targets


def _expect_bounded(
    precision: np.ndarray, targets: np.ndarray, *, limits: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Return targets in which those with a bound are the mean of the normal beyond it.

    The mean field of a truncated normal distribution: each is expected given what is known of, or
    expected in, the other rows.

    Args:
        precision: Inverse of the covariance of the targets, `(num_rows, num_rows)`.
        targets: Where to start, `(num_rows,)`.
    """
    expected, solved = targets.copy(), precision @ targets
    scales = 1 / np.sqrt(precision.diagonal())
    bounded = np.flatnonzero(signs)
    for _ in range(_MAX_SWEEPS):
        largest = 0.0
        for row in bounded:
            mean = expected[row] - solved[row] * scales[row] ** 2
            distance = signs[row] * (limits[row] - mean) / scales[row]
            # of a standard normal variable above the distance, without 0 / 0 far out
            beyond = math.exp(-0.5 * distance**2 - _LOG_ROOT_2PI - float(log_ndtr(-distance)))
            change = mean + signs[row] * scales[row] * beyond - expected[row]
            expected[row] += change
            solved += precision[row] * change
            largest = max(largest, abs(change))
        if largest < _SETTLED:
            break
    return expected


@torch.enable_grad()
def _maximize_likelihood(
    distances: list[torch.Tensor], targets: torch.Tensor, *, noise_scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the logarithms of weights, widths and noise of the largest marginal likelihood."""
    num_kinds, eye = len(distances), noise_scales.diag()
    start = torch.zeros(2 * num_kinds + 1, dtype=torch.float64)
    start[:num_kinds], start[-1] = -np.log(num_kinds), np.log(0.15)
    options = nn.Parameter(start.clone())

    def split() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return options[:num_kinds], options[num_kinds:-1], (options[-1].exp() + _LEAST_NOISE).log()

    def evaluate() -> torch.Tensor:
        log_weights, log_widths, log_noise = split()
        kernel = compute_kernel(distances, log_weights, log_widths)
        noise, prior = log_noise.exp(), ((options - start) ** 2).sum() / (2 * _PRIOR_VARIANCE)
        with torch.no_grad():
            factor = torch.linalg.cholesky(kernel + noise * eye)
            solved = torch.cholesky_solve(targets[:, None], factor)
            value = 0.5 * (targets @ solved[:, 0]) + factor.diagonal().log().sum()
            weight = 0.5 * (torch.cholesky_inverse(factor) - solved @ solved.T)
        # eq. 5.9: has the gradient of the likelihood, without one through the factor
        surrogate = (weight * kernel).sum() + (weight.diagonal() @ noise_scales) * noise + prior
        (options.grad,) = torch.autograd.grad(surrogate, [options])
        return value + prior.detach()

    optimizer = torch.optim.LBFGS([options], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")
    optimizer.step(evaluate)
    log_weights, log_widths, log_noise = split()
    return log_weights.detach(), log_widths.detach(), log_noise.detach()


@torch.enable_grad()
def calibrate(
    outputs: torch.Tensor, labels: torch.Tensor, *, problem_type: str, start: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale, with this prior, and shift of each output that make logits of it.

    No scale is negative: where nothing can be learned, rows without their fold are the contrary of
    their labels, and a model that turns round would deny the rows that it knows.
    """
    scale = nn.Parameter(torch.full((outputs.shape[1],), start, dtype=torch.float64))
    shift = nn.Parameter(torch.zeros(outputs.shape[1], dtype=torch.float64))
    loss = LOSSES[problem_type]

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        logits = outputs * scale.clamp_min(0) + shift
        # a normal prior of variance 9 around the start, in units of one row
        prior = (((scale - start) ** 2).sum() + (shift**2).sum()) / (18 * len(outputs))
        value = loss(logits, loss.arrange_labels(labels, logits)) + prior
        value.backward()
        return value.detach()

    optimizer = torch.optim.LBFGS([scale, shift], max_iter=100, line_search_fn="strong_wolfe")
    optimizer.step(evaluate)
    return scale.detach().clamp_min(0), shift.detach()
