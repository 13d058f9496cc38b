"""fit_trust(...): what a model says of rows that it has not learned from → how far to trust it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.measurements import append_covariates, learn_ends
from rmat_hf.data.stored_features import (
    count_nodes,
    expand_features,
    group_by_length,
    unpack_features,
)
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import ATOM_FEATURES, FIRST_ATOM_COLUMN, Molecule
from rmat_hf.model.processing_rmat import MOLECULE_INPUTS, RMatProcessor
from rmat_hf.model.trust_rmat import (
    DEFAULT_COVERAGE,
    NUM_KNOTS,
    RMatTrust,
    compute_class_scores,
    compute_environment_bits,
    compute_similarities,
    describe_blocks,
    find_encoder,
    find_trust,
    pack_bits,
    predict_blocks,
)
from rmat_hf.training.baselines import MAX_ATOMS

# With fewer rows of a label there is no interval of 90 %.
MIN_ROWS = 9
# Of the rows held out as new as the domain ends, the others are outside.
DOMAIN_SHARE = 0.95
# Rows for each knot of the scale of errors, and the least scale, in mean errors.
_ROWS_PER_KNOT = 50
_LEAST_SCALE = 0.2
# Molecules that a center stands for, at least, and how many centers there are at most.
_ROWS_PER_CENTER = 20
_MOST_CENTERS = 64
# Groups that take turns in being held out of the centers, where each row is a fold.
_MOST_FOLDS = 5
_BATCH_SIZE = 64
# Less than so far below what was asked for, or two standard errors, is no reason to warn.
_TOLERANCE = 0.03
# A fold or class of fewer rows is not judged alone, and a fold counts by its rows: about as many as
# an interval of 95 % needs.
_ROWS_TO_JUDGE = 20


@dataclass(frozen=True)
class HeldOut:
    """What a model that was fitted on rows says of each without its fold, `(num_rows, num_labels)`.

    `variances` are of a regression that gives some; `folds` is the fold of each row, `(num_rows,)`.
    """

    rows: np.ndarray
    outputs: np.ndarray
    variances: np.ndarray | None
    folds: np.ndarray


def fit_trust(
    model: Any,
    packed: Sequence[bytes],
    *,
    kind: str,
    references: np.ndarray,
    held_out: HeldOut,
    labels: np.ndarray,
) -> None:
    """Give a model a `trust_head`, and its configuration what that is.

    Args:
        model: With a head for labels of molecules; it is changed.
        packed (`Sequence[bytes]`): Every molecule of the table.
        kind (`str`): A name in `TRUST_KINDS`.
        references (`np.ndarray`): Positions of the rows that the model has learned from.
        held_out ([`HeldOut`]): Its outputs, in the units of the labels, or logits.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): Of the whole table.
    """
    config, targets = model.config, labels[held_out.rows]
    if config.problem_type == "single_label_classification":
        is_class = targets == np.arange(len(config.output_names))
        targets = np.where(np.isnan(targets), np.nan, is_class)
    counts = (~np.isnan(targets)).sum(0).tolist()
    domain = _fit_fingerprints if kind == "fingerprints" else _fit_centers
    fold_of_row = np.full(len(packed), -1)
    fold_of_row[held_out.rows] = held_out.folds
    buffers, novelty = domain(
        model,
        ([packed[row] for row in references], [packed[row] for row in held_out.rows]),
        folds=(fold_of_row[references], held_out.folds),
    )
    num_folds = len(np.unique(held_out.folds))
    config.trust = {
        "kind": kind,
        "source": "valid" if num_folds == 1 else f"{num_folds} folds",
        "num_references": len(next(iter(buffers.values()))),
        "num_rows": [count if count >= MIN_ROWS else 0 for count in counts],
        "threshold": float(np.quantile(novelty, DOMAIN_SHARE)),
        **_describe_molecules([packed[row] for row in references]),
    }
    head = RMatTrust(config, vector_size=find_encoder(model).pooler.output_size)
    outputs = held_out.outputs
    if not head.is_regression:
        logits = torch.from_numpy(outputs).double()
        outputs = compute_class_scores(logits, is_single_label=head.is_single_label).numpy()
    held_out = replace(held_out, outputs=outputs)
    _fit_outputs(head, held_out, targets=targets, novelty=novelty)
    if num_folds > 1:
        config.trust["fold_coverage"] = _judge_folds(
            head, held_out, targets=targets, novelty=novelty
        )
    for name, values in buffers.items():
        getattr(head, name).copy_(values)
    model.trust_head = head.to(model.device)


def predict_trust(
    model: Any, packed: Sequence[bytes], *, covariates: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return what a finetuned model says beside its predictions, as `predict` does.

    The blocks of [`RMatTrust`], `(num_rows, num_columns)`, none without trust; the ends of
    intervals are those of what the model has learned, as metrics are.
    """
    trust, config = find_trust(model), model.config
    if trust is None or not len(packed):
        return {}
    model.eval()
    sizes = describe_blocks(model, coverage=DEFAULT_COVERAGE)

    def compute(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        given = {name: it.to(model.device) for name, it in inputs.items()}
        with torch.inference_mode():
            blocks = predict_blocks(model, given, coverage=DEFAULT_COVERAGE)
        return torch.cat([blocks[name] for name in sizes], dim=1).cpu()

    columns = compute_rows(packed, compute, covariates=covariates).numpy()
    ends = np.cumsum([*sizes.values()])[:-1]
    blocks = dict(zip(sizes, np.split(columns, ends, axis=1), strict=True))
    if "lower" in blocks and config.label_transforms is not None:
        units = config.label_units or [""] * len(config.label_transforms)
        blocks["lower"], blocks["upper"] = learn_ends(
            blocks["lower"], blocks["upper"], transforms=config.label_transforms, units=units
        )
    return {name: it for name, it in blocks.items() if name not in ("values", "spread")}


def compute_novelty(molecules: Iterable[Molecule], known: Iterable[Molecule]) -> np.ndarray:
    """Return how new each molecule is to the known ones, as [`RMatTrust`] of fingerprints has it.

    Returns:
        `np.ndarray`, 0 to 1; NaN for what is no molecule, and where none is known.
    """
    processor = RMatProcessor(geometry="2d", max_atoms=MAX_ATOMS)
    rows, learned = (
        [it.features for it in featurize_molecules(list(given), processor)]
        for given in (molecules, known)
    )
    found = np.full(len(rows), np.nan)
    own, references = [row for row, it in enumerate(rows) if it], [it for it in learned if it]
    if own and references:
        packed = pack_bits(compute_rows(references, compute_environment_bits))
        bits = compute_rows([rows[row] for row in own], compute_environment_bits)
        found[own] = 1 - compute_similarities(bits, packed).amax(1).double().numpy()
    return found


def describe_trust(config: RMatConfig) -> list[str]:
    """Return sentences about what intervals and sets of a model rest on; none without any."""
    trust = config.trust
    if trust is None:
        return []
    numbers, what = trust["num_rows"], "Intervals"
    if config.problem_type not in (None, "regression"):
        what = "Calibrated probabilities and sets"
    rows = f"{min(numbers)} rows"
    if len({*numbers}) > 1:
        known = [it for it in numbers if it]
        rows = f"{min(known)} to {max(known)} rows of a label"
        if len(known) < len(numbers):
            rows += f" ({len(numbers) - len(known)} of {len(numbers)} have too few, and none)"
    if trust["source"] != "valid":
        text = f"{what} rest on {rows}, each predicted without its fold ({trust['source']})."
        return [text, *_describe_folds(config)]
    if not min(numbers):
        rows = f"fewer than {MIN_ROWS} rows, too few"
    way_out = (
        "--num-members 5 --member-folds takes all rows of train and valid, at 5 times the cost"
    )
    return [f"{what} rest on valid alone, {rows}; {way_out}."]


def _describe_folds(config: RMatConfig) -> list[str]:
    """Return what intervals or sets held of folds that had no part in them."""
    trust: Any = config.trust
    found = zip(config.output_names, trust.get("fold_coverage", []), strict=False)
    is_regression = config.problem_type in (None, "regression")
    known = {name: it for name, it in found if None not in it[: 2 - is_regression]}
    if not known:
        return []
    named, shares, asked = {}, [*known.values()], f"{DEFAULT_COVERAGE:.0%}"
    if is_regression:
        least = float(np.mean([it[0] for it in shares]))
        worst = [it[1] for it in shares if it[1] is not None]
        text = f"{asked} intervals held {least:.0%} on average"
        text += f" and {min(worst):.0%} in the worst fold" if worst else ""
    elif config.label_name is not None:
        named = {name: it[1] for name, it in known.items()}
    else:
        named = {str(it): float(np.mean([pair[it] for pair in shares])) for it in (0, 1)}
    if named:
        least = min(named.values())
        pairs = ", ".join(f"{share:.0%} of class {name}" for name, share in named.items())
        text = f"{asked} sets held {pairs}"
    num_rows = min(it for it in trust["num_rows"] if it)
    error = (DEFAULT_COVERAGE * (1 - DEFAULT_COVERAGE) / num_rows) ** 0.5
    is_short = least < DEFAULT_COVERAGE - max(_TOLERANCE, 2 * error)
    end = ": too few, so do not rely on them for molecules unlike those of training."
    return [f"In cross-validation, {text}{end if is_short else '.'}"]


def _describe_molecules(packed: Sequence[bytes]) -> dict[str, Any]:
    """Return the size of the largest of molecules, and the classes of their elements."""
    codes = np.unique(np.concatenate([unpack_features(it).atom_codes for it in packed]))
    block = ATOM_FEATURES.columns["atomic_number"]
    columns = ATOM_FEATURES.expand_codes(codes)[:, block.start - FIRST_ATOM_COLUMN :]
    elements = np.flatnonzero(columns[:, : block.stop - block.start].sum(0))
    return {"max_atoms": max(count_nodes(packed)) - 1, "elements": elements.tolist()}


def compute_rows(
    packed: Sequence[bytes],
    compute: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    *,
    covariates: np.ndarray | None = None,
) -> torch.Tensor:
    """Return what a function computes of each molecule, `(num_rows, ...)`, in order."""
    batches = group_by_length(count_nodes(packed), batch_size=_BATCH_SIZE)
    found = []
    for batch in batches:
        arrays = expand_features([packed[row] for row in batch])
        append_covariates(arrays, None if covariates is None else covariates[batch])
        found.append(compute({name: torch.from_numpy(it) for name, it in arrays.items()}))
    return torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate(batches)))]


