"""A long table of labels, and the corpus that carries them."""

from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rmat_hf.data.assay_labels import AssayLabels, read_assay_labels
from rmat_hf.data.corpus import FeaturizationArguments, load_corpus, run_featurization
from rmat_hf.errors import UserError

ROWS: list[tuple[Any, ...]] = [
    ("OCC", "solubility", "value", "=", 1.0),
    # the same molecule again: their mean; the bound beside them says less
    ("CCO", "solubility", "value", "~", 3.0),
    ("CCO", "solubility", "value", ">", 9.0),
    ("CCO", "toxic", "class", "=", 1.0),
    ("CC", "solubility", "value", "<=", 5.0),
    ("C1", "solubility", "value", "=", 5.0),
    ("CCC", "solubility", "value", "=", None),
]
EXPECTED = {
    "CC": AssayLabels(["solubility"], ["<"], [5.0]),
    "CCO": AssayLabels(["solubility", "toxic"], ["=", "class"], [2.0, 1.0]),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_labels(folder: Path, name: str = "labels.csv", **changed: Any) -> Path:
    path = folder / name
    table = pd.DataFrame(ROWS, columns=["smiles", "assay", "kind", "relation", "value"])
    table = table.assign(**changed)
    if path.suffix == ".parquet":
        table.astype({"smiles": "category", "assay": "category"}).to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_labels_are_found_by_molecule_whatever_the_smiles(tmp_path: Path, name: str) -> None:
    assert read_assay_labels(str(write_labels(tmp_path, name))) == EXPECTED


def test_smiles_assay_and_value_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("smiles,assay,value\nOCC,mine,2.5\n")
    assert read_assay_labels(str(path)) == {"CCO": AssayLabels(["mine"], ["="], [2.5])}


@pytest.mark.parametrize("changed", [{"relation": "about"}, {"kind": "colour"}])
def test_what_nobody_knows_is_refused(tmp_path: Path, changed: dict[str, str]) -> None:
    (value,) = changed.values()
    with pytest.raises(UserError, match=f"'{value}'.*Known"):
        read_assay_labels(str(write_labels(tmp_path, **changed)))


def test_a_corpus_carries_the_labels_of_its_molecules(tmp_path: Path) -> None:
    (tmp_path / "molecules.csv").write_text("smiles\nC(C)O\nC(\nCC\nc1ccccc1\n")
    arguments = {"input": str(tmp_path / "molecules.csv"), "geometry": "2d", "shard_size": 2}
    arguments |= {"output_dir": str(tmp_path / "corpus"), "labels": str(write_labels(tmp_path))}
    report = run_featurization(FeaturizationArguments(**arguments))
    assert (report.num_molecules, report.num_failed) == (3, 1)
    expected = [*reversed(EXPECTED.values()), AssayLabels([], [], [])]
    for streaming in (False, True):
        rows = list(load_corpus(tmp_path / "corpus", streaming=streaming).dataset)
        names = [f"label_{name}" for name in AssayLabels._fields]
        assert [tuple(row[name] for name in names) for row in rows] == expected
    # repeated it is the same folder; with other labels it is another one
    first = pq.read_schema(tmp_path / "corpus" / "part-00000.parquet")
    run_featurization(FeaturizationArguments(**arguments))
    assert pq.read_schema(tmp_path / "corpus" / "part-00000.parquet") == first
    write_labels(tmp_path, kind="value")
    with pytest.raises(UserError, match="other options"):
        run_featurization(FeaturizationArguments(**arguments))
