"""What the measures of two versions of the code share: the other version, and a table."""

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]
SAVE_TINY_MODEL = """
import sys, rmat_hf
config = rmat_hf.RMatConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                            num_attention_heads=2, problem_type="regression", num_labels=1)
rmat_hf.RMatForSequenceClassification(config).save_pretrained(sys.argv[1])
rmat_hf.RMatProcessor(geometry="bounds").save_pretrained(sys.argv[1])
"""


def build_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--base", help="git revision, or checkout, of the version before")
    return parser


@contextmanager
def unpack_versions(base: str | None) -> Iterator[dict[str, Path]]:
    """Yield the folders of the versions: `before`, if one is given, and `now`, this checkout."""
    if base is None:
        yield {"now": REPO_ROOT}
    elif Path(base).is_dir():
        yield {"before": Path(base).resolve(), "now": REPO_ROOT}
    else:
        command = ["git", "-C", str(REPO_ROOT), "archive", base, "rmat_hf", "tests"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            yield {"before": Path(folder), "now": REPO_ROOT}


def run_in_version(root: Path, *command: str) -> str:
    """Return what a Python command prints that imports the `rmat_hf` of a version."""
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True
    )
    if run.returncode:
        raise SystemExit(run.stderr)
    return run.stdout


def save_tiny_predictor(root: Path, folder: str | Path) -> None:
    """Save a tiny model and its processor as a version does."""
    run_in_version(root, "-c", SAVE_TINY_MODEL, str(folder))


def write_rows(rows: Iterable[Iterable[object]]) -> None:
    """Write a Markdown table; the first row is the header."""
    for idx, row in enumerate(rows):
        cells = [str(cell) for cell in row]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        if idx == 0:
            sys.stdout.write(f"|{'---|' * len(cells)}\n")
        sys.stdout.flush()
