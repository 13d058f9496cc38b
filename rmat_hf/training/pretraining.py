"""run_pretraining(...): a featurized corpus → a model to finetune."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from transformers.trainer_utils import set_seed

from rmat_hf.loading import load_processor, read_checkpoint
from rmat_hf.model.modeling_rmat import RMatForPreTraining
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import (
    TrainingRun,
    find_last_complete_checkpoint,
    load_json,
    load_num_steps,
    name_work_dir,
    open_run,
    save_json,
    train_from_last_checkpoint,
)
from rmat_hf.training.arguments import SCRATCH, describe_arguments
from rmat_hf.training.objectives import save_objectives
from rmat_hf.training.pretraining_arguments import (
    PretrainingArguments,
    build_pretraining_config,
    build_stage_arguments,
    choose_precision,
)
from rmat_hf.training.pretraining_batches import (
    CorpusBatches,
    PretrainingCollator,
    StreamedBatches,
)
from rmat_hf.training.pretraining_card import save_pretraining_card
from rmat_hf.training.pretraining_task import PretrainingTask, build_pretraining_task
from rmat_hf.training.pretraining_trainer import PretrainingTrainer

ARGUMENTS_FILE = "pretraining_arguments.json"
STAGE_FILE = "stage.json"
MODEL_DIR = "model"


@dataclass(frozen=True)
class PretrainingResult:
    """What `run_pretraining` did.

    Args:
        output_dir (`Path`): The model folder.
        metrics (`dict`): Metrics of the valid part by stage, as from `Objective.compute_metrics`.
    """

    output_dir: Path
    metrics: dict[str, dict[str, Any]]


def run_pretraining(arguments: PretrainingArguments) -> PretrainingResult:
    """Pretrain R-MAT on featurized molecules and write a model to finetune.

    The folder gets weights, config, processor, the meaning of the outputs
    (`pretraining_targets.json`), `metrics.json`, arguments, the training log and a model card with
    loss curves. It appears when everything is done. Until then checkpoints lie beside it, in
    `<output_dir>.in_progress`, and `resume=True` continues from the last one, to the same weights.

    Under `torchrun` or `accelerate launch` the processes share the batches of the corpus.

    Args:
        arguments (`PretrainingArguments`): Corpus, model and training options.

    Returns:
        [`PretrainingResult`].

    Raises:
        UserError: If corpus, options or output folder do not allow the run.
    """
    work_dir = name_work_dir(arguments.output_dir)
    # joins the other processes
    shared = build_stage_arguments(arguments, work_dir, is_all_learned=True)
    arguments = replace(arguments, precision=choose_precision(arguments.precision))
    description = describe_arguments(arguments)
    is_main_process = shared.process_index == 0
    with open_run(arguments, description=description, is_main_process=is_main_process) as run:
        with shared.main_process_first(local=False):
            task = build_pretraining_task(arguments)
            heads = {it.head: it.describe_head() for it in task.objectives.values()}
            checkpoint = None
            if arguments.model != SCRATCH:
                checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
            config = build_pretraining_config(arguments, heads, checkpoint=checkpoint)
            run.prepare()
        reports: dict[str, dict[str, Any]] = {}
        for idx, (stage, learned) in enumerate(arguments.stages.items()):
            folder = run.work_dir / f"stage-{idx}"
            # written last, so a stage that has it is finished
            if not (folder / STAGE_FILE).is_file():
                if idx > 0:
                    checkpoint = read_checkpoint(run.work_dir / f"stage-{idx - 1}" / MODEL_DIR)
                set_seed(arguments.seed)
                if checkpoint is None:
                    model = RMatForPreTraining(config)
                else:
                    model = checkpoint.load_model(RMatForPreTraining, config=config)
                trainer = _build_trainer(
                    arguments, task, model=model, learned=learned, folder=folder
                )
                _run_stage(trainer, folder)
            reports[stage] = load_json(folder / STAGE_FILE)
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
    learned: Sequence[str],
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
    collator = PretrainingCollator(objectives, processor=task.processor, arguments=arguments)
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
    )


def _run_stage(trainer: PretrainingTrainer, folder: Path) -> None:
    """Train a stage, from the last checkpoint if there is one, and write its model and log."""
    train_from_last_checkpoint(trainer)
    trainer.evaluate()
    trainer.save_model(str(folder / MODEL_DIR))
    if trainer.is_world_process_zero():
        content = {"metrics": trainer.last_report, "log_history": trainer.state.log_history}
        save_json(folder / STAGE_FILE, content)
    trainer.accelerator.wait_for_everyone()


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
