"""check_table(...): what stands in a table of molecules and labels, and what settles it."""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from rdkit.Chem.Scaffolds import MurckoScaffold

from rmat_hf.data.assay_columns import (
    find_relations,
    is_convertible,
    name_kind_of_times,
    name_usual_unit,
)
from rmat_hf.data.columns import (
    INCHI_NOTE,
    find_goods,
    find_pairs_of_words,
    find_smiles_column,
    holds_yes_or_no,
    read_inchi,
)
from rmat_hf.data.examined_table import Examined
from rmat_hf.data.frames import open_rows
from rmat_hf.data.labels import (
    CONFLICT_WAY_OUT,
    describe_recoding,
    describe_words,
    find_label_conflicts,
)
from rmat_hf.data.measurements import (
    LOG_UNITS,
    find_cliffs,
    find_odd_part,
    find_odd_rows,
)
from rmat_hf.data.splits.column_splits import AMBIGUOUS
from rmat_hf.data.splits.parts import PART_WORDS, group_rows
from rmat_hf.data.tables import SMILES_COLUMN, Table
from rmat_hf.errors import say_count
from rmat_hf.model.features_rmat import (
    TEXT_AFTER_SMILES,
    silence_rdkit,
)

# Rows of a table that a finetuning looks through.
MOST_CHECKED_ROWS = 50_000
# Rows that a line of the report names.
_NUM_NAMED_ROWS = 5
_FEW_ROWS = 50
_FOLDS = {"--split": ("kfold",), "--num-folds": ("5",), "--fold": ("0",)}
_FEWEST_IN_FOLDS = 10
# A result beyond the limit of an assay, in words.
_BEYOND = re.compile(
    r"^(in|not )active\b|^[abul]l?o?q\b|\b(above|below|over|under|out of|no)\b.*"
    r"\b(limit|range|loq|lod|lloq|uloq|blq|activity|effect|inhibition)\b",
    re.IGNORECASE,
)
CONVERT = "Convert them to one before training."
_DETECTED = "Detected; no flag needed."
_NO_PARTS = "Leave the column out: train or test has no label."
_FEW_LABELS = 10
# Molecules that are compared with each other.
_MOST_COMPARED = 3000
_LARGE_FRAGMENT = 8


@dataclass(frozen=True)
class Finding:
    """One thing about a table.

    Args:
        topic (`str`): Name of the check in `CHECKS`.
        message (`str`): What was found, in one sentence.
        rows (`tuple[int, ...]`): Positions in the table, from 0; empty for what is of all rows.
        way_out (`str`): The flag of `rmat finetune` that settles it, or what to do.
        is_serious (`bool`): Whether rows or labels are lost, or a result would mislead.
        flags (`Mapping[str, tuple[str, ...]]`): Those that `rmat check` proposes.
        needs_fix (`bool`): Whether the copy that `--fix` writes is to be learned instead.
    """

    topic: str
    message: str
    rows: tuple[int, ...] = ()
    way_out: str = ""
    is_serious: bool = False
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs_fix: bool = False


