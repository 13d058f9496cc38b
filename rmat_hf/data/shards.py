"""Rows of a table to shards of a folder: each appears when it is complete, a second run continues.

The bytes are the same after kills at any moment and whatever the number of processes and tasks.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from rmat_hf.data.tables import HUB_PREFIX, Table, TableChunk
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.output_folder import open_atomically

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
ROW_COLUMN = "row"
MAX_SHARDS = 100_000
_HASHED_ROWS = 8192
# Rows beside the best ones that wait for the next sorting.
_NUM_UNSORTED = 20_000
_TASK = re.compile(r"(\d+)/(\d+)")

Executor = Literal["local", "slurm", "ray"]
Order = Literal["descending", "ascending"]


@dataclass(frozen=True)
class RowCounts:
    """How many rows there are, and why some have no value.

    Args:
        num_rows, num_failed, num_written (`int`): Rows of the input, without value, in the output.
        failures (`dict[str, int]`): How often a reason was met, the most frequent first.
    """

    num_rows: int = 0
    num_failed: int = 0
    num_written: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "RowCounts") -> "RowCounts":
        failures = Counter(self.failures) + Counter(other.failures)
        return RowCounts(
            self.num_rows + other.num_rows,
            self.num_failed + other.num_failed,
            self.num_written + other.num_written,
            dict(sorted(failures.items(), key=lambda item: (-item[1], item[0]))),
        )


class ShardedWork(Protocol):
    """What is done with the rows; a shard depends on its own rows alone."""

    @property
    def description(self) -> dict[str, Any]:
        """What decides the content of the shards, beside the input."""

    @property
    def extension(self) -> str:
        """Of the shards' names, without the point."""

    def compute(self, chunks: Iterable[TableChunk]) -> Generator[Any, None, None]:
        """Yield one result for each chunk, in order; chunks may be taken ahead."""

    def write(self, path: Path, results: Iterable[Any], *, rows: range) -> None:
        """Write a shard of some rows of the input, the whole of it or nothing."""

    def count(self, path: Path) -> RowCounts:
        """Read what is in a shard."""

    def complete(self, folder: Path, shards: Sequence[Path], *, counts: RowCounts) -> RowCounts:
        """Write what belongs beside the shards when they are all there; return what is written."""


def write_shards(
    work: ShardedWork,
    table: Table,
    *,
    folder: Path,
    shard_size: int,
    chunk_size: int,
    max_rows: int | None = None,
    task: str | None = None,
    show_progress: bool = False,
) -> tuple[RowCounts, bool]:
    """Write the shards of one task; the task that ends last completes the folder.

    Args:
        work (`ShardedWork`): What to do with the rows.
        table (`Table`): The input.
        folder (`Path`): Folder to write, or to continue.
        shard_size (`int`): Rows of the input per shard.
        chunk_size (`int`): Rows in memory at a time.
        max_rows (`int`, *optional*): First rows of the input to take. By default all.
        task (`str`, *optional*):
            `RANK/NUM`: every `NUM`-th shard, from that of the rank on. By default all.
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        The counts of all rows and True, or those of the rows of this task and False while shards
        of other tasks are missing.

    Raises:
        UserError: The folder belongs to something else or another run writes it, the input cannot
            be read, or a shard is damaged.
    """
    num_rows = min(table.num_rows, max_rows or table.num_rows)
    layout = _Layout(folder, num_rows, shard_size, work.extension)
    rank, num_tasks = parse_task(task or "0/1")
    _prepare(layout, {**work.description, **describe_input(table), **layout.description})
    own = range(rank, layout.num_shards, num_tasks)
    missing = [idx for idx in own if not layout.get_path(idx).is_file()]
    if missing:
        total = sum(len(layout.get_rows(idx)) for idx in own)
        num_missing = sum(len(layout.get_rows(idx)) for idx in missing)
        with tqdm(
            total=total, initial=total - num_missing, unit="molecule", disable=not show_progress
        ) as progress:
            pieces = _iterate_pieces(table.iterate_chunks(chunk_size), layout)
            _write_missing(work, pieces, layout=layout, missing=missing, report=progress.update)
    shards = [layout.get_path(idx) for idx in range(layout.num_shards)]
    if not all(path.is_file() for path in shards):
        return _count(work, own, layout=layout), False
    # of tasks that end together one after the other completes the folder
    lock = _lock(folder / MANIFEST_FILE, waits=True)
    try:
        counts = _count(work, range(layout.num_shards), layout=layout)
        counts = work.complete(folder, shards, counts=counts)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    finally:
        _unlock(lock)
    return counts, True


