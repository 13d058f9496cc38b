"""Featurize many molecules to a folder of Parquet shards, which a second run continues."""

import glob
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rdkit
from tqdm.auto import tqdm

from rmat_hf.data.corpus_format import (
    MAX_SHARDS,
    PROCESSOR_FILE,
    ShardHeader,
    describe_processor,
    encode_shard,
    find_difference,
    name_shard,
    read_shard_header,
)
from rmat_hf.data.corpus_input import CorpusOptions, iterate_input_rows, open_corpus_input
from rmat_hf.data.corpus_summary import (
    CorpusReport,
    complete_corpus,
    encode_json,
    write_corpus_file,
)
from rmat_hf.data.feature_cache import FeaturizedMolecule
from rmat_hf.data.featurization_stream import (
    Chunk,
    FeaturizedChunk,
    InputRow,
    iterate_featurized,
)
from rmat_hf.data.stored_features import count_nodes
from rmat_hf.data.tables import Table
from rmat_hf.data.training_table import DroppedRow
from rmat_hf.errors import UserError
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)

_CHUNK_SIZE = 64
_SHARD_KEYS = ("shard", "smiles_sha256")


def featurize_corpus(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    processor: RMatProcessor,
    options: CorpusOptions | None = None,
    num_workers: int = 1,
    show_progress: bool = False,
) -> CorpusReport:
    """Featurize molecules to Parquet shards, for [`load_corpus`].

    Each shard appears when it is complete. The same call again computes what is missing, after
    an error or a kill at any moment too, and the folder ends up with the same bytes (unless a
    time limit of conformers decided).

    Args:
        source (`str` or `os.PathLike`): As in [`open_corpus_input`].
        output_dir (`str` or `os.PathLike`): Folder to write, or to continue.
        processor (`RMatProcessor`): Decides the geometry and the molecule descriptors.
        options (`CorpusOptions`, *optional*): Which molecules.
        num_workers (`int`, *optional*, defaults to 1): Processes; 0 and 1 are this one.
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

    Raises:
        UserError: The folder belongs to other options or another input.
        UserError: A file cannot be written; the shards that are there stay.
        WorkerError: Worker processes cannot start, or end before they compute anything.
    """
    names, description = featurize_shards(
        source,
        output_dir,
        processor=processor,
        options=options,
        num_workers=num_workers,
        show_progress=show_progress,
    )
    return complete_corpus(Path(output_dir), names, options=description)


def featurize_shards(
    source: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    processor: RMatProcessor,
    options: CorpusOptions | None = None,
    num_workers: int = 1,
    task: tuple[int, int] = (0, 1),
    show_progress: bool = False,
) -> tuple[list[str], dict[str, Any]]:
    """Write the shards of one task; when all are there, [`featurize_corpus`] completes the folder.

    Args:
        source, output_dir, processor, options, num_workers, show_progress:
            As in [`featurize_corpus`], the same for every task.
        task (`tuple[int, int]`, *optional*, defaults to `(0, 1)`):
            `(rank, num_tasks)`: every `num_tasks`-th shard, from that of the rank on.

    Returns:
        `tuple[list[str], dict]`: the names of the shards of all tasks; what decides their content
        beside the processor.
    """
    options = options or CorpusOptions()
    table = open_corpus_input(
        source,
        smiles_column=options.smiles_column,
        revision=options.revision,
        split=options.split,
    )
    description = _describe_corpus(os.fspath(source), table, options=options)
    writer = _ShardWriter(Path(output_dir), describe_processor(processor), description)
    rank, num_tasks = task
    known = writer.read_checksums()
    writer.prepare_folder(with_processor=rank == 0)
    wanted = [idx for idx in range(rank, writer.num_shards, num_tasks) if idx not in known]
    if wanted:
        rows = iterate_input_rows(table, smiles_column=options.smiles_column)
        chunks = writer.select_chunks(rows, wanted=set(wanted), known=known)
        featurized = iterate_featurized(chunks, processor, num_workers=num_workers)
        total = sum(writer.count_rows(idx) for idx in wanted)
        with (
            closing(featurized),
            tqdm(
                total=total, desc="Featurizing", unit=" molecules", disable=not show_progress
            ) as progress,
        ):
            writer.write_shards(featurized, progress=progress)
    return [name_shard(idx) for idx in range(writer.num_shards)], description


def _describe_corpus(source: str, table: Table, *, options: CorpusOptions) -> dict[str, Any]:
    """Return what decides the content of the shards beside the processor, without paths."""
    num_rows = min(table.num_rows, options.max_rows or table.num_rows)
    if num_rows == 0:
        raise UserError(f"{table.source} has no rows. Name an input with molecules.")
    if num_rows > MAX_SHARDS * options.shard_size:
        raise UserError(
            f"{num_rows} rows make more than {MAX_SHARDS} shards of {options.shard_size} rows. "
            f"Choose --shard-size {-(-num_rows // MAX_SHARDS)} or more."
        )
    path = Path(source)
    is_local = path.exists() or path.is_absolute() or glob.has_magic(source)
    description = {
        **asdict(options),
        "input": path.resolve().name if is_local else source,
        "num_rows": num_rows,
        "rdkit": rdkit.__version__,
    }
    del description["max_rows"]  # num_rows says it
    return description


