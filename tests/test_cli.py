"""The command contract: flags, files, one-line errors, exit codes."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest
from processes import run_python
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf import __version__
from rmat_hf.cli import main
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import FinetuningResult

GOLDEN = Path(__file__).parent / "golden" / "reference" / "mean_pool"
TABLE = """smiles,y,z,text,part
CCO,1.0,0,high,train
CCCO,1.5,1,low,train
CCCCO,2.5,0,high,train
CCN,0.5,1,low,train
CCCN,0.9,0,high,train
c1ccccc1,2.0,1,low,train
CC(=O)C,0.7,0,high,valid
CCOC,1.1,1,low,valid
CCCl,1.9,0,high,test
CCBr,2.2,1,low,test
"""


class Outcome(NamedTuple):
    exit_code: int
    output: str
    error: str


RunCli = Callable[..., Outcome]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Run `rmat` in this process; a traceback would be an exception that is not SystemExit."""

    def run(*args: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rmat", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return Outcome(stop.value.code or 0, captured.out, captured.err)

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_ARCHITECTURE))
    return path


def list_finetuning_flags(table: Path) -> list[str | Path]:
    folder = table.parent
    return [
        *["finetune", "--model", "scratch", "--dataset", table, "--smiles-column", "smiles"],
        *["--problem-type", "regression", "--split", "column", "--split-column", "part"],
        *["--seed", "0", "--output-dir", folder / "run", "--geometry", "bounds"],
        *["--model-config", folder / "tiny.json", "--num-train-epochs", "1"],
    ]


