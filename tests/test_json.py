"""`--json` of every verb, and SKILL.md, which says what it prints and whose examples run."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_ARCHITECTURE
from tiny_evaluation import build_tiny_protocol, save_protocol
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, write_table
from tiny_pretraining import ARCHITECTURE as PRETRAINED_ARCHITECTURE
from tiny_pretraining import write_pretraining_corpus

from rmat_hf import __version__
from rmat_hf.cli import VERBS, main

REPO_ROOT = Path(__file__).resolve().parents[1]
SKILL = (REPO_ROOT / "SKILL.md").read_text(encoding="utf-8")
ALWAYS = ["verb", "version", "exit_code"]
GOLDEN = REPO_ROOT / "tests" / "golden" / "reference" / "mean_pool"


def read_schema() -> dict[str, list[str]]:
    """Return the keys of every verb, as SKILL.md lists them."""
    schema = {}
    for verbs, keys in re.findall(r"^\| (`[a-z`, ]+`) \| (`\w+`.*) \|$", SKILL, re.M):
        schema |= dict.fromkeys(re.findall(r"\w+", verbs), re.findall(r"`(\w+)`", keys))
    return schema


def run_json(
    words: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, Any]:
    """Run a command with --json and return what it prints, which is one object with its code."""
    monkeypatch.setattr(sys, "argv", ["rmat", *map(str, words), "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["exit_code"] == (end.value.code or 0), found
    assert (found["verb"], found["version"]) == (words[0], __version__)
    return dict(found)


def test_every_verb_has_its_keys_in_the_skill_and_a_command_here() -> None:
    assert read_schema().keys() == VERBS.keys() == (COMMANDS | LONG_COMMANDS).keys()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    columns = {"smiles": TABLE_SMILES, "y": range(len(TABLE_SMILES)), "part": TABLE_PARTS}
    write_table(tmp_path / "table.csv", columns)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_ARCHITECTURE))
    (tmp_path / "pretraining.json").write_text(json.dumps(PRETRAINED_ARCHITECTURE))
    return tmp_path


COMMANDS = {
    "predict": "--model tiny_model --smiles CCO C1CC --output out.csv",
    "embed": "--model rmat-small --smiles CCO --output out.parquet",
    "check": "table.csv",
    "push": "tiny_model me/model --dry-run",
    "demo": "space --model tiny_model",
    "convert": f"--weights {GOLDEN}/reference_state_dict.safetensors "
    f"--config {GOLDEN}/reference_config.json --output-dir converted",
}
LONG_COMMANDS = {
    "explain": "--model tiny_model --smiles CCO --output explained",
    "featurize": "--input table.csv --geometry bounds --num-proc 0 --output-dir corpus",
    "finetune": "--dataset table.csv --label-columns y --split column --split-column part "
    "--model scratch --model-config tiny.json --geometry bounds --num-train-epochs 1 "
    "--head network --output-dir run",
    "export": "--model tiny_model --output-dir exported",
    "evaluate": "--model tiny_model --input table.csv --label-columns y",
    "pretrain": "--corpus corpus --model scratch --model-config pretraining.json --max-steps 2 "
    "--min-context-count 2 --valid-fraction 0.2 --output-dir pretrained",
    "benchmark": "--data data --protocol protocol.json --output-dir compared",
}
# what has to be there
PREPARATIONS: dict[str, Callable[[Path], Any]] = {
    "pretrain": lambda folder: write_pretraining_corpus(folder / "corpus"),
    "benchmark": lambda folder: save_protocol(folder, build_tiny_protocol(folder, baselines=[])),
}


@pytest.mark.parametrize(
    "verb",
    [*COMMANDS, *(pytest.param(verb, marks=pytest.mark.slow) for verb in LONG_COMMANDS)],
)
def test_json_has_the_keys_that_the_skill_lists(
    verb: str,
    folder: Path,
    tiny_model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    PREPARATIONS.get(verb, str)(folder)
    words = shlex.split((COMMANDS | LONG_COMMANDS)[verb])
    found = run_json([verb, *words], monkeypatch, capsys)
    assert "error" not in found, found
    assert list(found) == [*ALWAYS, *read_schema()[verb]]


def test_a_mistake_is_an_object_with_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--model", "nowhere", "--smiles", "C", "--output", "out.csv"]
    found = run_json(words, monkeypatch, capsys)
    assert list(found) == [*ALWAYS, "error"]
    assert found["exit_code"] == 2 and "nowhere" in found["error"]
