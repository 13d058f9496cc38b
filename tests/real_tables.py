"""Tables as chemists have them, small: exports of spreadsheets and of assays, and spoiled sets."""

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem

from rmat_hf.data.sources import open_table

Rows = list[list[Any]]
FREESOLV = next(open_table("freesolv").iterate_chunks(60)).table.to_pydict()
SMILES: list[str] = FREESOLV["smiles"]
VALUES = [float(it) for it in FREESOLV["hydration_free_energy"]]
BASE: Rows = [list(row) for row in zip(SMILES, VALUES, strict=True)]


class RealTable(NamedTuple):
    """One table and what is expected of it."""

    description: str  # as the documentation calls it
    name: str  # of the file
    write: Callable[[Path], object]
    topics: set[str]  # that the check finds, among others
    options: dict[str, Any] = {}  # of the finetuning
    num_used: int | None = 60  # rows; `None` where the run is refused as a whole
    needs: str = ""  # a package


def write_text(
    rows: Rows, header: Sequence[str] = ("smiles", "y"), *, delimiter: str = ","
) -> Callable[[Path], object]:
    """Return a function that writes rows as text."""

    def write(path: Path, encoding: str = "utf-8") -> None:
        stream = io.StringIO()
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
        content = stream.getvalue().encode(encoding)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return write


def write_encoded(encoding: str, *args: Any, **options: Any) -> Callable[[Path], object]:
    """Return a function that writes rows as text in an encoding."""
    write: Any = write_text(*args, **options)
    return lambda path: write(path, encoding)


def write_workbook(path: Path, sheets: dict[str, Rows]) -> Path:
    """Write a workbook of Excel, if openpyxl is installed."""
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def write_sheets(sheets: dict[str, Rows]) -> Callable[[Path], object]:
    """Return a function that writes a workbook."""
    return partial(write_workbook, sheets=sheets)


def write_sdf(path: Path) -> None:
    with Chem.SDWriter(str(path)) as writer:
        for smiles, value in BASE:
            mol = Chem.MolFromSmiles(smiles)
            mol.SetProp("dG", str(value))
            mol.SetProp("_Name", "Übung")
            writer.write(mol)


def write_two_files(path: Path) -> None:
    path.mkdir()
    write_text(BASE[:48])(path / "train.csv")
    write_text(BASE[48:])(path / "test.csv")


def with_commas(rows: Rows) -> Rows:
    return [[smiles, str(value).replace(".", ",")] for smiles, value in rows]


def change(rows: Rows, cells: dict[int, Any], *, column: int = 1) -> Rows:
    """Return rows with other cells in a column."""
    changed = [list(row) for row in rows]
    for row, cell in cells.items():
        changed[row][column] = cell
    return changed


def spread_over_decades(rows: Rows) -> Rows:
    return [[smiles, round(10 ** (idx % 7 + idx / 60), 3)] for idx, (smiles, _) in enumerate(rows)]


NANOMOLAR = spread_over_decades(BASE)
SALTS = [["CC(=O)O", -6.7], ["CC(=O)[O-].[Na+]", -3.4], ["CCN.Cl", -4.4], ["CCN", -4.5]]
TAUTOMERS = [["Oc1ccccn1", -8.0], ["O=c1cccc[nH]1", -8.0]]
DRUG = "CC(=O)Oc1ccccc1C(=O)O"
INCHI = [[Chem.MolToInchi(Chem.MolFromSmiles(smiles)), value] for smiles, value in BASE]
THREE = [[smiles, value, 7, idx if idx < 3 else ""] for idx, (smiles, value) in enumerate(BASE)]
PARTS = [[*row, "Train" if idx < 48 else "Test"] for idx, row in enumerate(BASE)]
UNITS = [[*row, "nM" if idx % 5 else "uM"] for idx, row in enumerate(NANOMOLAR)]

