"""The command line and a stranger's folder: one line, exit code 2, nothing run, nothing written."""

import json
import pickle
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hub_server import Hub, run_hub
from malicious import (
    PICKLE_NAMES,
    pickle_the_weights,
    point_the_index_to_a_pickle,
    write_code,
    write_pickle,
)
from processes import TESTS, run_python
from safetensors.torch import load_file, save_file
from tiny_corpus import write_corpus
from tiny_finetuning import TABLE_SMILES, write_table

from rmat_hf.cli import main
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification

Damage = Callable[[Path], object]


class Outcome(NamedTuple):
    exit_code: int
    error: str


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run `rmat` in this process; whatever reaches the real standard error counts."""

    def run(*flags: str | Path) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["rmat", *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else 0, capfd.readouterr().err)

    return run


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A folder that appears if a stranger's code or pickle is executed."""
    return tmp_path / "executed"


def list_commands(folder: Path, tmp_path: Path) -> dict[str, list[str | Path]]:
    """Every verb that loads a model, with small data of its own."""
    table = write_table(tmp_path / "table.csv", {"smiles": TABLE_SMILES, "y": range(12)})
    output = tmp_path / "output"
    model: list[str | Path] = ["--model", folder]
    return {
        "predict": ["predict", *model, "--smiles", "CCO", "--output", f"{output}.csv"],
        "embed": ["embed", *model, "--smiles", "CCO", "--output", f"{output}.parquet"],
        "finetune": [
            *("finetune", *model, "--dataset", table, "--label-columns", "y"),
            *("--output-dir", output, "--feature-cache", "none", "--num-workers", "0"),
        ],
        "pretrain": [
            *("pretrain", *model, "--corpus", tmp_path / "corpus", "--output-dir", output),
            *("--objective", "contexts", "--min-context-count", "1", "--valid-fraction", "0.3"),
        ],
    }


VERBS = ["predict", "embed", "finetune", "pretrain"]
each_verb = pytest.mark.parametrize("verb", VERBS)


def assert_refused(outcome: Outcome, *words: str, tmp_path: Path) -> None:
    """One line on standard error that has the words, exit code 2, and no output."""
    assert outcome.exit_code == 2, outcome.error
    # bars of the data that were read before
    lines = [line for line in outcome.error.split("\n") if line and not line.startswith("\r")]
    assert len(lines) == 1, outcome.error
    assert lines[0].startswith("rmat: error: ")
    assert all(word in lines[0] for word in words), lines[0]
    # the arguments of a run that has not begun
    left = [path.name for path in tmp_path.glob("output*/*")]
    assert left in ([], ["arguments.json"])
    assert [path for path in tmp_path.glob("output*") if path.suffix != ".in_progress"] == []


