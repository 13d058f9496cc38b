"""What the columns of a table are, by their names and cells: SMILES, labels, units, parts."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rdkit import Chem

from rmat_hf.data.labels import is_empty, name_several_findings, parse_word
from rmat_hf.data.splits.parts import PART_WORDS
from rmat_hf.data.tables import (
    SMILES_COLUMN,
    Table,
    TableChunk,
    build_table,
    is_text,
    validate_columns,
)
from rmat_hf.errors import UserError
from rmat_hf.model.features_rmat import silence_rdkit
from rmat_hf.model.standardization_rmat import standardize_mol

_CHUNK_SIZE = 1000
_NUM_SAMPLE_ROWS = 200
_MOST_CHARACTERS = 500
# Share of the cells of a column that are what the column is.
_MOST = 0.5
_WORD = re.compile(r"[^\W\d]{2}[^\d]+")
_FEWEST_WORDS = 10
_RELATION = r"(?P<relation><<|>>|[<>]=?|[≤≥~≈=])?\s*"
_NUMBER = re.compile(_RELATION + r"(?P<number>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)")
_DECIMAL_COMMA = re.compile(_RELATION + r"[-+]?(\d{1,3}(\.\d{3})+|\d*),\d+([eE][-+]?\d+)?")
_THOUSANDS = re.compile(_RELATION + r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
INCHI_NOTE = "SMILES from InChI"
_INCHI = re.compile(r"InChI=")
# What may stand where SMILES are looked for, and what to do.
_STRUCTURES = (
    (_INCHI, "InChI, not SMILES: rmat check FILE --fix clean.csv writes them as SMILES."),
    (
        re.compile(r"[A-Z]{14}-[A-Z]{10}-[A-Z]$"),
        "InChI keys, of which no molecule can be read. Look their SMILES up.",
    ),
    (
        re.compile(r"(?=.*[a-z]{4})[\w(),' +-]{4,}$"),
        "names, of which no molecule can be read. Look their SMILES up.",
    ),
)
_SMILES_NAME = re.compile(r"smi|structure|^mol(ecule)?$", re.IGNORECASE)
# Numbers that say which row it is, and nothing of the molecule.
NAME_OF_ROWS = re.compile(
    r"(^|[\s_.-])(ids?|idx|index|no|nr|num|number|row|cid|sid|cas|key|batch|plate|well|lot|fold|"
    r"cluster|unnamed: \d+)$|^(unnamed: \d+|)$|(?-i:[a-z]ID)$|^#|"
    r"^(mol|cmpd|compound|sample|row)id$",
    re.IGNORECASE,
)
# What a compound is called.
_NAME_OF_COMPOUND = re.compile(
    r"^(id|name|title|compound|molecule|cid|cas)$|(compound|molecule|mol|chembl|sample)[\s_.-]*"
    r"(id|name|no|nr|number)$|(?-i:[a-z]ID)$",
    re.IGNORECASE,
)
# Numbers that belong to a measurement or follow from the molecule, beside others that are labels.
_COVARIATE = re.compile(
    r"(^|[\s_(\[.,/-])(ph|temp\w*|conc(entration)?|dose|incubation|count|n|reps?|replicates?|"
    r"year|passage|mw|molwt|mol(ecular)?[\s_]?(weight|mass)|exact[\s_]?mass|[ht]?psa|"
    r"hb[ad]|[acx]logp|rot(atable)?[\s_]?(b|bonds)?|rings|(heavy[\s_]?)?atoms|charge|qed|cliff|std|"
    r"stdev|stddev|sd|sem|err(or)?|weight|confidence|hill|slope)($|[\s_)\].,/-])|^num_?|molwt$",
    re.IGNORECASE,
)
# What a compound costs, or how much of it there is: no measurement.
_NAME_OF_GOODS = re.compile(
    r"(^|[\s_(\[.,/-])(prices?|costs?|eur|euro|usd|gbp|chf|jpy|stock|availab(le|ility)|amount|"
    r"quantity|pack(age)?[\s_]?size|delivery|lead[\s_]?time)($|[\s_)\].,/-])|[$€£]",
    re.IGNORECASE,
)
# What is found of a molecule, in the name of a column or in its words.
_NAME_OF_OUTCOME = re.compile(
    r"(^|[\s_.-])(y|label|class|call|outcome|result|response|hit|target|endpoint|readout|finding|"
    r"category|grade|level|ames|herg|bbb|pgp|p-gp|cyp\w*|dili)($|[\s_.-])|tox|activ|mutagen|"
    r"carcino|permea|solub|stabil|clearance|inhib|bind|potency|sensitiv",
    re.IGNORECASE,
)
OUTCOME = re.compile(
    r"^(very )?(high|low|good|bad|poor|strong|weak|slow|fast|rapid|safe|unsafe|normal|abnormal)\b|"
    r"agonist|sensitive|resistant|activator|inhibitor|substrate|(^|\W)(in)?active|tox|bound",
    re.IGNORECASE,
)
# A condition in the name of a label: LogD (pH 7.4), inhibition at conc 10.
_CONDITION = re.compile(r"\bph[\s=]*\d|\bat\b", re.IGNORECASE)
# A column of units, but not those of a time, temperature or dose.
_UNIT_COLUMN = re.compile(
    r"^(?!.*(?i:time|temp|dose)).*(?:(?<![A-Za-z])(?:[Uu]nit|UNIT)|(?<=[a-z])Unit)[sS]?(?![A-Za-z])"
)
LOGARITHM = re.compile(r"(?i)(^|[^a-z])(log|p(chembl|act|[a-z]{2}50|ki|kd|km|mic))")
_UNIT = re.compile(
    r"(?:^|[\s_(\[,/])(?P<unit>[pnuµμm]?M|[munµμ]?mol/L|kcal/mol|kJ/mol|[munµμ]?g/m?L|%|min|h|"
    r"log ?M)[)\]\s]*$"
)

# What stands before the unit of a condition, and what has none but per cent.
_AMOUNT = re.compile(r"(^|[\s_@(\[=,])\d+([.,]\d+)?[\s_]*$")
_PERCENT = re.compile(r"^\s*%|(?i:\bpercent\b)|^\w+ %")
# What a column of concentrations measures, in its name.
ASSAY = re.compile(r"(?<![A-Za-z])([A-Z]{2}50|Ki|Kd|Km|MIC)(?![A-Za-z0-9])")


def parse_cell(text: str) -> tuple[str, float]:
    """Return the relation in a cell such as `>10000`, else nothing, and its number.

    The number is NaN where the cell is empty or no number; words like `active` are 1 or 0.
    """
    text = text.strip()
    if found := _NUMBER.fullmatch(text):
        return found["relation"] or "", float(found["number"])
    word = parse_word(text)
    return "", math.nan if word is None else word


def find_stray_words(cells: pd.DataFrame, numbers: pd.DataFrame) -> pd.DataFrame:
    """Tell which cells are words like active that are neither 1 nor 0 in their column.

    Those among numbers, as of IC50, and those that say yes to different things.
    """
    is_word = cells.map(lambda text: parse_word(text) is not None)
    for name in cells:
        others = {*numbers[name][~is_word[name]].dropna()} - {0.0, 1.0}
        is_word[name] &= bool(others) or name_several_findings(cells[name])
    return is_word


def read_frame(table: Table, *, num_rows: int | None = None) -> pd.DataFrame:
    """Return the cells of a table, or of its first rows, as text, empty where there is nothing."""
    chunks: Iterable[TableChunk] = table.iterate_chunks(_CHUNK_SIZE)
    if num_rows is not None:
        chunks = islice(chunks, -(-num_rows // _CHUNK_SIZE))
    columns: dict[str, list[str]] = {name: [] for name in table.column_names}
    for chunk in chunks:
        for name, cells in chunk.columns.items():
            columns[name] += ["" if it is None else str(it) for it in cells.to_pylist()]
    return pd.DataFrame(columns, dtype=object).iloc[:num_rows]


# SMILES


def find_smiles_column(table: Table, wanted: str = SMILES_COLUMN) -> str:
    """Return the column of SMILES: the one that was named, else the one whose cells are SMILES."""
    if wanted in table.column_names or wanted != SMILES_COLUMN:
        return wanted
    cells = read_frame(table, num_rows=_NUM_SAMPLE_ROWS)
    if cells.empty:
        raise UserError(f"{table.source} has no rows.")
    return find_smiles_cells(cells, source=table.source)


def find_smiles_cells(frame: pd.DataFrame, *, source: str, is_sure: bool = False) -> str:
    """Return the column of a frame whose cells are SMILES, by its name if several are.

    If it is to be sure, of several one is called canonical.
    """
    cells = frame.head(_NUM_SAMPLE_ROWS)
    shares = {name: _share_smiles(cells[name]) for name in cells}
    found = {name: share for name, share in shares.items() if share >= _MOST}
    ranks = [_rank_name(name) for name in found]
    if is_sure and len(found) > 1 and (max(ranks) < 2 or ranks.count(max(ranks)) > 1):
        listed = ", ".join(map(repr, found))
        raise UserError(f"{source} has several columns of SMILES: {listed}.")
    if found:
        return max(found, key=lambda name: (_rank_name(name), found[name]))
    try:
        validate_columns(frame.columns, [SMILES_COLUMN], source=source)
    except UserError as error:
        raise UserError(f"{error}{_describe_structures(cells)}") from None
    return SMILES_COLUMN


def _rank_name(name: str) -> int:
    name = name.strip().lower()
    if name == SMILES_COLUMN:
        return 3
    return 2 if "canonical" in name and "smi" in name else int(bool(_SMILES_NAME.search(name)))


def _share_smiles(cells: Sequence[str]) -> float:
    """Return the share of the filled cells that RDKit reads; nothing of short words and numbers."""
    texts = [text.split()[0] for text in _list_filled(cells)]
    texts = [text for text in texts if len(text) <= _MOST_CHARACTERS]
    # letters alone, such as F and M, are SMILES only by accident
    if not any("C" in text.upper() for text in texts):
        return 0.0
    with silence_rdkit():
        return sum(Chem.MolFromSmiles(text) is not None for text in texts) / len(texts)


def _describe_structures(frame: pd.DataFrame) -> str:
    """Say which column of a table without SMILES names molecules otherwise."""
    for form, advice in _STRUCTURES:
        for name in frame:
            if _share(frame[name], form) > _MOST:
                return f" {name!r} holds {advice}"
    return ""


def _share(cells: Sequence[str], form: re.Pattern[str]) -> float:
    texts = _list_filled(cells)
    return sum(bool(form.match(text)) for text in texts) / max(len(texts), 1)


def _list_filled(cells: Iterable[Any]) -> list[str]:
    return [text.strip() for text in cells if isinstance(text, str) and text.strip()]


def read_inchi(table: Table) -> Table | None:
    """Return a table without SMILES but with InChI with a column `smiles` of these, else `None`."""
    frame = read_frame(table, num_rows=_NUM_SAMPLE_ROWS)
    names = [name for name in frame if _share(frame[name], _INCHI) > _MOST]
    if not names or any(_share_smiles(frame[name]) >= _MOST for name in frame):
        return None
    rows = pa.concat_tables(chunk.table for chunk in table.iterate_chunks(_CHUNK_SIZE))
    smiles = []
    with silence_rdkit():
        for text in rows[names[0]].to_pylist():
            mol = Chem.MolFromInchi((text or "").strip())
            # an InChI has no form of a tautomer, and RDKit reads amides as their imidic acids
            mol = mol and standardize_mol(mol, ("tautomer",))
            smiles.append(Chem.MolToSmiles(mol) if mol else None)
    rows = rows.append_column(SMILES_COLUMN, pa.array(smiles, pa.string()))
    described = f"{table.description}, {INCHI_NOTE}"
    return replace(build_table(rows, source=table.source), description=described)


# Parts, labels and units


def find_part_columns(frame: pd.DataFrame) -> list[str]:
    """Return the columns of words like train, val and test, at least two of them."""
    words = {name: {text.strip().lower() for text in frame[name].unique()} for name in frame}
    return [
        name
        for name, found in words.items()
        if found - {""} <= {*PART_WORDS} and len({PART_WORDS[it] for it in found - {""}}) > 1
    ]


def find_label_columns(
    frame: pd.DataFrame, *, others: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Return the columns that seem labels, and the other numbers, which are likely covariates.

    Labels are numbers, or yes and no, that neither count or name the rows, nor are prices of a
    catalog, nor, beside others, are called as pH, temperature, counts or molecular weight are.
    """
    others = {*others, *find_part_columns(frame)}
    names = [
        name
        for name in frame
        if name not in others
        and not NAME_OF_ROWS.search(name.strip())
        and not _NAME_OF_GOODS.search(name)
        and _holds_labels(frame[name])
    ]
    labels = [it for it in names if not _COVARIATE.search(it) or _CONDITION.search(it)]
    labels = names if len(names) == 1 else labels
    return labels, [name for name in names if name not in labels]


