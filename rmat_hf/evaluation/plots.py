"""The plots of a benchmark: predictions, errors far from train, calibration."""

import importlib.util
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rmat_hf.evaluation.predictions import PREDICTION_PREFIX, SPREAD_PREFIX
from rmat_hf.evaluation.protocol import DatasetProtocol
from rmat_hf.evaluation.summary import FoldOutcome
from rmat_hf.output_folder import open_atomically
from rmat_hf.training.plots import (
    DIAGONAL_COLOR,
    LINE_COLOR,
    NUM_BINS,
    POINT_COLOR,
    POINTS,
    draw_calibration,
    draw_errors,
    draw_roc,
)
from rmat_hf.training.trust import compute_novelty

logger = logging.getLogger(__name__)

NUM_COLUMNS = 3


def save_plots(
    folder: Path, name: str, *, outcomes: Sequence[FoldOutcome], dataset: DatasetProtocol
) -> list[str]:
    """Plot the test rows of a data set, those of all its folds and labels together.

    Regression: predicted against measured values, and for ensembles the error against the spread.
    Classification: ROC curves and calibration. Both: the error against the Tanimoto distance
    (ECFP4) to the nearest molecule of train.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("No plots: matplotlib is missing. Run: pip install 'rmat-hf[viz]'")
        return []
    folder.mkdir(parents=True, exist_ok=True)
    points = collect_points(outcomes, label_names=dataset.options["label_columns"])
    kinds: dict[str, Callable[..., None]] = {"distance": _draw_errors}
    if dataset.is_regression:
        kinds |= {"parity": _draw_parity, "spread": draw_spread}
    elif points["label"].nunique() == 2:
        kinds |= {"roc": _draw_roc, "calibration": _draw_calibration}
    files = []
    for kind, draw in kinds.items():
        shown = points[points["spread"].notna()] if kind == "spread" else points
        if len(shown):
            files.append(f"{name}_{kind}.png")
            _save_panels(folder / files[-1], shown, draw=draw)
    return files


def collect_points(outcomes: Sequence[FoldOutcome], *, label_names: Sequence[str]) -> pd.DataFrame:
    """Return the known labels of test rows, one in a row.

    Returns:
        `pd.DataFrame` with `method`, `label`, `prediction`, `spread` (NaN where there is one model)
        and `distance` to train.
    """
    found = []
    for outcome in outcomes:
        smiles = dict(iter(outcome.rows.groupby("split")["smiles"]))
        distances = compute_novelty(smiles["test"], smiles["train"])
        for method, frame in outcome.methods.items():
            test = frame[frame["split"] == "test"]
            for label in label_names:
                spread = test.get(f"{SPREAD_PREFIX}{label}", pd.Series(math.nan, test.index))
                columns = {"label": test[label], "prediction": test[f"{PREDICTION_PREFIX}{label}"]}
                columns |= {"spread": spread, "distance": pd.Series(distances, test.index)}
                found.append(pd.DataFrame(columns, dtype=float).assign(method=method))
    return pd.concat(found).dropna(subset=["label"])


def _save_panels(path: Path, points: pd.DataFrame, *, draw: Callable[..., None]) -> None:
    """Draw a panel for each method."""
    from matplotlib.figure import Figure

    methods = points["method"].unique()
    num_columns = min(NUM_COLUMNS, len(methods))
    num_rows = math.ceil(len(methods) / num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 3.6 * num_rows), layout="constrained")
    first = None  # one scale for all, so that panels can be compared
    for idx, method in enumerate(methods):
        axes = figure.add_subplot(num_rows, num_columns, idx + 1, sharex=first, sharey=first)
        draw(axes, points[points["method"] == method])
        axes.set_title(method, fontsize=9)
        first = first or axes
    with open_atomically(path) as stream:
        figure.savefig(stream, format="png", dpi=120, bbox_inches="tight")


def _draw_parity(axes: Any, points: pd.DataFrame) -> None:
    # not sklearn's `PredictionErrorDisplay`, which refuses panels of one scale
    axes.scatter(points["label"], points["prediction"], **POINTS, color=POINT_COLOR)
    shown = points[["label", "prediction"]].to_numpy()
    limits = (shown.min(), shown.max())
    axes.plot(limits, limits, color=DIAGONAL_COLOR, linewidth=0.8)
    axes.set(aspect="equal", xlabel="measured", ylabel="predicted")


def _draw_roc(axes: Any, points: pd.DataFrame) -> None:
    draw_roc(axes, _list_curves(points))
    axes.legend(fontsize=8)


def _draw_calibration(axes: Any, points: pd.DataFrame) -> None:
    draw_calibration(axes, _list_curves(points))


def _list_curves(points: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    probabilities = points["prediction"].clip(0, 1)
    return {"all labels": (points["label"].to_numpy(), probabilities.to_numpy())}


def draw_spread(axes: Any, points: pd.DataFrame) -> None:
    """Draw root mean square error against root mean square spread, in bins of equal size.

    On the diagonal a spread is the size of the error to expect (doi 10.3390/s22155540); an ensemble
    of few members lies above it, as they share their mistakes, but should rise along it.
    """
    error = points["prediction"] - points["label"]
    squares = pd.DataFrame({"spread": points["spread"] ** 2, "error": error**2})
    ranks = squares["spread"].rank(method="first")
    bins = pd.qcut(ranks, min(NUM_BINS, len(ranks)), labels=False)
    curve = np.sqrt(squares.groupby(bins).mean())
    limits = (0.0, curve.to_numpy().max())
    axes.plot(limits, limits, color=DIAGONAL_COLOR, linewidth=0.8)
    axes.plot(curve["spread"], curve["error"], color=LINE_COLOR, marker="o", markersize=4)
    axes.set(xlabel="spread of the members", ylabel="RMSE in the bin")


def _draw_errors(axes: Any, points: pd.DataFrame) -> None:
    error = (points["prediction"] - points["label"]).abs()
    draw_errors(axes, points["distance"].to_numpy(), errors=error.to_numpy())
