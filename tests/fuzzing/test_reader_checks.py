"""Every seed and every input that was once a crash, through the checks of the fuzzer."""

from pathlib import Path

import pytest
from reader_checks import CHECKS

INPUTS = sorted((Path(__file__).parent / "inputs").glob("*/*"))


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_readers_keep_their_word(path: Path, tmp_path: Path) -> None:
    CHECKS[path.parent.name](path.read_bytes(), tmp_path)


def test_every_reader_has_inputs() -> None:
    assert {path.parent.name for path in INPUTS} == set(CHECKS)


@pytest.mark.parametrize(
    ("reader", "data"),
    [
        ("csv", b"smiles,y\nC,1\n\nN,2\n"),
        ("sdf", b"a\n$$$$\nM  END\n$$$$\n"),
        ("smi", b"C\n\nN x\n"),
    ],
)
def test_a_reader_that_loses_a_row_is_caught(
    reader: str, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    CHECKS[reader](data, tmp_path)
    monkeypatch.setattr("rmat_hf.data.tables.Table.iterate_chunks", lambda *_: iter(()))
    with pytest.raises(AssertionError):
        CHECKS[reader](data, tmp_path)
