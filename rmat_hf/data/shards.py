"""Rows of a table to shards of a folder: each appears when it is complete, a second run continues.

The bytes are the same after kills at any moment and whatever the number of processes and tasks.
"""

import hashlib
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from tqdm.auto import tqdm

from rmat_hf.data.table_files import HUB_PREFIX
from rmat_hf.data.tables import Table, TableChunk
from rmat_hf.errors import UserError, explained_reading, explained_writing
from rmat_hf.output_folder import hold_lock, load_json, save_json

MANIFEST_FILE = "manifest.json"
ROW_COLUMN = "row"
MAX_SHARDS = 100_000
_HASHED_ROWS = 8192
# Rows beside the best ones that wait for the next sorting.
_NUM_UNSORTED = 20_000
_TASK = re.compile(r"(\d+)/(\d+)")

Executor = Literal["local", "slurm", "ray"]
Order = Literal["descending", "ascending"]


class Shard(NamedTuple):
    """A file of the folder and the rows of the input that it is about."""

    path: Path
    rows: range


# Rows of a shard, and what was computed of them; the shard is handed on as it is.
Piece = tuple[Any, TableChunk]
Result = tuple[Any, Any]


class ShardedWork(Protocol):
    """What is done with the rows; a shard depends on its own rows alone."""

    @property
    def description(self) -> dict[str, Any]:
        """What decides the content of the shards, beside the input."""

    @property
    def extension(self) -> str:
        """Of the shards' names, without the point."""

    def compute(self, pieces: Iterable[Piece]) -> Generator[Result, None, None]:
        """Yield the results of each piece, one a row, in order; pieces may be taken ahead."""

    def write(self, path: Path, results: Iterable[Any], *, rows: range) -> None:
        """Write a shard of some rows of the input, the whole of it or nothing."""

    def count(self, path: Path) -> Counter[str]:
        """Read how many rows of a shard have each reason, as from [`count_failures`]."""

    def complete(self, folder: Path, shards: Sequence[Path], *, counts: Counter[str]) -> None:
        """Write what belongs beside the shards when they are all there."""


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
) -> tuple[Counter[str], bool]:
    """Write the shards of one task; the task that ends last completes the folder."""
    num_rows = min(table.num_rows, max_rows or table.num_rows)
    rank, num_tasks = parse_task(task or "0/1")
    shards = [
        Shard(folder / f"part-{idx:05}.{work.extension}", range(num_rows)[start:][:shard_size])
        for idx, start in enumerate(range(0, num_rows, shard_size))
    ]
    sizes = {"num_rows": num_rows, "shard_size": shard_size}
    _prepare(folder, {**work.description, **describe_input(table), **sizes}, num_shards=len(shards))
    own = shards[rank::num_tasks]
    missing = [shard for shard in own if not shard.path.is_file()]
    if missing:
        num_missing, total = (sum(len(shard.rows) for shard in part) for part in (missing, own))
        with tqdm(
            total=total, initial=total - num_missing, unit="molecule", disable=not show_progress
        ) as progress:
            pieces = _iterate_pieces(table.iterate_chunks(chunk_size), missing)
            _write_missing(work, pieces, report=progress.update)
    if not all(shard.path.is_file() for shard in shards):
        return _count(work, own), False
    # of tasks that end together one after the other completes the folder
    with hold_lock(folder / MANIFEST_FILE, waits=True):
        counts = _count(work, shards)
        work.complete(folder, [shard.path for shard in shards], counts=counts)
        # of runs that were killed, also just after a shard was there and before its lock ended
        for leftover in [*folder.glob(".*.tmp"), *folder.glob(".part-*.lock")]:
            leftover.unlink(missing_ok=True)
    return counts, True


def _prepare(folder: Path, description: dict[str, Any], *, num_shards: int) -> None:
    """Create the folder, or check that it belongs to the same work."""
    manifest = folder / MANIFEST_FILE
    if not 0 < num_shards <= MAX_SHARDS:
        num_rows = description["num_rows"]
        raise UserError(
            f"{description['input']} has {num_rows} rows: no shard or more than {MAX_SHARDS}. Name "
            f"an input with molecules, or choose --shard-size {-(-num_rows // MAX_SHARDS) or 1} or "
            "more."
        )
    with explained_writing(folder, way_out="Choose another output folder."):
        folder.mkdir(parents=True, exist_ok=True)
        found = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if manifest.is_file():
        if difference := find_difference(load_json(manifest), description):
            raise UserError(
                f"{folder} was begun with other options, another model or another input: "
                f"{difference} (first the folder, then this command). Repeat the command as it "
                "was, or choose another output folder."
            )
    elif found and not manifest.is_file():  # else another task has just written it
        raise UserError(
            f"The folder {folder} has files but no {MANIFEST_FILE}: it is of something else, or of "
            "an earlier release. Choose another output folder."
        )
    else:
        save_json(manifest, description)


