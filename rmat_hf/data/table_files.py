"""Open any file of molecules (CSV, Excel, SMILES, SDF, Parquet; here or on the Hub) as a table."""

import codecs
import csv
import gzip
import io
import logging
import os
import re
import reprlib
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast
from zipfile import BadZipFile

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rdkit import Chem, rdBase

from rmat_hf.data.tables import SMILES_COLUMN, Table, TableChunk, is_text
from rmat_hf.errors import UserError, explained_reading
from rmat_hf.model.features_rmat import MoleculeError, is_tractable, silence_rdkit

HUB_PREFIX = "hf://"
SDF_TITLE_COLUMN = "sdf_title"
SMI_NAME_COLUMN = "smi_name"
# Bytes of a column of text in a batch; a small Parquet file can expand to more than any memory.
MAX_BATCH_BYTES = 2**26
_BATCH_ROWS = 1024
_SDF_BATCH_ROWS = 64
# Bytes of a column of Parquet that wait to be decoded; without a limit all of a row group.
_BUFFER_SIZE = 2**20

# Yields rows with the columns of a schema; a column that a file lacks is empty there.
_ReadFile = Callable[[str, pa.Schema], Iterator[TableChunk]]
# The columns of a file, its number of rows, how they are read, and what that is called.
_Opened = tuple[pa.Schema, int, _ReadFile, str]

UTF_8 = "utf-8-sig"
# What is no UTF-8 is Windows' Western European, or Latin-1, which has a letter for every byte.
_OTHER_ENCODINGS = (UTF_8, "cp1252", "latin-1")
_BLOCK_SIZE = 2**16
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Lines that tell the separator, and the one that Excel writes to tell it.
_NUM_SAMPLE_LINES = 100
_SEPARATOR_LINE = re.compile(r"sep=(.)[\r\n]*", re.IGNORECASE)
# How files of other kinds start, and what to do with them.
_SIGNATURES = {
    b"PK\x03\x04": "it is a ZIP archive or an Excel workbook. Name a workbook .xlsx",
    b"\xd0\xcf\x11\xe0": "it is an old Excel workbook. Save it as .xlsx or CSV",
    b"\x1f\x8b": "it is compressed with gzip. Name it .csv.gz or decompress it",
    b"PAR1": "it is a Parquet file. Name it .parquet",
}

# Shorter mol blocks are sanitized at once: no molecule in them takes RDKit long.
QUICK_BLOCK_LENGTH = 10_000
# Of a record, which is in memory as a whole; that of a molecule of 20,000 atoms has 40,000 lines.
MAX_RECORD_LINES = 2**20
# Characters of a record, or of a line: a small file can decompress to one endless line.
MAX_LENGTH = 2**26
PROPERTY_HEADER = re.compile(r"^>.*?<(.*)>")

logger = logging.getLogger(__name__)

# Between a file and the sheet of it.
SHEET_MARK = "#"
SHEET_COLUMN = "sheet"
# Rows above a header, such as a title, before which nobody looks for one.
_MAX_TITLE_ROWS = 20


def open_file(path: str | Path) -> Table:
    """Open one file; all of it is checked before the first row is used.

    Encoding and separator of CSV are found, its cells are kept as their exact text. A Parquet file
    keeps its column types. The columns of an SDF file are `"smiles"`, the title line
    (`"sdf_title"`, when there is one) and every property; those of a .smi file (a SMILES, then
    anything after a blank; no header) `"smiles"` and, where there is more, `"smi_name"`.

    Args:
        path (`str` or `Path`):
            A .csv, .tsv, .txt, .smi, .sdf (each also .gz), .xlsx, .parquet or .arrow file, as
            `save_to_disk` of `datasets` writes; Parquet also at an `hf://` address. Sheets of a
            workbook with one header follow each other; `"file.xlsx#name"` is one of them.
    """
    path = str(path)
    with explained_reading(path):
        kind = find_kind(path)
        is_endless = not path.startswith(HUB_PREFIX) and not stat.S_ISREG(
            os.stat(find_workbook(path)).st_mode
        )
        if is_endless or kind is None:
            raise UserError(
                f"{path} is a folder, a pipe or a device, or a file of another kind. Use "
                f"{', '.join(KINDS)} files, text also with .gz."
            )
        schema, num_rows, read, description = KINDS[kind](path)
    name, count = Counter(schema.names).most_common(1)[0]
    if count > 1:
        raise UserError(f"{path}: two columns are called {reprlib.repr(name)}. Rename one of them.")
    return Table(
        path,
        schema,
        num_rows,
        partial(_read_file, path, read=read),
        (path,),
        may_lack_columns=kind in (".sdf", ".smi"),
        description=description,
    )


