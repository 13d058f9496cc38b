"""Several tables of one kind, one after the other, as one."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pyarrow as pa

from rmat_hf.data.row_ranges import RangeDivider
from rmat_hf.data.tables import Table, TableChunk
from rmat_hf.errors import UserError


def join_tables(tables: Sequence[Table], *, source: str, with_all_columns: bool) -> Table:
    """Return tables as one, in the order given.

    Args:
        tables (`Sequence[Table]`): At least one.
        source (`str`): Name of all of them, for messages.
        with_all_columns (`bool`):
            Whether a column that some tables lack is empty there, as the properties of an SDF
            file are; else it is an error. Columns of one name have one type in any case.

    Raises:
        UserError: The columns or their types differ; the message names both files.
    """
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    fields = {field.name: field for field in first.schema}
    for table in tables[1:]:
        for field in table.schema:
            known = fields.setdefault(field.name, field) if with_all_columns else None
            known = known or fields.get(field.name)
            if known is None or known.type != field.type:
                found = "none" if known is None else str(known.type)
                raise UserError(
                    f"{table.source}: the column {field.name!r} is {field.type}, in {first.source} "
                    f"it is {found}. Files that are read together need the same columns."
                )
        missing = [name for name in fields if name not in table.schema.names]
        if missing and not with_all_columns:
            raise UserError(
                f"{table.source} has no column {missing[0]!r}, unlike {first.source}. Files that "
                "are read together need the same columns."
            )
    return Table(
        source,
        pa.schema(list(fields.values())),
        sum(table.num_rows for table in tables),
        partial(_read_joined, list(tables), list(fields)),
        tuple(file for table in tables for file in table.files),
    )


def _read_joined(  # noqa: PLR0917 - tables call it by position
    tables: list[Table], column_names: list[str], chunk_size: int, ranges: Iterable[range]
) -> Iterator[TableChunk]:
    divider = RangeDivider(ranges)
    first_row = 0
    for table in tables:
        rows = range(first_row, first_row + table.num_rows)
        first_row = rows.stop
        for chunk in table.iterate_chunks(chunk_size, ranges=divider.take_part(rows)):
            columns = {
                name: chunk.columns.get(name, [None] * chunk.num_rows) for name in column_names
            }
            yield TableChunk(chunk.source, columns, chunk.num_rows, chunk.mols)