WRITTEN = [
    RealTable("a clean table", "a.csv", write_text(BASE), {"splits"}),
    RealTable(
        "semicolons and decimal commas",
        "a.csv",
        write_text(with_commas(BASE), ("Smiles", "dG (kcal/mol)"), delimiter=";"),
        {"reading", "units"},
    ),
    RealTable(
        "tabs, no label named",
        "a.tsv",
        write_text(BASE, ("SMILES", "y"), delimiter="\t"),
        {"reading"},
    ),
    RealTable(
        "Latin-1 with bars",
        "a.txt",
        write_encoded("latin-1", BASE, ("Structure", "Löslichkeit µM"), delimiter="|"),
        {"units"},
    ),
    RealTable("UTF-16 with tabs", "a.txt", write_encoded("utf-16", BASE, delimiter="\t"), set()),
    RealTable(
        "Excel with a title above the header",
        "a.xlsx",
        write_sheets({"Sheet1": [["Assay 12, May"], [], ["SMILES", "y"], *BASE]}),
        {"reading"},
        needs="openpyxl",
    ),
    RealTable(
        "Excel with two sheets and notes",
        "a.xlsx",
        write_sheets(
            {
                "plate 1": [["smiles", "y"], *BASE[:30]],
                "plate 2": [["smiles", "y"], *BASE[30:]],
                "notes": [["who", "when"], ["us", "May"]],
            }
        ),
        set(),
        needs="openpyxl",
    ),
    RealTable("an SDF file", "a.sdf", write_sdf, set()),
    RealTable(
        "empty columns and rows behind the table",
        "a.csv",
        write_text(
            [[*row, "", ""] for row in BASE] + [["", "", "", ""]] * 3, ("smiles", "y", "", "")
        ),
        {"molecules"},
    ),
    RealTable(
        "commas between thousands",
        "a.csv",
        write_text([[it, f"{1000 * abs(value) + 500:,.0f}"] for it, value in BASE]),
        {"reading"},
    ),
    RealTable(
        "bounds such as >10000",
        "a.csv",
        write_text(change(NANOMOLAR, {3: ">10000", 9: "<1", 20: "> 10000"}), ("smiles", "IC50_nM")),
        {"censored", "skew"},
        num_used=None,
    ),
    RealTable(
        "n.d., words and 12 mg in cells",
        "a.csv",
        write_text(change(BASE, {1: "n.d.", 2: "see report", 3: "12 mg", 4: "#N/A"})),
        {"cells"},
        num_used=56,
    ),
    RealTable(
        "SMILES that cannot be read, empty ones, names behind them",
        "a.csv",
        write_text(change(BASE, {0: "C1CC", 5: "", 6: "CCO ethanol", 7: "c1cccc1"}, column=0)),
        {"molecules"},
        num_used=56,
    ),
    RealTable(
        "InChI instead of SMILES",
        "a.csv",
        write_text(INCHI, ("InChI", "y")),
        {"reading"},
        num_used=None,
    ),
    RealTable(
        "True and False",
        "a.csv",
        write_text([[it, value > -4] for it, value in BASE], ("smiles", "permeable")),
        {"labels"},
        {"problem_type": "classification"},
    ),
    RealTable(
        "words as classes",
        "a.csv",
        write_text([[it, ["low", "mid", "high"][idx % 3]] for idx, (it, _) in enumerate(BASE)]),
        {"labels"},
        {"problem_type": "classification", "label_columns": ["y"]},
    ),
    RealTable(
        "nM over six decades",
        "a.csv",
        write_text(NANOMOLAR, ("smiles", "Ki [nM]")),
        {"skew", "units"},
    ),
    RealTable(
        "several units in a column",
        "a.csv",
        write_text(UNITS, ("smiles", "Standard Value", "Standard Units")),
        {"units", "skew"},
    ),
    RealTable(
        "a thousandfold between rows of one molecule",
        "a.csv",
        write_text([*NANOMOLAR, [SMILES[0], 1000 * NANOMOLAR[0][1]]]),
        {"jumps", "replicates"},
        num_used=61,
    ),
    RealTable(
        "Train and Test, no valid",
        "a.csv",
        write_text(PARTS, ("smiles", "y", "set")),
        {"parts"},
        {"split_column": "set", "split": "scaffold"},
    ),
    RealTable("a folder with train.csv and test.csv", "a", write_two_files, {"parts"}),
    RealTable(
        "three labels, one constant and one nearly empty",
        "a.csv",
        write_text(THREE, ("smiles", "dG", "series", "solubility")),
        {"labels"},
    ),
    RealTable(
        "salts beside their parents",
        "a.csv",
        write_text([*BASE, *SALTS]),
        {"fragments", "replicates"},
        {"standardize": ["largest_fragment", "uncharge"]},
        num_used=None,
    ),
    RealTable("tautomers", "a.csv", write_text([*BASE, *TAUTOMERS]), {"tautomers"}, num_used=62),
    RealTable(
        "a mixture of two drugs",
        "a.csv",
        write_text([*BASE, [f"{DRUG}.Cn1cnc2c1c(=O)n(C)c(=O)n2C", -1.0]]),
        {"fragments"},
        num_used=61,
    ),
    RealTable(
        "rows of one molecule that contradict each other",
        "a.csv",
        write_text([*BASE, [SMILES[0], 40.0], [SMILES[1], VALUES[1]]]),
        {"replicates"},
        num_used=60,
    ),
    RealTable("twelve rows", "a.csv", write_text(BASE[:12]), {"splits"}, num_used=12),
]


# Ten sets of ../shared/data, 150 rows of each, and how they are spoiled.
def _spoil(name: str, spoil: Callable[[pd.DataFrame], object], **save: Any) -> Any:
    def write(path: Path, source: Path) -> None:
        rows = pd.read_csv(source / name).head(150)
        changed = spoil(rows)
        rows = changed if isinstance(changed, pd.DataFrame) else rows
        if path.suffix == ".xlsx":
            rows.to_excel(path, index=False)
        elif path.suffix == ".parquet":
            rows.to_parquet(path)
        else:
            rows.to_csv(path, index=False, **save)

    return write


