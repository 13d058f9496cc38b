"""The scripts of the README: what `rmat finetune` does, and the Trainer of transformers alone."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rmat_hf
from rmat_hf import finetune

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
    """Return a script of the README, which is one for a page and no more."""
    found = re.findall(BLOCK.format(name), (REPO_ROOT / "README.md").read_text("utf-8"), re.S)
    (script,) = found
    assert len(script.splitlines()) <= MAX_SCRIPT_LINES
    imported = re.findall(r"^(?:from|import) (\w+)", script, re.M)
    assert set(imported) <= {"datasets", "transformers", "rmat_hf"}
    return str(script)


def run_script(
    script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> float:
    """Run a script in a folder and return the number that it prints last."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.chdir(folder)
    exec(compile(script, "README.md", "exec"), {"__name__": "__main__"})
    return float(capsys.readouterr().out.split()[-1])


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
        output_dir=output_dir,
        num_workers=0,
        feature_cache="none",
        **options,
    )
    return float(result.metrics["test"]["rmse"])


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
    """Of the libraries that they import, datasets alone has no types, as pyproject.toml says."""
    (tmp_path / "script.py").write_text(read_script(name), encoding="utf-8")
    shutil.copy(REPO_ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-m", "mypy", "--strict", str(tmp_path / "script.py")]
    process = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout
