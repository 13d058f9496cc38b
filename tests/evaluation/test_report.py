from pathlib import Path
from typing import Any

import pytest
from tiny_evaluation import build_class_dataset, build_class_rows, load_tiny_protocol

from rmat_hf.evaluation.protocol import Fold
from rmat_hf.evaluation.report import build_overview, build_report
from rmat_hf.evaluation.summary import FoldOutcome, summarize_dataset


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    datasets = {"classes": build_class_dataset()}
    dataset = load_tiny_protocol(tmp_path, datasets=datasets).datasets["classes"]
    forest = build_class_rows()
    wrong = build_class_rows(1 - forest["is_odd"])
    folds = [Fold("classes", "part_0", seed) for seed in (0, 1)]
    outcomes = [
        FoldOutcome(folds[0], {"a|b": wrong, "forest": forest}),
        FoldOutcome(folds[1], {"forest": forest}),
    ]
    summary = summarize_dataset(
        dataset, outcomes, models=["a|b"], references=["forest"], num_resamples=10
    )
    run = {"dataset": "classes", "split": "part_0", "seed": 0, "method": "a|b"}
    run |= {"folder": "runs/a", "seconds": 12.0, "core_seconds": 3600.0}
    run |= {"setting": {}, "is_chosen": True}
    searched = {"learning_rate": 1e-3, "dropout": 0.1, "weight_decay": 0.01, "batch_size": 16}
    epoch = {"metric": "roc_auc", "part": "valid", "epochs": [7.0, 5.0], "num_epochs": [9.0, 8.0]}
    setting = {"part": None, "setting": {"is_odd": {"num_trees": 5}}}
    return {
        "is_complete": False,
        "failures": [{"run": "a|b, classes, part_0, seed 1", "reason": "killed"}],
        "datasets": {"classes": summary},
        "num_resamples": 10,
        "runs": [
            {**run, "choices": {**epoch, "hpo_trials": 4, **searched}},
            {**run, "method": "forest", "choices": setting, "seconds": None},
            {**run, "seed": 1, "choices": None, "seconds": None, "core_seconds": None},
        ],
        "core_seconds": 3600.0,
        "versions": [{"python": "3.11", "torch": "2"}],
        "plots": {"classes": ["classes_roc.png"]},
    }


@pytest.mark.parametrize(
    "expected",
    [
        "**Incomplete: 1 runs failed.**",
        "- a|b, classes, part_0, seed 1: killed",
        "| method | part_0, seed 0 | part_0, seed 1 | mean ± std | ± rows |",
        "| a/b | 0.000 | – | 0.000 ± 0.000 (of 1, incomplete) | 0.000 |",
        "| forest | 1.000 | 1.000 | 1.000 ± 0.000 | 0.000 |",
        "| a/b | forest | -1.000 | – | 0 | 0 | 1 | 0.000 |",
        "a negative ROC AUC difference is worse for the method",
        "(10 resamples, fixed seed)",
        "![classes_roc.png](plots/classes_roc.png)",
        "epoch 7 of 9, 5 of 8 by roc_auc; best of 4 settings: learning_rate 0.001, dropout 0.1",
        "| is_odd: num_trees 5 | fixed |",
        "1.00 core hours in all",
        "- python 3.11, torch 2",
        "Test was looked at once per run",
    ],
)
def test_report_says(results: dict[str, Any], expected: str) -> None:
    assert expected in build_report(results).replace("\n(10", " (10").replace("\n  ", " ")


def test_rows_of_a_table_have_as_many_cells_as_its_header(results: dict[str, Any]) -> None:
    tables = [block for block in build_report(results).split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_several_data_sets_have_average_ranks_the_best_first(results: dict[str, Any]) -> None:
    ranks = {
        "b": {"mean": 2.25, "ranks": {"one": 2.0, "two": 2.5}},
        "a": {"mean": 1.0, "ranks": {"one": 1.0, "two": 1.0}},
    }
    assert "Average ranks" not in build_report(results | {"average_ranks": ranks})
    datasets = {"one": results["datasets"]["classes"], "two": results["datasets"]["classes"]}
    report = build_report(results | {"datasets": datasets, "average_ranks": ranks})
    header = "| method | one | two | mean |\n| --- | --- | --- | --- |\n"
    assert header + "| a | 1 | 1 | 1.00 |\n| b | 2 | 2.5 | 2.25 |" in report


def test_overview_has_a_line_for_each_method(results: dict[str, Any]) -> None:
    lines = build_overview(results).splitlines()
    assert len(lines) == 2
    assert lines[1].split(maxsplit=2)[:2] == ["classes", "forest"]
    assert lines[1].endswith("test ROC AUC 1.000 ± 0.000")
