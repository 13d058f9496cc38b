import csv
import gzip
import io
import os
import pickle
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from real_tables import write_workbook

from rmat_hf.data import table_files
from rmat_hf.data.table_files import find_kind, iterate_lines, open_file
from rmat_hf.data.tables import Table, join_tables, validate_columns
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import MoleculeError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


def write_csv(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_all(table: Table, chunk_size: int = 2) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {name: [] for name in table.column_names}
    for chunk in table.iterate_chunks(chunk_size):
        assert list(chunk.columns) == table.column_names
        assert 1 <= chunk.num_rows <= chunk_size
        for name, values in chunk.columns.items():
            assert len(values) == chunk.num_rows
            columns[name] += values.to_pylist()
    return columns


def build_mol(smiles: str, *, name: str = "") -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    mol.SetProp("_Name", name)
    return mol


def write_sdf(path: Path, mols: list[Chem.Mol]) -> Path:
    with Chem.SDWriter(str(path)) as writer:
        for mol in mols:
            writer.write(mol)
    return path


def test_csv_cells_are_the_exact_text(tmp_path: Path) -> None:
    text = 'smiles,id,note\nCCO,007," 1.50 "\nC,,"a ""b"", c"\r\nN,1e3,"two\nlines"\n'
    table = open_file(write_csv(tmp_path, text))
    assert table.num_rows == 3
    assert read_all(table) == {
        "smiles": ["CCO", "C", "N"],
        "id": ["007", "", "1e3"],
        "note": [" 1.50 ", 'a "b", c', "two\nlines"],
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.txt.gz"])
def test_separator_and_encoding_are_found(
    tmp_path: Path, delimiter: str, encoding: str, name: str
) -> None:
    rows = [["smiles", "IC50, µM", "Größe"], ["CCO", "1,5", "é;x"], ["CC|N", "2", ""]]
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    content = stream.getvalue().encode(encoding)
    table = open_file(
        write_csv(tmp_path, gzip.compress(content) if "gz" in name else content, name)
    )
    assert [list(it) for it in zip(*read_all(table).values(), strict=True)] == rows[1:]
    assert table.column_names == rows[0]


def test_what_spreadsheets_add_to_a_csv_is_left_out(tmp_path: Path) -> None:
    text = "sep=;\r\nsmiles;y;;\r\nCCO;1;;\r\nC;2\r\n;;;\r\n"
    table = open_file(write_csv(tmp_path, text))
    assert read_all(table) == {"smiles": ["CCO", "C", ""], "y": ["1", "2", ""]}
    with pytest.raises(UserError, match=r"line 3: 4 cells, .* contain semicolons"):
        open_file(write_csv(tmp_path, "smiles;y\nC;1\nN;1;;x\n"))


def test_sheets_of_one_header_follow_each_other_and_notes_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sheets = {
        "A": [["Assay 7"], [], ["smiles", "y", None], ["CCO", 1.5, None], ["C", None, "x"]],
        "B": [["y", "smiles"], [2, "N"]],
        "Notes": [["by", "day"], ["us", datetime(2020, 5, 1)]],
    }
    path = write_workbook(tmp_path / "table.xlsx", sheets)
    expected = {"smiles": ["CCO", "C", "N"], "y": ["1.5", "", "2"], "sheet": ["A", "A", "B"]}
    table = open_file(path)
    assert read_all(pickle.loads(pickle.dumps(table))) == expected
    assert table.description == "Excel, sheets A, B"
    assert "['Notes']" in caplog.text
    assert read_all(open_file(f"{path}#Notes")) == {"by": ["us"], "day": ["2020-05-01"]}
    with pytest.raises(UserError, match=r"no sheet 'C'\. Its sheets are: A, B, Notes"):
        open_file(f"{path}#C")


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path, b"PK\x03\x04junk", "table.xlsx")
    with pytest.raises(UserError, match=r"table\.xlsx is (no Excel|an Excel workbook, which)"):
        open_file(path)


def test_blank_line_inside_a_one_column_csv_is_a_row(tmp_path: Path) -> None:
    table = open_file(write_csv(tmp_path, "smiles\nC\n\n\nN\n\n\n"))
    assert read_all(table) == {"smiles": ["C", "", "", "N"]}
    assert table.num_rows == 4


@given(
    st.integers(2, 4).flatmap(
        lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1)
    ),
    st.integers(1, 5),
)
def test_every_csv_comes_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], chunk_size: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "table.csv"
    header = [f"column {i}" for i in range(len(rows[0]))]
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    table = open_file(path)
    columns = read_all(table, chunk_size)
    assert table.num_rows == len(rows)
    assert [list(row) for row in zip(*columns.values(), strict=True)] == rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["is blank"]),
        ("\n\n", ["first line is blank"]),
        ("a,b,a\n1,2,3\n", ["two columns are called 'a'", "Rename"]),
        ("a,b\n1,2\n3\n", ["line 3", "1 cells", "header has 2"]),
        ('a,b\n1,"2\n3"\n5,6,7\n', ["line 4", "3 cells"]),
        ('a,b\n1,"2\n3,4\n', ["line 3", "end of data"]),
        (b"a\0b,c\n", ["binary"]),
        ("a\n" + "C" * 200_000 + "\n", ["line 2", "field larger"]),
    ],
)
def test_malformed_csv_is_refused_at_once(
    tmp_path: Path, content: str | bytes, words: list[str]
) -> None:
    path = write_csv(tmp_path, content)
    with pytest.raises(UserError) as caught:
        open_file(path)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in [str(path), *words])


