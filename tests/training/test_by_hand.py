"""The scripts of the tutorial: what `rmat finetune` does, and the Trainer of transformers alone."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from tiny_finetuning import TABLE_SMILES

import rmat_hf
from rmat_hf import (
    RMatProcessor,
    RMatTrainer,
    RMatTrainingArguments,
    featurize_dataset,
    finetune,
    load_for_finetuning,
    split_dataset,
)

REPO_ROOT = Path(__file__).resolve().parents[2]
FREESOLV = Path(rmat_hf.__file__).parent / "data" / "freesolv" / "freesolv.csv"
BLOCK = r"<!-- {} -->\n```python\n(.+?)```"
MAX_SCRIPT_LINES = 40
# the name of a script → what limits its training
ARGUMENTS = {
    "by hand": '"runs/by_hand", seed=0',
    "stock": "num_train_epochs=40",
}


def read_script(name: str) -> str:
    """Return a script of the page, which is one for a page and no more."""
    page = REPO_ROOT / "docs" / "tutorials" / "trainer.md"
    found = re.findall(BLOCK.format(name), page.read_text("utf-8"), re.S)
    (script,) = found
    assert len(script.splitlines()) <= MAX_SCRIPT_LINES
    imported = re.findall(r"^(?:from|import) (\w+)", script, re.M)
    assert set(imported) <= {"datasets", "transformers", "rmat_hf"}
    return str(script)


def run_script(
    script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> float:
    """Run a script in a folder and return the test RMSE that it prints."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.chdir(folder)
    exec(compile(script, "trainer.md", "exec"), {"__name__": "__main__"})
    (error,) = re.findall(r"'test_rmse': ([\d.]+)", capsys.readouterr().out)
    return float(error)


def write_table(folder: Path, num_rows: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "freesolv.csv"
    pd.read_csv(FREESOLV).head(num_rows).to_csv(path, index=False)
    return path


def finetune_freesolv(table: Path, output_dir: Path, **options: object) -> float:
    result = finetune(
        str(table),
        label_columns=["hydration_free_energy"],
        label_units=["kcal/mol"],
        split="column",
        split_column="split_0",
        head="network",
        output_dir=output_dir,
        num_workers=0,
        feature_cache="none",
        **options,
    )
    return float(result.metrics["test"]["rmse"])


@pytest.mark.slow
def test_the_script_gives_the_test_error_of_rmat_finetune_digit_by_digit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path, num_rows=70)
    script = read_script("by hand")
    assert script.count(ARGUMENTS["by hand"]) == 1
    script = script.replace(ARGUMENTS["by hand"], f"{ARGUMENTS['by hand']}, num_train_epochs=2")
    by_hand = run_script(script, tmp_path, monkeypatch, capsys)
    assert by_hand == finetune_freesolv(table, tmp_path / "run", num_train_epochs=2)
    card = (tmp_path / "runs" / "by_hand" / "README.md").read_text("utf-8")
    assert f"value: {round(by_hand, 4)}" in card
    assert "hydration_free_energy (kcal/mol)" in card


@pytest.mark.slow
def test_the_script_gives_the_test_error_of_rmat_finetune_on_all_of_freesolv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path)
    by_hand = run_script(read_script("by hand"), tmp_path, monkeypatch, capsys)
    assert by_hand == finetune_freesolv(table, tmp_path / "run")
    # in kcal/mol; constant predictions give 3.8
    assert by_hand < 1.1


@pytest.mark.slow
def test_the_stock_script_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = pd.read_csv(write_table(tmp_path, num_rows=70))
    script = read_script("stock")
    assert script.count(ARGUMENTS["stock"]) == 1
    script = script.replace(ARGUMENTS["stock"], "num_train_epochs=12, disable_tqdm=True")
    error = run_script(script, tmp_path, monkeypatch, capsys)
    mean = labels.query("split_0 == 'train'")["hydration_free_energy"].mean()
    test = labels.query("split_0 == 'test'")["hydration_free_energy"]
    assert error < 0.8 * np.sqrt(((test - mean) ** 2).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_the_scripts_have_no_error_of_types(name: str, tmp_path: Path) -> None:
    """Of the libraries that they import, datasets alone has no types, as pyproject.toml says.

    The package itself is checked by its own settings, not by the script's: imports are followed
    silently, as mypy does with an installed one.
    """
    (tmp_path / "script.py").write_text(read_script(name), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        str(tmp_path / "script.py"),
    ]
    process = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


CLASSES = {"blood": ["yes", "no"] * 6, "y": [0, 1] * 6}


@pytest.mark.parametrize("problem_type", ["single_label_classification", "regression"])
def test_a_trainer_takes_from_the_recipe_what_its_arguments_leave_open(
    problem_type: str, tmp_path: Path
) -> None:
    is_regression = problem_type == "regression"
    label_columns = ["y" if is_regression else "blood"]
    table = Dataset.from_dict({"smiles": TABLE_SMILES, **CLASSES})
    processor = RMatProcessor(geometry="bounds")
    options = {"label_columns": label_columns, "problem_type": problem_type}
    rows = featurize_dataset(table, processor, **options)
    parts = split_dataset(rows, "random")
    model = load_for_finetuning("rmat-small", parts["train"], **options)
    assert model.config.output_names == (["y"] if is_regression else ["no", "yes"])
    assert model.config.head_norm is not is_regression
    trainer = RMatTrainer(
        model=model,
        args=RMatTrainingArguments(str(tmp_path), max_steps=2, disable_tqdm=True),
        train_dataset=parts["train"],
        eval_dataset=rows,
        processing_class=processor,
    )
    trainer.train()
    assert trainer.args.learning_rate == 3e-4
    assert trainer.args.head_learning_rate == (3e-3 if is_regression else None)
    assert trainer.args.metric_for_best_model == ("rmse" if is_regression else "roc_auc")
    assert trainer.args.greater_is_better is not is_regression
    assert trainer.state.best_metric is not None
    # what was trained once has a head that is no longer new
    trainer.save_model(str(tmp_path / "saved"))
    again = load_for_finetuning(tmp_path / "saved", parts["train"], **options)
    arguments = RMatTrainingArguments(str(tmp_path), metric_for_best_model="mae")
    arguments.choose_defaults(again.config, num_train_rows=10)
    assert arguments.head_learning_rate is None and not arguments.greater_is_better