def test_the_command_contract_from_table_to_predictions(table: Path, run_cli: RunCli) -> None:
    run = table.parent / "run"
    outcome = run_cli(*list_finetuning_flags(table), "--label-columns", "y", "z")
    assert outcome.exit_code == 0, outcome.error
    assert re.search(r"R-MAT +[|] test +[|] +[\d.]+", outcome.output)
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"train", "valid", "test"}
    assert set(metrics["test"]["per_label"]["z"]) == {"rmse", "mae", "r2", "spearman"}

    output = table.parent / "p.csv"
    flags = ["--smiles=C=C", "--smiles", "CCO", "C1CC", "", "--output", output]
    outcome = run_cli("predict", "--model", run, *flags)
    assert outcome.exit_code == 0, outcome.error
    assert len(outcome.output.strip().splitlines()) == 1
    assert outcome.output.startswith("4 rows: 2 predictions, 2 failed")
    rows = list(csv.DictReader(output.open()))
    # too few rows for intervals
    added = ["novelty", "nearest_train", "in_domain", "warning", "error"]
    assert list(rows[0]) == ["smiles", "prediction_y", "prediction_z", *added]
    assert [row["smiles"] for row in rows] == ["C=C", "CCO", "C1CC", ""]

    output = table.parent / "e.parquet"
    # the table's flag is called as in `rmat finetune` too
    outcome = run_cli("embed", "--model", run, "--dataset", table, "--output", output)
    assert outcome.exit_code == 0, outcome.error
    embedded = pq.read_table(output)
    assert embedded.column_names == ["smiles", "y", "z", "text", "part", "embedding", "error"]
    assert len(embedded["embedding"][0].as_py()) == 4 * TINY_ARCHITECTURE["hidden_size"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--label-columns", "yy"], "has no column 'yy'. Its columns are: smiles, y, z, text"),
        (["--label-columns", "text"], "label 'text' has no usable value"),
        (["--label-columns", "y", "--smiles-column", "S"], "has no column 'S'"),
        (["--label-columns", "y", "--split-column", "z"], "'z'"),
        (["--label-columns", "y", "--dataset", "missing.csv"], "missing.csv"),
        (["--label-columns", "y", "--input=absent.csv"], "absent.csv"),
        (["--label-columns", "y", "--model", "no/such/model"], "no/such/model"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_no_output(
    table: Path, run_cli: RunCli, flags: list[str], message: str
) -> None:
    before = sorted(table.parent.iterdir())
    outcome = run_cli(*list_finetuning_flags(table), *flags)
    lines = [line for line in outcome.error.splitlines() if "Featurizing" not in line]
    assert outcome.exit_code == 2
    assert message in lines[-1]
    assert lines[-1].startswith("rmat: error: ")
    assert "Traceback" not in outcome.error
    assert sorted(table.parent.iterdir()) == before


def test_an_unknown_flag_or_choice_has_exit_code_2(table: Path, run_cli: RunCli) -> None:
    flags = [*list_finetuning_flags(table), "--label-columns", "y"]
    assert run_cli(*flags, "--lerning-rate", "1").exit_code == 2
    outcome = run_cli(*flags, "--problem-type", "regresion")
    assert outcome.exit_code == 2
    assert "multi_label_classification" in outcome.error
    assert run_cli("finetune").exit_code == 2
    assert run_cli("predict", "--model", "m", "--output", "o.csv").exit_code == 2


def test_convert_writes_a_folder_that_predicts(tmp_path: Path, run_cli: RunCli) -> None:
    flags = ["convert", "--weights", GOLDEN / "reference_state_dict.safetensors"]
    flags += ["--config", GOLDEN / "reference_config.json", "--output-dir", tmp_path / "model"]
    outcome = run_cli(*flags)
    assert outcome.exit_code == 0, outcome.error
    outcome = run_cli(
        *["predict", "--model", tmp_path / "model", "--smiles", "CCO"],
        *["--output", tmp_path / "out.csv"],
    )
    assert outcome.exit_code == 0, outcome.error
    row = next(csv.DictReader((tmp_path / "out.csv").open()))
    assert {"prediction_LABEL_0", "prediction_LABEL_2"} <= set(row)
    again = run_cli(*flags)
    assert again.exit_code == 2
    assert "is not empty" in again.error


def test_the_installed_command_reports_its_version() -> None:
    command = Path(sys.executable).with_name("rmat")
    for words in ([command], [sys.executable, "-m", "rmat_hf"]):
        result = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
        assert result.stdout.strip() == __version__


@pytest.mark.parametrize("is_set", [True, False])
def test_cache_lies_where_the_users_caches_lie(
    table: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, is_set: bool
) -> None:
    chosen = []

    def choose(arguments: FinetuningArguments, **_: object) -> FinetuningResult:
        chosen.append(arguments)
        return FinetuningResult(Path(arguments.output_dir), {}, {}, [], summary="")

    monkeypatch.setattr("rmat_hf.training.finetuning.run_finetuning", choose)
    state = SimpleNamespace(is_main_process=False)
    monkeypatch.setattr("accelerate.PartialState", lambda: state)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if is_set:
        monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/cache")
    flags = [*list_finetuning_flags(table), "--label-columns", "y"]
    run_cli(*flags)
    run_cli(*flags, "--feature-cache", "none")
    run_cli(*flags, "--feature-cache", "folder")
    default = "/scratch/cache/rmat-hf/features" if is_set else "default"
    assert [arguments.feature_cache for arguments in chosen] == [default, "none", "folder"]


def test_an_interruption_says_how_to_go_on(
    table: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rmat_hf.training.finetuning.run_finetuning", interrupt)
    outcome = run_cli(*list_finetuning_flags(table), "--label-columns", "y")
    assert outcome.exit_code == 130
    assert "Repeat the command with --resume to continue" in outcome.error


def test_featurize_prints_counts_and_reasons(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "input.smi").write_text("\n".join([*TINY_SMILES, "C1CC"]))
    flags = ["featurize", "--input", tmp_path / "input.smi", "--output-dir", tmp_path / "corpus"]
    outcome = run_cli(*flags, "--shard-size", 4)
    assert outcome.exit_code == 0
    assert re.search(r"7 rows: 6 molecules, 1 failed, 2 shards, [\d.]+ bytes", outcome.output)
    assert re.search(r"^ +1  .*ring", outcome.output, re.MULTILINE)
    assert (tmp_path / "corpus" / "part-00001.parquet").is_file()
    refused = run_cli(*flags, "--shard-size", 5)
    assert refused.exit_code == 2
    assert refused.error.startswith("rmat: error: ")
    assert "shard_size is 4 in one and 5 in the other" in refused.error

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rmat_hf.data.corpus.run_featurization", interrupt)
    interrupted = run_cli(*flags, "--shard-size", 4)
    assert interrupted.exit_code == 130
    assert interrupted.error == "rmat: interrupted. Repeat the command to continue.\n"


def write_benchmark(folder: Path, **model: object) -> list[str | Path]:
    """Write a protocol with one tiny model; return the flags of its benchmark in this process."""
    tiny = {"model": "scratch", "model_config": str(folder / "tiny.json"), "num_train_epochs": 1}
    tiny |= {"geometry": "bounds"}
    dataset = {"dataset": "table.csv", "label_columns": ["y"], "problem_type": "regression"}
    content = {
        "datasets": {"set": {**dataset, "splits": ["part"], "seeds": [0]}},
        "models": {"tiny": {**tiny, **model}},
    }
    (folder / "protocol.json").write_text(json.dumps(content))
    return [
        *["benchmark", "--data", folder, "--protocol", folder / "protocol.json", "--num-proc", "0"],
        *["--output-dir", folder / "benchmark", "--feature-cache", "none"],
    ]


def test_benchmark_reports_means_and_repeats_nothing(table: Path, run_cli: RunCli) -> None:
    flags = write_benchmark(table.parent)
    outcome = run_cli(*flags)
    assert outcome.exit_code == 0, outcome.error
    assert re.search(r"set +tiny +test RMSE [\d.]+ ± 0\.000", outcome.output)
    assert "Finished: tiny, set, part, seed 0" in outcome.error
    assert (table.parent / "benchmark" / "report.md").is_file()
    again = run_cli(*flags)
    assert "1 of 1 runs are there already." in again.error
    assert again.exit_code == 0


def test_benchmark_with_a_failed_run_writes_the_report_and_exits_with_1(
    table: Path, run_cli: RunCli
) -> None:
    (table.parent / "bad.json").write_text(json.dumps({"optim": "no_such_optimizer"}))
    flags = write_benchmark(table.parent, training_arguments=str(table.parent / "bad.json"))
    outcome = run_cli(*flags)
    assert outcome.exit_code == 1
    assert "Failed: tiny, set, part, seed 0" in outcome.error
    assert "Incomplete" in (table.parent / "benchmark" / "report.md").read_text()


def test_benchmark_refuses_a_wrong_protocol_in_one_line(table: Path, run_cli: RunCli) -> None:
    outcome = run_cli(*write_benchmark(table.parent, lr=1e-3))
    assert outcome.exit_code == 2
    assert "unknown field 'lr'" in outcome.error
    assert not (table.parent / "benchmark").exists()


START_UP = """
import sys
sys.argv[0] = "bin/rmat"
opened = []
sys.addaudithook(lambda event, values: event == "open" and opened.append(str(values[0])))
from rmat_hf.cli import main
try:
    main()
finally:
    configs = [name for name in opened if name.endswith("/config.json")]
    heavy = sorted({"torch", "transformers", "rdkit", "pyarrow"} & sys.modules.keys())
    print("opened:", len(configs), "imported:", *heavy, file=sys.stderr)
"""


def run_counted(folder: Path, *words: str | Path) -> str:
    """Run `rmat` in a process of its own; return what it opened and imported."""
    done = run_python(["-c", START_UP, *map(str, words)], folder=folder)
    return done.stderr.strip().splitlines()[-1]


def test_push_lists_what_would_leave_and_its_two_names_have_no_flag(
    tiny_model_folder: Path, run_cli: RunCli
) -> None:
    (tiny_model_folder / "predictions.csv").write_text("smiles\nCCO\n")
    outcome = run_cli("push", tiny_model_folder, "chemist/tiny", "--dry-run")
    assert outcome.exit_code == 0, outcome.error
    leaves, stays = outcome.output.split("Stays here:")
    assert "model.safetensors" in leaves and "handler.py" in leaves
    assert "predictions.csv" in stays and "Nothing was sent" in stays
    outcome = run_cli("push", tiny_model_folder)
    assert outcome.exit_code == 2 and "REPO_ID" in outcome.error
    outcome = run_cli("push", tiny_model_folder, "chemist/tiny", "--share", "all")
    assert outcome.exit_code == 2 and "--share 'all'" in outcome.error


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    assert run_counted(tmp_path, *words) == "opened: 0 imported:"


@pytest.mark.slow
def test_the_configuration_of_a_model_is_opened_once(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    flags = ["--model", tiny_model_folder, "--smiles", "CCO", "--num-workers", "0"]
    for verb, name in (("predict", "out.csv"), ("embed", "out.parquet")):
        assert "opened: 1 " in run_counted(tmp_path, verb, *flags, "--output", tmp_path / name)


def test_a_verb_or_flag_that_was_meant_is_named(run_cli: RunCli) -> None:
    assert "Did you mean predict?" in run_cli("predct").error
    outcome = run_cli("convert", "--weights", "w", "--config", "c", "--output-dir", "o", "--pool=x")
    assert outcome.exit_code == 2
    assert "rmat convert --help" in outcome.error and len(outcome.error.splitlines()) == 1
    assert run_cli("--help").exit_code == 0
    assert run_cli().exit_code == 2
