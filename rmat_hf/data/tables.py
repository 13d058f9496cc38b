"""Tables of molecules as Arrow columns, read in chunks; how files become tables: table_files.py."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import Molecule, MoleculeError

SMILES_COLUMN = "smiles"
# Of what a run writes beside the labels; none of them can be called so.
RESERVED_COLUMNS = ("row", "smiles", "split", "error")
# Bytes of a SMILES; a small Parquet file can expand to more than any memory.
MAX_SMILES_BYTES = 2**17


@dataclass(frozen=True)
class TableChunk:
    """Consecutive rows of a table.

    Args:
        source (`str`): Name of the file, for messages.
        table (`pa.Table`): The rows.
        mols (`list`, *optional*): The structures of an SDF file.
    """

    source: str
    table: pa.Table
    mols: Sequence[Molecule] | None = None

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return int(self.table.num_rows)

    @property
    def columns(self) -> dict[str, pa.ChunkedArray]:
        """The columns by name, as Arrow has them."""
        return dict(zip(self.table.column_names, self.table.columns, strict=True))

    def molecules(self, smiles_column: str) -> list[Molecule]:
        """Return one molecule per row, or the error of one that cannot be read.

        Args:
            smiles_column (`str`):
                Column of SMILES. In an SDF file, `"smiles"` stands for the structures themselves,
                with their coordinates.
        """
        if self.mols is not None and smiles_column == SMILES_COLUMN:
            return list(self.mols)
        validate_smiles_column(self.table.schema, smiles_column, source=self.source)
        texts = self.table.column(smiles_column).cast(pa.large_string())
        is_long = pc.greater(pc.binary_length(texts), MAX_SMILES_BYTES)
        molecules: list[Molecule] = pc.if_else(is_long, None, texts).to_pylist()
        for idx in pc.indices_nonzero(is_long).to_pylist():
            molecules[idx] = MoleculeError(f"the SMILES has more than {MAX_SMILES_BYTES} bytes")
        return molecules

    def slice(self, start: int, length: int) -> "TableChunk":
        """Return some of the rows."""
        mols = None if self.mols is None else self.mols[start : start + length]
        return TableChunk(self.source, self.table.slice(start, length), mols)


@dataclass(frozen=True)
class Table:
    """A table that is read in chunks, so that memory does not grow with the file.

    Args:
        source (`str`): Name of the file or data set, for messages.
        schema (`pa.Schema`): Columns and their types; those that are read.
        num_rows (`int`): Exact number of rows.
        read (`Callable`): Takes the schema, yields all rows, some at a time. It can be pickled.
        files (`tuple[str, ...]`, *optional*): Paths, or addresses on the Hub with their commit.
        split_column (`str`, *optional*): Column with the data set's own train and test.
        may_lack_columns (`bool`, *optional*, defaults to `False`):
            Whether other files of its kind may lack its columns, as records of SDF do.
        description (`str`, *optional*): How it is read, for example `"CSV with ';', cp1252"`.
        commas (`Mapping[str, str]`, *optional*): Of columns whose numbers were read with commas,
            what these are: `"decimal"` or `"thousands"`.
    """

    source: str
    schema: pa.Schema
    num_rows: int
    read: Callable[[pa.Schema], Iterator[TableChunk]]
    files: tuple[str, ...] = ()
    split_column: str | None = None
    may_lack_columns: bool = False
    description: str = ""
    commas: Mapping[str, str] = field(default_factory=dict)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in the order of the source."""
        return list(self.schema.names)

    def select(self, names: Iterable[str]) -> "Table":
        """Return the table with some of its columns; the others are not read."""
        names = list(dict.fromkeys(names))
        validate_columns(self.column_names, names, source=self.source)
        return replace(self, schema=pa.schema([self.schema.field(name) for name in names]))

    def iterate_chunks(self, chunk_size: int) -> Iterator[TableChunk]:
        """Yield the rows in order, `chunk_size` at a time; each call starts at the first row."""
        num_rows = 0
        for chunk in _resize(self.read(self.schema), chunk_size):
            num_rows += chunk.num_rows
            if num_rows > self.num_rows:
                break
            yield chunk
        if num_rows != self.num_rows:
            raise UserError(
                f"{self.source} has other rows than the {self.num_rows} that it had at first, it "
                "has changed meanwhile. Repeat the command."
            )