@dataclass(frozen=True)
class _Layout:
    folder: Path
    num_rows: int
    shard_size: int
    extension: str

    @property
    def description(self) -> dict[str, int]:
        return {"num_rows": self.num_rows, "shard_size": self.shard_size}

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_size)

    def get_rows(self, idx: int) -> range:
        start = idx * self.shard_size
        return range(start, min(start + self.shard_size, self.num_rows))

    def get_path(self, idx: int) -> Path:
        return self.folder / f"part-{idx:05}.{self.extension}"


def _prepare(layout: _Layout, description: dict[str, Any]) -> None:
    """Create the folder, or check that it belongs to the same work."""
    folder = layout.folder
    if not 0 < layout.num_shards <= MAX_SHARDS:
        raise UserError(
            f"{description['input']} has {layout.num_rows} rows: no shard or more than "
            f"{MAX_SHARDS}. Name an input with molecules, or choose --shard-size "
            f"{-(-layout.num_rows // MAX_SHARDS) or 1} or more."
        )
    manifest = folder / MANIFEST_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} cannot be used: {error}. Choose another output folder."
        ) from error
    if known is None and not found:
        write_file(manifest, encode_json(description))
    elif known is None and not manifest.is_file():  # else another task has just written it
        raise UserError(
            f"The folder {folder} has files but no {MANIFEST_FILE}: it is of something else, or of "
            "an earlier release. Choose another output folder."
        )
    elif known is not None and (difference := find_difference(known, description)):
        raise UserError(
            f"{folder} was begun with other options, another model or another input: {difference} "
            "(first the folder, then this command). Repeat the command as it was, or choose "
            "another output folder."
        )


def _iterate_pieces(
    chunks: Iterable[TableChunk], layout: _Layout
) -> Iterator[tuple[int, TableChunk]]:
    """Yield the rows with the shard that they belong to."""
    row = 0
    for chunk in chunks:
        start = 0
        while start < chunk.num_rows and row < layout.num_rows:
            idx = row // layout.shard_size
            stop = min(chunk.num_rows, start + layout.get_rows(idx).stop - row)
            yield idx, chunk.slice(start, stop - start)
            row += stop - start
            start = stop


def _write_missing(
    work: ShardedWork,
    pieces: Iterable[tuple[int, TableChunk]],
    *,
    layout: _Layout,
    missing: Sequence[int],
    report: Callable[[int], Any],
) -> None:
    """Write shards; chunks are computed ahead, beyond the end of a shard too."""
    begun: deque[tuple[int, int]] = deque()
    locks: dict[int, FileLock] = {}

    def take() -> Iterator[TableChunk]:
        for idx, chunks in _list_wanted(pieces, missing):
            locks[idx] = _lock(layout.get_path(idx))
            if layout.get_path(idx).is_file():  # another run has written it meanwhile
                continue
            for _, chunk in chunks:
                begun.append((idx, chunk.num_rows))
                yield chunk

    def report_each(results: Iterable[tuple[tuple[int, int], Any]]) -> Iterator[Any]:
        for (_, num_rows), result in results:
            yield result
            report(num_rows)

    computed = work.compute(take())
    try:
        paired = ((begun.popleft(), result) for result in computed)
        for idx, results in groupby(paired, key=lambda pair: pair[0][0]):
            work.write(layout.get_path(idx), report_each(results), rows=layout.get_rows(idx))
            _unlock(locks.pop(idx))
    finally:
        computed.close()
        for lock in locks.values():
            _unlock(lock)


