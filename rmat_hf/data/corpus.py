"""`rmat featurize` and what it writes: Parquet shards of featurized molecules, for pretraining.

A shard is self-contained: its columns are those of stored_features.py, one of which tells the
options of the processor. The metadata of its schema hold the rows that have no features.
"""

import glob
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import rdkit
from datasets.exceptions import DatasetsError

from rmat_hf import __version__
from rmat_hf.data.assay_labels import (
    LABEL_FIELDS,
    NO_LABELS,
    AssayLabels,
    canonicalize,
    read_assay_labels,
)
from rmat_hf.data.columns import find_smiles_column
from rmat_hf.data.featurization import (
    FEATURE_FIELDS,
    LENGTH_COLUMN,
    PROCESSOR_COLUMN,
    FeaturizedMolecule,
    build_processor,
    describe_processor,
    describe_processor_column,
    find_options,
    iterate_featurized,
)
from rmat_hf.data.shards import (
    Piece,
    Result,
    describe_input,
    find_difference,
    parse_task,
    write_shards,
)
from rmat_hf.data.sources import find_hub_files, open_table
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    LIST_FIELDS,
    build_features_column,
    count_nodes,
    has_features,
)
from rmat_hf.data.table_files import find_kind, read_header
from rmat_hf.data.table_writer import ColumnKind, TableWriter, count_failures, summarize
from rmat_hf.data.tables import validate_smiles_column
from rmat_hf.errors import UserError, explained_reading, say_count
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.model.features_rmat import (
    DESCRIPTOR_SETS,
    Molecule,
    list_molecule_descriptor_names,
)
from rmat_hf.model.geometry_rmat import ConformerFailure, Geometry
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import load_json, open_atomically, save_json

logger = logging.getLogger(__name__)

CORPUS_FILE = "corpus.json"
FAILED_ROWS_FILE = "failed_rows.csv"
PROCESSOR_FILE = "preprocessor_config.json"
_README_FILE = "README.md"
SHARD_FIELDS = pa.schema([("row", pa.int64()), ("smiles", pa.string()), *FEATURE_FIELDS])
_REQUIRED_COLUMNS = ("smiles", FEATURES_COLUMN, LENGTH_COLUMN)
_NOT_FEATURIZED = "Its molecules have no features: run `rmat featurize` first and load its folder."
_FAILURES_KEY = b"rmat_hf.failures"
_COMPRESSION_LEVEL = 9
# Molecules that a reader holds at a time.
_ROW_GROUP_SIZE = 8192
_CHUNK_SIZE = 1024
# Reasons of failures on the screen; corpus.json has them all.
_MAX_REASONS = 10
# Shards of a corpus on the Hub that are asked for at a time.
_NUM_CONNECTIONS = 16
# Keeps the Hub from taking the other files of the folder for the data.
_CARD = """---
configs:
- config_name: default
  data_files: part-*.parquet
---

Molecules featurized with `rmat featurize`. `corpus.json` counts them and tells the options,
`failed_rows.csv` lists those that could not be featurized. The columns, with their units, are in
`rmat_hf/data/stored_features.py`.
"""


