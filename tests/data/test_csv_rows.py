import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from rmat_hf.data.csv_rows import build_csv_writer

CELLS = st.text(st.sampled_from("a,\"'\r\n\t =é"), max_size=5)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=4))
def test_every_cell_comes_back_whatever_line_breaks_it_has(rows: list[list[str]]) -> None:
    stream = io.StringIO(newline="")
    build_csv_writer(stream).writerows(rows)
    assert list(csv.reader(io.StringIO(stream.getvalue(), newline=""), strict=True)) == rows


def test_rows_end_with_a_line_feed() -> None:
    stream = io.StringIO(newline="")
    build_csv_writer(stream).writerow(["a", "b\rc", None])
    assert stream.getvalue() == 'a,"b\rc",\n'
