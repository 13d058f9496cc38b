"""Run Python in a process of its own, with or without this package, rdkit or the internet."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent

# Python imports a module of this name at its start; it is as if the blocked ones were missing, and
# the hidden names of others. psutil has the system's own code for each system and may use it.
SITECUSTOMIZE = """
import importlib, os, psutil, sys

for name in os.environ.get("HIDDEN_NAMES", "").split():
    module, attribute = name.split(".")
    vars(importlib.import_module(module)).pop(attribute, None)
for name in os.environ.get("BLOCKED_MODULES", "").split():
    sys.modules.pop(name, None)

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ.get("BLOCKED_MODULES", "").split():
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def build_environment(
    folder: Path,
    *,
    blocked: Sequence[str] = (),
    hidden: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the variables of a process: this checkout, offline, caches in a folder.

    Args:
        folder, blocked, hidden, environment: As in [`run_python`].
    """
    path = [str(TESTS), str(TESTS.parent)]
    if blocked or hidden:
        site = folder / "site"
        site.mkdir(parents=True, exist_ok=True)
        (site / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
        path.insert(0, str(site))
    variables = {
        **os.environ,
        "BLOCKED_MODULES": " ".join(blocked),
        "HIDDEN_NAMES": " ".join(hidden),
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    for name in ("HF_MODULES_CACHE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "PYTHONHOME"):
        variables.pop(name, None)
    return {name: value for name, value in variables.items() if value}


def run_python(
    arguments: Sequence[str | Path],
    *,
    folder: Path,
    blocked: Sequence[str] = (),
    hidden: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout_s: int = 300,
) -> subprocess.CompletedProcess[str]:
    """Run this Python in a folder, offline and with caches there unless told otherwise.

    Args:
        arguments (`Sequence[str | Path]`): What follows `python`.
        folder (`Path`): Working directory; nothing outside it is written.
        blocked (`Sequence[str]`, *optional*): Modules that cannot be imported.
        hidden (`Sequence[str]`, *optional*): Names that modules lack: `os.fork`.
        environment (`Mapping[str, str]`, *optional*): More variables; an empty one is removed.
        timeout_s (`int`, *optional*, defaults to 300): Seconds after which to give up.
    """
    variables = build_environment(folder, blocked=blocked, hidden=hidden, environment=environment)
    command = [sys.executable, *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        # files and not pipes: a worker that outlives its killed parent would keep a pipe open
        with subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        ) as process:
            try:
                process.wait(timeout_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        texts = []
        for stream in (output, errors):
            stream.seek(0)
            texts.append(stream.read())
    return subprocess.CompletedProcess(command, process.returncode, *texts)


VISIT = """
import json, sys
from transformers import pipeline
pipe = pipeline(model=sys.argv[1], trust_remote_code=True)
assert type(pipe.model).__module__.startswith("transformers_modules")
print(json.dumps(pipe(json.loads(sys.argv[2]), **json.loads(sys.argv[3]))))
"""


def predict_without_package(
    model: Path, rows: Sequence[Any], *, folder: Path, **options: Any
) -> list[dict[str, Any]]:
    """Return what the pipeline of a saved model says of rows where rmat-hf is not installed.

    Nor is scikit-learn, with which heads are fitted.
    """
    arguments = ["-c", VISIT, model, json.dumps(rows), json.dumps(options)]
    done = run_python(arguments, folder=folder, blocked=["rmat_hf", "sklearn"])
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found