def test_missing_column_lists_the_columns_there_are(tmp_path: Path) -> None:
    table = open_file(write_csv(tmp_path, "SMILES,y\nC,1\n"))
    with pytest.raises(UserError, match=r"no column 'smiles'\. Its columns are: SMILES, y"):
        validate_columns(table.column_names, ["y", "smiles"], source=table.source)
    chunk = next(table.iterate_chunks(1))
    with pytest.raises(UserError, match="no column 'smiles'"):
        chunk.molecules("smiles")


def test_parquet_keeps_its_types_and_missing_values(tmp_path: Path) -> None:
    schema = pa.schema(
        {"smiles": pa.string(), "y": pa.float32(), "n": pa.int16(), "v": pa.list_(pa.int8())}
    )
    columns = {
        "smiles": ["C", None, "N"],
        "y": [0.5, None, 1],
        "n": [1, 2, None],
        "v": [[1], [], None],
    }
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns, schema=schema), path)
    table = open_file(path)
    assert (table.schema, table.num_rows) == (schema, 3)
    assert read_all(table) == columns
    assert next(table.iterate_chunks(3)).molecules("smiles") == ["C", None, "N"]


def test_sdf_gives_structures_with_coordinates_and_properties(tmp_path: Path) -> None:
    mols = [build_mol("CCO", name="ethanol"), build_mol("c1ccccc1")]
    mols[0].SetProp("y", " 1.50")
    mols[1].SetProp("note", "two\nlines")
    table = open_file(write_sdf(tmp_path / "mols.sdf", mols))
    assert table.column_names == ["smiles", "sdf_title", "y", "note"]
    assert table.num_rows == 2
    chunk = next(table.iterate_chunks(5))
    assert chunk.table.to_pydict() == {
        "smiles": ["CCO", "c1ccccc1"],
        "sdf_title": ["ethanol", ""],
        "y": [" 1.50", None],
        "note": [None, "two\nlines"],
    }
    for read, written in zip(chunk.molecules("smiles"), mols, strict=True):
        assert isinstance(read, Chem.Mol)
        difference = read.GetConformer().GetPositions() - written.GetConformer().GetPositions()
        assert read.GetConformer().Is3D()
        assert abs(difference).max() < 1e-4  # four decimals in the file