def find_workbook(path: str) -> str:
    """Return the file of a path, which may name a sheet of it."""
    file, mark, _ = path.rpartition(SHEET_MARK)
    return file if mark and file.lower().endswith(".xlsx") else path


def find_kind(name: str) -> str | None:
    """Return which of `KINDS` a file is by its name, `None` if none."""
    name = find_workbook(name).lower()
    found = re.search(r"(\.csv|\.tsv|\.txt|\.sdf|\.smi)(\.gz)?$|(\.xlsx|\.parquet|\.arrow)$", name)
    return found and (found[1] or found[3])


def _read_file(path: str, schema: pa.Schema, *, read: _ReadFile) -> Iterator[TableChunk]:
    with explained_reading(path):
        yield from read(path, schema)


def _iterate_smi_rows(path: str, encoding: str) -> Iterator[list[str | None]]:
    yield [SMILES_COLUMN, SMI_NAME_COLUMN]
    for line in iterate_lines(path, encoding):
        if parts := line.split(maxsplit=1):
            yield [parts[0], parts[1].rstrip() if len(parts) > 1 else None]


def _open_csv(path: str) -> _Opened:
    dialect = find_dialect(path)
    iterate_rows = partial(iterate_csv_rows, dialect=dialect)
    rows = iterate_rows(path)
    header = next(rows)
    if not any(name.strip() for name in header) or "\0" in "".join(header):
        raise UserError(
            f"{path} is not a CSV table: its first line is blank or binary. It must hold the "
            "column names."
        )
    schema = pa.schema([(name, pa.string()) for name in header])
    read = partial(_read_rows, iterate_rows=iterate_rows)
    return schema, sum(1 for _ in rows), read, str(dialect)


def _open_smi(path: str) -> _Opened:
    iterate_rows = partial(_iterate_smi_rows, encoding=find_encoding(path))
    counts = Counter(name is not None for _, name in islice(iterate_rows(path), 1, None))
    names = [SMILES_COLUMN, SMI_NAME_COLUMN][: 1 + (counts[True] > 0)]
    schema = pa.schema([(name, pa.string()) for name in names])
    return schema, counts.total(), partial(_read_rows, iterate_rows=iterate_rows), "SMILES file"


def _open_excel(path: str) -> _Opened:
    file = find_workbook(path)
    sheet = path[len(file) + len(SHEET_MARK) :] or None
    rows, description = read_workbook(file, sheet=sheet)
    return rows.schema, rows.num_rows, partial(_read_memory, rows=rows), description


def _read_memory(path: str, schema: pa.Schema, *, rows: pa.Table) -> Iterator[TableChunk]:
    yield TableChunk(path, rows.select(schema.names))


def _read_rows(
    path: str, schema: pa.Schema, *, iterate_rows: Callable[[str], Iterator[Sequence[str | None]]]
) -> Iterator[TableChunk]:
    rows = iterate_rows(path)
    header = next(rows)
    while batch := list(islice(rows, _BATCH_ROWS)):
        cells = dict(zip(header, zip(*batch, strict=True), strict=True))
        yield TableChunk(path, pa.table({name: cells.get(name) for name in schema.names}, schema))