@dataclass(frozen=True)
class _ShardWriter:
    """One corpus in one folder; `description` decides its content beside the processor."""

    folder: Path
    processor_options: dict[str, Any]
    description: dict[str, Any]

    @property
    def num_rows(self) -> int:
        return int(self.description["num_rows"])

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.description["shard_size"])

    def count_rows(self, idx: int) -> int:
        """Return the rows of the input that belong to a shard."""
        shard_size: int = self.description["shard_size"]
        return min(shard_size, self.num_rows - idx * shard_size)

    def read_checksums(self) -> dict[int, str]:
        """Return the checksums of the shards that are there; raise if they are another corpus."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file. Choose another output folder.")
        idx_of_name = {name_shard(idx): idx for idx in range(self.num_shards)}
        checksums = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                header = read_shard_header(str(path), name=str(path))
            except UserError:
                if path.name in idx_of_name:
                    logger.warning("%s cannot be read and is written anew.", path)
                    continue
                raise
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
            checksum = self._validate_header(header)
            if path.name not in idx_of_name:
                raise UserError(f"{path} is no shard of this corpus. Move it elsewhere.")
            checksums[idx_of_name[path.name]] = checksum
        return checksums

    def prepare_folder(self, *, with_processor: bool) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot create {self.folder}: {error.strerror}.") from error
        if not os.access(self.folder, os.W_OK):
            raise UserError(f"{self.folder} is not writable. Choose another output folder.")
        if with_processor:
            content = encode_json(self.processor_options)
            write_corpus_file(self.folder / PROCESSOR_FILE, content)

    def write_shards(self, featurized: Iterable[FeaturizedChunk], *, progress: tqdm) -> None:
        """Write each shard as soon as its molecules are there."""
        shard_size = self.description["shard_size"]
        by_shard = itertools.groupby(featurized, lambda pair: pair[0][0].row // shard_size)
        for idx, pairs in by_shard:
            rows: list[DroppedRow] = []
            outcomes: list[FeaturizedMolecule] = []
            for chunk, chunk_outcomes in pairs:
                outcomes += chunk_outcomes
                rows += (
                    DroppedRow(row.row, row.smiles, outcome.failure)
                    for row, outcome in zip(chunk, chunk_outcomes, strict=True)
                )
                progress.update(len(chunk))
            checksum = _compute_checksum(row.smiles for row in rows)
            content = encode_shard(
                rows,
                outcomes,
                num_nodes=count_nodes([part.features for part in outcomes if part.features]),
                processor=self.processor_options,
                options={**self.description, "shard": idx, "smiles_sha256": checksum},
            )
            write_corpus_file(self.folder / name_shard(idx), content)

    def select_chunks(
        self, rows: Iterable[InputRow], *, wanted: set[int], known: dict[int, str]
    ) -> Iterator[Chunk]:
        """Yield the rows of the wanted shards, and check those of the shards that are there."""
        shard_size = self.description["shard_size"]
        rows = itertools.islice(rows, min((max(wanted) + 1) * shard_size, self.num_rows))
        for idx, shard_rows in itertools.groupby(rows, lambda row: row.row // shard_size):
            if idx in wanted:
                while chunk := list(itertools.islice(shard_rows, _CHUNK_SIZE)):
                    yield chunk
            elif idx in known and known[idx] != _compute_checksum(row.smiles for row in shard_rows):
                raise UserError(
                    f"{self.folder / name_shard(idx)} holds other molecules than the input, which "
                    "has changed. Choose another output folder."
                )

    def _validate_header(self, header: ShardHeader) -> str:
        """Return the checksum of the molecules; raise if the shard is of another corpus."""
        if header.options is None:
            raise UserError(f"{header.name} is no shard. Choose another output folder.")
        found = {key: value for key, value in header.options.items() if key not in _SHARD_KEYS}
        difference = find_difference(found, self.description) or find_difference(
            header.processor or {}, self.processor_options
        )
        if difference:
            raise UserError(
                f"{self.folder} was begun with other options: {difference} (first the folder, then "
                "this command). Repeat the command as it was, or choose another output folder."
            )
        return str(header.options["smiles_sha256"])


def _compute_checksum(smiles: Iterable[str]) -> str:
    checksum = hashlib.sha256()
    for text in smiles:
        checksum.update(json.dumps(text).encode())
    return checksum.hexdigest()
