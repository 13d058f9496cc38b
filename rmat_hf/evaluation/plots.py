"""The plots of a benchmark: predictions, errors far from train, calibration."""

import importlib.util
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rdkit import DataStructs
from rdkit.Chem import rdFingerprintGenerator
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from rmat_hf.evaluation.row_predictions import RowPredictions
from rmat_hf.evaluation.summary import FoldOutcome
from rmat_hf.model.features_rmat import parse_molecule
from rmat_hf.output_folder import open_atomically
from rmat_hf.training.baselines import FINGERPRINT_RADIUS, FINGERPRINT_SIZE, MAX_ATOMS

logger = logging.getLogger(__name__)

NUM_COLUMNS = 3
NUM_BINS = 10
POINT_COLOR, LINE_COLOR, DIAGONAL_COLOR = "#9aa5b1", "#d1495b", "#333333"


def save_plots(
    folder: Path, name: str, *, outcomes: Sequence[FoldOutcome], is_regression: bool
) -> list[str]:
    """Plot the test rows of a data set, those of all its folds together.

    Regression: predicted against measured values, and for ensembles the error against the spread.
    Classification: ROC curves and calibration. Both: the error against the Tanimoto distance
    (ECFP4) to the nearest molecule of train.

    Args:
        folder (`Path`): Where the PNG files go.
        name (`str`): Data set, the start of their names.
        outcomes (`Sequence[FoldOutcome]`): At least one.
        is_regression (`bool`): Which kind.

    Returns:
        `list[str]`: names of the files; none if matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No plots: matplotlib is missing. Run: pip install rmat-hf[viz]")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    methods = list(dict.fromkeys(method for found in outcomes for method in found.predictions))
    labels = {method: _collect_labels(outcomes, method) for method in methods}
    all_predictions = [outcome.predictions for outcome in outcomes]
    predictions = {
        method: _collect_values(outcomes, all_predictions, method=method) for method in methods
    }
    distances = [compute_distances_to_train(outcome.rows) for outcome in outcomes]
    draw = {"parity": _draw_parity} if is_regression else {"roc": _draw_roc}
    if not is_regression:
        draw["calibration"] = _draw_calibration
    files = []
    for kind, draw_panel in draw.items():
        files.append(f"{name}_{kind}.png")
        with _open_panels(folder / files[-1], methods) as panels:
            for method, axes in panels.items():
                draw_panel(axes, labels[method], predictions=predictions[method])
    all_spreads = [outcome.spreads for outcome in outcomes]
    ensembles = [method for method in methods if any(method in found for found in all_spreads)]
    if is_regression and ensembles:
        files.append(f"{name}_spread.png")
        with _open_panels(folder / files[-1], ensembles) as panels:
            for method, axes in panels.items():
                _draw_spread(
                    axes,
                    predictions[method] - labels[method],
                    spreads=_collect_values(outcomes, all_spreads, method=method),
                )
    files.append(f"{name}_distance.png")
    with _open_panels(folder / files[-1], methods) as panels:
        for method, axes in panels.items():
            errors = np.abs(predictions[method] - labels[method])
            shown = [
                np.repeat(found, outcome.rows.labels.shape[1])
                for found, outcome in zip(distances, outcomes, strict=True)
                if method in outcome.predictions
            ]
            _draw_errors(axes, errors, distances=np.concatenate(shown))
    return files


def compute_distances_to_train(rows: RowPredictions) -> np.ndarray:
    """Return for each test row 1 - the largest Tanimoto similarity (ECFP4) to a molecule of train.

    Args:
        rows (`RowPredictions`): With at least one row in train.

    Returns:
        `np.ndarray` of shape `(num_test_rows,)`, 0 to 1.
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(
        radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_SIZE
    )
    mols = [parse_molecule(text, max_atoms=MAX_ATOMS) for text in rows.smiles]
    fingerprints = [generator.GetFingerprint(mol) for mol in mols]
    train = [fingerprints[i] for i in np.flatnonzero(rows.is_in("train"))]
    test = np.flatnonzero(rows.is_in("test"))
    nearest = [max(DataStructs.BulkTanimotoSimilarity(fingerprints[i], train)) for i in test]
    return 1.0 - np.array(nearest)


def _collect_labels(outcomes: Sequence[FoldOutcome], method: str) -> np.ndarray:
    found = [
        outcome.rows.labels[outcome.rows.is_in("test")]
        for outcome in outcomes
        if method in outcome.predictions
    ]
    return np.concatenate(found).ravel()


