"""Every command on every hostile file: exit code, one line, nothing half-written.

`docs/hostile_input.md` is the table of what happens; `make hostile-input-table` writes it.
"""

import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from hostile_inputs import HOSTILE_INPUTS, VERBS, HostileInput
from versions import REPO_ROOT, save_tiny_predictor

from rmat_hf.cli import main
from rmat_hf.errors import say_count

DOCUMENT = REPO_ROOT / "docs" / "hostile_input.md"
PROGRESS = re.compile(r"\[\d\d:\d\d[<,]")  # lines of tqdm
MAX_LINE = 2100
INTRODUCTION = """# Hostile input

What the commands make of damaged, mislabeled, endless, huge or malicious files. Exit code 2 is one
line on standard error and no output. Exit code 0 is an output with every row of the input; a row
without a value has its reason. Shown is `rmat predict` (`rmat finetune` for labels); the last
column has the exit codes of `rmat predict`, `embed`, `featurize` and `finetune`, which refuses a
table without two different labels. `make hostile-input-table` writes this page, and
`tests/test_hostile_input.py` checks it.

| input | what it gives | exit code | all four |
|---|---|---|---|
"""


class Outcome(NamedTuple):
    exit_code: int
    output: str
    errors: list[str]


def run_verb(verb: str, path: Path, *, model: Path) -> Outcome:
    """Run a command in this process; what is no SystemExit would be a traceback."""
    folder = path.parent
    flags = {
        "predict": ["--model", model, "--input", path, "--output", folder / "out.csv"],
        "embed": ["--model", model, "--input", path, "--output", folder / "out.parquet"],
        "featurize": ["--input", path, "--output-dir", folder / "corpus"],
        "finetune": ["--dataset", path, "--label-columns", "y", "--output-dir", folder / "run"],
    }[verb]
    if verb == "finetune":
        flags += ["--geometry", "bounds", "--feature-cache", "none"]
    output, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rmat", verb, *map(str, flags)])
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            try:
                main()
            except SystemExit as stop:
                code = stop.code
    lines = [line for line in re.split(r"[\r\n]+", errors.getvalue()) if line.strip()]
    lines = [line for line in lines if not PROGRESS.search(line)]
    return Outcome(int(code or 0), output.getvalue(), lines)


def read_reasons(path: Path) -> list[str]:
    """Read the column `error`; Python's csv refuses cells of more than 131,072 characters."""
    return [str(text) for text in pd.read_csv(path, dtype=str, keep_default_na=False)["error"]]


def describe_outcome(outcome: Outcome, folder: Path) -> str:
    """What a person sees, without the folder, shortened for a table."""
    if outcome.exit_code:
        text = outcome.errors[0].replace(f"{folder}/", "")
    else:
        reasons = read_reasons(folder / "out.csv")
        num_failed = sum(map(bool, reasons))
        text = f"{say_count(len(reasons), 'row')}, {num_failed} without a value"
        text += "".join(f"; {reason}" for reason in sorted({*reasons} - {""}))
    if len(text) > 200:
        text = f"{text[:140]} … {text[-50:]}"
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`"


def build_row(hostile: HostileInput, outcomes: dict[str, Outcome], folder: Path) -> str:
    first = outcomes[hostile.verbs[0]]
    codes = " ".join(str(outcomes[verb].exit_code) if verb in outcomes else "–" for verb in VERBS)
    what = describe_outcome(first, folder)
    return f"| {hostile.description} | {what} | {first.exit_code} | {codes} |"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_predictor(REPO_ROOT, folder)
    return folder


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("hostile", HOSTILE_INPUTS, ids=lambda hostile: hostile.description)
def test_hostile_input_is_refused_in_one_line_or_counted_row_by_row(
    hostile: HostileInput, model: Path, tmp_path: Path
) -> None:
    path = hostile.write(tmp_path)
    outcomes = {}
    for verb in hostile.verbs:
        before = list_files(tmp_path)
        outcome = outcomes[verb] = run_verb(verb, path, model=model)
        if outcome.exit_code:
            assert outcome.exit_code == 2
            assert len(outcome.errors) == 1, outcome.errors
            assert outcome.errors[0].startswith("rmat: error: ")
            assert outcome.errors[0].isprintable()
            assert len(outcome.errors[0]) < MAX_LINE
            assert list_files(tmp_path) == before, "half-written output"
        else:
            assert outcome.errors == []
            assert not [name for name in list_files(tmp_path) if name.endswith(".tmp")]
    first = outcomes[hostile.verbs[0]]
    assert first.exit_code == hostile.exit_code, first
    if hostile.exit_code:
        assert hostile.words in first.errors[0]
        # what cannot be read is the same for all
        assert {outcome.exit_code for outcome in outcomes.values()} == {2}
    else:
        reasons = read_reasons(tmp_path / "out.csv")
        assert len(reasons) == hostile.num_rows
        assert hostile.words in reasons[-1] if hostile.words else set(reasons) <= {""}
        num_read = len(reasons) - sum(map(bool, reasons))
        counts = f"{say_count(len(reasons), 'row')}: {num_read} "
        for verb in ("embed", "featurize") if reasons else ("embed",):
            assert outcomes[verb].exit_code == 0
            assert counts in outcomes[verb].output
        assert outcomes["finetune"].exit_code == 2
    # the words may change with their module, what happens may not
    (row,) = [
        line
        for line in DOCUMENT.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {hostile.description} | ")
    ]
    codes = build_row(hostile, outcomes, tmp_path).rsplit(" | ", 2)[1:]
    assert row.rsplit(" | ", 2)[1:] == codes, "run `make hostile-input-table`"


def test_the_documentation_has_a_row_for_every_input_and_no_other() -> None:
    rows = DOCUMENT.read_text(encoding="utf-8").removeprefix(INTRODUCTION).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [
        hostile.description for hostile in HOSTILE_INPUTS
    ]


def iterate_rows() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        save_tiny_predictor(REPO_ROOT, model)
        for position, hostile in enumerate(HOSTILE_INPUTS):
            folder = Path(name) / str(position)
            folder.mkdir()
            path = hostile.write(folder)
            outcomes = {verb: run_verb(verb, path, model=model) for verb in hostile.verbs}
            yield build_row(hostile, outcomes, folder)


if __name__ == "__main__":
    DOCUMENT.write_text(INTRODUCTION + "\n".join(iterate_rows()) + "\n", encoding="utf-8")