def _open_sdf(path: str) -> _Opened:
    names: dict[str, None] = {}
    num_rows = num_blocks = num_titles = 0
    encoding = find_encoding(path)
    for record in iterate_sdf_records(iterate_lines(path, encoding)):
        names.update(dict.fromkeys(record.properties))
        num_rows += 1
        num_blocks += bool(record.mol_block)
        num_titles += bool(record.title.strip())
    if num_blocks == 0:
        raise UserError(f"{path} is not an SDF file: no record has an 'M  END' line.")
    generated = [SMILES_COLUMN] + [SDF_TITLE_COLUMN] * (num_titles > 0)
    column_names = [name for name in generated if name not in names] + list(names)
    schema = pa.schema([(name, pa.string()) for name in column_names])
    read = partial(_read_sdf, properties=frozenset(names), encoding=encoding)
    return schema, num_rows, read, "SDF"


def _read_sdf(
    path: str, schema: pa.Schema, *, properties: frozenset[str], encoding: str
) -> Iterator[TableChunk]:
    records = iterate_sdf_records(iterate_lines(path, encoding))
    while batch := list(islice(records, _SDF_BATCH_ROWS)):
        mols = [parse_mol_block(record.mol_block) for record in batch]
        columns = {name: [record.properties.get(name) for record in batch] for name in schema.names}
        if SMILES_COLUMN in columns and SMILES_COLUMN not in properties:
            columns[SMILES_COLUMN] = [compute_record_smiles(mol) for mol in mols]
        if SDF_TITLE_COLUMN in columns and SDF_TITLE_COLUMN not in properties:
            columns[SDF_TITLE_COLUMN] = [record.title for record in batch]
        yield TableChunk(path, pa.table(columns, schema=schema), mols)