@dataclass(kw_only=True)
class FeaturizationArguments:
    """Everything `run_featurization` needs to know; each field is a flag of `rmat featurize`."""

    input: str = declare_required(
        "CSV, SMI, SDF (each also .gz) or Parquet file, folder or glob of files of one kind, "
        "bundled name or Hub data set."
    )
    output_dir: str = declare_required("Folder to write; the same command again continues it.")
    revision: str | None = declare_flag(None, "Branch, tag or commit of a data set on the Hub.")
    split: str | None = declare_flag(None, "Split of a data set on the Hub that has several.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    geometry: Geometry = declare_flag("bounds", "Where distances come from.")
    on_conformer_failure: ConformerFailure = declare_flag(
        "raise", "Geometry to step down to when no conformer is found; 'raise' drops the row."
    )
    molecule_descriptors: str = declare_flag(
        "none",
        "Molecule descriptors to store, for example as labels of pretraining: RDKit's, 192 "
        "autocorrelations, which cost next to nothing, or all.",
        choices=["none", *DESCRIPTOR_SETS],
    )
    labels: str | None = declare_flag(
        None,
        "Long table with the columns smiles, assay, value and if need be kind (class or value) and "
        "relation (=, < or >): labels for rmat pretrain --objective assays.",
    )
    max_atoms: int = declare_flag(256, "Most heavy atoms of a molecule.", least=1)
    num_proc: int = declare_flag(
        1,
        "Processes that featurize. A molecule that kills one of them is a failed row; with 0 it "
        "ends the command.",
        least=0,
    )
    shard_size: int = declare_flag(8192, "Rows of the input in one file.", least=1)
    max_rows: int | None = declare_flag(
        None, "First rows of the input to take. Default: all.", least=1
    )
    task: str | None = declare_flag(
        None, "RANK/NUM: write every NUM-th shard from RANK (from 0) on, one task per machine."
    )

    def __post_init__(self) -> None:
        """Raise a `UserError` for a flag that is out of its bounds or none of its choices."""
        validate_flags(self)
        parse_task(self.task or "0/1")


@dataclass(frozen=True)
class CorpusReport:
    """What is in a corpus, or in the part of it that one task writes.

    Args:
        num_shards, num_rows, num_molecules, num_failed (`int`): Counts.
        failures (`dict[str, int]`): How often a reason was met, the most frequent first.
        bytes_per_molecule (`float`): Size of the shards.
    """

    num_shards: int
    num_rows: int
    num_molecules: int
    num_failed: int
    failures: dict[str, int]
    bytes_per_molecule: float


def run_featurization(
    arguments: FeaturizationArguments, *, show_progress: bool = False
) -> CorpusReport:
    """Featurize molecules to a folder of Parquet shards, for [`load_corpus`].

    Each shard appears when it is complete. The same call again computes what is missing, after
    an error or a kill at any moment too, and the folder ends up with the same bytes (unless a
    time limit of conformers decided), whatever the number of processes and tasks.
    """
    kind = arguments.molecule_descriptors
    processor = RMatProcessor(
        geometry=arguments.geometry,
        on_conformer_failure=arguments.on_conformer_failure,
        max_atoms=arguments.max_atoms,
        molecule_descriptors=None if kind == "none" else list_molecule_descriptor_names(kind),
    )
    folder = Path(arguments.output_dir)
    table = open_table(arguments.input, revision=arguments.revision, split=arguments.split)
    found = find_smiles_column(table, arguments.smiles_column)
    arguments = replace(arguments, smiles_column=found)
    validate_smiles_column(table.schema, arguments.smiles_column, source=table.source)
    counts, _ = write_shards(
        _FeaturizedShards(arguments, processor),
        table.select([arguments.smiles_column]),
        folder=folder,
        shard_size=arguments.shard_size,
        chunk_size=_CHUNK_SIZE,
        max_rows=arguments.max_rows,
        task=arguments.task,
        show_progress=show_progress,
    )
    return _build_report(counts, sorted(folder.glob("part-*.parquet")))


def describe_corpus(report: CorpusReport) -> str:
    """Return the counts as lines for the screen."""
    lines = [
        f"{say_count(report.num_rows, 'row')}: {report.num_molecules} molecules, "
        f"{report.num_failed} failed, {report.num_shards} shards, "
        f"{report.bytes_per_molecule} bytes per molecule."
    ]
    reasons = list(report.failures.items())
    lines += [f"{count:>8}  {reason}" for reason, count in reasons[:_MAX_REASONS]]
    if others := reasons[_MAX_REASONS:]:
        lines.append(f"{sum(count for _, count in others):>8}  for {len(others)} other reasons")
    return "\n".join(lines)


def _build_report(counts: Counter[str], shards: Sequence[Path]) -> CorpusReport:
    num_bytes = sum(path.stat().st_size for path in shards)
    return CorpusReport(
        num_shards=len(shards),
        num_molecules=counts[""],
        bytes_per_molecule=round(num_bytes / max(counts[""], 1), 1),
        **summarize(counts),
    )


@dataclass(frozen=True)
class _FeaturizedShards:
    """Features as the writer of shards takes them."""

    arguments: FeaturizationArguments
    processor: RMatProcessor
    extension: str = "parquet"

    @cached_property
    def labels(self) -> dict[str, AssayLabels] | None:
        source = self.arguments.labels
        return None if source is None else read_assay_labels(source)

    @property
    def description(self) -> dict[str, Any]:
        names, source = ("smiles_column", "revision", "split"), self.arguments.labels
        return {
            **{name: getattr(self.arguments, name) for name in names},
            "processor": describe_processor(self.processor),
            "rdkit": rdkit.__version__,
            **({} if source is None else {"labels": describe_input(open_table(source))}),
        }

    def compute(self, pieces: Iterable[Piece]) -> Generator[Result, None, None]:
        """Yield text and outcome of each row."""
        texts: deque[tuple[Any, list[str]]] = deque()
        smiles_column = self.arguments.smiles_column

        def list_molecules() -> Iterator[Molecule]:
            for shard, chunk in pieces:
                column = chunk.columns[smiles_column].to_pylist()
                texts.append((shard, [text or "" for text in column]))
                yield from chunk.molecules(smiles_column)

        outcomes = iterate_featurized(
            list_molecules(), self.processor, num_workers=self.arguments.num_proc
        )
        with closing(outcomes):
            for first in outcomes:  # its piece has been taken by now
                shard, smiles = texts.popleft()
                rest = islice(outcomes, len(smiles) - 1)
                yield shard, list(zip(smiles, (first, *rest), strict=True))

    def write(
        self, path: Path, results: Iterable[list[tuple[str, FeaturizedMolecule]]], *, rows: range
    ) -> None:
        numbered = zip(rows, chain.from_iterable(results), strict=True)
        numbered_rows = [(row, *result) for row, result in numbered]
        write_shard(path, numbered_rows, processor=self.processor, labels=self.labels)

    def count(self, path: Path) -> Counter[str]:
        header = _read_header(str(path))
        reasons = count_failures(reason for _, _, reason in header.failures)
        return reasons + Counter({"": header.num_rows})

    def complete(self, folder: Path, shards: Sequence[Path], *, counts: Counter[str]) -> None:
        columns: dict[str, ColumnKind] = {"row": "integer", "smiles": "text", "reason": "text"}
        with TableWriter(folder / FAILED_ROWS_FILE, added_columns=columns) as writer:
            for path in shards:
                if failures := _read_header(str(path)).failures:
                    writer.write(dict(zip(columns, zip(*failures, strict=True), strict=True)))
        if not (folder / _README_FILE).exists():
            with open_atomically(folder / _README_FILE) as stream:
                stream.write(_CARD.encode())
        save_json(folder / PROCESSOR_FILE, describe_processor(self.processor))
        versions = {"rmat_hf": __version__, "rdkit": rdkit.__version__}
        report = asdict(_build_report(counts, shards))
        save_json(folder / CORPUS_FILE, {**report, "versions": versions})


def write_shard(
    path: Path,
    rows: Sequence[tuple[int, str, FeaturizedMolecule]],
    *,
    processor: RMatProcessor,
    labels: Mapping[str, AssayLabels] | None = None,
) -> None:
    """Write a shard, the whole of it or nothing; equal rows give equal bytes."""
    failures = [(row, smiles, outcome.failure) for row, smiles, outcome in rows if outcome.failure]
    kept = [row for row in rows if not row[2].failure]
    features = [outcome.features for _, _, outcome in kept]
    columns: dict[str, Any] = {
        "row": [row for row, _, _ in kept],
        "smiles": [smiles for _, smiles, _ in kept],
        FEATURES_COLUMN: build_features_column(features),
        LENGTH_COLUMN: count_nodes(features),
        "geometry_source": [outcome.geometry_source for _, _, outcome in kept],
        PROCESSOR_COLUMN: [0] * len(kept),
    }
    fields = SHARD_FIELDS
    if labels is not None:
        found = [labels.get(text or "", NO_LABELS) for text in canonicalize(columns["smiles"])]
        columns |= {name: [it[idx] for it in found] for idx, name in enumerate(LABEL_FIELDS.names)}
        fields = pa.unify_schemas([SHARD_FIELDS, LABEL_FIELDS])
    schema = _build_features(fields, processor).arrow_schema
    schema = schema.with_metadata({**schema.metadata, _FAILURES_KEY: json.dumps(failures)})
    options: dict[str, Any] = {"compression": "zstd", "compression_level": _COMPRESSION_LEVEL}
    options["use_dictionary"] = [
        "geometry_source",
        PROCESSOR_COLUMN,
        *(f"{FEATURES_COLUMN}.{name}.list.element" for name in LIST_FIELDS),
        *(f"{name}.list.element" for name in LABEL_FIELDS.names),
    ]
    options["write_statistics"] = ["row", LENGTH_COLUMN]
    with open_atomically(path) as stream, pq.ParquetWriter(stream, schema, **options) as writer:
        # datasets cannot read an empty row group, but a file without any
        if kept:
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_ROW_GROUP_SIZE)