def test_unreadable_sdf_record_stays_as_a_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = Chem.MolToMolBlock(build_mol("CCO"))
    broken = good.replace(" O ", " Qq ", 1).replace("  9  8", "  x  8")
    path = write_csv(tmp_path, f"{good}>  <y>\n1\n\n$$$$\n{broken}>  <y>\n2\n\n$$$$\n", "mols.sdf")
    table = open_file(path)
    chunk = next(table.iterate_chunks(5))
    assert table.num_rows == chunk.num_rows == 2
    assert chunk.table.to_pydict() == {"smiles": ["CCO", None], "y": ["1", "2"]}
    assert isinstance(chunk.molecules("smiles")[0], Chem.Mol)
    reason = chunk.molecules("smiles")[1].reason
    assert "line 4" in reason and "[" not in reason
    assert capfd.readouterr().err == ""


def test_memory_does_not_grow_with_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    peaks = []
    for num_rows in (5_000, 50_000):
        path.write_text("smiles,y\n" + "CCO,1.5\n" * num_rows)
        tracemalloc.start()
        assert sum(chunk.num_rows for chunk in open_file(path).iterate_chunks(100)) == num_rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("extension", ["csv", "parquet"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_file_that_changes_meanwhile_is_an_error(
    tmp_path: Path, extension: str, num_rows: int
) -> None:
    path = tmp_path / f"table.{extension}"
    write = pacsv.write_csv if extension == "csv" else pq.write_table
    write(pa.table({"smiles": ["C", "N"]}), path)
    table = open_file(path)
    write(pa.table({"smiles": ["C"] * num_rows}), path)
    with pytest.raises(UserError, match=r"has other rows .* changed meanwhile\. Repeat"):
        read_all(table)


def test_columns_that_python_cannot_hold_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    rows = pa.table(
        {
            "smiles": ["C", "N"],
            "day": pa.array([2**30, None], pa.date32()),
            "when": pa.array([1, 2], pa.timestamp("ns", tz="Mars/Phobos")),
            "time": pa.array([1, 2], pa.time64("ns")),
            "view": pa.array(["a", None], pa.string_view()),
            "word": pa.array(["a", "b"]).dictionary_encode(),
        }
    )
    pq.write_table(rows, path)
    (chunk,) = open_file(path).iterate_chunks(9)
    assert chunk.table.equals(rows)
    assert chunk.molecules("smiles") == ["C", "N"]


def test_smiles_too_long_for_any_molecule_is_a_row_without_one(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"smiles": ["C", "C" * 200_000]}), path)
    (chunk,) = open_file(path).iterate_chunks(9)
    short, long = chunk.molecules("smiles")
    assert short == "C"
    assert isinstance(long, MoleculeError) and "bytes" in long.reason


def write_tables(folder: Path, *texts: str) -> list[Table]:
    return [open_file(write_csv(folder, text, f"{i}.csv")) for i, text in enumerate(texts)]


def test_rows_of_joined_tables_follow_each_other_whatever_the_order_of_columns(
    tmp_path: Path,
) -> None:
    parts = write_tables(tmp_path, "id,smiles\n1,C\n2,N\n", "smiles,id\nO,3\n", "id,smiles\n4,S\n")
    joined = pickle.loads(pickle.dumps(join_tables(parts, source="x")))
    assert joined.files == tuple(str(tmp_path / f"{i}.csv") for i in range(3))
    assert [chunk.table.to_pydict() for chunk in joined.iterate_chunks(3)] == [
        {"id": ["1", "2", "3"], "smiles": ["C", "N", "O"]},
        {"id": ["4"], "smiles": ["S"]},
    ]
    assert read_all(joined.select(["smiles"])) == {"smiles": ["C", "N", "O", "S"]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.CSV", ".csv"), ("a.sdf.gz", ".sdf"), ("a.parquet", ".parquet"), ("b/a.smi", ".smi")]
    + [(name, None) for name in ("a.parquet.gz", "a.gz", "csv", "a.zip", "a.csv.zip", "s3://a")],
)
def test_kind_of_a_file_is_told_by_its_name(name: str, kind: str | None) -> None:
    assert find_kind(name) == kind


