"""The molecules of a corpus."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

from rdkit import Chem

from rmat_hf.data.featurization_stream import InputRow
from rmat_hf.data.sources import open_table
from rmat_hf.data.tables import Table, validate_smiles_column

_CHUNK_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Which molecules a corpus has, and how they are divided.

    Args:
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column of SMILES.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.
        split (`str`, *optional*): Split of a data set on the Hub.
        shard_size (`int`, *optional*, defaults to 8192): Rows of the input per shard.
        max_rows (`int`, *optional*): First rows of the input to take. By default all.
    """

    smiles_column: str = "smiles"
    revision: str | None = None
    split: str | None = None
    shard_size: int = 8192
    max_rows: int | None = None

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a count that is too small."""
        for name in ("shard_size", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}. Choose at least 1.")


def open_corpus_input(
    source: str | os.PathLike[str],
    *,
    smiles_column: str,
    revision: str | None = None,
    split: str | None = None,
    with_all_columns: bool = False,
) -> Table:
    """Return the molecules as a table whose chunks have at least the column of SMILES.

    Args:
        source (`str` or `os.PathLike`): As in [`open_table`].
        smiles_column (`str`): Column of SMILES; `"smiles"` in .smi and .sdf files.
        revision, split (`str`, *optional*): As in [`open_table`].
        with_all_columns (`bool`, *optional*, defaults to `False`):
            Whether the chunks have every column; by default they have this one.

    Raises:
        UserError: It cannot be read, or has no such column.
    """
    table = open_table(source, revision=revision, split=split)
    validate_smiles_column(table.schema, smiles_column, source=table.source)
    return table if with_all_columns else table.select([smiles_column])


def iterate_input_rows(table: Table, *, smiles_column: str) -> Iterator[InputRow]:
    """Yield every row of a table with its position and its molecule."""
    position = itertools.count()
    for chunk in table.iterate_chunks(_CHUNK_SIZE):
        molecules = chunk.molecules(smiles_column)
        for smiles, molecule in zip(
            chunk.columns[smiles_column].to_pylist(), molecules, strict=True
        ):
            mol = molecule.ToBinary() if isinstance(molecule, Chem.Mol) else None
            yield InputRow(next(position), smiles or "", mol)
