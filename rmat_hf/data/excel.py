"""Sheets of Excel workbooks as Arrow columns of text (extra `excel`)."""

import logging
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import Any
from zipfile import BadZipFile

import pyarrow as pa

from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

# Between a file and the sheet of it.
SHEET_MARK = "#"
SHEET_COLUMN = "sheet"
# Rows above a header, such as a title, before which nobody looks for one.
_MAX_TITLE_ROWS = 20


def read_workbook(path: str, *, sheet: str | None = None) -> tuple[pa.Table, str]:
    """Return the rows of a sheet, or of all sheets with the header of the first, and their names.

    The header is the first row that is filled as the rows below it, so that a title above it does
    no harm. Cells become the text that a CSV file has of them, empty ones nothing. Rows of several
    sheets get their names in the column `sheet`.
    """
    try:
        from openpyxl import load_workbook
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError as error:
        raise UserError(
            f"{path} is an Excel workbook, which openpyxl reads: pip install 'rmat-hf[excel]', or "
            "save the sheet as CSV."
        ) from error
    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
    except (BadZipFile, InvalidFileException, KeyError) as error:
        raise UserError(f"{path} is no Excel workbook, or a damaged one: {error}.") from error
    names = [sheet] if sheet else workbook.sheetnames
    if unknown := {*names} - {*workbook.sheetnames}:
        raise UserError(
            f"{path} has no sheet {unknown.pop()!r}. Its sheets are: "
            f"{', '.join(workbook.sheetnames)}."
        )
    tables = {name: _read_sheet(workbook[name].iter_rows(values_only=True)) for name in names}
    workbook.close()
    filled = {name: table for name, table in tables.items() if table and table.num_rows}
    if not filled:
        raise UserError(f"{path} has no sheet with a header and rows. Write both, or save a CSV.")
    header = next(iter(filled.values())).column_names
    alike = {name: it for name, it in filled.items() if {*it.column_names} == {*header}}
    if others := [name for name in filled if name not in alike]:
        logger.warning(
            "%s: the sheets %s have other columns than %r and are left out. Name one as '%s%s%s'.",
            path,
            others,
            next(iter(alike)),
            path,
            SHEET_MARK,
            others[0],
        )
    if len(alike) > 1 and SHEET_COLUMN not in header:
        alike = {
            name: table.append_column(SHEET_COLUMN, pa.array([name] * table.num_rows))
            for name, table in alike.items()
        }
    order = next(iter(alike.values())).column_names
    rows = pa.concat_tables([table.select(order) for table in alike.values()])
    return rows, f"Excel, {'sheets' if len(alike) > 1 else 'sheet'} {', '.join(alike)}"


def _read_sheet(rows: Iterable[Sequence[Any]]) -> pa.Table | None:
    """Return the table in the cells of a sheet, `None` if there is none."""
    texts = [[_write_cell(cell) for cell in row] for row in rows]
    texts = [row for row in texts if any(row)]
    if not texts:
        return None
    widths = [sum(map(bool, row)) for row in texts]
    widest = max(widths[: _MAX_TITLE_ROWS + 1])
    start = next(idx for idx, width in enumerate(widths) if 2 * width > widest)
    header = texts[start]
    columns = [idx for idx, name in enumerate(header) if name]
    rows_below = texts[start + 1 :]
    return pa.Table.from_arrays(
        [
            pa.array([row[idx] if idx < len(row) else "" for row in rows_below], pa.string())
            for idx in columns
        ],
        names=[header[idx] for idx in columns],
    )


def _write_cell(value: Any) -> str:
    """Return a cell as CSV has it; dates in ISO form."""
    if value is None:
        return ""
    if isinstance(value, datetime | date):
        text = value.isoformat()
        return text.removesuffix("T00:00:00")
    return str(value).strip()
