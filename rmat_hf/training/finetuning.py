"""run_finetuning(...): a table of SMILES and labels → a folder that predicts."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.trainer import Trainer
from transformers.trainer_callback import EarlyStoppingCallback
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint, set_seed

from rmat_hf.atomic_output import OutputError, create_folder_atomically, validate_output_folder
from rmat_hf.configuration_rmat import RMatConfig
from rmat_hf.data.collators import FinetuningCollator
from rmat_hf.data.loading import DroppedRow
from rmat_hf.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training.arguments import FinetuningArguments, build_training_arguments
from rmat_hf.training.baselines import fit_baselines
from rmat_hf.training.metrics import compute_metrics_for_problem
from rmat_hf.training.model_building import build_finetuning_model
from rmat_hf.training.model_card import FinetuningReport
from rmat_hf.training.run_folder import (
    ARGUMENTS_FILE,
    copy_tracker_logs,
    describe_arguments,
    name_source,
    save_json,
    save_run_folder,
)
from rmat_hf.training.task import PARTS, FinetuningTask, build_finetuning_task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuningResult:
    """What `run_finetuning` did.

    Args:
        output_dir (`Path`): The model folder.
        metrics (`dict`): Metrics of train, valid and test, in the units of the labels.
        baselines (`dict`): The same for every baseline; empty unless asked for.
        dropped (`list[DroppedRow]`): Rows that were not used, with their reasons.
    """

    output_dir: Path
    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    dropped: list[DroppedRow]


def run_finetuning(arguments: FinetuningArguments) -> FinetuningResult:
    """Finetune R-MAT on labeled molecules and write the whole predictor to a folder.

    The folder gets weights, config with label scaling, processor, `metrics.json`, `split.csv`,
    `predictions.csv`, `dropped_rows.csv`, the training log and a model card with a plot. It appears
    when everything is done. Until then checkpoints lie beside it, in `<output_dir>.in_progress`.

    Args:
        arguments (`FinetuningArguments`): Data, model and training options.

    Returns:
        [`FinetuningResult`].

    Raises:
        ValueError: If data, options or output folder do not allow the run.
    """
    output_dir = Path(arguments.output_dir)
    validate_output_folder(output_dir, overwrite=arguments.overwrite)
    _validate_work_dir(arguments)
    task = build_finetuning_task(arguments)
    set_seed(arguments.seed)
    model = build_finetuning_model(arguments, task)
    work_dir = _prepare_work_dir(arguments)
    trainer = _build_trainer(arguments, task, model=model, work_dir=work_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work_dir)))

    report = _build_report(arguments, task, trainer=trainer, config=model.config)
    with create_folder_atomically(output_dir, overwrite=arguments.overwrite) as folder:
        save_run_folder(
            folder,
            model=model,
            task=task,
            report=report,
            arguments=arguments,
            state=trainer.state,
        )
        copy_tracker_logs(work_dir, folder)
    shutil.rmtree(work_dir)
    return FinetuningResult(output_dir, report.metrics, report.baselines, task.dropped)


def _name_work_dir(arguments: FinetuningArguments) -> Path:
    output_dir = Path(arguments.output_dir)
    return output_dir.with_name(output_dir.name + ".in_progress")


def _validate_work_dir(arguments: FinetuningArguments) -> None:
    """Raise if an interrupted run is in the way, or is not the one to resume."""
    work_dir = _name_work_dir(arguments)
    arguments_file = work_dir / ARGUMENTS_FILE
    if not arguments_file.is_file() or arguments.overwrite:
        return
    if not arguments.resume:
        raise OutputError(
            f"An interrupted run lies in {str(work_dir)!r}. "
            "Pass --resume to continue it, or --overwrite to start anew."
        )
    earlier = json.loads(arguments_file.read_text(encoding="utf-8"))
    now = describe_arguments(arguments)
    changed = sorted(name for name in now if now[name] != earlier.get(name))
    if changed:
        raise OutputError(
            f"Cannot resume: {', '.join(changed)} differ from the interrupted run. "
            "Repeat its arguments, or pass --overwrite to start anew."
        )


def _prepare_work_dir(arguments: FinetuningArguments) -> Path:
    """Return the folder of the checkpoints, empty unless a run is resumed."""
    work_dir = _name_work_dir(arguments)
    if not arguments.resume:
        shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    save_json(work_dir / ARGUMENTS_FILE, describe_arguments(arguments))
    return work_dir


def _build_trainer(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    model: RMatForSequenceClassification,
    work_dir: Path,
) -> Trainer:
    label_names = model.config.label_columns
    training_arguments = build_training_arguments(arguments, work_dir)
    best_metric = str(training_arguments.metric_for_best_model).removeprefix("eval_")

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        metrics = compute_metrics_for_problem(
            arguments.problem_type,
            np.asarray(prediction.predictions),
            labels=np.asarray(prediction.label_ids),
            label_names=label_names,
        )
        if metrics.get(best_metric, 0.0) is None:
            raise ValueError(
                f"{best_metric} is undefined on the valid part, which has too few rows or only one "
                "class, so no checkpoint can be chosen. Use another split."
            )
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    return Trainer(
        model=model,
        args=training_arguments,
        data_collator=FinetuningCollator(task.processor),
        train_dataset=task.select("train"),
        eval_dataset=task.select("valid"),
        processing_class=task.processor,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(arguments.early_stopping_patience)],
    )


def _build_report(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    trainer: Trainer,
    config: RMatConfig,
) -> FinetuningReport:
    """Score the best model and the baselines on every part."""
    labels = {part: task.labels(part) for part in PARTS}
    logits = {part: np.asarray(trainer.predict(task.select(part)).predictions) for part in PARTS}
    metrics = {
        part: compute_metrics_for_problem(
            arguments.problem_type,
            logits[part],
            labels=labels[part],
            label_names=config.label_columns,
        )
        for part in PARTS
    }
    baselines = {}
    if arguments.with_baselines:
        logger.info("Fitting the baselines.")
        baselines = fit_baselines(
            task.dataset["smiles"][:],
            np.array(task.dataset["labels"][:], dtype=np.float64),
            split=task.split,
            problem_type=arguments.problem_type,
            label_names=config.label_columns,
            seed=arguments.seed,
        )
    return FinetuningReport(
        config=config,
        dataset=name_source(arguments.dataset),
        split=arguments.split,
        metrics=metrics,
        baselines=baselines,
        labels=labels,
        predictions=logits,
        num_dropped=len(task.dropped),
    )
