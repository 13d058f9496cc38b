import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rmat_hf.data import tables
from rmat_hf.data.sources import open_table
from rmat_hf.data.tables import iterate_lines
from rmat_hf.errors import UserError


def test_lines_come_with_their_own_ends(tmp_path: Path) -> None:
    path = tmp_path / "lines.csv"
    path.write_bytes(b"\xef\xbb\xbfa\nb\r\nc\rd\n\ne")
    assert list(iterate_lines(path)) == ["a\n", "b\r\n", "c\r", "d\n", "\n", "e"]


def test_an_endless_line_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_LENGTH", 1000)
    path = tmp_path / "lines.csv"
    path.write_text("C" * 998 + "\n" + "N" * 998)
    assert len(list(iterate_lines(path))) == 2
    path.write_text("\n" + "C" * 10_000)
    with pytest.raises(ValueError, match="line 2 has more than 1000 characters"):
        list(iterate_lines(path))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04", "an Excel workbook. Save the table as CSV"),
        (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
        (b"\x1f\x8b\x08\0", "Name it .csv.gz or decompress it"),
        (b"PAR1", "Name it .parquet"),
        (b"\xff\xfes\0", "UTF-16"),
        (b"\xfe\xff\0s", "UTF-16"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "sdf", "smi"])
def test_a_file_of_another_kind_is_named_for_what_it_is(
    tmp_path: Path, suffix: str, start: bytes, words: str
) -> None:
    path = tmp_path / f"table.{suffix}"
    path.write_bytes(start + b"\0\x01rest")
    with pytest.raises(UserError, match=words):
        open_table(path)


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
        open_table(path)


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
        open_table(path)
