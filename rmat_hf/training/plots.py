"""What is drawn of predictions: beside measured values, by class, and far from train."""

import importlib.util
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rdkit import Chem
from sklearn.metrics import roc_auc_score, roc_curve

from rmat_hf.errors import UserError, import_draw
from rmat_hf.model.features_rmat import Molecule, MoleculeError, parse_molecule
from rmat_hf.output_folder import open_atomically
from rmat_hf.training.baselines import MAX_ATOMS
from rmat_hf.training.metrics import format_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

Panel = Callable[["Axes"], None]
NUM_BINS = 10
# Labels or classes with a panel or curve of their own; more of them nobody reads.
MOST_SHOWN = 8
LINE_COLOR, DIAGONAL_COLOR, POINT_COLOR = "#d1495b", "#333333", "#9aa5b1"
POINTS: dict[str, Any] = {"s": 12, "alpha": 0.6, "linewidths": 0}
# Panels, or molecules.
NUM_IN_A_LINE = 4
# Inches around the panels of a figure: left, right, bottom, top.
_MARGINS = (0.75, 0.2, 0.6, 0.4)


def _parse(molecule: Molecule) -> Chem.Mol | None:
    try:
        return parse_molecule(molecule, max_atoms=MAX_ATOMS)
    except MoleculeError:
        return None


def save_figure(
    path: Path,
    draw: Sequence[Panel],
    *,
    titles: Sequence[str] = (),
    panel_size: tuple[float, float] = (4.8, 4.8),
    has_one_scale: bool = False,
) -> str:
    """Write a figure with what each function draws, and return what a page shows of it.

    It needs matplotlib (`pip install rmat-hf[viz]`); without it the page says so.
    """
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("There are no plots: matplotlib is missing. pip install 'rmat-hf[viz]'")
        return "(No plot: matplotlib was not installed.)"
    from matplotlib.figure import Figure

    num_columns = min(len(draw), NUM_IN_A_LINE)
    num_lines = math.ceil(len(draw) / num_columns)
    width, height = panel_size[0] * num_columns, panel_size[1] * num_lines
    figure = Figure(figsize=(width, height))
    left, right, bottom, top = _MARGINS
    # a layout that is computed would draw everything twice
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=(left + right) / (panel_size[0] - left - right),
        hspace=(bottom + top) / (panel_size[1] - bottom - top),
    )
    shared = None
    for idx, (fill, title) in enumerate(zip_longest(draw, titles), start=1):
        axes = figure.add_subplot(num_lines, num_columns, idx, sharex=shared, sharey=shared)
        shared = axes if has_one_scale else None
        fill(axes)
        if title:
            axes.set_title(title, fontsize=9)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    with open_atomically(path) as stream:
        figure.savefig(stream, format="png", dpi=150)
    return f"![{path.stem}]({path.name})"


def draw_parity(
    axes: "Axes", series: Iterable[tuple[np.ndarray, np.ndarray, Mapping[str, Any]]]
) -> None:
    """Draw predicted against measured values, NaN where missing: those and a style, for each."""
    shown = [np.empty(0)]
    for measured, predicted, style in series:
        axes.scatter(measured, predicted, **{**POINTS, "color": POINT_COLOR, **style})
        known = ~np.isnan(measured)
        shown += [measured[known], predicted[known]]
    values = np.concatenate(shown)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    margin = 0.04 * (high - low) or 1.0
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=DIAGONAL_COLOR, linewidth=0.8, zorder=0)
    axes.set(xlim=limits, ylim=limits, aspect="equal", xlabel="measured", ylabel="predicted")
    axes.locator_params(nbins=6)  # of more the numbers may touch


def draw_roc(axes: "Axes", curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw the ROC curve of each name: labels 0 and 1, and probabilities."""
    axes.plot((0, 1), (0, 1), color=DIAGONAL_COLOR, linewidth=0.8, zorder=0)
    for name, (labels, probabilities) in curves.items():
        if len(np.unique(labels)) < 2:
            continue
        rates = roc_curve(labels, probabilities)[:2]
        area = format_metric(roc_auc_score(labels, probabilities))
        axes.plot(*rates, label=f"{name}: AUC {area}, n {len(labels)}")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")


def draw_calibration(axes: "Axes", curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw how often it is a yes where so much was predicted, in bins of equal numbers of rows."""
    axes.plot((0, 1), (0, 1), color=DIAGONAL_COLOR, linewidth=0.8, zorder=0)
    for name, (labels, probabilities) in curves.items():
        order = np.argsort(probabilities, kind="stable")
        bins = np.array_split(order, _count_bins(len(order)))
        points = [(probabilities[it].mean(), labels[it].mean()) for it in bins if len(it)]
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    axes.set(xlabel="predicted probability", ylabel="share of yes", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))


def draw_errors(
    axes: "Axes", novelty: np.ndarray, *, errors: np.ndarray, top: float | None = None
) -> None:
    """Draw absolute errors, at most `top`, against the novelty of molecules; means in bins."""
    known = ~(np.isnan(novelty) | np.isnan(errors))
    novelty, errors = novelty[known], errors[known]
    axes.scatter(novelty, errors, **POINTS, color=POINT_COLOR)
    order = np.argsort(novelty, kind="stable")
    bins = [it for it in np.array_split(order, _count_bins(len(order))) if len(it)]
    curve = [(np.median(novelty[it]), errors[it].mean()) for it in bins]
    if curve:
        axes.plot(*zip(*curve, strict=True), color=LINE_COLOR, marker="o", label="mean")
    axes.set(xlabel="novelty (0: a molecule of training)", ylabel="absolute error")
    if top:
        axes.set_ylim(-0.05 * top, 1.05 * top)


def _count_bins(num_rows: int) -> int:
    """Return how many bins there are: of few rows none says anything."""
    return max(1, min(NUM_BINS, num_rows // NUM_BINS))


def draw_coverage(axes: "Axes", wanted: Sequence[float], *, found: Sequence[float]) -> None:
    """Draw which share of the measured values the intervals hold, against what was asked for."""
    axes.plot((0, 1), (0, 1), color=DIAGONAL_COLOR, linewidth=0.8, zorder=0)
    axes.plot(wanted, found, color=LINE_COLOR, marker="o", markersize=4)
    axes.set(xlabel="coverage asked for", ylabel="coverage found", aspect="equal")
    axes.set(xlim=(0, 1), ylim=(0, 1))


def save_drawing(path: Path, smiles: Sequence[str], *, legends: Sequence[str]) -> str:
    """Draw molecules into an SVG file with a line or two below each; return what a page shows."""
    try:
        draw = import_draw()
    except UserError as error:
        logger.warning("There is no drawing. %s", error)
        return "(No drawing: RDKit could not draw on that machine.)"
    options: Any = draw.MolDrawOptions()
    options.legendFontSize, options.legendFraction = 18, 0.2
    drawing = draw.MolsToGridImage(
        [_parse(it) for it in smiles],
        legends=list(legends),
        molsPerRow=NUM_IN_A_LINE,
        subImgSize=(260, 220),
        useSVG=True,
        drawOptions=options,
    )
    with open_atomically(path) as stream:
        stream.write(str(getattr(drawing, "data", drawing)).encode("utf-8"))
    return f"![{path.stem}]({path.name})"
