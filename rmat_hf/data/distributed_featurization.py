"""Featurize one corpus on many machines: its shards are tasks of datatrove (extra `distributed`).

On a Slurm cluster, with a folder that all machines share, and one processor core per task:

    run_distributed_featurization(
        "molecules.parquet", "corpus", processor=RMatProcessor(), num_tasks=500,
        logging_dir="logs", executor="slurm", executor_options={"time": "24:00:00",
        "partition": "cpu", "venv_path": "/shared/venv/bin/activate"},
    )

On a Ray cluster it is `executor="ray"`, and its options are those of `RayPipelineExecutor`.
"""

from dataclasses import dataclass
from typing import Any

from rmat_hf.data.corpus_input import CorpusOptions
from rmat_hf.data.corpus_shards import featurize_corpus, featurize_shards
from rmat_hf.data.datatrove_tasks import Executor, run_tasks
from rmat_hf.model.processing_rmat import RMatProcessor


@dataclass(frozen=True)
class WriteShards:
    """Step of a datatrove pipeline that writes the shards of one task.

    Args:
        source, output_dir, processor, options: As in [`featurize_corpus`].
    """

    source: str
    output_dir: str
    processor: RMatProcessor
    options: CorpusOptions

    def __call__(  # noqa: PLR0917 - datatrove calls it by position
        self, data: object, rank: int = 0, world_size: int = 1
    ) -> None:
        """Write every `world_size`-th shard; those that are there are not computed again."""
        featurize_shards(
            self.source,
            self.output_dir,
            processor=self.processor,
            options=self.options,
            task=(rank, world_size),
        )


@dataclass(frozen=True)
class CompleteCorpus:
    """Step of a datatrove pipeline that follows when all shards are written.

    Args:
        source, output_dir, processor, options: As in [`featurize_corpus`].
    """

    source: str
    output_dir: str
    processor: RMatProcessor
    options: CorpusOptions

    def __call__(  # noqa: PLR0917 - datatrove calls it by position
        self, data: object, rank: int = 0, world_size: int = 1
    ) -> None:
        """Write the counts and the failed rows."""
        featurize_corpus(
            self.source, self.output_dir, processor=self.processor, options=self.options
        )


def run_distributed_featurization(
    source: str,
    output_dir: str,
    *,
    processor: RMatProcessor,
    num_tasks: int,
    logging_dir: str,
    options: CorpusOptions | None = None,
    executor: Executor = "local",
    executor_options: dict[str, Any] | None = None,
) -> None:
    """Run the tasks, then complete the folder; its bytes are those of [`featurize_corpus`].

    The same call again continues. On a cluster it returns when the jobs are queued.

    Args:
        source (`str`): As in [`open_corpus_input`]; every machine reads it under this name.
        output_dir (`str`): Folder to write, which all machines share.
        processor (`RMatProcessor`): Decides the geometry and the molecule descriptors.
        num_tasks (`int`): Parts of the work, one process each. More than shards are of no use.
        logging_dir (`str`): Folder for the logs of the tasks, which all machines share.
        options (`CorpusOptions`, *optional*): Which molecules.
        executor (`str`, *optional*, defaults to `"local"`): `"local"`, `"slurm"` or `"ray"`.
        executor_options (`dict`, *optional*):
            More arguments of datatrove's executor, for example `workers`, `time`, `partition`.
    """
    arguments = (source, output_dir, processor, options or CorpusOptions())
    run_tasks(
        [
            ("shards", WriteShards(*arguments), num_tasks),
            ("completion", CompleteCorpus(*arguments), 1),
        ],
        logging_dir=logging_dir,
        executor=executor,
        executor_options=executor_options,
    )
