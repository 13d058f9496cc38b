"""A molecule that ends the process which featurizes it is a row with a reason, in every screen."""

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.data import featurization
from rmat_hf.data.screen_folder import ERROR_COLUMN
from rmat_hf.data.top_rows import TopRows
from rmat_hf.inference import screening
from rmat_hf.inference.screening import run_embedding, run_prediction
from rmat_hf.inference.screening_options import ScreeningOptions
from rmat_hf.inference.sharded_screening import ScreenModel

DEADLY = {"[Og]": "segfault", "[Ts]": "kill"}
REASONS = {
    "segfault": r"the process that featurizes it was killed by signal 11 (Segmentation fault)",
    "kill": r"the process that featurizes it was killed by signal 9 (Killed)",
}
OPTIONS = ScreeningOptions(shard_size=6, chunk_size=4, batch_size=3)
ROWS = {4: "[Og]", 6: "[Ts]", 7: "[Og]", 16: "[Ts]"}
NUM_ROWS = 23

compute_features = featurization._featurize
load_prediction = screening._load_prediction
load_embedding = screening._load_embedding


def featurize_or_die(job: Any, processor: Any) -> Any:
    """Stand for RDKit, which crashes, and for the kernel, which kills what takes all memory."""
    end = DEADLY.get(job[0])
    if end == "segfault":
        faulthandler.disable()  # pytest's would fill the log
        ctypes.string_at(0)
    elif end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return compute_features(job, processor)


def load_deadly_prediction(*arguments: Any, **options: Any) -> ScreenModel:
    """Load a model in whatever process; some molecules are deadly there from then on."""
    vars(featurization)["_featurize"] = featurize_or_die
    return load_prediction(*arguments, **options)


def load_deadly_embedding(*arguments: Any, **options: Any) -> ScreenModel:
    vars(featurization)["_featurize"] = featurize_or_die
    return load_embedding(*arguments, **options)


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(featurization, "_featurize", compute_features)  # and back at the end
    monkeypatch.setattr(screening, "_load_prediction", load_deadly_prediction)
    monkeypatch.setattr(screening, "_load_embedding", load_deadly_embedding)
    return monkeypatch


def write_library(path: Path, *, deadly_rows: dict[int, str]) -> Path:
    smiles = [TINY_SMILES[row % len(TINY_SMILES)] for row in range(NUM_ROWS)]
    for row, molecule in deadly_rows.items():
        smiles[row] = molecule
    pq.write_table(pa.table({"smiles": smiles}), path)
    return path


def read_rows(folder: Path) -> list[dict[str, Any]]:
    shards = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    return pa.concat_tables(shards).to_pylist()


def list_processes() -> list[str]:
    """The processes below this one, but the one of multiprocessing that counts its semaphores."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    return [command for command in commands if "resource_tracker" not in command]


@pytest.mark.parametrize("num_proc", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
def test_deadly_rows_of_a_folder_have_a_reason_and_the_others_their_bytes(
    deadly: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path, num_proc: int
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows=ROWS)
    options = replace(OPTIONS, num_proc=num_proc)
    result = run_prediction(tiny_model_folder, library, output=tmp_path / "screen", options=options)
    assert list_processes() == []
    assert multiprocessing.active_children() == []
    assert (result.num_rows, result.num_failed, result.is_complete) == (NUM_ROWS, 4, True)
    summary = json.loads((tmp_path / "screen" / "summary.json").read_text())
    assert summary["num_failed"] == 4
    rows = read_rows(tmp_path / "screen")
    for row, molecule in ROWS.items():
        assert rows[row]["smiles"] == molecule
        assert rows[row][ERROR_COLUMN].startswith(REASONS[DEADLY[molecule]])

    # a molecule that fails in the usual way takes its place in no batch either
    write_library(library, deadly_rows=dict.fromkeys(ROWS, "C1CC"))
    deadly.setattr(screening, "_load_prediction", load_prediction)
    run_prediction(tiny_model_folder, library, output=tmp_path / "healthy", options=OPTIONS)
    expected = read_rows(tmp_path / "healthy")
    for row in set(range(NUM_ROWS)) - set(ROWS):
        assert rows[row] == expected[row]
    last = "part-00003.parquet"
    assert (tmp_path / "screen" / last).read_bytes() == (tmp_path / "healthy" / last).read_bytes()


@pytest.mark.slow
def test_folder_with_deadly_rows_has_the_same_bytes_from_one_process_and_two(
    deadly: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows=ROWS)
    found = []
    for num_proc in (1, 2):
        output = tmp_path / str(num_proc)
        options = replace(OPTIONS, num_proc=num_proc)
        run_prediction(tiny_model_folder, library, output=output, options=options)
        found.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert found[0] == found[1]
    assert len(found[0]) == 6


def test_deadly_rows_of_one_file_and_of_embeddings_have_a_reason(
    deadly: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows=ROWS)
    for run in (run_prediction, run_embedding):
        output = tmp_path / f"{run.__name__}.parquet"
        result = run(tiny_model_folder, library, output=output, options=OPTIONS)
        assert (result.num_rows, result.num_failed) == (NUM_ROWS, 4)
        errors = pq.read_table(output)[ERROR_COLUMN].to_pylist()
        assert {row for row, error in enumerate(errors) if error} == set(ROWS)
        assert all(errors[row].startswith(REASONS[DEADLY[ROWS[row]]]) for row in ROWS)
    assert list_processes() == []


def test_deadly_rows_are_counted_where_only_the_best_are_kept(
    deadly: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows=ROWS)
    options = replace(OPTIONS, top_rows=TopRows(30))
    result = run_prediction(tiny_model_folder, library, output=tmp_path / "best", options=options)
    assert (result.num_rows, result.num_failed, result.num_written) == (NUM_ROWS, 4, NUM_ROWS - 4)
    best = pq.read_table(tmp_path / "best" / "top.parquet")["row"].to_pylist()
    assert sorted(best) == sorted(set(range(NUM_ROWS)) - set(ROWS))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_bytes_are_those_of_a_screen_without_workers(
    tiny_model_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows={5: "C1CC"})
    sdf = Path(__file__).parent / "golden" / "reference" / "grover_pool" / "molecules.sdf"
    assert Chem.SDMolSupplier(str(sdf))[0].GetNumConformers() == 1
    for source in (library, sdf):
        found = []
        for number in (0, num_workers):
            output = tmp_path / f"{source.stem}-{number}"
            options = replace(OPTIONS, num_workers=number)
            run_embedding(tiny_model_folder, source, output=output, options=options)
            found.append({path.name: path.read_bytes() for path in output.iterdir()})
        assert found[0] == found[1]
