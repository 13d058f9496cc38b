from pathlib import Path

from rmat_hf.training.finetuning import FinetuningResult
from rmat_hf.training.metrics_table import describe_metrics


def test_every_model_and_part_is_a_row_and_every_number_a_column() -> None:
    metrics = {
        part: {"rmse": 0.5, "r2": None, "per_label": {}} for part in ("train", "valid", "test")
    }
    forest = {part: {"rmse": 1.25, "r2": 0.75} for part in metrics}
    result = FinetuningResult(Path("run"), metrics, {"random forest": forest}, [])
    lines = [line.split() for line in describe_metrics(result).splitlines()]
    assert lines[0] == ["rmse", "r2"]
    assert lines[1:3] == [
        ["R-MAT", "train", "0.5000", "undefined"],
        ["R-MAT", "valid", "0.5000", "undefined"],
    ]
    assert lines[-1] == ["random", "forest", "test", "1.2500", "0.7500"]
    assert len(lines) == 7