def _iterate_pieces(chunks: Iterable[TableChunk], shards: Iterable[Shard]) -> Iterator[Piece]:
    """Yield the rows of some shards, which are in order."""
    waiting = deque(shards)
    first = 0
    for chunk in chunks:
        last = first + chunk.num_rows
        while waiting and waiting[0].rows.start < last:
            rows = waiting[0].rows
            start, stop = max(rows.start, first), min(rows.stop, last)
            yield waiting[0], chunk.slice(start - first, stop - start)
            if rows.stop > last:
                break
            waiting.popleft()
        if not waiting:
            return
        first = last


def _write_missing(
    work: ShardedWork, pieces: Iterable[Piece], *, report: Callable[[int], Any]
) -> None:
    """Write shards; pieces are computed ahead, beyond the end of a shard too."""
    locks: dict[Shard, ExitStack] = {}

    def take() -> Iterator[Piece]:
        for shard, its_pieces in groupby(pieces, key=itemgetter(0)):
            locks[shard] = ExitStack()
            locks[shard].enter_context(hold_lock(shard.path))
            if not shard.path.is_file():  # else another run has written it meanwhile
                yield from its_pieces

    def report_each(results: Iterable[Result]) -> Iterator[Sized]:
        for _, result in results:
            yield result
            report(len(result))

    computed = work.compute(take())
    try:
        for shard, results in groupby(computed, key=itemgetter(0)):
            work.write(shard.path, report_each(results), rows=shard.rows)
            locks.pop(shard).close()
    finally:
        computed.close()
        for lock in locks.values():
            lock.close()


def _count(work: ShardedWork, shards: Iterable[Shard]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for path, rows in shards:
        try:
            with explained_reading(path):
                found = work.count(path)
                if found.total() != len(rows):
                    raise ValueError(f"it has {found.total()} rows instead of {len(rows)}")
        except UserError as error:
            raise UserError(f"{error} Delete it and repeat the command.") from error
        counts += found
    return counts


def describe_input(table: Table) -> dict[str, Any]:
    """Return what tells one input from another: its name, its size and a hash of its content."""
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
    for name in sorted(names, key=lambda name: (not isinstance(first.get(name), dict), name)):
        pair = [first.get(name), second.get(name)]
        if isinstance(pair[0], dict) and isinstance(pair[1], dict):
            if difference := find_difference(pair[0], pair[1]):
                return difference
            continue
        texts = [json.dumps(value) for value in pair]
        if texts[0] != texts[1]:
            short = [text if len(text) < 60 else f"{text[:57]}..." for text in texts]
            return f"{name} is {short[0]} in one and {short[1]} in the other"
    return ""


def take_best(tables: Iterable[pa.Table], num_rows: int, *, column: str, order: Order) -> pa.Table:
    """Return the best rows of tables of any size, the best first.

    Args:
        order (`str`): `"descending"`: the largest are the best; `"ascending"`: the smallest. Of
            equal ones the first in the input is.
    """
    sort_keys = [(column, order), (ROW_COLUMN, "ascending")]
    best: list[pa.Table] = []

    def sort() -> pa.Table:
        rows = pa.concat_tables(best)
        return rows.take(pc.sort_indices(rows, sort_keys=sort_keys)[:num_rows])

    for table in tables:
        best.append(table.filter(pc.is_finite(table[column])))
        if sum(map(len, best)) > 2 * num_rows + _NUM_UNSORTED:
            best = [sort()]
    return sort()


def parse_task(task: str) -> tuple[int, int]:
    """Return rank and number of tasks of `--task RANK/NUM`."""
    found = _TASK.fullmatch(task)
    if found is None or int(found[1]) >= int(found[2]):
        raise UserError(f"--task {task!r} is not RANK/NUM with a rank from 0 on, as 0/4 to 3/4.")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class RunTask:
    """Step of a datatrove pipeline: one task of a command, as in [`run_distributed`]."""

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
        logging_dir (`str`): Folder for the logs of the tasks, which all machines share.
        executor_options (`dict`, *optional*):
            More arguments of datatrove's executor, for example `workers`, `time`, `partition`.
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
    options = {**(executor_options or {}), "skip_completed": False}
    build = getattr(module, f"{executor.capitalize()}PipelineExecutor")
    build([step], tasks=num_tasks, logging_dir=logging_dir, **options).run()