def _list_wanted(
    pieces: Iterable[tuple[int, TableChunk]], missing: Sequence[int]
) -> Iterator[tuple[int, Iterator[tuple[int, TableChunk]]]]:
    wanted = set(missing)
    for idx, chunks in groupby(pieces, key=itemgetter(0)):
        if idx in wanted:
            yield idx, chunks
        if idx == missing[-1]:
            return


def _lock(path: Path, *, waits: bool = False) -> FileLock:
    """Keep another run from writing a file; the system drops the lock of a dead process."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if waits else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another run is writing {path.parent}. Wait for it, or end it first."
        ) from error
    except (NotImplementedError, OSError) as error:
        logger.warning(
            "%s is on a disk without locks (%s): start no second run on it.", path.parent, error
        )
    return lock


def _unlock(lock: FileLock) -> None:
    with suppress(OSError):  # while it is locked, so that it is ours
        os.unlink(lock.lock_file)
    lock.release()


def _count(work: ShardedWork, indices: Iterable[int], *, layout: _Layout) -> RowCounts:
    counts = RowCounts()
    for idx in indices:
        path, num_rows = layout.get_path(idx), len(layout.get_rows(idx))
        try:
            with explained_reading(path):
                found = work.count(path)
            damage = f"{path} has {found.num_rows} rows instead of {num_rows}."
        except UserError as error:
            found, damage = RowCounts(num_rows=-1), f"{error}."
        if found.num_rows != num_rows:
            raise UserError(f"{damage} Delete it and repeat the command.")
        counts += found
    return counts


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
        for chunk in table.iterate_chunks(_HASHED_ROWS):
            cells = chunk.table.to_pydict()
            checksum.update(json.dumps(cells, default=str).encode())
    is_local = any(not file.startswith(HUB_PREFIX) for file in table.files)
    return {
        "input": Path(table.source).resolve().name if is_local else table.source,
        "input_sha256": checksum.hexdigest(),
        "num_rows": table.num_rows,
    }


def find_difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Return the first option that differs with both values; empty if there is none.

    What is nested is looked into first: the options of a processor tell more than a hash.
    """
    names = {*first, *second}
    nested = {
        name: (first[name], second[name])
        for name in sorted(first.keys() & second.keys())
        if isinstance(first[name], dict) and isinstance(second[name], dict)
    }
    for options in nested.values():
        if difference := find_difference(*options):
            return difference
    for name in sorted(names - nested.keys()):
        texts = [json.dumps(options.get(name)) for options in (first, second)]
        if texts[0] != texts[1]:
            short = [text if len(text) < 60 else f"{text[:57]}..." for text in texts]
            return f"{name} is {short[0]} in one and {short[1]} in the other"
    return ""


def count_failures(errors: Iterable[str | None]) -> dict[str, int]:
    """Return how often each reason was met, without what is of one molecule only."""
    return dict(Counter(_generalize(error) for error in errors if error))


def _generalize(reason: str) -> str:
    general = re.sub(r"'[^']*'", "'…'", reason.split("\n")[0])
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"(while parsing|for input): .*", r"\1 …", general))


def encode_json(content: Any) -> bytes:
    """Return JSON for people to read."""
    return (json.dumps(content, indent=2) + "\n").encode()


def write_file(path: Path, content: bytes) -> None:
    """Write a small file, the whole of it or nothing; another task may write the same."""
    with open_atomically(path) as stream:
        stream.write(content)