def open_parquet(path: str, *, text_columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a file, on the disk or on the Hub; text stays as the words of its dictionary."""
    options: dict[str, Any] = {"read_dictionary": text_columns, "buffer_size": _BUFFER_SIZE}
    if path.startswith(HUB_PREFIX):
        from huggingface_hub import HfFileSystem

        options["filesystem"] = HfFileSystem()
    return pq.ParquetFile(path, **options)


def _open_parquet(path: str) -> _Opened:
    schema, num_rows = read_header(path)
    # its metadata describe the old set of columns, wrong as soon as one is added
    return schema.remove_metadata(), num_rows, _read_parquet, "Parquet"


def _read_parquet(path: str, schema: pa.Schema) -> Iterator[TableChunk]:
    text_columns = [field.name for field in schema if is_text(field.type)]
    with open_parquet(path, text_columns=text_columns) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=schema.names):
            columns = [_expand(batch.column(field.name), field) for field in schema]
            yield TableChunk(path, pa.Table.from_arrays(columns, schema=schema))


def _expand(column: pa.Array, field: pa.Field) -> pa.Array:
    """Return a column with its own type, unless its text would not fit into memory."""
    if column.type == field.type:
        return column
    lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
    num_bytes = pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0
    if num_bytes > MAX_BATCH_BYTES:
        raise ValueError(
            f"{len(column)} cells of column {field.name!r} expand to {num_bytes} bytes, more than "
            f"{MAX_BATCH_BYTES}. Drop the longest"
        )
    return column.dictionary_decode().cast(field.type)


@contextmanager
def _open_stream(path: str) -> Iterator[pa.RecordBatchReader]:
    with pa.memory_map(path) as file, pa.ipc.open_stream(file) as batches:
        yield batches


def _open_arrow(path: str) -> _Opened:
    schema, num_rows = read_header(path)
    return schema.remove_metadata(), num_rows, _read_arrow, "Arrow"


def _read_arrow(path: str, schema: pa.Schema) -> Iterator[TableChunk]:
    with _open_stream(path) as batches:
        for batch in batches:
            batch.validate()
            yield TableChunk(path, pa.Table.from_batches([batch]).select(schema.names))


def read_header(path: str) -> tuple[pa.Schema, int]:
    """Return columns, with all metadata, and number of rows of a .parquet or .arrow file."""
    if find_kind(path) == ".arrow":
        with _open_stream(path) as batches:
            return batches.schema, sum(batch.num_rows for batch in batches)
    with open_parquet(path) as file:
        return file.schema_arrow, file.metadata.num_rows


# How a file of each kind is opened; files of different kinds are not read together.
KINDS: dict[str, Callable[[str], _Opened]] = {
    ".csv": _open_csv,
    ".tsv": _open_csv,
    ".txt": _open_csv,
    ".xlsx": _open_excel,
    ".parquet": _open_parquet,
    ".sdf": _open_sdf,
    ".smi": _open_smi,
    ".arrow": _open_arrow,
}


# Text: encodings, separators and lines


@dataclass(frozen=True)
class Dialect:
    """How a file of cells is written.

    Args:
        encoding (`str`): Of its text.
        delimiter (`str`): Between cells.
    """

    encoding: str = UTF_8
    delimiter: str = ","

    def __str__(self) -> str:
        encoding = "" if self.encoding == UTF_8 else f", {self.encoding} text"
        return f"CSV with {DELIMITERS.get(self.delimiter, repr(self.delimiter))}{encoding}"


def find_encoding(path: str | Path) -> str:
    """Return the encoding of a file of text, also one that ends in .gz."""
    is_compressed = str(path).lower().endswith(".gz")
    with open(path, "rb") as stream:
        start = b"" if is_compressed else stream.read(4)
    for signature, explanation in _SIGNATURES.items():
        if start.startswith(signature):
            raise ValueError(explanation)
    with _open_bytes(path) as stream:
        if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
    return next(it for it in _OTHER_ENCODINGS if it == "latin-1" or _is_in(path, it))


def _open_bytes(path: str | Path) -> BinaryIO:
    if str(path).lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return open(path, "rb")


def _is_in(path: str | Path, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with _open_bytes(path) as stream:
        try:
            while block := stream.read(_BLOCK_SIZE):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def iterate_lines(path: str | Path, encoding: str | None = None) -> Iterator[str]:
    """Yield the lines of a file of text, also one that ends in .gz, with their ends."""
    encoding = encoding or find_encoding(path)
    open_text = gzip.open if str(path).lower().endswith(".gz") else open
    with open_text(path, "rt", encoding=encoding, newline="") as text:
        number = 0
        while line := text.readline(MAX_LENGTH):
            number += 1
            if len(line) == MAX_LENGTH:
                raise ValueError(f"line {number} has more than {MAX_LENGTH} characters")
            yield line


def find_dialect(path: str | Path) -> Dialect:
    """Return the encoding of a file, and the separator that its first line and rows agree on."""
    encoding = find_encoding(path)
    lines = list(islice(iterate_lines(path, encoding), _NUM_SAMPLE_LINES))
    if lines and (told := _SEPARATOR_LINE.fullmatch(lines[0])):
        return Dialect(encoding, told[1])
    scores = {delimiter: _score_delimiter(lines, delimiter) for delimiter in DELIMITERS}
    return Dialect(encoding, max(scores, key=lambda delimiter: scores[delimiter]))


def _score_delimiter(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """Return the share of rows as wide as the header, and that width; nothing of one column."""
    try:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
    except csv.Error:  # of a cell without end, which is reported when it is read
        rows = [lines[0].split(delimiter)]
    width = len(rows[0]) if rows else 0
    if width < 2:
        return 0.0, 0
    return (1 + sum(len(row) == width for row in rows[1:])) / len(rows), width


def iterate_csv_rows(path: str, dialect: Dialect) -> Iterator[list[str]]:
    """Yield the header, then the rows. Blank lines count in the middle of one-column files only.

    Cells without text or name behind the last named column, which spreadsheets write, are left out.
    """
    lines = iterate_lines(path, dialect.encoding)
    reader = csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    try:
        header = next(reader, [])
        if _SEPARATOR_LINE.fullmatch(dialect.delimiter.join(header)):
            header = next(reader, [])
        has_one_column = len(header) == 1
        while len(header) > 1 and not header[-1].strip():
            header.pop()
        yield header
        num_blank = 0
        for cells in reader:
            if not cells:
                num_blank += 1
                continue
            if has_one_column:
                yield from ([""] for _ in range(num_blank))
            num_blank = 0
            if len(cells) != len(header):
                if len(cells) < len(header) or any(map(str.strip, cells[len(header) :])):
                    raise csv.Error(
                        f"{len(cells)} cells, but the header has {len(header)}. Quote cells that "
                        f"contain {DELIMITERS.get(dialect.delimiter, 'separators')}."
                    )
                cells = cells[: len(header)]
            yield cells
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error} Correct or drop the row."
        ) from error


# SDF


@dataclass(frozen=True)
class SdfRecord:
    """One record: title line, mol block (empty when there is none) and properties as text."""

    title: str
    mol_block: str
    properties: dict[str, str]


def iterate_sdf_records(lines: Iterable[str]) -> Iterator[SdfRecord]:
    """Yield the records of a file's lines; a `ValueError` names a record that is ambiguous.

    The text of a property is exact, without the line break at its end.
    """
    waiting: list[str] = []
    num_records = length = 0
    for line in lines:
        if line.startswith("$$$$"):
            yield _parse_record(waiting, num_records)
            num_records += 1
            waiting, length = [], 0
            continue
        length += len(line)
        if len(waiting) == MAX_RECORD_LINES or length > MAX_LENGTH:
            raise ValueError(
                f"record {num_records} (counted from 0) has more than {MAX_RECORD_LINES} lines "
                f"or {MAX_LENGTH} characters. End it with a line $$$$, or drop it"
            )
        waiting.append(line.rstrip("\r\n"))
    if any(line.strip() for line in waiting):
        yield _parse_record(waiting, num_records)


def _parse_record(lines: list[str], idx: int) -> SdfRecord:
    block_end = next((i + 1 for i, line in enumerate(lines) if line.startswith("M  END")), 0)
    texts: dict[str, list[str]] = {}
    values: list[str] | None = None
    for line in lines[block_end:]:
        if values is None and line.startswith(">"):
            values = []
            if header := PROPERTY_HEADER.match(line):
                if header[1] in texts:
                    raise ValueError(
                        f"record {idx} (counted from 0): two properties are called {header[1]!r}. "
                        "Rename one"
                    )
                texts[header[1]] = values
        elif not line.strip():
            values = None
        elif values is not None:
            values.append(line)
    properties = {name: "\n".join(text) for name, text in texts.items()}
    return SdfRecord(lines[0] if lines else "", "\n".join(lines[:block_end]), properties)


def parse_mol_block(mol_block: str) -> Chem.Mol | MoleculeError:
    """Return the molecule with all its hydrogens and coordinates, or why RDKit cannot read it.

    Where the chemistry is wrong, or too much for RDKit, the molecule comes back unsanitized, so
    that whoever sanitizes it gets the reason.
    """
    with silence_rdkit():
        if len(mol_block) > QUICK_BLOCK_LENGTH:
            drawn = Chem.MolFromMolBlock(mol_block, removeHs=False, sanitize=False)
            if drawn is not None and not is_tractable(drawn):
                return drawn
        for sanitize in (True, False):
            mol = Chem.MolFromMolBlock(mol_block, removeHs=False, sanitize=sanitize)
            if mol is not None:
                return mol
    return MoleculeError(_find_reason(mol_block))


def _find_reason(mol_block: str) -> str:
    """Return why RDKit cannot read a mol block: it says so in its log of warnings only."""
    rdBase.LogToPythonStderr()
    try:
        with redirect_stderr(io.StringIO()) as log:
            Chem.MolFromMolBlock(mol_block, sanitize=False)
    finally:
        rdBase.LogToCppStreams()
    # of a condition violated inside RDKit its words, without the place in the code and the stack
    reason = " ".join(log.getvalue().split()).partition("] ")[2].partition(" -----")[0].strip("* ")
    reason = re.sub(r"Violation occurred on line .*?(?=Failed Expression)", "", reason)
    return reason or "the record has no mol block that RDKit reads"


def compute_record_smiles(mol: Chem.Mol | MoleculeError) -> str | None:
    """Return the SMILES without explicit hydrogens, of an unsanitized molecule as it is drawn.

    `None` stands for what RDKit cannot write.
    """
    if isinstance(mol, MoleculeError) or not is_tractable(mol):
        return None
    with silence_rdkit():
        for prepare in (Chem.RemoveHs, Chem.Mol):  # RDKit may refuse to sanitize it
            with suppress(RuntimeError, ValueError):
                return str(Chem.MolToSmiles(prepare(mol)))
    return None


# Excel


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
