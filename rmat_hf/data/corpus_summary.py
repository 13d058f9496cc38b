"""Complete the folder of a featurized corpus: counts, failed rows and a card for the Hub."""

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import rdkit

from rmat_hf import __version__
from rmat_hf.data.corpus_format import (
    CORPUS_FILE,
    FAILED_ROWS_FILE,
    generalize_reason,
    read_shard_header,
)
from rmat_hf.data.table_writer import FormulaEscaper, build_csv_writer
from rmat_hf.data.training_table import DroppedRow
from rmat_hf.errors import UserError
from rmat_hf.output_folder import open_atomically

README_FILE = "README.md"

# Reasons of failures on the screen; corpus.json has them all.
_MAX_REASONS = 10

# Keeps the Hub from taking the other files of the folder for the data.
_CARD = """---
configs:
- config_name: default
  data_files: part-*.parquet
---

Molecules featurized with `rmat featurize`. `corpus.json` counts them and tells the options,
`failed_rows.csv` lists those that could not be featurized.
"""


@dataclass(frozen=True)
class CorpusReport:
    """What is in a corpus.

    Args:
        num_shards, num_rows, num_molecules, num_failed (`int`): Counts.
        failures (`dict[str, int]`): How often a reason was met, the most frequent first.
        bytes_per_molecule (`float`): Size of the shards.
    """

    num_shards: int
    num_rows: int
    num_molecules: int
    num_failed: int
    failures: dict[str, int]
    bytes_per_molecule: float


@contextmanager
def open_corpus_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a stream that becomes a file of the corpus, the whole of it or nothing."""
    try:
        with open_atomically(path) as stream:
            yield stream
    except UserError as error:
        raise UserError(
            f"{error} What was written before is complete: repeat the command to continue."
        ) from error


def write_corpus_file(path: Path, content: bytes) -> None:
    """Write a whole file or none."""
    with open_corpus_file(path) as stream:
        stream.write(content)


def encode_json(content: dict[str, Any]) -> bytes:
    """Return JSON for people to read."""
    return (json.dumps(content, indent=2) + "\n").encode()


def complete_corpus(
    folder: Path, shard_names: Sequence[str], *, options: dict[str, Any]
) -> CorpusReport:
    """Count what is in the shards, write the other files and drop what a kill left behind.

    Args:
        folder (`Path`): With all its shards.
        shard_names (`Sequence[str]`): Their names in order.
        options (`dict`): What decides the content beside the processor, `num_rows` among it.
    """
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    num_molecules = num_bytes = 0
    reasons: Counter[str] = Counter()
    escaper = FormulaEscaper()
    with open_corpus_file(folder / FAILED_ROWS_FILE) as stream:
        stream.write(b"row,smiles,reason\n")
        for name in shard_names:
            header = read_shard_header(str(folder / name), name=str(folder / name))
            num_molecules += header.num_rows
            num_bytes += (folder / name).stat().st_size
            reasons.update(generalize_reason(failure.reason) for failure in header.failures)
            stream.write(_encode_csv(header.failures, escaper))
    escaper.log_count(folder / FAILED_ROWS_FILE)
    report = CorpusReport(
        num_shards=len(shard_names),
        num_rows=options["num_rows"],
        num_molecules=num_molecules,
        num_failed=reasons.total(),
        failures=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        bytes_per_molecule=round(num_bytes / max(num_molecules, 1), 1),
    )
    if not (folder / README_FILE).exists():
        write_corpus_file(folder / README_FILE, _CARD.encode())
    versions = {"rmat_hf": __version__, "rdkit": rdkit.__version__}
    content = {**asdict(report), "options": options, "versions": versions}
    write_corpus_file(folder / CORPUS_FILE, encode_json(content))
    return report


def describe_corpus(report: CorpusReport) -> str:
    """Return the counts as lines for the screen."""
    lines = [
        f"{report.num_rows} rows: {report.num_molecules} molecules, {report.num_failed} failed, "
        f"{report.num_shards} shards, {report.bytes_per_molecule} bytes per molecule."
    ]
    reasons = list(report.failures.items())
    lines += [f"{count:>8}  {reason}" for reason, count in reasons[:_MAX_REASONS]]
    if others := reasons[_MAX_REASONS:]:
        lines.append(f"{sum(count for _, count in others):>8}  for {len(others)} other reasons")
    return "\n".join(lines)


def _encode_csv(rows: Sequence[DroppedRow], escaper: FormulaEscaper) -> bytes:
    text = io.StringIO(newline="")
    table = build_csv_writer(text)
    table.writerows((row.row, *map(escaper.escape, (row.smiles, row.reason))) for row in rows)
    return text.getvalue().encode()
