from pathlib import Path
from typing import Any

import pytest

from rmat_hf.data.top_rows import TopRows
from rmat_hf.inference.screening_arguments import (
    PredictionArguments,
    build_screening,
    describe_screening,
)
from rmat_hf.inference.screening_options import ScreeningResult


@pytest.mark.parametrize("options", [{}, {"smiles": ["CCO"], "input": "library.csv"}])
def test_prediction_takes_exactly_one_source_of_molecules(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"either with --smiles or with --input"):
        PredictionArguments(model="folder", output="out.csv", **options)


@pytest.mark.parametrize("options", [{"smiles": ["CCO"]}, {"input": "library.csv"}])
def test_prediction_accepts_each_source_of_molecules_alone(options: dict[str, Any]) -> None:
    arguments = PredictionArguments(model="folder", output="out.csv", **options)
    assert {name: getattr(arguments, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smiles": ["CCO"], "input": None, "input_split": "test"}, "need --input"),
        ({"task": "1"}, r"--task '1' is not RANK/NUM, for example 0/4"),
        ({"output_format": "xlsx"}, r"--output-format 'xlsx' is unknown"),
        ({"top_k_order": "up"}, r"--top-k-order 'up' is unknown"),
        ({"top_k_label": "logS"}, "--top-k-label needs --top-k"),
    ],
)
def test_prediction_that_cannot_be_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PredictionArguments(**({"model": "folder", "output": "out", "input": "a.csv"} | options))


def test_flags_decide_the_screen() -> None:
    arguments = PredictionArguments(
        model="folder",
        output="screen",
        input="library.smi",
        task="1/4",
        top_k=10,
        top_k_label="logS",
        top_k_order="ascending",
        num_proc=3,
        shard_size=100,
        output_format="csv",
    )
    screening = build_screening(arguments, cache_dir=Path("cache"))
    options = screening.pop("options")
    assert screening["molecules"] == "library.smi"
    assert options.task == (1, 4)
    assert options.top_rows == TopRows(10, label="logS", order="ascending")
    assert (options.num_proc, options.shard_size, options.output_format) == (3, 100, "csv")
    assert options.cache_dir == Path("cache")


def test_one_process_has_no_task() -> None:
    arguments = PredictionArguments(model="folder", output="screen", input="library.smi")
    assert build_screening(arguments, cache_dir=None)["options"].task is None


def test_summary_tells_what_was_written() -> None:
    rows = ScreeningResult(Path("out"), 10, 2, 10)
    assert describe_screening(rows, noun="predictions") == (
        "10 rows: 8 predictions, 2 failed (reasons in the column 'error'). Wrote out."
    )
    best = ScreeningResult(Path("out"), 10, 2, 3)
    assert describe_screening(best, noun="predictions").endswith("Wrote the best 3 to out.")
    part = ScreeningResult(Path("out"), 10, 2, 10, is_complete=False)
    assert "in the shards of this task" in describe_screening(part, noun="predictions")
