"""`rmat predict` and `rmat embed`: a table in, the same rows with new columns out."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import rdkit
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from rmat_hf import __version__
from rmat_hf.data.columns import find_smiles_column, rewrite_numbers
from rmat_hf.data.featurization import choose_cache_dir, describe_processor
from rmat_hf.data.shards import (
    ROW_COLUMN,
    Order,
    Piece,
    parse_task,
    take_best,
    write_shards,
)
from rmat_hf.data.sources import open_table
from rmat_hf.data.supervised_map import one_thread, run_in_processes
from rmat_hf.data.table_writer import (
    ERROR_COLUMN,
    WARNING_COLUMN,
    ColumnKind,
    FormulaHandling,
    Predictions,
    TableWriter,
    build_output_schema,
    count_failures,
    describe_prediction_columns,
    name_kind,
    show_example,
    summarize,
    validate_output_path,
)
from rmat_hf.data.tables import Table, build_table, validate_smiles_column
from rmat_hf.errors import UserError, escape_message, say_count
from rmat_hf.flags import NO_CACHE, declare_flag, declare_required, validate_flags
from rmat_hf.inference.prediction import (
    Embeddings,
    embed,
    find_styles_beside,
    limit_processor,
    name_components,
    predict,
    validate_coverage,
)
from rmat_hf.loading import compute_model_hash, load_embedder, load_predictor
from rmat_hf.model.modeling_rmat import RMatForTokenClassification
from rmat_hf.model.transforms_rmat import LABEL_TRANSFORMS
from rmat_hf.model.trust_rmat import DEFAULT_COVERAGE
from rmat_hf.output_folder import lock_output, open_atomically, save_json

logger = logging.getLogger(__name__)

SUMMARY_FILE = "summary.json"
# Key of the counts in the metadata of a shard that holds its best rows only.
_COUNTS_KEY = b"rmat_hf.counts"
_COUNT_CHUNK_SIZE = 8192
_ENDS: dict[Order | None, str] = {"descending": "largest", "ascending": "smallest"}


@dataclass(kw_only=True)
class PredictionArguments:
    """Everything `run_prediction` and `run_embedding` need to know; each field is a flag.

    The numbers depend on model, molecules and limits alone; in their last digits also on
    `batch_size`, `chunk_size` and `device`: float32 sums.
    """

    model: str = declare_required("Model folder written by rmat finetune, or Hub id.")
    output: str = declare_required(
        "File to write: .csv or .parquet. A name without an extension is a "
        "folder of shards, which the same command again continues."
    )
    smiles: list[str] = declare_flag([], "Molecules as SMILES.")
    input: str | None = declare_flag(
        None,
        "CSV, SMI, SDF (each also .gz) or Parquet file, folder or glob of files of one kind, "
        "bundled name or Hub data set.",
    )
    input_revision: str | None = declare_flag(None, "Branch, tag or commit of a Hub data set.")
    input_split: str | None = declare_flag(None, "Split of a data set on the Hub that has several.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    max_atoms: int | None = declare_flag(
        None, "Most heavy atoms of a molecule. Default: as in training, at most 1000.", least=1
    )
    batch_size: int = declare_flag(32, "Most molecules in one forward pass.", least=1)
    num_workers: int = declare_flag(
        1,
        "Processes that featurize beside each that computes. A molecule that kills one of them is "
        "a row with a reason; with 0 it ends the command.",
        least=0,
    )
    chunk_size: int = declare_flag(2048, "Rows in memory at a time.", least=1)
    coverage: float = declare_flag(
        DEFAULT_COVERAGE,
        "Share of the intervals, or sets of classes, that are to hold the truth.",
        above=0,
        below=1,
    )
    trust: bool = declare_flag(
        True, "Whether to add how far to trust each prediction, if the model knows."
    )
    shard_size: int = declare_flag(8192, "Rows of the input in one file of a folder.", least=1)
    output_format: Literal["parquet", "csv"] = declare_flag("parquet", "Kind of file in a folder.")
    num_proc: int = declare_flag(
        1,
        "Processes that featurize and compute, each every NUM-th shard, with one thread.",
        least=0,
    )
    task: str | None = declare_flag(
        None, "RANK/NUM: write every NUM-th shard from RANK (from 0) on, one task per machine."
    )
    top_k: int | None = declare_flag(
        None, "Keep so many rows only: the largest predictions, or the smallest.", least=1
    )
    top_k_label: str | None = declare_flag(None, "Label that decides, if there are several.")
    top_k_order: Order | None = declare_flag(
        None,
        "Keep the largest (descending) or the smallest (ascending). Default: of concentrations "
        "learned as pIC50 the smallest, else the largest.",
    )
    feature_cache: str | None = declare_flag(NO_CACHE, "Folder of features, 'default' or 'none'.")
    device: str | None = declare_flag(None, "Torch device. Default: an accelerator, if any.")
    overwrite: bool = declare_flag(False, "Replace an output file that is there, or the input.")
    csv_formulas: FormulaHandling = declare_flag(
        "escape", "Text like =1+1 in CSV output: an apostrophe in front (escape), or as it is."
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for flags that contradict each other or are unknown."""
        validate_flags(self)
        if self.task is not None:
            parse_task(self.task)
        problems = {
            "Give the molecules either with --smiles or with --input.": bool(self.smiles)
            == (self.input is not None),
            "--input-revision and --input-split need --input.": self.input is None
            and bool(self.input_revision or self.input_split),
            "--top-k-label needs --top-k.": self.top_k is None and self.top_k_label is not None,
            f"{self.output} is one file, which one process writes. For several processes or tasks "
            "name a folder, without an extension.": not self.is_folder
            and (self.num_proc > 1 or self.task is not None),
        }
        for problem in [problem for problem, is_there in problems.items() if is_there]:
            raise UserError(problem)

    @property
    def is_csv(self) -> bool:
        """Whether the file, or those of the folder, are CSV."""
        kind = self.output_format if self.is_folder else Path(self.output).suffix.lower()[1:]
        return kind == "csv"

    @property
    def is_folder(self) -> bool:
        """Whether a folder of shards is written: the name of the output has no extension."""
        return Path(self.output).is_dir() or not Path(self.output).suffix


