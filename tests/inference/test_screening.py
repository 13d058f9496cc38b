"""Whole files: every row and column of the input comes out, in order."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import limit_processor, predict
from rmat_hf.inference.screening import (
    PredictionArguments,
    ScreeningResult,
    describe_prediction_columns,
    describe_screening,
    run_embedding,
    run_prediction,
)
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatForSequenceClassification,
    RMatForTokenClassification,
)
from rmat_hf.model.processing_rmat import RMatProcessor

PREDICTION = "prediction_LABEL_0"


def screen(model: Path | str, molecules: object, output: Path, **options: Any) -> ScreeningResult:
    run = options.pop("run", run_prediction)
    source = {"smiles": molecules} if isinstance(molecules, list) else {"input": str(molecules)}
    options = {"num_workers": 0, **options}
    return run(PredictionArguments(model=str(model), output=str(output), **source, **options))


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """50 rows, every fifth of them bad, with an id and a cell that must survive as it is."""
    path = tmp_path / "library.csv"
    bad = ["", "C1CC", "*CC", "not a molecule", "[H][H]"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "smiles", "note, with comma"])
        for row in range(50):
            smiles = bad[row // 5 % 5] if row % 5 == 3 else TINY_SMILES[row % len(TINY_SMILES)]
            writer.writerow([f"mol-{row:03d}", smiles, f'007,5 "{row}"\nµ'])
    return path


def test_every_row_and_cell_of_a_csv_with_bad_rows_is_kept(
    tiny_model_folder: Path, library: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    result = screen(tiny_model_folder, library, output)
    before, after = read_csv(library), read_csv(output)
    assert (result.num_rows, result.num_failed) == (50, 10)
    assert list(after[0]) == [*before[0], PREDICTION, "error"]
    for row, (old, new) in enumerate(zip(before, after, strict=True)):
        assert {name: new[name] for name in old} == old
        assert (new[PREDICTION] == "") == (new["error"] != "") == (row % 5 == 3)
    values = predict(tiny_model_folder, [row["smiles"] for row in before]).values[:, 0]
    for row, value in zip(after, values, strict=True):
        if row[PREDICTION]:
            assert float(row[PREDICTION]) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 7}, {"batch_size": 5, "chunk_size": 11}, {"num_workers": 2}],
)
def test_chunks_batches_and_workers_do_not_change_the_predictions(
    tiny_model_folder: Path, library: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    screen(tiny_model_folder, library, tmp_path / "whole.csv")
    screen(tiny_model_folder, library, tmp_path / "parts.csv", **options)
    rows = zip(read_csv(tmp_path / "whole.csv"), read_csv(tmp_path / "parts.csv"), strict=True)
    for whole, part in rows:
        expected, value = whole.pop(PREDICTION), part.pop(PREDICTION)
        assert whole == part
        assert (expected == "") == (value == "")
        assert float(value or 0) == pytest.approx(float(expected or 0), abs=1e-6)


def test_parquet_keeps_types_and_order(tiny_model_folder: Path, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([3, 1, 2], pa.int16()),
            "smiles": ["CCO", None, "C"],
            "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    screen(tiny_model_folder, tmp_path / "in.parquet", tmp_path / "out.parquet")
    output = pq.read_table(tmp_path / "out.parquet")
    assert output.select(["id", "smiles", "tags"]).equals(table)
    assert output.schema.field(PREDICTION).type == pa.float64()
    assert [value is None for value in output[PREDICTION].to_pylist()] == [False, True, False]
    assert [error is None for error in output["error"].to_pylist()] == [True, False, True]


def test_an_sdf_brings_its_own_geometry(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "golden" / "reference" / "grover_pool" / "molecules.sdf"
    result = screen(tiny_model_folder, source, tmp_path / "out.csv")
    mols = list(Chem.SDMolSupplier(str(source)))
    rows = read_csv(tmp_path / "out.csv")
    assert (result.num_rows, result.num_failed) == (len(mols), 0)
    values = predict(tiny_model_folder, mols).values[:, 0]
    assert [float(row[PREDICTION]) for row in rows] == pytest.approx(list(values), abs=1e-6)
    assert "smiles" in rows[0]


def test_memory_holds_one_chunk_and_an_error_halfway_keeps_the_old_output(
    tiny_model_folder: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.csv"
    output.write_text("older result\n")
    sizes = []

    def fail_later(model: object, molecules: list[str], **options: object) -> object:
        sizes.append(len(molecules))
        if len(sizes) == 3:
            raise RuntimeError("out of memory")
        return predict(model, molecules, **options)

    monkeypatch.setattr("rmat_hf.inference.screening.predict", fail_later)
    with pytest.raises(RuntimeError, match="out of memory"):
        screen(tiny_model_folder, library, output, chunk_size=20, overwrite=True)
    assert sizes == [20, 20, 10]
    assert output.read_text() == "older result\n"
    assert {path.name for path in tmp_path.iterdir()} == {"library.csv", "out.csv", "tiny_model"}


@pytest.mark.parametrize("kind", ["output", "input"])
def test_nothing_is_replaced_unless_told(
    tiny_model_folder: Path, library: Path, tmp_path: Path, kind: str
) -> None:
    output = library if kind == "input" else tmp_path / "out.csv"
    if kind == "output":
        output.write_text("mine\n")
    before = output.read_text()
    with pytest.raises(UserError, match=rf"{output.name} is there already\. Pass --overwrite"):
        screen(tiny_model_folder, library, output)
    assert output.read_text() == before
    screen(tiny_model_folder, library, output, overwrite=True)
    assert "prediction_" in output.read_text()


def test_smiles_in_a_column_of_another_name_are_found(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "a.csv", tmp_path / "out.csv"
    source.write_text("ID;Structure;y\n7;CCO;1,5\n8;CCN;2,5\n")
    screen(tiny_model_folder, source, output)
    rows = list(csv.DictReader(output.open()))
    assert [row["Structure"] for row in rows] == ["CCO", "CCN"]
    assert [row["y"] for row in rows] == ["1,5", "2,5"]
    assert all(row["error"] == "" for row in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"smiles_column": "SMILES"}, "has no column 'SMILES'. Its columns are: id, smiles"),
        ({"output": "missing/out.csv"}, "folder that does not exist"),
        ({"output": "out.xlsx"}, "Use .csv or .parquet"),
        ({"input": "nowhere.csv"}, "nowhere.csv"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(
    library: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    arguments = {"input": "library.csv", "output": "out.csv", "smiles_column": "smiles"} | change
    source, output = tmp_path / arguments["input"], tmp_path / arguments["output"]
    with pytest.raises(UserError, match=message):
        screen("no model here", source, output, smiles_column=arguments["smiles_column"])


def test_embeddings_in_a_csv_have_a_column_for_each_number(
    tiny_model_folder: Path, library: Path, tmp_path: Path
) -> None:
    for name in ("out.csv", "out.parquet"):
        screen(tiny_model_folder, library, tmp_path / name, run=run_embedding)
    wide = pd.read_csv(tmp_path / "out.csv")
    stacked = pd.read_parquet(tmp_path / "out.parquet")
    expected = np.stack(stacked.loc[stacked["error"].isna(), "embedding"])
    numbers = wide.filter(like="embedding_")[wide["error"].isna()]
    np.testing.assert_allclose(numbers, expected, rtol=1e-6)
    assert list(numbers.columns[:2]) == ["embedding_0", "embedding_1"]


def test_predictions_of_atoms_are_lists_in_the_order_of_the_record(tmp_path: Path) -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, id2label={0: "charge"}, problem_type="regression")
    RMatForTokenClassification(config).save_pretrained(tmp_path / "model")
    RMatProcessor(geometry="bounds").save_pretrained(tmp_path / "model")
    mol = Chem.AddHs(Chem.MolFromSmiles("OC(=O)c1ccccc1"))
    with Chem.SDWriter(str(tmp_path / "acids.sdf")) as writer:
        writer.write(mol)
    tables = []
    for molecules, name in (
        ([Chem.MolToSmiles(Chem.RemoveHs(mol), canonical=False), "C1"], "out.csv"),
        (tmp_path / "acids.sdf", "out.parquet"),
        (tmp_path / "acids.sdf", "shards"),
    ):
        result = screen(tmp_path / "model", molecules, tmp_path / name)
        assert result.num_rows - result.num_failed == 1
        if name.endswith(".csv"):
            written = [row["prediction_charge"] for row in read_csv(tmp_path / name)]
            assert written[1] == ""
            tables.append(json.loads(written[0]))
        else:
            path = tmp_path / name
            (path,) = path.rglob("*.parquet") if path.is_dir() else [path]
            (cell,) = pq.read_table(path)["prediction_charge"].to_pylist()
            tables.append(cell)
    (expected,) = predict(tmp_path / "model", ["OC(=O)c1ccccc1"]).values
    for charges in tables:
        assert charges == pytest.approx(expected[:, 0].tolist(), abs=1e-6)
    # of hydroxyl and carbonyl, which the canonical SMILES has elsewhere
    assert abs(expected[0, 0] - expected[2, 0]) > 1e-4
    with pytest.raises(UserError, match="leave --top-k out"):
        screen(tmp_path / "model", ["CO"], tmp_path / "best.csv", top_k=1)


def test_prediction_columns_of_classes() -> None:
    options = {"problem_type": "single_label_classification", "label_name": "y"}
    config = RMatConfig(id2label={0: "p", 1: "q", 2: "r"}, **options)
    probabilities = dict.fromkeys(
        ["probability_y_p", "probability_y_q", "probability_y_r"], "number"
    )
    expected = {"prediction_y": "text", **probabilities, "error": "text"}
    assert describe_prediction_columns(config) == expected


def test_a_second_screen_of_the_same_molecules_featurizes_nothing(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def screen_molecules(name: str, feature_cache: str | None) -> bytes:
        smiles = ["CCO", "C1CC", "c1ccccc1O"]
        options = {"feature_cache": feature_cache}
        screen(tiny_model_folder, smiles, tmp_path / name, **options)
        return (tmp_path / name).read_bytes()

    first = screen_molecules("first.csv", str(tmp_path / "cache"))
    assert screen_molecules("without.csv", None) == first
    monkeypatch.setattr(RMatProcessor, "featurize_compactly", None)
    assert screen_molecules("second.csv", str(tmp_path / "cache")) == first
    with pytest.raises(TypeError):
        screen_molecules("third.csv", None)


# Limits


def test_limits_are_those_of_the_user_and_not_of_the_folder(
    tiny_model: RMatForSequenceClassification, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "model")
    processor = RMatProcessor(geometry="2d", max_atoms=10**6, conformer_time_limit_s=10**6)
    processor.save_pretrained(tmp_path / "model")
    smiles = ["C" * 20, "C" * 1001]
    for run in (run_prediction, run_embedding):
        output = tmp_path / f"{run.__name__}.parquet"
        screen(tmp_path / "model", smiles, output, run=run)
        errors = pq.read_table(output)["error"].to_pylist()
        assert errors[0] is None
        assert "1000" in errors[1]
        screen(tmp_path / "model", smiles, output, run=run, max_atoms=19, overwrite=True)
        assert "19" in pq.read_table(output)["error"].to_pylist()[0]
    assert "1000" in str(predict(tmp_path / "model", smiles).errors[1])
    assert limit_processor(processor).conformer_time_limit_s < 1000
    assert limit_processor(processor, max_atoms=2000).max_atoms == 2000
    assert limit_processor(RMatProcessor(max_atoms=9)).max_atoms == 9
    assert processor.max_atoms == 10**6


# Flags


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": None}, r"either with --smiles or with --input"),
        ({"smiles": ["CCO"]}, r"either with --smiles or with --input"),
        ({"input": None, "smiles": ["C"], "input_split": "test"}, "need --input"),
        ({"top_k_label": "y"}, "--top-k-label needs --top-k"),
        ({"task": "1"}, r"--task '1' is not RANK/NUM"),
        ({"task": "4/4"}, r"--task '4/4' is not RANK/NUM"),
        ({"output_format": "xlsx"}, r"--output-format 'xlsx' is unknown"),
        ({"top_k_order": "up"}, r"--top-k-order 'up' is unknown"),
        ({"top_k": 0}, r"--top-k 0 is too small"),
        ({"batch_size": 0}, "--batch-size 0 is too small"),
        ({"output": "out.csv", "num_proc": 2}, "name a folder, without an extension"),
    ],
)
def test_flags_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictionArguments(**({"model": "folder", "output": "out", "input": "a.csv"} | options))


def test_summary_tells_what_was_written() -> None:
    rows = ScreeningResult(Path("out"), 10, 2, 10)
    assert describe_screening(rows, noun="predictions") == (
        "10 rows: 8 predictions, 2 failed (reasons in the column 'error'). Wrote out."
    )
    kept = ScreeningResult(Path("out"), 10, 2, 3, kept="smallest prediction_y")
    told = describe_screening(kept, noun="predictions")
    assert told.endswith("Wrote 3 rows to out, with the smallest prediction_y.")
    assert "best" not in told
    part = ScreeningResult(Path("out"), 10, 2, 10, is_complete=False)
    assert "in the shards of this task" in describe_screening(part, noun="predictions")


@pytest.mark.parametrize(
    ("transform", "order", "is_smallest"),
    [("pIC50", None, True), ("pIC50", "descending", False), ("log10", None, False)],
)
def test_the_most_potent_are_kept_of_concentrations_learned_as_pic50(
    tiny_model_folder: Path, tmp_path: Path, transform: str, order: Any, is_smallest: bool
) -> None:
    model = shutil.copytree(tiny_model_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"id2label": {"0": "IC50 (nM)"}, "label2id": {"IC50 (nM)": 0}}
    config |= {"label_units": ["nM"], "label_transforms": [transform]}
    (model / "config.json").write_text(json.dumps(config))
    smiles = [*dict.fromkeys(TINY_SMILES)]
    values = sorted(predict(model, smiles).values[:, 0].tolist(), reverse=not is_smallest)
    result = screen(model, smiles, tmp_path / "k.csv", top_k=2, top_k_order=order)
    kept = [float(it["prediction_IC50 (nM)"]) for it in read_csv(tmp_path / "k.csv")]
    assert kept == pytest.approx(values[:2], rel=1e-5)
    end, other = ("smallest", "descending") if is_smallest else ("largest", "ascending")
    told = describe_screening(result, noun="predictions")
    assert f"{end} prediction_IC50 (nM)" in told
    # who has not chosen learns how to
    assert (f"--top-k-order {other}" in told) == (order is None)
