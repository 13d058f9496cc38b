"""Labels of a long table, one measurement in a row, as columns of a featurized corpus.

- `label_assays`, `list<string>`: the assays in which a molecule has a label; none, an empty list.
- `label_kinds`, `list<string>`: of each label `class` (1 active, 0 inactive, or a share), `=`
  (a value), `<` or `>` (the value is below or above).
- `label_values`, `list<float32>`: the numbers, as the table has them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from rdkit import Chem

from rmat_hf.data.sources import open_table
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import silence_rdkit
from rmat_hf.model.losses_rmat import ASSAY_LABEL_KINDS

LABEL_FIELDS = pa.schema(
    [
        ("label_assays", pa.list_(pa.string())),
        ("label_kinds", pa.list_(pa.string())),
        ("label_values", pa.list_(pa.float32())),
    ]
)
_REQUIRED = ["smiles", "assay", "value"]
_DEFAULTS = {"kind": "value", "relation": "="}
_KINDS = ("class", "value")
_CHUNK_SIZE = 1024
_RELATIONS = {"=": "=", "~": "=", "<": "<", "<=": "<", "<<": "<", ">": ">", ">=": ">", ">>": ">"}
_CLASS, _VALUE = ASSAY_LABEL_KINDS[:2]


class AssayLabels(NamedTuple):
    """The labels of one molecule."""

    assays: list[str]
    kinds: list[str]
    values: list[float]


NO_LABELS = AssayLabels([], [], [])


def read_assay_labels(source: str) -> dict[str, AssayLabels]:
    """Return the labels of a long table by the canonical SMILES of their molecules.

    Equal measurements, of one molecule in one assay, are averaged; a bound beside a value is left
    out, and so are rows without a value or a molecule that RDKit reads.

    Args:
        source (`str`):
            Parquet or CSV file, or what else `rmat featurize` reads, with the columns `smiles`,
            `assay` and `value`; `kind` (`class` or `value`, by default this) and `relation` (`=`,
            `<`, `>` and their like, by default the first).
    """
    table = open_table(source)
    names = [*_REQUIRED, *(name for name in _DEFAULTS if name in table.column_names)]
    # a dictionary of texts would come with every chunk
    read = pa.schema([(name, pa.large_string()) for name in names])
    chunks = [chunk.table.cast(read) for chunk in table.select(names).iterate_chunks(_CHUNK_SIZE)]
    rows = pa.concat_tables(chunks).to_pandas()
    for name, default in _DEFAULTS.items():
        rows[name] = rows[name].fillna(default) if name in names else default
    rows["value"] = pd.to_numeric(rows["value"], errors="coerce")
    rows = rows.dropna()
    for name, known in {"kind": _KINDS, "relation": _RELATIONS}.items():
        if unknown := set(rows[name]) - set(known):
            raise UserError(
                f"{source}: {unknown.pop()!r} in column {name!r} is unknown. Known: {[*known]}."
            )
    rows["is_class"] = rows["kind"] == "class"
    rows["kind"] = rows["relation"].map(_RELATIONS).where(~rows["is_class"], _CLASS)
    codes, unique = pd.factorize(rows["smiles"])
    rows["smiles"] = np.array(canonicalize(list(unique)), dtype=object)[codes]
    keys = ["smiles", "assay", "is_class"]
    means = rows.groupby([*keys, "kind"], sort=True)["value"].mean().reset_index()
    means["is_bound"] = ~means["kind"].isin([_CLASS, _VALUE])
    means = means.sort_values([*keys, "is_bound"], kind="stable").drop_duplicates(keys)
    starts = np.flatnonzero(means["smiles"] != means["smiles"].shift())
    columns = [means[name].tolist() for name in ("assay", "kind", "value")]
    molecules = means["smiles"].iloc[starts]
    return {
        smiles: AssayLabels(*(column[start:stop] for column in columns))
        for smiles, (start, stop) in zip(molecules, pairwise([*starts, len(means)]), strict=True)
    }


def canonicalize(smiles: Sequence[str]) -> list[str | None]:
    """Return the canonical SMILES, `None` of what RDKit cannot read."""
    canonical: list[str | None] = []
    with silence_rdkit():
        for text in smiles:
            mol = Chem.MolFromSmiles(text)
            canonical.append(None if mol is None else Chem.MolToSmiles(mol))
    return canonical
