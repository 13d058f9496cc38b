"""What must hold for any bytes that a reader gets; each check takes the bytes of one input.

A check returns when the input was read or refused as documented. Whatever else is raised is a bug.
"""

import codecs
import csv
import gzip
import io
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rdkit import Chem

from rmat_hf.data.sources import open_table
from rmat_hf.data.table_files import compute_record_smiles, find_dialect, parse_mol_block
from rmat_hf.data.tables import Table
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import MAX_REASON, Molecule, MoleculeError
from rmat_hf.model.geometry_rmat import ConformerError
from rmat_hf.model.processing_rmat import RMatProcessor

Check = Callable[[bytes, Path], None]

PROCESSOR = RMatProcessor(geometry="2d", max_atoms=64)


def validate_message(message: str) -> None:
    """An error of a row or a file is one line that says something."""
    assert message.strip() and len(message.splitlines()) == 1, repr(message)


def featurize(molecule: Molecule) -> None:
    """Featurize, or be refused in a short line."""
    try:
        features, source = PROCESSOR.featurize(molecule)
    except (MoleculeError, ConformerError) as error:
        validate_message(error.reason)
        assert len(error.reason) <= MAX_REASON + 3
        return
    assert source == "2d"
    assert len({len(features[name]) for name in ("node_features", "bond_types")}) == 1
    assert np.isfinite(features["interatomic_distances"]).all()


def check_smiles(data: bytes, folder: Path) -> None:
    """Any text as a SMILES: no letter of it may be skipped."""
    smiles = data.decode("utf-8", "replace")
    featurize(smiles)
    core = smiles.strip().split(" ")[0]
    if not core.isascii():
        try:
            PROCESSOR.featurize(smiles)
        except MoleculeError:
            return
        raise AssertionError(f"read in part: {smiles!r}")


def check_mol_block(data: bytes, folder: Path) -> None:
    """Any text as a mol block."""
    mol = parse_mol_block(data.decode("utf-8", "replace"))
    smiles = compute_record_smiles(mol)
    if isinstance(mol, MoleculeError):
        validate_message(mol.reason)
        assert smiles is None
        return
    featurize(mol)
    Chem.Mol(mol.ToBinary())  # as it travels to the processes that featurize


def read_all(table: Table, chunk_size: int) -> int:
    """Return the number of rows after a look at each, all of which must be whole."""
    num_rows = 0
    for chunk in table.iterate_chunks(chunk_size):
        assert list(chunk.columns) == table.column_names
        assert {len(values) for values in chunk.columns.values()} <= {chunk.num_rows}
        num_rows += chunk.num_rows
    return num_rows


def check_table(data: bytes, path: Path, count_records: Callable[[bytes], int]) -> None:
    """A table of a file: all of its records or a `UserError`."""
    path.write_bytes(data)
    try:
        table = open_table(path)
        counts = {table.num_rows, read_all(table, 2), read_all(table, 1000)}
    except UserError as error:
        validate_message(str(error).replace(str(path), path.name))
        return
    assert counts == {count_records(data)}, (counts, count_records(data))


def decode(data: bytes) -> str:
    """Return text in the encodings that are read, in their order."""
    if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return data.decode("utf-16")
    for encoding in ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            return data.decode(encoding)
    return data.decode("latin-1")


def count_csv_records(data: bytes, path: Path) -> int:
    """Count by a reader of the whole text at once, blank lines as documented."""
    text, delimiter = io.StringIO(decode(data), newline=""), find_dialect(path).delimiter
    header, *rows = csv.reader(text, delimiter=delimiter)
    if len(header) == 1:
        while rows and not rows[-1]:
            rows.pop()
        return len(rows)
    return sum(bool(row) for row in rows)


def count_sdf_records(data: bytes) -> int:
    """Count the separators, and what is left if it is not blank."""
    text = re.sub(r"\r\n?", "\n", decode(data))
    *records, rest = re.split(r"^\$\$\$\$.*\n?", text, flags=re.MULTILINE)
    return len(records) + any(line.strip() for line in rest.split("\n"))


def check_csv(data: bytes, folder: Path) -> None:
    """Any bytes as a CSV file."""
    path = folder / "in.csv"
    check_table(data, path, lambda data: count_csv_records(data, path))


def check_csv_gz(data: bytes, folder: Path) -> None:
    """Any bytes as a compressed CSV file."""
    path = folder / "in.csv.gz"
    check_table(data, path, lambda data: count_csv_records(gzip.decompress(data), path))


def check_sdf(data: bytes, folder: Path) -> None:
    """Any bytes as an SDF file."""
    check_table(data, folder / "in.sdf", count_sdf_records)


def check_parquet(data: bytes, folder: Path) -> None:
    """Any bytes as a Parquet file."""
    path = folder / "in.parquet"
    check_table(data, path, lambda data: pq.read_table(path).num_rows)


def check_smi(data: bytes, folder: Path) -> None:
    """Any bytes as a file of SMILES."""
    path = folder / "in.smi"
    path.write_bytes(data)
    if data in (b"\xef", b"\xef\xbb"):  # half a byte order mark, which Python reads as nothing
        return
    try:
        table = open_table(path)
        chunks = list(table.iterate_chunks(1000))
        rows = [text for chunk in chunks for text in chunk.molecules("smiles")]
    except UserError as error:
        validate_message(str(error).replace(str(path), path.name))
        return
    lines = re.split(r"\r\n|\r|\n", decode(data))
    assert rows == [line.split()[0] for line in lines if line.strip()]
    assert len(rows) == table.num_rows


CHECKS: dict[str, Check] = {
    "smiles": check_smiles,
    "mol_block": check_mol_block,
    "csv": check_csv,
    "csv_gz": check_csv_gz,
    "sdf": check_sdf,
    "smi": check_smi,
    "parquet": check_parquet,
}
