import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from huggingface_hub import ModelCard
from matplotlib.axes import Axes
from tiny import TINY_ARCHITECTURE

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.metrics import METRICS, compute_metrics_for_problem
from rmat_hf.training.model_card import (
    LOSS_PLOT,
    list_requirements,
    save_model_card,
    save_pretraining_card,
)
from rmat_hf.training.pretraining import PretrainingTask
from rmat_hf.training.report import (
    PARITY_PLOT,
    FinetuningReport,
    describe_principles,
    describe_summary,
    save_run_report,
)
from rmat_hf.training.trust import HeldOut

SIZES = {"train": 8, "valid": 4, "test": 5}
PIXELS_PER_LABEL = 720


def build_report(
    problem_type: str = "regression", names: tuple[str, ...] = ("y",), **fields: Any
) -> FinetuningReport:
    """Random labels and predictions, the first label of every part missing; `fields` are flags."""
    rng = np.random.default_rng(0)
    num_labels = len(names)
    is_single_label = problem_type == "single_label_classification"
    classes = ["high", "low", "medium"] if is_single_label else list(names)
    options: dict[str, Any] = {"id2label": dict(enumerate(classes)), "problem_type": problem_type}
    if is_single_label:
        options["label_name"] = names[0]
    labels, predictions = {}, {}
    for part, size in SIZES.items():
        predictions[part] = rng.normal(size=(size, len(classes))).astype(np.float32)
        labels[part] = rng.normal(size=(size, num_labels))
        if problem_type == "multi_label_classification":
            labels[part] = (
                np.arange(size * num_labels).reshape(size, num_labels) // num_labels % 2.0
            )
        elif is_single_label:
            labels[part] = np.arange(size).reshape(size, 1) % 3.0
        labels[part][0, 0] = np.nan
    metrics = {
        part: compute_metrics_for_problem(
            problem_type, predictions[part], labels=labels[part], label_names=names
        )
        for part in SIZES
    }
    baselines = fields.pop("baseline_values", {})
    run = {"dataset": "table.csv", "split": "scaffold", "model": "scratch", "output_dir": "run"}
    run["problem_type"] = problem_type
    return FinetuningReport(
        config=RMatConfig(**TINY_ARCHITECTURE, **options),
        arguments=FinetuningArguments(label_columns=list(names), **{**run, **fields}),
        metrics=metrics,
        labels=labels,
        predictions=predictions,
        num_dropped=7,
        max_atoms=99,
        baseline_values=baselines,
        baseline_settings={name: {} for name in baselines},
    )


def save_card(folder: Path, report: FinetuningReport) -> ModelCard:
    save_model_card(folder, report, pictures=save_run_report(folder, report))
    return ModelCard.load(folder / "README.md")


def read_table(card: ModelCard) -> list[list[str]]:
    lines = [line for line in card.text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def read_png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])


@pytest.mark.parametrize(
    ("problem_type", "names", "metrics"),
    [
        ("regression", ("y",), ["rmse", "mae", "r2", "spearman"]),
        ("single_label_classification", ("y",), ["roc_auc", "pr_auc", "accuracy", "mcc"]),
    ],
)
def test_card_metadata_hold_the_test_metrics(
    tmp_path: Path, problem_type: str, names: tuple[str, ...], metrics: list[str]
) -> None:
    report = build_report(problem_type, names)
    data = save_card(tmp_path, report).data
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {
        metric: pytest.approx(report.metrics["test"][metric], abs=5e-5) for metric in metrics
    }
    assert {result.dataset_split for result in data.eval_results} == {"test (scaffold split)"}
    assert {result.dataset_name for result in data.eval_results} == {"table.csv"}
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "graph-ml"
    assert "rmat" in data.tags
    assert data.model_name == f"R-MAT {', '.join(names)}"


@pytest.mark.parametrize(
    ("problem_type", "metric", "mean"),
    [
        ("regression", "rmse", []),
        ("multi_label_classification", "roc_auc", ["ROC AUC, mean of 2 labels"]),
    ],
)
def test_card_metadata_have_a_metric_of_each_label(
    tmp_path: Path, problem_type: str, metric: str, mean: list[str]
) -> None:
    """An error has the units of its label, and a mean of several has none."""
    report = build_report(problem_type, ("a", "b"))
    results = save_card(tmp_path, report).data.eval_results
    title = METRICS[metric].title
    assert {it.metric_type for it in results} == {metric}
    assert [it.metric_name for it in results] == [*mean, f"{title} of a", f"{title} of b"]
    expected = report.metrics["test"]["per_label"]["b"][metric]
    assert results[-1].metric_value == pytest.approx(expected, abs=5e-5)


