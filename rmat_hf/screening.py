"""Predict or embed whole files: a table in, the same rows with new columns out."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm.auto import tqdm

from rmat_hf.configuration_rmat import RMatConfig
from rmat_hf.data.csv_formulas import FormulaHandling
from rmat_hf.data.table_writer import ColumnKind, TableWriter, validate_output_path
from rmat_hf.data.tables import Table, TableChunk, TableError, open_table, validate_columns
from rmat_hf.inference import Embeddings, Predictions, embed, is_ensemble, predict
from rmat_hf.model_loading import load_embedder, load_predictor
from rmat_hf.molecule_features_rmat import Molecule

logger = logging.getLogger(__name__)

ERROR_COLUMN = "error"


@dataclass(frozen=True)
class ScreeningResult:
    """How many rows a screen wrote.

    Args:
        output (`Path`): The file.
        num_rows (`int`): Rows in it, as many as in the input.
        num_failed (`int`): Rows with a reason in the column `error` instead of a value.
    """

    output: Path
    num_rows: int
    num_failed: int


@dataclass(frozen=True)
class ScreeningOptions:
    """How a screen runs; but for `csv_formulas` none of it changes the result.

    Args:
        batch_size (`int`, *optional*, defaults to 32): Molecules in one forward pass.
        num_workers (`int`, *optional*, defaults to 0): Processes that featurize.
        chunk_size (`int`, *optional*, defaults to 2048): Rows in memory at a time.
        device (`str`, *optional*): Torch device; by default the accelerator if there is one.
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
        cache_dir (`str` or `Path`, *optional*): Folder of a feature cache; by default none.
        csv_formulas (`str`, *optional*, defaults to `"escape"`): As in [`TableWriter`].
    """

    batch_size: int = 32
    num_workers: int = 0
    chunk_size: int = 2048
    device: str | None = None
    show_progress: bool = False
    cache_dir: str | Path | None = None
    csv_formulas: FormulaHandling = "escape"

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a count that is too small."""
        for name, smallest in {"batch_size": 1, "num_workers": 0, "chunk_size": 1}.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; the least is {smallest}.")


def build_smiles_table(smiles: list[str], *, smiles_column: str) -> Table:
    """Return SMILES from the command line as a table with one column."""

    def read_chunks(chunk_size: int) -> Iterator[TableChunk]:
        for start in range(0, len(smiles), chunk_size):
            rows = smiles[start : start + chunk_size]
            yield TableChunk("--smiles", {smiles_column: rows}, num_rows=len(rows))

    schema = pa.schema([(smiles_column, pa.string())])
    return Table("--smiles", schema, num_rows=len(smiles), read_chunks=read_chunks)


def run_prediction(
    model: str | Path,
    molecules: str | Path | list[str],
    *,
    output: str | Path,
    smiles_column: str = "smiles",
    revision: str | None = None,
    options: ScreeningOptions | None = None,
) -> ScreeningResult:
    """Predict every molecule of a table and write the table with the predictions.

    Args:
        model (`str` or `Path`): Folder or Hub id of a finetuned model.
        molecules (`str`, `Path` or `list[str]`): CSV, Parquet or SDF file, or a list of SMILES.
        output (`str` or `Path`):
            CSV or Parquet file with every column of the input, `prediction_<label>` for every
            label and `error`. It appears when all rows are done.
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column with the SMILES.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        options (`ScreeningOptions`, *optional*): Batch size, workers, chunks, device.

    Returns:
        [`ScreeningResult`]. A molecule that cannot be predicted is a row with a reason.
    """
    options = options or ScreeningOptions()
    table = _open_input(molecules, output=output, smiles_column=smiles_column)
    predictor, processor = load_predictor(model, revision=revision, device=options.device)

    def predict_chunk(chunk: list[Molecule]) -> Predictions:
        return predict(
            predictor,
            chunk,
            processor=processor,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            cache_dir=options.cache_dir,
        )

    screen = _Screen(table, smiles_column, Path(output), options)
    return screen.run(predict_chunk, describe_prediction_columns(predictor.config))