def _collect_values(
    outcomes: Sequence[FoldOutcome], values: Sequence[dict[str, np.ndarray]], *, method: str
) -> np.ndarray:
    found = [
        by_method[method][outcome.rows.is_in("test")]
        for outcome, by_method in zip(outcomes, values, strict=True)
        if method in by_method
    ]
    return np.concatenate(found).ravel()


@contextmanager
def _open_panels(path: Path, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield axes by method; the figure is saved when the block ends without an error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_columns = min(NUM_COLUMNS, len(methods))
    num_rows = math.ceil(len(methods) / num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 3.6 * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels: dict[str, Any] = {}
    for idx, method in enumerate(methods):
        first = panels.get(methods[0])  # one scale for all, so that panels can be compared
        panels[method] = figure.add_subplot(
            num_rows, num_columns, idx + 1, sharex=first, sharey=first
        )
        panels[method].set_title(method, fontsize=9)
    yield panels
    with open_atomically(path) as stream:
        figure.savefig(stream, format="png", dpi=120, bbox_inches="tight")


def _draw_parity(axes: Any, labels: np.ndarray, *, predictions: np.ndarray) -> None:
    known = ~np.isnan(labels)
    measured, predicted = labels[known], predictions[known]
    axes.scatter(measured, predicted, s=8, alpha=0.6, color=POINT_COLOR, linewidths=0)
    shown = np.concatenate([measured, predicted])
    limits = (shown.min(), shown.max())
    axes.plot(limits, limits, color=DIAGONAL_COLOR, linewidth=0.8)
    axes.set(aspect="equal", xlabel="measured", ylabel="predicted")


def _draw_roc(axes: Any, labels: np.ndarray, *, predictions: np.ndarray) -> None:
    known = ~np.isnan(labels)
    axes.plot((0, 1), (0, 1), color=DIAGONAL_COLOR, linewidth=0.8)
    if len(np.unique(labels[known])) == 2:
        false_rate, true_rate, _ = roc_curve(labels[known], predictions[known])
        axes.plot(false_rate, true_rate, color=LINE_COLOR)
    axes.set(aspect="equal", xlabel="false positive rate", ylabel="true positive rate")


def _draw_calibration(axes: Any, labels: np.ndarray, *, predictions: np.ndarray) -> None:
    known = ~np.isnan(labels)
    probabilities = np.clip(predictions[known], 0.0, 1.0)
    axes.plot((0, 1), (0, 1), color=DIAGONAL_COLOR, linewidth=0.8)
    if len(np.unique(labels[known])) == 2:
        observed, predicted = calibration_curve(labels[known], probabilities, n_bins=NUM_BINS)
        axes.plot(predicted, observed, color=LINE_COLOR, marker="o", markersize=4)
    axes.set(aspect="equal", xlabel="predicted probability", ylabel="share of yes")


def _draw_spread(axes: Any, errors: np.ndarray, *, spreads: np.ndarray) -> None:
    """Draw root mean square error against root mean square spread, in bins of equal size.

    On the diagonal a spread is the size of the error to expect (doi 10.3390/s22155540); an ensemble
    of few members lies above it, as they share their mistakes, but should rise along it.
    """
    known = ~np.isnan(errors)
    x, y = spreads[known], errors[known]
    order = np.argsort(x, kind="stable")
    bins = np.array_split(order, min(NUM_BINS, len(order)))
    expected = [np.sqrt(np.mean(x[rows] ** 2)) for rows in bins]
    observed = [np.sqrt(np.mean(y[rows] ** 2)) for rows in bins]
    limits = (0.0, max([*expected, *observed], default=1.0))
    axes.plot(limits, limits, color=DIAGONAL_COLOR, linewidth=0.8)
    axes.plot(expected, observed, color=LINE_COLOR, marker="o", markersize=4)
    axes.set(xlabel="spread of the members", ylabel="RMSE in the bin")


def _draw_errors(axes: Any, errors: np.ndarray, *, distances: np.ndarray) -> None:
    known = ~np.isnan(errors)
    x, y = distances[known], errors[known]
    axes.scatter(x, y, s=8, alpha=0.5, color=POINT_COLOR, linewidths=0)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, NUM_BINS + 1)))
    bins = np.digitize(x, edges[1:-1])
    present = np.unique(bins)
    axes.plot(
        [np.median(x[bins == idx]) for idx in present],
        [np.mean(y[bins == idx]) for idx in present],
        color=LINE_COLOR,
    )
    axes.set(xlabel="Tanimoto distance to train", ylabel="absolute error")
