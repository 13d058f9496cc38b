"""A search over learning rate, dropout, weight decay and batch size, judged on valid."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from transformers.trainer import Trainer
from transformers.trainer_utils import SaveStrategy, set_seed

from rmat_hf.data.table_writer import ColumnKind, TableWriter
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.output_folder import save_json
from rmat_hf.training.arguments import (
    SCRATCH,
    FinetuningArguments,
)
from rmat_hf.training.run_folder import describe_arguments
from rmat_hf.training.trainer_options import (
    DEFAULT_LEARNING_RATES,
    load_json_fields,
)

if TYPE_CHECKING:
    import optuna

TRIALS_FILE = "hpo_trials.csv"
BEST_FILE = "hpo_best.json"
STUDY_NAME = "finetuning"
# The learning rate is searched this factor below and above the one that was asked for.
LEARNING_RATE_FACTOR = 5.0
MAX_DROPOUT = 0.3
WEIGHT_DECAY_RANGE = (1e-4, 1e-1)
BATCH_SIZES = (16, 32, 64)
# What is searched, as a flag of `rmat finetune`, and the field of `TrainingArguments` that it sets.
SEARCHED_FIELDS = {
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "batch_size": "per_device_train_batch_size",
}
SEARCHED_FLAGS = ("learning_rate", "dropout", "weight_decay", "batch_size")

BuildModel = Callable[[FinetuningArguments], RMatForSequenceClassification]
BuildTrialModel = Callable[["optuna.Trial | None"], RMatForSequenceClassification]


def validate_search(arguments: FinetuningArguments) -> None:
    """Raise a `ValueError` if optuna is missing, or a file fixes what is searched."""
    if arguments.hpo_trials == 0:
        return
    if importlib.util.find_spec("optuna") is None:
        raise ValueError("--hpo-trials needs optuna: pip install 'rmat-hf[hpo]'")
    overrides = load_json_fields(arguments.training_arguments)
    fixed = sorted(set(SEARCHED_FIELDS.values()) & set(overrides))
    if fixed:
        raise ValueError(
            f"{arguments.training_arguments!r} sets {', '.join(fixed)}, which --hpo-trials "
            "searches. Leave one of them out."
        )


def search_hyperparameters(
    arguments: FinetuningArguments,
    *,
    build_model: BuildModel,
    build_trainer: Callable[[BuildTrialModel], Trainer],
    folder: Path,
) -> FinetuningArguments:
    """Train with several settings and return the arguments with the one that did best on valid.

    A trial is a whole run with early stopping and the seed of the arguments, judged by its best
    epoch, so that a run with the returned arguments repeats the best trial. The first trial is the
    arguments as they are. Test is not looked at. A finished search of the
    same arguments is not repeated.

    Args:
        arguments (`FinetuningArguments`): `hpo_trials` is the number of trials.
        build_model (`Callable`): Returns an untrained model for arguments.
        build_trainer (`Callable`): Returns a `Trainer` for a `model_init`.
        folder (`Path`): Gets the table of the trials and, when it is complete, the best setting.

    Raises:
        ValueError: If several processes train together.
    """
    best_file = folder / BEST_FILE
    described = describe_arguments(arguments)
    search = load_json_fields(str(best_file)) if best_file.is_file() else {}
    if search.get("arguments") != described:
        study = _run_study(arguments, build_model=build_model, build_trainer=build_trainer)
        _save_trials(study, folder / TRIALS_FILE)
        search = {"arguments": described, "best": study.best_params}
        save_json(best_file, search)
    return replace(arguments, **search["best"])


def _run_study(
    arguments: FinetuningArguments,
    *,
    build_model: BuildModel,
    build_trainer: Callable[[BuildTrialModel], Trainer],
) -> "optuna.Study":
    import optuna

    def build_trial_model(trial: "optuna.Trial | None") -> RMatForSequenceClassification:
        # the random numbers of a run without a search: first for the weights, then for training
        set_seed(arguments.seed)
        chosen = arguments if trial is None else replace(arguments, **_suggest(trial, arguments))
        model = build_model(chosen)
        set_seed(arguments.seed)
        return model

    def suggest_training_fields(trial: "optuna.Trial") -> dict[str, float]:
        values = _suggest(trial, arguments)
        return {field: values[flag] for flag, field in SEARCHED_FIELDS.items()}

    def compute_objective(metrics: dict[str, float]) -> float:
        # Trainer has not compared this evaluation with the best one of the trial yet
        best_so_far = trainer.state.best_metric
        values = [metrics[metric]] if best_so_far is None else [metrics[metric], best_so_far]
        return max(values) if trainer.args.greater_is_better else min(values)

    trainer = build_trainer(build_trial_model)
    if trainer.args.world_size > 1:
        raise ValueError("--hpo-trials runs in one process: search first, without torchrun.")
    # the best trial is trained again, so nothing needs to be kept of any
    trainer.args.save_strategy = SaveStrategy.NO
    metric = "eval_" + str(trainer.args.metric_for_best_model).removeprefix("eval_")
    direction: Literal["minimize", "maximize"] = (
        "maximize" if trainer.args.greater_is_better else "minimize"
    )
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name=STUDY_NAME, storage=storage, direction=direction)
    config = cast(Any, trainer.model).config
    study.enqueue_trial(_list_defaults(arguments, dropout=config.hidden_dropout_prob))
    trainer.hyperparameter_search(
        hp_space=suggest_training_fields,
        compute_objective=compute_objective,
        n_trials=arguments.hpo_trials,
        direction=direction,
        backend="optuna",
        study_name=STUDY_NAME,
        storage=storage,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=arguments.seed),
        # batch sizes differ, so an epoch is not the same step in every trial
        pruner=optuna.pruners.NopPruner(),
    )
    return study


def _suggest(trial: "optuna.Trial", arguments: FinetuningArguments) -> dict[str, Any]:
    """Return the values of a trial by flag; the same ones if called again."""
    learning_rate = _get_learning_rate(arguments)
    return {
        "learning_rate": trial.suggest_float(
            "learning_rate",
            learning_rate / LEARNING_RATE_FACTOR,
            learning_rate * LEARNING_RATE_FACTOR,
            log=True,
        ),
        "dropout": trial.suggest_float("dropout", 0.0, MAX_DROPOUT),
        "weight_decay": trial.suggest_float("weight_decay", *WEIGHT_DECAY_RANGE, log=True),
        "batch_size": trial.suggest_categorical(
            "batch_size", sorted({*BATCH_SIZES, arguments.batch_size})
        ),
    }


def _list_defaults(arguments: FinetuningArguments, *, dropout: float) -> dict[str, Any]:
    """Return the values that the run would have without a search, as near as the space has them."""
    low, high = WEIGHT_DECAY_RANGE
    return {
        "learning_rate": _get_learning_rate(arguments),
        "dropout": min(dropout, MAX_DROPOUT),
        "weight_decay": min(max(arguments.weight_decay, low), high),
        "batch_size": arguments.batch_size,
    }


def _get_learning_rate(arguments: FinetuningArguments) -> float:
    if arguments.learning_rate is not None:
        return arguments.learning_rate
    return DEFAULT_LEARNING_RATES[arguments.model == SCRATCH]


def _save_trials(study: "optuna.Study", path: Path) -> None:
    """Write one row per trial: its number, values and best metric on valid."""
    trials = study.get_trials(deepcopy=False)
    kinds: dict[str, ColumnKind] = {
        "trial": "integer",
        "is_best": "integer",
        "valid_metric": "number",
    }
    kinds |= {name: "integer" if name == "batch_size" else "number" for name in SEARCHED_FLAGS}
    columns: dict[str, list[Any]] = {
        "trial": [trial.number for trial in trials],
        "is_best": [int(trial.number == study.best_trial.number) for trial in trials],
        "valid_metric": [trial.value for trial in trials],
        **{name: [trial.params[name] for trial in trials] for name in SEARCHED_FLAGS},
    }
    with TableWriter(path, added_columns=kinds) as writer:
        writer.write(columns)