def _build_features(fields: pa.Schema, processor: RMatProcessor) -> datasets.Features:
    types = datasets.Features.from_arrow_schema(fields)
    return datasets.Features({**types, PROCESSOR_COLUMN: describe_processor_column(processor)})


# Reading


class Corpus(NamedTuple):
    """Featurized molecules and the processor that made them.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Columns `smiles`, `features`, `num_nodes` and `processor`, as stored_features.py tells,
            and where the shards have them `row` (position in the input), `geometry_source` and the
            labels of assay_labels.py.
        processor (`RMatProcessor`): Decided the geometry and the molecule descriptors.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    processor: RMatProcessor


class _Header(NamedTuple):
    """What the footer of a shard tells; `processor` is None in a foreign file."""

    name: str
    schema: pa.Schema
    num_rows: int
    processor: dict[str, Any] | None
    failures: list[tuple[int, str, str]]


def load_corpus(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    split: str = "train",
    streaming: bool = False,
) -> Corpus:
    """Load a featurized corpus after checking the footer of every shard.

    Args:
        source (`str` or `os.PathLike`):
            A folder written by `rmat featurize`, one of its shards, a glob of shards, a folder of
            `save_to_disk`, or a data set on the Hub that consists of shards or was pushed there.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the shards while iterating. By default the data set is memory-mapped: `datasets`
            writes an uncompressed copy to its cache, once.
    """
    name = os.fspath(source)
    path = Path(name)
    if path.exists() or path.is_absolute() or glob.has_magic(name) or path.suffix:
        if revision is not None or split != "train":
            raise UserError(f"{name} is not on the Hub: leave out the revision and the split.")
        paths = _find_local_shards(name)
    else:
        found = find_hub_files(name, revision=revision, with_download=not streaming)
        names = found.splits.get(split, found.splits.get("", []) if split == "train" else [])
        if not names:
            raise UserError(f"{name} has no split {split!r}, it has {list(found.splits)}.")
        with explained_reading(name), ThreadPoolExecutor(_NUM_CONNECTIONS) as executor:
            paths = list(executor.map(found.locate, names))
    with ThreadPoolExecutor(_NUM_CONNECTIONS) as executor:
        headers = list(executor.map(_read_header, paths))
    if not any(header.num_rows for header in headers):
        raise UserError(f"{name} has no molecule. {FAILED_ROWS_FILE} tells why.")
    processor = _find_processor(headers)
    known = pa.unify_schemas([SHARD_FIELDS, LABEL_FIELDS])
    columns = [it for it in known.names if all(it in its.schema.names for its in headers)]
    columns.append(PROCESSOR_COLUMN)
    filled = [path for path, header in zip(paths, headers, strict=True) if header.num_rows]
    way_out = "If a shard is damaged, delete it and repeat the command that made it."
    with explained_reading(name, way_out=way_out, also=(DatasetsError, TypeError)):
        if find_kind(filled[0]) == ".arrow":
            tables = [datasets.Dataset.from_file(path) for path in filled]
            dataset = datasets.concatenate_datasets(tables).select_columns(columns)
            if streaming:
                dataset = dataset.to_iterable_dataset(num_shards=len(filled))
            return Corpus(dataset, processor)
        dataset = datasets.load_dataset(
            "parquet",
            data_files={"train": filled},
            split="train",
            columns=columns,
            features=_build_features(pa.schema(map(known.field, columns[:-1])), processor),
            streaming=streaming,
        )
    return Corpus(dataset, processor)


def _find_local_shards(name: str) -> list[str]:
    folder = Path(name)
    if not folder.is_dir():
        return sorted(glob.glob(name, recursive=True)) or [name]
    paths = sorted(map(str, folder.glob("*.parquet"))) or sorted(
        map(str, folder.glob("data-*.arrow"))
    )
    way_out = "Repeat the `rmat featurize` command that made it"
    counts = f"{folder} has {len(paths)} shards (part-*.parquet)"
    if not paths:
        raise UserError(f"{counts}. {way_out}, or name another folder.")
    if not (folder / CORPUS_FILE).is_file():
        logger.warning("%s so far, it is not finished. %s.", counts, way_out)
    elif len(paths) != (num_shards := load_json(folder / CORPUS_FILE).get("num_shards")):
        raise UserError(f"{counts}, {CORPUS_FILE} counts {num_shards}. {way_out}.")
    return paths


def _find_processor(headers: Sequence[_Header]) -> RMatProcessor:
    """Return the one processor that has made all shards."""
    first = headers[0]
    for header in headers:
        if missing := [it for it in _REQUIRED_COLUMNS if it not in header.schema.names]:
            raise UserError(f"{header.name} has no column {missing[0]!r}. {_NOT_FEATURIZED}")
        if not has_features(header.schema):
            raise UserError(f"{header.name} has features in another form. {_NOT_FEATURIZED}")
        if difference := find_difference(first.processor or {}, header.processor or {}):
            raise UserError(
                f"{first.name} and {header.name} were made by different processors: {difference}. "
                "Load them as two corpora, or featurize one of them anew."
            )
    return build_processor(first.processor, source=first.name)


def _read_header(path: str) -> _Header:
    way_out = (
        f"If it is a damaged shard, delete it and repeat the command. If not: {_NOT_FEATURIZED}"
    )
    with explained_reading(path, way_out=way_out):
        schema, num_rows = read_header(path)
        processor = find_options(datasets.Features.from_arrow_schema(schema))
        metadata = schema.metadata or {}
        failures = [tuple(row) for row in json.loads(metadata.get(_FAILURES_KEY, b"[]"))]
    return _Header(path, schema, num_rows, processor, failures)
