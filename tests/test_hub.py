"""Sharing over HTTP: real clients in their own processes against a Hub on this machine."""

import csv
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_publisher import PROCESSOR_OPTIONS
from hub_server import DATA, MODEL, PARTS, PRIVATE, TOKEN, USER, Hub, run_hub
from outsider import BAD_SMILES
from processes import TESTS, run_python
from saved_folder import REPO_ROOT, assert_folder_is_self_contained
from tiny import TINY_SMILES
from tiny_finetuning import TABLE_SMILES
from transformers import AutoProcessor, Trainer, TrainingArguments

from rmat_hf.inference.prediction import embed, predict
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning

RMAT = "import sys; from rmat_hf.cli import main; sys.argv[0] = 'rmat'; main()"
CODE = REPO_ROOT / "rmat_hf" / "model"
TOLERANCE = 1e-6
SHIFT = 100.0  # of the second version's predictions

RunProcess = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with run_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def run_online(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> RunProcess:
    """Run Python against the Hub, with empty caches and without a token unless given one."""

    def run(
        *arguments: str | Path, token: str = "", blocked: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
        folder = tmp_path_factory.mktemp("online")
        return run_python(arguments, folder=folder, blocked=blocked, environment=online)

    return run


@pytest.fixture(scope="module")
def published(run_online: RunProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the author of the models sees after publishing them."""
    report = tmp_path_factory.mktemp("published") / "report.json"
    done = run_online(TESTS / "hub_publisher.py", report, token=TOKEN)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def visit_folder(
    published: dict[str, Any], run_online: RunProcess, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What a stranger without the package and without a token gets."""
    folder = tmp_path_factory.mktemp("visit")
    done = run_online(TESTS / "hub_visitor.py", folder, blocked=("rmat_hf",))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def visited(visit_folder: Path) -> dict[str, Any]:
    return json.loads((visit_folder / "report.json").read_text(encoding="utf-8"))


def read_values(results: list[dict[str, Any]]) -> list[float]:
    return [
        entry["value"]
        for result in results
        if result["error"] is None
        for entry in result["predictions"]
    ]


# The options of the processor


def assert_options_survived(saved: dict[str, Any]) -> None:
    assert {name: saved[name] for name in PROCESSOR_OPTIONS} == PROCESSOR_OPTIONS


def test_every_option_of_the_processor_survives_a_trainer_checkpoint(
    tiny_model: RMatForSequenceClassification, tmp_path: Path
) -> None:
    processor = RMatProcessor(**PROCESSOR_OPTIONS)

    def collate(rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        batch = processor([row["smiles"] for row in rows], return_tensors="pt")
        return {**batch, "labels": torch.ones(len(rows), 1)}

    options = {"max_steps": 1, "save_steps": 1, "report_to": "none", "use_cpu": True}
    trainer = Trainer(
        tiny_model,
        TrainingArguments(str(tmp_path), remove_unused_columns=False, **options),
        train_dataset=[{"smiles": smiles} for smiles in TINY_SMILES],
        data_collator=collate,
        processing_class=processor,
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    assert_options_survived(AutoProcessor.from_pretrained(checkpoint).to_dict())
    assert_folder_is_self_contained(checkpoint, "RMatForSequenceClassification")


@pytest.mark.slow
def test_every_option_of_the_processor_survives_the_hub(
    published: dict[str, Any], visited: dict[str, Any]
) -> None:
    for options in (published["processor"], published["extractor"], visited["parts_options"]):
        assert_options_survived(options)


# Publishing


@pytest.mark.slow
def test_a_pushed_repository_has_weights_options_code_and_card(
    hub: Hub, published: dict[str, Any]
) -> None:
    assert published["user"] == "chemist"
    assert published["tags"] == ["v1"]
    files = published["files"]
    assert {"README.md", "config.json", "preprocessor_config.json"} <= set(files)
    assert {"model.safetensors", "modeling_rmat.py", "pipeline_rmat.py"} <= set(files)
    # neither the pipeline nor the model replaced the card
    assert published["card"]["pipeline_tag"] == "graph-ml"
    assert published["card"]["datasets"] == [DATA]
    repository = hub.repositories["models", MODEL]
    assert b"# Tiny solubility model" in repository.find_commit("main").files["README.md"]
    assert hub.repositories["models", PRIVATE].is_private


@pytest.mark.slow
@pytest.mark.parametrize(("repo_id", "revision"), [(MODEL, "v1"), (MODEL, "main"), (PARTS, "main")])
def test_a_pushed_repository_is_self_contained(
    repo_id: str, revision: str, hub: Hub, published: dict[str, Any], tmp_path: Path
) -> None:
    assert published
    for path, content in hub.repositories["models", repo_id].find_commit(revision).files.items():
        (tmp_path / path).write_bytes(content)
    assert_folder_is_self_contained(tmp_path, "RMatForSequenceClassification")


# Using what others published


@pytest.mark.slow
@pytest.mark.parametrize("version", ["pinned", "latest"])
def test_a_pipeline_from_the_hub_needs_no_package_and_no_task(
    version: str, visited: dict[str, Any]
) -> None:
    assert visited["import_error"] == "No module named 'rmat_hf'"
    pipe = visited[version]
    assert pipe["task"] == "molecule-property-prediction"
    single, batched = read_values(pipe["single"]), read_values(pipe["batched"])
    assert len(single) == len(TINY_SMILES)
    tolerance = TOLERANCE * (SHIFT if version == "latest" else 1)  # float32
    assert batched == pytest.approx(single, abs=tolerance)
    for results in (pipe["single"], pipe["batched"]):
        assert results[3]["predictions"] is None
        assert BAD_SMILES in results[3]["error"]
        assert results[0]["predictions"][0]["label"] == "logS"
        assert results[0]["predictions"][0]["unit"] == "log(mol/l)"


@pytest.mark.slow
def test_a_revision_pins_the_model(visited: dict[str, Any]) -> None:
    pinned = read_values(visited["pinned"]["single"])
    latest = read_values(visited["latest"]["single"])
    assert latest == pytest.approx([value + SHIFT for value in pinned], abs=1e-4)
    assert "v9" in visited["unknown_revision"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["from_pipeline", "from_parts"])
def test_what_came_from_the_hub_is_self_contained_when_saved(part: str, visit_folder: Path) -> None:
    folder = visit_folder / part
    assert_folder_is_self_contained(folder, "RMatForSequenceClassification")
    for path in folder.glob("*.json"):
        assert MODEL not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_parts_data_and_secrets_come_as_published(visited: dict[str, Any]) -> None:
    assert visited["parts"]["predictions"][0]["unit"] == "log(mol/l)"
    expected = [{"smiles": TABLE_SMILES[idx], "y": float(idx)} for idx in range(10)]
    assert visited["streamed"] == expected
    assert PRIVATE in visited["private"]


# The command line


@pytest.mark.slow
def test_predicting_with_a_private_model_and_no_token_is_a_one_line_error(
    published: dict[str, Any], run_online: RunProcess, tmp_path: Path
) -> None:
    flags = ["--model", PRIVATE, "--smiles", "CCO", "--output", tmp_path / "predictions.csv"]
    done = run_online("-c", RMAT, "predict", *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rmat: error: ") and PRIVATE in lines[0]
    assert not (tmp_path / "predictions.csv").exists()


@pytest.mark.slow
def test_predicting_with_a_pinned_model_from_the_hub(
    visited: dict[str, Any], run_online: RunProcess, tmp_path: Path
) -> None:
    output = tmp_path / "predictions.csv"
    flags = ["--model", MODEL, "--revision", "v1", "--smiles", *TINY_SMILES, "--output", output]
    done = run_online("-c", RMAT, "predict", *flags)
    assert done.returncode == 0, done.stderr
    with output.open(newline="", encoding="utf-8") as stream:
        values = [float(row["prediction_logS"]) for row in csv.DictReader(stream)]
    expected = read_values(visited["pinned"]["single"])
    assert values == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.slow
def test_finetuning_a_model_from_the_hub_on_data_from_the_hub(
    published: dict[str, Any], run_online: RunProcess, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ["--model", PRIVATE, "--dataset", DATA, "--label-columns", "y", "--output-dir", run]
    flags += ["--num-train-epochs", "1", "--num-workers", "0", "--batch-size", "4"]
    flags += ["--feature-cache", "none"]
    done = run_online("-c", RMAT, "finetune", *flags, token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert_folder_is_self_contained(run, "RMatForSequenceClassification")
    arguments = json.loads((run / "finetuning_arguments.json").read_text())
    assert (arguments["model"], arguments["dataset"]) == (PRIVATE, DATA)
    config = json.loads((run / "config.json").read_text())
    assert config["id2label"] == {"0": "y"}
    assert predict(run, ["CCO"]).errors == [None]


# Features that somebody has shared


@pytest.mark.slow
def test_a_model_finetuned_from_pushed_features_is_that_of_the_table(
    run_online: RunProcess, tmp_path: Path
) -> None:
    done = run_online(TESTS / "hub_featurizer.py", tmp_path, token=TOKEN)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["processor"] == report["expected"]
    features = report["row"]["features"]
    assert len(features["atom_codes"]) == report["row"]["num_nodes"] - 1
    for name in ("metrics.json", "model.safetensors", "predictions.csv"):
        table, stream, hub = (tmp_path / it / name for it in ("table", "stream", "hub"))
        assert table.read_bytes() == stream.read_bytes() == hub.read_bytes(), name
    assert report["pretraining"]["contexts"]["num_centers"] > 0


# rmat push, on real data


@pytest.fixture(scope="module")
def freesolv_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model finetuned on FreeSolv for an epoch."""
    folder = tmp_path_factory.mktemp("freesolv") / "run"
    options: dict[str, Any] = {"split": "column", "split_column": "split_0", "geometry": "bounds"}
    run_finetuning(
        FinetuningArguments(
            dataset="freesolv",
            label_columns=["hydration_free_energy"],
            output_dir=str(folder),
            num_train_epochs=1,
            feature_cache="none",
            license="cc-by-4.0",
            **options,
        )
    )
    return folder


def read_repository(hub: Hub, repo_id: str) -> dict[str, bytes]:
    return hub.repositories["models", repo_id].find_commit("main").files


def find_told(files: dict[str, bytes], smiles: list[str]) -> set[str]:
    """Search bytes for molecules, in texts as words too: a few letters are in any weights."""
    told: set[str] = set()
    for name, content in files.items():
        path = CODE / name
        if path.is_file() and path.read_bytes() == content:
            continue  # the package's own code, the same beside every model
        is_text = not name.endswith((".safetensors", ".png"))
        words = set(re.split(rb"[\s\"',`]+", content)) if is_text else set()
        told |= {it for it in smiles if it.encode() in (words if len(it) < 7 else content)}
    return told


@pytest.mark.slow
def test_a_push_shares_no_training_molecule_and_a_stranger_loads_it(
    hub: Hub, run_online: RunProcess, freesolv_run: Path, tmp_path: Path
) -> None:
    whole, shared, pretrained = f"{USER}/whole", f"{USER}/freesolv", f"{USER}/rmat-small"
    done = run_online("-c", RMAT, "push", freesolv_run, shared, token=TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Stays here:") < done.stdout.index("Wrote http")
    done = run_online(
        "-c", RMAT, "push", freesolv_run, whole, "--share", "molecules", "--private", token=TOKEN
    )
    assert done.returncode == 0, done.stderr
    script = REPO_ROOT / "scripts" / "publish_checkpoint.py"
    done = run_online(script, "rmat-small", pretrained, token=TOKEN)
    assert done.returncode == 0, done.stderr

    with (freesolv_run / "split.csv").open(newline="", encoding="utf-8") as stream:
        smiles = [row["smiles"] for row in csv.DictReader(stream)]
    assert len(smiles) > 600
    # the search finds what is there: all molecules, where they were shared
    assert find_told(read_repository(hub, whole), smiles) == {*smiles}
    assert hub.repositories["models", whole].is_private
    # the two of the example in every card, whatever a model was trained on, and the names of
    # elements in its domain, which are methane, ammonia and hydrogen sulfide too
    told = find_told(read_repository(hub, shared), smiles)
    assert told <= {"CCO", "c1ccccc1", "C", "N", "S"}

    report_file = tmp_path / "report.json"
    guest = TESTS / "hub_guest.py"
    done = run_online(guest, report_file, shared, pretrained, blocked=("rmat_hf",))
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert report["import_error"] == "No module named 'rmat_hf'"
    (index,) = report["card"]["model-index"]
    metrics = {it["type"]: it["value"] for it in index["results"][0]["metrics"]}
    expected = json.loads((freesolv_run / "metrics.json").read_text())["test"]
    assert metrics["rmse"] == pytest.approx(expected["rmse"], abs=1e-4)
    assert index["results"][0]["dataset"]["name"] == "freesolv"
    assert (report["card"]["license"], report["card"]["pipeline_tag"]) == ("cc-by-4.0", "graph-ml")
    values = predict(freesolv_run, ["CCN", "CCOC"]).values[:, 0].tolist()
    for results in (report["pipeline"], report["endpoint"]):
        assert [it["error"] is None for it in results] == [True, False, True]
        assert read_values(results) == pytest.approx(values, abs=1e-4)
    assert report["AutoModel"] == ["RMatModel", []]
    assert report["AutoModelForPreTraining"] == ["RMatForPreTraining", []]
    vectors = [it["embedding"] for it in report["vectors"] if it["error"] is None]
    torch.testing.assert_close(
        torch.tensor(vectors),
        torch.from_numpy(embed("rmat-small", ["CCN", "CCOC"]).values),
        rtol=0,
        atol=1e-4,
    )


# Adapters


@pytest.mark.slow
def test_an_adapter_is_used_by_its_name_with_its_base_beside_it(
    run_online: RunProcess, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    done = run_online(TESTS / "hub_adapter.py", tmp_path, USER, token=TOKEN)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert "model.safetensors" not in report["files"]
    assert {"adapter_config.json", "config.json", "README.md"} <= {*report["files"]}
    for way in ("predict", "class", "pipeline"):
        for found, expected in zip(report[way], report["expected"], strict=True):
            assert found == pytest.approx(expected, abs=1e-4), way
    assert report["labels"] == ["dG"]
    assert report["vector"] == [2, 512]
    # the head that the base lacks is that of the adapter
    assert "MISSING" not in done.stderr
