"""`rmat explain`: a table in, a folder of explained rows, pictures and a page out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import dataset as open_dataset

from rmat_hf.data.columns import find_name_column
from rmat_hf.data.shards import ROW_COLUMN
from rmat_hf.data.sources import open_table
from rmat_hf.data.table_writer import ERROR_COLUMN, ColumnKind, build_output_schema
from rmat_hf.data.tables import Table, validate_smiles_column
from rmat_hf.errors import UserError
from rmat_hf.flags import declare_flag, declare_required
from rmat_hf.inference.attribution import RELATION_INPUTS
from rmat_hf.inference.counterfactuals import find_counterfactuals
from rmat_hf.inference.explanation import (
    DEFAULT_PARTS,
    PARTS,
    UNKNOWN_UNITS,
    Explanation,
    choose_column,
    explain,
    list_explanation_columns,
    locate_covariates,
)
from rmat_hf.inference.pictures import draw_contributions
from rmat_hf.inference.prediction import drop_unread
from rmat_hf.inference.screening import (
    PredictionArguments,
    ScreeningResult,
    load_screen,
    run_screen,
)
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.output_folder import open_atomically

PAGE_FILE, PICTURES_FOLDER = "index.html", "pictures"
PICTURE_COLUMN = "picture"
COUNTERFACTUAL_COLUMNS: dict[str, ColumnKind] = {
    "counterfactuals": "texts",
    "counterfactual_groups": "texts",
    "counterfactual_changes": "numbers",
}
_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:1400px}main{display:flex;flex-wrap:wrap;"
    "gap:1em}article{border:1px solid #ccc;padding:.8em;width:430px}code{word-break:break-all}"
    "td{padding:0 .6em 0 0;vertical-align:top}td.n{text-align:right;white-space:nowrap}"
)


@dataclass(kw_only=True)
class ExplanationArguments(PredictionArguments):
    """Everything `run_explanation` needs to know; each field is a flag."""

    output: str = declare_required(
        "Folder to write, a name without an extension: a page, its pictures, and Parquet files "
        "with the numbers. The same command again continues it."
    )
    label: str | None = declare_flag(None, "Label, or class of one, if there are several.")
    by: list[str] = declare_flag(
        list(DEFAULT_PARTS), "What contributes beside atoms.", choices=PARTS
    )
    counterfactuals: int = declare_flag(
        0, "Molecules with another group in one place to predict and to keep, of each.", least=0
    )
    replacements: str | None = declare_flag(
        None, "Table with molecules, as those of training, whose groups are tried."
    )
    num_pictures: int = declare_flag(
        200, "Molecules on the page, with a file of their picture each.", least=0
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for flags that contradict each other or are unknown."""
        super().__post_init__()
        if not self.is_folder:
            raise UserError(
                f"{self.output} names a file, and an explanation is a folder: a page, its pictures "
                f"and a table. Name one without an extension, as {Path(self.output).stem}."
            )
        if self.output_format != "parquet":
            raise UserError(f"--output-format {self.output_format}: explain writes parquet alone.")


def run_explanation(
    arguments: ExplanationArguments, *, show_progress: bool = False
) -> ScreeningResult:
    """Explain the prediction of every molecule of a table and write a folder.

    Its shards have the columns that [`run_prediction`] writes, in the same order and with the same
    reasons, those of [`Explanations.to_columns`] and `picture`, an SVG drawing. The same call
    again continues it, and its bytes are the same. When all rows are there, `index.html` shows the
    molecules of interest: with `top_k` those it keeps, else those with the highest and the lowest
    predictions; `pictures` has their drawings.

    Args:
        arguments (`ExplanationArguments`): Model, molecules, folder and how.
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Returns:
        [`ScreeningResult`].
    """
    return run_screen(arguments, load_explanation, show_progress=show_progress)


def load_explanation(arguments: ExplanationArguments, table: Table) -> Any:
    """Load the model, with what explains the rows of a table."""
    screen = load_screen(arguments, table, verb="predict")
    # an order that was not given follows from the model
    arguments = replace(arguments, top_k_order=screen.arguments.top_k_order)
    computation = Computation(screen, arguments)
    # a column that cannot be added is found before there is a folder
    build_output_schema(table.schema, computation.added_columns)
    names = ("label", "by", "counterfactuals", "replacements", "num_pictures")
    description = {name: getattr(arguments, name) for name in names}
    return replace(
        screen,
        compute_rows=computation,
        list_columns=dict,
        added_columns=computation.added_columns,
        description={**screen.description, **description, "command": "explain"},
        finish=write_page,
    )


