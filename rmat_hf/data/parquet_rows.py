"""Read rows of Parquet files, on the disk or on the Hub, without those before their row group."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfFileSystem

from rmat_hf.data.row_ranges import iterate_chunk_bounds

HUB_PREFIX = "hf://"
# Bytes of a column that wait to be decoded; without a limit it is the column of a row group.
_BUFFER_SIZE = 2**20
_DECODED_ROWS = 8192


@dataclass(frozen=True)
class ParquetFooter:
    """What is read before the rows.

    Args:
        path (`str`): File on the disk, or address on the Hub.
        schema (`pa.Schema`): Columns, without metadata.
        group_sizes (`tuple[int, ...]`): Rows of every row group.
    """

    path: str
    schema: pa.Schema
    group_sizes: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return sum(self.group_sizes)


def read_footer(path: str) -> ParquetFooter:
    """Read the footer of a Parquet file on the disk or on the Hub."""
    with ExitStack() as stack:
        file = _open(path, stack)
        sizes = _get_group_sizes(file)
        # metadata of the schema describe the old set of columns, wrong as soon as one is added
        return ParquetFooter(path, file.schema_arrow.remove_metadata(), sizes)


def read_parquet_ranges(
    footer: ParquetFooter,
    ranges: Iterable[range],
    *,
    chunk_size: int,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows of the ranges in chunks, as `take_ranges` does.

    Args:
        footer (`ParquetFooter`): Of the file.
        ranges (`Iterable[range]`): Rows, ascending, none twice.
        chunk_size (`int`): Most rows of a chunk, which lies within one range.
        columns (`Sequence[str]`, *optional*): By default all.
    """
    with ExitStack() as stack:
        reader: _RowReader | None = None
        for wanted in ranges:
            # a file without a wanted row stays closed
            reader = reader or _RowReader(_open(footer.path, stack), footer, columns=columns)
            for start, stop in iterate_chunk_bounds(wanted, chunk_size=chunk_size):
                yield reader.read(start, stop)


class _RowReader:
    """Reads forward; what lies in a row group before the wanted rows is decoded and dropped."""

    def __init__(
        self, file: pq.ParquetFile, footer: ParquetFooter, *, columns: Sequence[str] | None
    ) -> None:
        if _get_group_sizes(file) != footer.group_sizes:
            raise ValueError("it has other rows than before, it has changed meanwhile")
        self._file = file
        self._columns = columns
        self._first_rows = [0, *accumulate(footer.group_sizes)]
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._batch_start = 0

    def read(self, start: int, stop: int) -> pa.Table:
        pieces = []
        while start < stop:
            batch, offset = self._find(start)
            pieces.append(batch.slice(offset, stop - start))
            start += pieces[-1].num_rows
        return pa.Table.from_batches(pieces)

    def _find(self, row: int) -> tuple[pa.RecordBatch, int]:
        """Return the batch with a row, and where in it the row is."""
        group = bisect_right(self._first_rows, row) - 1
        if group != self._group:
            self._group, self._batch = group, None
            self._batch_start = self._first_rows[group]
            self._batches = self._file.iter_batches(
                batch_size=_DECODED_ROWS, row_groups=[group], columns=self._columns
            )
        while self._batch is None or row >= self._batch_start + self._batch.num_rows:
            if self._batch is not None:
                self._batch_start += self._batch.num_rows
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise ValueError(f"it ended before row {row}, it has changed meanwhile")
        return self._batch, row - self._batch_start


def _get_group_sizes(file: pq.ParquetFile) -> tuple[int, ...]:
    metadata = file.metadata
    return tuple(metadata.row_group(idx).num_rows for idx in range(metadata.num_row_groups))


def _open(path: str, stack: ExitStack) -> pq.ParquetFile:
    source: str | IO[Any] = path
    if path.startswith(HUB_PREFIX):
        source = stack.enter_context(HfFileSystem().open(path))
    return stack.enter_context(pq.ParquetFile(source, buffer_size=_BUFFER_SIZE))
