import importlib.util
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.image import imread

from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.objectives.contexts import ContextObjective
from rmat_hf.training.objectives.descriptors import DescriptorObjective
from rmat_hf.training.pretraining_card import LOSS_PLOT, save_pretraining_card
from rmat_hf.training.pretraining_task import PretrainingTask

CONTEXT_METRICS = {
    "loss": 1.5,
    "context_loss": 1.5,
    "context_accuracy": 0.612,
    "context_accuracy_by_element": {"C": 0.7, "O": 0.25},
    "num_centers": 12345,
}
DESCRIPTOR_METRICS = {
    "loss": 0.25,
    "descriptor_loss": 0.25,
    "descriptor_r2": 0.75,
    "descriptor_r2_median": 0.8,
    "worst_descriptors": {"TPSA": 0.1, "qed": 0.5},
    "num_described_molecules": 100,
}


def build_log(task: str) -> list[dict[str, Any]]:
    """Losses that fall from 4 on train and from 2 on valid, over 100 steps."""
    train = [{"step": step, "loss": 4.0, task: 4.0 / step} for step in range(10, 101, 10)]
    valid = [{"step": step, "eval_loss": 2.0, f"eval_{task}": 2.0 / step} for step in (50, 100)]
    return [*train, *valid, {"step": 100, "train_runtime": 1800.0}]


ARGUMENTS = {
    "corpus": "someone/molecules",
    "model": "scratch",
    "license": "apache-2.0",
    "objective": "sequential",
    "seed": 7,
}
REPORTS = {
    "contexts": {"metrics": CONTEXT_METRICS, "log_history": build_log("context_loss")},
    "descriptors": {"metrics": DESCRIPTOR_METRICS, "log_history": build_log("descriptor_loss")},
}
OBJECTIVES = {
    "contexts": ContextObjective(["C"]),
    "descriptors": DescriptorObjective({"qed": [0.0, 1.0]}),
}
MOLECULES = datasets.Dataset.from_dict({"num_nodes": range(1500)})


def write_card(
    folder: Path,
    *,
    objective: str = "sequential",
    metrics: dict[str, dict] | None = None,
    train: Any = MOLECULES,
    **arguments: Any,
) -> ModelCard:
    valid = MOLECULES.select(range(20))
    task = PretrainingTask(train, valid, RMatProcessor(geometry="bounds", max_atoms=64), OBJECTIVES)
    reports = REPORTS
    if metrics is not None:
        reports = {name: {**REPORTS[name], "metrics": metrics[name]} for name in metrics}
    arguments = {**ARGUMENTS, "objective": objective, **arguments}
    save_pretraining_card(folder, task, arguments=arguments, reports=reports)
    return ModelCard.load(folder / "README.md")


def test_the_card_tells_what_was_learned_of_what_and_how_well(tmp_path: Path) -> None:
    card = write_card(tmp_path)
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == "someone/molecules"
    assert {"rmat", "pretrained"} <= set(card.data.tags)
    for text in (
        "atom contexts, then molecule descriptors",
        "someone/molecules; 1,500 molecules, 20 held out",
        "geometry 'bounds'",
        "started from: scratch",
        "accuracy 0.612, cross-entropy 1.500, 12,345 masked atoms",
        "| element | C | O |\n|---|---|---|\n| accuracy | 0.700 | 0.250 |",
        "squared error 0.2500, R² 0.750 on average, median 0.800",
        "TPSA 0.10, qed 0.50",
        "200 steps in 1.00 hours on 1 processes",
        '"seed": 7',
        "`max_atoms` (here 64)",
        f"![Losses against steps]({LOSS_PLOT})",
    ):
        assert text in card.text, text


def test_a_corpus_of_this_machine_is_no_data_set_of_the_hub_and_a_model_of_the_hub_is_named(
    tmp_path: Path,
) -> None:
    stream = MOLECULES.to_iterable_dataset()
    card = write_card(tmp_path, train=stream, corpus="corpus", license=None, model="someone/rmat")
    assert card.data.datasets is None
    assert card.data.base_model == "someone/rmat"
    assert "corpus; a stream of molecules, 20 held out" in card.text


@pytest.mark.parametrize(
    ("stage", "metrics", "absent"),
    [("contexts", CONTEXT_METRICS, "R²"), ("descriptors", DESCRIPTOR_METRICS, "masked atoms")],
)
def test_a_card_of_one_stage_is_silent_about_the_other(
    tmp_path: Path, stage: str, metrics: dict[str, Any], absent: str
) -> None:
    card = write_card(tmp_path, objective=stage, metrics={stage: metrics})
    assert absent not in card.text


def test_descriptors_that_do_not_vary_leave_a_card_without_r2(tmp_path: Path) -> None:
    metrics = {name: DESCRIPTOR_METRICS[name] for name in ("loss", "descriptor_loss")}
    card = write_card(tmp_path, objective="descriptors", metrics={"descriptors": metrics})
    assert "Descriptors: squared error 0.2500." in card.text


def test_the_plot_has_a_panel_for_every_stage(tmp_path: Path) -> None:
    write_card(tmp_path)
    two_panels = imread(tmp_path / LOSS_PLOT)
    write_card(tmp_path, objective="contexts", metrics={"contexts": CONTEXT_METRICS})
    assert two_panels.shape[1] == 2 * imread(tmp_path / LOSS_PLOT).shape[1]
    # both colors of the lines, on white
    for color in ("#1f77b4", "#ff7f0e"):
        rgb = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
        is_line = np.abs(two_panels[..., :3] - rgb).max(axis=-1) < 0.02
        assert is_line.sum() > 50
    assert (two_panels[..., :3].min(axis=-1) > 0.99).mean() > 0.8


def test_a_card_without_matplotlib_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "matplotlib" else find_spec(name, *args),
    )
    with caplog.at_level(logging.WARNING):
        card = write_card(tmp_path)
    assert "pip install rmat-hf[viz]" in caplog.text
    assert "matplotlib was not installed" in card.text
    assert not (tmp_path / LOSS_PLOT).exists()
