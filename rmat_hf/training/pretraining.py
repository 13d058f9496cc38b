"""run_pretraining(...): a featurized corpus → a model to finetune."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.trainer_utils import set_seed
from transformers.training_args import TrainingArguments

from rmat_hf.atomic_output import create_folder_atomically, save_json, validate_output_folder
from rmat_hf.configuration_rmat import RMatConfig
from rmat_hf.data.collators import PretrainingCollator
from rmat_hf.data.pretraining_batches import CorpusBatches, RepeatedBatches, StreamedBatches
from rmat_hf.model_loading import load_config, load_for_pretraining
from rmat_hf.modeling_rmat import RMatForPreTraining
from rmat_hf.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import SCRATCH
from rmat_hf.training.checkpoints import (
    find_last_complete_checkpoint,
    load_num_steps,
    name_work_dir,
    prepare_work_dir,
    validate_work_dir,
    was_overwriting,
)
from rmat_hf.training.pretraining_arguments import (
    PRETRAINING_ARCHITECTURE,
    PretrainingArguments,
)
from rmat_hf.training.pretraining_card import PretrainingReport, save_pretraining_card
from rmat_hf.training.pretraining_task import PretrainingTask, build_pretraining_task
from rmat_hf.training.pretraining_trainer import PretrainingTrainer
from rmat_hf.training.run_folder import name_source
from rmat_hf.training.trainer_options import load_json_fields

logger = logging.getLogger(__name__)

ARGUMENTS_FILE = "pretraining_arguments.json"
STAGE_FILE = "stage.json"
MODEL_DIR = "model"
LOGS_PER_EVALUATION = 10


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
    output_dir, work_dir = Path(arguments.output_dir), name_work_dir(arguments.output_dir)
    overwrite = arguments.overwrite or (arguments.resume and was_overwriting(work_dir))
    description = describe_pretraining_arguments(arguments)
    intent = {"overwrite": arguments.overwrite, "resume": arguments.resume}
    training_arguments = build_stage_arguments(arguments, work_dir, stage=arguments.stages[0])
    is_main_process = training_arguments.process_index == 0
    if is_main_process:
        validate_output_folder(output_dir, overwrite=overwrite)
        validate_work_dir(work_dir, description, **intent)
    with training_arguments.main_process_first(local=False):
        task = build_pretraining_task(arguments)
        build_pretraining_config(arguments, task)  # refuses what cannot be before it is written
        if is_main_process:
            prepare_work_dir(work_dir, description, **intent)
    stages: dict[str, dict[str, Any]] = {}
    last_model = None
    for idx, stage in enumerate(arguments.stages):
        stage_dir = work_dir / f"stage-{idx}"
        # written last, so a stage that has it is finished
        if not (stage_dir / STAGE_FILE).is_file():
            _run_stage(arguments, task, stage=stage, stage_dir=stage_dir, start=last_model)
        stages[stage] = json.loads((stage_dir / STAGE_FILE).read_text(encoding="utf-8"))
        last_model = stage_dir / MODEL_DIR
    metrics = {stage: stages[stage]["metrics"] for stage in stages}
    if is_main_process:
        with create_folder_atomically(output_dir, overwrite=overwrite) as folder:
            shutil.copytree(
                cast(Path, last_model),
                folder,
                ignore=shutil.ignore_patterns("training_args.bin"),
                dirs_exist_ok=True,
            )
            task.targets.save(folder)
            save_json(folder / "metrics.json", metrics)
            save_json(folder / ARGUMENTS_FILE, description)
            logs = {stage: stages[stage]["log_history"] for stage in stages}
            save_json(folder / "training_log.json", logs)
            save_pretraining_card(folder, _build_report(arguments, task, stages=stages))
        shutil.rmtree(work_dir)
    return PretrainingResult(output_dir, metrics)


def describe_pretraining_arguments(arguments: PretrainingArguments) -> dict[str, Any]:
    """Return what decides the result, without paths of this machine or what only starts it."""
    fields = asdict(arguments)
    for name in ("overwrite", "resume", "num_workers"):
        del fields[name]
    for name in ("corpus", "model", "output_dir"):
        fields[name] = name_source(fields[name])
    for name in ("model_config", "training_arguments"):
        fields[name] = load_json_fields(fields[name])
    return fields


def build_pretraining_config(arguments: PretrainingArguments, task: PretrainingTask) -> RMatConfig:
    """Return the architecture to pretrain, with as many outputs as there are targets.

    Raises:
        ValueError: If the model cannot be loaded or a configuration field is unknown.
    """
    if arguments.model == SCRATCH:
        fields = dict(PRETRAINING_ARCHITECTURE)
    else:
        fields = load_config(arguments.model, revision=arguments.model_revision).get_architecture()
    overrides = load_json_fields(arguments.model_config)
    unknown = sorted(set(overrides) - set(RMatConfig.list_architecture_fields()))
    if unknown:
        raise ValueError(
            f"{arguments.model_config!r} has unknown fields {unknown}. "
            f"Known: {RMatConfig.list_architecture_fields()}."
        )
    quantiles = task.targets.quantiles
    fields |= overrides | {
        "num_molecule_descriptors": 0,
        "num_atom_contexts": len(task.targets.vocabulary),
        "num_descriptor_labels": len(quantiles.names) if quantiles is not None else 1,
    }
    try:
        return RMatConfig(**fields)
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{arguments.model_config!r}: {reason}") from error


def build_stage_arguments(
    arguments: PretrainingArguments, stage_dir: Path, *, stage: str
) -> TrainingArguments:
    """Return the `TrainingArguments` of a stage, overridden by `--training-arguments`."""
    share = 1 / arguments.num_evaluations
    fields = {
        # an item of the data sets is a batch
        "per_device_train_batch_size": 1,
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "learning_rate": arguments.learning_rate,
        "num_train_epochs": arguments.num_train_epochs,
        "max_steps": arguments.max_steps or -1,
        "weight_decay": arguments.weight_decay,
        "warmup_steps": arguments.warmup_ratio,
        "lr_scheduler_type": "cosine",
        "bf16": arguments.precision == "bfloat16",
        "use_cpu": not torch.accelerator.is_available(),
        "eval_strategy": "steps",
        "eval_steps": share,
        "save_strategy": "steps",
        "save_steps": share,
        "save_total_limit": 1,
        "logging_steps": share / LOGS_PER_EVALUATION,
        "seed": arguments.seed,
        "report_to": arguments.report_to,
        "dataloader_num_workers": arguments.num_workers,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        # every process reads whole batches of a stream; what it does not learn has no gradient
        "accelerator_config": {"dispatch_batches": False},
        "ddp_find_unused_parameters": stage != "joint",
        "remove_unused_columns": False,
        **load_json_fields(arguments.training_arguments),
    }
    try:
        return TrainingArguments(output_dir=str(stage_dir), **fields)
    except (TypeError, ValueError) as error:
        source = arguments.training_arguments or "Training options"
        raise ValueError(f"{source}: {error}.") from error


def _run_stage(
    arguments: PretrainingArguments,
    task: PretrainingTask,
    *,
    stage: str,
    stage_dir: Path,
    start: Path | None,
) -> None:
    """Train a stage, from the last checkpoint if there is one, and write its model and log."""
    set_seed(arguments.seed)
    config = build_pretraining_config(arguments, task)
    source = start or (None if arguments.model == SCRATCH else arguments.model)
    if source is None:
        model = RMatForPreTraining(config)
    else:
        revision = arguments.model_revision if start is None else None
        model = load_for_pretraining(source, config=config, revision=revision)
    training_arguments = build_stage_arguments(arguments, stage_dir, stage=stage)
    checkpoint = find_last_complete_checkpoint(stage_dir)
    trainer = _build_trainer(
        arguments,
        task,
        stage=stage,
        training_arguments=training_arguments,
        model=model,
        checkpoint=checkpoint,
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
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
    checkpoint: Path | None,
) -> PretrainingTrainer:
    limits = {"batch_size": arguments.batch_size, "max_pairs": arguments.max_pairs}
    num_nodes = {"valid": task.valid["num_nodes"][:]}
    train: CorpusBatches | RepeatedBatches
    if isinstance(task.train, datasets.IterableDataset):
        stream = StreamedBatches(
            task.train, multiple=training_arguments.world_size, seed=arguments.seed, **limits
        )
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
            seed=arguments.seed,
        ),
        train_dataset=train,
        eval_dataset=CorpusBatches(task.valid),
        processing_class=processor,
        targets=task.targets,
        num_nodes=num_nodes,
        **limits,
    )


def _build_report(
    arguments: PretrainingArguments, task: PretrainingTask, *, stages: dict[str, dict[str, Any]]
) -> PretrainingReport:
    is_table = isinstance(task.train, datasets.Dataset)
    return PretrainingReport(
        corpus=name_source(arguments.corpus),
        num_molecules=len(task.train) if is_table else None,
        num_valid=len(task.valid),
        base_model=name_source(arguments.model),
        arguments=describe_pretraining_arguments(arguments),
        metrics={stage: stages[stage]["metrics"] for stage in stages},
        logs={stage: stages[stage]["log_history"] for stage in stages},
        geometry=task.processor.geometry,
        max_atoms=task.processor.max_atoms,
        license_name=arguments.license,
    )
