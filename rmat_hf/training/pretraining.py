"""run_pretraining(...): a featurized corpus → a model to finetune."""

import logging
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers.trainer_utils import set_seed
from transformers.utils.hub import cached_file

from rmat_hf.data.corpus import Corpus, load_corpus
from rmat_hf.data.featurization import LENGTH_COLUMN, find_processor
from rmat_hf.data.frames import name_dataset
from rmat_hf.data.stored_features import (
    FEATURES_COLUMN,
    build_features_column,
    count_nodes,
    pack_column,
    pack_dataset,
)
from rmat_hf.data.training_table import Rows
from rmat_hf.errors import UserError
from rmat_hf.flags import build_arguments
from rmat_hf.loading import find_checkpoint, load_processor, read_checkpoint
from rmat_hf.model.modeling_rmat import RMatForPreTraining
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import (
    TrainingRun,
    find_last_complete_checkpoint,
    load_num_steps,
    name_work_dir,
    open_run,
    save_json,
)
from rmat_hf.training.arguments import SCRATCH, describe_arguments
from rmat_hf.training.model_card import save_pretraining_card
from rmat_hf.training.objectives import (
    OBJECTIVES,
    TARGETS_FILE,
    load_objectives,
    save_objectives,
)
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining_arguments import (
    PretrainingArguments,
    build_pretraining_config,
    build_stage_arguments,
    choose_precision,
)
from rmat_hf.training.pretraining_trainer import (
    CorpusBatches,
    PretrainingTrainer,
    RMatDataCollatorForPreTraining,
    StreamedBatches,
    pack_stream,
)
from rmat_hf.training.trainer import MODEL_DIR, show_phase, train_stage

logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "pretraining_arguments.json"
# Molecules to which objectives are fitted, evenly spaced over a table, the first ones of a stream.
MAX_MOLECULES_COUNTED = 100_000
# Held out of a stream: as many of its first molecules as this times 1 / valid_fraction hold.
MAX_STREAMED_VALID = 2048
_CHUNK_SIZE = 4096


@dataclass(frozen=True)
class PretrainingResult:
    """What `run_pretraining` did.

    Args:
        output_dir (`Path`): The model folder.
        metrics (`dict`): Metrics of the valid part by stage, as from `Objective.compute_metrics`.
    """

    output_dir: Path
    metrics: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class PretrainingTask:
    """What there is to learn.

    Args:
        train (`datasets.Dataset` or `datasets.IterableDataset`):
            With `features`, of a stream as from `pack_stream`, `num_nodes`, and what else the
            objectives read.
        valid (`datasets.Dataset`): Molecules held out.
        processor (`RMatProcessor`): Featurized both.
        objectives (`dict[str, Objective]`):
            By name, in the order of the registry: those of the run and of the model before it.
    """

    train: datasets.Dataset | datasets.IterableDataset
    valid: datasets.Dataset
    processor: RMatProcessor
    objectives: dict[str, Objective]


def pretrain(
    corpus: str | Path | Rows, *, output_dir: str | Path, **options: Any
) -> PretrainingResult:
    """Pretrain R-MAT on featurized molecules, as `rmat pretrain` does.

    Args:
        corpus (`str`, `Path`, `datasets.Dataset` or `datasets.IterableDataset`):
            Featurized molecules: a folder written by `rmat featurize` or `save_to_disk`, the id of
            a data set on the Hub, or rows of [`featurize_dataset`], one's own or somebody else's.
            A stream, and `streaming=True` with a name, are read while training.
        output_dir (`str` or `Path`):
            Folder to write: a model to finetune, its processor, metrics and a model card.
        options: The flags of `rmat pretrain` with underscores, as `objective="contexts"`,
            `model="rmat-small"` or `max_steps=1000`; a `dict` where the command takes JSON.

    Returns:
        [`PretrainingResult`], with the metrics of the molecules held out.

    Raises:
        TypeError: There is no such option.
        UserError: Corpus, options or output folder do not allow the run.

    Example:
    ```python
    >>> from rmat_hf import pretrain
    >>> from rmat_hf.data.corpus import FeaturizationArguments, run_featurization
    >>> corpus = str(folder / "corpus")  # what `rmat featurize` writes
    >>> arguments = FeaturizationArguments(input="freesolv", output_dir=corpus, max_rows=40)
    >>> report = run_featurization(arguments)
    >>> options = {"min_context_count": 2, "valid_fraction": 0.2, "max_steps": 2}
    >>> result = pretrain(corpus, output_dir=folder / "model", objective="contexts", **options)
    >>> sorted(result.metrics["contexts"])[:1]
    ['context_accuracy']

    ```
    """
    fields = {"corpus": name_dataset(corpus), "output_dir": output_dir, **options}
    rows = corpus if isinstance(corpus, Rows) else None
    if rows is not None:
        fields["streaming"] = isinstance(rows, datasets.IterableDataset)
    return run_pretraining(build_arguments(PretrainingArguments, fields), rows=rows)


