"""Predict a library on a Slurm cluster: `rmat predict` as many tasks. Run it again to continue.

It needs the extra `distributed` and folders that all machines share; --help lists the flags.
"""

from dataclasses import dataclass

from transformers import HfArgumentParser

from rmat_hf.data.shards import run_distributed
from rmat_hf.inference.screening import PredictionArguments, run_prediction


@dataclass(kw_only=True)
class ClusterArguments:
    """Where the tasks run; venv is the `bin/activate` of an environment on all machines."""

    num_tasks: int
    logging_dir: str
    partition: str
    time: str
    venv: str
    mem_per_cpu_gb: int = 4


if __name__ == "__main__":
    parser = HfArgumentParser((PredictionArguments, ClusterArguments))
    arguments, cluster = parser.parse_args_into_dataclasses()
    slurm = {"partition": cluster.partition, "time": cluster.time, "venv_path": cluster.venv}
    run_distributed(
        run_prediction,
        arguments,
        num_tasks=cluster.num_tasks,
        logging_dir=cluster.logging_dir,
        executor="slurm",
        executor_options={**slurm, "mem_per_cpu_gb": cluster.mem_per_cpu_gb},
    )
