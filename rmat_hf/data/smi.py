"""Read a .smi file: a SMILES in every line, then, after a blank, anything; no header."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from rmat_hf.data.row_ranges import take_ranges
from rmat_hf.data.tables import Table, TableChunk
from rmat_hf.data.text_input import iterate_lines, open_text
from rmat_hf.errors import explained_reading

SMI_COLUMN = "smiles"
SMI_NAME_COLUMN = "smi_name"
SMI_EXTENSIONS = (".smi", ".smi.gz")


def open_smi(path: Path) -> Table:
    """Open a .smi or .smi.gz file; blank lines do not count.

    The columns are `"smiles"` and, when there is any, what follows it in a line (`"smi_name"`).

    Args:
        path (`Path`): The file, UTF-8 text.
    """
    num_rows = num_names = 0
    with explained_reading(path):
        for _, name in _iterate_rows(path):
            num_rows += 1
            num_names += bool(name)
    columns = [SMI_COLUMN] + [SMI_NAME_COLUMN] * (num_names > 0)
    schema = pa.schema([(name, pa.string()) for name in columns])
    return Table(
        str(path), schema, num_rows, partial(_read_smi, path, columns, num_rows), (str(path),)
    )


def _read_smi(  # noqa: PLR0917 - tables call it by position
    path: Path, columns: list[str], num_rows: int, chunk_size: int, ranges: Iterable[range]
) -> Iterator[TableChunk]:
    with explained_reading(path):
        all_rows = _iterate_rows(path)
        for rows in take_ranges(all_rows, ranges, chunk_size=chunk_size, num_items=num_rows):
            cells: list[Any] = [list(cells) for cells in zip(*rows, strict=True)]
            found = dict(zip((SMI_COLUMN, SMI_NAME_COLUMN), cells, strict=True))
            yield TableChunk(str(path), {name: found[name] for name in columns}, len(rows))


def _iterate_rows(path: Path) -> Iterator[tuple[str, str | None]]:
    with open_text(path) as stream:
        for line in iterate_lines(stream):
            if parts := line.split(maxsplit=1):
                yield parts[0], parts[1].rstrip() if len(parts) > 1 else None
