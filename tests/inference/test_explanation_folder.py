"""`rmat explain`: the rows and reasons of `rmat predict`, the same bytes, pictures and a page."""

import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import TINY_SMILES

from rmat_hf.errors import UserError
from rmat_hf.inference.explanation_folder import ExplanationArguments, run_explanation
from rmat_hf.inference.screening import PredictionArguments, run_prediction

NUM_ROWS = 11
PREDICTION = "prediction_LABEL_0"
SMALL: dict[str, Any] = {"shard_size": 4, "chunk_size": 3, "num_workers": 0}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    smiles = [TINY_SMILES[row % len(TINY_SMILES)] for row in range(NUM_ROWS)]
    smiles[3::4] = ["C1CC", None]
    path = tmp_path / "library.parquet"
    pq.write_table(pa.table({"id": range(NUM_ROWS), "smiles": smiles}), path)
    return path


@pytest.fixture
def run(tiny_model_folder: Path, library: Path, tmp_path: Path) -> Any:
    def explain(name: str = "why", **changes: Any) -> Path:
        options = {"model": str(tiny_model_folder), "input": str(library), **SMALL, **changes}
        run_explanation(ExplanationArguments(output=str(tmp_path / name), **options))
        return tmp_path / name

    return explain


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_rows_are_those_of_predict_and_a_run_that_broke_off_continues(
    run: Any, tiny_model_folder: Path, library: Path, tmp_path: Path
) -> None:
    folder = run(by=["fragment"])
    files = read_files(folder)
    shards = [f"part-{idx:05}.parquet" for idx in range(3)]
    rows = pa.concat_tables([pq.read_table(folder / name) for name in shards])
    predicted = tmp_path / "predicted"
    arguments = {"model": str(tiny_model_folder), "input": str(library), "output": str(predicted)}
    run_prediction(PredictionArguments(**arguments, **SMALL))
    expected = pa.concat_tables([pq.read_table(predicted / name) for name in shards])
    assert rows["error"].to_pylist() == expected["error"].to_pylist()
    assert rows.select(expected.column_names[:-1]).equals(expected.drop_columns("error"))
    for row in rows.to_pylist():
        assert (row["picture"] is None) == (row["error"] is not None)
        if row["error"] is None:
            total = row["baseline"] + sum(row["atom_contributions"]) + row["residual"]
            assert total == pytest.approx(row[PREDICTION], abs=1e-5)
    (folder / shards[1]).unlink()
    (folder / "index.html").unlink()
    assert read_files(run(by=["fragment"])) == files


def test_the_page_and_the_pictures_are_of_the_molecules_of_interest(run: Any) -> None:
    folder = run(num_pictures=2)
    values = pa.concat_tables([pq.read_table(it) for it in sorted(folder.glob("*.parquet"))])
    predictions = values[PREDICTION].drop_null().to_numpy()
    page = (folder / "index.html").read_text(encoding="utf-8")
    # one molecule in several rows has values that differ by rounding
    shown = [
        values[PREDICTION][int(row)].as_py() for row in re.findall(r"<b>(\d+)</b> <code>", page)
    ]
    assert shown == pytest.approx([predictions.max(), predictions.min()], abs=1e-5)
    assert page.count("<article>") == len(list((folder / "pictures").iterdir())) == 2
    for path in (folder / "pictures").iterdir():
        ET.fromstring(path.read_text(encoding="utf-8"))


def test_a_picture_names_a_label_that_was_learned_as_a_logarithm_once(
    run: Any, tiny_model_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    fields = {"id2label": {"0": "IC50 (nM)"}, "label2id": {"IC50 (nM)": 0}}
    config |= {**fields, "label_units": ["nM"], "label_transforms": ["pIC50"]}
    path.write_text(json.dumps(config))
    folder = run(model=str(tmp_path / "model"), num_pictures=1)
    (picture,) = (it.read_text(encoding="utf-8") for it in (folder / "pictures").iterdir())
    title = re.search(r">(IC50 \(nM\):[^<]*)<", picture)
    assert title is not None
    assert re.fullmatch(r"IC50 \(nM\): pIC50 -?[\d.e+-]+", title[1])


@pytest.mark.slow
def test_the_best_rows_alone_are_explained(run: Any) -> None:
    folder = run("best", top_k=3, top_k_order="ascending", counterfactuals=2)
    best = pq.read_table(folder / "top.parquet")
    values = best[PREDICTION].to_numpy()
    everything = run("all")
    tables = [pq.read_table(it) for it in sorted(everything.glob("*.parquet"))]
    others = pa.concat_tables(tables)[PREDICTION].drop_null().to_numpy()
    assert np.allclose(values, np.sort(others)[:3], atol=1e-6)
    for row in best.to_pylist():
        changes = row["counterfactual_changes"]
        assert len(changes) == len(row["counterfactuals"]) <= 2
        assert [abs(it) for it in changes] == sorted(map(abs, changes), reverse=True)
    assert (folder / "index.html").read_text(encoding="utf-8").count("<article>") == 3


def test_a_file_or_an_unknown_label_is_refused_before_the_work(run: Any, tmp_path: Path) -> None:
    # a page and pictures are a folder, which is what the help of the flag says
    with pytest.raises(UserError, match=r"why\.csv.*folder.*as why\."):
        run("why.csv")
    with pytest.raises(UserError, match="--output-format csv"):
        run(output_format="csv")
    (told,) = (it.metadata["help"] for it in fields(ExplanationArguments) if it.name == "output")
    assert "folder" in told.lower() and ".csv" not in told
    with pytest.raises(UserError, match="LABEL_0"):
        run(label="logS")
    assert not (tmp_path / "why").exists()
