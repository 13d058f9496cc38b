"""Examined: a table whose cells have been read, as its checks need them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain

import numpy as np
import pandas as pd
from rdkit import Chem

from rmat_hf.data.assay_columns import (
    find_assays,
    find_conditions,
    find_mixed_units,
    list_learnable,
)
from rmat_hf.data.columns import (
    find_label_columns,
    find_number_styles,
    find_part_columns,
    find_stray_words,
    find_units,
    parse_cell,
    read_frame,
    with_plain_numbers,
)
from rmat_hf.data.labels import is_empty
from rmat_hf.data.measurements import propose_label_transform
from rmat_hf.data.splits.molecule_splits import name_by_parent
from rmat_hf.data.tables import Table
from rmat_hf.model.features_rmat import MoleculeError, parse_molecule, silence_rdkit

MAX_ATOMS = 256
# Of a class: a tenth of them as test are too few for a verdict.
FEW_OF_CLASS = 100


class Examined:
    """A table whose cells have been read: text, molecules, parents and numbers."""

    def __init__(
        self,
        table: Table,
        *,
        smiles_column: str,
        label_columns: Sequence[str],
        part: str | None,
        others: Sequence[str] = (),
        with_molecules: bool = True,
    ) -> None:
        self.table, self.smiles_column = table, smiles_column
        self.frame = read_frame(table)
        self.part_columns = [part] if part else find_part_columns(self.frame)
        known = [smiles_column, *self.part_columns, *others]
        self.is_told, self.others = bool(label_columns), known
        self.label_columns, self.covariate_columns = list(label_columns), list[str]()
        if not label_columns:
            found = find_label_columns(self.frame, others=known)
            self.label_columns, self.covariate_columns = found
        self.units = find_units(self.frame, self.label_columns)
        self.styles = find_number_styles(table, [*self.label_columns, *self.covariate_columns])
        plain = with_plain_numbers(table.select(self.label_columns), self.label_columns)
        cells = read_frame(plain) if self.label_columns else self.frame[[]]
        parsed = cells.map(parse_cell)
        self.empty = cells.map(is_empty)
        self.relations = parsed.map(lambda cell: cell[0])
        numbers = parsed.map(lambda cell: cell[1]).astype(float)
        self.numbers = numbers.mask(find_stray_words(cells, numbers))
        self.mols: list[Chem.Mol | None] = []
        self.reasons: dict[int, str] = {}
        self.smiles: list[str] = []
        self.parent_of_row: dict[int, str] = {}
        self.known_rows = list(range(len(self.frame)))
        if with_molecules:
            self._read_molecules()

    def _read_molecules(self) -> None:
        chunks = self.table.iterate_chunks(1000)
        for molecule in chain.from_iterable(it.molecules(self.smiles_column) for it in chunks):
            try:
                self.mols.append(parse_molecule(molecule, max_atoms=MAX_ATOMS))
            except MoleculeError as error:
                self.reasons[len(self.mols)] = error.reason
                self.mols.append(None)
        with silence_rdkit():
            self.smiles = ["" if mol is None else Chem.MolToSmiles(mol) for mol in self.mols]
        self.known_rows = [row for row, text in enumerate(self.smiles) if text]
        mols = {self.smiles[row]: self.mols[row] for row in self.known_rows}
        names = name_by_parent([self.smiles[row] for row in self.known_rows], mols=mols)
        self.parent_of_row = dict(zip(self.known_rows, names, strict=True))

    @cached_property
    def transforms(self) -> dict[str, str]:
        """What each label of numbers is best learned as."""
        return {
            name: propose_label_transform(self.values(name), self.units[name])
            for name in self.number_columns
        }

    def exact_cells(self, column: str | None) -> pd.Series:
        """Tell which cells of a label, or of any, are numbers without a relation."""
        is_exact = self.numbers.notna() & (self.relations == "")
        return is_exact.any(axis=1) if column is None else is_exact[column]

    @cached_property
    def mixed_units(self) -> dict[str, tuple[str | None, pd.Series]]:
        """Columns with several units, the label beside each, and the cells."""
        return find_mixed_units(self.frame, self.label_columns)

    @cached_property
    def assays(self) -> dict[str, int]:
        """Columns of what was measured, where it is several things, and of how many."""
        others = [*self.others, *self.label_columns]
        return find_assays(self.frame, self.labeled_rows, others=others)

    @cached_property
    def learnable_assays(self) -> list[str]:
        """Those of many rows for each."""
        return list_learnable(self.frame, self.assays, num_rows=len(self.labeled_rows))

    @cached_property
    def conditions(self) -> list[str]:
        """Other columns in which rows of one molecule differ, as of other conditions."""
        parents = pd.Series(self.parent_of_row, dtype=object)
        others = [*self.others, *self.label_columns, *self.assays]
        return find_conditions(self.frame, parents, others=others)

    def name_replicates(self) -> list[tuple[str, ...]]:
        """Return what replicates have in common: molecule, assay and conditions."""
        names = [*self.learnable_assays, *self.conditions]
        cells = self.frame[names].loc[[*self.parent_of_row]]
        parents = self.parent_of_row.values()
        # itertuples has no rows where there are no columns, before pandas 3
        rows = cells.to_numpy().tolist()
        return [(parent, *row) for parent, row in zip(parents, rows, strict=True)]

    def values(self, column: str) -> pd.Series:
        """Return the exact numbers of a label of rows with a molecule."""
        numbers = self.numbers[column].where(self.relations[column] == "")
        return numbers.loc[self.known_rows].dropna()

    def learned(self, column: str) -> pd.Series:
        """Return the same on the scale that the command of the report learns."""
        values = self.values(column)
        return np.log10(values) if self.transforms.get(column, "none") != "none" else values

    def count_values(self, column: str) -> int:
        """Return how many different values a label has in rows with a molecule."""
        if column in self.number_columns:
            return int(self.numbers[column].loc[self.known_rows].nunique())
        words = self.frame[column].loc[self.known_rows]
        return int(words[~self.empty[column].loc[self.known_rows]].nunique())

    @cached_property
    def number_columns(self) -> list[str]:
        """Labels that are numbers; the others are words of classes."""
        filled = {name: ~self.empty[name] for name in self.label_columns}
        return [
            name
            for name, is_filled in filled.items()
            if 2 * self.numbers[name].notna().sum() >= is_filled.sum()
        ]

    @cached_property
    def binary_columns(self) -> list[str]:
        """Labels that are yes or no."""
        return [name for name in self.number_columns if {*self.values(name)} == {0.0, 1.0}]

    @cached_property
    def rare_columns(self) -> dict[str, int]:
        """Labels that are yes or no with few rows of the rarer of the two, and how many."""
        counts = {name: self.values(name).value_counts().min() for name in self.binary_columns}
        return {name: int(it) for name, it in counts.items() if it < FEW_OF_CLASS}

    @cached_property
    def has_numbers(self) -> bool:
        """Tell whether a label is measured, and not yes or no."""
        return any({*self.values(name)} - {0.0, 1.0} for name in self.number_columns)

    @cached_property
    def labeled_rows(self) -> list[int]:
        """Rows with a molecule and a label."""
        is_labeled = ~self.empty.to_numpy().all(axis=1)
        return [row for row in self.known_rows if is_labeled[row]]

    def find_rows(self, holds: Callable[[Chem.Mol], bool]) -> tuple[int, ...]:
        """Return the rows whose molecule is so."""
        return tuple(row for row, mol in enumerate(self.mols) if mol is not None and holds(mol))