@each_verb
def test_no_verb_runs_the_code_beside_a_model_or_asks_to(
    verb: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    mark: Path,
    run_cli: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Model and processor say that their code is in the folder, and are of no known kind."""
    write_corpus(tmp_path / "corpus", TABLE_SMILES)
    write_code(tiny_model_folder, mark)
    for name, kind in (("config.json", "model_type"), ("preprocessor_config.json", None)):
        path = tiny_model_folder / name
        content = json.loads(path.read_text())
        content["auto_map"] = dict.fromkeys(content["auto_map"], "evil.Evil")
        if kind is not None:
            content[kind] = "evil"
        path.write_text(json.dumps(content))
    # transformers would ask on the screen
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked to trust the code"))
    outcome = run_cli(*list_commands(tiny_model_folder, tmp_path)[verb])
    assert_refused(outcome, "'evil' model, not R-MAT", tmp_path=tmp_path)
    assert not mark.exists()


def test_the_code_beside_a_model_is_not_run_where_the_package_is(
    tiny_model_folder: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = predict(tiny_model_folder, ["CCO"], device="cpu").values
    write_code(tiny_model_folder, mark)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked to trust the code"))
    assert predict(tiny_model_folder, ["CCO"], device="cpu").values == pytest.approx(expected)
    assert embed(tiny_model_folder, ["CCO"], device="cpu").errors == [None]
    assert not mark.exists()


def test_a_local_model_needs_no_network(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Online, with every connection and every look-up of a name failing."""

    def refuse(*arguments: Any, **_: Any) -> None:
        pytest.fail(f"asked the network: {arguments}")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert predict(tiny_model_folder, ["CCO"], device="cpu").errors == [None]
    assert embed(tiny_model_folder, ["CCO"], device="cpu").errors == [None]


# Damage


def change(name: str, **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def change_config(**changes: Any) -> Damage:
    return change("config.json", **changes)


def change_processor(**changes: Any) -> Damage:
    return change("preprocessor_config.json", **changes)


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(function: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        function(weights)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return damage


NORM = "rmat.final_norm.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "empty config": (write("config.json", b""), "config.json cannot be read"),
    "config of a list": (write("config.json", b"[1]"), "config.json holds no JSON object"),
    "config of a number": (write("config.json", b"3"), "config.json holds no JSON object"),
    "another model": (change_config(model_type="bert"), "'bert' model, not R-MAT"),
    "another size": (change_config(hidden_size=64), "of another shape"),
    "more layers": (change_config(num_hidden_layers=3), "more are missing"),
    "a layer per row": (change_config(num_hidden_layers=200), "too many for its weights"),
    "other atoms": (change_config(num_node_features=40), "40 features of an atom"),
    "a text": (change_config(hidden_size="32"), "expected int, got str"),
    "an odd number": (change_config(hidden_size=33), "hidden_size=33"),
    "another form": (change_config(attention_form="mine"), "got mine"),
    "other labels": (change_config(id2label={"0": "a", "1": "b"}), "has no trained classifier"),
    "empty processor": (
        write("preprocessor_config.json", b""),
        "preprocessor_config.json cannot be read",
    ),
    "processor {}": (write("preprocessor_config.json", b"{}"), "not of R-MAT"),
    "processor of a list": (
        write("preprocessor_config.json", b"[]"),
        "preprocessor_config.json holds no JSON",
    ),
    "another processor": (
        change_processor(feature_extractor_type="ViTFeatureExtractor"),
        "that of a ViTFeatureExtractor",
    ),
    "another geometry": (change_processor(geometry="3d"), "got 3d"),
    "another option": (change_processor(scale=2), "no option 'scale'"),
    "later features": (change_processor(featurizer_version=99), "featurizer version 99"),
    "descriptors": (change_processor(molecule_descriptors=["MolWt"]), "with 1 molecule desc"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors cannot be read"),
    "cut-off weights": (cut_off, "model.safetensors cannot be read"),
    "no weights": (remove("model.safetensors"), "model.safetensors is not there"),
    "no processor": (remove("preprocessor_config.json"), "preprocessor_config.json"),
    "no config": (remove("config.json"), "config.json"),
    "NaN": (change_weights(lambda found: found[NORM].fill_(torch.nan)), f"{NORM} has a value"),
    "infinite": (change_weights(lambda found: found[NORM].fill_(torch.inf)), f"{NORM} has a"),
    "integers": (
        change_weights(lambda found: found.update({NORM: found[NORM].to(torch.int8)})),
        "stored as I8",
    ),
    "missing weight": (change_weights(lambda found: found.pop(NORM)), f"{NORM} and 0 more are mis"),
    "more weights": (
        change_weights(lambda found: found.update({"rmat.x": torch.zeros(1)})),
        "rmat.x and 0 more are missing, left over",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_line_that_names_it(
    damage: Damage,
    reason: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    run_cli: Callable[..., Outcome],
) -> None:
    damage(tiny_model_folder)
    outcome = run_cli(*list_commands(tiny_model_folder, tmp_path)["predict"])
    assert_refused(outcome, reason, str(tiny_model_folder), tmp_path=tmp_path)


@pytest.mark.parametrize("verb", ["finetune", "pretrain"])
@pytest.mark.parametrize("name", ["NaN", "other atoms"])
def test_training_does_not_start_from_a_damaged_model(
    verb: str,
    name: str,
    tiny_model_folder: Path,
    tmp_path: Path,
    run_cli: Callable[..., Outcome],
) -> None:
    damage, reason = DAMAGES[name]
    damage(tiny_model_folder)
    write_corpus(tmp_path / "corpus", TABLE_SMILES)
    outcome = run_cli(*list_commands(tiny_model_folder, tmp_path)[verb])
    assert_refused(outcome, reason, tmp_path=tmp_path)


@pytest.mark.parametrize("verb", ["predict", "finetune"])
def test_credentials_in_the_name_of_a_model_are_not_repeated(
    verb: str, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    flags = list_commands(Path("https://me:s3cr3t@host/model"), tmp_path)[verb]
    outcome = run_cli(*[str(flag).replace("https:/me", "https://me") for flag in flags])
    assert outcome.exit_code == 2
    assert "s3cr3t" not in outcome.error
    assert "https://***@host/model" in outcome.error


def test_credentials_in_the_name_of_a_table_are_not_repeated(
    tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    flags = ["--dataset", "https://me:s3cr3t@host/table.csv", "--label-columns", "y"]
    outcome = run_cli("finetune", *flags, "--output-dir", tmp_path / "output")
    assert outcome.exit_code == 2
    assert "s3cr3t" not in outcome.error
    assert "***@host" in outcome.error


# From the Hub


def publish(hub: Hub, name: str, folder: Path) -> str:
    """Put a folder on the Hub as a stranger would: whatever is in it."""
    repo_id = hub.create({"name": name})["id"]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["models", repo_id].add_commit("main", files)
    return repo_id


@pytest.mark.slow
def test_nothing_of_a_strangers_repository_is_unpickled_or_run(
    tiny_model_folder: Path, tmp_path: Path, mark: Path
) -> None:
    folders = {name: tmp_path / name for name in ("good", "pickled", "indexed", "coded")}
    for folder in folders.values():
        shutil.copytree(tiny_model_folder, folder)
    for name in PICKLE_NAMES:
        if name != "adapter_model.bin":
            write_pickle(folders["good"] / name, mark)
    pickle_the_weights(folders["pickled"], mark)
    point_the_index_to_a_pickle(folders["indexed"], mark)
    write_code(folders["coded"], mark)
    change_config(model_type="evil", auto_map={"AutoConfig": "evil.Evil"})(folders["coded"])
    report, work = tmp_path / "report.json", tmp_path / "work"
    work.mkdir()
    with run_hub() as hub:
        repo_ids = [publish(hub, name, folder) for name, folder in folders.items()]
        online = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        arguments = [TESTS / "hub_stranger.py", report, *repo_ids]
        done = run_python(arguments, folder=work, environment=online)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(report.read_text())
    assert found["opened"] == []
    assert not mark.exists()
    good, pickled, indexed, coded = (found["errors"][repo_id] for repo_id in repo_ids)
    assert good == {}
    for errors in (pickled, indexed):
        assert len(errors) == 2
        assert all("pytorch_model.bin" in error for error in errors.values())
        assert all("run code" in error for error in errors.values())
    assert len(coded) == 2
    assert all("'evil' model, not R-MAT" in coded[name] for name in ("predict", "embed"))


def test_the_classes_alone_take_tensors_from_a_pickle_and_run_nothing_in_it(
    tiny_model_folder: Path, tmp_path: Path, mark: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    pickle_the_weights(folder, mark)
    # transformers unpickles with `weights_only=True`
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        RMatForSequenceClassification.from_pretrained(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        RMatForSequenceClassification.from_pretrained(folder, use_safetensors=True)
    loaded = RMatForSequenceClassification.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert not mark.exists()
