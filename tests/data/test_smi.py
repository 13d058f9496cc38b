import gzip
import pickle
from pathlib import Path

import pytest

from rmat_hf.data.smi import open_smi
from rmat_hf.errors import UserError


def test_what_follows_a_smiles_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "in.smi"
    path.write_text("CCO ethanol, pure\n\nC\tmethane\t7 \nN\n")
    table = open_smi(path)
    assert table.num_rows == 3
    assert table.column_names == ["smiles", "smi_name"]
    (chunk,) = table.iterate_chunks(9)
    assert chunk.columns == {
        "smiles": ["CCO", "C", "N"],
        "smi_name": ["ethanol, pure", "methane\t7", None],
    }


def test_smiles_alone_are_one_column_compressed_or_not(tmp_path: Path) -> None:
    path = tmp_path / "in.smi.gz"
    path.write_bytes(gzip.compress(b"CCO\nC\nN\n"))
    table = pickle.loads(pickle.dumps(open_smi(path)))
    chunks = list(table.iterate_chunks(2, ranges=[range(0, 1), range(2, 3)]))
    assert [chunk.columns for chunk in chunks] == [{"smiles": ["CCO"]}, {"smiles": ["N"]}]


def test_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.smi"
    path.write_bytes(b"CCO\n\xff\xfe")
    with pytest.raises(UserError, match=r"in\.smi is not UTF-8 text"):
        open_smi(path)
