"""What columns beside a label say of each row: bound, unit, assay and conditions of measurement."""

import re
from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from rmat_hf.data.columns import (
    LOGARITHM,
    NAME_OF_ROWS,
    OUTCOME,
    find_unit_columns,
    parse_cell,
)
from rmat_hf.data.labels import BOUNDS, is_empty, parse_number, parse_word
from rmat_hf.data.measurements import MOST_CATEGORIES
from rmat_hf.data.splits.column_splits import AMBIGUOUS, build_time_parser
from rmat_hf.model.transforms_rmat import MOLAR_UNITS

# What was measured, in the name of a column.
_NAME_OF_ASSAY = re.compile(
    r"(^|[\s_.-])(assays?|targets?|endpoints?|readouts?|(standard|activity|result|measurement)"
    r"[\s_.-]?types?|parameter|property)($|[\s_.-])",
    re.IGNORECASE,
)
# How it was measured.
_NAME_OF_CONDITION = re.compile(
    r"(^|[\s_(\[.,/-])(ph|temp\w*|conc(entration)?|dose|incubation|time|cells?([\s_.-]?lines?)?|"
    r"species|organism|strain|tissue|matrix|medium|media|buffer|serum|solvent|method|protocol|"
    r"format|isoform|mutant|mutation|variant|enzyme|receptor|sex|route)($|[\s_)\].,/-])",
    re.IGNORECASE,
)
# What tells repeats apart, or how sure they are, and is no condition.
_NAME_OF_REPEAT = re.compile(
    r"(^|[\s_(\[.,/-])(n|counts?|reps?|replicates?|runs?|repeats?|std|stdev|stddev|sd|sem|"
    r"err(or)?|weight|confidence|hill|slope|comments?|notes?|remarks?)($|[\s_)\].,/-])",
    re.IGNORECASE,
)
# Rows that each of several assays has, so that a model may learn what they differ in.
_ROWS_OF_ASSAY = 10
# Of a column without such a name: its different cells, the molecules that have several of them.
_FEW_CONDITIONS = 10
_FEWEST_REPEATED = 5


def find_relations(
    frame: pd.DataFrame, label_columns: Sequence[str]
) -> dict[str, tuple[str | None, pd.Series]]:
    """Return the columns of relations such as `>`; the label beside each, and its `<` and `>`.

    There is no label where several could be meant, or where it is a logarithm: a sign may turn.
    """
    found = {}
    for name in (it for it in frame if it not in label_columns):
        cells = frame[name].str.strip().str.strip("'\"")
        if {*cells} - {""} and {*cells} - {""} <= {*BOUNDS, "=", "~", "≈"}:
            label = _find_label_beside(frame, name, label_columns=label_columns, steps=(1, -1))
            label = None if label and LOGARITHM.search(label) else label
            found[name] = label, cells.map(BOUNDS).fillna("")
    return found


def find_mixed_units(
    frame: pd.DataFrame, label_columns: Sequence[str]
) -> dict[str, tuple[str | None, pd.Series]]:
    """Return the columns with several units; the label beside each, and the cells."""
    return {
        name: (_find_label_beside(frame, name, label_columns=label_columns, steps=(-1, 1)), cells)
        for name, cells in find_unit_columns(frame).items()
        if len({*cells} - {""}) > 1
    }


def _find_label_beside(
    frame: pd.DataFrame, column: str, *, label_columns: Sequence[str], steps: tuple[int, int]
) -> str | None:
    names = list(frame)
    near = [names.index(column) + step for step in steps]
    beside = [names[idx] for idx in near if 0 <= idx < len(names) and names[idx] in label_columns]
    only = [*label_columns] if len(label_columns) == 1 else []
    return next(iter([*beside, *only]), None)


def name_usual_unit(cells: pd.Series) -> str:
    """Return the unit that most rows have."""
    return str(cells[cells != ""].mode().iloc[0])


def write_bounds(
    cells: Sequence[str], label: str, *, frame: pd.DataFrame, label_columns: Sequence[str]
) -> list[str]:
    """Return the cells of a label with the bounds of a column of relations written into them."""
    written = [*cells]
    for beside, signs in find_relations(frame, label_columns).values():
        if beside == label:
            pairs = zip(signs, written, strict=True)
            written = [f"{sign}{it}" if sign and _is_exact(it) else it for sign, it in pairs]
    return written


def _is_exact(text: str) -> bool:
    relation, number = parse_cell(text)
    return not relation and number == number


