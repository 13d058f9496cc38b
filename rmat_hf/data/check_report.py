"""What `rmat check` writes: a cleaned copy with the list of its changes, and a page of findings."""

import html
import shlex
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem

from rmat_hf.data.assay_columns import convert_units, write_bounds
from rmat_hf.data.check import CONVERT, MOST_CHECKED_ROWS, TableReport, check_table, describe_rows
from rmat_hf.data.columns import (
    INCHI_NOTE,
    find_goods,
    find_label_columns,
    find_number_style,
    holds_yes_or_no,
    is_european,
    parse_cell,
    rewrite_number,
    rewrite_numbers,
)
from rmat_hf.data.labels import is_empty, parse_word
from rmat_hf.data.measurements import is_wide
from rmat_hf.data.stored_features import FEATURES_COLUMN
from rmat_hf.data.tables import RESERVED_COLUMNS, SMILES_COLUMN
from rmat_hf.errors import UserError, import_draw
from rmat_hf.flags import declare_flag, declare_positional, name_flag, validate_flags
from rmat_hf.model.features_rmat import silence_rdkit
from rmat_hf.output_folder import open_atomically

_MOST_DRAWINGS = 6
_NUM_BARS = 24
# Of predictions that stand beside the label that they are of.
_ADDED = ("prediction", "spread", "lower", "upper", "probability", "set")
# What a column of parts takes the place of.
_FLAGS_OF_SEVERAL = ("--standardize", "--feature-columns")
_FLAGS_OF_SPLITS = ("--split", "--num-folds", "--fold")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
section { border-top: 1px solid #ccc; padding: .6rem 0 } .serious h3::before { content: "! " }
h3 { margin: .2rem 0; font-size: 1rem } code { background: #f2f2f2; padding: 0 .3em }
.mols { display: flex; flex-wrap: wrap; gap: .5rem } figure { margin: 0; font-size: .8rem }
figcaption { text-align: center }
"""


@dataclass(kw_only=True)
class CheckArguments:
    """The flags of `rmat check`."""

    input: str = declare_positional(
        "CSV (any separator, decimal comma and encoding), TSV, Excel, SDF, SMI or Parquet file, "
        "folder, bundled name or Hub data set."
    )
    smiles_column: str = declare_flag(SMILES_COLUMN, "Column of SMILES; else it is found.")
    label_columns: list[str] = declare_flag(
        [], "Columns of labels. Default: of numbers, or of yes and no."
    )
    split_column: str | None = declare_flag(None, "Column of train, valid and test, if any.")
    input_revision: str | None = declare_flag(None, "Branch, tag or commit of a Hub data set.")
    fix: str | None = declare_flag(
        None, "CSV file to write: the rows that can be used. NAME_changes.csv lists all changes."
    )
    html: str | None = declare_flag(None, "Page to write, with the molecules of the findings.")
    overwrite: bool = declare_flag(False, "Replace files that are there.")

    def __post_init__(self) -> None:
        """Raise a `UserError` for an output that is there."""
        validate_flags(self)
        for path in filter(None, [self.fix, self.fix and name_changes(self.fix), self.html]):
            if Path(path).exists() and not self.overwrite:
                raise UserError(f"{path} is there already. Pass --overwrite, or another name.")
        if self.fix and Path(self.fix).suffix != ".csv":
            raise UserError(f"--fix {self.fix} has to end in .csv.")


def run_check(arguments: CheckArguments) -> TableReport:
    """Check a table, and write what was asked for: a cleaned copy, a page."""
    report = check_table(
        arguments.input,
        smiles_column=arguments.smiles_column,
        label_columns=arguments.label_columns,
        split_column=arguments.split_column,
        revision=arguments.input_revision,
    )
    if arguments.fix:
        fixed, changes = fix_table(report)
        _write_csv(fixed, arguments.fix)
        _write_csv(changes, name_changes(arguments.fix))
    if arguments.html:
        with open_atomically(arguments.html) as stream:
            stream.write(build_page(report).encode())
    return report


def name_changes(path: str) -> str:
    """Return the file of all changes beside a cleaned table."""
    return str(Path(path).with_name(f"{Path(path).stem}_changes.csv"))


def _write_csv(frame: pd.DataFrame, path: str) -> None:
    with open_atomically(path) as stream:
        stream.write(frame.to_csv(index=False).encode())


def fix_table(report: TableReport) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows that training can use, written plainly, and every change that was made.

    Cells with text after the SMILES lose it, numbers get points for decimal commas, cells of a
    column of numbers that are none become empty; rows without a molecule or a label, and those that
    repeat another in molecule and labels, go. Words of classes stay, known or not, and bounds,
    salts and contradictions: flags settle them.
    """
    frame, changes = report.frame.copy(), []
    name = report.smiles_column
    smiles = frame[name].map(lambda text: (text.split() or [""])[0])
    mols = dict(enumerate(report.mols))
    for row in np.flatnonzero(smiles != frame[name]).tolist():
        with silence_rdkit():
            mol = Chem.MolFromSmiles(smiles[row])
        # an extension, as of CXSMILES, is part of a molecule that was read
        if mols[row] is None and mol is not None:
            changes.append((row, name, frame[name][row], smiles[row], "text after the SMILES"))
            frame.loc[row, name], mols[row] = smiles[row], mol
    for column in report.label_columns:
        before, style = frame[column], report.styles.get(column, "")
        is_class = column not in report.label_transforms or column in report.binary_labels
        is_class |= holds_yes_or_no(before, style)
        cells = [_plain(text, style=style, keeps_words=is_class) for text in before]
        changes += _rewrite(frame, column, cells=cells)
        if column in report.label_transforms:
            options: dict[str, Any] = {"frame": frame, "label_columns": report.label_columns}
            signed = write_bounds(cells, column, **options)
            changes += _rewrite(frame, column, cells=signed, why="as the relation beside it says")
            units = convert_units(signed, column, **options)
            changes += _rewrite(frame, column, cells=units, why="as the unit beside it says")
    others = find_label_columns(frame, others=[name, *report.label_columns])
    for column in chain(*others, find_goods(frame, others=chain(*others))):
        style = find_number_style(frame[column], is_european=is_european(report.description))
        changes += _rewrite(frame, column, cells=rewrite_numbers(frame[column], style))
    keys = [
        (Chem.MolToSmiles(mols[row]) if mols[row] else "", *frame.loc[row, report.label_columns])
        for row in range(len(frame))
    ]
    reasons: dict[int, str] = {}
    seen: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(keys):
        first, (molecule, *labels) = seen.setdefault(key, row), key
        if not molecule:
            reasons[row] = "no molecule"
        elif report.label_columns and not any(labels):
            reasons[row] = "no label"
        elif first != row:
            reasons[row] = f"repeats row {first}"
    changes += [(row, "", frame[name][row], "", f"dropped: {why}") for row, why in reasons.items()]
    taken = {} if name == SMILES_COLUMN else {SMILES_COLUMN: f"{SMILES_COLUMN}_before"}
    frame = frame.drop(index=list(reasons)).rename(columns={**taken, name: SMILES_COLUMN})
    columns = ["row", "column", "before", "after", "why"]
    return frame, pd.DataFrame(sorted(changes), columns=columns)


def _rewrite(
    frame: pd.DataFrame, column: str, *, cells: list[str], why: str = ""
) -> list[tuple[Any, ...]]:
    """Put other cells into a column; return what was changed."""
    before, frame[column] = frame[column].to_list(), pd.Series(cells, index=frame.index)
    return [
        (row, column, old, new, why or ("written with a point" if new else "not known"))
        for row, (old, new) in enumerate(zip(before, cells, strict=True))
        if old != new
    ]


def propose_finetuning(report: TableReport, arguments: CheckArguments) -> str:
    """Return the line for a shell that finetunes on a table as its findings say.

    Of the cleaned copy, if one was asked for, or is needed. Without labels there is none.
    """
    is_needed = INCHI_NOTE in report.description
    if any(it.needs_fix for it in report.findings):
        named = {name: getattr(arguments, name) for name in ("label_columns", "split_column")}
        report, is_needed = check_table(fix_table(report)[0], **named), True
    labels = _choose_flags_of_labels(report)
    if not labels or any(it.way_out == CONVERT and it.topic == "units" for it in report.findings):
        return ""
    dataset, first = arguments.fix or arguments.input, ""
    if is_needed and not arguments.fix:
        words = ["rmat", "check", dataset, "--fix", "clean.csv"]
        words += ["--label-columns", *arguments.label_columns] * bool(arguments.label_columns)
        is_usual = arguments.smiles_column == SMILES_COLUMN
        for flag in ["smiles_column", "split_column", "input_revision"][is_usual:]:
            words += [name_flag(flag), getattr(arguments, flag)] * bool(getattr(arguments, flag))
        dataset, first = "clean.csv", f"{shlex.join(words)} && "
    is_given = dataset == arguments.input
    revision = arguments.input_revision if is_given else None
    flags = {
        "--dataset": [dataset],
        "--dataset-revision": [revision] if revision else [],
        "--smiles-column": [report.smiles_column] * (report.smiles_column != SMILES_COLUMN),
        **labels,
    }
    flags["--smiles-column"] *= is_given
    is_looked_through = report.num_rows <= MOST_CHECKED_ROWS and Path(arguments.input).is_file()
    if flags["--problem-type"] and is_looked_through and FEATURES_COLUMN not in report.frame:
        # which classes there are a finetuning finds out
        flags["--problem-type"] = ["classification"]
    for finding in report.findings:
        for flag, values in finding.flags.items():
            # steps of several findings go together, of other flags the first is taken
            known = flags.get(flag, [])
            is_of_steps = flag in _FLAGS_OF_SEVERAL or not known
            flags[flag] = [*dict.fromkeys([*known, *values])] if is_of_steps else known
    if "--split-column" in flags:
        flags = {flag: it for flag, it in flags.items() if flag not in _FLAGS_OF_SPLITS}
    flags["--output-dir"] = [f"runs/{Path(dataset).stem}"]
    words = ["rmat", "finetune"]
    for flag, given in flags.items():
        # a name that begins with a dash would be read as a flag
        has_dash = any(it.startswith("-") for it in given)
        words += [f"{flag}={it}" for it in given] if has_dash else [flag, *given] * bool(given)
    return first + shlex.join(words)


def name_first_step(report: TableReport) -> str:
    """Say what comes before a finetuning, where [`propose_finetuning`] has no line for it."""
    if any(it.way_out == CONVERT for it in report.findings):
        return "write the labels in one unit, and check again."
    return "name a label, rmat finetune --label-columns NAME"


def list_left_out(report: TableReport) -> list[str]:
    """Say which labels are not in the line of [`propose_finetuning`], and why."""
    taken = _choose_flags_of_labels(report).get("--label-columns", [])
    lines = []
    for name in (it for it in report.label_columns if it not in taken):
        why = "it is no measured label"
        if name in report.useless_labels:
            why = "it has nothing to learn"
        elif name not in report.label_transforms:
            why = "its words are not yes and no, and of other classes a model learns one column"
        lines.append(f"Without {name!r}: {why}.")
    return lines


def _choose_flags_of_labels(report: TableReport) -> dict[str, list[str]]:
    out = {*report.useless_labels, *RESERVED_COLUMNS}
    out |= {f"{it}_{name}" for it in _ADDED for name in report.label_columns}
    useful = [name for name in report.label_columns if name not in out]
    numbers = [name for name in useful if name in report.label_transforms]
    # of classes in words a model learns one column
    labels = numbers or useful[:1]
    binary = [name for name in numbers if name in report.binary_labels]
    is_mixed = len(binary) < len(numbers)
    kind = "multi_label" if {*labels} <= {*report.binary_labels} else "single_label"
    units = [report.label_units[name] for name in labels]
    transforms = [report.label_transforms.get(name, "none") for name in labels]
    flags = {
        "--label-columns": labels,
        "--problem-type": [] if is_mixed else [f"{kind}_classification"],
        "--class-columns": binary if is_mixed else [],
        "--label-units": units if any(units) else [],
        "--label-transform": transforms if {*transforms} != {"none"} else [],
    }
    return flags if labels else {}


def _plain(text: str, *, style: str, keeps_words: bool) -> str:
    plain = rewrite_number(text, style).strip()
    is_number = parse_word(plain) is None and not np.isnan(parse_cell(plain)[1])
    is_lost = not is_number and not keeps_words
    return "" if is_empty(plain) or is_lost else plain


def build_page(report: TableReport) -> str:
    """Return a page with the findings, the molecules of their rows and the labels' histograms."""
    title = html.escape(f"Check of {Path(report.source).name}")
    parts = [
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{report.num_rows} rows, {report.num_molecules} molecules. "
        f"{html.escape(report.description)}. Rows are counted from 0, without the header.</p>",
    ]
    for column in report.label_columns:
        style = report.styles.get(column, "")
        cells = (rewrite_number(text, style) for text in report.frame[column])
        numbers = np.array([number for _, number in map(parse_cell, cells)])
        parts.append(f"<h3>{html.escape(column)}</h3>{_draw_histogram(numbers)}")
    for finding in report.findings:
        message = html.escape(finding.message + describe_rows(finding.rows))
        advice = f"<p><code>{html.escape(finding.way_out)}</code></p>" if finding.way_out else ""
        kind = " class='serious'" if finding.is_serious else ""
        drawings = [(row, report.mols[row]) for row in finding.rows]
        drawn = [_draw(row, mol) for row, mol in drawings if mol is not None][:_MOST_DRAWINGS]
        figures = f"<div class='mols'>{''.join(drawn)}</div>" if drawn else ""
        parts.append(f"<section{kind}><h3>{message}</h3>{advice}{figures}</section>")
    return "\n".join(parts) + "\n"


def _draw(row: int, mol: Chem.Mol) -> str:
    draw = import_draw().rdMolDraw2D
    drawer = draw.MolDraw2DSVG(180, 130)
    draw.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    svg = drawer.GetDrawingText().split("?>", 1)[-1]
    return f"<figure>{svg}<figcaption>row {row}</figcaption></figure>"


def _draw_histogram(numbers: np.ndarray) -> str:
    """Return bars as SVG, of logarithms where the values go over many decades."""
    values = numbers[np.isfinite(numbers)]
    if not len(values):
        return ""
    in_decades = is_wide(values)
    counts, edges = np.histogram(np.log10(values) if in_decades else values, bins=_NUM_BARS)
    bars = "".join(
        f"<rect x='{16 * idx}' y='{60 * (1 - count / counts.max()):.1f}' width='14' "
        f"height='{60 * count / counts.max():.1f}' fill='#4878a8'/>"
        for idx, count in enumerate(counts)
    )
    low, high = (10**edges if in_decades else edges)[[0, -1]]
    scale = ", logarithmic" if in_decades else ""
    width = 16 * _NUM_BARS
    return (
        f"<svg width='{width}' height='60'>{bars}</svg><p>{low:.3g} to {high:.3g}{scale}, "
        f"{len(values)} values</p>"
    )
