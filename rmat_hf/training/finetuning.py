"""run_finetuning(...): a table of SMILES and labels → a folder that predicts."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from rdkit import Chem
from transformers.trainer import Trainer
from transformers.trainer_callback import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from rmat_hf.adapters import is_adapted, list_fields, load_adapter_weights, save_model
from rmat_hf.data.featurization import LENGTH_COLUMN, drop_molecule_inputs
from rmat_hf.data.frames import build_dataset, name_dataset
from rmat_hf.data.labels import restore_atom_order
from rmat_hf.data.measurements import (
    count_bounds,
    describe_measured,
    read_covariates,
    read_exact_labels,
)
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.stored_features import pack_dataset
from rmat_hf.data.table_writer import (
    ATOM_KINDS,
    ColumnKind,
    Predictions,
    TableWriter,
    describe_prediction_columns,
    group_cells,
)
from rmat_hf.data.training_table import DroppedRow, Rows
from rmat_hf.flags import build_arguments
from rmat_hf.loading import Checkpoint, load_predictor
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.losses_rmat import compute_probabilities, compute_spread
from rmat_hf.model.transforms_rmat import undo_label_transforms
from rmat_hf.output_folder import name_work_dir, open_run, save_json
from rmat_hf.training.arguments import (
    ARGUMENTS_FILE,
    STACK_WITH_NETWORK,
    STACKS,
    TRIALS_FILE,
    FinetuningArguments,
    describe_arguments,
)
from rmat_hf.training.kernel_head import fit_with_held_out, refuse_too_many
from rmat_hf.training.metrics import compute_metrics_for_problem
from rmat_hf.training.model_card import save_model_card
from rmat_hf.training.preparation import choose_head, prepare_arguments
from rmat_hf.training.recipe import (
    PARTS,
    FinetuningTask,
    build_finetuning_config,
    build_finetuning_model,
    build_finetuning_processor,
    build_finetuning_task,
    build_training_arguments,
    fold_known_rows,
    hold_folds_out,
    resolve_defaults,
    split_for_members,
)
from rmat_hf.training.report import (
    ROW_FILES,
    FinetuningReport,
    describe_rows,
    describe_run,
    name_row,
    save_run_report,
)
from rmat_hf.training.stack_head import describe_shares, fit_stack_with_held_out
from rmat_hf.training.trainer import MODEL_DIR, RMatTrainer, show_phase, train_stage
from rmat_hf.training.trust import HeldOut, fit_trust, predict_trust

logger = logging.getLogger(__name__)

ROW_COLUMNS: dict[str, ColumnKind] = {"row": "integer", "smiles": "text", "split": "text"}
# Where `Trainer` lets TensorBoard write; the names of its files tell that of the machine.
TENSORBOARD_DIR = "runs"
# What is fitted in seconds on a frozen encoder, and says of each row what it does without it.
FITTED_HEADS: dict[str, Any] = {
    "kernel": fit_with_held_out,
    **dict.fromkeys(STACKS, fit_stack_with_held_out),
}


@dataclass(frozen=True)
class FinetuningResult:
    """What `run_finetuning` did.

    Args:
        output_dir (`Path`): The model folder.
        metrics (`dict`): Metrics of train, valid and test, in the units of the labels.
            With folds `"out_of_fold"` has every row of train and valid, predicted without it.
        baselines (`dict`): The same for every baseline; empty unless asked for.
        dropped (`list[DroppedRow]`): Rows that were not used, with their reasons.
        summary (`str`): How good the model is on the test part, and beside what: a table in
            Markdown, with intervals, and sentences; and how many labels are bounds, rows left out.
        head (`str`): What learned, and why it was this.
        notes (`list[str]`): What was done with labels: bounds, weights, replicates.
    """

    output_dir: Path
    metrics: dict[str, dict[str, Any]]
    baselines: dict[str, dict[str, Any]]
    dropped: list[DroppedRow]
    summary: str
    head: str = ""
    notes: list[str] = field(default_factory=list)


def finetune(
    dataset: str | Path | Rows | pd.DataFrame,
    *,
    label_columns: Sequence[str] = (),
    output_dir: str | Path,
    peft_config: Any = None,
    **options: Any,
) -> FinetuningResult:
    """Finetune R-MAT on a table of SMILES and labels, as `rmat finetune` does.

    Args:
        dataset (`str`, `Path`, `pandas.DataFrame`, `datasets.Dataset` or `IterableDataset`):
            CSV, Parquet or SDF file, folder of `save_to_disk`, `"freesolv"`, the id of a data set
            on the Hub, or rows. Those that [`featurize_dataset`] has made, one's own or somebody
            else's, are not featurized again.
        label_columns (`Sequence[str]`, *optional*):
            Columns with the labels; an empty cell is a missing one. By default all of numbers, or
            of yes and no (classes beside numbers), except those that count or name the rows. With
            `level="atom"` a cell has those of all heavy atoms, in the order of the SMILES: a list,
            JSON in a CSV file, or the atom property of an SDF file, `"atom.dprop.NAME"`.
        output_dir (`str` or `Path`):
            Folder to write: the model, its processor, `metrics.json` and `predictions.csv` in the
            units of the labels, and a model card.
        peft_config (`peft.LoraConfig`, *optional*):
            Trains and saves an adapter and the head alone. `peft="lora"` has our defaults.
        options: The flags of `rmat finetune` with underscores, as `split="scaffold"`,
            `problem_type="multi_label_classification"`, `label_units=["kcal/mol"]` or `seed=1`; a
            `dict` where the command takes JSON.

    Returns:
        [`FinetuningResult`], with `metrics` by part, in the units of the labels.

    Raises:
        TypeError: There is no such option.
        UserError: Data, options or output folder do not allow the run.

    Example:
    ```python
    >>> from datasets import Dataset
    >>> from rmat_hf import finetune, predict
    >>> table = Dataset.from_dict({"smiles": ["C" * n for n in range(1, 31)], "y": range(30)})
    >>> result = finetune(
    ...     table,
    ...     label_columns=["y"],
    ...     output_dir=folder / "run",
    ...     num_train_epochs=1,
    ...     num_workers=0,
    ... )
    >>> sorted(result.metrics)
    ['test', 'train', 'valid']
    >>> predict(result.output_dir, ["CCCC"]).values.shape
    (1, 1)

    ```
    """
    fields = {"label_columns": label_columns, "output_dir": output_dir, **options}
    if isinstance(dataset, pd.DataFrame):
        dataset = build_dataset(dataset)
    fields["dataset"] = name_dataset(dataset)
    arguments = build_arguments(FinetuningArguments, fields)
    rows = dataset if isinstance(dataset, Rows) else None
    return run_finetuning(arguments, rows=rows, peft_config=peft_config)


def run_finetuning(
    arguments: FinetuningArguments, *, rows: Rows | None = None, peft_config: Any = None
) -> FinetuningResult:
    """Finetune R-MAT on labeled molecules and write the whole predictor to a folder.

    The folder gets weights, config with label scaling, processor, `metrics.json`, `split.csv`,
    `predictions.csv`, `dropped_rows.csv`, the training log, a model card and `report.md`. It
    appears when everything is done. Until then checkpoints lie beside it, in
    `<output_dir>.in_progress`.
    """
    arguments = prepare_arguments(arguments, rows)
    shared = build_training_arguments(arguments, name_work_dir(arguments.output_dir))
    if arguments.hpo_trials:
        from rmat_hf.training.search import validate_search

        validate_search(arguments, num_processes=shared.world_size)
    adapter = {} if peft_config is None else {"peft_config": list_fields(peft_config)}
    description = describe_arguments(arguments) | adapter
    is_main_process = shared.process_index == 0
    with open_run(arguments, description=description, is_main_process=is_main_process) as run:
        arguments, reason = choose_head(arguments, rows, has_adapter=peft_config is not None)
        task = build_finetuning_task(arguments, rows, peft_config=peft_config)
        for line in describe_rows(
            {part: task.labels(part) for part in PARTS},
            arguments=arguments,
            num_dropped=task.num_dropped,
            num_merged=len(task.dropped) - task.num_dropped,
            class_names=task.class_names,
            num_bounds=count_bounds(task.dataset),
            noun=f"{name_row(arguments.level, task.dataset['canonical_smiles'][:])}s",
        ):
            logger.info(line)
        # refuses what cannot be before anything is written
        config = build_finetuning_config(arguments, task)
        if arguments.head in ("network", STACK_WITH_NETWORK):
            arguments = resolve_defaults(
                arguments,
                config,
                num_train_rows=len(task.split.train),
                has_adapter=task.peft_config is not None,
            )
        # before training: labels that no baseline can be fitted on should not cost a training
        has_baselines = arguments.with_baselines and is_main_process
        baselines = _fit_baselines(arguments, task) if has_baselines else {}
        with shared.main_process_first(local=False):
            run.prepare()
        if arguments.hpo_trials:
            from rmat_hf.training.search import search_hyperparameters

            arguments = search_hyperparameters(
                arguments,
                build_trainer=lambda chosen: _build_trainer(
                    chosen, task, folder=run.work_dir, phase="Trying settings"
                ),
                greater_is_better=bool(shared.greater_is_better),
                dropout=config.hidden_dropout_prob,
                folder=run.work_dir,
            )
        trainer, log, held_out = _learn(arguments, task, work_dir=run.work_dir)
        logger.info("Predicting train, valid and test, and writing the report.")
        # choosing a checkpoint needs a defined metric, reporting does not
        trainer.compute_metrics = None
        report = build_finetuning_report(
            arguments, task, trainer=trainer, baselines=baselines, held_out=held_out
        )
        reason += describe_shares(cast(Any, trainer.model))
        report = replace(report, head_reason=reason)
        if is_main_process:
            with run.publish() as folder:
                model = cast(Any, trainer.model)
                save_run_folder(folder, model=model, task=task, report=report, log_history=log)
                if (run.work_dir / TRIALS_FILE).is_file():
                    shutil.copy(run.work_dir / TRIALS_FILE, folder)
                for logs in run.work_dir.glob(f"stage-*/{TENSORBOARD_DIR}"):
                    shutil.copytree(logs, folder / TENSORBOARD_DIR, dirs_exist_ok=True)
    found = (report.metrics, report.baselines, task.dropped, describe_run(report))
    head = f"{arguments.head}: {reason}"
    return FinetuningResult(run.output_dir, *found, head=head, notes=task.notes)


def _learn(
    arguments: FinetuningArguments, task: FinetuningTask, *, work_dir: Path
) -> tuple[Trainer, list[dict[str, Any]], HeldOut | None]:
    """Return a `Trainer` with what has learned, the training log, and what it was held out of."""
    if arguments.head in FITTED_HEADS:
        return _fit_head(arguments, task, work_dir=work_dir)
    trainer, log = _train(arguments, task, work_dir=work_dir)
    if not arguments.refit:
        return trainer, log, None
    trainer.compute_metrics, rows = None, task.split.valid
    outputs = predict_rows(trainer, task)[0][rows]
    held_out = HeldOut(rows, outputs, None, np.zeros(len(rows), dtype=np.int64))
    return *_refit(arguments, task, log=log, work_dir=work_dir), held_out


def _fit_baselines(arguments: FinetuningArguments, task: FinetuningTask) -> dict[str, Any]:
    from rmat_hf.training.baselines import fit_baselines

    split = task.split
    if arguments.head in FITTED_HEADS or arguments.refit:
        # what stands beside a model learns from the rows that it learns from
        rows = np.sort(np.concatenate([split.train, split.valid]))
        split = replace(split, train=rows, valid=rows)
    return fit_baselines(
        task.dataset,
        split=split,
        problem_type=arguments.problem_type,
        label_names=arguments.label_columns,
        seed=arguments.seed,
    )


def _train(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    work_dir: Path,
    last_epoch: int | None = None,
) -> tuple[Trainer, list[dict[str, Any]]]:
    """Return a `Trainer` with the best model, or the ensemble, and the training log.

    Member `i` is what a run of one model with the seed `seed + i` would give on its rows.
    """
    members: list[Any] = []
    log: list[dict[str, Any]] = []
    for idx, split in enumerate(split_for_members(arguments, task)):
        folder = work_dir / f"stage-{idx}"
        chosen = replace(arguments, seed=arguments.seed + idx)
        logger.info("Training model %d of %d.", idx + 1, arguments.num_members)
        # scaled as the whole task: the members share the scaling of the labels
        of_members = f" {idx + 1} of {arguments.num_members}" if arguments.num_members > 1 else ""
        trainer = _build_trainer(
            chosen,
            replace(task, split=split),
            folder=folder,
            scaled_as=task,
            phase=f"Training{of_members}",
        )
        if last_epoch is not None:
            _end_after(trainer, last_epoch=last_epoch)
        member = {"member": idx} if arguments.num_members > 1 else {}
        log += [{**member, **entry} for entry in train_stage(trainer, folder)["log_history"]]
        if arguments.num_members == 1 and is_adapted(trainer.model):
            # an interrupted run may have trained it; a loaded predictor is merged
            load_adapter_weights(cast(Any, trainer.model), folder / MODEL_DIR)
            return trainer, log
        # else an interrupted run has trained it
        if arguments.num_members == 1 and trainer.state.global_step > 0:
            return trainer, log
        members.append(load_predictor(folder / MODEL_DIR, device="cpu")[0])
    model = members[0]
    if len(members) > 1:
        model = RMatEnsembleForSequenceClassification.from_members(members)
    return _build_trainer(arguments, task, folder=work_dir, model=model), log


def _refit(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    log: list[dict[str, Any]],
    work_dir: Path,
) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train anew on train and valid together, with the schedule and to the epoch of before."""
    rows = np.sort(np.concatenate([task.split.train, task.split.valid]))
    whole = replace(task, split=replace(task.split, train=rows))
    args = build_training_arguments(arguments, work_dir)
    evaluated = [entry for entry in log if "eval_loss" in entry]
    kept = evaluated[-1]
    if args.load_best_model_at_end:
        name = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
        known = [entry for entry in evaluated if not np.isnan(entry.get(name, np.nan))]
        sign = 1 if args.greater_is_better else -1
        kept = max(known or evaluated[-1:], key=lambda entry: sign * entry.get(name, 0.0))
    options: dict[str, Any] = {"work_dir": work_dir / "refit", "last_epoch": round(kept["epoch"])}
    trainer, more = _train(arguments, whole, **options)
    trainer.train_dataset = task.select("train")
    return trainer, [*log, *({"refit": True, **entry} for entry in more)]


