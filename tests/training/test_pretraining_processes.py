"""Pretraining in processes of its own: several at once, killed and resumed."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import run_python
from safetensors.torch import load_file
from tiny_finetuning import write_json
from tiny_pretraining import ARCHITECTURE, CORPUS_SMILES, write_pretraining_corpus

SCRIPT = Path(__file__).resolve().parents[1] / "pretraining_process.py"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}

pytestmark = pytest.mark.slow


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a corpus of five shards and an architecture with dropout."""
    write_pretraining_corpus(tmp_path / "corpus")
    write_json(tmp_path / "dropout.json", {**ARCHITECTURE, "hidden_dropout_prob": 0.1})
    return tmp_path


def pretrain(
    work: Path, name: str, *, num_processes: int = 1, recipe: str | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    (work / name).mkdir(exist_ok=True)
    options = {"model_config": str(work / "dropout.json"), "max_pairs": 1500, **options}
    launcher = [*LAUNCHER, str(num_processes)] if num_processes > 1 else []
    if recipe is not None:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", SCRIPTS / recipe]
    arguments = [*launcher, SCRIPT, work, name, json.dumps(options)]
    return run_python(arguments, folder=work, environment=ON_CPU)


def find_largest_difference(first: Path, second: Path) -> float:
    weights, others = load_file(first), load_file(second)
    assert set(weights) == set(others)
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def load_reports(folder: Path, num_processes: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(num_processes)]


def load_log(run: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((run / "training_log.json").read_text())


TABLE = {"num_train_epochs": 6, "num_evaluations": 9}
STREAM = {"streaming": True, "max_steps": 60, "num_evaluations": 12}
SEQUENTIAL = {**TABLE, "objective": "sequential"}
WORKERS = {"num_workers": 2}
WITHOUT_DROPOUT = {**ARCHITECTURE, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ACCUMULATION = {"gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    ("num_processes", "options", "stages"),
    [
        pytest.param(1, {**TABLE, **ACCUMULATION}, [0, 0, 0], id="table"),
        pytest.param(1, STREAM, [0, 0, 0], id="stream"),
        pytest.param(1, SEQUENTIAL, [0, 1, 1], id="sequential"),
        pytest.param(1, {**STREAM, **WORKERS, **ACCUMULATION}, [0, 0, 0], id="stream-workers"),
        pytest.param(2, {**TABLE, **WORKERS}, [0, 0], id="table-two-processes"),
        pytest.param(2, {**STREAM, **WORKERS}, [0, 0], id="stream-two-processes"),
    ],
)
def test_a_run_killed_and_resumed_ends_with_the_weights_of_an_undisturbed_one(
    work: Path, num_processes: int, options: dict[str, Any], stages: list[int]
) -> None:
    done = pretrain(work, "straight", num_processes=num_processes, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, killed_run = work / "straight" / "run", work / "killed" / "run"
    num_steps = load_log(straight).popitem()[1][-1]["step"]

    rng = np.random.default_rng(num_steps)
    # behind the first checkpoint, so that every attempt but the first has one to resume
    steps = rng.choice(np.arange(num_steps // 6, num_steps - 2), size=len(stages), replace=False)
    for attempt, (stage, step) in enumerate(zip(stages, np.sort(steps).tolist(), strict=True)):
        kill_at = {"stage": stage, "step": step, "delay": rng.uniform(0, 0.05)}
        killed = pretrain(
            *(work, "killed"),
            num_processes=num_processes,
            resume=attempt > 0,
            kill_at=kill_at,
            **options,
        )
        assert killed.returncode != 0, f"survived {kill_at} of {num_steps} steps"
        assert not killed_run.exists()
        assert list(work.glob("killed/run.in_progress/stage-*/checkpoint-*"))
    resumed = pretrain(work, "killed", num_processes=num_processes, resume=True, **options)
    assert resumed.returncode == 0, resumed.stderr[-3000:]

    name = "model.safetensors"
    assert find_largest_difference(straight / name, killed_run / name) == 0.0
    assert (straight / "metrics.json").read_text() == (killed_run / "metrics.json").read_text()
    assert not (work / "killed" / "run.in_progress").exists()
    # the last attempt did not begin anew
    reports = [load_reports(work / name, num_processes) for name in ("straight", "killed")]
    first, last = (sum(len(report["seen"]) for report in runs) for runs in reports)
    assert last < first


@pytest.mark.parametrize(
    ("options", "num_workers"),
    [pytest.param(TABLE, 0, id="table"), pytest.param(STREAM, 2, id="stream-workers")],
)
def test_two_processes_see_every_molecule_once_an_epoch_and_end_with_the_same_weights(
    work: Path, options: dict[str, Any], num_workers: int
) -> None:
    done = pretrain(work, "both", num_processes=2, **options, num_workers=num_workers)
    assert done.returncode == 0, done.stderr[-3000:]
    difference = find_largest_difference(
        *(work / "both" / f"{rank}.safetensors" for rank in range(2))
    )
    assert difference == 0.0
    reports = load_reports(work / "both", 2)
    assert [report["num_processes"] for report in reports] == [2, 2]
    seen = [Counter(map(tuple, report["seen"])) for report in reports]
    assert all(seen)
    assert not set(seen[0]) & set(seen[1])
    both = seen[0] + seen[1]
    assert set(both.values()) == {1}
    molecules: dict[int, set[int]] = {}
    for epoch, molecule in both:
        molecules.setdefault(epoch, set()).add(molecule)
    epochs = sorted(molecules)
    assert epochs == list(range(len(epochs)))
    assert len(epochs) > 2
    # a stream ends within its last epoch
    complete = epochs[:-1] if options is STREAM else epochs
    assert molecules[epochs[-1]] <= molecules[0]
    assert all(molecules[epoch] == molecules[0] for epoch in complete)
    held_out = len(CORPUS_SMILES) - len(molecules[0])
    assert 0.05 < held_out / len(CORPUS_SMILES) < 0.35
    assert list((work / "both").glob("run/model.safetensors"))
    assert sorted(path.name for path in (work / "both").iterdir() if path.is_dir()) == ["run"]


# Recipes


def test_fsdp_and_ddp_end_with_the_same_weights_also_after_a_kill(work: Path) -> None:
    config = write_json(work / "plain.json", WITHOUT_DROPOUT)
    # in bfloat16, the default of some processors, FSDP rounds what DDP does not
    options = {**TABLE, "model_config": config, "precision": "float32"}
    for recipe in ("ddp", "fsdp"):
        done = pretrain(work, recipe, recipe=f"accelerate_{recipe}.yaml", **options)
        assert done.returncode == 0, done.stderr[-3000:]
        reports = load_reports(work / recipe, 2)
        expected = {"ddp": "MULTI_CPU", "fsdp": "FSDP"}[recipe]
        assert [report["distribution"] for report in reports] == [expected] * 2
        assert [report["num_processes"] for report in reports] == [2, 2]
    kill_at = {"stage": 0, "step": 15, "delay": 0.0}
    recipe = "accelerate_fsdp.yaml"
    assert pretrain(work, "killed", recipe=recipe, kill_at=kill_at, **options).returncode != 0
    resumed = pretrain(work, "killed", recipe=recipe, resume=True, **options)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert len(load_reports(work / "killed", 1)[0]["seen"]) < len(reports[0]["seen"])

    ddp, fsdp, killed = (
        work / name / "run" / "model.safetensors" for name in ("ddp", "fsdp", "killed")
    )
    # the sums of the gradients are added up in another order
    assert find_largest_difference(ddp, fsdp) < 1e-5
    assert find_largest_difference(fsdp, killed) == 0.0
    # code and classes are those of the package, not the ones that FSDP makes of them
    files = [{path.name for path in folder.iterdir()} for folder in (ddp.parent, fsdp.parent)]
    assert files[0] == files[1]
    configs = [(folder / "config.json").read_text() for folder in (ddp.parent, fsdp.parent)]
    assert configs[0] == configs[1]


def test_the_slurm_recipe_resumes_what_is_in_progress(work: Path) -> None:
    """`srun` and `scontrol` are stand-ins: one machine with two processes."""
    programs = work / "programs"
    programs.mkdir()
    for name, line in (("srun", 'shift; exec "$@"'), ("scontrol", "echo localhost")):
        (programs / name).write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> calls\n{line}\n')
        (programs / name).chmod(0o755)
    path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
    slurm = {"JOB_ID": "7", "JOB_NODELIST": "localhost", "NNODES": "1", "GPUS_ON_NODE": "2"}
    environment = os.environ | ON_CPU | {f"SLURM_{name}": slurm[name] for name in slurm}
    environment |= {
        "PATH": os.pathsep.join(path),
        "PORT": "0",
        "HF_HOME": str(work / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    (work / "run.in_progress").mkdir()
    flags = [*("--corpus", "corpus"), *("--model-config", "dropout.json"), *("--max-steps", "4")]
    flags += [*("--min-context-count", "2"), *("--valid-fraction", "0.2")]
    done = subprocess.run(
        ["bash", str(SCRIPTS / "pretrain_slurm.sh"), "run", *flags],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    scontrol, srun = (work / "calls").read_text().splitlines()
    assert scontrol == "scontrol show hostnames localhost"
    assert srun.startswith("srun --kill-on-bad-exit=1 torchrun --nnodes 1 --nproc-per-node 2")
    assert srun.endswith("--valid-fraction 0.2 --resume")
    assert load_file(work / "run" / "model.safetensors")
    assert not (work / "run.in_progress").exists()
