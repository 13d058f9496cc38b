"""The verbs where the system is not Linux: without what Windows, and macOS, do not have."""

import json
from pathlib import Path

import pytest
from processes import run_python
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, write_json, write_table

# Modules that are missing on Windows, on macOS or on both, and what small images cannot load.
MISSING_MODULES = ["fcntl", "grp", "pwd", "resource", "rdkit.Chem.Draw"]
MISSING_NAMES = [
    *(f"os.{it}" for it in ("fork", "forkpty", "getuid", "geteuid", "killpg", "setsid")),
    *("os.sched_getaffinity", "os.sched_setaffinity"),
    *(f"signal.{it}" for it in ("SIGALRM", "SIGHUP", "alarm", "setitimer")),
    *("signal.ITIMER_REAL", "signal.pthread_kill", "signal.pthread_sigmask"),
]
# The code page of a console in Western Europe, in which the name of its user comes from a variable.
WINDOWS = {"PYTHONIOENCODING": "cp1252:strict", "LOGNAME": "chemist"}
# A program of its own, as processes that are spawned import it.
PROGRAM = """
import json, os, sys, time

if __name__ == "__main__":
    assert not hasattr(os, "fork")
    from rmat_hf.cli import VERBS, main
    from rmat_hf.data.supervised_map import map_supervised

    options = {"describe_death": str, "num_workers": 1, "item_time_limit_s": 1}
    (outcomes,) = map_supervised(time.sleep, [[0, 60, 0]], **options)
    assert outcomes[::2] == [None, None] and "time limit" in outcomes[1], outcomes

    for words in [[verb, "--help"] for verb in VERBS] + json.loads(sys.argv[1]):
        sys.argv = ["rmat", *words]
        try:
            main()
        except SystemExit as end:
            assert not end.code, (words, end.code)
"""


@pytest.mark.slow
def test_verbs_run_without_what_other_systems_lack(tmp_path: Path) -> None:
    table = {"smiles": TABLE_SMILES, "y": range(len(TABLE_SMILES)), "part": TABLE_PARTS}
    write_table(tmp_path / "table.csv", table)
    write_json(tmp_path / "tiny.json", TINY_ARCHITECTURE)
    training = (
        "finetune --model scratch --dataset table.csv --label-columns y --split column "
        "--split-column part --model-config tiny.json --geometry bounds --num-train-epochs 1 "
        "--with-baselines --output-dir run"
    )
    prediction = "predict --model run --input table.csv --output predicted.csv --num-workers 1"
    (tmp_path / "rmat.py").write_text(PROGRAM, encoding="utf-8")
    run = run_python(
        ["rmat.py", json.dumps([training.split(), prediction.split()])],
        folder=tmp_path,
        blocked=MISSING_MODULES,
        hidden=MISSING_NAMES,
        environment=WINDOWS,
    )
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "predicted.csv").read_text().splitlines()) == len(TABLE_SMILES) + 1