def run_pretraining(
    arguments: PretrainingArguments, *, rows: Rows | None = None
) -> PretrainingResult:
    """Pretrain R-MAT on featurized molecules and write a model to finetune.

    The folder gets weights, config, processor, the meaning of the outputs
    (`pretraining_targets.json`), `metrics.json`, arguments, the training log and a model card with
    loss curves. It appears when everything is done. Until then checkpoints lie beside it, in
    `<output_dir>.in_progress`, and `resume=True` continues from the last one, to the same weights.

    Under `torchrun` or `accelerate launch` the processes share the batches of the corpus.
    """
    work_dir = name_work_dir(arguments.output_dir)
    # joins the other processes
    shared = build_stage_arguments(arguments, work_dir, is_all_learned=True)
    arguments = replace(arguments, precision=choose_precision(arguments.precision))
    description = describe_arguments(arguments)
    is_main_process = shared.process_index == 0
    with open_run(arguments, description=description, is_main_process=is_main_process) as run:
        with shared.main_process_first(local=False):
            task = build_pretraining_task(arguments, rows)
            heads = {it.head: it.describe_head() for it in task.objectives.values()}
            checkpoint = None
            if arguments.model != SCRATCH:
                checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
            config = build_pretraining_config(arguments, heads, checkpoint=checkpoint)
            run.prepare()
        reports: dict[str, dict[str, Any]] = {}
        for idx, (stage, learned) in enumerate(arguments.stages.items()):
            folder = run.work_dir / f"stage-{idx}"
            if idx > 0:
                checkpoint = read_checkpoint(run.work_dir / f"stage-{idx - 1}" / MODEL_DIR)
            set_seed(arguments.seed)
            if checkpoint is None:
                model = RMatForPreTraining(config)
            else:
                model = checkpoint.load_model(RMatForPreTraining, config=config)
            trainer = _build_trainer(arguments, task, model=model, learned=learned, folder=folder)
            show_phase(trainer, f"Pretraining ({stage})")
            reports[stage] = train_stage(trainer, folder, score=trainer.compute_report)
        # the others have read the stages that are removed now
        PartialState().wait_for_everyone()
        if is_main_process:
            _save_results(run, task, reports=reports, model=folder / MODEL_DIR)
    return PretrainingResult(run.output_dir, {name: it["metrics"] for name, it in reports.items()})


def _build_trainer(
    arguments: PretrainingArguments,
    task: PretrainingTask,
    *,
    model: RMatForPreTraining,
    learned: dict[str, float],
    folder: Path,
) -> PretrainingTrainer:
    """Return the trainer of a stage."""
    objectives = {name: task.objectives[name] for name in learned}
    levels = [objective.describe_head()["level"] for objective in objectives.values()]
    is_all_learned = len(objectives) == len(task.objectives) and "molecule" in levels
    training_arguments = build_stage_arguments(arguments, folder, is_all_learned=is_all_learned)
    options = {
        "batch_size": arguments.batch_size,
        "max_pairs": arguments.max_pairs,
        "multiple": training_arguments.world_size,
        "seed": arguments.seed,
    }
    train: CorpusBatches | StreamedBatches
    if isinstance(task.train, datasets.IterableDataset):
        checkpoint = find_last_complete_checkpoint(folder)
        num_steps = 0 if checkpoint is None else load_num_steps(checkpoint)
        num_skipped = num_steps * training_arguments.gradient_accumulation_steps
        train = StreamedBatches(task.train, num_skipped=num_skipped, **options)
    else:
        train = CorpusBatches(task.train, **options)
    collator = RMatDataCollatorForPreTraining(
        objectives, processor=task.processor, arguments=arguments
    )
    # finetuning decides for itself whether descriptors help
    processor = RMatProcessor(**task.processor.to_dict() | {"molecule_descriptors": None})
    return PretrainingTrainer(
        model=model,
        args=training_arguments,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=CorpusBatches(task.valid, **options),
        processing_class=processor,
        objectives=objectives,
        weights=learned,
    )


def _save_results(
    run: TrainingRun, task: PretrainingTask, *, reports: dict[str, dict[str, Any]], model: Path
) -> None:
    with run.publish() as folder:
        # of what FSDP has made of the class, Trainer saves the code of torch instead of ours
        RMatForPreTraining.from_pretrained(model).save_pretrained(folder)
        load_processor(model).save_pretrained(folder)
        save_objectives(folder, task.objectives)
        save_json(folder / ARGUMENTS_FILE, run.description)
        for name, part in (("metrics", "metrics"), ("training_log", "log_history")):
            save_json(folder / f"{name}.json", {stage: reports[stage][part] for stage in reports})
        save_pretraining_card(folder, task, arguments=run.description, reports=reports)


