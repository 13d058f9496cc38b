import csv
import json
from pathlib import Path

import rdkit
from tiny_corpus import write_corpus

from rmat_hf import __version__
from rmat_hf.data.corpus_summary import CorpusReport, complete_corpus, describe_corpus

SMILES = ["CCO", "C1CC", "CC2CC", "C,not one"]


def complete(folder: Path) -> None:
    names = [path.name for path in sorted(folder.glob("part-*"))]
    complete_corpus(folder, names, options={"num_rows": len(SMILES), "input": "tiny"})


def test_failures_are_counted_by_reason_and_listed_by_row(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", SMILES, shard_size=2)
    complete(folder)
    with (folder / "failed_rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["row"], row["smiles"]) for row in rows] == [
        ("1", "C1CC"),
        ("2", "CC2CC"),
        ("3", "C,not one"),
    ]
    assert "C1CC" in rows[0]["reason"]
    content = json.loads((folder / "corpus.json").read_text())
    assert list(content["failures"].values()) == [2, 1]
    assert content["num_molecules"] == 1
    assert content["num_failed"] == 3
    assert content["options"] == {"num_rows": 4, "input": "tiny"}
    assert content["versions"] == {"rmat_hf": __version__, "rdkit": rdkit.__version__}
    num_bytes = sum(path.stat().st_size for path in folder.glob("part-*"))
    assert content["bytes_per_molecule"] == num_bytes


def test_card_that_was_edited_stays(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "corpus", SMILES)
    complete(folder)
    assert "data_files: part-*.parquet" in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine")
    complete(folder)
    assert (folder / "README.md").read_text() == "mine"


def test_description_has_the_counts_and_the_most_frequent_reasons() -> None:
    reasons = {f"reason {idx}": 20 - idx for idx in range(12)}
    report = CorpusReport(2, 200, 26, 174, reasons, 166.7)
    lines = describe_corpus(report).splitlines()
    assert lines[0] == "200 rows: 26 molecules, 174 failed, 2 shards, 166.7 bytes per molecule."
    assert lines[1].split() == ["20", "reason", "0"]
    assert lines[-1].split() == ["19", "for", "2", "other", "reasons"]