def find_numbered_columns(frame: pd.DataFrame, *, others: Iterable[str]) -> list[str]:
    """Return the columns of numbers that seem to count, name or price the rows."""
    labels = find_label_columns(frame, others=others)
    known = {*others, *labels[0], *labels[1]}
    return [name for name in frame if name not in known and list_numbers(frame[name])]


def find_goods(frame: pd.DataFrame, *, others: Iterable[str]) -> list[str]:
    """Return the columns of numbers that are of a catalog, as prices, and no labels."""
    others = {*others}
    names = [it for it in frame if it not in others and _NAME_OF_GOODS.search(it)]
    return [name for name in names if _holds_labels(frame[name])]


def find_pairs_of_words(frame: pd.DataFrame, *, others: Iterable[str]) -> list[str]:
    """Return the columns of two words of which nobody knows which is yes.

    Those that their names or words tell to be outcomes: that of a vendor is none.
    """
    others, found = {*others, *find_unit_columns(frame)}, []
    for name in (it for it in frame if it not in others and not NAME_OF_ROWS.search(it.strip())):
        texts = [text.strip() for text in frame[name] if not is_empty(text)]
        words = [*dict.fromkeys(texts)]
        is_outcome = _NAME_OF_OUTCOME.search(name) or any(map(OUTCOME.search, words))
        is_pair = len(words) == 2 and all(map(_WORD.fullmatch, words))
        if is_pair and is_outcome and len(texts) >= _FEWEST_WORDS:
            found.append(name)
    return found