def _fit_fingerprints(
    model: Any, molecules: tuple[list[bytes], list[bytes]], *, folds: tuple[np.ndarray, np.ndarray]
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return the buffers of the domain, and how new each held-out molecule was to the learned."""
    learned, others = (compute_rows(it, compute_environment_bits) for it in molecules)
    fingerprints = pack_bits(learned)
    similarities = compute_similarities(others, fingerprints).numpy()
    is_same = folds[1][:, None] == folds[0]
    nearest = np.where(is_same, 0.0, similarities).max(1)
    return {"fingerprints": fingerprints}, 1 - nearest.astype(np.float64)


def _fit_centers(
    model: Any, molecules: tuple[list[bytes], list[bytes]], *, folds: tuple[np.ndarray, np.ndarray]
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Return the same with centers of the vectors, found without the fold of a molecule."""
    from sklearn.cluster import KMeans

    encoder = find_encoder(model).eval()

    @torch.no_grad()
    def compute_vectors(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        read = {name: it for name, it in inputs.items() if name not in MOLECULE_INPUTS}
        on_device = {name: it.to(encoder.device) for name, it in read.items()}
        return encoder(**on_device).pooler_output.float().cpu()

    vectors, new = (compute_rows(it, compute_vectors) for it in molecules)
    std, mean = torch.std_mean(vectors, 0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    scaled, new = ((it - mean) / std for it in (vectors, new))

    def find_centers(rows: torch.Tensor) -> torch.Tensor:
        num_centers = int(np.clip(len(rows) // _ROWS_PER_CENTER, 1, _MOST_CENTERS))
        kmeans = KMeans(num_centers, n_init=1, random_state=0).fit(rows.numpy())
        return torch.from_numpy(kmeans.cluster_centers_).float()

    # a few groups take turns where each row is a fold of its own
    groups = [np.where(it < 0, it, it % _MOST_FOLDS) for it in folds]
    distances = torch.zeros(len(new), dtype=torch.float64)
    for group in np.unique(groups[1]):
        rows = torch.from_numpy(groups[1] == group)
        centers = find_centers(scaled[torch.from_numpy(groups[0] != group)])
        distances[rows] = torch.cdist(new[rows].double(), centers.double()).amin(1)
    scale = distances.median().clamp_min(1e-6)
    buffers = {"centers": find_centers(scaled), "vector_mean": mean, "vector_std": std}
    novelty = distances / (scale + distances)
    return {**buffers, "distance_scale": scale[None]}, novelty.numpy()


def _fit_outputs(
    head: RMatTrust, held_out: HeldOut, *, targets: np.ndarray, novelty: np.ndarray
) -> None:
    """Fill the buffers of errors, or of classes, of each output."""
    for idx, num_rows in enumerate(head.num_rows):
        known = ~np.isnan(targets[:, idx])
        values, truth = held_out.outputs[known, idx], targets[known, idx]
        if num_rows and head.is_regression:
            errors = _find_errors(held_out, targets)[known, idx]
            scale = _fit_errors(errors, novelty[known], folds=held_out.folds[known])
            blocks = (head.novelty_knots[idx], head.scale_knots[idx], head.scores[idx, :num_rows])
            for block, numbers in zip(blocks, scale, strict=True):
                block.copy_(torch.from_numpy(numbers))
        elif num_rows:
            order = np.argsort(values, kind="stable")
            low, high = compute_venn_abers(truth[order])
            head.scores[idx, :num_rows] = torch.from_numpy(values[order])
            head.is_positive[idx, :num_rows] = torch.from_numpy(truth[order].astype(np.uint8))
            head.low[idx, : num_rows + 1] = torch.from_numpy(low)
            head.high[idx, : num_rows + 1] = torch.from_numpy(high)
        elif not head.is_regression:
            # nothing is known: one half
            head.high[idx] = 1.0


def _find_errors(held_out: HeldOut, targets: np.ndarray) -> np.ndarray:
    """Return the errors `(num_rows, num_labels)`, in standard deviations where there are some."""
    errors = np.abs(targets - held_out.outputs)
    return errors if held_out.variances is None else errors / np.sqrt(held_out.variances)


def _fit_errors(
    errors: np.ndarray, novelty: np.ndarray, *, folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the knots of the scale of errors, and the errors in its units, in order.

    Each fold of 20 rows and more counts alike, and a smaller one by its rows: of clusters one may
    have most rows, and these are predicted by what little is left. So many of the errors are
    repeated or left out.
    """
    _, place, sizes = np.unique(folds, return_inverse=True, return_counts=True)
    weights = 1 / np.maximum(sizes, _ROWS_TO_JUDGE)[place]
    weights /= weights.mean()
    knots, scales = fit_error_scale(errors, novelty, weights=weights)
    scores = errors / np.interp(novelty, knots, scales)
    order = np.argsort(scores, kind="stable")
    shares = np.cumsum(weights[order])
    drawn = np.searchsorted(shares, np.arange(len(scores)) + 0.5)
    return knots, scales, scores[order][np.minimum(drawn, len(scores) - 1)]


def _judge_folds(
    head: RMatTrust, held_out: HeldOut, *, targets: np.ndarray, novelty: np.ndarray
) -> list[list[float | None]]:
    """Return of each output which share of a fold the others' intervals or sets hold.

    Of intervals the mean over folds, and the least; of classes that of all 0 and of all 1. `None`
    where there are too few rows to tell.
    """
    found: list[list[float | None]] = []
    for idx, num_rows in enumerate(head.num_rows):
        known = ~np.isnan(targets[:, idx]) & (num_rows > 0)
        if head.is_regression:
            errors = _find_errors(held_out, targets)[known, idx]
            found.append(_judge_intervals(errors, novelty[known], folds=held_out.folds[known]))
            continue
        rows = [known & (targets[:, idx] == label) for label in (0, 1)]
        # the lower a score of a 1 is, the stranger, and the higher one of a 0
        pairs = zip((-1, 1), rows, strict=True)
        found.append(
            [_judge_sets(it * held_out.outputs[own, idx], held_out.folds[own]) for it, own in pairs]
        )
    return found


def _judge_intervals(
    errors: np.ndarray, novelty: np.ndarray, *, folds: np.ndarray
) -> list[float | None]:
    shares, sizes = [], []
    for fold in np.unique(folds):
        inside = folds == fold
        if (num_others := np.sum(~inside)) < MIN_ROWS:
            continue
        knots, scales, scores = _fit_errors(errors[~inside], novelty[~inside], folds=folds[~inside])
        rank = int(np.ceil((num_others + 1) * DEFAULT_COVERAGE - 1e-9))
        ends = scores[rank - 1] * np.interp(novelty[inside], knots, scales)
        shares.append(float(np.mean(errors[inside] <= ends)))
        sizes.append(min(int(inside.sum()), _ROWS_TO_JUDGE))
    if not shares:
        return [None, None]
    large = [share for share, size in zip(shares, sizes, strict=True) if size == _ROWS_TO_JUDGE]
    return [float(np.average(shares, weights=sizes)), min(large, default=None)]


def _judge_sets(scores: np.ndarray, folds: np.ndarray) -> float | None:
    held: list[bool] = []
    if len(scores) < _ROWS_TO_JUDGE:
        return None
    for fold in np.unique(folds):
        others = np.sort(scores[folds != fold])
        ranks = np.searchsorted(others, scores[folds == fold], side="right") + 1
        held += (ranks / (len(others) + 1) > 1 - DEFAULT_COVERAGE).tolist()
    return float(np.mean(held))


def fit_error_scale(
    errors: np.ndarray, novelty: np.ndarray, *, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the knots of a non-decreasing function: how large errors are at a novelty.

    Args:
        errors, novelty, weights (`np.ndarray` of shape `(num_rows,)`):
            Of rows that were held out; by default all count alike.

    Returns:
        Two `np.ndarray` of shape `(20,)`: isotonic means of rows that are equally new, at least 50
        for each; the last one is repeated.
    """
    from sklearn.isotonic import isotonic_regression

    num_bins = int(np.clip(len(errors) // _ROWS_PER_KNOT, 1, NUM_KNOTS))
    bins = np.array_split(np.argsort(novelty, kind="stable"), num_bins)
    weights = np.ones(len(errors)) if weights is None else weights
    knots, means = (
        np.array([np.average(values[rows], weights=weights[rows]) for rows in bins])
        for values in (novelty, errors)
    )
    scales = isotonic_regression(means, sample_weight=[weights[rows].sum() for rows in bins])
    least = max(_LEAST_SCALE * np.average(errors, weights=weights), np.finfo(np.float32).tiny)
    padding = (0, NUM_KNOTS - num_bins)
    return np.pad(knots, padding, "edge"), np.pad(np.maximum(scales, least), padding, "edge")


def compute_venn_abers(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Venn-ABERS probabilities of a new score in every gap (arXiv 1511.00213).

    They are those of an isotonic regression with the new row in it, once as a 0 and once as a 1. Of
    its minima of means over rows behind and maxima over rows before, only ends of the convex hulls
    of both sides are looked at.

    Args:
        labels (`np.ndarray` of shape `(num_rows,)`): 0 or 1, in the order of the scores.

    Returns:
        Two `np.ndarray` of shape `(num_rows + 1,)`, of the gap before each row, and the last.
    """
    sums = np.concatenate([[0.0], np.cumsum(labels)])
    before, behind = _find_hulls(sums), _find_hulls(sums[::-1])
    last, probabilities = len(labels), np.zeros((2, len(labels) + 1))
    for gap in range(last + 1):
        left, right = before[gap], last - behind[last - gap]
        width = right - left[:, None] + 1
        rise = sums[right] - sums[left][:, None]
        for label in (0, 1):
            probabilities[label, gap] = ((rise + label) / width).min(1).max()
    return probabilities[0], probabilities[1]


def _find_hulls(heights: np.ndarray) -> list[np.ndarray]:
    """Return for every point the corners of the lower convex hull of the points up to it."""
    hull: list[int] = []
    found = []
    for idx, height in enumerate(heights.tolist()):
        while len(hull) > 1:
            first, second = hull[-2:]
            slope = (heights[second] - heights[first]) / (second - first)
            if slope < (height - heights[second]) / (idx - second):
                break
            hull.pop()
        hull.append(idx)
        found.append(np.array(hull))
    return found
