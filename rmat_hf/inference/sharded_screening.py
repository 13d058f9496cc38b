"""Screen a table of any size to a folder of shards, in one process or many, to be continued."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import rdkit
import torch
from tqdm.auto import tqdm

from rmat_hf import __version__
from rmat_hf.data.screen_folder import (
    ERROR_COLUMN,
    SCREEN_FILE,
    TOP_FILE_STEM,
    RowCounts,
    ScreenFolder,
    count_failures,
    describe_input,
)
from rmat_hf.data.shard_locks import ShardLocks
from rmat_hf.data.table_writer import ColumnKind, TableWriter, build_output_schema
from rmat_hf.data.tables import Table, TableChunk
from rmat_hf.data.top_rows import ROW_COLUMN, TopRowsCollector
from rmat_hf.errors import UserError
from rmat_hf.inference.screening_options import ScreeningOptions, ScreeningResult
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.worker_processes import one_thread, run_in_processes


@dataclass(frozen=True)
class ScreenModel:
    """A loaded model, as a screen uses it.

    Args:
        compute (`Callable`): Molecules in, the values of the added columns out.
        added_columns (`dict[str, ColumnKind]`): What they hold.
        description (`dict`): What decides the values.
    """

    compute: Callable[[list[Molecule]], dict[str, list[Any]]]
    added_columns: dict[str, ColumnKind]
    description: dict[str, Any]


@dataclass(frozen=True)
class Screen:
    """A table and what to do with it; can be sent to another process.

    Args:
        table (`Table`): The molecules.
        smiles_column (`str`): Column of SMILES.
        load_model (`Callable`): Function of a module, or a partial of one, that loads the model.
        options (`ScreeningOptions`): How.
    """

    table: Table
    smiles_column: str
    load_model: Callable[[], ScreenModel]
    options: ScreeningOptions

    def build_collector(self, added_columns: dict[str, ColumnKind]) -> TopRowsCollector | None:
        """Return what keeps the best rows, if only they are wanted.

        Raises:
            ValueError: No column of numbers decides.
        """
        if self.options.top_rows is None:
            return None
        numbers = [name for name, kind in added_columns.items() if kind == "number"]
        if not numbers:
            raise ValueError("--top-k needs predicted numbers, there are none. Leave it out.")
        column = self.options.top_rows.choose_column(numbers)
        names = [*self.table.column_names, *added_columns]
        return TopRowsCollector(self.options.top_rows, column=column, column_names=names)

    def list_output_columns(self, added_columns: dict[str, ColumnKind]) -> dict[str, ColumnKind]:
        """Return the columns that the output has beside those of the input."""
        if self.options.top_rows is None:
            return added_columns
        return {**added_columns, ROW_COLUMN: "integer"}

    def compute(self, chunk: TableChunk, model: ScreenModel) -> dict[str, list[Any]]:
        """Return a chunk with the added columns."""
        return {**chunk.columns, **model.compute([*chunk.molecules(self.smiles_column)])}


def run_sharded_screen(screen: Screen, output_dir: Path) -> ScreeningResult:
    """Write the shards of all tasks or of one; complete the folder when none is missing.

    A shard appears when it is complete. The same call again continues, after a kill at any moment
    too, and the folder ends up with the same bytes, whatever the number of processes and tasks.

    Args:
        screen (`Screen`): What to compute.
        output_dir (`Path`): Folder to write, or to continue.

    Raises:
        UserError: The folder belongs to another screen, or cannot be written.
        UserError: The input cannot be read, or a shard of the folder is damaged.
        WorkerProcessError: A process died. The shards that are there stay.
    """
    if screen.table.num_rows == 0:
        raise UserError(f"{screen.table.source} has no rows. Name an input with molecules.")
    model = screen.load_model()
    # a column that cannot be added, or decide, is found before there is a folder
    build_output_schema(screen.table.schema, screen.list_output_columns(model.added_columns))
    collector = screen.build_collector(model.added_columns)
    folder = ScreenFolder(
        output_dir, _describe_screen(screen, model), keeps_best_only=collector is not None
    )
    folder.prepare()
    rank, num_tasks = screen.options.task or (0, 1)
    own = range(rank, folder.num_shards, num_tasks)
    if missing := folder.list_missing(own):
        num_rows = sum(len(folder.get_rows(idx)) for idx in own)
        writer = _ShardWriter(screen, folder)
        writer.write_missing(model, missing=missing, num_rows=num_rows)
    if folder.list_missing(range(folder.num_shards)):
        return _build_result(output_dir, folder.count_rows(own), is_complete=False)
    with ShardLocks(output_dir / SCREEN_FILE) as locks:
        # of tasks that end together one after the other completes the folder
        locks.lock(folder.num_shards, waits=True)
        return _complete(screen, folder, model=model)


def _complete(screen: Screen, folder: ScreenFolder, *, model: ScreenModel) -> ScreeningResult:
    counts = folder.count_rows(range(folder.num_shards))
    if collector := screen.build_collector(model.added_columns):
        for idx in range(folder.num_shards):
            columns = pq.read_table(folder.get_shard(idx)).to_pydict()
            collector.add(columns, rows=columns[ROW_COLUMN])
        best = collector.to_columns()
        with TableWriter(
            folder.path / f"{TOP_FILE_STEM}.{folder.description['output_format']}",
            input_schema=screen.table.schema,
            added_columns=screen.list_output_columns(model.added_columns),
            csv_formulas=screen.options.csv_formulas,
        ) as table:
            table.write(best)
        counts = replace(counts, num_written=len(best[ROW_COLUMN]))
    folder.complete(counts)
    return _build_result(folder.path, counts, is_complete=True)


def _describe_screen(screen: Screen, model: ScreenModel) -> dict[str, Any]:
    """Return what decides the bytes of the output."""
    options = screen.options
    packages = {"rmat_hf": __version__, "rdkit": rdkit.__version__, "torch": torch.__version__}
    return {
        **model.description,
        **describe_input(screen.table),
        "smiles_column": screen.smiles_column,
        "shard_size": options.shard_size,
        "output_format": options.output_format or "parquet",
        "csv_formulas": options.csv_formulas,
        "top_rows": options.top_rows and asdict(options.top_rows),
        # they decide the last digits
        "batch_size": options.batch_size,
        "chunk_size": options.chunk_size,
        "versions": packages,
    }


def _build_result(output_dir: Path, counts: RowCounts, *, is_complete: bool) -> ScreeningResult:
    return ScreeningResult(
        output_dir, counts.num_rows, counts.num_failed, counts.num_written, is_complete
    )


@dataclass(frozen=True)
class _ShardWriter:
    """Computes shards of a folder, in this process or as the work of others."""

    screen: Screen
    folder: ScreenFolder

    def write_missing(self, model: ScreenModel, *, missing: Sequence[int], num_rows: int) -> None:
        """Write shards; the progress is that of `num_rows`."""
        options = self.screen.options
        num_missing = sum(len(self.folder.get_rows(idx)) for idx in missing)
        with tqdm(
            total=num_rows,
            initial=num_rows - num_missing,
            unit="molecule",
            disable=not options.show_progress,
        ) as progress:
            if options.num_proc <= 1:
                with one_thread():
                    self.write(model, iter(missing), report=progress.update)
            else:
                run_in_processes(
                    self.load_and_write,
                    missing,
                    num_proc=options.num_proc,
                    report=progress.update,
                )

    def load_and_write(self, indices: Iterator[int], report: Callable[[int], Any]) -> None:
        self.write(self.screen.load_model(), indices, report=report)

    def write(
        self, model: ScreenModel, indices: Iterator[int], *, report: Callable[[int], Any]
    ) -> None:
        with ShardLocks(self.folder.path / SCREEN_FILE) as locks:

            def claim() -> Iterator[tuple[int, range]]:
                for idx in indices:
                    locks.lock(idx)
                    # another run may have written it meanwhile
                    if self.folder.list_missing([idx]):
                        yield idx, self.folder.get_rows(idx)
                    else:
                        report(len(self.folder.get_rows(idx)))

            for idx, chunks in _read_shards(self.screen, claim()):
                self.folder.remove_leftovers(self.folder.get_shard(idx).name)
                added = self._add_columns(chunks, model, report=report)
                if self.folder.keeps_best_only:
                    self._save_best(idx, added, model=model)
                else:
                    self._save_all(idx, added, model=model)

    def _add_columns(
        self, chunks: Iterable[TableChunk], model: ScreenModel, *, report: Callable[[int], Any]
    ) -> Iterator[dict[str, list[Any]]]:
        for chunk in chunks:
            yield self.screen.compute(chunk, model)
            report(chunk.num_rows)

    def _save_all(
        self, idx: int, chunks: Iterable[dict[str, list[Any]]], *, model: ScreenModel
    ) -> None:
        with TableWriter(
            self.folder.get_shard(idx),
            input_schema=self.screen.table.schema,
            added_columns=model.added_columns,
            csv_formulas=self.screen.options.csv_formulas,
        ) as writer:
            for columns in chunks:
                writer.write(columns)

    def _save_best(
        self, idx: int, chunks: Iterable[dict[str, list[Any]]], *, model: ScreenModel
    ) -> None:
        collector = self.screen.build_collector(model.added_columns)
        failures: Counter[str] = Counter()
        rows = iter(self.folder.get_rows(idx))
        for columns in chunks:
            errors = columns[ERROR_COLUMN]
            failures.update(count_failures(errors))
            if collector is not None:
                collector.add(columns, rows=list(islice(rows, len(errors))))
        best = collector.to_columns() if collector is not None else {}
        schema = build_output_schema(
            self.screen.table.schema, self.screen.list_output_columns(model.added_columns)
        )
        counts = RowCounts(
            num_rows=len(self.folder.get_rows(idx)),
            num_failed=failures.total(),
            num_written=len(best[ROW_COLUMN]),
            failures=dict(sorted(failures.items())),
        )
        self.folder.save_best(idx, pa.table(best, schema=schema), counts=counts)


def _read_shards(
    screen: Screen, shards: Iterable[tuple[int, range]]
) -> Iterator[tuple[int, Iterator[TableChunk]]]:
    """Yield the chunks of every shard; the next shard is asked for when they are used up."""
    current: tuple[int, range] = (0, range(0))

    def take() -> Iterator[range]:
        nonlocal current
        for current in shards:
            yield current[1]

    chunks = screen.table.iterate_chunks(screen.options.chunk_size, ranges=take())
    for first in chunks:
        idx, rows = current
        yield idx, _take_shard(first, chunks, num_rows=len(rows))


def _take_shard(
    first: TableChunk, others: Iterator[TableChunk], *, num_rows: int
) -> Iterator[TableChunk]:
    num_rows -= first.num_rows
    yield first
    while num_rows > 0:
        chunk = next(others)
        num_rows -= chunk.num_rows
        yield chunk
