"""run_finetuning(...): a table of SMILES and labels → a folder that predicts."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rdkit import Chem
from transformers.trainer import Trainer
from transformers.trainer_callback import EarlyStoppingCallback
from transformers.trainer_utils import EvalPrediction, set_seed
from transformers.training_args import TrainingArguments

from rmat_hf.data.training_table import DroppedRow
from rmat_hf.output_folder import (
    create_folder_atomically,
    exclusive_run,
    find_last_complete_checkpoint,
    name_work_dir,
    prepare_work_dir,
    train_from_checkpoint,
    validate_output_folder,
    validate_work_dir,
    was_overwriting,
)
from rmat_hf.training.arguments import (
    FinetuningArguments,
)
from rmat_hf.training.baselines import fit_baselines
from rmat_hf.training.collators import FinetuningCollator
from rmat_hf.training.finetuning_report import build_finetuning_report
from rmat_hf.training.hyperparameter_search import (
    TRIALS_FILE,
    search_hyperparameters,
    validate_search,
)
from rmat_hf.training.members import train_members
from rmat_hf.training.metrics import compute_metrics_for_problem
from rmat_hf.training.model_building import (
    build_finetuning_config,
    build_finetuning_model,
    choose_head_learning_rate,
)
from rmat_hf.training.run_folder import (
    describe_arguments,
    save_run_folder,
)
from rmat_hf.training.task import FinetuningTask, build_finetuning_task
from rmat_hf.training.tracker_logs import copy_tracker_logs
from rmat_hf.training.trainer import FinetuningTrainer
from rmat_hf.training.trainer_options import build_training_arguments, resolve_num_train_epochs

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
    validate_search(arguments)
    work_dir = name_work_dir(arguments.output_dir)
    training_arguments = build_training_arguments(arguments, work_dir)
    is_main_process = training_arguments.process_index == 0
    with exclusive_run(arguments.output_dir, is_main_process=is_main_process):
        return _run(arguments, training_arguments)


def _run(arguments: FinetuningArguments, training_arguments: TrainingArguments) -> FinetuningResult:
    output_dir, work_dir = Path(arguments.output_dir), name_work_dir(arguments.output_dir)
    overwrite = arguments.overwrite or (arguments.resume and was_overwriting(work_dir))
    is_main_process = training_arguments.process_index == 0
    description = describe_arguments(arguments)
    intent = {"overwrite": arguments.overwrite, "resume": arguments.resume}
    if is_main_process:
        validate_output_folder(output_dir, overwrite=overwrite)
        validate_work_dir(work_dir, description, **intent)
    task = build_finetuning_task(arguments)
    arguments = resolve_num_train_epochs(arguments, num_train_rows=len(task.split.train))
    build_finetuning_config(arguments, task)  # refuses what cannot be before anything is written
    # before training, because labels that no baseline can be fitted on should not cost a training
    baselines = _fit_baselines(arguments, task) if is_main_process else {}
    with training_arguments.main_process_first(local=False):
        if is_main_process:
            prepare_work_dir(work_dir, description, **intent)
    if arguments.hpo_trials:
        arguments = _search(arguments, task, work_dir=work_dir)
    trainer, log = _train(arguments, task, work_dir=work_dir)
    # choosing a checkpoint needs a defined metric, reporting does not
    trainer.compute_metrics = None
    report = build_finetuning_report(arguments, task, trainer=trainer, baselines=baselines)
    if is_main_process:
        with create_folder_atomically(output_dir, overwrite=overwrite) as folder:
            save_run_folder(
                folder,
                model=cast(Any, trainer.model),
                task=task,
                report=report,
                arguments=arguments,
                log_history=log,
            )
            copy_tracker_logs(work_dir, folder)
            if arguments.hpo_trials:
                shutil.copy(work_dir / TRIALS_FILE, folder)
        shutil.rmtree(work_dir)
    return FinetuningResult(output_dir, report.metrics, report.baselines, task.dropped)


def _train(
    arguments: FinetuningArguments, task: FinetuningTask, *, work_dir: Path
) -> tuple[Trainer, list[dict[str, Any]]]:
    """Return a `Trainer` with the best model, or the ensemble, and the training log."""

    def train_one(chosen: FinetuningArguments, parts: FinetuningTask, *, folder: Path) -> Trainer:
        checkpoint = find_last_complete_checkpoint(folder)
        set_seed(chosen.seed)
        # scaled as the whole task: the members of an ensemble share the scaling of the labels
        model = build_finetuning_model(chosen, task)
        options = build_training_arguments(chosen, folder)
        trainer = _build_trainer(chosen, parts, training_arguments=options, model=model)
        train_from_checkpoint(trainer, checkpoint)
        return trainer

    if arguments.num_members == 1:
        trainer = train_one(arguments, task, folder=work_dir)
        return trainer, trainer.state.log_history
    ensemble, log = train_members(arguments, task, work_dir=work_dir, train=train_one)
    options = build_training_arguments(arguments, work_dir)
    return _build_trainer(arguments, task, training_arguments=options, model=ensemble), log


def _search(
    arguments: FinetuningArguments, task: FinetuningTask, *, work_dir: Path
) -> FinetuningArguments:
    """Return the arguments with the setting that a search finds best."""
    trial_arguments = replace(arguments, report_to=["none"])
    return search_hyperparameters(
        arguments,
        build_model=lambda chosen: build_finetuning_model(chosen, task),
        build_trainer=lambda model_init: _build_trainer(
            arguments,
            task,
            training_arguments=build_training_arguments(trial_arguments, work_dir),
            model_init=model_init,
        ),
        folder=work_dir,
    )


def _build_trainer(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    training_arguments: TrainingArguments,
    **model_or_model_init: Any,
) -> Trainer:
    best_metric = str(training_arguments.metric_for_best_model).removeprefix("eval_")

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        metrics = compute_metrics_for_problem(
            arguments.problem_type,
            np.asarray(prediction.predictions),
            labels=np.asarray(prediction.label_ids),
            label_names=arguments.label_columns,
        )
        if metrics.get(best_metric, 0.0) is None:
            raise ValueError(
                f"{best_metric} is undefined on the valid part, which has too few rows or only one "
                "class, so no checkpoint can be chosen. Use another split."
            )
        return {name: value for name, value in metrics.items() if isinstance(value, float)}

    return FinetuningTrainer(
        **model_or_model_init,
        args=training_arguments,
        data_collator=FinetuningCollator(task.processor),
        train_dataset=task.select("train"),
        eval_dataset=task.select("valid"),
        processing_class=task.processor,
        compute_metrics=compute_metrics,
        callbacks=[EarlyStoppingCallback(arguments.early_stopping_patience)],
        head_learning_rate=choose_head_learning_rate(arguments),
        ema_decay=arguments.ema_decay,
    )


def _fit_baselines(
    arguments: FinetuningArguments, task: FinetuningTask
) -> dict[str, dict[str, Any]]:
    """Fit the baselines if they were asked for, on the molecules that the model sees."""
    if not arguments.with_baselines:
        return {}
    logger.info("Fitting the baselines.")
    molecules: list[str | Chem.Mol] = task.dataset["smiles"][:]
    if "mol" in task.dataset.column_names:
        molecules = [Chem.Mol(binary) for binary in task.dataset["mol"]]
    return fit_baselines(
        molecules,
        np.array(task.dataset["labels"][:], dtype=np.float64),
        split=task.split,
        problem_type=arguments.problem_type,
        label_names=arguments.label_columns,
        seed=arguments.seed,
    )
