"""Read parts of a table in one pass: ranges of rows, in order, taken one by one."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def take_ranges(
    items: Iterable[Item], ranges: Iterable[range], *, chunk_size: int, num_items: int
) -> Iterator[list[Item]]:
    """Yield the items of the ranges in chunks; what lies between the ranges is read over.

    The next range is asked for only when all chunks of the one before have been taken.

    Args:
        items (`Iterable`): From the first one on.
        ranges (`Iterable[range]`): Positions, ascending, none twice.
        chunk_size (`int`): Most items of a chunk, which lies within one range.
        num_items (`int`): How many there were when they were counted.

    Raises:
        ValueError: There are fewer now, or more: they end before a range does, or go on after the
            last range of all.
    """
    iterator = iter(items)
    position = 0
    for wanted in ranges:
        num_skipped = wanted.start - position
        next(islice(iterator, num_skipped, num_skipped), None)
        for start, stop in iterate_chunk_bounds(wanted, chunk_size=chunk_size):
            chunk = list(islice(iterator, stop - start))
            if len(chunk) < stop - start:
                raise ValueError(f"it ended at row {start + len(chunk)}, it has changed meanwhile")
            yield chunk
        position = wanted.stop
        if position == num_items and list(islice(iterator, 1)):
            raise ValueError(f"it has more than {num_items} rows, it has changed meanwhile")


def iterate_chunk_bounds(wanted: range, *, chunk_size: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of every chunk of a range, and the row after its last one."""
    for start in range(wanted.start, wanted.stop, chunk_size):
        yield start, min(start + chunk_size, wanted.stop)


class RangeDivider:
    """Hands the ranges of a whole out to its parts, which follow each other.

    Args:
        ranges (`Iterable[range]`): Rows of the whole, ascending; taken one by one.
    """

    def __init__(self, ranges: Iterable[range]) -> None:
        self._ranges = iter(ranges)
        self._rest: range | None = None

    def take_part(self, part: range) -> Iterator[range]:
        """Yield what lies in the part, counted from its first row; a range may be cut at its end.

        Args:
            part (`range`): Rows of the whole, which begin where those of the last part ended.
        """
        while True:
            if self._rest is None:
                self._rest = next(self._ranges, None)
            if self._rest is None or self._rest.start >= part.stop:
                return
            wanted = range(self._rest.start, min(self._rest.stop, part.stop))
            rest = range(wanted.stop, self._rest.stop)
            self._rest = rest or None
            yield range(wanted.start - part.start, wanted.stop - part.start)