def build_pretraining_task(
    arguments: PretrainingArguments, rows: Rows | None = None
) -> PretrainingTask:
    """Load and divide the corpus; fit objectives, or take those of the model to continue from.

    A molecule is held out by a checksum of its features: whatever stands beside it, in a table and
    in a stream.
    """
    if rows is not None:
        corpus = Corpus(rows, find_processor(rows))
    else:
        corpus = load_corpus(
            arguments.corpus, revision=arguments.corpus_revision, streaming=arguments.streaming
        )
    fraction = arguments.valid_fraction
    objectives = _load_objectives(arguments)
    columns = _list_read_columns(arguments, corpus)
    dataset: Any = corpus.dataset.select_columns([FEATURES_COLUMN, LENGTH_COLUMN, *columns])
    if isinstance(dataset, datasets.IterableDataset):
        stream: Any = pack_stream(dataset, columns)
        options = {"expected": False, "fraction": fraction}
        train = stream.filter(is_held_out, input_columns=[FEATURES_COLUMN], fn_kwargs=options)
        beginning = stream.take(int(MAX_STREAMED_VALID / fraction))
        rows = [row for row in beginning if is_held_out(row[FEATURES_COLUMN], fraction)]
        packed = [row[FEATURES_COLUMN] for row in rows]
        held: dict[str, Any] = {name: [row[name] for row in rows] for name in columns}
        held |= {FEATURES_COLUMN: build_features_column(packed)}
        valid = datasets.Dataset.from_dict({**held, LENGTH_COLUMN: count_nodes(packed)})
        counted = list(train.take(MAX_MOLECULES_COUNTED))
        sample = [row[FEATURES_COLUMN] for row in counted]
        read = {name: [row[name] for row in counted] for name in columns}
    else:
        chunks = dataset.with_format("arrow").iter(batch_size=_CHUNK_SIZE)
        all_packed = (it for chunk in chunks for it in pack_column(chunk[FEATURES_COLUMN]))
        held_out = [is_held_out(it, fraction) for it in all_packed]
        valid = dataset.select(np.flatnonzero(held_out))
        train = dataset.select(np.flatnonzero(~np.array(held_out)))
        places = np.linspace(0, len(train) - 1, min(len(train), MAX_MOLECULES_COUNTED))
        chosen = train.select(np.unique(places.astype(int)))
        sample = pack_dataset(chosen)
        read = {name: chosen[name][:] for name in columns}
    for part, is_empty in (("train", not sample), ("valid", not len(valid))):
        if is_empty:
            raise UserError(
                f"No molecule of {arguments.corpus!r} (of a stream: of its beginning) is in the "
                f"{part} part with --valid-fraction {arguments.valid_fraction}. Choose another "
                "one, for example 0.1, or give more molecules."
            )
    for name in {name for stage in arguments.stages.values() for name in stage}:
        if name in objectives:
            objectives[name].validate_corpus(corpus.processor)
        else:
            objectives[name] = OBJECTIVES[name].fit(
                sample, processor=corpus.processor, arguments=arguments, columns=read
            )
    ordered = {name: objectives[name] for name in OBJECTIVES if name in objectives}
    return PretrainingTask(train, valid, corpus.processor, ordered)


def _list_read_columns(arguments: PretrainingArguments, corpus: Corpus) -> list[str]:
    """Return the columns that objectives read beside the features, which the corpus has."""
    learned = {name for stage in arguments.stages.values() for name in stage}
    reads = {name: OBJECTIVES[name].columns for name in OBJECTIVES if name in learned}
    known = corpus.dataset.column_names or []
    for name, columns in reads.items():
        if missing := [column for column in columns if column not in known]:
            raise UserError(
                f"--objective {name} reads the column {missing[0]!r}, which {arguments.corpus!r} "
                "lacks. Featurize it with `rmat featurize`, for label_assays with --labels."
            )
    return list(dict.fromkeys(column for columns in reads.values() for column in columns))


def is_held_out(features: bytes, fraction: float, *, expected: bool = True) -> bool:
    """Return whether a packed molecule is, as expected, of the share of molecules in valid."""
    return (zlib.crc32(features) < fraction * 2**32) == expected


def _load_objectives(arguments: PretrainingArguments) -> dict[str, Objective]:
    """Return the objectives of the model to continue from; none if it has none."""
    if arguments.model == SCRATCH:
        return {}
    path = cached_file(
        find_checkpoint(arguments.model),
        TARGETS_FILE,
        revision=arguments.model_revision,
        _raise_exceptions_for_missing_entries=False,
    )
    if path is not None:
        return load_objectives(arguments.model, revision=arguments.model_revision)
    logger.warning(
        "%s has no %s: its heads start untrained, for this corpus.", arguments.model, TARGETS_FILE
    )
    return {}
