"""Predict or embed whole files: a table in, the same rows with new columns out."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from rmat_hf.data.corpus_format import describe_processor
from rmat_hf.data.corpus_input import open_corpus_input
from rmat_hf.data.predictions import describe_prediction_columns
from rmat_hf.data.screen_folder import ERROR_COLUMN
from rmat_hf.data.table_writer import (
    OUTPUT_EXTENSIONS,
    TableWriter,
    validate_output_path,
)
from rmat_hf.data.tables import Table, build_table
from rmat_hf.data.top_rows import ROW_COLUMN
from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.inference.screening_options import ScreeningOptions, ScreeningResult
from rmat_hf.inference.sharded_screening import Screen, ScreenModel, run_sharded_screen
from rmat_hf.loading import compute_model_hash, load_embedder, load_predictor
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.model.modeling_rmat import RMatPreTrainedModel
from rmat_hf.model.processing_rmat import RMatProcessor

logger = logging.getLogger(__name__)


def build_smiles_table(smiles: list[str], *, smiles_column: str) -> Table:
    """Return SMILES from the command line as a table with one column."""
    rows = pa.table({smiles_column: pa.array(smiles, pa.string())})
    return build_table(rows, source="--smiles")


def run_prediction(
    model: str | Path,
    molecules: str | Path | list[str],
    *,
    output: str | Path,
    smiles_column: str = "smiles",
    revision: str | None = None,
    input_revision: str | None = None,
    input_split: str | None = None,
    options: ScreeningOptions | None = None,
) -> ScreeningResult:
    """Predict every molecule of a table and write the table with the predictions.

    Args:
        model (`str` or `Path`): Folder or Hub id of a finetuned model.
        molecules (`str`, `Path` or `list[str]`): As in [`open_corpus_input`], or a list of SMILES.
        output (`str` or `Path`):
            CSV or Parquet file with every column of the input, `prediction_<label>` for every
            label and `error`. It appears when all rows are done. A name without an extension is a
            folder: it gets shards with these columns, and the same call again continues it.
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column with the SMILES.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        input_revision, input_split (`str`, *optional*): Those of molecules on the Hub.
        options (`ScreeningOptions`, *optional*): Batch size, processes, shards, best rows, device.

    Returns:
        [`ScreeningResult`]. A molecule that cannot be predicted is a row with a reason.
    """
    options = options or ScreeningOptions()
    _validate_output(output, options)
    table = _open_input(
        molecules, smiles_column=smiles_column, revision=input_revision, split=input_split
    )
    load_model = partial(_load_prediction, model, revision=revision, options=options)
    return _run(Screen(table, smiles_column, load_model, options), Path(output))


def run_embedding(
    model: str | Path,
    molecules: str | Path | list[str],
    *,
    output: str | Path,
    smiles_column: str = "smiles",
    revision: str | None = None,
    input_revision: str | None = None,
    input_split: str | None = None,
    options: ScreeningOptions | None = None,
) -> ScreeningResult:
    """Embed every molecule of a table and write the table with the embeddings.

    Args:
        model (`str` or `Path`): Folder or Hub id of an R-MAT model with trained pooling.
        molecules (`str`, `Path` or `list[str]`): As in [`open_corpus_input`], or a list of SMILES.
        output (`str` or `Path`):
            Parquet file with every column of the input, the list column `embedding` and `error`.
            It appears when all rows are done. A name without an extension is a folder, as in
            [`run_prediction`].
        smiles_column (`str`, *optional*, defaults to `"smiles"`): Column with the SMILES.
        revision (`str`, *optional*): Branch, tag or commit of a model on the Hub.
        input_revision, input_split (`str`, *optional*): Those of molecules on the Hub.
        options (`ScreeningOptions`, *optional*): Batch size, processes, shards, device.

    Returns:
        [`ScreeningResult`]. A molecule that cannot be embedded is a row with a reason.
    """
    options = options or ScreeningOptions()
    if Path(output).suffix.lower() not in ("", ".parquet") or options.output_format == "csv":
        raise UserError(f"{output}: embeddings are lists of numbers. Write a .parquet file.")
    if options.top_rows is not None:
        raise UserError("--top-k is for predictions: embeddings have no order. Leave it out.")
    _validate_output(output, options)
    table = _open_input(
        molecules, smiles_column=smiles_column, revision=input_revision, split=input_split
    )
    load_model = partial(_load_embedding, model, revision=revision, options=options)
    return _run(Screen(table, smiles_column, load_model, options), Path(output))


def is_output_folder(output: str | Path) -> bool:
    """Return whether a screen writes a folder of shards: its name has no extension."""
    return Path(output).is_dir() or not Path(output).suffix


def _load_prediction(
    model: str | Path, *, revision: str | None, options: ScreeningOptions
) -> ScreenModel:
    predictor, processor = load_predictor(model, revision=revision, device=options.device)

    def predict_chunk(chunk: list[Molecule]) -> dict[str, list[Any]]:
        return predict(
            predictor,
            chunk,
            processor=processor,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            cache_dir=options.cache_dir,
        ).to_columns()

    description = {"verb": "predict", **_describe_model(predictor, processor)}
    return ScreenModel(predict_chunk, describe_prediction_columns(predictor.config), description)


def _load_embedding(
    model: str | Path, *, revision: str | None, options: ScreeningOptions
) -> ScreenModel:
    embedder, processor = load_embedder(model, revision=revision, device=options.device)

    def embed_chunk(chunk: list[Molecule]) -> dict[str, list[Any]]:
        return embed(
            embedder,
            chunk,
            processor=processor,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
            cache_dir=options.cache_dir,
        ).to_columns()

    description = {"verb": "embed", **_describe_model(embedder, processor)}
    return ScreenModel(embed_chunk, {"embedding": "vector", ERROR_COLUMN: "text"}, description)


def _describe_model(model: RMatPreTrainedModel, processor: RMatProcessor) -> dict[str, Any]:
    return {
        "model_sha256": compute_model_hash(model),
        "processor": describe_processor(processor),
        "device": model.device.type,
    }


def _validate_output(output: str | Path, options: ScreeningOptions) -> None:
    """Raise for an output that cannot be, before any work is done."""
    path = Path(output)
    if is_output_folder(path):
        if path.suffix.lower() in OUTPUT_EXTENSIONS:
            raise UserError(f"{path} is a folder. Name a file, or a folder without {path.suffix}.")
        return
    validate_output_path(path)
    if options.num_proc > 1 or options.task is not None:
        raise UserError(
            f"{path} is one file, which one process writes. For several processes or tasks name a "
            "folder, without an extension."
        )
    if options.output_format not in (None, path.suffix.lower()[1:]):
        raise UserError(
            f"--output-format {options.output_format} contradicts {path}. Leave it out, or name a "
            "folder, without an extension."
        )


def _open_input(
    molecules: str | Path | list[str],
    *,
    smiles_column: str,
    revision: str | None,
    split: str | None,
) -> Table:
    """Return the molecules as a table after every check that needs no model."""
    if isinstance(molecules, list):
        return build_smiles_table(molecules, smiles_column=smiles_column)
    return open_corpus_input(
        molecules,
        smiles_column=smiles_column,
        revision=revision,
        split=split,
        with_all_columns=True,
    )


def _run(screen: Screen, output: Path) -> ScreeningResult:
    if is_output_folder(output):
        return run_sharded_screen(screen, output)
    model = screen.load_model()
    collector = screen.build_collector(model.added_columns)
    num_failed = num_rows = 0
    writer = TableWriter(
        output,
        input_schema=screen.table.schema,
        added_columns=screen.list_output_columns(model.added_columns),
        csv_formulas=screen.options.csv_formulas,
    )
    progress = tqdm(
        total=screen.table.num_rows, unit="molecule", disable=not screen.options.show_progress
    )
    with writer, progress:
        for chunk in screen.table.iterate_chunks(screen.options.chunk_size):
            columns = screen.compute(chunk, model)
            if collector is None:
                writer.write(columns)
            else:
                collector.add(columns, rows=range(num_rows, num_rows + chunk.num_rows))
            num_rows += chunk.num_rows
            num_failed += sum(error is not None for error in columns[ERROR_COLUMN])
            progress.update(chunk.num_rows)
        num_written = num_rows
        if collector is not None:
            best = collector.to_columns()
            num_written = len(best[ROW_COLUMN])
            writer.write(best)
    if num_failed:
        logger.info("%d of %d rows have no value.", num_failed, num_rows)
    return ScreeningResult(output, num_rows, num_failed, num_written)
