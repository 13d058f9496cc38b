"""A molecule that ends the process which featurizes it is a row with a reason, in every screen."""

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rdkit import Chem
from tiny import TINY_SMILES

from rmat_hf.inference.screening import PredictionArguments, run_embedding, run_prediction
from rmat_hf.model.processing_rmat import RMatProcessor

DEADLY = {"[Og]": "segfault", "[Ts]": "kill"}
REASONS = {
    "segfault": r"the process that featurizes it was killed by signal 11 (Segmentation fault)",
    "kill": r"the process that featurizes it was killed by signal 9 (Killed)",
}
OPTIONS = {"shard_size": 6, "chunk_size": 4, "batch_size": 3}
ROWS = {4: "[Og]", 6: "[Ts]", 7: "[Og]", 16: "[Ts]"}
NUM_ROWS = 23


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Stand for RDKit, which crashes, and for the kernel, which kills what takes all memory."""
    compute = RMatProcessor.featurize_compactly

    def featurize_or_die(processor: RMatProcessor, molecule: Any) -> Any:
        text = molecule if isinstance(molecule, str) else getattr(molecule, "smiles", "")
        end = DEADLY.get(text)
        if end == "segfault":
            faulthandler.disable()  # pytest's would fill the log
            ctypes.string_at(0)
        elif end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(processor, molecule)

    monkeypatch.setattr(RMatProcessor, "featurize_compactly", featurize_or_die)
    return monkeypatch


def screen(
    model: Path, library: Path, output: Path, *, run: Any = run_prediction, **options: Any
) -> Any:
    arguments = {"model": str(model), "input": str(library), "output": str(output)}
    return run(PredictionArguments(**arguments, **(OPTIONS | options)))


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


@pytest.mark.slow
def test_deadly_rows_of_a_folder_have_a_reason_and_the_others_their_bytes(
    deadly: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows=ROWS)
    result = screen(tiny_model_folder, library, tmp_path / "screen", num_workers=2)
    assert list_processes() == []
    assert multiprocessing.active_children() == []
    assert (result.num_rows, result.num_failed, result.is_complete) == (NUM_ROWS, 4, True)
    summary = json.loads((tmp_path / "screen" / "summary.json").read_text())
    assert summary["num_failed"] == 4
    rows = read_rows(tmp_path / "screen")
    for row, molecule in ROWS.items():
        assert rows[row]["smiles"] == molecule
        assert rows[row]["error"].startswith(REASONS[DEADLY[molecule]])

    # a molecule that fails in the usual way takes its place in no batch either
    write_library(library, deadly_rows=dict.fromkeys(ROWS, "C1CC"))
    deadly.undo()
    screen(tiny_model_folder, library, tmp_path / "healthy")
    expected = read_rows(tmp_path / "healthy")
    for row in set(range(NUM_ROWS)) - set(ROWS):
        assert rows[row] == expected[row]
    last = "part-00003.parquet"
    assert (tmp_path / "screen" / last).read_bytes() == (tmp_path / "healthy" / last).read_bytes()


@pytest.mark.slow
def test_deadly_rows_of_one_file_of_embeddings_and_of_the_best_have_a_reason(
    deadly: pytest.MonkeyPatch, tiny_model_folder: Path, tmp_path: Path
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows=ROWS)
    for run in (run_prediction, run_embedding):
        output = tmp_path / f"{run.__name__}.parquet"
        result = screen(tiny_model_folder, library, output, run=run)
        assert (result.num_rows, result.num_failed) == (NUM_ROWS, 4)
        errors = pq.read_table(output)["error"].to_pylist()
        assert {row for row, error in enumerate(errors) if error} == set(ROWS)
        assert all(errors[row].startswith(REASONS[DEADLY[ROWS[row]]]) for row in ROWS)
    result = screen(tiny_model_folder, library, tmp_path / "best", top_k=30)
    assert (result.num_rows, result.num_failed, result.num_written) == (NUM_ROWS, 4, NUM_ROWS - 4)
    best = pq.read_table(tmp_path / "best" / "top.parquet")["row"].to_pylist()
    assert sorted(best) == sorted(set(range(NUM_ROWS)) - set(ROWS))
    assert list_processes() == []


@pytest.mark.slow
def test_bytes_are_those_of_a_screen_without_workers(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    library = write_library(tmp_path / "library.parquet", deadly_rows={5: "C1CC"})
    sdf = Path(__file__).parent / "golden" / "reference" / "grover_pool" / "molecules.sdf"
    assert Chem.SDMolSupplier(str(sdf))[0].GetNumConformers() == 1
    for source in (library, sdf):
        found = []
        for number in (0, 2):
            output = tmp_path / f"{source.stem}-{number}"
            screen(tiny_model_folder, source, output, run=run_embedding, num_workers=number)
            found.append({path.name: path.read_bytes() for path in output.iterdir()})
        assert found[0] == found[1]