@dataclass(frozen=True)
class TableReport:
    """What [`check_table`] has found.

    Args:
        source (`str`): Name of the file.
        description (`str`): How it is read.
        num_rows (`int`): Rows of the table.
        num_molecules (`int`): Different molecules, salts and tautomers counted as one.
        smiles_column (`str`): Column of SMILES.
        label_columns (`list[str]`): Labels, named or found.
        covariate_columns (`list[str]`): Other numbers, which say more of a row than its molecule.
        label_units (`dict[str, str]`): Units in the names of columns, or beside them.
        label_transforms (`dict[str, str]`): What labels of numbers are best learned as.
        useless_labels (`list[str]`): Labels with nothing to learn.
        binary_labels (`list[str]`): Labels that are yes or no.
        findings (`list[Finding]`): In the order of `CHECKS`.
        mols (`list[Chem.Mol | None]`): The molecules, for drawings.
        frame (`pd.DataFrame`): Cells of the table as text.
        styles (`dict[str, str]`): Columns of numbers with commas, and what these are.
    """

    source: str
    description: str
    num_rows: int
    num_molecules: int
    smiles_column: str
    label_columns: list[str]
    covariate_columns: list[str]
    label_units: dict[str, str]
    label_transforms: dict[str, str]
    useless_labels: list[str]
    binary_labels: list[str]
    findings: list[Finding]
    mols: list[Chem.Mol | None] = field(repr=False)
    frame: pd.DataFrame = field(repr=False)
    styles: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the report for a screen."""
        labels = [
            f"{name!r} in {unit}" if (unit := self.label_units[name]) else repr(name)
            for name in self.label_columns
        ]
        lines = [
            f"{self.source}: {say_count(self.num_rows, 'row')} ({self.description})",
            f"{say_count(self.num_molecules, 'molecule')} in column {self.smiles_column!r}; "
            + (f"labels {', '.join(labels)}" if labels else "no labels"),
            "",
        ]
        for finding in self.findings:
            mark = "!" if finding.is_serious else "-"
            lines.append(f"{mark} {finding.message}{describe_rows(finding.rows)}")
            lines += [f"    {finding.way_out}"] if finding.way_out else []
        num_serious = sum(finding.is_serious for finding in self.findings)
        found = say_count(len(self.findings), "finding")
        lines += ["", f"{found}; {num_serious} (!) cost{'s' * (num_serious == 1)} rows or trust."]
        lines.append("Rows are counted from 0, below the header: row 0 is the first line under it.")
        return "\n".join(lines)


def describe_rows(rows: Sequence[int]) -> str:
    """Return the first of some rows in words."""
    if not rows:
        return ""
    shown = ", ".join(map(str, rows[:_NUM_NAMED_ROWS]))
    more = f", ... ({len(rows)})" if len(rows) > _NUM_NAMED_ROWS else ""
    return f" [row{'s' * (len(rows) > 1)} {shown}{more}]"


# The checks, each for one topic


def _check_reading(table: Examined) -> Iterator[Finding]:
    if INCHI_NOTE in table.table.description:
        message = "There are no SMILES, but InChI, of which the column 'smiles' was made"
        yield Finding(
            "reading", message, (), "--fix writes it; rmat finetune reads SMILES alone.", True
        )
    if table.smiles_column != SMILES_COLUMN:
        yield Finding("reading", f"SMILES are in column {table.smiles_column!r}", (), _DETECTED)
    for column, style in table.styles.items():
        what = "commas before decimals" if style == "decimal" else "commas between thousands"
        yield Finding("reading", f"{column!r} has numbers with {what}; they are read so")


def _check_molecules(table: Examined) -> Iterator[Finding]:
    for reason, rows in group_rows(_shorten(it) for it in table.reasons.values()).items():
        numbers = list(table.reasons)
        cut = "cuts the text where a molecule stands before it, and drops the other rows"
        fix = cut if reason == TEXT_AFTER_SMILES else "drops them"
        yield Finding(
            "molecules",
            f"No molecule: {reason}",
            tuple(numbers[idx] for idx in rows),
            f"Such rows are left out. --fix {fix}.",
            is_serious=True,
        )


def _shorten(reason: str) -> str:
    """Return a reason without the molecule of its row."""
    return reason.split(" for input")[0].split(" while parsing")[0]


def _check_cells(table: Examined) -> Iterator[Finding]:
    for column in table.number_columns:
        is_bad = table.numbers[column].isna() & ~table.empty[column]
        if rows := tuple(np.flatnonzero(is_bad).tolist()):
            is_class = column in table.binary_columns
            is_class |= holds_yes_or_no(table.frame[column], table.styles.get(column, ""))
            what, fix = ("neither yes nor no", "leaves") if is_class else ("no number", "empties")
            words = Counter(table.frame[column].iloc[list(rows)].str.strip())
            message = f"{column!r} has cells that are {what}, as {_count_words(words)}"
            way_out = f"They count as missing. --fix {fix} them."
            if not is_class and any(map(_BEYOND.search, words)):
                way_out += " Of what was beyond the assay's limit write the bound: >10000, <0.1."
            yield Finding("cells", message, rows, way_out, True)


def _count_words(words: Counter[str]) -> str:
    """Return the most frequent of some words with their numbers, of a single one without."""
    shown = words.most_common(_NUM_NAMED_ROWS)
    if len(words) == 1:
        return repr(shown[0][0])
    more = len(words) - len(shown)
    listed = ", ".join(f"{word!r} ({count})" for word, count in shown)
    return f"{listed} and {more} more" if more else listed


def _check_censored(table: Examined) -> Iterator[Finding]:
    for name, (label, signs) in find_relations(table.frame, table.label_columns).items():
        column = label or _list_names(table.label_columns)
        exact = table.exact_cells(label)
        rows = tuple(np.flatnonzero((signs != "") & exact).tolist())
        if rows:
            counts = Counter(signs.iloc[list(rows)])
            listed = ", ".join(f"{count} with {sign}" for sign, count in counts.items())
            message = f"{name!r} says of bounds, {listed}, which {column} has as exact numbers"
            way_out = "Write the sign before the number (turned around where it is a logarithm)."
            if label is not None:
                way_out = "rmat check --fix writes the sign before the number: a bound."
            yield Finding("censored", message, rows, way_out, True, needs_fix=bool(label))
    for column in table.label_columns:
        relations = table.relations[column]
        rows = tuple(np.flatnonzero(relations != "").tolist())
        if rows:
            counts = Counter(relations[relations != ""])
            example = ", ".join(f"{count} with {sign}" for sign, count in counts.items())
            message = f"{column!r} has bounds instead of numbers: {example}"
            way_out = "They are learned as bounds, and left out of the metrics."
            yield Finding("censored", message, rows, way_out)


def _check_missing(table: Examined) -> Iterator[Finding]:
    counts = {name: int(is_empty.sum()) for name, is_empty in table.empty.items()}
    listed = [f"{count} in {name!r}" for name, count in counts.items() if count]
    rows = tuple(np.flatnonzero(table.empty.all(axis=1)).tolist()) if listed else ()
    if listed:
        more = [f"more in {len(listed) - _NUM_NAMED_ROWS} others"]
        shown = ", ".join(listed[:_NUM_NAMED_ROWS] + more * (len(listed) > _NUM_NAMED_ROWS))
        lost = f"; {say_count(len(rows), 'row')} without any" if len(counts) > 1 and rows else ""
        yield Finding(
            "missing",
            f"Missing labels: {shown} of {say_count(len(table.frame), 'row')}{lost}",
            rows,
            "Rows without any label are left out; others are learned from what they have.",
            is_serious=bool(rows),
        )


def _check_labels(table: Examined) -> Iterator[Finding]:
    if not table.is_told:
        yield from _check_found_labels(table)
    classes, is_beside = "--problem-type classification", len(table.label_columns) > 1
    for column in table.label_columns:
        values = table.values(column)
        if table.count_values(column) < 2:
            message = f"{column!r} has one value or none: nothing to learn"
            yield Finding("labels", message, (), "It is left out if there are others.", True)
        elif column not in table.number_columns:
            message = f"{column!r} has words: {table.count_values(column)} classes"
            way_out = f"{describe_recoding(column, table.frame[column])} Alone: {classes}".strip()
            yield Finding("labels", message, (), way_out if is_beside else classes)
        elif len(values) < max(_FEW_LABELS, 0.02 * len(table.frame)):
            message = f"{column!r} has a value in {len(values)} of {len(table.frame)} rows"
            yield Finding("labels", message, (), "Name the others by --label-columns.")
        elif {*values} <= {0.0, 1.0}:
            count = int(values.sum())
            message = f"{column!r} is yes or no: {count} yes, {len(values) - count} no"
            said = describe_words(table.frame[column].loc[values.index])
            message += f"; {said}" if said else ""
            flag = f"--class-columns {_quote([column])}" if table.has_numbers else classes
            yield Finding("labels", message, (), flag)


def _check_found_labels(table: Examined) -> Iterator[Finding]:
    labels, covariates = table.label_columns, table.covariate_columns
    if covariates or len(labels) > 1:
        found = f"Labels seem to be {_list_names(labels)}" if labels else "No label is certain"
        beside = f"; likely covariates: {_list_names(covariates)}" if covariates else ""
        flags = f"--label-columns {_quote(labels[:1] or covariates[:1])} chooses"
        if covariates:
            flags += f"; --feature-columns {_quote(covariates)} has them read beside molecules"
        yield Finding("labels", found + beside, (), f"{flags}.", is_serious=not labels)
    known = [*table.others, *labels, *covariates, *table.assays]
    for column in find_goods(table.frame, others=known):
        message = f"{column!r} seems to be of a catalog, and nothing measured: it is no label"
        yield Finding("labels", message, (), f"--label-columns {_quote([column])} takes it.")
    for column in find_pairs_of_words(table.frame, others=known):
        message = f"{column!r} has two words, and nobody knows which is yes: it is no label"
        yield Finding("labels", message, (), describe_recoding(column, table.frame[column]))


def _check_assays(table: Examined) -> Iterator[Finding]:
    either = "take the rows of one, or make a label column of each, docs/tables.md"
    for name, number in table.assays.items():
        message = f"{name!r} tells {number} assays or targets apart, with labels in one column"
        if name in table.learnable_assays:
            yield _propose_covariates([name], message=message, otherwise=f" Or: {either}.")
        else:
            yield Finding("assays", message, (), f"T{either[1:]}.")
    if names := table.conditions:
        message = f"Rows of one molecule differ in {_list_names(names)}: conditions?"
        yield _propose_covariates(names, message=message)


def _propose_covariates(names: Sequence[str], *, message: str, otherwise: str = "") -> Finding:
    way_out = f"--feature-columns {shlex.join(names)} tells a model of them; their rows are then "
    way_out += f"no replicates.{otherwise}"
    flags = {"--feature-columns": tuple(names)}
    return Finding("assays", message, (), way_out, True, flags)


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NUM_NAMED_ROWS]))
    return f"{shown} and {len(names) - _NUM_NAMED_ROWS} more" if names[_NUM_NAMED_ROWS:] else shown


def _quote(names: Sequence[str]) -> str:
    return shlex.join(names[:_NUM_NAMED_ROWS])


def _check_units(table: Examined) -> Iterator[Finding]:
    for name, (label, cells) in table.mixed_units.items():
        usual, units = name_usual_unit(cells), Counter(cells[cells != ""])
        listed = ", ".join(f"{count} {unit!r}" for unit, count in units.items())
        message, rows = f"{name!r} names several units: {listed}", np.flatnonzero(cells != usual)
        way_out, is_fixed = CONVERT, label is not None and is_convertible(cells)
        if is_fixed:
            way_out = f"rmat check --fix writes {label!r} in {usual}, or empty if not molar."
        yield Finding("units", message, tuple(rows.tolist()), way_out, True, needs_fix=is_fixed)
    for column, unit in table.units.items():
        if unit:
            yield Finding("units", f"{column!r} is in {unit}", (), _DETECTED)


def _check_jumps(table: Examined) -> Iterator[Finding]:
    for column in table.label_columns:
        values = table.values(column)
        values = values[values > 0]
        if rows := find_odd_rows(values, pd.Series(table.parent_of_row, dtype=object)):
            message = f"{column!r} differs a thousandfold between rows of one molecule: two units?"
            way_out = "Correct the unit of these rows, or leave one of them empty."
            yield Finding("jumps", message, rows, way_out, True)
        others = table.frame.drop(columns=table.label_columns)
        if found := find_odd_part(np.log10(values), others.loc[values.index]):
            what = f"about a thousandfold as large or small in {found[0]}: two units?"
            message = f"{column!r} is {what}"
            yield Finding("jumps", message, found[1], CONVERT, True)


def _check_skew(table: Examined) -> Iterator[Finding]:
    names = [table.transforms.get(it, "none") for it in table.label_columns]
    units = shlex.join(table.units[it] for it in table.label_columns)
    flags = " ".join([*names, *(["--label-units", units] if "pIC50" in names else [])])
    for column in (it for it, name in table.transforms.items() if name != "none"):
        values = table.values(column)
        span = f"{np.ptp(np.log10(values)):.1f} decades, {values.min():g} to {values.max():g}"
        message = f"{column!r} goes over {span}: the largest values would dominate"
        way_out = f"Learn the logarithm: --label-transform {flags}"
        if column in (label for label, _ in table.mixed_units.values()):
            way_out = "In one unit, look again: they may need a --label-transform."
        yield Finding("skew", message, (), way_out, True)


def _check_replicates(table: Examined) -> Iterator[Finding]:
    known = list(table.parent_of_row)
    parents = table.name_replicates()
    counts = Counter(parents)
    repeated = [row for row, name in zip(known, parents, strict=True) if counts[name] > 1]
    if not repeated or not table.label_columns:
        return
    num_parents = sum(count > 1 for count in counts.values())
    has_numbers, spreads = table.has_numbers, []
    for column in table.label_columns:
        values = table.learned(column)
        spread = values.groupby([table.parent_of_row[row] for row in values.index]).std().median()
        unit = f" {LOG_UNITS}" if table.transforms.get(column, "none") != "none" else ""
        spreads += [f"{spread:.2g}{unit} in {column!r}"] if spread == spread else []
    spread_text = f"; median spread {', '.join(spreads[:3])}" if spreads else ""
    text = f"{say_count(num_parents, 'molecule')} in several rows, salts and tautomers included"
    way_out = "They stay in one part of every split."
    if has_numbers:
        text += spread_text
        way_out += " --replicates median makes one row of equal SMILES, which salts and tautomers "
        way_out += "have by --standardize."
    yield Finding("replicates", text, tuple(repeated), way_out)
    numbers = pd.DataFrame({it: table.learned(it) for it in table.label_columns}, index=known)
    conflicts = find_label_conflicts(parents, numbers.to_numpy(), tolerance=0.1)
    rows = tuple(known[position] for position in sorted(conflicts))
    if rows:
        message = "Rows of one molecule contradict each other"
        message += " by more than a tenth of the spread" * has_numbers
        way_out, flags = "Rows of equal SMILES are left out: correct or drop one of them.", {}
        columns = [table.numbers.columns[it] for it, *_ in conflicts.values()]
        if any({*table.values(column)} - {0.0, 1.0} for column in columns):
            flags = {"--replicates": ("median",)}
            way_out = f"Rows of equal SMILES are left out: {CONFLICT_WAY_OUT}."
        yield Finding("replicates", message, rows, way_out, True, flags)


def _check_fragments(table: Examined) -> Iterator[Finding]:
    def count_large(mol: Chem.Mol) -> int:
        sizes = [len(atoms) for atoms in Chem.GetMolFrags(mol)]
        return sum(size >= _LARGE_FRAGMENT for size in sizes) if len(sizes) > 1 else 0

    mixtures = table.find_rows(lambda mol: count_large(mol) > 1)
    salts = table.find_rows(lambda mol: len(Chem.GetMolFrags(mol)) > 1)
    ions = table.find_rows(lambda mol: Chem.GetFormalCharge(mol) != 0)
    salts, alone = tuple(sorted({*salts} - {*mixtures})), tuple(sorted({*ions} - {*salts}))
    steps = ("largest_fragment", "uncharge")
    if mixtures:
        message = "Mixtures of several large molecules"
        way_out = (
            "Which has the label? Drop such rows: --standardize largest_fragment, which is for "
        )
        way_out += "salts, takes the largest molecule whatever was measured."
        yield Finding("fragments", message, mixtures, way_out, True)
    for message, rows in {"Salts and solvates": salts, "Ions": alone}.items():
        if rows:
            way_out = f"--standardize {' '.join(steps)}"
            yield Finding("fragments", message, rows, way_out, flags={"--standardize": steps})


def _check_tautomers(table: Examined) -> Iterator[Finding]:
    charge_free = {
        row: table.smiles[row] for row in table.parent_of_row if "." not in table.smiles[row]
    }
    groups = group_rows(table.parent_of_row[row] for row in charge_free)
    numbers = list(charge_free)
    rows = [
        [numbers[idx] for idx in group]
        for group in groups.values()
        if len({charge_free[numbers[idx]] for idx in group}) > 1
    ]
    if rows:
        number = say_count(len(rows), "molecule")
        message = f"{number} written in several forms (tautomers or charges)"
        of_all = tuple(row for group in rows for row in group)
        flags = {"--standardize": ("uncharge", "tautomer")}
        yield Finding("tautomers", message, of_all, "--standardize uncharge tautomer", flags=flags)


def _check_stereo(table: Examined) -> Iterator[Finding]:
    def is_undefined(mol: Chem.Mol) -> bool:
        found = Chem.FindPotentialStereo(mol)
        return any(it.specified == Chem.StereoSpecified.Unspecified for it in found)

    if rows := table.find_rows(is_undefined):
        yield Finding("stereo", "Stereo is possible and not given", rows)


def _check_cliffs(table: Examined) -> Iterator[Finding]:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    known = list(table.parent_of_row)
    if not 0 < len(known) <= _MOST_COMPARED:
        return
    fingerprints = {row: generator.GetFingerprint(table.mols[row]) for row in known}
    for column in table.label_columns:
        if cliffs := find_cliffs(table.values(column), fingerprints):
            first, second = cliffs[0]
            yield Finding(
                "cliffs",
                f"{len(cliffs)} pairs of close analogs differ in {column!r} by more than two "
                f"standard deviations, as rows {second} and {first}: activity cliffs, or mistakes",
                tuple(sorted({row for pair in cliffs for row in pair})),
            )


def _check_parts(table: Examined) -> Iterator[Finding]:
    for column in table.part_columns:
        parts = table.frame[column].str.strip().str.lower().map(PART_WORDS).fillna("")
        counts = Counter(parts)
        listed = ", ".join(f"{counts[name]} {name or 'without one'}" for name in counts)
        missing = "" if "valid" in counts else " Valid is taken of train by --split."
        parents = pd.Series(table.parent_of_row, dtype=object)
        of_parents = parts.loc[parents.index].groupby(parents).transform("nunique")
        leaking = of_parents[of_parents > 1]
        has_labels = {"train", "test"} <= {*parts.loc[table.labeled_rows]}
        flags = {"--split-column": (column,)} if has_labels and leaking.empty else {}
        text = f"--split-column {shlex.quote(column)}.{missing}" if has_labels else _NO_PARTS
        yield Finding("parts", f"Column {column!r} gives parts: {listed}", (), text, flags=flags)
        if len(leaking):
            yield Finding(
                "parts",
                f"{parents.loc[leaking.index].nunique()} molecules, salts and tautomers included, "
                f"stand in several parts of {column!r}: their labels leak",
                tuple(leaking.index),
                "Correct it, or divide anew: --split kfold.",
                is_serious=True,
                flags=_FOLDS if parents.nunique() >= _FEWEST_IN_FOLDS else {},
            )


def _check_splits(table: Examined) -> Iterator[Finding]:
    num_parents, num_rows = len({*table.parent_of_row.values()}), len(table.known_rows)
    num_labeled = len({table.parent_of_row.get(row, row) for row in table.labeled_rows})
    if num_parents:
        with silence_rdkit():
            scaffolds = Counter(
                MurckoScaffold.MurckoScaffoldSmiles(mol=table.mols[row]) for row in table.known_rows
            )
        largest = max(scaffolds.values()) / num_rows
        are_many = num_labeled >= _FEW_ROWS and len(scaffolds) >= 10 and largest <= 0.5
        are_many &= len(table.rare_columns) < max(len(table.label_columns), 1)
        times = {name: name_kind_of_times(table.frame[name]) for name in table.frame}
        allowed = ["random"] * (num_parents >= 3) + ["scaffold"] * (len(scaffolds) >= 3)
        allowed += ["cluster"] * (num_parents >= 10)
        hints = {"": "", AMBIGUOUS: ", once its days are written as 2019-05-31"}
        allowed += [
            f"time (--time-column {shlex.quote(name)}{hints.get(kind, '')})"
            for name, kind in times.items()
            if kind
        ]
        yield Finding(
            "splits",
            f"{say_count(num_parents, 'molecule')}, {say_count(len(scaffolds), 'scaffold')}; the "
            f"largest scaffold has {largest:.0%} of the rows",
            (),
            f"--split: {', '.join(allowed) or 'too few molecules'}",
            flags={"--split": ("scaffold",)} if are_many else {},
        )
    # without labels there is nothing to divide
    if num_labeled < _FEW_ROWS and table.label_columns:
        message = f"{say_count(num_labeled, 'molecule')} with a label: a tenth as test says little"
        flags = _FOLDS if num_labeled >= _FEWEST_IN_FOLDS else {}
        yield Finding("splits", message, (), "--split kfold, or more rows.", True, flags)
    elif rare := table.rare_columns:
        listed = ", ".join(f"{count} in {name!r}" for name, count in rare.items())
        message = f"Few rows of the rarer class, {listed}: a tenth of them as test decides nothing"
        flags = _FOLDS if len(rare) == len(table.label_columns) else {}
        yield Finding("splits", message, (), "--split kfold, or more rows.", True, flags)


# What is looked at, in the order of the report.
CHECKS: dict[str, Callable[[Examined], Iterator[Finding]]] = {
    "reading": _check_reading,
    "molecules": _check_molecules,
    "cells": _check_cells,
    "missing": _check_missing,
    "censored": _check_censored,
    "labels": _check_labels,
    "units": _check_units,
    "assays": _check_assays,
    "jumps": _check_jumps,
    "skew": _check_skew,
    "replicates": _check_replicates,
    "fragments": _check_fragments,
    "tautomers": _check_tautomers,
    "stereo": _check_stereo,
    "cliffs": _check_cliffs,
    "parts": _check_parts,
    "splits": _check_splits,
}


def check_table(
    dataset: Any,
    *,
    smiles_column: str = SMILES_COLUMN,
    label_columns: Sequence[str] = (),
    split_column: str | None = None,
    revision: str | None = None,
) -> TableReport:
    """Look through a table of molecules and labels as `rmat check` does.

    Args:
        dataset (`str`, `Path`, `pd.DataFrame` or `datasets.Dataset`):
            CSV with any separator, decimal comma and encoding, Excel, SDF or Parquet file, folder,
            bundled name, data set on the Hub, or rows.
        smiles_column (`str`, *optional*, defaults to `"smiles"`):
            Column of SMILES; if there is none of that name, it is found by its cells.
        label_columns (`Sequence[str]`, *optional*): By default all of numbers, or of yes and no.
        split_column (`str`, *optional*): Column of parts; by default those that look so.
        revision (`str`, *optional*): Branch, tag or commit of a data set on the Hub.

    Returns:
        [`TableReport`]: `print` shows it; `findings` have a topic, a message, rows and a way out.

    Raises:
        UserError: The file cannot be read, or no column has SMILES.

    Example:
    ```python
    >>> import pandas as pd
    >>> from rmat_hf import check_table
    >>> smiles = ["CCO", "CC[O-].[Na+]", "C1"]
    >>> table = pd.DataFrame({"Smiles": smiles, "IC50 (nM)": ["5", ">9", "x"]})
    >>> report = check_table(table)
    >>> report.smiles_column, report.label_columns
    ('Smiles', ['IC50 (nM)'])
    >>> [finding.rows for finding in report.findings if finding.topic in ("molecules", "cells")]
    [(2,), (2,)]

    ```
    """
    table = open_rows(dataset, revision=revision)
    with_inchi = read_inchi(table) if smiles_column == SMILES_COLUMN else None
    return look_through(
        with_inchi or table,
        smiles_column=smiles_column,
        label_columns=label_columns,
        split_column=split_column,
    )


def look_through(
    table: Table,
    *,
    smiles_column: str,
    label_columns: Sequence[str],
    split_column: str | None,
    others: Sequence[str] = (),
    with_molecules: bool = True,
) -> TableReport:
    """Return the report of an open table, as [`check_table`]; of its cells alone, if told so."""
    smiles_column = find_smiles_column(table, smiles_column)
    split_column = split_column or table.split_column
    names = [smiles_column, *label_columns, *filter(None, [split_column])]
    table.select(names)  # names those that are missing
    examined = Examined(
        table,
        smiles_column=smiles_column,
        label_columns=label_columns,
        part=split_column,
        others=others,
        with_molecules=with_molecules,
    )
    findings = [finding for check in CHECKS.values() for finding in check(examined)]
    labels = examined.label_columns
    return TableReport(
        source=table.source,
        description=table.description or "rows in memory",
        num_rows=table.num_rows,
        num_molecules=len({*examined.parent_of_row.values()}),
        smiles_column=smiles_column,
        label_columns=labels,
        covariate_columns=examined.covariate_columns,
        label_units=examined.units,
        label_transforms=examined.transforms,
        useless_labels=[name for name in labels if examined.count_values(name) < 2],
        binary_labels=examined.binary_columns,
        findings=findings,
        mols=examined.mols,
        frame=examined.frame,
        styles=examined.styles,
    )