def _end_after(trainer: Trainer, *, last_epoch: int) -> None:
    """Let a training end after an epoch of its schedule, and evaluate nothing on the way."""

    class EndCallback(TrainerCallback):
        def on_epoch_end(self, *parts: Any, **_: Any) -> None:
            _, state, control = parts
            control.should_training_stop = round(state.epoch) >= last_epoch

    trainer.args.load_best_model_at_end = False
    trainer.args.eval_strategy = IntervalStrategy.NO
    trainer.remove_callback(EarlyStoppingCallback)
    trainer.add_callback(EndCallback())


def _train_networks(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    known: tuple[np.ndarray, np.ndarray],
    work_dir: Path,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a stack takes of networks that each leave out another fold, and their log.

    To the last epoch: one that was chosen on the fold would make it look better than it is.
    """
    rows, splits = known[0], hold_folds_out(*known, test=task.split.test)
    # descriptors beside the vector made them worse
    own: dict[str, Any] = {"head": "network", "num_members": len(splits), "member_folds": True}
    arguments = replace(arguments, **own, molecule_descriptors="none")
    processor = build_finetuning_processor(arguments, task.checkpoint)
    task = replace(task, dataset=drop_molecule_inputs(task.dataset), processor=processor)
    split = SplitIndices(train=rows, valid=rows[:0], test=task.split.test)
    whole = replace(task, split=split, member_splits=splits)
    epochs = math.ceil(cast(float, arguments.num_train_epochs))
    trainer, log = _train(arguments, whole, work_dir=work_dir, last_epoch=epochs)
    trainer.compute_metrics = None
    outputs = predict_out_of_fold(predict_rows(trainer, task)[1][rows], rows, splits=splits)
    return {"networks": (trainer.model, outputs)}, log


def _fit_head(
    arguments: FinetuningArguments, task: FinetuningTask, *, work_dir: Path
) -> tuple[Trainer, list[dict[str, Any]], HeldOut]:
    """Return a `Trainer` with a head, the log of networks, and what is held out of the head."""
    rows, folds = fold_known_rows(arguments, task)
    refuse_too_many(len(rows))
    beside: dict[str, Any] = {}
    log: list[dict[str, Any]] = []
    if arguments.head == STACK_WITH_NETWORK:
        beside, log = _train_networks(arguments, task, known=(rows, folds), work_dir=work_dir)
    logger.info("Fitting the %s head.", arguments.head)
    model, outputs, variances = FITTED_HEADS[arguments.head](
        cast(Checkpoint, task.checkpoint),
        task.dataset.select(rows),
        label_columns=arguments.label_columns,
        kernel_features=arguments.kernel_features,
        problem_type=arguments.problem_type,
        **arguments.label_options.of_model,
        seed=arguments.seed,
        folds=folds,
        **beside,
    )
    trainer = _build_trainer(arguments, task, folder=work_dir, model=model)
    return trainer, log, HeldOut(rows, outputs, variances, folds)


def _fit_trust(
    arguments: FinetuningArguments, task: FinetuningTask, *, model: Any, held_out: HeldOut | None
) -> None:
    """Give a finetuned model, or the base of an adapter, what it needs to tell how sure it is."""
    if held_out is None or arguments.trust == "none":
        return
    labels = read_exact_labels(task.dataset)
    # classes among numbers have no interval
    labels[:, [name in arguments.class_columns for name in arguments.label_columns]] = np.nan
    fit_trust(
        model.get_base_model() if is_adapted(model) else model,
        pack_dataset(task.dataset),
        kind=arguments.trust,
        # without folds valid was held out of everything
        references=held_out.rows if held_out.folds.any() else task.split.train,
        held_out=held_out,
        labels=labels,
    )


def _build_trainer(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    folder: Path,
    model: Any = None,
    scaled_as: FinetuningTask | None = None,
    phase: str = "Training",
) -> Trainer:
    """Return a `Trainer` with checkpoints in a folder, by default of an untrained model."""
    trainer = RMatTrainer(
        model=build_finetuning_model(arguments, scaled_as or task) if model is None else model,
        args=build_training_arguments(arguments, folder),
        train_dataset=task.select("train"),
        eval_dataset=task.select("valid"),
        processing_class=task.processor,
    )
    show_phase(trainer, phase)
    return trainer


def build_finetuning_report(
    arguments: FinetuningArguments,
    task: FinetuningTask,
    *,
    trainer: Trainer,
    baselines: Mapping[str, tuple[np.ndarray, dict[str, Any]]] = MappingProxyType({}),
    held_out: HeldOut | None = None,
) -> FinetuningReport:
    """Score the best model, or the ensemble and each of its members, on every part.

    It gets its trust of the rows that were held out. Members with folds of their own have seen
    most rows of valid. There the predictions are out of fold, each by the one member that did
    not, and a member is scored on its own fold. Rows that a kernel head was fitted on have the
    predictions that leave their fold out.
    """
    if arguments.level == "atom":
        labels, outputs, parts = predict_atoms(trainer, task)
    else:
        labels, parts = read_exact_labels(task.dataset), vars(task.split)
        outputs, *others = predict_rows(trainer, task)
    config = cast(Any, trainer.model).config
    score = partial(
        compute_metrics_for_problem,
        arguments.problem_type,
        label_names=arguments.label_columns,
        types=config.label_types,
    )
    members, spreads, member_metrics, out_of_fold = None, None, [], {}
    if held_out is not None:
        outputs[held_out.rows] = held_out.outputs
        for variances in others:
            variances[held_out.rows] = held_out.variances
            spreads = {part: np.sqrt(variances[rows]) for part, rows in parts.items()}
    if arguments.num_members > 1:
        (of_members,) = others
        splits = split_for_members(arguments, task)
        if arguments.member_folds:
            rows, folds = fold_known_rows(arguments, task, num_folds=arguments.num_members)
            found = predict_out_of_fold(of_members[rows], rows, splits=splits)
            held_out = HeldOut(rows, found, None, folds)
            outputs[task.split.valid] = found[np.searchsorted(rows, task.split.valid)]
        members = {part: of_members[rows] for part, rows in parts.items()}
        member_metrics = [
            {name: score(of_members[rows, idx], labels=labels[rows]) for name, rows in own.items()}
            for idx, own in enumerate(map(vars, splits))
        ]
    if held_out is not None:
        known = labels[held_out.rows].astype(np.float32)
        out_of_fold = {"out_of_fold": score(held_out.outputs, labels=known)}
    elif arguments.level == "molecule":
        rows = np.sort(task.split.valid)
        held_out = HeldOut(rows, outputs[rows], None, np.zeros(len(rows), dtype=np.int64))
    _fit_trust(arguments, task, model=trainer.model, held_out=held_out)
    return FinetuningReport(
        config=config,
        arguments=arguments,
        # labels as the Trainer has them: its metrics are these, digit by digit
        metrics={
            part: score(outputs[rows], labels=labels[rows].astype(np.float32))
            | _score_undone(outputs[rows], labels=labels[rows], config=config)
            for part, rows in parts.items()
        }
        | out_of_fold,
        labels={part: labels[rows] for part, rows in parts.items()},
        predictions={part: outputs[rows] for part, rows in parts.items()},
        member_predictions=members,
        member_metrics=member_metrics,
        spreads=spreads,
        held_out=held_out,
        num_dropped=task.num_dropped,
        num_bounds=count_bounds(task.dataset),
        notes=task.notes,
        max_atoms=task.processor.max_atoms,
        is_adapter=is_adapted(trainer.model),
        baseline_values={
            name: {part: values[rows] for part, rows in parts.items()}
            for name, (values, _) in baselines.items()
        },
        baseline_settings={name: setting for name, (_, setting) in baselines.items()},
        trust=_predict_trust(trainer.model, task) if held_out is not None else {},
        **_name_molecules(task) if arguments.level == "molecule" else {},
    )


def _predict_trust(model: Any, task: FinetuningTask) -> dict[str, np.ndarray]:
    """Return how far the model trusts what it says of the test molecules."""
    model = model.get_base_model() if is_adapted(model) else model
    test = task.select("test")
    return predict_trust(model, pack_dataset(test), covariates=read_covariates(test))


def _name_molecules(task: FinetuningTask) -> dict[str, Any]:
    """Return number and SMILES of every row, by part."""
    columns = {"rows": "row", "smiles": "smiles", "molecules": "canonical_smiles"}
    return {
        name: {part: task.dataset.select(rows)[it][:] for part, rows in vars(task.split).items()}
        for name, it in columns.items()
    }


def _score_undone(
    outputs: np.ndarray, *, labels: np.ndarray, config: RMatConfig
) -> dict[str, dict[str, Any]]:
    """Return errors in the units of the table, of labels that are learned as something else."""
    if config.label_transforms is None:
        return {}
    undone = [undo_label_transforms(it, config) for it in (outputs, labels)]
    metrics = compute_metrics_for_problem(
        "regression", undone[0], labels=undone[1], label_names=config.label_columns, is_quiet=True
    )
    return {"in_table_units": metrics}


def predict_rows(trainer: Trainer, task: FinetuningTask) -> list[np.ndarray]:
    """Return the outputs of all rows, in order; the last digits depend on what shares a batch."""
    found: list[Any] = [trainer.predict(cast(Any, task.select(it))).predictions for it in PARTS]
    parts = [it if isinstance(it, tuple) else (it,) for it in found if it is not None]
    place = np.argsort(np.concatenate([getattr(task.split, part) for part in PARTS]))
    return [np.concatenate(arrays)[place] for arrays in zip(*parts, strict=True)]


def predict_atoms(
    trainer: Trainer, task: FinetuningTask
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return labels and outputs of all atoms, one after the other, and those of each part.

    Atoms come in the order in which their molecule was given, parts in that of `PARTS`.
    """
    config = cast(Any, trainer.model).config
    labels = [np.empty((0, len(config.label_columns)))]
    outputs = [np.empty((0, len(config.output_names)))]
    stops = [0]
    for part in PARTS:
        rows: Any = task.select(part)
        # batches differ in their number of nodes, of which the first is no atom
        padded = trainer.predict(rows).predictions if len(rows) else ()
        names = {"smiles", "mol", "labels", LENGTH_COLUMN} & {*rows.column_names}
        for row, output in zip(rows.select_columns([*names]), padded, strict=True):
            molecule = Chem.Mol(row["mol"]) if row.get("mol") else row["smiles"]
            atoms = output[1 : row[LENGTH_COLUMN]]
            for known, values in ((labels, row["labels"]), (outputs, atoms)):
                stored = np.array(values, dtype=np.float64)
                known.append(restore_atom_order(stored, molecule, processor=task.processor))
        stops.append(sum(map(len, labels)))
    pairs = zip(PARTS, pairwise(stops), strict=True)
    parts = {part: np.arange(start, stop) for part, (start, stop) in pairs}
    return np.concatenate(labels), np.concatenate(outputs), parts


def predict_out_of_fold(
    member_outputs: np.ndarray, rows: np.ndarray, *, splits: Sequence[SplitIndices]
) -> np.ndarray:
    """Return for every row `(num_labels,)` the output of the member that it was held out of."""
    is_held_out = np.stack([np.isin(rows, split.valid) for split in splits], axis=1)
    return member_outputs[np.arange(len(rows)), is_held_out.argmax(axis=1)]


def save_run_folder(
    folder: Path,
    *,
    model: Any,
    task: FinetuningTask,
    report: FinetuningReport,
    log_history: list[dict[str, Any]],
) -> None:
    """Write model, processor, metrics, tables, training log and model card to an empty folder."""
    save_model(model, folder)
    task.processor.save_pretrained(folder)
    files: dict[str, Any] = {
        "metrics.json": report.metrics,
        ARGUMENTS_FILE: describe_arguments(report.arguments),
        "training_log.json": log_history,
    }
    optional = {"baselines.json": report.baselines, "member_metrics.json": report.member_metrics}
    files |= {name: content for name, content in optional.items() if content}
    for name, content in files.items():
        save_json(folder / name, content)
    _save_tables(folder, task, report=report)
    # git and `hf upload` of the folder leave out what only `rmat push --share molecules` sends
    (folder / ".gitignore").write_text("\n".join(ROW_FILES) + "\n")
    save_model_card(folder, report, pictures=save_run_report(folder, report))


def _save_tables(folder: Path, task: FinetuningTask, *, report: FinetuningReport) -> None:
    """Write each row's part, labels and predictions, and the rows that were not used."""
    rows = task.dataset.select(np.concatenate([getattr(task.split, part) for part in PARTS]))
    columns: dict[str, Any] = {"row": rows["row"][:], "smiles": rows["smiles"][:]}
    columns["split"] = [part for part in PARTS for _ in getattr(task.split, part)]
    _write_table(folder / "split.csv", columns, kinds=ROW_COLUMNS)
    config, labels = report.config, np.concatenate(list(report.labels.values()))
    kinds: dict[str, ColumnKind] = dict.fromkeys(config.label_columns, "number")
    if config.label_name is None and report.arguments.level == "molecule":
        measured = describe_measured(rows, config)
        columns |= measured
        kinds |= dict.fromkeys([name for name in measured if name not in kinds], "text")
    elif config.label_name is None:
        columns |= dict(zip(config.label_columns, labels.T.tolist(), strict=True))
    else:
        kinds = {config.label_name: "text"}
        names = [None if np.isnan(it) else config.output_names[int(it)] for it in labels[:, 0]]
        columns[config.label_name] = names
    spread = None
    logits = torch.from_numpy(np.concatenate(list(report.predictions.values())))
    values = undo_label_transforms(compute_probabilities(logits, config.problem_type), config)
    if report.member_predictions is not None:
        logits = torch.from_numpy(np.concatenate(list(report.member_predictions.values())))
        spread = compute_spread(logits, config.problem_type).numpy()
    elif report.spreads is not None:
        spread = np.concatenate(list(report.spreads.values()))
    columns |= Predictions(values.numpy(), [None] * len(values), config, spread).to_columns()
    kinds |= describe_prediction_columns(config)
    del columns["error"], kinds["error"]
    if report.arguments.level == "atom":
        sizes = [num_nodes - 1 for num_nodes in rows[LENGTH_COLUMN]]
        columns |= {name: group_cells(columns[name], sizes) for name in kinds}
        kinds = {name: ATOM_KINDS[kind] for name, kind in kinds.items()}
    kinds = {**ROW_COLUMNS, **kinds}
    _write_table(folder / "predictions.csv", columns, kinds=kinds)
    kinds = {"row": "integer", "smiles": "text", "reason": "text"}
    columns = {name: [getattr(row, name) for row in task.dropped] for name in kinds}
    _write_table(folder / "dropped_rows.csv", columns, kinds=kinds)


def _write_table(path: Path, columns: dict[str, Any], *, kinds: dict[str, ColumnKind]) -> None:
    with TableWriter(path, added_columns=kinds) as writer:
        writer.write(columns)