def holds_yes_or_no(cells: Iterable[str], style: str) -> bool:
    """Tell whether cells have words of yes and no, and beside them no numbers but 1 and 0."""
    plain = [rewrite_number(text, style) for text in cells]
    others = {parse_cell(text)[1] for text in plain if not is_empty(text)} - {0.0, 1.0}
    return all(map(math.isnan, others)) and any(parse_word(it) is not None for it in plain)


def find_name_column(columns: Iterable[str]) -> str | None:
    """Return the column that says what compounds are called, if one is named so."""
    return next((it for it in columns if _NAME_OF_COMPOUND.search(it.strip())), None)


def list_numbers(cells: pd.Series) -> list[float]:
    """Return the numbers, or yes and no as 1 and 0, of a column of them; none of any other."""
    texts = [text for text in cells if not is_empty(text)]
    style = find_number_style(texts, is_european=True)
    plain = (rewrite_number(text, style) for text in texts)
    numbers = [number for _, number in map(parse_cell, plain) if number == number]
    return numbers if len(numbers) > _MOST * len(texts) else []


def _holds_labels(cells: pd.Series) -> bool:
    numbers = list_numbers(cells)
    steps = {second - first for first, second in pairwise(numbers)}
    return bool(numbers) and not (len(numbers) > 2 and steps == {1.0})


