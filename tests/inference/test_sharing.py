"""A pushed model tells of its training what was chosen, and works for whoever finds it."""

import filecmp
import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments

import rmat_hf.model
from rmat_hf import predict, push_folder
from rmat_hf.errors import UserError
from rmat_hf.training.finetuning import run_finetuning

CODE = Path(rmat_hf.model.__file__).parent
REPO = "chemist/solubility"
# no digit of them is in a metric by chance
LABELS = [round(0.7310457 * idx**1.3 - 2.0913, 7) for idx in range(len(TABLE_SMILES))]
# the molecules of every card's example, whatever a model was trained on
EXAMPLES = {"CCO", "c1ccccc1"}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    columns: dict[str, Any] = {"y": LABELS, "part": TABLE_PARTS}
    options: dict[str, Any] = {"num_train_epochs": 1, "license": "mit", "with_baselines": True}
    run_finetuning(build_tiny_arguments(folder, columns, **options))
    return folder / "run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the client of the Hub puts what it is given; its calls are in `hub_calls`."""
    target = tmp_path / "hub"

    def upload(_: HfApi, *, folder_path: Path, repo_id: str, **options: Any) -> Any:
        shutil.copytree(folder_path, target / repo_id)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    def create(_: HfApi, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        (target / repo_id.split("/")[0]).mkdir(parents=True)
        (target / "private").write_text(str(private))

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "create_repo", create)
    return target


def list_tokens(folder: Path) -> set[str]:
    """What stands between spaces, quotes and commas of all files but the package's own code."""
    tokens: set[str] = set()
    for path in (it for it in folder.rglob("*") if it.is_file()):
        if (CODE / path.name).is_file() and filecmp.cmp(path, CODE / path.name, shallow=False):
            continue
        tokens |= set(re.split(r"[\s\"',`]+", path.read_bytes().decode("latin-1")))
    return tokens


@pytest.mark.parametrize(
    ("share", "present", "absent"),
    [
        ("model", [], ["metrics.json", "finetuning_arguments.json", "predictions.csv"]),
        (
            "metrics",
            ["metrics.json", "baselines.json", "training_log.json"],
            ["parity.png", "report.md", "worst_molecules.svg"],
        ),
        (
            "molecules",
            [*("predictions.csv", "split.csv", "dropped_rows.csv", "parity.png"), "report.md"],
            [],
        ),
    ],
)
def test_what_leaves_is_what_was_chosen_and_is_listed_first(
    share: str, present: list[str], absent: list[str], run_folder: Path, hub: Path
) -> None:
    listed: list[tuple[str, bool]] = []
    push = push_folder(
        run_folder,
        REPO,
        share=share,
        report_progress=lambda text: listed.append((text, hub.exists())),
    )
    pushed = {it.relative_to(hub / REPO).as_posix() for it in (hub / REPO).rglob("*.*")}
    assert pushed == set(push.files)
    assert {"model.safetensors", "README.md", "handler.py", "modeling_rmat.py"} <= pushed
    assert set(present) <= pushed and not set(absent) & pushed
    ((text, was_sent),) = listed
    assert not was_sent and all(f"  {name}" in text for name in [*push.files, *push.kept])
    own = {it.name for it in run_folder.iterdir() if it.is_file()}
    assert own <= set(push.files) | set(push.kept)


@pytest.mark.parametrize("share", ["model", "molecules"])
def test_fingerprints_leave_only_with_the_molecules(
    share: str, run_folder: Path, hub: Path
) -> None:
    push = push_folder(run_folder, REPO, share=share)
    first, second = (predict(it, TABLE_SMILES) for it in (run_folder, hub / REPO))
    np.testing.assert_allclose(first.values, second.values, rtol=1e-6)
    with safe_open(hub / REPO / "model.safetensors", framework="pt") as file:
        is_there = any("fingerprints" in name for name in file.keys())  # noqa: SIM118 - no mapping
    assert is_there == (second.novelty is not None) == (share == "molecules")
    assert ("trust_head" in push.kept) != is_there


@pytest.mark.parametrize("share", ["model", "metrics", "molecules"])
def test_molecules_and_labels_leave_only_if_they_are_shared(
    share: str, run_folder: Path, hub: Path
) -> None:
    push_folder(run_folder, REPO, share=share)
    tokens = list_tokens(hub / REPO)
    told = (tokens & {*TABLE_SMILES}) - EXAMPLES
    told_labels = tokens & {str(label) for label in LABELS}
    if share == "molecules":
        assert told == {*TABLE_SMILES} - EXAMPLES and len(told_labels) == len(LABELS)
    else:
        assert not told and not told_labels


def test_the_card_of_a_push_is_complete_and_names_no_file_that_stays(
    run_folder: Path, hub: Path
) -> None:
    push = push_folder(run_folder, REPO)
    card = ModelCard.load(hub / REPO / "README.md")
    assert (card.data.license, card.data.library_name) == ("mit", "transformers")
    metrics = json.loads((run_folder / "metrics.json").read_text())["test"]
    found = {it.metric_type: it.metric_value for it in card.data.eval_results}
    assert found["rmse"] == pytest.approx(metrics["rmse"], abs=1e-4)
    assert {"rmse", "mae", "r2"} <= set(found)
    assert f'pipeline(model="{REPO}"' in card.text and "path/to/this/folder" not in card.text
    assert not any(f"`{name}`" in card.text or f"({name})" in card.text for name in push.kept)
    assert "molecules: 8 train, 2 valid, 2 test;" in card.text


