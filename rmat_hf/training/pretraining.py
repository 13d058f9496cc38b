"""run_pretraining(...): a featurized corpus → a model to finetune."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
from accelerate import PartialState
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

from rmat_hf.loading import load_processor, read_checkpoint
from rmat_hf.machine import describe_machine
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForPreTraining
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import (
    create_folder_atomically,
    exclusive_run,
    find_last_complete_checkpoint,
    load_num_steps,
    name_work_dir,
    prepare_work_dir,
    save_json,
    train_from_checkpoint,
    validate_output_folder,
    validate_work_dir,
    was_overwriting,
)
from rmat_hf.training.arguments import SCRATCH
from rmat_hf.training.collators import PretrainingCollator
from rmat_hf.training.pretraining_arguments import (
    PretrainingArguments,
)
from rmat_hf.training.pretraining_batches import CorpusBatches, RepeatedBatches, StreamedBatches
from rmat_hf.training.pretraining_card import PretrainingReport, save_pretraining_card
from rmat_hf.training.pretraining_options import (
    build_pretraining_config,
    build_stage_arguments,
    describe_pretraining_arguments,
)
from rmat_hf.training.pretraining_task import PretrainingTask, build_pretraining_task
from rmat_hf.training.pretraining_trainer import PretrainingTrainer

logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "pretraining_arguments.json"
STAGE_FILE = "stage.json"
MODEL_DIR = "model"


@dataclass(frozen=True)
class PretrainingResult:
    """What `run_pretraining` did.

    Args:
        output_dir (`Path`): The model folder.
        metrics (`dict`): Metrics of the valid part by stage, as from `PretrainingMetrics`.
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
        ValueError: If corpus, options or output folder do not allow the run.
    """
    work_dir = name_work_dir(arguments.output_dir)
    training_arguments = build_stage_arguments(arguments, work_dir, stage=arguments.stages[0])
    is_main_process = training_arguments.process_index == 0
    with exclusive_run(arguments.output_dir, is_main_process=is_main_process):
        return _run(arguments, training_arguments)


def _run(
    arguments: PretrainingArguments, training_arguments: TrainingArguments
) -> PretrainingResult:
    output_dir, work_dir = Path(arguments.output_dir), name_work_dir(arguments.output_dir)
    overwrite = arguments.overwrite or (arguments.resume and was_overwriting(work_dir))
    description = describe_pretraining_arguments(arguments)
    intent = {"overwrite": arguments.overwrite, "resume": arguments.resume}
    is_main_process = training_arguments.process_index == 0
    if is_main_process:
        validate_output_folder(output_dir, overwrite=overwrite)
        validate_work_dir(work_dir, description, **intent)
    with training_arguments.main_process_first(local=False):
        task = build_pretraining_task(arguments)
        config = build_pretraining_config(arguments, task)
        if is_main_process:
            prepare_work_dir(work_dir, description, **intent)
    stages: dict[str, dict[str, Any]] = {}
    last_model = None
    for idx, stage in enumerate(arguments.stages):
        stage_dir = work_dir / f"stage-{idx}"
        # written last, so a stage that has it is finished
        if not (stage_dir / STAGE_FILE).is_file():
            _run_stage(
                _build_trainer(
                    arguments,
                    task,
                    stage=stage,
                    training_arguments=build_stage_arguments(arguments, stage_dir, stage=stage),
                    model=_load_model(arguments, config, stage_before=last_model),
                ),
                stage_dir,
            )
        stages[stage] = json.loads((stage_dir / STAGE_FILE).read_text(encoding="utf-8"))
        last_model = stage_dir / MODEL_DIR
    metrics = {stage: stages[stage]["metrics"] for stage in stages}
    # the others have read the stages that are removed now
    PartialState().wait_for_everyone()
    if is_main_process:
        with create_folder_atomically(output_dir, overwrite=overwrite) as folder:
            # of what FSDP has made of the class, Trainer saves the code of torch instead of ours
            RMatForPreTraining.from_pretrained(cast(Path, last_model)).save_pretrained(folder)
            load_processor(cast(Path, last_model)).save_pretrained(folder)
            task.targets.save(folder)
            save_json(folder / "metrics.json", metrics)
            save_json(folder / ARGUMENTS_FILE, description)
            logs = {stage: stages[stage]["log_history"] for stage in stages}
            save_json(folder / "training_log.json", logs)
            report = _build_report(task, arguments=description, stages=stages)
            save_pretraining_card(folder, report)
        shutil.rmtree(work_dir)
    return PretrainingResult(output_dir, metrics)


def _load_model(
    arguments: PretrainingArguments, config: RMatConfig, *, stage_before: Path | None
) -> RMatForPreTraining:
    """Return the model that a stage starts from."""
    set_seed(arguments.seed)
    if stage_before is not None:
        return read_checkpoint(stage_before).load_model(RMatForPreTraining, config=config)
    if arguments.model == SCRATCH:
        return RMatForPreTraining(config)
    checkpoint = read_checkpoint(arguments.model, revision=arguments.model_revision)
    return checkpoint.load_model(RMatForPreTraining, config=config)


def _run_stage(trainer: PretrainingTrainer, stage_dir: Path) -> None:
    """Train a stage, from the last checkpoint if there is one, and write its model and log."""
    checkpoint = find_last_complete_checkpoint(stage_dir)
    train_from_checkpoint(trainer, checkpoint)
    trainer.evaluate()
    trainer.save_model(str(stage_dir / MODEL_DIR))
    if trainer.is_world_process_zero():
        content = {"metrics": trainer.last_report, "log_history": trainer.state.log_history}
        save_json(stage_dir / STAGE_FILE, content)
    trainer.accelerator.wait_for_everyone()


def _build_trainer(
    arguments: PretrainingArguments,
    task: PretrainingTask,
    *,
    stage: str,
    training_arguments: TrainingArguments,
    model: RMatForPreTraining,
) -> PretrainingTrainer:
    limits = {"batch_size": arguments.batch_size, "max_pairs": arguments.max_pairs}
    num_nodes = {"valid": task.valid["num_nodes"][:]}
    train: CorpusBatches | RepeatedBatches
    if isinstance(task.train, datasets.IterableDataset):
        stream = StreamedBatches(
            task.train, multiple=training_arguments.world_size, seed=arguments.seed, **limits
        )
        checkpoint = find_last_complete_checkpoint(Path(str(training_arguments.output_dir)))
        num_steps = 0 if checkpoint is None else load_num_steps(checkpoint)
        train = RepeatedBatches(
            stream, num_skipped=num_steps * training_arguments.gradient_accumulation_steps
        )
    else:
        train = CorpusBatches(task.train)
        num_nodes["train"] = task.train["num_nodes"][:]
    # finetuning decides for itself whether descriptors help
    processor = RMatProcessor(**{**task.processor.to_dict(), "molecule_descriptors": None})
    return PretrainingTrainer(
        model=model,
        args=training_arguments,
        data_collator=PretrainingCollator(
            task.processor,
            task.targets,
            contexts=stage != "descriptors",
            descriptors=stage != "contexts",
            mask_ratio=arguments.mask_ratio,
            hides_distances=arguments.masked_distances == "hidden",
            seed=arguments.seed,
        ),
        train_dataset=train,
        eval_dataset=CorpusBatches(task.valid),
        processing_class=processor,
        targets=task.targets,
        num_nodes=num_nodes,
        **limits,
    )


def _describe_hardware() -> str:
    state = PartialState()
    machine = describe_machine(state.device)
    return f"{state.num_processes} processes, {machine['device']} {machine['device_name']}"


def _build_report(
    task: PretrainingTask, *, arguments: dict[str, Any], stages: dict[str, dict[str, Any]]
) -> PretrainingReport:
    is_table = isinstance(task.train, datasets.Dataset)
    return PretrainingReport(
        num_molecules=len(task.train) if is_table else None,
        num_valid=len(task.valid),
        arguments=arguments,
        metrics={stage: stages[stage]["metrics"] for stage in stages},
        logs={stage: stages[stage]["log_history"] for stage in stages},
        hardware=_describe_hardware(),
        geometry=task.processor.geometry,
        max_atoms=task.processor.max_atoms,
    )
