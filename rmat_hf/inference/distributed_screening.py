"""Predict or embed one library on many machines: tasks of datatrove (extra `distributed`).

On a Slurm cluster, with a folder that all machines share, and one processor core per task:

    run_distributed_screen(
        "predict", {"model": "runs/pic50", "molecules": "library.parquet", "output": "screen"},
        num_tasks=500, logging_dir="logs", executor="slurm", executor_options={"time": "24:00:00",
        "partition": "cpu", "venv_path": "/shared/venv/bin/activate"},
    )

On a Ray cluster it is `executor="ray"`, and its options are those of `RayPipelineExecutor`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rmat_hf.data.datatrove_tasks import Executor, run_tasks
from rmat_hf.inference.screening import is_output_folder, run_embedding, run_prediction
from rmat_hf.inference.screening_options import ScreeningOptions

Verb = Literal["predict", "embed"]


@dataclass(frozen=True)
class WriteScreenShards:
    """Step of a datatrove pipeline that writes the shards of one task.

    Args:
        verb (`str`): `"predict"` or `"embed"`.
        arguments (`dict`): Those of [`run_prediction`] or [`run_embedding`], but `options`.
        options (`ScreeningOptions`): The same for every task.
    """

    verb: Verb
    arguments: dict[str, Any]
    options: ScreeningOptions = field(default_factory=ScreeningOptions)

    def __call__(  # noqa: PLR0917 - datatrove calls it by position
        self, data: object, rank: int = 0, world_size: int = 1
    ) -> None:
        """Write every `world_size`-th shard; the task that ends last completes the folder."""
        run = run_prediction if self.verb == "predict" else run_embedding
        run(**self.arguments, options=replace(self.options, task=(rank, world_size)))


def run_distributed_screen(
    verb: Verb,
    arguments: dict[str, Any],
    *,
    num_tasks: int,
    logging_dir: str,
    options: ScreeningOptions | None = None,
    executor: Executor = "local",
    executor_options: dict[str, Any] | None = None,
) -> None:
    """Run the tasks; the bytes of the folder are those of one process.

    The same call again continues. On a cluster it returns when the jobs are queued.

    Args:
        verb (`str`): `"predict"` or `"embed"`.
        arguments (`dict`):
            Those of [`run_prediction`] or [`run_embedding`], but `options`: `model`, `molecules`,
            `output` and so on. All machines read and write under these names.
        num_tasks (`int`): Parts of the work, one process each. More than shards are of no use.
        logging_dir (`str`): Folder for the logs of the tasks, which all machines share.
        options (`ScreeningOptions`, *optional*): Batch size, shards, best rows, device.
        executor (`str`, *optional*, defaults to `"local"`): `"local"`, `"slurm"` or `"ray"`.
        executor_options (`dict`, *optional*):
            More arguments of datatrove's executor, for example `workers`, `time`, `partition`.

    Raises:
        ValueError: The output is no folder, or there is no such executor.
    """
    if not is_output_folder(arguments["output"]):
        raise ValueError(
            f"{arguments['output']} is one file. Several tasks need a folder: name one, without "
            "an extension."
        )
    run_tasks(
        [("shards", WriteScreenShards(verb, arguments, options or ScreeningOptions()), num_tasks)],
        logging_dir=logging_dir,
        executor=executor,
        executor_options=executor_options,
    )