def _resize(chunks: Iterator[TableChunk], size: int) -> Iterator[TableChunk]:
    """Yield the same rows, `size` at a time, whatever the sizes they come in."""
    rest = TableChunk("", pa.table({}))
    for chunk in chunks:
        if rest.num_rows:
            rows = pa.concat_tables([rest.table, chunk.table])
            mols = [*(rest.mols or []), *(chunk.mols or [])]
            chunk = TableChunk(rest.source, rows, mols or None)
        for start in range(0, chunk.num_rows - size + 1, size):
            yield chunk.slice(start, size)
        rest = chunk.slice(chunk.num_rows // size * size, size)
    if rest.num_rows:
        yield rest


def build_table(rows: pa.Table, *, source: str) -> Table:
    """Return rows in memory as a table."""
    return Table(source, rows.schema, rows.num_rows, partial(_read_memory, rows, source=source))


def _read_memory(rows: pa.Table, schema: pa.Schema, *, source: str) -> Iterator[TableChunk]:
    yield TableChunk(source, rows.select(schema.names))


def validate_columns(columns: Iterable[str], required: Iterable[str], *, source: str) -> None:
    """Raise a `UserError` that lists the columns there are when a required one is missing."""
    columns = list(columns)
    for name in required:
        if name not in columns:
            meant = [other for other in columns if other.strip().lower() == name.strip().lower()]
            raise UserError(
                f"{source} has no column {name!r}. Its columns are: {', '.join(columns)}."
                + "".join(f" Did you mean {other!r}?" for other in meant)
            )


def validate_smiles_column(schema: pa.Schema, smiles_column: str, *, source: str) -> None:
    """Raise a `UserError` when there is no such column, or when it holds no text."""
    validate_columns(schema.names, [smiles_column], source=source)
    kind = schema.field(smiles_column).type
    value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (is_text(value_kind) or pa.types.is_null(kind)):
        raise UserError(
            f"{source}: column {smiles_column!r} holds {kind}, which is not text. Name the column "
            "of SMILES."
        )


def is_text(kind: pa.DataType) -> bool:
    """Tell whether cells of a type are text."""
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def join_tables(
    tables: Sequence[Table], *, source: str, words: Mapping[str, Sequence[str]] | None = None
) -> Table:
    """Return tables as one, in the order given.

    A property that some SDF files lack is empty there; files of other kinds have the same columns.
    """
    fields = {field.name: field for table in tables for field in table.schema}
    may_lack = all(table.may_lack_columns for table in tables)
    for table in tables:
        own = {field.name: field.type for field in table.schema}
        for name, kind in fields.items():
            found = own.get(name, kind.type if may_lack else "missing")
            if found != kind.type:
                raise UserError(
                    f"{table.source}: column {name!r} is {found}, but {kind.type} in other files "
                    f"of {source}. Files that are read together need the same columns."
                )
    words = dict(words or {})
    schema = pa.schema([*fields.values(), *(pa.field(name, pa.string()) for name in words)])
    read = partial(_read_joined, list(tables), words=words)
    files = tuple(file for table in tables for file in table.files)
    num_rows = sum(table.num_rows for table in tables)
    described = "; ".join(dict.fromkeys(table.description for table in tables))
    return Table(source, schema, num_rows, read, files, description=described)


def _read_joined(
    tables: list[Table], schema: pa.Schema, *, words: Mapping[str, Sequence[str]]
) -> Iterator[TableChunk]:
    own = pa.schema([field for field in schema if field.name not in words])
    for idx, table in enumerate(tables):
        for chunk in table.read(own):
            rows = chunk.table
            for name, word in words.items():
                rows = rows.append_column(name, pa.array([word[idx]] * rows.num_rows, pa.string()))
            yield TableChunk(chunk.source, rows.select(schema.names), chunk.mols)