def is_convertible(cells: pd.Series) -> bool:
    """Tell whether most rows are in a molar unit, which others may be converted to."""
    return name_usual_unit(cells) in MOLAR_UNITS


def convert_units(
    cells: Sequence[str], label: str, *, frame: pd.DataFrame, label_columns: Sequence[str]
) -> list[str]:
    """Return the cells of a label in the unit of most rows; empty of what is in no molar one.

    The frame's column of units is changed alike.
    """
    written = [*cells]
    for column, (beside, units) in find_mixed_units(frame, label_columns).items():
        if beside != label or not is_convertible(units):
            continue
        usual = name_usual_unit(units)
        for row, (unit, cell) in enumerate(zip(units, cells, strict=True)):
            if unit not in ("", usual):
                written[row] = _convert(cell, unit=unit, usual=usual) if unit in MOLAR_UNITS else ""
        frame[column] = units.where(~units.isin([*MOLAR_UNITS]), usual)
    return written


def _convert(cell: str, *, unit: str, usual: str) -> str:
    relation, number = parse_cell(cell)
    power = MOLAR_UNITS[usual] - MOLAR_UNITS[unit]
    return f"{relation}{number * 10.0**power:.10g}" if number == number else cell


def find_assays(
    frame: pd.DataFrame, rows: Sequence[int], *, others: Iterable[str]
) -> dict[str, int]:
    """Return the columns that say what was measured, where these rows have several, and how many.

    Of two that divide the rows alike it is the first.
    """
    found: dict[str, int] = {}
    seen: set[bytes] = set()
    for name in (it for it in frame if it not in {*others} and _NAME_OF_ASSAY.search(it)):
        cells = frame[name].iloc[list(rows)].str.strip()
        words = [it for it in cells.unique() if not is_empty(it)]
        codes = pd.factorize(cells)[0].tobytes()
        is_outcome = len(words) == 2 and any(map(_is_outcome, words))
        # numbers are measured, or conditions, unless they are called identifiers
        is_number = _are_numbers(words) and not NAME_OF_ROWS.search(name.strip())
        is_taken = is_outcome or is_number or codes in seen or _holds_times(words)
        if 1 < len(words) <= len(rows) / 2 and not is_taken:
            found[name] = len(words)
            seen.add(codes)
    return found


def list_learnable(frame: pd.DataFrame, assays: dict[str, int], *, num_rows: int) -> list[str]:
    """Return the columns of assays of many rows each, in words: a model may learn of which."""
    return [
        name
        for name, number in assays.items()
        if number <= min(MOST_CATEGORIES, num_rows / _ROWS_OF_ASSAY)
        and not _are_numbers(it for it in frame[name].unique() if not is_empty(it))
    ]


def _is_outcome(word: str) -> bool:
    return bool(OUTCOME.search(word)) or parse_word(word) is not None


def _are_numbers(words: Iterable[str]) -> bool:
    return all(parse_number(it) is not None for it in words)


def find_conditions(
    frame: pd.DataFrame, parents: pd.Series, *, others: Collection[str]
) -> list[str]:
    """Return the columns in which rows of one molecule differ as do those of several conditions.

    Args:
        parents: Name of the molecule of each row that has one.
    """
    parents = parents[parents.duplicated(keep=False)]
    found = []
    for name in (it for it in frame if it not in others):
        if NAME_OF_ROWS.search(name.strip()) or _NAME_OF_REPEAT.search(name):
            continue
        cells = frame[name].loc[parents.index].str.strip()
        cells = cells[~cells.map(is_empty)]
        several = cells.groupby(parents.loc[cells.index]).nunique() > 1
        is_named, number = bool(_NAME_OF_CONDITION.search(name)), cells.nunique()
        needed = 0.5 if is_named else 0.9
        is_many = number > (MOST_CATEGORIES if is_named else _FEW_CONDITIONS)
        is_rare = sum(several) < (1 if is_named else _FEWEST_REPEATED)
        if is_rare or is_many or several.mean() < needed or _holds_times(cells.unique()):
            continue
        found.append(name)
    return found


def _holds_times(texts: Iterable[str]) -> bool:
    return name_kind_of_times(texts) != ""


def name_kind_of_times(cells: Iterable[str]) -> str:
    """Return what cells of dates are, `"a date"` or that their order is not known; else nothing."""
    texts = [text for text in cells if text.strip()]
    parse = build_time_parser(texts)
    kinds = {parse(text)[0] for text in texts[:200]}
    known = kinds <= {"a date", "a date with a time zone"} or kinds == {AMBIGUOUS}
    return min(kinds) if kinds and known else ""