class Computation:
    """Predicts the molecules of a chunk and explains those that may be kept.

    Args:
        screen: That of `rmat predict`.
        arguments (`ExplanationArguments`): What to explain.
    """

    def __init__(self, screen: Any, arguments: ExplanationArguments) -> None:
        self.arguments, self.predict = arguments, screen.compute_rows
        options: Any = self.predict.keywords
        (self.model,), self.processor = self.predict.args, options["processor"]
        self.deciding_column, self.label = screen.deciding_column, arguments.label
        choose_column(self.model, self.label)
        self.replacements: list[Molecule] | None = None
        if arguments.replacements is not None:
            others, column = open_table(arguments.replacements), arguments.smiles_column
            validate_smiles_column(others.schema, column, source=others.source)
            chunks = others.iterate_chunks(arguments.chunk_size)
            self.replacements = [it for chunk in chunks for it in chunk.molecules(column)]
        self.covariates = [*locate_covariates(self.model.config)]
        columns = list_explanation_columns(self.covariates)
        self.added_columns: dict[str, ColumnKind] = {
            **screen.added_columns,
            **{name: kind for name, (kind, _) in columns.items()},
            **(COUNTERFACTUAL_COLUMNS if arguments.counterfactuals else {}),
            PICTURE_COLUMN: "text",
        }
        # the last one
        self.added_columns[ERROR_COLUMN] = self.added_columns.pop(ERROR_COLUMN)

    def __call__(
        self, molecules: list[Molecule], *, covariates: Mapping[str, Sequence[Any]] | None = None
    ) -> dict[str, list[Any]]:
        """Return the columns of a chunk."""
        columns = self.predict(molecules, covariates=covariates).to_columns()
        kept = self.choose_rows(columns)
        chosen: list[Molecule] = [molecules[row] for row in kept]
        beside = {name: [cells[it] for it in kept] for name, cells in (covariates or {}).items()}
        # the prediction has told which cells cannot be read
        beside = drop_unread(self.model.config, beside)
        options: Any = {"label": self.label, "processor": self.processor, "covariates": beside}
        num_workers = self.arguments.num_workers if len(chosen) else 0
        found = explain(
            self.model, chosen, by=self.arguments.by, num_workers=num_workers, **options
        )
        added = found.to_columns()
        added[PICTURE_COLUMN] = [
            None if row is None else _draw(row, label=found.label, units=found.units)
            for row in found.rows
        ]
        if self.arguments.counterfactuals:
            added |= self.replace_groups(chosen, options)
        for name, cells in added.items():
            # rows that are not explained keep their reason
            column = columns.setdefault(name, [None] * len(molecules))
            for row, cell in zip(kept, cells, strict=True):
                column[row] = cell
        return columns

    def choose_rows(self, columns: Mapping[str, Sequence[Any]]) -> list[int]:
        """Return the rows that are predicted and may be among those that are kept."""
        rows = [row for row, error in enumerate(columns[ERROR_COLUMN]) if error is None]
        if self.arguments.top_k is None:
            return rows
        sign = -1 if self.arguments.top_k_order == "descending" else 1
        rows.sort(key=lambda row: (sign * columns[self.deciding_column][row], row))
        return sorted(rows[: self.arguments.top_k])

    def replace_groups(
        self, molecules: Sequence[Molecule], options: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        """Return the columns of counterfactuals."""
        found = find_counterfactuals(
            self.model,
            molecules,
            replacements=self.replacements,
            num_best=self.arguments.counterfactuals,
            **options,
        )
        told = [[(it.smiles, f"{it.removed} → {it.added}", it.change) for it in of] for of in found]
        return {
            name: [[it[place] for it in of_row] for of_row in told]
            for place, name in enumerate(COUNTERFACTUAL_COLUMNS)
        }


def write_page(screen: Any, folder: Path, shards: Sequence[Path]) -> None:  # noqa: PLR0917 - as a method
    """Write pictures and page beside the shards of a screen."""
    rows = choose_rows(screen, shards)
    pictures = folder / PICTURES_FOLDER
    pictures.mkdir(exist_ok=True)
    for row in rows:
        with open_atomically(pictures / f"row-{row[ROW_COLUMN]:07}.svg") as stream:
            stream.write(row[PICTURE_COLUMN].encode())
    with open_atomically(folder / PAGE_FILE) as stream:
        stream.write(build_page(rows, screen=screen).encode())


def choose_rows(screen: Any, shards: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of interest, the highest prediction first, of `top_k` the end it keeps."""
    number = screen.arguments.num_pictures
    if screen.arguments.top_k is not None:
        best = screen.find_best(pq.read_table(it).replace_schema_metadata() for it in shards)
        return list(best.slice(0, number).to_pylist())
    table = open_dataset([str(it) for it in shards])
    values = table.to_table(columns=["explained"])["explained"].to_numpy().astype(np.float64)
    known = np.argsort(-values, kind="stable")[: np.isfinite(values).sum()].tolist()
    ends = {*known[: -(-number // 2)], *known[max(len(known) - number // 2, 0) :]}
    chosen = sorted(ends)
    rows = zip(chosen, table.take(pa.array(chosen, pa.int64())).to_pylist(), strict=True)
    found = {place: {**row, ROW_COLUMN: place} for place, row in rows}
    return [found[it] for it in known if it in ends]


def _draw(row: Explanation, *, label: str, units: str) -> str:
    said = f"{row.prediction:.3g}" + (f" {units}" if units != UNKNOWN_UNITS else "")
    if row.probability is not None:
        said = f"probability {row.probability:.2f}"
    elif units.endswith(f" of {label}"):
        # as it was learned: `pIC50 of IC50 (nM)` names the label
        said = f"{units.removesuffix(f' of {label}')} {row.prediction:.3g}"
    return draw_contributions(row.mol, row.atoms, units=units, title=f"{label}: {said}")


def build_page(rows: Sequence[Mapping[str, Any]], *, screen: Any) -> str:
    """Return the HTML page of explained rows."""
    title = escape(f"Why: {Path(screen.arguments.model).name}")
    return (
        f"<!doctype html><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>An atom or group contributes what the prediction loses without it. "
        "A group is less or more than the sum of its atoms. Pale atoms: the members disagree. "
        "Change of the prediction if a group were another one: 'if'. Baseline: the prediction "
        "without any atom. Faithfulness: how well contributions foretell what is lost with two "
        "atoms at once, at best 1. brics: pieces between bonds that syntheses make.</p>"
        f"<main>{''.join(_build_card(row, screen=screen) for row in rows)}</main>"
    )


def _build_card(row: Mapping[str, Any], *, screen: Any) -> str:
    numbers = {
        "baseline": row["baseline"],
        "sum of atoms": sum(row["atom_contributions"]),
        # of sums that are exact there is rounding alone
        "rest": round(row["residual"], 5) or None,
        **{f"all {name}s": row[f"{name}_effect"] for name in RELATION_INPUTS},
        **{f"{name} of the row": row[f"{name}_effect"] for name in screen.compute_rows.covariates},
    }
    facts = [(name, it) for name, it in numbers.items() if it is not None]
    groups: dict[str, tuple[str, float]] = {}
    parts = ("fragment_atoms", "fragments", "fragment_kinds", "fragment_contributions")
    for atoms, smiles, kind, it in zip(*(row[name] for name in parts), strict=True):
        known = groups.get(atoms)
        groups[atoms] = (f"{known[0]}, {kind}" if known else f"{smiles} {kind}", it)
    facts += sorted(groups.values(), key=lambda it: -abs(it[1]))
    names, changes = (row.get(f"counterfactual_{it}") or [] for it in ("groups", "changes"))
    facts += [(f"if {name}", it) for name, it in zip(names, changes, strict=True)]
    lines = [(name, f"{round(it, 6):+.3g}") for name, it in facts]
    if row["faithfulness"] is not None:
        lines.insert(2, ("faithfulness", f"{row['faithfulness']:.2f}"))
    cells = "".join(f"<tr><td>{escape(a)}</td><td class='n'>{b}</td></tr>" for a, b in lines)
    # of an SDF file there is none
    column = screen.arguments.smiles_column
    smiles = escape(str(row.get(column) or ""))
    name = row.get(find_name_column(it for it in row if it != column) or "")
    title = f"row {row[ROW_COLUMN]}" + ("" if name is None else f" <b>{escape(str(name))}</b>")
    return (
        f"<article><p>{title} <code>{smiles}</code></p>{row[PICTURE_COLUMN]}"
        f"<table>{cells}</table></article>"
    )
