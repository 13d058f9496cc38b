"""Run the parts of a job as tasks of datatrove: on this machine, on Slurm or on Ray."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

Executor = Literal["local", "slurm", "ray"]


def run_tasks(
    steps: Sequence[tuple[str, Any, int]],
    *,
    logging_dir: str,
    executor: Executor = "local",
    executor_options: dict[str, Any] | None = None,
) -> None:
    """Run steps one after the other, each as many tasks. On a cluster it returns when they queue.

    Args:
        steps (`Sequence[tuple[str, Any, int]]`):
            Name, step of a datatrove pipeline, number of its tasks.
        logging_dir (`str`): Folder for the logs of the tasks, which all machines share.
        executor (`str`, *optional*, defaults to `"local"`): `"local"`, `"slurm"` or `"ray"`.
        executor_options (`dict`, *optional*):
            More arguments of datatrove's executor, for example `workers`, `time`, `partition`.

    Raises:
        ValueError: There is no such executor, or it is not installed.
    """
    if executor not in get_args(Executor):
        raise ValueError(f"executor is {executor!r}. Choose one of {list(get_args(Executor))}.")
    try:
        module = import_module(f"datatrove.executor.{executor}")
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed. Install the extra: pip install 'rmat-hf[distributed]'"
            + (" and ray." if executor == "ray" else ".")
        ) from error
    executor_class = getattr(module, f"{executor.capitalize()}PipelineExecutor")
    # what is there is not computed again: the tasks look for it themselves
    shared = {**(executor_options or {}), "skip_completed": False}
    last = None
    for name, step, num_tasks in steps:
        last = executor_class(
            [step],
            tasks=num_tasks,
            logging_dir=str(Path(logging_dir) / name),
            depends=last,
            **shared,
        )
    if last is not None:
        last.run()
