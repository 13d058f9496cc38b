"""The worked examples of docs/extending.md, each applied to a copy of the package and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[1]
PAGE = (REPO_ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE, re.M | re.S))
# another atom feature is another input of every model, so it has a package of its own
ATOM_FEATURE = "An atom feature"
STEP = re.compile(r"<!-- (.+?) -->\n```python\n(.+?)```", re.S)
EDIT = re.compile(r'in (\S+), (before|after) "(.+)"$')


def apply_edit(step: str, code: str, *, folder: Path) -> str:
    """Change or write the file that a step names, and return its name."""
    if step.startswith("new "):
        name = step.removeprefix("new ")
        assert not (folder / name).exists()
        (folder / name).write_text(code, encoding="utf-8")
        return name
    match = EDIT.match(step)
    assert match, step
    name, where, anchor = match[1], match[2], match[3].replace('\\"', '"')
    lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
    places = [idx for idx, line in enumerate(lines) if anchor in line]
    assert len(places) == 1, f"{anchor!r} is in {len(places)} lines of {name}"
    lines.insert(places[0] + (where == "after"), code)
    (folder / name).write_text("".join(lines), encoding="utf-8")
    return name


@pytest.mark.slow
@pytest.mark.parametrize("is_input", [True, False], ids=["atom feature", "all others"])
def test_worked_examples_run_and_touch_at_most_two_files(is_input: bool, tmp_path: Path) -> None:
    package = tmp_path / "package"
    ignored = shutil.ignore_patterns("__pycache__", "*.png", "training_log.json")
    shutil.copytree(REPO_ROOT / "rmat_hf", package / "rmat_hf", ignore=ignored)
    code = ""
    for title, text in SECTIONS.items():
        if (title == ATOM_FEATURE) != is_input:
            continue
        steps = STEP.findall(text)
        touched = {apply_edit(step, code, folder=package) for step, code in steps if step != "run"}
        assert 1 <= len(touched) <= 2, f"{title} touches {touched}"
        code += "".join(block for step, block in steps if step == "run")
    assert "assert" in code
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_the_page_shows_every_extension_point() -> None:
    named = set(re.findall(r"\(#an?-([\w-]+)\)", PAGE))
    assert named == {re.sub(r"^an? ", "", title.lower()).replace(" ", "-") for title in SECTIONS}