def test_what_follows_a_smiles_in_a_smi_file_is_a_column(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "CCO ethanol, pure\n\nC\tmethane\t7 \nN\n", "in.smi")
    assert read_all(open_file(path)) == {
        "smiles": ["CCO", "C", "N"],
        "smi_name": ["ethanol, pure", "methane\t7", None],
    }
    path = write_csv(tmp_path, gzip.compress(b"CCO\nC\n"), "in.smi.gz")
    assert read_all(pickle.loads(pickle.dumps(open_file(path)))) == {"smiles": ["CCO", "C"]}


@pytest.mark.parametrize("content", [b"", b"smiles,y\nC,1\n", b"PAR1xxPAR1", None])
def test_damaged_parquet_is_an_error_and_no_short_table(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"smiles": ["C" * (i % 9 + 1) for i in range(5000)]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\xff" * 192 + whole[200:] if content is None else content)
    with pytest.raises(UserError, match="cannot be read"):
        read_all(open_file(path), 1000)


def test_column_that_a_file_lacks_or_has_with_another_type_is_named(tmp_path: Path) -> None:
    parts = write_tables(tmp_path, "id,smiles\n1,C\n", "smiles\nO\n")
    for parts_ in (parts, parts[::-1]):
        with pytest.raises(UserError, match=r"1\.csv: column 'id' is missing, .*same columns"):
            join_tables(parts_, source="x")
    for i, kind in enumerate((pa.int32(), pa.int64())):
        pq.write_table(pa.table({"y": pa.array([1], kind)}), tmp_path / f"{i}.parquet")
    parts = [open_file(tmp_path / f"{i}.parquet") for i in range(2)]
    with pytest.raises(UserError, match=r"0\.parquet: column 'y' is int32, .* int64"):
        join_tables(parts, source="x")


def test_sdf_property_that_is_named_is_the_smiles_and_structures_stay(tmp_path: Path) -> None:
    mol = build_mol("CCO")
    for name in ("smiles", "parent"):
        mol.SetProp(name, "OCC")
    (chunk,) = open_file(write_sdf(tmp_path / "mols.sdf", [mol])).iterate_chunks(9)
    assert chunk.table.to_pydict() == {"smiles": ["OCC"], "parent": ["OCC"]}
    assert isinstance(chunk.molecules("smiles")[0], Chem.Mol)
    assert chunk.molecules("parent") == ["OCC"]


# Text


def test_lines_come_with_their_own_ends(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    path.write_bytes(b"\xef\xbb\xbfa\nb\r\nc\rd\n\ne")
    assert list(iterate_lines(path)) == ["a\n", "b\r\n", "c\r", "d\n", "\n", "e"]


def test_an_endless_line_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_files, "MAX_LENGTH", 1000)
    path = tmp_path / "lines.csv"
    path.write_text("C" * 998 + "\n" + "N" * 998)
    assert len(list(iterate_lines(path))) == 2
    path.write_text("\n" + "C" * 10_000)
    with pytest.raises(ValueError, match="line 2 has more than 1000 characters"):
        list(iterate_lines(path))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04", "an Excel workbook. Name a workbook .xlsx"),
        (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        (b"\x1f\x8b\x08\0", "Name it .csv.gz or decompress it"),
        (b"PAR1", "Name it .parquet"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "sdf", "smi"])
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, suffix: str, start: bytes, words: str
) -> None:
    path = tmp_path / f"table.{suffix}"
    path.write_bytes(start + b"\0\x01rest")
    with pytest.raises(UserError, match=words):
        open_file(path)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet", "sdf", "smi", "smi.gz"])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_may_never_end_is_refused_at_once(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"x.{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # the absolute path may be too long
    with pytest.raises(UserError, match=r"x\.\S+ is a folder, a pipe"):
        open_file(path)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root, who may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "sdf"])
def test_a_file_without_permission_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"secret.{suffix}"
    path.write_text("smiles\nCCO\n")
    path.chmod(0)
    with as_nobody(), pytest.raises(UserError, match=r"cannot be read: .*Permission denied"):
        open_file(path)
