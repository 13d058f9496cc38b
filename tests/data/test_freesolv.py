"""The bundled FreeSolv data set is what its README says."""

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest
from rdkit import Chem

FREESOLV_DIR = Path(__file__).resolve().parents[2] / "rmat_hf" / "data" / "freesolv"
SPLIT_COLUMNS = [f"split_{idx}" for idx in range(6)]


@pytest.fixture(scope="module")
def freesolv_rows() -> list[dict[str, str]]:
    with (FREESOLV_DIR / "freesolv.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_freesolv_has_the_checksum_in_its_readme() -> None:
    readme = (FREESOLV_DIR / "README.md").read_text(encoding="utf-8")
    checksum = hashlib.sha256((FREESOLV_DIR / "freesolv.csv").read_bytes()).hexdigest()
    assert re.findall(r"`([0-9a-f]{64})`", readme) == [checksum]


def test_freesolv_rows_are_distinct_molecules(freesolv_rows: list[dict[str, str]]) -> None:
    assert list(freesolv_rows[0]) == ["smiles", "hydration_free_energy", *SPLIT_COLUMNS]
    mols = [Chem.MolFromSmiles(row["smiles"]) for row in freesolv_rows]
    assert len({Chem.MolToSmiles(mol) for mol in mols}) == 642


@pytest.mark.parametrize("split_column", SPLIT_COLUMNS)
def test_freesolv_splits_are_80_10_10(
    freesolv_rows: list[dict[str, str]], split_column: str
) -> None:
    sizes = Counter(row[split_column] for row in freesolv_rows)
    assert sizes == {"train": 513, "valid": 64, "test": 65}


def test_freesolv_agrees_with_the_standardized_benchmark_file(
    freesolv_rows: list[dict[str, str]], shared_dir: Path
) -> None:
    benchmark = shared_dir / "data" / "mat_benchmark" / "freesolv.csv"
    with benchmark.open(encoding="utf-8", newline="") as file:
        for row, standardized in zip(freesolv_rows, csv.DictReader(file), strict=True):
            energy = 3.8448 * float(standardized.pop("y")) - 3.8030
            assert float(row["hydration_free_energy"]) == pytest.approx(energy, abs=2e-4)
            assert {name: row[name] for name in standardized} == standardized
