"""How a file is screened: batches, processes, and what is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rmat_hf.data.table_writer import FormulaHandling
from rmat_hf.data.top_rows import TopRows

OutputFormat = Literal["parquet", "csv"]


@dataclass(frozen=True, kw_only=True)
class ScreeningOptions:
    """How a screen runs and what it writes; the numbers it computes depend on none of it.

    (In their last digits they do on `batch_size`, `chunk_size` and `device`: float32 sums.)

    Args:
        batch_size (`int`, *optional*, defaults to 32): Molecules in one forward pass.
        num_workers (`int`, *optional*, defaults to 1):
            Processes that featurize, for each that computes. A molecule that kills one of them is
            a row with a reason; with 0 it ends the screen.
        chunk_size (`int`, *optional*, defaults to 2048): Rows in memory at a time.
        device (`str`, *optional*): Torch device; by default the accelerator if there is one.
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
        cache_dir (`str` or `Path`, *optional*): Folder of a feature cache; by default none.
        top_rows (`TopRows`, *optional*): Write the best rows only. By default all.
        shard_size (`int`, *optional*, defaults to 8192): Rows of the input per shard.
        output_format (`str`, *optional*): Of shards: `"parquet"`, the default, or `"csv"`.
        num_proc (`int`, *optional*, defaults to 1):
            Processes that write shards, each with one thread; 0 and 1 are this one.
        task (`tuple[int, int]`, *optional*):
            `(rank, num_tasks)`: write every `num_tasks`-th shard, from that of the rank on. The
            task that ends last completes the folder.
        csv_formulas (`str`, *optional*, defaults to `"escape"`): As in [`TableWriter`].
    """

    batch_size: int = 32
    num_workers: int = 1
    chunk_size: int = 2048
    device: str | None = None
    show_progress: bool = False
    cache_dir: str | Path | None = None
    top_rows: TopRows | None = None
    shard_size: int = 8192
    output_format: OutputFormat | None = None
    num_proc: int = 1
    task: tuple[int, int] | None = None
    csv_formulas: FormulaHandling = "escape"

    def __post_init__(self) -> None:
        """Raise a `ValueError` for a count that is too small, or a task that is not there."""
        smallest_values = {"batch_size": 1, "num_workers": 0, "chunk_size": 1}
        smallest_values |= {"shard_size": 1, "num_proc": 0}
        for name, smallest in smallest_values.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; the least is {smallest}.")
        if self.output_format not in (None, *get_args(OutputFormat)):
            raise ValueError(
                f"output_format is {self.output_format!r}. Choose one of "
                f"{', '.join(get_args(OutputFormat))}."
            )
        if self.task is not None and not 0 <= self.task[0] < self.task[1]:
            raise ValueError(
                f"The task {self.task[0]}/{self.task[1]} is not there: {self.task[1]} tasks count "
                f"from 0 to {self.task[1] - 1}."
            )


@dataclass(frozen=True)
class ScreeningResult:
    """How many rows a screen went through.

    Args:
        output (`Path`): The file or folder.
        num_rows (`int`): Rows of the input, of a task that does not end last those of its shards.
        num_failed (`int`): Rows with a reason in the column `error` instead of a value.
        num_written (`int`): Rows in the output.
        is_complete (`bool`): Whether the rows of all tasks are there.
    """

    output: Path
    num_rows: int
    num_failed: int
    num_written: int
    is_complete: bool = True
