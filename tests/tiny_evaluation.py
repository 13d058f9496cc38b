"""A tiny benchmark on disk, and jobs that end in every way a process can end."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, write_json, write_table

from rmat_hf.evaluation.accuracy_benchmark import EvaluationArguments
from rmat_hf.evaluation.jobs import Job
from rmat_hf.evaluation.protocol import Fold, Protocol, load_protocol

FOREST = "random_forest_ecfp4_counts"
# both classes stand in every part
CLASSES = [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]


def build_tiny_protocol(folder: Path, **sections: Any) -> dict[str, Any]:
    """Write the tables of a tiny benchmark and return a protocol for them.

    Args:
        folder (`Path`): An existing folder; the tables go to its folder `data`.
        sections: Sections that replace those of the protocol.
    """
    (folder / "data").mkdir(exist_ok=True)
    columns = {"smiles": TABLE_SMILES, "y": list(range(12)), "is_odd": CLASSES}
    columns |= {"part_0": TABLE_PARTS, "part_1": TABLE_PARTS[::-1]}
    write_table(folder / "data" / "table.csv", columns)
    model = {
        "geometry": "bounds",
        "model": "scratch",
        "model_config": write_json(folder / "architecture.json", TINY_ARCHITECTURE),
        "num_train_epochs": 1,
    }
    return {
        "datasets": {
            "numbers": {
                "dataset": "table.csv",
                "label_columns": ["y"],
                "problem_type": "regression",
                "splits": ["part_0", "part_1"],
                "seeds": [0],
            }
        },
        "models": {"tiny": model, "tiny fast": {**model, "learning_rate": 0.01}},
        "baselines": [FOREST],
        **sections,
    }


def build_class_dataset(**fields: Any) -> dict[str, Any]:
    """Return a data set of classes for the protocol of `build_tiny_protocol`."""
    return {
        "dataset": "table.csv",
        "label_columns": ["is_odd"],
        "problem_type": "multi_label_classification",
        "splits": ["part_0"],
        "seeds": [0, 1],
        **fields,
    }


def save_protocol(folder: Path, content: dict[str, Any]) -> Path:
    """Write a protocol to `protocol.json`."""
    path = folder / "protocol.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def load_tiny_protocol(folder: Path, **sections: Any) -> Protocol:
    """Write a tiny benchmark and load its protocol."""
    path = save_protocol(folder, build_tiny_protocol(folder, **sections))
    return load_protocol(path, data=folder / "data")


def build_tiny_evaluation(folder: Path, content: dict[str, Any], **options: Any) -> Any:
    """Write a protocol and return the arguments of a benchmark of it, in this process."""
    fields: dict[str, Any] = {"num_proc": 0, "num_resamples": 20, "feature_cache": "none"}
    return EvaluationArguments(
        data=str(folder / "data"),
        protocol=str(save_protocol(folder, content)),
        output_dir=str(folder / "out"),
        **{**fields, **options},
    )


def build_rows(**changes: Any) -> pd.DataFrame:
    """Return the rows of the tiny table, predicted perfectly; changes replace columns."""
    numbers = np.arange(12.0)
    columns = {"split": TABLE_PARTS, "smiles": TABLE_SMILES, "y": numbers, "prediction_y": numbers}
    return pd.DataFrame({**columns, **changes}, index=pd.RangeIndex(12, name="row"))


def build_class_rows(predictions: Any = None, **changes: Any) -> pd.DataFrame:
    """Return the rows of the tiny table with classes; without predictions they are the labels."""
    columns = {"is_odd": np.array(CLASSES, dtype=float)}
    columns["prediction_is_odd"] = columns["is_odd"] if predictions is None else predictions
    return build_rows(**columns, **changes)


def build_job(folder: Path, method: str) -> Job:
    """Return a job with nothing to compute; `end_as_named` runs it."""
    return Job(Fold("numbers", "part_0", 0), method, folder / "runs" / method, task=None)  # type: ignore[arg-type]  # not looked at


def end_as_named(job: Job) -> None:
    """End like the name of the job's method says: fail, die, or leave a result."""
    if job.method == "fail":
        raise ValueError(f"Row 3 of {job.folder / 'table.csv'} is bad.")
    if job.method == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    job.folder.mkdir(parents=True)
    (job.folder / "predictions.csv").write_text("row\n", encoding="utf-8")
