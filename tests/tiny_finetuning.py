"""A small training table on disk and the arguments of a finetuning run on it."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny import TINY_ARCHITECTURE

from rmat_hf.training.arguments import FinetuningArguments

TABLE_SMILES = [
    "CCO",
    "CCN",
    "CCCC",
    "CC(=O)O",
    "c1ccccc1",
    "Cc1ccccc1",
    "c1ccncc1",
    "Cc1ccncc1",
    "C1CCOCC1",
    "CC1CCOCC1",
    "C1CCNCC1",
    "c1ccsc1",
]
# eight rows of train, two of valid, two of test
TABLE_PARTS = ["train"] * 8 + ["valid"] * 2 + ["test"] * 2


def write_table(path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """Write a CSV file; `None` becomes an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def write_json(path: Path, content: object) -> str:
    """Write a JSON file and return its path as a flag takes it."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def build_tiny_arguments(
    folder: Path, columns: Mapping[str, Sequence[object]] | None = None, **options: Any
) -> FinetuningArguments:
    """Write a table into a folder and return the arguments of a tiny run on it.

    Args:
        folder (`Path`): An existing folder.
        columns (`Mapping[str, Sequence[object]]`, *optional*):
            Columns beside `smiles`; by default the label `y`, 0 to 11.
        options: Fields of [`FinetuningArguments`]. The columns `part` and `smiles` are no labels.
    """
    columns = {"y": range(len(TABLE_SMILES))} if columns is None else columns
    table = {"smiles": TABLE_SMILES, **columns}
    fields: dict[str, Any] = {
        "dataset": str(write_table(folder / "table.csv", table)),
        "label_columns": [name for name in table if name not in ("smiles", "part")],
        "output_dir": str(folder / "run"),
        "model": "scratch",
        "geometry": "bounds",
        "feature_cache": "none",
        # what most tests are of, however few rows there are
        "head": "network",
    }
    if "part" in table:
        fields |= {"split": "column", "split_column": "part"}
    if options.get("model", "scratch") == "scratch":
        fields["model_config"] = write_json(folder / "architecture.json", TINY_ARCHITECTURE)
    return FinetuningArguments(**{**fields, **options})