def run_embedding(
    model: str | Path,
    molecules: str | Path | list[str],
    *,
    output: str | Path,
    smiles_column: str = "smiles",
    revision: str | None = None,
    options: ScreeningOptions | None = None,
) -> ScreeningResult:
    """Embed every molecule of a table and write the table with the embeddings.

    Args:
        model (`str` or `Path`): Folder or Hub id of an R-MAT model with trained pooling.
        molecules (`str`, `Path` or `list[str]`): CSV, Parquet or SDF file, or a list of SMILES.
        output (`str` or `Path`):
            Parquet file with every column of the input, the list column `embedding` and `error`.
            It appears when all rows are done.
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column with the SMILES.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        options (`ScreeningOptions`, *optional*): Batch size, workers, chunks, device.

    Returns:
        [`ScreeningResult`]. A molecule that cannot be embedded is a row with a reason.
    """
    options = options or ScreeningOptions()
    if Path(output).suffix.lower() != ".parquet":
        raise TableError(f"{output}: embeddings are lists of numbers. Write a .parquet file.")
    table = _open_input(molecules, output=output, smiles_column=smiles_column)
    embedder, processor = load_embedder(model, revision=revision, device=options.device)

    def embed_chunk(chunk: list[Molecule]) -> Embeddings:
        return embed(
            embedder,
            chunk,
            processor=processor,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            cache_dir=options.cache_dir,
        )

    screen = _Screen(table, smiles_column, Path(output), options)
    return screen.run(embed_chunk, {"embedding": "vector", ERROR_COLUMN: "text"})


def describe_prediction_columns(config: RMatConfig) -> dict[str, ColumnKind]:
    """Return the columns that predictions add to a table, with what they hold."""
    empty = np.empty((0, len(config.output_names)))
    no_rows = Predictions(empty, [], config, spread=empty if is_ensemble(config) else None)
    kinds: dict[str, ColumnKind] = dict.fromkeys(no_rows.to_columns(), "number")
    if config.label_name is not None and not no_rows.is_binary:
        kinds[f"prediction_{config.label_name}"] = "text"
    kinds[ERROR_COLUMN] = "text"
    return kinds


@dataclass(frozen=True)
class _Screen:
    """Reads a table chunk by chunk and writes it with the columns that a function adds."""

    table: Table
    smiles_column: str
    output: Path
    options: ScreeningOptions

    def run(
        self,
        compute: Callable[[list[Molecule]], Predictions | Embeddings],
        added_columns: dict[str, ColumnKind],
    ) -> ScreeningResult:
        num_failed = 0
        writer = TableWriter(
            self.output,
            input_schema=self.table.schema,
            added_columns=added_columns,
            csv_formulas=self.options.csv_formulas,
        )
        progress = tqdm(
            total=self.table.num_rows, unit="molecule", disable=not self.options.show_progress
        )
        with writer, progress:
            for chunk in self.table.iterate_chunks(self.options.chunk_size):
                added = compute(chunk.molecules(self.smiles_column)).to_columns()
                writer.write({**chunk.columns, **added})
                num_failed += sum(error is not None for error in added[ERROR_COLUMN])
                progress.update(chunk.num_rows)
        if num_failed:
            logger.info("%d of %d rows have no value.", num_failed, self.table.num_rows)
        return ScreeningResult(self.output, self.table.num_rows, num_failed)


def _open_input(
    molecules: str | Path | list[str], *, output: str | Path, smiles_column: str
) -> Table:
    """Return the molecules as a table after every check that needs no model."""
    validate_output_path(output)
    if isinstance(molecules, list):
        return build_smiles_table(molecules, smiles_column=smiles_column)
    table = open_table(molecules)
    validate_columns(table.column_names, [smiles_column], source=table.source)
    return table
