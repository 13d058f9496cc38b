import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from tiny_evaluation import build_class_dataset, build_class_rows, build_rows, load_tiny_protocol

from rmat_hf.evaluation.plots import (
    collect_points,
    draw_spread,
    save_plots,
)
from rmat_hf.evaluation.protocol import Fold
from rmat_hf.evaluation.summary import FoldOutcome
from rmat_hf.training.plots import NUM_BINS


def test_regression_and_classification_have_their_plots(tmp_path: Path) -> None:
    protocol = load_tiny_protocol(tmp_path)
    rows = build_rows(y=[*range(11), np.nan])
    ensemble = rows.assign(spread_y=0.5)
    folds = [Fold("set", "part_0", seed) for seed in (0, 1)]
    outcomes = [
        FoldOutcome(folds[0], {"a": rows, "b": ensemble}),
        FoldOutcome(folds[1], {"a": rows}),
    ]
    dataset = protocol.datasets["numbers"]
    files = save_plots(tmp_path / "plots", "set", outcomes=outcomes, dataset=dataset)
    assert files == ["set_distance.png", "set_parity.png", "set_spread.png"]
    files += save_plots(tmp_path / "plots", "a", outcomes=outcomes[1:], dataset=dataset)
    assert files[3:] == ["a_distance.png", "a_parity.png"]
    dataset = load_tiny_protocol(tmp_path, datasets={"classes": build_class_dataset()}).datasets[
        "classes"
    ]
    noisy = np.linspace(-0.1, 1.1, 12)
    outcomes = [FoldOutcome(folds[0], {"a": build_class_rows(noisy), "b": build_class_rows()})]
    files += save_plots(tmp_path / "plots", "b", outcomes=outcomes, dataset=dataset)
    assert files[5:] == ["b_distance.png", "b_roc.png", "b_calibration.png"]
    for file in files:
        assert (tmp_path / "plots" / file).read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = load_tiny_protocol(tmp_path).datasets["numbers"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcomes = [FoldOutcome(Fold("set", "part_0", 0), {"a": build_rows()})]
    assert save_plots(tmp_path, "set", outcomes=outcomes, dataset=dataset) == []
    assert "pip install 'rmat-hf[viz]'" in caplog.text


def test_points_are_the_known_labels_of_test_rows_of_all_folds_and_methods() -> None:
    rows = build_rows(y=[*range(11), np.nan], spread_y=np.linspace(0.1, 1.2, 12))
    rows["prediction_y"] += 0.5
    outcomes = [
        FoldOutcome(Fold("set", "part_0", 0), {"ensemble": rows, "single": build_rows()}),
        FoldOutcome(Fold("set", "part_1", 0), {"ensemble": rows}),
    ]
    points = collect_points(outcomes, label_names=["y"])
    assert points["method"].tolist() == ["ensemble", "single", "single", "ensemble"]
    assert points["label"].tolist() == [10, 10, 11, 10]
    assert points["prediction"].tolist() == [10.5, 10, 11, 10.5]
    np.testing.assert_allclose(points["spread"], [1.1, np.nan, np.nan, 1.1])
    assert points["distance"].between(0, 1).all()


def test_a_spread_of_the_size_of_the_error_lies_on_the_diagonal() -> None:
    axes = Figure().add_subplot()
    spreads = np.linspace(0.1, 2.0, 200)
    errors = spreads * np.where(np.arange(200) % 2, 1.0, -1.0)
    draw_spread(axes, pd.DataFrame({"label": 0.0, "prediction": errors, "spread": spreads}))
    curve = axes.lines[1]
    np.testing.assert_allclose(curve.get_xdata(), curve.get_ydata())
    assert len(curve.get_xdata()) == NUM_BINS