class TopRows:
    """Keeps the best rows of a table of any size; of equal ones the first, none without a number.

    Args:
        num_rows (`int`): How many.
        column (`str`): Column of numbers that decides.
        order (`str`): `"descending"`: the largest are the best; `"ascending"`: the smallest.
        schema (`pa.Schema`): All columns, `row` among them: the position in the input.
    """

    def __init__(self, num_rows: int, *, column: str, order: Order, schema: pa.Schema) -> None:
        self._num_rows = num_rows
        self._column = column
        self._sort_keys = [(column, order), (ROW_COLUMN, "ascending")]
        self._best = schema.empty_table()

    def add(self, rows: pa.Table) -> None:
        """Take rows into account."""
        finite = rows.filter(pc.is_finite(rows[self._column]))
        self._best = pa.concat_tables([self._best, finite])
        if self._best.num_rows > 2 * self._num_rows + _NUM_UNSORTED:
            self._best = self.to_table()

    def to_table(self) -> pa.Table:
        """Return the rows from the best to the worst."""
        order = pc.sort_indices(self._best, sort_keys=self._sort_keys)
        return self._best.take(order[: self._num_rows])


def parse_task(task: str) -> tuple[int, int]:
    """Return rank and number of tasks of `--task RANK/NUM`.

    Raises:
        UserError: It is another text, or there is no such rank.
    """
    found = _TASK.fullmatch(task)
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"--task {task!r} is not RANK/NUM with a rank from 0 on, as 0/4 to 3/4.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class RunTask:
    """Step of a datatrove pipeline: one task of a command that writes a folder of shards.

    Args:
        run (`Callable`): `run_prediction`, `run_embedding` or `run_featurization`.
        arguments: Its flags.
    """

    run: Callable[[Any], Any]
    arguments: Any

    def __call__(  # noqa: PLR0917 - datatrove calls it by position
        self, data: object, rank: int = 0, world_size: int = 1
    ) -> None:
        """Write every `world_size`-th shard; the task that ends last completes the folder."""
        self.run(replace(self.arguments, task=f"{rank}/{world_size}"))


def run_distributed(
    run: Callable[[Any], Any],
    arguments: Any,
    *,
    num_tasks: int,
    logging_dir: str,
    executor: Executor = "local",
    executor_options: dict[str, Any] | None = None,
) -> None:
    """Run a command as tasks of datatrove (extra `distributed`): here, on Slurm or on Ray.

    The bytes of the folder are those of one process, and the same call again continues. On a
    cluster it returns when the jobs are queued:

        run_distributed(
            run_prediction, PredictionArguments(model="runs/pic50", input="library.parquet",
            output="screen"), num_tasks=500, logging_dir="logs", executor="slurm",
            executor_options={"time": "24:00:00", "partition": "cpu", "venv_path": "/venv/activate"}
        )

    Args:
        run (`Callable`): `run_prediction`, `run_embedding` or `run_featurization`.
        arguments: Its flags. All machines read and write under these names.
        num_tasks (`int`): Parts of the work, one process each. More than shards are of no use.
        logging_dir (`str`): Folder for the logs of the tasks, which all machines share.
        executor (`str`, *optional*, defaults to `"local"`): `"local"`, `"slurm"` or `"ray"`.
        executor_options (`dict`, *optional*):
            More arguments of datatrove's executor, for example `workers`, `time`, `partition`.

    Raises:
        UserError: There is no such executor, or it is not installed.
    """
    step = RunTask(run, replace(arguments, task=f"0/{num_tasks}"))
    try:
        module = import_module(f"datatrove.executor.{executor}")
    except ImportError as error:
        raise UserError(
            f"There is no executor {executor!r} of datatrove ({error}). Choose local, slurm or ray,"
            " and install the extra: pip install 'rmat-hf[distributed]', for ray also ray."
        ) from error
    # what is there is not computed again: the tasks look for it themselves
    getattr(module, f"{executor.capitalize()}PipelineExecutor")(
        [step],
        tasks=num_tasks,
        logging_dir=logging_dir,
        **{**(executor_options or {}), "skip_completed": False},
    ).run()