@dataclass(frozen=True)
class ScreeningResult:
    """How many rows a screen went through.

    Args:
        output (`Path`): The file or folder.
        num_rows (`int`): Rows of the input, of a task that does not end last those of its shards.
        num_failed (`int`): Rows with a reason in the column `error` instead of a value.
        num_written (`int`): Rows in the output.
        kept (`str`): Which these are, with `top_k`: `smallest prediction_IC50`.
        warnings (`dict[str, int]`): Rows by what the model cannot see of them.
        is_complete (`bool`): Whether the rows of all tasks are there.
        notes (`list[str]`): What a name of a column does not tell: units of spreads.
    """

    output: Path
    num_rows: int
    num_failed: int
    num_written: int
    is_complete: bool = True
    kept: str = ""
    warnings: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run_prediction(
    arguments: PredictionArguments, *, show_progress: bool = False
) -> ScreeningResult:
    """Predict every molecule of a table and write the table with the predictions.

    The output has every column of the input, `prediction_<label>` for every label, how far to
    trust it ([`Predictions.to_columns`]) and `error`. A file appears when all rows are done. A
    folder gets shards with these columns; the same call again continues it, and its bytes are the
    same whatever the number of processes and tasks. Of a model of atoms a cell is a list, JSON in
    a CSV file: the heavy atoms in the order of the SMILES, or of the record of an SDF file.
    """
    load = partial(load_screen, verb="predict")
    return run_screen(arguments, load, show_progress=show_progress)


