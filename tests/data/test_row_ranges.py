from collections.abc import Iterator

import pytest

from rmat_hf.data.row_ranges import RangeDivider, iterate_chunk_bounds, take_ranges


def test_ranges_are_taken_in_chunks_that_lie_within_one_of_them() -> None:
    ranges = [range(0, 5), range(7, 8), range(10, 14)]
    chunks = list(take_ranges(range(100), ranges, chunk_size=3, num_items=100))
    assert chunks == [[0, 1, 2], [3, 4], [7], [10, 11, 12], [13]]


def test_next_range_is_asked_for_when_the_chunks_before_are_taken() -> None:
    asked = []

    def claim() -> Iterator[range]:
        for start in (0, 10):
            asked.append(start)
            yield range(start, start + 4)

    chunks = take_ranges(range(100), claim(), chunk_size=2, num_items=100)
    assert [next(chunks), next(chunks)] == [[0, 1], [2, 3]]
    assert asked == [0]
    assert next(chunks) == [10, 11]
    assert asked == [0, 10]


@pytest.mark.parametrize("wanted", [range(3, 6), range(8, 9)])
def test_items_that_end_early_are_an_error(wanted: range) -> None:
    with pytest.raises(ValueError, match="it has changed meanwhile"):
        list(take_ranges(range(5), [wanted], chunk_size=9, num_items=9))


def test_items_that_go_on_after_the_last_range_are_an_error() -> None:
    for ranges in ([range(0, 4)], [range(0, 2), range(3, 4)]):
        assert list(take_ranges(range(4), ranges, chunk_size=9, num_items=4))
        with pytest.raises(ValueError, match="it has more than 4 rows, it has changed meanwhile"):
            list(take_ranges(range(5), ranges, chunk_size=9, num_items=4))


def test_chunk_bounds_cover_the_range() -> None:
    assert list(iterate_chunk_bounds(range(3, 10), chunk_size=3)) == [(3, 6), (6, 9), (9, 10)]


def test_ranges_are_divided_among_parts_and_cut_at_their_ends() -> None:
    divider = RangeDivider(iter([range(1, 3), range(4, 12), range(13, 14)]))
    parts = [range(0, 5), range(5, 7), range(7, 10), range(10, 13), range(13, 20)]
    assert [list(divider.take_part(part)) for part in parts] == [
        [range(1, 3), range(4, 5)],
        [range(0, 2)],
        [range(0, 3)],
        [range(0, 2)],
        [range(0, 1)],
    ]
