"""What `rmat check` finds in tables as chemists have them, and what a finetuning does with each.

`make real-tables` writes the table of docs/tables.md; `make test-slow` runs what it says.
"""

import logging
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import pytest
from real_tables import SPOILED, WRITTEN, RealTable, SpoiledSet
from tiny_finetuning import write_json
from versions import REPO_ROOT

from rmat_hf import check_table, finetune
from rmat_hf.cli import parse_flags
from rmat_hf.data.check import TableReport
from rmat_hf.data.check_report import CheckArguments, propose_finetuning, run_check
from rmat_hf.errors import UserError

DOCUMENT = REPO_ROOT / "docs" / "tables.md"
MARK = "<!-- written by make real-tables -->\n"
TINY: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def list_tiny_options(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": folder / "run",
        "model": "scratch",
        "model_config": write_json(folder / "tiny.json", TINY),
        "geometry": "bounds",
        "feature_cache": "none",
        "num_workers": 0,
        "num_train_epochs": 1,
        "overwrite": True,
    }


def run(path: Path, options: dict[str, Any], *, folder: Path) -> str:
    """Finetune a tiny model for one epoch; return what became of the rows, or the refusal."""
    try:
        result = finetune(path, **list_tiny_options(folder), **options)
    except UserError as error:
        return f"refuses: {error}"
    counts = {
        part: sum(
            1 for line in (result.output_dir / "split.csv").open() if line.rstrip().endswith(part)
        )
        for part in ("train", "valid", "test")
    }
    text = ", ".join(f"{count} {part}" for part, count in counts.items())
    return f"{text}; {len(result.dropped)} left out"


def count_used(outcome: str) -> int:
    return sum(map(int, re.findall(r"(\d+) (?:train|valid|test)", outcome)))


def examine(table: Any, folder: Path, source: Path | None) -> tuple[TableReport, str]:
    if table.needs:
        pytest.importorskip(table.needs)
    path = folder / table.name
    table.write(path) if source is None else table.write(path, source)
    named = {
        name: table.options[name]
        for name in ("label_columns", "split_column")
        if name in table.options
    }
    return check_table(path, **named), run(path, table.options, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("table", WRITTEN, ids=lambda table: table.description)
def test_what_stands_in_a_table_is_found_and_no_cell_stops_a_run(
    table: RealTable, tmp_path: Path
) -> None:
    report, outcome = examine(table, tmp_path, None)
    assert table.topics <= {finding.topic for finding in report.findings}
    if table.num_used is not None:
        assert count_used(outcome) == table.num_used, outcome
    else:
        assert count_used(outcome) > 55 or "InChI" in outcome, outcome


@pytest.mark.slow
@pytest.mark.parametrize("table", SPOILED, ids=lambda table: table.description)
def test_spoiled_sets_are_found_out_and_trained_on(
    table: SpoiledSet, tmp_path: Path, shared_dir: Path
) -> None:
    report, outcome = examine(table, tmp_path, shared_dir / "data")
    assert table.topics <= {finding.topic for finding in report.findings}
    assert count_used(outcome) >= 100, outcome


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    [it for it in WRITTEN if {"skew", "fragments", "parts", "replicates"} & it.topics]
    + [it for it in WRITTEN if it.description in ("True and False", "twelve rows")],
    ids=lambda table: table.description,
)
def test_the_line_that_check_prints_finetunes(
    table: RealTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table.write(tmp_path / table.name)
    arguments = CheckArguments(input=str(tmp_path / table.name))
    *first, line = propose_finetuning(run_check(arguments), arguments).split(" && ")
    for _, verb, *words in map(shlex.split, first):
        run_check(parse_flags(verb, words))
    rmat, verb, *words = shlex.split(line)
    assert (rmat, verb) == ("rmat", "finetune")
    result = finetune(**{**vars(parse_flags(verb, words)), **list_tiny_options(tmp_path)})
    assert (result.output_dir / "predictions.csv").is_file()


def write_rows() -> str:
    lines = ["| table | `rmat check` | `rmat finetune` |", "|---|---|---|"]
    source = REPO_ROOT.parent / "shared" / "data"
    for table in [*WRITTEN, *SPOILED]:
        with tempfile.TemporaryDirectory() as name:
            where = source if isinstance(table, SpoiledSet) else None
            report, outcome = examine(table, Path(name), where)
            wanted = [it for it in report.findings if it.is_serious or it.topic in table.topics]
            wanted = [it for it in wanted if it.topic in table.topics] or wanted
            found = "; ".join(dict.fromkeys(it.message for it in wanted)).replace("|", "\\|")
            found = found or f"nothing; read as {report.description}"
            outcome = outcome.replace(f"{name}/", "").replace("|", "\\|")
            lines.append(f"| {table.description} | {found} | {outcome} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    head, _, _ = DOCUMENT.read_text(encoding="utf-8").partition(MARK)
    DOCUMENT.write_text(head + MARK + "\n" + write_rows(), encoding="utf-8")
