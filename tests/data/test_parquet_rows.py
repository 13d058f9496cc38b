from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmat_hf.data import parquet_rows
from rmat_hf.data.parquet_rows import ParquetFooter, read_footer, read_parquet_ranges


@pytest.fixture
def footer(tmp_path: Path) -> ParquetFooter:
    path = tmp_path / "rows.parquet"
    table = pa.table({"id": range(20), "text": [str(row) for row in range(20)]})
    pq.write_table(table.replace_schema_metadata({"pandas": "old"}), path, row_group_size=6)
    return read_footer(str(path))


def test_footer_tells_columns_and_row_groups(footer: ParquetFooter) -> None:
    assert footer.group_sizes == (6, 6, 6, 2)
    assert footer.num_rows == 20
    assert footer.schema.names == ["id", "text"]
    assert footer.schema.metadata is None


@pytest.mark.parametrize("decoded_rows", [1, 4, 8192])
@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_ranges_hold_their_rows_whatever_is_decoded_at_a_time(
    footer: ParquetFooter, chunk_size: int, decoded_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_rows, "_DECODED_ROWS", decoded_rows)
    ranges = [range(1, 3), range(4, 14), range(15, 16), range(19, 20)]
    chunks = list(read_parquet_ranges(footer, ranges, chunk_size=chunk_size))
    found = [value for chunk in chunks for value in chunk["id"].to_pylist()]
    assert found == [row for wanted in ranges for row in wanted]
    if chunk_size == 5:
        assert [chunk.num_rows for chunk in chunks] == [2, 5, 5, 1, 1]


def test_row_groups_before_the_wanted_rows_are_not_decoded(
    footer: ParquetFooter, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def record(self: pq.ParquetFile, **options: object) -> object:
        decoded.extend(options["row_groups"])  # type: ignore[call-overload]
        return iter_batches(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record)
    chunks = read_parquet_ranges(footer, [range(13, 14), range(18, 20)], chunk_size=9)
    assert [chunk["id"].to_pylist() for chunk in chunks] == [[13], [18, 19]]
    assert decoded == [2, 3]


def test_only_the_columns_asked_for_are_read(footer: ParquetFooter) -> None:
    (chunk,) = read_parquet_ranges(footer, [range(2)], chunk_size=9, columns=["text"])
    assert chunk.to_pydict() == {"text": ["0", "1"]}


def test_file_without_a_wanted_row_stays_closed(footer: ParquetFooter) -> None:
    Path(footer.path).unlink()
    assert list(read_parquet_ranges(footer, [], chunk_size=9)) == []


def test_file_that_has_changed_meanwhile_is_an_error(footer: ParquetFooter) -> None:
    pq.write_table(pa.table({"id": [1], "text": ["1"]}), footer.path)
    with pytest.raises(ValueError, match="it has other rows than before, it has changed meanwhile"):
        list(read_parquet_ranges(footer, [range(3)], chunk_size=9))
