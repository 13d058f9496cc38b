import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny_evaluation import CLASSES, build_rows

from rmat_hf.evaluation import plots
from rmat_hf.evaluation.plots import compute_distances_to_train, save_plots
from rmat_hf.evaluation.protocol import Fold
from rmat_hf.evaluation.summary import FoldOutcome


def build_outcomes(labels: np.ndarray) -> list[FoldOutcome]:
    rows = build_rows(labels=labels)
    noisy = np.clip(labels + np.linspace(-0.2, 0.2, 12)[:, None], 0.0, None)
    first = FoldOutcome(Fold("set", "part_0", 0), rows, {"a": noisy, "b": labels})
    return [first, FoldOutcome(Fold("set", "part_0", 1), rows, {"a": noisy})]


def test_regression_and_classification_have_their_plots(tmp_path: Path) -> None:
    numbers = np.arange(12.0)[:, None]
    numbers[11] = np.nan
    classes = np.array(CLASSES, dtype=float)[:, None]
    options = {"outcomes": build_outcomes(numbers), "is_regression": True}
    files = save_plots(tmp_path / "plots", "set", **options)  # type: ignore[arg-type]  # options
    assert files == ["set_parity.png", "set_distance.png"]
    options = {"outcomes": build_outcomes(classes), "is_regression": False}
    files += save_plots(tmp_path / "plots", "set", **options)  # type: ignore[arg-type]  # options
    assert files[2:] == ["set_roc.png", "set_calibration.png", "set_distance.png"]
    for file in files:
        assert (tmp_path / "plots" / file).read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcomes = build_outcomes(np.arange(12.0)[:, None])
    assert save_plots(tmp_path, "set", outcomes=outcomes, is_regression=True) == []
    assert "pip install rmat-hf[viz]" in caplog.text


def test_distance_is_zero_for_a_molecule_of_train() -> None:
    rows = build_rows()
    same = build_rows(smiles=[*rows.smiles[:10], rows.smiles[0], "FC(F)(F)Cl"])
    distances = compute_distances_to_train(same)
    assert distances[0] == 0.0
    assert distances[1] > 0.9


def test_ensembles_have_their_error_against_their_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, np.ndarray] = {}

    def draw(axes: Any, errors: np.ndarray, *, spreads: np.ndarray) -> None:
        drawn["errors"], drawn["spreads"] = errors, spreads
        draw_spread(axes, errors, spreads=spreads)

    draw_spread = plots._draw_spread
    monkeypatch.setattr(plots, "_draw_spread", draw)
    rows = build_rows(labels=np.arange(12.0)[:, None])
    spread = np.linspace(0.1, 1.2, 12)[:, None]
    predictions = {"ensemble": rows.labels + 0.5, "single": rows.labels}
    outcome = FoldOutcome(Fold("set", "part_0", 0), rows, predictions, {"ensemble": spread})
    files = save_plots(tmp_path, "set", outcomes=[outcome], is_regression=True)
    assert files == ["set_parity.png", "set_spread.png", "set_distance.png"]
    in_test = rows.is_in("test")
    np.testing.assert_array_equal(drawn["errors"], [0.5] * in_test.sum())
    np.testing.assert_array_equal(drawn["spreads"], spread[in_test, 0])


def test_a_spread_of_the_size_of_the_error_lies_on_the_diagonal() -> None:
    axes = Figure().add_subplot()
    spreads = np.linspace(0.1, 2.0, 200)
    errors = spreads * np.where(np.arange(200) % 2, 1.0, -1.0)
    plots._draw_spread(axes, errors, spreads=spreads)
    curve = axes.lines[1]
    np.testing.assert_allclose(curve.get_xdata(), curve.get_ydata())
    assert len(curve.get_xdata()) == plots.NUM_BINS