def test_names_with_yaml_syntax_make_a_valid_card(tmp_path: Path) -> None:
    card = save_card(tmp_path, build_report(names=("Kd: [nM] #1",), dataset="a: 'b'.csv"))
    assert card.data.model_name == "R-MAT Kd: [nM] #1"
    assert card.data.eval_results[0].dataset_name == "a: 'b'.csv"


def test_table_has_every_metric_of_every_part_and_model(tmp_path: Path) -> None:
    zeros = {part: np.zeros((size, 1)) for part, size in SIZES.items()}
    report = build_report(baseline_values={"forest": zeros}, head="network")
    header, _, *rows = read_table(save_card(tmp_path, report))
    assert header == ["model", "part", "n", "rmse", "mae", "r2", "spearman"]
    names = ["R-MAT", "mean_of_train_labels", "forest"]
    # of what was learned by heart the model alone, and no interval
    first, *others = rows
    assert first[:2] == ["R-MAT", "train, learned from"]
    parts = [(part, str(size - 1)) for part, size in SIZES.items() if part != "train"]
    assert [row[:3] for row in others] == [[name, *it] for it in parts for name in names]
    for row, part in zip([first, *others[::3]], SIZES, strict=True):
        values = [f"{report.metrics[part][metric]:.3f}" for metric in header[3:]]
        assert [cell.split()[0] for cell in row[3:]] == values
        assert ("[" in row[3]) == (part != "train")
    rmse = np.sqrt(np.nanmean(report.labels["test"] ** 2))
    assert report.baselines["forest"]["test"]["rmse"] == pytest.approx(rmse)
    assert rows[-1][3].startswith(f"{rmse:.3f} [")


@pytest.mark.parametrize("num_labels", [2, 60])
def test_card_and_report_have_the_metrics_of_each_label(tmp_path: Path, num_labels: int) -> None:
    names = tuple(f"y{idx}" for idx in range(num_labels))
    report = replace(build_report(names=names), notes=["In y0, 'toxic' is 1"])
    text = save_card(tmp_path, report).text
    value = report.metrics["test"]["per_label"]["y1"]["rmse"]
    for document in (text, (tmp_path / "report.md").read_text()):
        line, beside = [it for it in document.splitlines() if it.startswith("| y1 ")]
        assert f"| {value:.3f} [" in line
        # beside it the mean of training
        assert f"| {value:.3f} [" in beside and beside.count("|") == 5
        assert "- In y0, 'toxic' is 1" in document
        assert ("Of 10 more labels" in document) == (num_labels == 60)
        assert document.count("\n| y") == 2 * min(num_labels, 50)


def test_card_ends_in_a_verdict_beside_the_mean_and_the_best_baseline(tmp_path: Path) -> None:
    values = {name: {} for name in ("good", "bad")}
    report = build_report(baseline_values=values)
    for part, labels in report.labels.items():
        values["good"][part] = np.nan_to_num(labels)
        values["bad"][part] = np.nan_to_num(labels) + 5
    text = save_card(tmp_path, report).text
    assert "R-MAT is worse than good" in text
    assert "bad" not in text.partition("| model")[0]
    assert "Only 4 test molecules: " in text
    alone = save_card(tmp_path, build_report()).text
    assert "--with-baselines" in alone
    for card in (text, alone):
        assert "mean_of_train_labels" in card
        assert card.count("**A defined endpoint.**") == 1


def test_card_tells_no_single_label(tmp_path: Path) -> None:
    """Means and deviations leave with the model; the smallest and the largest label do not."""
    report = build_report()
    labels = np.concatenate(list(report.labels.values()))
    card = save_card(tmp_path, report).text
    assert f"mean {np.nanmean(labels):.3f}" in card
    for value in (np.nanmin(labels), np.nanmax(labels)):
        assert f"{value:.3f}" not in card