def test_results_on_a_data_set_of_the_hub_go_to_its_leaderboard_and_a_lost_card_is_rebuilt(
    run_folder: Path, hub: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(run_folder, folder)
    (folder / "README.md").unlink()
    path = folder / "finetuning_arguments.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "chemist/solubilities"}))
    push_folder(folder, REPO, private=True)
    assert (hub / "private").read_text() == "True"
    results = ModelCard.load(hub / REPO / "README.md").data.eval_results
    assert {it.dataset_type for it in results} == {"chemist/solubilities"}
    text = (hub / REPO / ".eval_results" / "rmat_hf.yaml").read_text()
    assert "id: chemist/solubilities" in text and "rmse" in text


def test_a_pushed_folder_predicts_as_before_and_its_handler_answers(
    run_folder: Path, hub: Path
) -> None:
    push_folder(run_folder, REPO)
    expected = predict(run_folder, ["CCN", "CCOC"]).values
    found = predict(hub / REPO, ["CCN", "CCOC"]).values
    own, pushed = (load_file(it / "model.safetensors") for it in (run_folder, hub / REPO))
    assert all(torch.equal(weight, own[name]) for name, weight in pushed.items())
    # kernels round by where the weights lie in the file
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    spec = importlib.util.spec_from_file_location("handler", hub / REPO / "handler.py")
    assert spec is not None and spec.loader is not None
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    answer = handler.EndpointHandler(str(hub / REPO))({"inputs": ["CCN", "C1CC", "CCOC"]})
    assert json.loads(json.dumps(answer)) == answer
    values = [it["predictions"][0]["value"] for it in answer if it["error"] is None]
    assert values == pytest.approx(expected[:, 0].tolist(), abs=1e-5)  # float32
    assert answer[1]["predictions"] is None and "C1CC" in answer[1]["error"]
    requirements = (hub / REPO / "requirements.txt").read_text().splitlines()
    assert [re.split("[<>=~]", line)[0] for line in requirements] == ["rdkit", "transformers"]


def test_git_leaves_out_the_files_of_a_run_that_have_molecules(run_folder: Path) -> None:
    ignored = set((run_folder / ".gitignore").read_text().split())
    texts = {it.name: it.read_bytes() for it in run_folder.glob("*.*")}
    with_molecules = {name for name, text in texts.items() if b"CC1CCOCC1" in text}
    assert {"predictions.csv", "split.csv"} <= with_molecules <= ignored
    drawn = {"parity.png", "roc_and_calibration.png", "error_by_novelty.png"}
    drawn |= {"worst_molecules.svg", "report.md"}
    assert ignored == {"predictions.csv", "split.csv", "dropped_rows.csv"} | drawn


def test_a_dry_run_sends_nothing(run_folder: Path, hub: Path) -> None:
    push = push_folder(run_folder, REPO, dry_run=True)
    assert push.url is None and not hub.exists()
    assert {"predictions.csv", "split.csv", "dropped_rows.csv", "metrics.json"} <= set(push.kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": "all"}, "Choose one of model, metrics, molecules"),
        ({"repo_id": "a/b/c"}, "'a/b/c'"),
        ({"folder": "no/such/folder"}, "no/such/folder has no model"),
    ],
)
def test_a_wrong_argument_is_one_line_and_nothing_is_sent(
    options: dict[str, Any], message: str, run_folder: Path, hub: Path
) -> None:
    arguments: dict[str, Any] = {"folder": run_folder, "repo_id": REPO, **options}
    with pytest.raises(UserError, match=message) as caught:
        push_folder(arguments.pop("folder"), arguments.pop("repo_id"), **arguments)
    assert "\n" not in str(caught.value) and not hub.exists()


@pytest.mark.parametrize(
    ("error", "way_out", "other"),
    [
        (OfflineModeIsEnabled("unset HF_HUB_OFFLINE."), r"OFFLINE\. .*connection", "auth login"),
        (LocalTokenNotFoundError("no token"), "auth login", "connection"),
    ],
)
def test_a_push_that_fails_names_one_way_out(
    error: Exception, way_out: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(UserError, match=way_out) as caught:
        push_folder("rmat-small", REPO)
    assert other not in str(caught.value)


def test_a_model_of_the_package_gets_code_and_a_card_that_says_how_to_use_it(hub: Path) -> None:
    push = push_folder("rmat-small", REPO, share="metrics")
    config = json.loads((hub / REPO / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_rmat.RMatModel"
    assert {path.name for path in CODE.glob("*_rmat.py")} <= set(push.files)
    card = ModelCard.load(hub / REPO / "README.md")
    assert card.data.license == "apache-2.0" and card.text.count("# rmat-small\n") == 1
    assert f'pipeline(model="{REPO}", trust_remote_code=True)' in card.text
    assert "(loss_curves.png)" in card.text and "loss_curves.png" in push.files


def test_what_nobody_knows_stays(run_folder: Path, hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(run_folder, folder)
    (folder / "checkpoint-1").mkdir()
    for name in ("notes.txt", "training_args.bin", "my.csv", "checkpoint-1/model.safetensors"):
        (folder / name).write_bytes(b"secret")
    push = push_folder(folder, REPO, share="molecules")
    stays = {"notes.txt", "training_args.bin", "my.csv", "checkpoint-1/model.safetensors"}
    assert stays <= set(push.kept) and not stays & set(push.files)
