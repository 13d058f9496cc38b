import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from rdkit import Chem

from rmat_hf.training.plots import (
    NUM_BINS,
    draw_calibration,
    draw_errors,
    draw_roc,
    save_drawing,
)


def test_calibrated_probabilities_lie_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random(20000)
    labels = rng.random(20000) < probabilities
    axes = Figure().add_subplot()
    draw_calibration(axes, {"y": (labels, probabilities)})
    curve = axes.lines[1]
    assert len(curve.get_xdata()) == NUM_BINS
    np.testing.assert_allclose(curve.get_xdata(), curve.get_ydata(), atol=0.03)
    few = Figure().add_subplot()
    draw_calibration(few, {"y": (labels[:25], probabilities[:25])})
    assert len(few.lines[1].get_xdata()) == 2


def test_a_curve_tells_its_area_and_number_of_rows() -> None:
    axes = Figure().add_subplot()
    labels = np.array([False, False, True, True])
    draw_roc(axes, {"a": (labels, np.arange(4.0)), "one class": (labels[:2], np.arange(2.0))})
    assert axes.get_legend_handles_labels()[1] == ["a: AUC 1.000, n 4"]


def test_errors_without_novelty_or_label_are_not_drawn() -> None:
    axes = Figure().add_subplot()
    novelty = np.array([0.1, np.nan, 0.3, 0.4])
    draw_errors(axes, novelty, errors=np.array([1.0, 2.0, np.nan, 4.0]))
    offsets = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_allclose(offsets, [[0.1, 1.0], [0.4, 4.0]])


@pytest.mark.parametrize("smiles", [["CCO"], ["CCO", "c1ccccc1", "C[N+](C)(C)C", "N", "O"]])
def test_molecules_are_drawn_with_their_legends(tmp_path: Path, smiles: list[str]) -> None:
    legends = [f"row {idx}" for idx in range(len(smiles))]
    text = save_drawing(tmp_path / "some.svg", smiles, legends=legends)
    assert text == "![some](some.svg)"
    content = (tmp_path / "some.svg").read_text()
    assert content.startswith("<?xml")
    assert content.count("<svg") == 1


def test_a_machine_on_which_rdkit_cannot_draw_has_a_page_without_drawings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(Chem, "Draw", raising=False)
    monkeypatch.setitem(sys.modules, "rdkit.Chem.Draw", None)
    text = save_drawing(tmp_path / "some.svg", ["CCO"], legends=["a"])
    assert "No drawing" in text and not list(tmp_path.iterdir())
    assert "libxrender1" in caplog.text
