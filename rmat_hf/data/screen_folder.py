"""A folder of predictions: shards in the order of the input, and what a second run checks first."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rmat_hf.data.corpus_format import MAX_SHARDS, find_difference, generalize_reason
from rmat_hf.data.corpus_summary import encode_json
from rmat_hf.data.sdf import open_text
from rmat_hf.data.tables import HUB_PREFIX, Table
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.output_folder import open_atomically

SCREEN_FILE = "screen.json"
SUMMARY_FILE = "summary.json"
TOP_FILE_STEM = "top"
ERROR_COLUMN = "error"
# Key of the counts in the metadata of a shard that holds its best rows only.
_COUNTS_KEY = b"rmat_hf.counts"
_COUNT_CHUNK_SIZE = 8192


@dataclass(frozen=True)
class RowCounts:
    """How many rows there are, and why some have no value.

    Args:
        num_rows, num_failed, num_written (`int`): Rows of the input, without value, in the output.
        failures (`dict[str, int]`): How often a reason was met.
    """

    num_rows: int
    num_failed: int
    num_written: int
    failures: dict[str, int]


@dataclass(frozen=True)
class ScreenFolder:
    """The folder of one screen.

    Args:
        path (`Path`): The folder.
        description (`dict`): What decides the content, for `screen.json`; `num_rows`, `shard_size`
            and `output_format` among it.
        keeps_best_only (`bool`): Whether a shard holds its best rows only, with counts of all.
    """

    path: Path
    description: dict[str, Any]
    keeps_best_only: bool

    @property
    def num_shards(self) -> int:
        """Shards of the whole input."""
        return -(-int(self.description["num_rows"]) // int(self.description["shard_size"]))

    def get_rows(self, idx: int) -> range:
        """Return the rows of the input that belong to a shard."""
        shard_size = int(self.description["shard_size"])
        start = idx * shard_size
        return range(start, min(start + shard_size, int(self.description["num_rows"])))

    def get_shard(self, idx: int) -> Path:
        """Return the file of a shard. One with the best rows only is Parquet."""
        extension = "parquet" if self.keeps_best_only else self.description["output_format"]
        return self.path / f"part-{idx:05}.{extension}"

    def list_missing(self, indices: Sequence[int]) -> list[int]:
        """Return those of some shards that are not there."""
        return [idx for idx in indices if not self.get_shard(idx).is_file()]

    def prepare(self) -> None:
        """Create the folder, or check that it belongs to this screen.

        Raises:
            UserError: It cannot be written, or belongs to something else; the message names the
                first difference.
        """
        if self.num_shards > MAX_SHARDS:
            size = -(-int(self.description["num_rows"]) // MAX_SHARDS)
            raise UserError(
                f"{self.description['num_rows']} rows make more than {MAX_SHARDS} shards. Choose "
                f"--shard-size {size} or more."
            )
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file. Choose another output folder.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            found = [path for path in self.path.iterdir() if not path.name.startswith(".")]
        except OSError as error:
            raise UserError(f"Cannot create {self.path}: {error.strerror}.") from error
        if not os.access(self.path, os.W_OK):
            raise UserError(f"{self.path} is not writable. Choose another output folder.")
        manifest = self.path / SCREEN_FILE
        # looked for after the list: another task may just have written it
        if manifest.is_file():
            self._validate_manifest(manifest)
        elif found:
            raise UserError(
                f"The folder {self.path} has files but no {SCREEN_FILE}: it is of something else. "
                "Choose another output folder."
            )
        else:
            self.write_file(SCREEN_FILE, encode_json(self.description))

    def _validate_manifest(self, manifest: Path) -> None:
        try:
            known = json.loads(manifest.read_text(encoding="utf-8"))
            difference = self._find_difference(known)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"{manifest} cannot be read: {error}. Choose another output folder."
            ) from error
        if difference:
            raise UserError(
                f"{self.path} was begun with other options, another model or another input: "
                f"{difference} (first the folder, then this command). Repeat the command as it "
                "was, or choose another output folder."
            )

    def _find_difference(self, known: dict[str, Any]) -> str:
        """Return what tells the most: predictions or embeddings, the processor, then the rest."""
        verbs = ({"verb": part.get("verb")} for part in (known, self.description))
        processors = (part.get("processor", {}) for part in (known, self.description))
        return (
            find_difference(*verbs)
            or find_difference(*processors)
            or find_difference(known, self.description)
        )

    def write_file(self, name: str, content: bytes) -> None:
        """Write a small file, the whole of it or nothing; another task may write the same."""
        path = self.path / name
        try:
            with open_atomically(path) as stream:
                stream.write(content)
        except UserError:
            if not (path.is_file() and path.read_bytes() == content):
                raise

    def remove_leftovers(self, pattern: str) -> None:
        """Remove what a kill left behind.

        Args:
            pattern (`str`): Of the names of the files that were being written.
        """
        for leftover in self.path.glob(f".{pattern}.*.tmp"):
            leftover.unlink(missing_ok=True)

    def save_best(self, idx: int, best: pa.Table, *, counts: RowCounts) -> None:
        """Write a shard of the best rows with the counts of all rows."""
        encoded = json.dumps(asdict(counts), sort_keys=True).encode()
        with open_atomically(self.get_shard(idx)) as stream:
            pq.write_table(best.replace_schema_metadata({_COUNTS_KEY: encoded}), stream)

    def count_rows(self, indices: Sequence[int]) -> RowCounts:
        """Read how many rows the shards have, and why some have no value.

        Raises:
            UserError: A shard is damaged, or does not have the rows that belong to it.
        """
        num_rows = num_written = 0
        reasons: Counter[str] = Counter()
        for idx in indices:
            path = self.get_shard(idx)
            counts = _read_counts(path)
            if counts.num_rows != len(self.get_rows(idx)):
                raise UserError(
                    f"{path} has {counts.num_rows} rows instead of {len(self.get_rows(idx))}. "
                    "Delete it and repeat the command."
                )
            num_rows += counts.num_rows
            num_written += counts.num_written
            reasons.update(counts.failures)
        failures = dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
        return RowCounts(num_rows, reasons.total(), num_written, failures)

    def complete(self, counts: RowCounts) -> None:
        """Write the counts of all shards, and remove what a kill left behind."""
        self.remove_leftovers("*")
        content = {"num_shards": self.num_shards, **asdict(counts)}
        self.write_file(SUMMARY_FILE, encode_json(content))


def count_failures(errors: Sequence[str | None]) -> Counter[str]:
    """Return how often each reason was met, without what is of one molecule only."""
    return Counter(generalize_reason(error) for error in errors if error)


def describe_input(table: Table) -> dict[str, Any]:
    """Return what tells one input from another: its name, its size and a hash of its content.

    Args:
        table (`Table`): Files on the disk are read as a whole; those on the Hub have a commit.
    """
    checksum = hashlib.sha256()
    for file in table.files:
        if file.startswith(HUB_PREFIX):
            checksum.update(file.encode())
            continue
        with explained_reading(file), open(file, "rb") as stream:
            checksum.update(hashlib.file_digest(stream, "sha256").digest())
    if not table.files:
        for chunk in table.iterate_chunks(_COUNT_CHUNK_SIZE):
            checksum.update(json.dumps(chunk.table.to_pylist(), default=str).encode())
    is_local = any(not file.startswith(HUB_PREFIX) for file in table.files)
    return {
        "input": Path(table.source).resolve().name if is_local else table.source,
        "input_sha256": checksum.hexdigest(),
        "num_rows": table.num_rows,
    }


def _read_counts(path: Path) -> RowCounts:
    reasons: Counter[str] = Counter()
    num_rows = 0
    with explained_reading(path):
        if path.suffix == ".csv":
            for error in _iterate_csv_errors(path):
                num_rows += 1
                reasons.update(count_failures([error]))
            return RowCounts(num_rows, reasons.total(), num_rows, dict(reasons))
        with pq.ParquetFile(path) as file:
            if counts := (file.schema_arrow.metadata or {}).get(_COUNTS_KEY):
                return RowCounts(**json.loads(counts))
            for batch in file.iter_batches(batch_size=_COUNT_CHUNK_SIZE, columns=[ERROR_COLUMN]):
                num_rows += batch.num_rows
                reasons.update(count_failures(batch.column(0).drop_null().to_pylist()))
    return RowCounts(num_rows, reasons.total(), num_rows, dict(reasons))


def _iterate_csv_errors(path: Path) -> Iterator[str]:
    with open_text(path) as stream:
        rows = csv.reader(stream, strict=True)
        position = next(rows).index(ERROR_COLUMN)
        for cells in rows:
            yield cells[position]
