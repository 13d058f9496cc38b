import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rmat_hf import check_table
from rmat_hf.cli import check, parse_flags
from rmat_hf.data.check import CHECKS, Finding, TableReport
from rmat_hf.data.check_report import (
    CheckArguments,
    build_page,
    fix_table,
    list_left_out,
    name_first_step,
    propose_finetuning,
    run_check,
)
from rmat_hf.data.training_table import load_training_table
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

CONTENT = """Compound;Canonical Smiles;IC50 (nM);Set
A0;CC(=O)Oc1ccccc1C(=O)O;12,5;train
A1;CC(=O)Oc1ccccc1C(=O)[O-].[Na+];12500;test
A2;CCO;>10000;train
A3;C1CC;3,1;train
A4;CCN;see report;test
A5;Oc1ccccn1;0,4;train
A6;O=c1cccc[nH]1;0,5;train
A7;CC(N)C(=O)O alanine;7;test
A8;CCCCCC;100000;Train
A9;CCCCCC;100000;Train
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> TableReport:
    path = tmp_path_factory.mktemp("check") / "export.csv"
    path.write_text(CONTENT, encoding="utf-16")
    return check_table(path)


def find(report: TableReport, topic: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.topic == topic]


def test_columns_units_and_parts_are_found(report: TableReport) -> None:
    assert (report.smiles_column, report.label_columns) == ("Canonical Smiles", ["IC50 (nM)"])
    assert report.label_units == {"IC50 (nM)": "nM"}
    assert "semicolons" in report.description and "utf-16" in report.description
    assert any("--split-column Set" in it.way_out for it in find(report, "parts"))


@pytest.mark.parametrize(
    ("topic", "rows", "way_out"),
    [
        ("molecules", {3, 7}, "left out"),
        ("cells", {4}, "missing"),
        ("censored", {2}, "bounds"),
        ("jumps", {0, 1}, "unit"),
        ("skew", set(), "--label-transform pIC50 --label-units nM"),
        ("replicates", {0, 1, 5, 6, 8, 9}, "--replicates"),
        ("fragments", {1}, "--standardize largest_fragment uncharge"),
        ("tautomers", {5, 6}, "tautomer"),
        ("parts", {0, 1}, ""),
        ("splits", set(), "--split: random"),
    ],
)
def test_findings_name_rows_and_the_flag_that_settles_them(
    report: TableReport, topic: str, rows: set[int], way_out: str
) -> None:
    found = find(report, topic)
    assert {row for finding in found for row in finding.rows} == rows
    assert any(way_out in finding.way_out for finding in found)


def test_a_report_fits_a_screen_and_every_topic_is_a_check(report: TableReport) -> None:
    text = str(report)
    assert len(text.splitlines()) < 50 and max(map(len, text.splitlines())) < 160
    assert {finding.topic for finding in report.findings} <= {*CHECKS}
    assert "rows 5, 6" in text and "counted from 0" in text


def test_the_cleaned_copy_is_learned_as_the_table_itself(
    report: TableReport, tmp_path: Path
) -> None:
    fixed, changes = fix_table(report)
    assert list(fixed) == ["Compound", "smiles", "IC50 (nM)", "Set"]
    # row 4 has no label, row 9 repeats row 8
    assert fixed["Compound"].tolist() == ["A0", "A1", "A2", "A5", "A6", "A7", "A8"]
    assert fixed["IC50 (nM)"].tolist()[:3] == ["12.5", "12500", ">10000"]
    assert report.frame["IC50 (nM)"][0] == "12,5"
    assert {3, 4, 9} == {*changes[changes["why"].str.startswith("dropped")]["row"]}
    assert changes[changes["row"] == 7][["before", "after"]].to_numpy().tolist() == [
        ["CC(N)C(=O)O alanine", "CC(N)C(=O)O"]
    ]
    assert check_table(fixed).num_molecules == 5


def test_the_cleaned_copy_has_points_in_every_column_of_numbers() -> None:
    smiles = ["CCO", "CCN", "see ELN 2231", "CCCC with water"]
    table = pd.DataFrame({"Structure": smiles, "IC50 (nM)": ["1,5", "2,5", "3,5", "4,5"]})
    table["MW"], table["series"] = ["427,54", "n.d.", "1,1", "20,5"], ["1,4-diol", "2", "", ""]
    report = check_table(table, label_columns=["IC50 (nM)"])
    fixed, changes = fix_table(report)
    assert fixed["MW"].tolist() == ["427.54", "n.d.", "20.5"]
    assert fixed["series"].tolist() == ["1,4-diol", "2", ""]
    assert fixed["smiles"].tolist() == ["CCO", "CCN", "CCCC"]
    assert changes[changes["column"] == "MW"]["why"].unique().tolist() == ["written with a point"]
    # a row without a molecule in front of the text is told apart, and that it goes
    way_outs = {it.rows: it.way_out for it in find(report, "molecules")}
    assert "drops them" in way_outs[2,] and "cuts" in way_outs[3,]


def test_a_column_of_dates_is_proposed_for_a_split_in_time() -> None:
    table = pd.DataFrame(
        {"smiles": [f"{'C' * size}O" for size in range(1, 7)], "y": range(0, 60, 10)}
    )
    for form, told in {
        "{:02}.02.2023": "--time-column 'Assay date')",
        "2023-02-{:02}": "--time-column 'Assay date')",
        "{:02}-Feb-2023": "--time-column 'Assay date')",
        "02/1{}/2023": "--time-column 'Assay date')",
        "{:02}/02/2023": "--time-column 'Assay date', once",
        "Q{}": "",
    }.items():
        dated = table.assign(**{"Assay date": [form.format(day) for day in range(1, 7)]})
        ways_out = "".join(it.way_out for it in find(check_table(dated), "splits"))
        assert told in ways_out and ("Assay date" in ways_out) is bool(told)


RINGS = "smiles,y\n" + "".join(
    f"C1{'C' * row}N1,{row * row}\nC1{'C' * row}O1,{row}\n" for row in range(1, 7)
)
# as many scaffolds as rows; few are 1 in the last column
SCAFFOLDS = "smiles,y,toxic\n" + "".join(
    f"C1{'C' * row}{atom}1,{row / 7:.3f},{int(row < 4)}\n" for row in range(1, 41) for atom in "NO"
)
LEAKING = "".join(
    f"{'C' * row}O,{part},{row}\n" for row in range(1, 61) for part in ("train", "test")[row % 2 :]
)
INCHI = "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3"


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (
            CONTENT,
            {
                "smiles_column": "Canonical Smiles",
                "label_columns": ["IC50 (nM)"],
                "label_units": ["nM"],
                "label_transform": ["pIC50"],
                "replicates": "median",
                "standardize": ["largest_fragment", "uncharge", "tautomer"],
                "split_column": None,  # parts that leak
            },
        ),
        (
            "smiles,-logS,active,series,Set\nC,-1.5,yes,1,train\nCC,2,no,1,val\nO,.1,no,1,test\n",
            {
                "label_columns": ["-logS", "active"],
                "class_columns": ["active"],
                "problem_type": "regression",
                "split_column": "Set",
            },
        ),
        (
            "smiles,Standard Value,Standard Units\nC,1,nM\nCC,20,nM\nO,5000,nM\nN,3,nM\n",
            {"label_units": ["nM"], "label_transform": ["pIC50"]},
        ),
        # few rows, if of many scaffolds
        (RINGS, {"split": "kfold", "num_folds": 5, "fold": 0}),
        (SCAFFOLDS.replace(",toxic", ",x"), {"split": "scaffold"}),
        (SCAFFOLDS.replace("y,toxic", "row,toxic"), {"split": "kfold", "num_folds": 5}),
        ("smiles,toxic\nC,yes\nCC,no\n", {"problem_type": "classification"}),
        # a unit beside a logarithm is not its own, and what predict wrote is no label
        (
            "smiles,pIC50,prediction_pIC50,Standard Units,time_unit\nC,5,5,nM,h\nCC,6,6,nM,h\n",
            {"label_columns": ["pIC50"], "label_units": [], "label_transform": []},
        ),
        # no row of test has a label
        ("smiles,y,Set\nC,1.5,train\nCC,2.5,train\nO,,test\n", {"split_column": None}),
        # a folder of train and test that share molecules
        (f"smiles,split,y\n{LEAKING}", {"split": "kfold", "num_folds": 5, "fold": 0}),
        ("smiles,active\nC,1\nC,0\nCC,1\nO,0\n", {"replicates": "keep"}),
        (f"id;InChI;y\n1;{INCHI};2\n2;{INCHI};3.5\n", {"dataset": "clean.csv"}),
    ],
)
def test_the_line_to_finetune_with_settles_what_was_found(
    tmp_path: Path, content: str, flags: dict[str, object]
) -> None:
    (tmp_path / "an export.csv").write_text(content)
    arguments = parse_flags("check", ["--input", str(tmp_path / "an export.csv")])
    words = shlex.split(propose_finetuning(run_check(arguments), arguments))
    told = parse_flags("finetune", words[words.index("finetune") + 1 :])
    expected = {"dataset": arguments.input, **flags}
    assert {name: getattr(told, name) for name in expected} == expected


def test_files_are_written_and_told_and_not_replaced_unless_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.csv"
    path.write_text("smiles,y\nCCO,1\nC1,2\nCCN,<b>\n")
    outputs = {"fix": str(tmp_path / "out.csv"), "html": str(tmp_path / "page.html")}
    check(CheckArguments(input=str(path), **outputs))
    screen = capsys.readouterr().out
    for name in ("out.csv", "out_changes.csv", "page.html"):
        assert f"Wrote {tmp_path / name}." in screen
    assert pd.read_csv(outputs["fix"]).to_dict("list") == {"smiles": ["CCO"], "y": [1]}
    assert (tmp_path / "out_changes.csv").is_file()
    page = (tmp_path / "page.html").read_text()
    assert "<svg" in page and "&lt;b&gt;" in page and "<b>" not in page
    with pytest.raises(UserError, match=r"out\.csv is there already\. Pass --overwrite"):
        CheckArguments(input=str(path), **outputs)
    run_check(CheckArguments(input=str(path), overwrite=True, **outputs))


def test_rows_that_are_none_are_called_that(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rows"):
        check_table(pd.DataFrame({"smiles": [], "y": []}))
    # whatever its column of SMILES is called
    (tmp_path / "a.csv").write_text("SMILES,y\n")
    with pytest.raises(UserError, match=r"a\.csv has no rows"):
        check_table(tmp_path / "a.csv")
    with pytest.raises(UserError, match="The data set is a list"):
        check_table([{"smiles": "C", "y": 1}])


def test_inchi_is_told_and_written_as_smiles_and_names_are_refused() -> None:
    inchi = ["InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3", "InChI=1S/CH4/h1H4"]
    report = check_table(pd.DataFrame({"InChI": inchi, "y": [1, 2]}))
    assert "InChI" in report.findings[0].message and report.findings[0].is_serious
    assert fix_table(report)[0]["smiles"].tolist() == ["CCO", "C"]
    table = pd.DataFrame({"name": ["aspirin", "ibuprofen", "sodium acetate"], "y": [1, 2, 3]})
    with pytest.raises(UserError, match=r"no column 'smiles'.* 'name' holds names"):
        check_table(table)


WORDS = {
    "smiles": [f"C{'C' * row}O" for row in range(24)],
    "binding": ["active", "INACTIVE", "active", "inconclusive"] * 6,
    "tox": ["Toxic", "Non-toxic", "Non-toxic", ""] * 6,
    "level": ["high", "low", "n.d."] * 8,
    "kind": ["inhibitor", "substrate", "non-substrate"] * 8,
}


def test_words_of_yes_and_no_are_labels_and_it_is_told_which_is_1() -> None:
    vendors = {"vendor": ["Merck", "Sigma"] * 12}
    report = check_table(pd.DataFrame({**WORDS, **vendors}).drop(columns="kind"))
    assert not any("vendor" in it.message + it.way_out for it in report.findings)
    assert report.label_columns == report.binary_labels == ["binding", "tox"]
    told = [it.message for it in find(report, "labels")]
    assert any("'active' is 1, 'INACTIVE' is 0" in it for it in told)
    assert any("'Toxic' is 1, 'Non-toxic' is 0" in it for it in told)
    # of two other words it is not known which is yes, and those of a vendor are no outcome
    (pair,) = [it for it in find(report, "labels") if "'level' has two words" in it.message]
    assert "{'high': 1, 'low': 0}" in pair.way_out
    (cells,) = find(report, "cells")
    assert "neither yes nor no, as 'inconclusive'" in cells.message


def test_a_named_column_of_words_is_neither_emptied_nor_left_out_in_silence(
    tmp_path: Path,
) -> None:
    table, names = pd.DataFrame(WORDS), ["binding", "level", "kind"]
    report = check_table(table, label_columns=names)
    fixed, _ = fix_table(report)
    assert len(fixed) == len(table)
    assert fixed["binding"].tolist() == WORDS["binding"]
    assert fixed["kind"].tolist() == WORDS["kind"]
    assert {*fixed["level"]} == {"high", "low", ""}
    assert report.binary_labels == ["binding"]
    ways_out = [it.way_out for it in find(report, "labels")]
    assert any("In 'level' replace 'high' by 1 and 'low' by 0" in it for it in ways_out)
    assert any("In 'kind' write 1 or 0" in it and "'substrate'" in it for it in ways_out)
    assert [line.split(":")[0] for line in list_left_out(report)] == [
        "Without 'level'",
        "Without 'kind'",
    ]


def test_words_of_yes_and_no_among_numbers_are_no_numbers() -> None:
    values = ["12.5", "300", "inactive", "not soluble", "7", "41"]
    table = pd.DataFrame({"smiles": WORDS["smiles"][:6], "IC50 (nM)": values})
    report = check_table(table)
    (cells,) = find(report, "cells")
    assert cells.rows == (2, 3)
    assert "no number, as 'inactive' (1), 'not soluble' (1)" in cells.message
    assert ">10000" in cells.way_out
    assert fix_table(report)[0]["IC50 (nM)"].tolist() == ["12.5", "300", "7", "41"]
    one = check_table(table.assign(tox=["toxic"] * 5 + ["unclear"]), label_columns=["tox"])
    (cells,) = find(one, "cells")
    assert "neither yes nor no" in cells.message and "--fix leaves them" in cells.way_out
    assert "unclear" in {*fix_table(one)[0]["tox"]}
    alone = check_table(table.assign(**{"IC50 (nM)": "active"}))
    assert {*fix_table(alone)[0]["IC50 (nM)"]} == {"active"}


@pytest.mark.slow
def test_real_data_have_few_findings_and_a_page() -> None:
    report = check_table("freesolv", label_columns=["hydration_free_energy"])
    assert {it.topic for it in report.findings if it.is_serious} == set()
    assert build_page(report).count("<section") == len(report.findings)


def test_missing_labels_and_covariates_are_told_by_name() -> None:
    columns = {"smiles": ["CCO", "CCN", "CCC"], "a": ["1.5", "n.d.", ""]}
    columns["logD (pH 7.4)"] = ["", "4", ""]
    report = check_table(pd.DataFrame({**columns, "pH": ["7.4", "6", "5"]}))
    (missing,) = find(report, "missing")
    assert "2 in 'a', 2 in 'logD (pH 7.4)' of 3 rows" in missing.message
    assert missing.rows == (2,) and missing.is_serious
    assert (report.label_columns, report.covariate_columns) == (["a", "logD (pH 7.4)"], ["pH"])
    told = next(it for it in find(report, "labels") if "covariates: 'pH'" in it.message)
    assert "--label-columns a" in told.way_out and "--feature-columns pH" in told.way_out
    assert "1 row without any" in missing.message


NUMBERS = np.random.default_rng(0).normal(2, 0.6, size=60)


@pytest.mark.parametrize(
    ("is_other", "columns", "where"),
    [
        (np.arange(60) >= 40, {}, "rows from 40 on"),
        (np.arange(60) % 3 == 0, {"lab": ["b", "a", "a"] * 20}, "'b' in 'lab'"),
        (np.arange(60) % 4 == 0, {}, "a part of the rows"),
    ],
)
def test_a_part_of_a_column_in_another_unit_is_found(
    is_other: np.ndarray, columns: dict[str, list[str]], where: str
) -> None:
    values = 10.0 ** (NUMBERS - 3 * is_other)
    table = pd.DataFrame({"smiles": ["C" * (idx + 1) for idx in range(60)], "y": values, **columns})
    (jump,) = find(check_table(table), "jumps")
    assert where in jump.message and jump.rows == tuple(np.flatnonzero(is_other))
    capped = np.where(is_other, 1e5, 10.0**NUMBERS)  # of an assay that ends there
    for other in (10.0**NUMBERS, np.sort(10.0 ** (2.5 * NUMBERS)), capped):
        assert find(check_table(table.assign(y=other)), "jumps") == []


# Columns


def load(path: Path, text: str, name: str = "table.csv", encoding: str = "utf-8") -> object:
    (path / name).write_text(text, encoding=encoding)
    options = {"smiles_column": "smiles", "label_columns": ["y"], "problem_type": "regression"}
    processor = RMatProcessor(geometry="bounds")
    return load_training_table(path / name, processor, **options).dataset.to_dict()


def test_other_ways_of_writing_a_table_give_the_same_training_data(tmp_path: Path) -> None:
    rows = [("CCO", "1.25"), ("CCN", "-1250.5"), ("c1ccccc1", "0.1"), ("CC", "1e-3")]
    text = "smiles,y\n" + "".join(f"{smiles},{value}\n" for smiles, value in rows)
    expected = load(tmp_path, text)
    european = text.replace(",", ";").replace(".", ",").replace("-1250", "-1.250")
    for encoding in ("utf-8", "latin-1", "utf-16"):
        other = european.replace("smiles", "Größe;Smiles").replace("\nC", "\né;C")
        other = other.replace("\nc", "\né;c")
        assert load(tmp_path, other, "table.txt", encoding) == expected
    american = text.replace("-1250.5", '"-1,250.5"')
    assert load(tmp_path, american) == expected
    assert load(tmp_path, text.replace(",", "\t"), "table.tsv") == expected


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        ({"ID": [1, 2, 3], "CAS": [5, 7, 9], "pKi": [5.5, 6.0, 7.1]}, ["pKi"]),
        ({"MOLID": [9, 5, 7], "lipid": [5.5, 6.0, 7.1]}, ["lipid"]),
        ({"counter": [1, 2, 3], "split_0": ["train", "test", "test"]}, []),
        ({"active": ["yes", "no", "no"], "note": ["a", "b", "5"]}, ["active"]),
        ({"y": [">1", "2,5", ""], "z": ["n.d.", "", "3"]}, ["y", "z"]),
    ],
)
def test_labels_are_the_numbers_that_do_not_name_rows(
    columns: dict[str, list[object]], labels: list[str]
) -> None:
    table = pd.DataFrame({"smiles": ["CCO", "CCN", "CCC"], **columns}).astype(str)
    assert check_table(table).label_columns == labels


# Long tables


def build_long_table() -> pd.DataFrame:
    """Return forty molecules in nM or uM, of two targets, some of them bounds."""
    rows = range(40)
    units = ["uM" if row % 4 == 0 else "nM" for row in rows]
    values = 10.0 ** np.random.default_rng(1).uniform(0, 5, size=40)
    return pd.DataFrame(
        {
            "smiles": ["C" * (row + 1) for row in rows],
            "Target Name": ["kinase A", "kinase B"] * 20,
            "Assay ChEMBL ID": [f"CHEMBL{row // 3}" for row in rows],
            "Standard Relation": ["'>'" if row < 5 else "'='" for row in rows],
            "Standard Value": [
                f"{value / 1000 if unit == 'uM' else value:.6g}"
                for value, unit in zip(values, units, strict=True)
            ],
            "Standard Units": units,
            "nM": values,
        }
    )


def test_relations_units_and_assays_beside_a_label_are_told_and_fixed(tmp_path: Path) -> None:
    table = build_long_table()
    truth = table.pop("nM")
    table.to_csv(tmp_path / "long.csv", index=False)
    arguments = CheckArguments(input=str(tmp_path / "long.csv"))
    report = run_check(arguments)
    (censored,) = find(report, "censored")
    assert "'Standard Relation'" in censored.message and "5 with >" in censored.message
    assert censored.rows == (0, 1, 2, 3, 4) and "--fix" in censored.way_out
    (units,) = (it for it in find(report, "units") if it.is_serious)
    assert "30 'nM'" in units.message and "--fix" in units.way_out
    target, assay = find(report, "assays")
    assert (
        "2 assays" in target.message
        and "'Target Name'" in target.message
        and "--feature-columns 'Target Name'" in target.way_out
    )
    # of three rows each nothing is learned
    assert "14 assays" in assay.message and "--feature-columns" not in assay.way_out
    fixed, changes = fix_table(report)
    cells = fixed["Standard Value"].astype(str)
    assert [cell.startswith(">") for cell in cells] == [True] * 5 + [False] * 35
    np.testing.assert_allclose(cells.str.strip(">").astype(float), truth, rtol=1e-5)
    assert {*fixed["Standard Units"]} == {"nM"} and (changes["why"] != "").all()
    check, finetuning = propose_finetuning(report, arguments).split(" && ")
    assert check.endswith("long.csv --fix clean.csv")
    told = parse_flags("finetune", shlex.split(finetuning)[2:])
    assert (told.dataset, told.feature_columns) == ("clean.csv", ["Target Name"])
    assert (told.label_units, told.label_transform) == (["nM"], ["pIC50"])
    # a column of numbers, or of yes and no, is no name of an assay
    for cells in ([1, 0], ["yes", "no"], ["2024-01-01", "2024-01-02"]):
        other = table.drop(columns=["Target Name", "Assay ChEMBL ID"]).assign(assay=cells * 20)
        assert find(check_table(other, label_columns=["Standard Value"]), "assays") == []
    # of the copy nothing is left to fix
    assert not any(it.needs_fix for it in check_table(fixed).findings)


def test_units_that_none_can_be_made_of_another_have_no_line_to_finetune_with(
    tmp_path: Path,
) -> None:
    table = build_long_table().drop(columns=["nM", "Standard Relation"])
    table["Standard Units"] = ["%", "ug/mL"] * 20
    table.to_csv(tmp_path / "long.csv", index=False)
    arguments = CheckArguments(input=str(tmp_path / "long.csv"))
    report = run_check(arguments)
    assert propose_finetuning(report, arguments) == ""
    assert "one unit" in name_first_step(report)


def test_signs_beside_a_logarithm_are_told_and_not_written(tmp_path: Path) -> None:
    table = build_long_table().rename(columns={"Standard Value": "pIC50"})
    report = check_table(table.drop(columns=["nM", "Standard Units"]))
    (censored,) = find(report, "censored")
    assert censored.is_serious and not censored.needs_fix and "turned" in censored.way_out
    assert fix_table(report)[0]["pIC50"].tolist() == table["pIC50"].tolist()


def test_rows_of_one_molecule_under_several_conditions_are_no_replicates(tmp_path: Path) -> None:
    numbers = np.random.default_rng(2).normal(6, 1, size=12)
    columns = {
        "smiles": [f"C{'C' * (row // 2)}O" for row in range(24)],
        "temperature": [25, 37] * 12,
        "cell line": ["HEK", "CHO"] * 12,
        "replicate": [1, 2] * 12,
        "operator": ["ab", "ab", "cd"] * 8,
        "pIC50": [numbers[row // 2] + row % 2 for row in range(24)],
    }
    pd.DataFrame(columns).to_csv(tmp_path / "a.csv", index=False)
    arguments = CheckArguments(input=str(tmp_path / "a.csv"))
    report = run_check(arguments)
    (conditions,) = find(report, "assays")
    assert "'temperature', 'cell line'" in conditions.message
    assert find(report, "replicates") == []
    told = parse_flags("finetune", shlex.split(propose_finetuning(report, arguments))[2:])
    assert told.feature_columns == ["temperature", "cell line"] and told.replicates == "keep"


def test_the_words_of_cells_are_counted_and_the_most_frequent_is_first() -> None:
    cells = ["geomean", *["12", "7", "inactive"] * 4]
    table = pd.DataFrame({"smiles": ["C" * (row + 1) for row in range(13)], "IC50 (nM)": cells})
    (told,) = find(check_table(table), "cells")
    assert "'inactive' (4), 'geomean' (1)" in told.message
    # of a word that says nothing of a limit nothing is advised
    (told,) = find(check_table(table.iloc[[0, 1, 2]]), "cells")
    assert ">10000" not in told.way_out


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("% Inhibition @10 µM", "%"),
        ("Hemmung bei 10 µM (%)", "%"),
        ("inhibition_at_10_uM", ""),
        ("% inhibition (10 µM)", "%"),
        ("IC50_1_nM", "nM"),
        ("Ki 5HT2 (nM)", "nM"),
        ("t1/2 h", "h"),
        ("% bound", "%"),
    ],
)
def test_the_unit_of_a_condition_is_not_that_of_the_label(name: str, unit: str) -> None:
    table = pd.DataFrame({"smiles": ["CCO", "CCN", "CCC"], name: [1.5, 2.5, 7.5]})
    assert check_table(table, label_columns=[name]).label_units == {name: unit}


def test_of_classes_no_median_and_no_spread_is_told(tmp_path: Path) -> None:
    table = pd.DataFrame({"smiles": ["CCO", "CCO", "CCN"], "toxic": ["yes", "no", "yes"]})
    said = find(check_table(table), "replicates")
    assert len(said) == 2
    assert not any("median" in it.message + it.way_out or "spread" in it.message for it in said)


def test_a_table_without_labels_has_nothing_to_divide_and_prices_are_none(tmp_path: Path) -> None:
    table = pd.DataFrame({"smiles": ["CCO", "CCN", "CCC"], "Price, EUR": ["12,5", "7,25", "100,5"]})
    report = check_table(table)
    assert report.label_columns == [] and not any(it.is_serious for it in report.findings)
    (catalog,) = find(report, "labels")
    assert "'Price, EUR'" in catalog.message and "no label" in catalog.message
    assert fix_table(report)[0]["Price, EUR"].tolist() == ["12.5", "7.25", "100.5"]
    assert check_table(table, label_columns=["Price, EUR"]).label_columns == ["Price, EUR"]


def test_the_largest_of_a_mixture_is_not_advised_without_a_word() -> None:
    mixture = "CC(=O)Oc1ccccc1C(=O)O.CN1C=NC2=C1C(=O)N(C)C(=O)N2C"
    report = check_table(pd.DataFrame({"smiles": [mixture, "CCO"], "y": [1.5, 2.5]}))
    (told,) = find(report, "fragments")
    assert told.rows == (0,) and "largest_fragment" in told.way_out and "Drop" in told.way_out
