"""`rmat predict` and `rmat embed`: their flags, and the screen they ask for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from rmat_hf.data.table_writer import FormulaHandling
from rmat_hf.data.top_rows import Order, TopRows
from rmat_hf.errors import escape_message
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.inference.screening_options import OutputFormat, ScreeningOptions, ScreeningResult
from rmat_hf.training.arguments import NO_CACHE

_TASK = re.compile(r"(\d+)/(\d+)")


@dataclass(kw_only=True)
class PredictionArguments:
    """Everything `run_prediction` and `run_embedding` need to know."""

    model: str = declare_required("Model folder written by rmat finetune, or Hub id.")
    output: str = declare_required(
        "File to write: .csv or .parquet; embeddings: .parquet. A name without an extension is a "
        "folder of shards, which the same command again continues."
    )
    smiles: list[str] = declare_flag([], "Molecules as SMILES.")
    input: str | None = declare_flag(
        None,
        "CSV, SMI, SDF (each also .gz) or Parquet file, folder or glob of files of one kind, "
        "bundled name or Hub data set.",
    )
    input_revision: str | None = declare_flag(
        None, "Branch, tag or commit of a data set on the Hub."
    )
    input_split: str | None = declare_flag(None, "Split of a data set on the Hub that has several.")
    smiles_column: str = declare_flag("smiles", "Column with the SMILES.")
    revision: str | None = declare_flag(None, "Branch, tag or commit of a model on the Hub.")
    batch_size: int = declare_flag(32, "Most molecules in one forward pass.", least=1)
    num_workers: int = declare_flag(
        1,
        "Processes that featurize beside each that computes. A molecule that kills one of them is "
        "a row with a reason; with 0 it ends the command.",
        least=0,
    )
    chunk_size: int = declare_flag(2048, "Rows in memory at a time.", least=1)
    shard_size: int = declare_flag(
        8192, "Rows of the input in one file of an output folder.", least=1
    )
    output_format: OutputFormat | None = declare_flag(
        None, "Kind of file in an output folder. Default: parquet."
    )
    num_proc: int = declare_flag(
        1, "Processes that featurize and compute, each a shard at a time, with one thread.", least=1
    )
    task: str | None = declare_flag(
        None, "RANK/NUM: write every NUM-th shard from RANK (from 0) on, one task per machine."
    )
    top_k: int | None = declare_flag(
        None, "Keep the best rows only, so many, the best first.", least=1
    )
    top_k_label: str | None = declare_flag(None, "Label that decides, if there are several.")
    top_k_order: Order = declare_flag(
        "descending",
        "Whether the largest numbers are the best (descending) or the smallest (ascending).",
    )
    feature_cache: str | None = declare_flag(
        NO_CACHE, "Folder of features to look up and to keep, 'default', or 'none'."
    )
    device: str | None = declare_flag(
        None, "Torch device. Default: the accelerator if there is one."
    )

    csv_formulas: FormulaHandling = declare_flag(
        "escape", "Text like =1+1 in CSV output: an apostrophe in front (escape), or as it is."
    )

    def __post_init__(self) -> None:
        """Raise a `ValueError` for flags that contradict each other or are unknown."""
        if bool(self.smiles) == (self.input is not None):
            raise ValueError("Give the molecules either with --smiles or with --input.")
        if self.input is None and (self.input_revision or self.input_split):
            raise ValueError("--input-revision and --input-split need --input.")
        if self.task is not None and not _TASK.fullmatch(self.task):
            raise ValueError(f"--task {self.task!r} is not RANK/NUM, for example 0/4.")
        validate_flags(self)
        if self.top_k is None and self.top_k_label is not None:
            raise ValueError("--top-k-label needs --top-k.")


def build_screening(arguments: PredictionArguments, *, cache_dir: Path | None) -> dict[str, Any]:
    """Return the arguments of `run_prediction` and `run_embedding`.

    Args:
        arguments (`PredictionArguments`): The flags.
        cache_dir (`Path`, *optional*): Folder of the feature cache.
    """
    task, device, is_main = None, arguments.device, True
    if arguments.task is not None:
        rank, num_tasks = arguments.task.split("/")
        task = (int(rank), int(num_tasks))
    else:
        # without `cpu` it sees no other process where there is no accelerator
        state = PartialState(cpu=not torch.accelerator.is_available())
        if state.num_processes > 1:  # torchrun or accelerate launch
            task, is_main = (state.process_index, state.num_processes), state.is_main_process
            device = device or str(state.device)
    top_rows = None
    if arguments.top_k is not None:
        top_rows = TopRows(
            arguments.top_k, label=arguments.top_k_label, order=arguments.top_k_order
        )
    return {
        "model": arguments.model,
        "molecules": arguments.smiles or arguments.input,
        "output": arguments.output,
        "smiles_column": arguments.smiles_column,
        "revision": arguments.revision,
        "input_revision": arguments.input_revision,
        "input_split": arguments.input_split,
        "options": ScreeningOptions(
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            chunk_size=arguments.chunk_size,
            device=device,
            show_progress=is_main,
            cache_dir=cache_dir,
            top_rows=top_rows,
            shard_size=arguments.shard_size,
            output_format=arguments.output_format,
            num_proc=arguments.num_proc,
            task=task,
            csv_formulas=arguments.csv_formulas,
        ),
    }


def describe_screening(result: ScreeningResult, *, noun: str) -> str:
    """Return the summary line of a screen.

    Args:
        result (`ScreeningResult`): What it did.
        noun (`str`): What a row has that did not fail.
    """
    output = escape_message(str(result.output))
    num_done = result.num_rows - result.num_failed
    counts = f"{result.num_rows} rows: {num_done} {noun}, {result.num_failed} failed"
    if not result.is_complete:
        return f"{counts}, in the shards of this task. Those of others are missing."
    if result.num_written < result.num_rows:
        return f"{counts}. Wrote the best {result.num_written} to {output}."
    return f"{counts} (reasons in the column 'error'). Wrote {output}."