def run_embedding(
    arguments: PredictionArguments, *, show_progress: bool = False
) -> ScreeningResult:
    """Embed every molecule of a table and write the table with the embeddings.

    The output has every column of the input, the list column `embedding` and `error`; the rest is
    as in [`run_prediction`]. In CSV files the numbers are columns, `embedding_0` and so on. The
    model needs trained pooling.
    """
    load = partial(load_screen, verb="embed")
    return run_screen(arguments, load, show_progress=show_progress)


def describe_screening(result: ScreeningResult, *, noun: str) -> str:
    """Return the summary line of a screen; `noun` is what a row has that did not fail."""
    output = escape_message(str(result.output))
    num_done = result.num_rows - result.num_failed
    counts = f"{say_count(result.num_rows, 'row')}: {num_done} {noun}, {result.num_failed} failed"
    warned = sorted(result.warnings.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{say_count(number, 'row')} with a warning: {text}." for text, number in warned]
    if not result.is_complete:
        end = f"{counts}, in the shards of this task. Those of others are missing."
    elif result.kept:
        rows = say_count(result.num_written, "row")
        end = f"{counts}. Wrote {rows} to {output}, with the {escape_message(result.kept)}."
    else:
        end = f"{counts} (reasons in the column 'error'). Wrote {output}."
    return "\n".join([*lines, *(f"{note}." for note in result.notes), end])


@dataclass(frozen=True)
class _Screen:
    """A table and a loaded model, as the writer of shards takes them."""

    table: Table
    arguments: PredictionArguments
    # molecules → what `list_columns` makes columns of
    compute_rows: Callable[..., Any]
    list_columns: Callable[..., dict[str, list[Any]]]
    added_columns: dict[str, ColumnKind]
    deciding_column: str
    description: dict[str, Any]
    # what belongs beside the shards of a folder: itself, the folder and these
    finish: Callable[[Any, Path, Sequence[Path]], None] | None = None
    warnings: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    # columns beside molecules, with what commas in their numbers are
    covariates: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def kept(self) -> str:
        return f"{_ENDS[self.arguments.top_k_order]} {self.deciding_column}"

    @property
    def extension(self) -> str:
        return self.arguments.output_format if self.arguments.top_k is None else "parquet"

    @property
    def written_columns(self) -> dict[str, ColumnKind]:
        number: dict[str, ColumnKind] = {ROW_COLUMN: "integer"}
        return {**self.added_columns, **({} if self.arguments.top_k is None else number)}

    def compute(self, pieces: Iterable[Piece]) -> Generator[tuple[int, pa.Table], None, None]:
        schema = build_output_schema(self.table.schema, self.added_columns)
        for idx, chunk in pieces:
            molecules = chunk.molecules(self.arguments.smiles_column)
            own = {
                name: rewrite_numbers(chunk.columns[name].to_pylist(), style)
                if name in chunk.columns
                else [None] * chunk.num_rows
                for name, style in self.covariates.items()
            }
            computed = self.compute_rows(molecules, **({"covariates": own} if own else {}))
            columns = {**chunk.columns, **self.list_columns(computed)}
            yield idx, pa.Table.from_pydict(columns, schema=schema)

    def write(self, path: Path, results: Iterable[pa.Table], *, rows: range) -> None:
        if self.arguments.top_k is None:
            self.write_table(path, results)
            return
        counts: Counter[str] = Counter()
        best = self.find_best(_count_rows(results, counts, is_numbered=True, start=rows.start))
        encoded = json.dumps(counts, sort_keys=True)
        with open_atomically(path) as stream:
            pq.write_table(best.replace_schema_metadata({_COUNTS_KEY: encoded}), stream)

    def write_file(self, path: Path, *, show_progress: bool) -> Counter[str]:
        counts: Counter[str] = Counter()
        is_best, num_rows = self.arguments.top_k is not None, self.table.num_rows
        pieces = ((0, chunk) for chunk in self.table.iterate_chunks(self.arguments.chunk_size))
        with tqdm(total=num_rows, unit="molecule", disable=not show_progress) as bar:
            results: Iterable[pa.Table] = _count_rows(
                self.compute_file(pieces), counts, is_numbered=is_best, report=bar.update
            )
            self.write_table(path, [self.find_best(results)] if is_best else results)
        return counts

    def compute_file(self, pieces: Iterable[Piece]) -> Iterator[pa.Table]:
        for _, rows in self.compute(pieces):
            self.count_warnings(dict(zip(rows.column_names, rows.columns, strict=True)))
            yield rows

    def write_table(self, path: Path, results: Iterable[pa.Table]) -> None:
        with TableWriter(
            path,
            input_schema=self.table.schema,
            added_columns=self.written_columns,
            csv_formulas=self.arguments.csv_formulas,
        ) as writer:
            for rows in results:
                writer.write(dict(zip(rows.column_names, rows.columns, strict=True)))

    def find_best(self, tables: Iterable[pa.Table]) -> pa.Table:
        schema = build_output_schema(self.table.schema, self.written_columns)
        return take_best(
            chain([schema.empty_table()], tables),
            self.arguments.top_k or 0,
            column=self.deciding_column,
            order=self.arguments.top_k_order or "descending",
        )

    def count(self, path: Path) -> Counter[str]:
        if self.arguments.top_k is not None:
            return Counter(json.loads(pq.read_schema(path).metadata[_COUNTS_KEY]))
        counts: Counter[str] = Counter()
        for chunk in open_table(path).iterate_chunks(_COUNT_CHUNK_SIZE):
            counts += count_failures(chunk.columns[ERROR_COLUMN].to_pylist())
            self.count_warnings(chunk.columns)
        return counts

    def count_warnings(self, columns: Mapping[str, Any]) -> None:
        """Add the rows that have a warning, by its text without numbers."""
        if WARNING_COLUMN in self.added_columns:
            cells = columns[WARNING_COLUMN].to_pylist()
            texts = [text for cell in cells if cell for text in cell.split("; ")]
            self.warnings.update(count_failures(texts))
            for text in texts:
                self.examples.setdefault(name_kind(text), text)

    def count_written(self, counts: Counter[str]) -> int:
        top_k = self.arguments.top_k
        return counts.total() if top_k is None else min(top_k, counts[""])

    def complete(self, folder: Path, shards: Sequence[Path], *, counts: Counter[str]) -> None:
        if self.arguments.top_k is not None:
            best = self.find_best(pq.read_table(it).replace_schema_metadata() for it in shards)
            self.write_table(folder / f"top.{self.arguments.output_format}", [best])
        numbers = {"num_shards": len(shards), "num_written": self.count_written(counts)}
        if self.finish is not None:
            self.finish(self, folder, shards)
        save_json(folder / SUMMARY_FILE, {**numbers, **summarize(counts)})


def _count_rows(
    results: Iterable[pa.Table],
    counts: Counter[str],
    *,
    is_numbered: bool,
    start: int = 0,
    report: Callable[[int], Any] = int,
) -> Iterator[pa.Table]:
    """Yield the rows, perhaps with their positions, and count them by the reason of a failure."""
    for rows in results:
        counts += count_failures(rows[ERROR_COLUMN].to_pylist())
        numbers = pa.array(range(start, start + len(rows)), pa.int64())
        start += len(rows)
        yield rows.append_column(ROW_COLUMN, numbers) if is_numbered else rows
        report(len(rows))


LoadScreen = Callable[[Any, Table], "_Screen"]


def run_screen(
    arguments: PredictionArguments, load: LoadScreen, *, show_progress: bool
) -> ScreeningResult:
    """Run a screen: `load` opens what its rows are computed with, in every process."""
    arguments, is_main = _join_launched_processes(arguments)
    output = Path(arguments.output)
    show_progress = show_progress and is_main
    if arguments.num_proc > 1:
        _run_in_processes(arguments, load, show_progress=show_progress)
        arguments, show_progress = replace(arguments, num_proc=1), False
    if not arguments.is_folder:
        validate_output_path(output, overwrite=arguments.overwrite)
    table = _open_input(arguments)
    found = find_smiles_column(table, arguments.smiles_column)
    arguments = replace(arguments, smiles_column=found)
    screen, is_complete = load(arguments, table), True
    if arguments.is_folder:
        with one_thread():
            counts, is_complete = write_shards(
                screen,
                screen.table,
                folder=output,
                shard_size=arguments.shard_size,
                chunk_size=arguments.chunk_size,
                task=arguments.task,
                show_progress=show_progress,
            )
    else:
        with lock_output(output):
            counts = screen.write_file(output, show_progress=show_progress)
    num_rows, num_failed = counts.total(), counts.total() - counts[""]
    numbers = (num_rows, num_failed, screen.count_written(counts))
    shown = {show_example(it, screen.examples[it]): n for it, n in screen.warnings.items()}
    kept = "" if arguments.top_k is None else screen.kept
    return ScreeningResult(output, *numbers, is_complete, kept, shown, [*screen.notes])


def _join_launched_processes(arguments: PredictionArguments) -> tuple[PredictionArguments, bool]:
    """Take the part of this process of torchrun or accelerate launch; tell whether it is first."""
    if arguments.task is not None or not torch.distributed.is_torchelastic_launched():
        return arguments, True
    # without `cpu` it sees no other process where there is no accelerator
    state = PartialState(cpu=not torch.accelerator.is_available())
    task = f"{state.process_index}/{state.num_processes}"
    device = arguments.device or str(state.device)
    return replace(arguments, task=task, device=device), state.is_main_process


def _run_in_processes(
    arguments: PredictionArguments, load: LoadScreen, *, show_progress: bool
) -> None:
    """Run the tasks into which this one divides, each in a process."""
    rank, num_tasks = parse_task(arguments.task or "0/1")
    num_proc = arguments.num_proc
    tasks = [f"{rank + num_tasks * idx}/{num_tasks * num_proc}" for idx in range(num_proc)]
    parts = [replace(arguments, num_proc=1, task=task) for task in tasks]
    run = partial(_run_part, load=load, shown=tasks[0] if show_progress else None)
    with closing(run_in_processes(run, parts, num_proc=num_proc)) as ended:
        for _, _, reason in ended:
            if reason is not None:
                raise UserError(
                    f"A process failed: {reason} Repeat the command to continue, with fewer "
                    "processes if memory ran out."
                )


def _run_part(arguments: PredictionArguments, *, load: LoadScreen, shown: str | None) -> None:
    run_screen(arguments, load, show_progress=arguments.task == shown)


def _open_input(arguments: PredictionArguments) -> Table:
    """Return the molecules as a table after every check that needs no model."""
    if arguments.input is None:
        return build_table(pa.table({arguments.smiles_column: arguments.smiles}), source="--smiles")
    revision, split = arguments.input_revision, arguments.input_split
    table = open_table(arguments.input, revision=revision, split=split)
    smiles_column = find_smiles_column(table, arguments.smiles_column)
    validate_smiles_column(table.schema, smiles_column, source=table.source)
    return table


def load_screen(
    arguments: PredictionArguments, table: Table, *, verb: Literal["predict", "embed"]
) -> _Screen:
    """Load the model of a screen, after every check of the table that needs none."""
    load: Any = load_predictor if verb == "predict" else load_embedder
    run: Any = predict if verb == "predict" else embed
    model, processor = load(arguments.model, revision=arguments.revision, device=arguments.device)
    processor = limit_processor(processor, max_atoms=arguments.max_atoms)
    added: dict[str, ColumnKind] = {"embedding": "vector", ERROR_COLUMN: "text"}
    list_columns: Any = Embeddings.to_columns
    if verb == "embed" and arguments.is_csv:
        numbers = ["number"] * model.base_model.pooler.output_size
        added = {**name_components(numbers), ERROR_COLUMN: "text"}
        list_columns = partial(Embeddings.to_columns, is_wide=True)
    elif verb == "predict":
        list_columns = Predictions.to_columns
        level = "atom" if isinstance(model, RMatForTokenClassification) else "molecule"
        has_trust = arguments.trust and level == "molecule"
        if has_trust:
            validate_coverage(model, arguments.coverage)
        added = describe_prediction_columns(model.config, level=level, trust=has_trust)
    # a column that cannot be added or decide is found before there is a folder
    build_output_schema(
        table.schema, {**added, ROW_COLUMN: "integer"} if arguments.top_k else added
    )
    deciding = "" if arguments.top_k is None else _find_deciding(added, arguments.top_k_label)
    notes = _list_units_of_spreads(model.config, added) if verb == "predict" else []
    if deciding and arguments.top_k_order is None:
        arguments = replace(arguments, top_k_order=_choose_order(model.config, deciding))
        (other,) = (it for it in _ENDS if it != arguments.top_k_order)
        notes.append(f"--top-k-order {other} keeps the {_ENDS[other]}")
    trusted: dict[str, Any] = {}
    if verb == "predict":
        trusted = {"trust": arguments.trust, "coverage": arguments.coverage}
    names = ["smiles_column", "csv_formulas", "top_k", "top_k_label", "top_k_order"]
    names += ["output_format", "batch_size", "chunk_size"]  # the last two decide the last digits
    versions = {"rmat_hf": __version__, "rdkit": rdkit.__version__, "torch": torch.__version__}
    description = {
        "command": verb,
        "model_sha256": compute_model_hash(model) if arguments.is_folder else None,
        "processor": describe_processor(processor),
        "device": model.device.type,
        **{name: getattr(arguments, name) for name in names},
        **(trusted if model.config.trust else {}),
        "versions": versions,
    }
    compute_rows = partial(
        run,
        model,
        processor=processor,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        cache_dir=choose_cache_dir(arguments.feature_cache),
        **trusted,
    )
    covariates = _find_covariates(model, table) if verb == "predict" else {}
    screen = (table, arguments, compute_rows, list_columns, added, deciding, description)
    return _Screen(*screen, covariates=covariates, notes=notes)


def _list_units_of_spreads(config: Any, columns: Mapping[str, Any]) -> list[str]:
    """Say of spreads in which units they are, where these are not those of the table."""
    transforms = config.label_transforms or []
    learned = [
        f"spread_{label} is in units of {it}"
        for label, it in zip(config.label_columns, transforms, strict=False)
        if it != "none" and f"spread_{label}" in columns
    ]
    return [f"{'; '.join(learned)}; other columns are in those of the table"] if learned else []


def _find_covariates(model: Any, table: Table) -> dict[str, str]:
    """Return what a model reads beside molecules, with what commas in its numbers are."""
    names = [str(it["name"]) for it in model.config.covariates or []]
    styles = find_styles_beside(model.config, table)
    return {name: styles.get(name, "") for name in names}


def _find_deciding(columns: Mapping[str, ColumnKind], label: str | None) -> str:
    """Return the column that says which rows are kept."""
    numbers = [name for name, kind in columns.items() if kind == "number"]
    found = [name for name in numbers if name in (label, f"prediction_{label}")]
    if label is None:
        found = [name for name in numbers if name.startswith("prediction_")] or numbers
    if len(found) != 1:
        raise UserError(
            f"--top-k needs one column of predicted numbers, and --top-k-label is {label!r}. "
            f"Choose one of: {', '.join(numbers) or 'there are none, leave --top-k out'}."
        )
    return found[0]


def _choose_order(config: Any, deciding: str) -> Order:
    """Return which end is kept: of a pIC50, which rises where its concentration falls, the low."""
    names = config.label_transforms or []
    of_columns = dict(zip(map("prediction_{}".format, config.label_columns), names, strict=False))
    transform = LABEL_TRANSFORMS[of_columns.get(deciding, "none")]
    return "ascending" if transform is not None and transform.power < 0 else "descending"