def _to_nanomolar(rows: pd.DataFrame) -> pd.DataFrame:
    rows["Ki (nM)"] = (10 ** (9 - rows.pop("pact"))).round(3)
    return rows


def _censor(rows: pd.DataFrame) -> pd.DataFrame:
    strongest = rows["pact"].rank() > 100
    rows["pact"] = [
        f">{8}" if it else f"{value:.2f}" for it, value in zip(strongest, rows["pact"], strict=True)
    ]
    return rows


def _add_salts(rows: pd.DataFrame) -> pd.DataFrame:
    salts = rows.head(20).assign(smiles=rows["smiles"].head(20) + ".Cl")
    return pd.concat([rows, salts], ignore_index=True)


def _shift_units(rows: pd.DataFrame) -> pd.DataFrame:
    rows = _to_nanomolar(rows)
    repeated = rows.head(10).assign(**{"Ki (nM)": rows["Ki (nM)"].head(10) / 1000})
    return pd.concat([rows, repeated], ignore_index=True)


def _blur(rows: pd.DataFrame) -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(0, 0.3, 40)
    repeated = rows.head(40).assign(pact=rows["pact"].head(40) + noise)
    return pd.concat([rows, repeated], ignore_index=True)


def _break_smiles(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(
        smiles=[f"{it}(" if idx % 10 == 0 else it for idx, it in enumerate(rows["smiles"])]
    )


def _name_words(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(y=rows["y"].map({1.0: "active", 0.0: "inactive"}))


def _fill_with_words(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(y=[it if idx % 7 else "not soluble" for idx, it in enumerate(rows["y"])])


def _leave_smiles(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.rename(columns={"smiles": "Canonical_Smiles"})[["y", "Canonical_Smiles"]]


class SpoiledSet(NamedTuple):
    """A set of the shared data, how it is spoiled, and what is expected."""

    description: str
    name: str
    write: Callable[[Path, Path], object]
    topics: set[str]
    options: dict[str, Any] = {}
    needs: str = ""


PACT = {"label_columns": ["pact"], "split_column": "part"}
SPOILED = [
    SpoiledSet(
        "CHEMBL287: Ki in nM",
        "a.csv",
        _spoil("activity/CHEMBL287_Ki.csv", _to_nanomolar),
        {"skew", "units"},
        {"label_columns": ["Ki (nM)"]},
    ),
    SpoiledSet(
        "CHEMBL4203: a third is '>8'",
        "a.csv",
        _spoil("activity/CHEMBL4203_Ki.csv", _censor),
        {"censored"},
        PACT,
    ),
    SpoiledSet(
        "CHEMBL1862: hydrochlorides of 20 rows added",
        "a.csv",
        _spoil("activity/CHEMBL1862_Ki.csv", _add_salts),
        {"fragments", "replicates"},
        {"label_columns": ["pact"]},
    ),
    SpoiledSet(
        "CHEMBL2835: ten rows again in uM",
        "a.csv",
        _spoil("activity/CHEMBL2835_Ki.csv", _shift_units),
        {"jumps"},
        {"label_columns": ["Ki (nM)"]},
    ),
    SpoiledSet(
        "CHEMBL2047: 40 replicates with noise",
        "a.csv",
        _spoil("activity/CHEMBL2047_EC50.csv", _blur),
        {"replicates"},
        {"label_columns": ["pact"]},
    ),
    SpoiledSet(
        "CHEMBL231: semicolons, decimal commas",
        "a.csv",
        _spoil("activity/CHEMBL231_Ki.csv", pd.DataFrame.copy, sep=";", decimal=","),
        {"reading"},
        PACT,
    ),
    SpoiledSet(
        "ESOL: every seventh label is a word",
        "a.csv",
        _spoil("mat_benchmark/esol.csv", _fill_with_words),
        {"cells"},
    ),
    SpoiledSet(
        "FreeSolv: every tenth SMILES is broken",
        "a.csv",
        _spoil("mat_benchmark/freesolv.csv", _break_smiles),
        {"molecules"},
    ),
    SpoiledSet(
        "BBBP: words for classes, Latin-1",
        "a.csv",
        _spoil("mat_benchmark/bbbp.csv", _name_words, encoding="latin-1"),
        {"labels", "fragments"},
        {"problem_type": "classification"},
    ),
    SpoiledSet(
        "Estrogen-beta: Parquet, other names",
        "a.parquet",
        _spoil("mat_benchmark/estrogen-beta.csv", _leave_smiles),
        {"reading", "labels"},
        {"problem_type": "classification"},
    ),
]