def test_the_fit_of_a_head_that_repeats_its_rows_is_that_of_held_out_rows() -> None:
    report = build_report(model="rmat-small", head="kernel", kernel_features=["vectors"])
    report.metrics["out_of_fold"] = {"rmse": 0.25}
    number = SIZES["train"] + SIZES["valid"]
    held_out = HeldOut(np.arange(number), np.zeros((number, 1)), None, np.arange(number) % 5)
    report = replace(report, held_out=held_out, num_bounds=[3])
    text = describe_principles(report)
    assert "goodness of fit and robustness: train and valid, each predicted without its" in text
    # the first label of each part is no number, but a bound
    assert f"0.250 (n {number - 2})" in text
    assert f"y: {sum(SIZES.values()) - 3} values and 3 bounds" in text
    assert "kernel head repeats" in text
    text = describe_summary(report)
    assert f"all {number - 2} rows of train and valid" in text and "2 bounds beside" in text
    assert "goodness of fit: train" in describe_principles(build_report(head="network"))


def test_errors_of_logarithms_have_a_unit_and_are_told_once_as_a_factor() -> None:
    labels = build_report().labels.items()
    report = build_report(baseline_values={"svm": {part: np.nan_to_num(it) for part, it in labels}})
    report.config.label_units, report.config.label_transforms = ["nM"], ["pIC50"]
    lines = describe_summary(report).splitlines()
    rmse = report.metrics["test"]["rmse"]
    assert f"RMSE {rmse:.3f} log units" in lines[0]
    assert f"{10**rmse:.1f} times (10^{rmse:.3f}) in y (nM)" in lines[1] and "pIC50" in lines[1]
    assert sum("times" in line for line in lines) == 1
    assert all("log units" in line for line in lines if "difference [" in line)
    assert "RMSE in log units" in describe_principles(report)
    report.config.label_transforms = None
    assert f"RMSE {rmse:.3f} nM" in describe_summary(report)


def test_card_tells_labels_units_data_and_sizes(tmp_path: Path) -> None:
    report = build_report(names=("a", "b"))
    report.config.label_units = ["nM", "kcal/mol"]
    text = save_card(tmp_path, report).text
    assert "# R-MAT for a (nM), b (kcal/mol)" in text
    assert "- predicts for every molecule: a (nM), b (kcal/mol) (regression)" in text
    assert "- data: table.csv; scaffold split" in text
    assert "- molecules: 8 train, 4 valid, 5 test; " in text
    assert "7 rows dropped" in text
    assert "Compare metrics only with those of the same kind of split" in text


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray, str]]:
    """What is drawn into the plot: measured, predicted, legend."""
    calls = []
    scatter = Axes.scatter

    def record(self: Axes, x: np.ndarray, y: np.ndarray, **options: Any) -> Any:
        calls.append((x, y, options["label"]))
        return scatter(self, x, y, **options)

    monkeypatch.setattr(Axes, "scatter", record)
    return calls


def test_parity_plot_shows_train_and_test_of_each_label_with_its_own_metrics(
    tmp_path: Path, drawn: list[tuple[np.ndarray, np.ndarray, str]]
) -> None:
    report = build_report(names=("a", "b"))
    save_card(tmp_path, report)
    assert len(drawn) == 4
    panels = [(0, "train"), (0, "test"), (1, "train"), (1, "test")]
    for (idx, part), (measured, predicted, legend) in zip(panels, drawn, strict=True):
        np.testing.assert_array_equal(measured, report.labels[part][:, idx])
        np.testing.assert_array_equal(predicted, report.predictions[part][:, idx])
        metrics = report.metrics[part]["per_label"]["ab"[idx]]
        assert legend == f"{part}: RMSE {metrics['rmse']:.3f}, R² {metrics['r2']:.3f}"


def test_card_without_matplotlib_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find_spec = importlib.util.find_spec

    def find_all_but_matplotlib(name: str, package: str | None = None) -> Any:
        return None if name == "matplotlib" else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_all_but_matplotlib)
    card = save_card(tmp_path, build_report())
    assert "matplotlib was not installed" in card.text
    assert PARITY_PLOT not in card.text
    assert not (tmp_path / PARITY_PLOT).exists()
    assert "pip install 'rmat-hf[viz]'" in caplog.text


@pytest.mark.parametrize(
    ("problem_type", "description"),
    [
        ("multi_label_classification", "one probability per label"),
        ("single_label_classification", "one class)"),
    ],
)
def test_classes_have_their_curves(tmp_path: Path, problem_type: str, description: str) -> None:
    card = save_card(tmp_path, build_report(problem_type))
    assert PARITY_PLOT not in card.text
    assert "![roc_and_calibration](roc_and_calibration.png)" in card.text
    width, height = read_png_size(tmp_path / "roc_and_calibration.png")
    assert (width, height) == (2 * PIXELS_PER_LABEL, PIXELS_PER_LABEL)
    assert description in card.text


