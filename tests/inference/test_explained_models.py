"""Every kind of model is explained: the rows of `rmat predict`, sums that are exact, same bytes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmat_hf import explain, find_counterfactuals, finetune, predict
from rmat_hf.inference.conversion import convert_checkpoint
from rmat_hf.inference.explanation_folder import ExplanationArguments, run_explanation

pytestmark = pytest.mark.slow

SMILES = ["C" * size + end for end in ("O", "N", "F", "C#N", "") for size in range(1, 9)]
SIZES = np.array([len(it) for it in SMILES], dtype=float)
PARTS = np.resize(["train", "valid", "test", "train", "train"], len(SMILES))
ACIDITIES = np.resize([5.0, 7.4, 9.0, 6.1], len(SMILES))
# without an epoch of more: what is explained is not how well a model learned
NETWORK = {"head": "network", "num_train_epochs": 1}
KINDS: dict[str, dict[str, Any]] = {
    "network": NETWORK,
    "without trust data": {**NETWORK, "trust": "none"},
    "ensemble": {**NETWORK, "num_members": 2},
    "adapter": {**NETWORK, "peft": "lora"},
    "kernel head": {"head": "kernel", "kernel_features": ["vectors", "ecfp4"]},
    "stack": {"head": "stack"},
    "numbers and classes": {"head": "kernel", "class_columns": ["is_large"]},
    "transformed labels": {"label_transform": ["log10"], "label_units": ["nM"], **NETWORK},
    "covariates, network": {"feature_columns": ["pH"], **NETWORK},
    "covariates, kernel head": {"feature_columns": ["pH"], "head": "kernel"},
}
LIBRARY: dict[str, Any] = {
    "smiles": ["CCO", "C1CC", "CC(=O)Nc1ccc(O)cc1", None, "FC(F)(F)c1ccccc1"]
}
LIBRARY["pH"] = [5.0, 7.0, 9.0, 7.0, None]


def train(encoder: Path, folder: Path, **options: Any) -> Path:
    """Finetune a tiny encoder on sizes, pH or whether a molecule is large."""
    labels = {"y": SIZES, "is_large": (SIZES > 5).astype(int)}
    names = ["y", *options.get("class_columns", [])]
    table = {"smiles": SMILES, "part": PARTS, "pH": ACIDITIES, **{it: labels[it] for it in names}}
    if "feature_columns" in options:
        table["y"] = 2 * ACIDITIES
    fields: dict[str, Any] = {"model": str(encoder), "split": "column", "split_column": "part"}
    fields |= {"num_workers": 0, "feature_cache": "none", "output_dir": folder, **options}
    return Path(finetune(pd.DataFrame(table), label_columns=names, **fields).output_dir)


def convert(folder: Path) -> Path:
    """Convert a model of the authors' code."""
    files = Path(__file__).parents[1] / "golden" / "reference" / "grover_pool"
    saved = files / "reference_state_dict.safetensors", files / "reference_config.json"
    convert_checkpoint(*saved).save(folder)
    return folder


def write(model: Path, folder: Path, **options: Any) -> dict[str, bytes]:
    """Explain the library with `rmat explain`; return the files."""
    library = folder.parent / "library.parquet"
    pq.write_table(pa.table(LIBRARY), library)
    fields: dict[str, Any] = {"num_workers": 0, "shard_size": 2, "chunk_size": 1, **options}
    arguments = {"model": str(model), "input": str(library), "output": str(folder), **fields}
    run_explanation(ExplanationArguments(**arguments))
    return {str(it): it.read_bytes() for it in folder.rglob("*") if it.is_file()}


@pytest.mark.parametrize("kind", [*KINDS, "converted"])
def test_every_kind_of_model_is_explained(kind: str, tiny_encoder: Path, tmp_path: Path) -> None:
    options, model = KINDS.get(kind, {}), tmp_path / "model"
    model = convert(model) if kind == "converted" else train(tiny_encoder, model, **options)
    chosen: dict[str, Any] = {"counterfactuals": 2}
    chosen |= {"label": "is_large"} if "class_columns" in options else {}
    files = write(model, tmp_path / "why", **chosen)
    table = pa.concat_tables([pq.read_table(it) for it in sorted(files) if "part-" in it])
    table = table.to_pylist()
    beside = {"covariates": {"pH": LIBRARY["pH"]}} if "feature_columns" in options else {}
    expected = predict(model, LIBRARY["smiles"], **beside)
    shown = [name for name in table[0] if name.startswith("prediction_")][-1]
    values = expected.to_columns()[shown]
    for row, of_predict, error in zip(table, values, expected.errors, strict=True):
        assert row["error"] == error
        if row["error"] is None:
            value = row["explained"]
            value = 10**value if kind == "transformed labels" else value
            value = 1 / (1 + np.exp(-value)) if "label" in chosen else value
            assert row[shown] == pytest.approx(of_predict, rel=1e-4, abs=1e-4)
            assert value == pytest.approx(row[shown], rel=1e-3, abs=1e-4)
            total = row["baseline"] + sum(row["atom_contributions"])
            assert total == pytest.approx(row["explained"], abs=1e-4)
            assert (row["atom_spread"] is not None) == (kind == "ensemble")
            assert len(row["counterfactuals"]) == 2
    # broken off and continued
    (tmp_path / "why" / "part-00001.parquet").unlink()
    (tmp_path / "why" / "index.html").unlink()
    assert write(model, tmp_path / "why", **chosen) == files


@pytest.mark.parametrize("head", ["network", "kernel"])
def test_covariates_stay_and_count_themselves(
    head: str, tiny_encoder: Path, tmp_path: Path
) -> None:
    fields = {"num_train_epochs": 40, "learning_rate": 1e-2} if head == "network" else {}
    model = train(tiny_encoder, tmp_path / "model", feature_columns=["pH"], head=head, **fields)
    rows = pd.DataFrame({"smiles": ["CCO", "CCO"], "pH": [5.0, 9.0]})
    found, expected = explain(model, rows, by=()), predict(model, rows)["prediction_y"]
    for row, value, sign in zip(found.rows, expected, (-1, 1), strict=True):
        assert row is not None
        assert row.prediction == pytest.approx(value, abs=1e-4)
        assert row.covariates["pH"] * sign > 1.5
        # the molecule has no part in the label, and next to none here
        assert np.abs(row.atoms.values).max() < 0.5 * abs(row.covariates["pH"])
    others = find_counterfactuals(model, rows, num_best=100)
    for of_row, acidity in zip(others, (5.0, 9.0), strict=True):
        beside = {"pH": [acidity] * len(of_row)}
        values = predict(model, [it.smiles for it in of_row], covariates=beside).values[:, 0]
        np.testing.assert_allclose([it.prediction for it in of_row], values, atol=1e-4)