def find_unit(column: str) -> str:
    """Return the unit in the name of a column, as in `IC50 (nM)`; empty if there is none.

    Behind a number it is that of a condition: `% inhibition @10 uM` is in per cent.
    """
    found = _UNIT.search(column)
    is_condition = found and _AMOUNT.search(column[: found.start("unit")])
    if not found or (is_condition and not ASSAY.search(column)):
        return "%" if _PERCENT.search(column) else ""
    return found["unit"].replace("μ", "u").replace("µ", "u") if found else ""


def find_unit_columns(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the cells of columns that name units."""
    return {it: frame[it].str.strip() for it in frame if _UNIT_COLUMN.search(it)}


def find_units(frame: pd.DataFrame, label_columns: Sequence[str]) -> dict[str, str]:
    """Return the unit in the name of each label, or of a single one that in a column of one."""
    units = {name: find_unit(name) for name in label_columns}
    beside = [{*cells} - {""} for cells in find_unit_columns(frame).values()]
    # of pIC50 beside nM it is not that of the numbers
    is_told = any(units.values()) or any(map(LOGARITHM.search, units))
    if [len(units), *map(len, beside)] == [1, 1] and not is_told:
        return dict.fromkeys(units, find_unit(beside[0].pop()))
    return units


# Numbers as they are written elsewhere


def find_number_style(cells: Iterable[str], *, is_european: bool) -> str:
    """Return what commas in a column of numbers are: `"decimal"`, `"thousands"` or nothing."""
    with_commas = [text for text in (cell.strip() for cell in cells) if "," in text]
    thousands = [text for text in with_commas if _THOUSANDS.fullmatch(text)]
    decimals = [text for text in with_commas if _DECIMAL_COMMA.fullmatch(text)]
    if len({*thousands, *decimals}) <= _MOST * len({*with_commas}):
        return ""
    if any("." in text for text in thousands):
        return "thousands"
    is_certain = any(text not in thousands for text in decimals)
    return "decimal" if is_certain or is_european else "thousands"


def find_told_style(cells: Iterable[Any], *, usual: str = "") -> str:
    """Return what a comma before three digits is, as other cells tell; else what is usual."""
    told = {_find_own_style(it) for it in cells if isinstance(it, str)} - {""}
    return told.pop() if len(told) == 1 else usual


def _find_own_style(text: str) -> str:
    forms = {"thousands": _THOUSANDS, "decimal": _DECIMAL_COMMA}
    styles = [style for style, form in forms.items() if form.fullmatch(text.strip())]
    return styles[0] if len(styles) == 1 else ""


def rewrite_told_number(cell: Any, style: str) -> Any:
    """Return a number with commas with a point, `4,616` only of a style; what is none as it is."""
    return rewrite_number(cell, _find_own_style(cell) or style) if isinstance(cell, str) else cell


def may_be_either(text: str) -> bool:
    """Tell whether a comma is decimal or between thousands, which nobody knows of `4,616`."""
    return all(it.fullmatch(text.strip()) for it in (_THOUSANDS, _DECIMAL_COMMA))


def rewrite_number(text: str, style: str) -> str:
    """Return a number with commas of a style with a point; any other text as it is."""
    cell = text.strip()
    if style == "decimal" and _DECIMAL_COMMA.fullmatch(cell):
        return cell.replace(".", "").replace(",", ".")
    if style == "thousands" and _THOUSANDS.fullmatch(cell):
        return cell.replace(",", "")
    return text


def is_european(description: str) -> bool:
    """Tell whether a table is separated as where commas are decimal, by how it is read."""
    return any(word in description for word in ("semicolons", "tabs", "bars"))


def rewrite_numbers(cells: Iterable[Any], style: str) -> list[Any]:
    """Return the cells of a column with points in its numbers; what is no text as it is."""
    return [rewrite_number(it, style) if isinstance(it, str) else it for it in cells]


def find_number_styles(table: Table, columns: Iterable[str]) -> dict[str, str]:
    """Return the columns with numbers that have commas, and what these are."""
    styles = {
        name: find_number_style(cells, is_european=is_european(table.description))
        for name, cells in list_cells_with_commas(table, columns).items()
    }
    return {name: style for name, style in styles.items() if style}


def list_cells_with_commas(table: Table, columns: Iterable[str]) -> dict[str, list[str]]:
    """Return the cells with commas of the columns of text among some."""
    names = [it for it in columns if is_text(table.schema.field(it).type)]
    with_commas: dict[str, list[str]] = {name: [] for name in names}
    for chunk in table.select(names).iterate_chunks(_CHUNK_SIZE) if names else ():
        for name, cells in chunk.columns.items():
            found = pc.filter(cells, pc.match_substring(cells, ","))
            with_commas[name] += found.to_pylist()
    return with_commas


def with_plain_numbers(table: Table, columns: Iterable[str]) -> Table:
    """Return a table in whose columns numbers have points, as where commas are decimal."""
    styles = find_number_styles(table, columns)
    if not styles:
        return table
    return replace(table, read=partial(_read_plainly, table, styles=styles), commas=styles)


def _read_plainly(
    table: Table, schema: pa.Schema, *, styles: Mapping[str, str]
) -> Iterator[TableChunk]:
    for chunk in table.read(schema):
        rows = chunk.table
        for name in [it for it in rows.column_names if it in styles]:
            cells = rewrite_numbers(rows[name].to_pylist(), styles[name])
            idx = rows.schema.get_field_index(name)
            kind = rows.schema.field(idx)
            rows = rows.set_column(idx, kind, pa.array(cells, kind.type))
        yield TableChunk(chunk.source, rows, chunk.mols)
