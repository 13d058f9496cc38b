"""The example scripts, as a user runs them: a table in, a model that predicts out."""

import ast
import json
import runpy
from pathlib import Path

import pandas as pd
import pytest
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, write_table

import rmat_hf
from rmat_hf import finetune, predict

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def run_script(name: str, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [name, *flags])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    columns = {"smiles": TABLE_SMILES, "y": range(len(TABLE_SMILES)), "part": TABLE_PARTS}
    return write_table(tmp_path / "table.csv", columns)


@pytest.mark.parametrize("name", ["run_finetuning.py", "run_pretraining.py"])
def test_an_example_needs_nothing_of_the_package_but_public_names(name: str) -> None:
    tree = ast.parse((SCRIPTS / name).read_text("utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    ours = [node for node in imports if "rmat_hf" in ast.unparse(node)]
    assert [node.module for node in ours if isinstance(node, ast.ImportFrom)] == ["rmat_hf"]
    assert {alias.name for node in ours for alias in node.names} <= set(rmat_hf.__all__)


@pytest.mark.slow
def test_the_finetuning_script_gives_the_error_of_rmat_finetune_and_goes_on_where_it_stopped(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = tmp_path / "run"
    fields = {
        **{"train_file": str(table), "label_columns": ["y"], "label_units": ["kcal/mol"]},
        **{"split": "column", "split_column": "part", "output_dir": str(output_dir)},
        **{"do_train": True, "do_eval": True, "do_predict": True, "num_train_epochs": 2},
        "disable_tqdm": True,
    }
    (tmp_path / "flags.json").write_text(json.dumps(fields))
    run_script("run_finetuning.py", [str(tmp_path / "flags.json")], monkeypatch)
    results = json.loads((output_dir / "all_results.json").read_text())
    run = finetune(
        str(table),
        label_columns=["y"],
        split="column",
        split_column="part",
        output_dir=tmp_path / "cli",
        num_train_epochs=2,
        num_workers=0,
        feature_cache="none",
    )
    assert results["test_rmse"] == run.metrics["test"]["rmse"]
    assert (results["train_samples"], results["test_samples"]) == (8, 2)
    predictions = pd.read_csv(output_dir / "predictions.csv")
    assert predictions["row"].tolist() == [10, 11]
    # what is pushed tells no molecule
    texts = [path.read_text("utf-8") for path in output_dir.glob("*.csv")]
    assert not any(smiles in text for smiles in TABLE_SMILES[5:] for text in texts)
    card = (output_dir / "README.md").read_text("utf-8")
    assert "y (kcal/mol)" in card and "model-index" in card
    assert predict(output_dir, ["CCO"]).values.shape == (1, 1)

    flags = [f"--{name}={it}" for name, it in fields.items() if not isinstance(it, list)]
    more = ["--label_columns", "y", "--num_train_epochs", "3"]
    run_script("run_finetuning.py", [*flags, *more], monkeypatch)
    log = json.loads((output_dir / "trainer_state.json").read_text())
    assert [entry["epoch"] for entry in log["log_history"] if "eval_loss" in entry][:3] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("is_from_scratch", [False, True])
def test_the_pretraining_script_gives_a_model_to_train_further(
    is_from_scratch: bool, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = f"--train_file {table} --do_train --do_eval --max_steps 2 --disable_tqdm True".split()
    flags += ["--validation_split_percentage", "20", "--output_dir"]
    extra = ["--from_scratch"] if is_from_scratch else []
    run_script("run_pretraining.py", [*flags, str(tmp_path / "first"), *extra], monkeypatch)
    first = json.loads((tmp_path / "first" / "all_results.json").read_text())
    # of random weights two steps make nothing that knows a context or a descriptor
    assert (first["eval_loss"] > 3) is is_from_scratch
    if is_from_scratch:
        return
    again = [*flags, str(tmp_path / "second"), "--model_name_or_path", str(tmp_path / "first")]
    run_script("run_pretraining.py", again, monkeypatch)
    second = json.loads((tmp_path / "second" / "all_results.json").read_text())
    assert second["eval_loss"] < 3
