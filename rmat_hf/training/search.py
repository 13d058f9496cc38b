"""A search over learning rate, dropout, weight decay and batch size, judged on valid."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer import Trainer
from transformers.trainer_utils import SaveStrategy

from rmat_hf.errors import UserError
from rmat_hf.output_folder import load_json, save_json
from rmat_hf.training.arguments import (
    TRIALS_FILE,
    FinetuningArguments,
    describe_arguments,
    load_json_fields,
)

if TYPE_CHECKING:
    import optuna

PROGRESS_FILE = "hpo_progress.json"
# The learning rate is searched this factor below and above the one that was asked for.
LEARNING_RATE_FACTOR = 5.0
MAX_DROPOUT = 0.3
WEIGHT_DECAY_RANGE = (1e-4, 1e-1)
BATCH_SIZES = (16, 32, 64)
# What is searched, as flags of `rmat finetune`, and the training arguments that they set.
SEARCHED_FLAGS = ("learning_rate", "dropout", "weight_decay", "batch_size")
SEARCHED_FIELDS = {"learning_rate", "weight_decay", "per_device_train_batch_size"}


def validate_search(arguments: FinetuningArguments, *, num_processes: int = 1) -> None:
    """Raise a `UserError` if a search cannot run: before anything is computed."""
    overrides = load_json_fields(arguments.training_arguments)
    fixed = sorted(SEARCHED_FIELDS & set(overrides))
    problem = None
    if importlib.util.find_spec("optuna") is None:
        problem = "needs optuna: pip install 'rmat-hf[hpo]'"
    elif fixed:
        problem = f"searches {', '.join(fixed)}, which {arguments.training_arguments} sets: drop it"
    elif num_processes > 1:
        problem = "runs in one process: search first, without torchrun"
    if problem is not None:
        raise UserError(f"--hpo-trials {problem}.")


def search_hyperparameters(
    arguments: FinetuningArguments,
    *,
    build_trainer: Callable[[FinetuningArguments], Trainer],
    greater_is_better: bool,
    dropout: float,
    folder: Path,
) -> FinetuningArguments:
    """Train with several settings and return the arguments with the one that did best on valid.

    A trial is a whole run with early stopping and the seed of the arguments, judged by the epoch
    that it keeps, so that a run with the returned arguments repeats the best trial. The first trial
    is the arguments as they are, with the dropout of the model. Test is not looked at. An
    interrupted search of the same arguments goes on after its last finished trial, with the
    settings that it would have tried. The folder gets the table of the trials.
    """
    import optuna

    progress_file, described = folder / PROGRESS_FILE, describe_arguments(arguments)
    progress = load_json(progress_file) if progress_file.is_file() else {}
    # the sampler is asked again for finished trials, so that it goes on with the same numbers
    values: list[float] = progress["values"] if progress.get("arguments") == described else []

    def run_trial(trial: "optuna.Trial") -> float:
        chosen = replace(arguments, **_suggest(trial, arguments))
        if trial.number == len(values):
            trainer = build_trainer(replace(chosen, report_to=["none"]))
            # the best trial is trained again, so nothing needs to be kept of any
            trainer.args.save_strategy = SaveStrategy.NO
            trainer.train()
            values.append(_read_metric(trainer))
            save_json(progress_file, {"arguments": described, "values": values})
        return values[trial.number]

    study = optuna.create_study(
        direction="maximize" if greater_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=arguments.seed),
    )
    low, high = WEIGHT_DECAY_RANGE
    study.enqueue_trial(
        {
            "learning_rate": arguments.learning_rate,
            "dropout": min(dropout, MAX_DROPOUT),
            "weight_decay": min(max(arguments.weight_decay or 0.0, low), high),
            "batch_size": arguments.batch_size,
        }
    )
    study.optimize(run_trial, n_trials=arguments.hpo_trials)
    table = study.trials_dataframe(attrs=("number", "value", "params"))
    table = table.rename(columns=lambda name: name.removeprefix("params_"))
    table = table.rename(columns={"number": "trial", "value": "valid_metric"})
    table.insert(1, "is_best", (table["trial"] == study.best_trial.number).astype(int))
    columns = ["trial", "is_best", "valid_metric", *SEARCHED_FLAGS]
    table[columns].to_csv(folder / TRIALS_FILE, index=False)
    return replace(arguments, **study.best_params)


def _read_metric(trainer: Trainer) -> float:
    """Return the metric on valid of the epoch that a training keeps."""
    if trainer.args.load_best_model_at_end:
        return float(cast(float, trainer.state.best_metric))
    name = f"eval_{str(trainer.args.metric_for_best_model).removeprefix('eval_')}"
    return float(next(it[name] for it in reversed(trainer.state.log_history) if name in it))


def _suggest(trial: "optuna.Trial", arguments: FinetuningArguments) -> dict[str, Any]:
    center = arguments.learning_rate or 0.0
    low, high = center / LEARNING_RATE_FACTOR, center * LEARNING_RATE_FACTOR
    sizes = sorted({*BATCH_SIZES, cast(int, arguments.batch_size)})
    return {
        "learning_rate": trial.suggest_float("learning_rate", low, high, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, MAX_DROPOUT),
        "weight_decay": trial.suggest_float("weight_decay", *WEIGHT_DECAY_RANGE, log=True),
        "batch_size": trial.suggest_categorical("batch_size", sizes),
    }
