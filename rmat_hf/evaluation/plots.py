"""The plots of a benchmark: predictions, errors far from train, calibration."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rmat_hf.evaluation.predictions import PREDICTION_PREFIX, SPREAD_PREFIX
from rmat_hf.evaluation.protocol import DatasetProtocol
from rmat_hf.evaluation.summary import FoldOutcome
from rmat_hf.training.plots import (
    DIAGONAL_COLOR,
    LINE_COLOR,
    NUM_BINS,
    POINT_COLOR,
    POINTS,
    draw_calibration,
    draw_errors,
    draw_roc,
    save_figure,
)
from rmat_hf.training.trust import compute_novelty

PANEL_SIZE = (3.6, 3.6)


def save_plots(
    folder: Path, name: str, *, outcomes: Sequence[FoldOutcome], dataset: DatasetProtocol
) -> list[str]:
    """Plot the test rows of a data set, those of all its folds and labels together.

    Regression: predicted against measured values, and for ensembles the error against the spread.
    Classification: ROC curves and calibration. Both: the error against the Tanimoto distance
    (ECFP4) to the nearest molecule of train.
    """
    folder.mkdir(parents=True, exist_ok=True)
    points = collect_points(outcomes, label_names=dataset.options["label_columns"])
    kinds: dict[str, Callable[..., None]] = {"distance": _draw_errors}
    if dataset.is_regression:
        kinds |= {"parity": _draw_parity, "spread": draw_spread}
    elif points["label"].nunique() == 2:
        kinds["roc"] = lambda axes, points: draw_roc(axes, _list_curves(points))
        kinds["calibration"] = lambda axes, points: draw_calibration(axes, _list_curves(points))
    files = []
    for kind, draw in kinds.items():
        shown = points[points["spread"].notna()] if kind == "spread" else points
        panels = {it: partial(draw, points=own) for it, own in shown.groupby("method", sort=False)}
        path = folder / f"{name}_{kind}.png"
        if panels:
            # one scale for all, so that methods can be compared
            options: Any = {"titles": list(panels), "has_one_scale": True}
            save_figure(path, list(panels.values()), panel_size=PANEL_SIZE, **options)
        files += [path.name] * path.is_file()
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


def _draw_parity(axes: Any, points: pd.DataFrame) -> None:
    # not sklearn's `PredictionErrorDisplay`, which refuses panels of one scale
    axes.scatter(points["label"], points["prediction"], **POINTS, color=POINT_COLOR)
    shown = points[["label", "prediction"]].to_numpy()
    limits = (shown.min(), shown.max())
    axes.plot(limits, limits, color=DIAGONAL_COLOR, linewidth=0.8)
    axes.set(aspect="equal", xlabel="measured", ylabel="predicted")


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
