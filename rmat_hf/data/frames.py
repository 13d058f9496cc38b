"""Rows in memory as tables; pandas in, pandas out: molecules of a table, columns beside them."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa

from rmat_hf.data.columns import find_smiles_cells
from rmat_hf.data.sources import open_table
from rmat_hf.data.tables import SMILES_COLUMN, Table, build_table, validate_columns
from rmat_hf.errors import UserError

logger = logging.getLogger(__name__)

FRAME_NAME = "The table"


def list_molecules_of(frame: pd.DataFrame, smiles_column: str | None = None) -> list[Any]:
    """Return the molecules in a column of a table, `None` where missing.

    By default it is `"smiles"`, in small or large letters, else the one whose cells are SMILES, of
    several the one called canonical.
    """
    columns = [*map(str, frame.columns)]
    # as spreadsheets have it: SMILES, Smiles
    alike = [it for it in columns if it.strip().lower() == SMILES_COLUMN]
    alike = [SMILES_COLUMN] if SMILES_COLUMN in alike else alike
    try:
        if smiles_column is not None or len(alike) == 1:
            name = alike[0] if smiles_column is None else str(smiles_column)
            validate_columns(columns, [name], source=FRAME_NAME)
        else:
            named = frame.set_axis(columns, axis=1)
            name = find_smiles_cells(named, source=FRAME_NAME, is_sure=True)
            logger.info("SMILES in %r.", name)
    except UserError as error:
        raise UserError(f"{error} Name that of the SMILES: smiles_column=NAME.") from None
    cells = frame.iloc[:, columns.index(name)].tolist()
    return [None if it is None or it is pd.NA or it != it else it for it in cells]


def add_columns(frame: pd.DataFrame, columns: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """Return a copy of a table, with its index and columns, and others behind them."""
    if known := sorted({*columns} & {*map(str, frame.columns)}):
        raise UserError(
            f"{FRAME_NAME} already has a column {known[0]!r}, which the result adds. Rename or "
            "drop it first."
        )
    added = pd.DataFrame(columns)
    # what text lacks is None in every table; pandas makes NaN of it beside other text
    others = added.select_dtypes(exclude=["number", "bool"])
    kept = {str(name): pd.Series(columns[name], dtype=object) for name in others}
    return pd.concat([frame, added.assign(**kept).set_axis(frame.index)], axis=1)


def build_dataset(frame: pd.DataFrame) -> datasets.Dataset:
    """Return the rows of a table; a column of numbers and words, as `">10"`, becomes text."""
    names = pd.Index(map(str, frame.columns))
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise UserError(f"{FRAME_NAME} has several columns {twice!r}. Rename or drop them.")
    mixed = [
        name
        for name in frame.columns
        if pd.api.types.infer_dtype(frame[name], skipna=True).startswith("mixed")
    ]
    as_text = {name: frame[name].astype("string") for name in mixed}
    return datasets.Dataset.from_pandas(frame.assign(**as_text), preserve_index=False)


def open_rows(dataset: Any, *, revision: str | None = None) -> Table:
    """Return the table behind a name, with the splits that it has, or rows in memory as a table."""
    if isinstance(dataset, Table):
        return dataset
    if isinstance(dataset, str | os.PathLike):
        return open_table(dataset, revision=revision, joins_splits=True)
    is_frame = isinstance(dataset, pd.DataFrame)
    rows = build_dataset(dataset) if is_frame else dataset
    name_dataset(rows)
    source = FRAME_NAME if is_frame else "The data set"
    chunks = [*rows.with_format("arrow").iter(batch_size=1000)]
    if not chunks:
        raise UserError(f"{source} has no rows.")
    return build_table(pa.concat_tables(chunks), source=source)


def name_dataset(dataset: Any) -> str:
    """Return the name of a source, or of a data set in memory as `datasets` knows it."""
    if isinstance(dataset, str | os.PathLike):
        return os.fspath(dataset)
    if isinstance(dataset, dict):
        raise UserError(
            f"The data set has the splits {', '.join(dataset)}. Pass one of them, as "
            "data['train'], or all rows: datasets.concatenate_datasets([*data.values()])."
        )
    if not hasattr(dataset, "column_names"):
        raise UserError(
            f"The data set is a {type(dataset).__name__}. Pass a file, an id on the Hub or a "
            "datasets.Dataset, as Dataset.from_pandas(table)."
        )
    return dataset.info.dataset_name or "dataset_in_memory"
