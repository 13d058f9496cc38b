import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmat_hf.data.joined_tables import join_tables
from rmat_hf.data.tables import Table, open_table
from rmat_hf.errors import UserError


def write_tables(folder: Path, *texts: str) -> list[Table]:
    tables = []
    for idx, text in enumerate(texts):
        path = folder / f"{idx}.csv"
        path.write_text(text)
        tables.append(open_table(path))
    return tables


def test_rows_follow_each_other_with_the_columns_of_the_first(tmp_path: Path) -> None:
    tables = write_tables(tmp_path, "id,smiles\n1,C\n2,N\n", "smiles,id\nO,3\n", "id,smiles\n4,S\n")
    joined = pickle.loads(pickle.dumps(join_tables(tables, source="x", with_all_columns=False)))
    assert (joined.num_rows, joined.column_names) == (4, ["id", "smiles"])
    assert joined.files == tuple(str(tmp_path / f"{idx}.csv") for idx in range(3))
    chunks = list(joined.iterate_chunks(9))
    assert [chunk.columns["id"] for chunk in chunks] == [["1", "2"], ["3"], ["4"]]
    chunks = list(joined.iterate_chunks(9, ranges=[range(1, 2), range(3, 4)]))
    assert [chunk.columns["smiles"] for chunk in chunks] == [["N"], ["S"]]
    assert chunks[0].source.endswith("0.csv")


def test_column_that_a_file_lacks_is_named(tmp_path: Path) -> None:
    tables = write_tables(tmp_path, "id,smiles\n1,C\n", "smiles\nO\n")
    with pytest.raises(UserError, match=r"1\.csv has no column 'id', unlike .*0\.csv"):
        join_tables(tables, source="x", with_all_columns=False)
    with pytest.raises(UserError, match=r"0\.csv: the column 'id' is string, in .*1\.csv .* none"):
        join_tables(tables[::-1], source="x", with_all_columns=False)


def test_column_that_a_file_lacks_can_be_empty_there(tmp_path: Path) -> None:
    tables = write_tables(tmp_path, "smiles\nC\n", "smiles,mass\nO,16\n")
    joined = join_tables(tables, source="x", with_all_columns=True)
    columns = [chunk.columns for chunk in joined.iterate_chunks(9)]
    assert columns == [{"smiles": ["C"], "mass": [None]}, {"smiles": ["O"], "mass": ["16"]}]


def test_types_that_differ_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{idx}.parquet" for idx in range(2)]
    for path, dtype in zip(paths, (pa.int64(), pa.string()), strict=True):
        pq.write_table(pa.table({"id": pa.array([None], dtype)}), path)
    with pytest.raises(UserError, match=r"'id' is string, in .*0\.parquet it is int64"):
        join_tables([open_table(path) for path in paths], source="x", with_all_columns=True)