def test_python_snippet_of_the_card_predicts(tmp_path: Path, tiny_model_folder: Path) -> None:
    card = save_card(tmp_path, build_report())
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    *lines, last = (
        snippet.replace("path/to/this/folder", str(tiny_model_folder)).strip().split("\n")
    )
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    results = eval(last, names)
    assert [result["error"] for result in results] == [None, None]
    values = [result["predictions"][0]["value"] for result in results]
    assert np.isfinite(values).all()


# Pretraining

PRETRAINED = {
    "contexts": {
        "context_loss": 1.5,
        "context_accuracy": 0.612,
        "context_accuracy_by_element": {"C": 0.7, "O": 0.25},
        "num_centers": 12345,
    },
    "descriptors": {"descriptor_loss": 0.25, "worst_descriptors": {"TPSA": 0.1, "qed": 0.5}},
}
MOLECULES = datasets.Dataset.from_dict({"num_nodes": range(1500)})


def build_log(loss: str) -> list[dict[str, Any]]:
    """Losses that fall from 4 on train and from 2 on valid, over 100 steps."""
    train = [{"step": step, "loss": 4.0, loss: 4.0 / step} for step in range(10, 101, 10)]
    valid = [{"step": step, "eval_loss": 2.0, f"eval_{loss}": 2.0 / step} for step in (50, 100)]
    return [*train, *valid, {"step": 100, "train_runtime": 1800.0, "train_loss": 1.0}]


def save_pretrained_card(
    folder: Path, *stages: str, train: Any = MOLECULES, **options: Any
) -> ModelCard:
    processor = RMatProcessor(geometry="bounds", max_atoms=64)
    task = PretrainingTask(train, MOLECULES.select(range(20)), processor, {})
    arguments = {"corpus": "me/molecules", "model": "scratch", "license": "mit", "seed": 7}
    reports = {
        stage: {"metrics": PRETRAINED[stage], "log_history": build_log(f"{stage[:-1]}_loss")}
        for stage in stages
    }
    save_pretraining_card(folder, task, arguments={**arguments, **options}, reports=reports)
    return ModelCard.load(folder / "README.md")


def test_a_pretrained_card_tells_what_was_learned_of_what_and_how_well(tmp_path: Path) -> None:
    card = save_pretrained_card(tmp_path, "contexts", "descriptors")
    assert (card.data.license, card.data.datasets) == ("mit", "me/molecules")
    assert {"rmat", "pretrained"} <= set(card.data.tags)
    for text in (
        "contexts, then descriptors",
        "me/molecules; 1,500 molecules, 20 held out",
        "geometry 'bounds'",
        "started from: scratch",
        "| contexts | context_accuracy | 0.612 |",
        "| contexts | context_accuracy_by_element | C 0.700, O 0.250 |",
        "| contexts | num_centers | 12,345 |",
        "| descriptors | worst_descriptors | TPSA 0.100, qed 0.500 |",
        "200 steps in 1.00 hours",
        '"seed": 7',
        "`max_atoms` (here 64)",
        f"Tested with `{list_requirements('transformers')[0]}`.",
        f"]({LOSS_PLOT})",
    ):
        assert text in card.text, text


def test_a_card_names_what_is_on_the_hub_and_is_silent_about_what_was_not_learned(
    tmp_path: Path,
) -> None:
    stream = MOLECULES.to_iterable_dataset()
    options = {"corpus": "corpus", "license": None, "model": "me/rmat"}
    card = save_pretrained_card(tmp_path, "descriptors", train=stream, **options)
    assert (card.data.datasets, card.data.base_model) == (None, "me/rmat")
    assert "corpus; a stream of molecules, 20 held out" in card.text
    assert "context_accuracy" not in card.text


def test_the_plot_of_the_losses_has_a_panel_for_every_stage(tmp_path: Path) -> None:
    save_pretrained_card(tmp_path, "contexts", "descriptors")
    width, _ = read_png_size(tmp_path / LOSS_PLOT)
    save_pretrained_card(tmp_path, "contexts")
    assert width == 2 * read_png_size(tmp_path / LOSS_PLOT)[0]
