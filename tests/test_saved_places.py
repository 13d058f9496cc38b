"""What is written for others tells nothing about this machine, its user or credentials."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from machine import BenchmarkArguments, run_benchmark
from tiny import TINY_SMILES
from tiny_evaluation import build_tiny_evaluation, build_tiny_protocol
from tiny_finetuning import TABLE_SMILES, build_tiny_arguments, write_table
from tiny_pretraining import build_pretraining_arguments

from rmat_hf.data.corpus import FeaturizationArguments, run_featurization
from rmat_hf.evaluation.accuracy_benchmark import run_accuracy_benchmark
from rmat_hf.inference.conversion import convert_checkpoint
from rmat_hf.inference.screening import PredictionArguments, run_embedding, run_prediction
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.pretraining import run_pretraining

GOLDEN = Path(__file__).parent / "golden" / "reference" / "mean_pool"
TOKEN = "hf_" + "LeakyToken" * 3
SECRET = "s3cr3tPassw0rd"
HOST, USER = "telltale-host", "telltale-user"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose name gives it away, for a user who is logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@proxy:1")
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, USER)
    place = tmp_path / "Telltale Folder"
    place.mkdir()
    return place


def iterate_values(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and what is compressed in it."""
    yield path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield str(table.schema.metadata).encode()
        for column in table.columns:
            if pa.types.is_string(column.type):
                yield "\n".join(str(value) for value in column.to_pylist()).encode()


def assert_nothing_is_told(folder: Path, *, name: str = "") -> None:
    """No file of a folder, or its name, tells where it was made, or by whom."""
    traces = ["Telltale Folder", "Telltale%20Folder", TOKEN, SECRET, str(Path.home()) + "/"]
    traces += [os.getcwd(), HOST, USER]
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 0
    for path in paths:
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl"}, path.name
        for trace in traces:
            assert trace not in str(path.relative_to(folder)), f"{name}: {path.name}: {trace}"
            for value in iterate_values(path):
                assert trace.encode() not in value, f"{name}: {path.name} tells {trace}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"with_baselines": True}, {"num_members": 2}], ids=["baselines", "ensemble"]
)
def test_a_finetuned_folder_tells_nothing(options: dict[str, Any], place: Path) -> None:
    columns: dict[str, Any] = {"y": range(len(TABLE_SMILES))}
    columns |= {"part": ["train"] * 8 + ["valid"] * 2 + ["test"] * 2}
    run_finetuning(build_tiny_arguments(place, columns, num_train_epochs=1, **options))
    assert_nothing_is_told(place / "run")
    model = str(place / "run") if "num_members" not in options else "rmat-small"
    again = {"model": model, "output_dir": str(place / "again"), "num_train_epochs": 1}
    run_finetuning(build_tiny_arguments(place, columns, **again))
    assert_nothing_is_told(place / "again")


def test_a_corpus_and_a_pretrained_folder_tell_nothing(place: Path) -> None:
    pytest.importorskip("tensorboard")
    smiles = [*TINY_SMILES, "not a molecule", *TABLE_SMILES]
    table = write_table(place / "molecules.csv", {"smiles": smiles})
    run_featurization(
        FeaturizationArguments(
            input=str(table), output_dir=str(place / "corpus"), geometry="bounds"
        )
    )
    assert_nothing_is_told(place / "corpus")
    arguments = build_pretraining_arguments(
        place,
        objective="contexts",
        num_train_epochs=1,
        num_evaluations=1,
        min_context_count=1,
        valid_fraction=0.3,
        report_to=["tensorboard"],
    )
    run_pretraining(arguments)
    assert_nothing_is_told(place / "run")


def test_tables_and_reports_tell_nothing(place: Path, tiny_model_folder: Path) -> None:
    outputs = place / "outputs"
    outputs.mkdir()
    table = write_table(place / "molecules.csv", {"smiles": [*TINY_SMILES, "no molecule"]})
    for run, name in (
        (run_prediction, "p.csv"),
        (run_prediction, "p.parquet"),
        (run_embedding, "e.parquet"),
    ):
        files = {"input": str(table), "output": str(outputs / name)}
        run(PredictionArguments(model=str(tiny_model_folder), **files))
    run_benchmark(
        BenchmarkArguments(
            model=str(tiny_model_folder),
            input=str(table),
            num_molecules=4,
            repeats=1,
            what=["forward"],
            output_json=str(outputs / "speed.json"),
        )
    )
    weights, config = GOLDEN / "reference_state_dict.safetensors", GOLDEN / "reference_config.json"
    convert_checkpoint(weights, config).save(outputs / "converted")
    assert_nothing_is_told(outputs)


@pytest.mark.slow
def test_an_accuracy_benchmark_tells_nothing_even_of_runs_that_fail(place: Path) -> None:
    protocol = build_tiny_protocol(place)
    model = protocol["models"]["tiny"]
    broken = str(place / "no model")
    protocol["models"] = {"tiny": model, "broken": {"model": broken, "geometry": "bounds"}}
    arguments = build_tiny_evaluation(place, protocol)
    assert not run_accuracy_benchmark(arguments)["is_complete"]
    # a log beside the runs is for the user of this machine
    for path in (place / "out").rglob("*.log"):
        path.unlink()
    assert_nothing_is_told(place / "out")
