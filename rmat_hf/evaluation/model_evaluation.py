"""evaluate(...): models and other tools' predictions on labeled molecules → a verdict.

What a method predicts is brought into one form, an array `(num_rows, num_outputs)` of values or
probabilities, NaN where there is none; methods are compared on the rows that all of them have.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from rmat_hf.data.columns import find_smiles_column, with_plain_numbers
from rmat_hf.data.frames import open_rows
from rmat_hf.data.labels import LabelError, parse_number
from rmat_hf.data.measurements import (
    describe_factor,
    find_unread_covariates,
)
from rmat_hf.data.sources import open_table
from rmat_hf.data.splits.parts import SplitIndices
from rmat_hf.data.table_writer import Predictions
from rmat_hf.data.tables import SMILES_COLUMN, Table, validate_columns
from rmat_hf.data.training_table import CHUNK_SIZE, DroppedRow, Rows
from rmat_hf.errors import UserError
from rmat_hf.evaluation.evaluation_report import (
    COVERAGES,
    EvaluationResult,
    Method,
    find_canonical,
    list_overlaps,
    list_trained,
    list_unread,
    save_evaluation,
)
from rmat_hf.evaluation.evaluation_task import (
    NO_LOGARITHM,
    EvaluationTask,
    list_left_out,
    list_tasks,
)
from rmat_hf.evaluation.predictions import PREDICTION_PREFIX
from rmat_hf.flags import declare_flag, declare_required, validate_flags
from rmat_hf.inference.prediction import (
    limit_processor,
    predict,
    read_covariates_of,
    warn_of_faults,
)
from rmat_hf.loading import load_predictor
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import Molecule
from rmat_hf.model.modeling_rmat import RMatForTokenClassification
from rmat_hf.model.trust_rmat import RMatTrust, find_trust
from rmat_hf.output_folder import create_folder_atomically, validate_output_folder
from rmat_hf.training.baselines import SHOWN, fit_several, stack_outputs
from rmat_hf.training.estimates import (
    MEAN_OF_TRAIN,
    describe_verdict,
    find_scales,
    judge_coverage,
    predict_mean,
    score_methods,
)
from rmat_hf.training.metrics import CLASSIFICATION
from rmat_hf.training.report import name_row
from rmat_hf.training.trust import compute_novelty

logger = logging.getLogger(__name__)

# Of classes nobody knows the training labels of a model: the best constant there is.
BEST_CONSTANT = "frequencies_of_these_rows"


@dataclass(kw_only=True)
class ModelEvaluationArguments:
    """Everything `run_model_evaluation` needs to know; each field is a flag of `rmat evaluate`."""

    model: list[str] = declare_required("Folders of models, or Hub ids; the first is in question.")
    input: str = declare_required("Table of molecules with their measured labels.")
    output: str | None = declare_flag(
        None, "Folder to write: report.md, pictures, metrics.json and predictions.csv."
    )
    smiles_column: str = declare_flag(SMILES_COLUMN, "Column with the SMILES; else it is found.")
    label_columns: list[str] = declare_flag(
        [],
        "Columns with the labels, one for each of the model's, or some of these by their names. "
        "Default: those of these names that the table has.",
    )
    predictions: list[str] = declare_flag(
        [],
        "Tables of other tools' predictions, FILE or NAME=FILE: by SMILES, or a row for each row.",
    )
    prediction_columns: list[str] = declare_flag(
        [], "Their columns, one for each label. Default: prediction_LABEL, or prediction."
    )
    train: str | None = declare_flag(
        None, "Table with the same columns that baselines are fitted on, to be compared with."
    )
    coverage: float = declare_flag(
        0.9, "Share of measured values that intervals are to hold.", above=0, below=1
    )
    batch_size: int = declare_flag(32, "Most molecules in one forward pass.", least=1)
    num_workers: int = declare_flag(1, "Processes that featurize.", least=0)
    device: str | None = declare_flag(None, "Torch device. Default: an accelerator, if any.")

    def __post_init__(self) -> None:
        """Raise a `UserError` for a value out of its bounds."""
        validate_flags(self)


def run_model_evaluation(arguments: ModelEvaluationArguments) -> EvaluationResult:
    """Evaluate models as the flags say; see [`evaluate`]."""
    tools = {}
    for given in arguments.predictions:
        name, is_named, path = given.rpartition("=")
        tools[name if is_named else Path(path).stem] = path
    options = {**vars(arguments), "predictions": tools, "output_dir": arguments.output}
    models, dataset = (options.pop(it) for it in ("model", "input"))
    del options["output"]
    return evaluate(models, dataset, **options)


def evaluate(  # noqa: PLR0913 - what is evaluated beside what, and how to run
    models: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    dataset: str | Path | Rows | pd.DataFrame,
    *,
    smiles_column: str = SMILES_COLUMN,
    label_columns: Sequence[str] = (),
    predictions: Mapping[str, str | Path | pd.DataFrame] | None = None,
    prediction_columns: Sequence[str] = (),
    train: str | Path | Rows | pd.DataFrame | None = None,
    output_dir: str | Path | None = None,
    coverage: float = 0.9,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | None = None,
) -> EvaluationResult:
    """Score finetuned models on labeled molecules, beside each other and beside other tools.

    Metrics have intervals of 95 % by a bootstrap of the rows; differences are of the same rows.
    Rows without label, molecule or prediction of all methods are left out, and named.

    Args:
        models (`str`, `Path`, or several of them, or a `Mapping` of names to them):
            Folders or Hub ids of models of molecules; the first one is in question.
        dataset (`str`, `Path`, `pandas.DataFrame` or `datasets.Dataset`):
            Table of molecules with measured labels.
        smiles_column (`str`, *optional*, defaults to `"smiles"`):
            Column with the SMILES; if there is no such column it is found.
        label_columns (`Sequence[str]`, *optional*):
            Columns with the labels, in the order of the models', or some of the models' labels by
            their names; by default those of these names that the table has.
        predictions (`Mapping`, *optional*):
            By the name of a tool a file or table with its predictions: a column `smiles`, or as
            many rows in the same order, and numbers in the units of the labels or probabilities
            of a yes. Of several classes `probability_LABEL_CLASS`, as `rmat predict` writes.
        prediction_columns (`Sequence[str]`, *optional*):
            Columns of these, one for each label; by default `prediction_LABEL` or `prediction`.
        train (`str`, `Path`, `pandas.DataFrame` or `datasets.Dataset`, *optional*):
            Labeled molecules, with the same columns, on which the baselines of `rmat finetune` are
            fitted. Novelty is measured to them where a model does not know its own.
        output_dir (`str` or `Path`, *optional*): New folder for the report and its pictures.
        coverage (`float`, *optional*, defaults to 0.9):
            Share of measured values that the intervals of models with trust are to hold.
        batch_size, num_workers, device: As of [`predict`].

    Returns:
        [`EvaluationResult`]

    Raises:
        UserError: Models, table or predictions do not fit together, or no row is left.

    Example:
    ```python
    >>> import pandas as pd
    >>> from rmat_hf import RMatForSequenceClassification, RMatProcessor
    >>> from rmat_hf import checkpoint_path, evaluate
    >>> model = RMatForSequenceClassification.from_pretrained(
    ...     checkpoint_path("rmat-small"), id2label={0: "y"}, problem_type="regression"
    ... )
    >>> model.save_pretrained(folder / "model")
    >>> files = RMatProcessor(geometry="bounds").save_pretrained(folder / "model")
    >>> table = pd.DataFrame({"smiles": ["CCO", "CCN", "C1"], "y": [3.0, 4.0, 5.0]})
    >>> found = evaluate(folder / "model", table)
    >>> found.scores.num_rows, found.skipped[0].smiles
    (2, 'C1')

    ```
    """
    folders = _name_models(models)
    if output_dir is not None:
        validate_output_folder(Path(output_dir), overwrite=False)
    smiles_column, label_names = str(smiles_column), [*map(str, label_columns)]
    rows = _read_rows(dataset, smiles_column=smiles_column)
    # what cannot be is refused before anything is predicted
    loaded = {name: _load(folder, device=device) for name, folder in folders.items()}
    configs = {name: model.config for name, (model, _) in loaded.items()}
    columns = [it for it in rows.cells if it != rows.smiles_column]
    tasks = list_tasks(configs, label_names, columns=columns)
    for task in reversed(tasks):
        rows.read_labels(task)
    tools = {
        name: _read_tool(it, rows, task=task, columns=list(prediction_columns), name=name)
        for name, it in (predictions or {}).items()
    }
    if taken := sorted({*tools} & {*folders}):
        raise UserError(f"Two methods are called {taken[0]!r}. Name one of them NAME=FILE.")
    options = {"batch_size": batch_size, "num_workers": num_workers}
    predicted = {
        name: _predict(it, rows, coverage=coverage, **options) for name, it in loaded.items()
    }
    known = None
    if train is not None:
        known = _read_rows(train, smiles_column=smiles_column)
    compare: Any = partial(_compare, rows, folders, predicted=predicted, known=known)
    result = compare(task=task, tools=tools, coverage=coverage)
    for of_classes in tasks[1:]:
        classes = compare(task=of_classes, tools={}, coverage=coverage)
        result = replace(result, classes=classes)
    if not label_columns:
        result.notes.extend(list_left_out(configs, tasks, source=rows.source))
    result.notes.extend(list_overlaps([rows.canonical[row] for row in result.rows.index], folders))
    if output_dir is not None:
        with create_folder_atomically(output_dir) as folder:
            save_evaluation(folder, result, models=list(folders), source=rows.source)
    return result


# Rows, and what the models predict


@dataclass(frozen=True)
class _Rows:
    """Molecules of a table, with all its cells, commas as points, and their canonical SMILES."""

    table: Table
    smiles_column: str
    smiles: list[str]
    molecules: list[Molecule]
    cells: pd.DataFrame
    canonical: list[str | None]

    @property
    def source(self) -> str:
        return self.table.source

    def read_labels(self, task: EvaluationTask) -> tuple[np.ndarray, dict[int, str]]:
        """Return the labels `(num_rows, num_labels)`, NaN where missing, and why a row has none."""
        validate_columns(self.cells.columns, task.label_names, source=self.source)
        labels = np.full((len(self.cells), len(task.label_names)), np.nan)
        faults: list[tuple[int, int, str]] = []
        for row, cells in enumerate(zip(*(self.cells[it] for it in task.label_names), strict=True)):
            for idx, cell in enumerate(cells):
                try:
                    labels[row, idx] = task.parse(cell, row=row, label_idx=idx)
                except LabelError as error:
                    faults.append((row, idx, error.reason))
        # a label that is read in no row is at fault in none, if others are read
        is_known = ~np.isnan(labels).all(axis=0)
        reasons: dict[int, str] = {}
        for row, idx, reason in faults:
            if is_known[idx] or not is_known.any():
                reasons.setdefault(row, reason)
        for row in np.flatnonzero(np.isnan(labels).all(axis=1)).tolist():
            reasons.setdefault(row, "no label")
        learned = task.learn(labels)
        for row in np.flatnonzero(np.isnan(learned).all(axis=1)).tolist():
            reasons.setdefault(row, "a label that is not positive has no logarithm")
        return learned, {row: it for row, it in reasons.items() if np.isnan(learned[row]).all()}


def _read_rows(source: str | Path | Rows | pd.DataFrame, *, smiles_column: str) -> _Rows:
    table = _open(source)
    smiles_column = find_smiles_column(table, smiles_column)
    validate_columns(table.column_names, [smiles_column], source=table.source)
    others = [it for it in table.column_names if it != smiles_column]
    given, table = table, with_plain_numbers(table, others)
    molecules: list[Molecule] = []
    frames = []
    for chunk in table.iterate_chunks(CHUNK_SIZE):
        molecules += chunk.molecules(smiles_column)
        frames.append(chunk.table.to_pandas())
    if not molecules:
        raise UserError(f"{table.source} has no rows.")
    cells = pd.concat(frames, ignore_index=True)
    smiles = ["" if pd.isna(it) else str(it) for it in cells[smiles_column]]
    canonical = [find_canonical(it) for it in molecules]
    return _Rows(given, smiles_column, smiles, molecules, cells, canonical)


def _open(source: str | Path | Rows | pd.DataFrame) -> Table:
    return open_table(source) if isinstance(source, str | Path) else open_rows(source)


def _name_models(models: Any) -> dict[str, str | Path]:
    """Return the models by short names that tell them apart."""
    if isinstance(models, Mapping):
        return dict(models)
    paths: list[str | Path] = [models] if isinstance(models, str | Path) else list(models)
    names = [Path(it).name or str(it) for it in paths]
    if len({*names}) < len(names):
        names = [str(it) for it in paths]
    if not paths or len({*names}) < len(names):
        raise UserError("Name at least one model, and none of them twice.")
    return dict(zip(names, paths, strict=True))


def _load(folder: str | Path, *, device: Any) -> tuple[Any, Any]:
    """Return a model of molecules and its processor."""
    model, processor = load_predictor(folder, device=device)
    if isinstance(model, RMatForTokenClassification):
        raise UserError(f"{folder} predicts atoms, and rmat evaluate takes labels of molecules.")
    return model, limit_processor(processor)


def _predict(
    loaded: tuple[Any, Any], rows: _Rows, *, coverage: float, **options: Any
) -> tuple[Predictions, np.ndarray | None]:
    """Return predictions, and how wide intervals of other coverages are."""
    model, processor = loaded
    trust, quantiles = find_trust(model), None
    if trust is not None:
        options["coverage"] = coverage
        if trust.is_regression:
            quantiles = np.array([_find_quantiles(trust, it) for it in (coverage, *COVERAGES)])
            quantiles = quantiles[1:] / quantiles[0]
    kinds = model.config.covariates or []
    beside = read_covariates_of(rows.table, model.config)
    options |= {"covariates": beside} if kinds else {}
    warn_of_faults(find_unread_covariates(kinds, beside, num_rows=len(rows.cells)))
    found = predict(model, rows.molecules, processor=processor, **options)
    return cast(Predictions, found), quantiles


def _find_quantiles(trust: RMatTrust, coverage: float) -> list[float]:
    """Return how many scales an interval reaches for each label, NaN where too few rows tell."""
    try:
        return list(trust.find_quantiles(coverage))
    except ValueError:
        return [np.nan] * len(trust.num_rows)


# Other methods


def _read_tool(
    source: str | Path | pd.DataFrame,
    rows: _Rows,
    *,
    task: EvaluationTask,
    columns: list[str],
    name: str,
) -> Method:
    """Return a tool's predictions for the rows: by SMILES if it has these, else in their order."""
    table = _open(source)
    frame = pd.concat([it.table.to_pandas() for it in table.iterate_chunks(CHUNK_SIZE)])
    frame = frame.reset_index(drop=True)
    outputs = task.label_names
    if task.class_names is not None:
        outputs = [f"{task.label_names[0]}_{it}" for it in task.class_names]
        usual = [f"probability_{it}" for it in outputs]
    else:
        usual = [f"{PREDICTION_PREFIX}{it}" for it in outputs]
        usual = ["prediction"] if usual[0] not in frame and len(outputs) == 1 else usual
    columns = columns or usual
    if len(columns) != len(outputs):
        raise UserError(f"{name}: name {len(outputs)} prediction columns, for {outputs}.")
    validate_columns(frame.columns, columns, source=table.source)
    numbers = [parse_number(None if pd.isna(it) else it) for it in frame[columns].to_numpy().flat]
    values = np.array([np.nan if it is None else it for it in numbers], dtype=np.float64)
    values = values.reshape(len(frame), len(columns))
    keys = [it for it in (rows.smiles_column, SMILES_COLUMN) if it in frame]
    if keys:
        canonical = [find_canonical(str(it)) for it in frame[keys[0]]]
        by_molecule = dict(zip(canonical, values, strict=True))
        missing = np.full(len(columns), np.nan)
        values = np.array([by_molecule.get(it, missing) for it in rows.canonical])
    elif len(frame) != len(rows.smiles):
        raise UserError(
            f"{table.source} has {len(frame)} rows, {rows.source} has {len(rows.smiles)}. Give it "
            f"a column {SMILES_COLUMN!r}, or a row for each row."
        )
    values = task.learn(values)
    is_known = np.isfinite(values).all(axis=1)
    if not is_known.any():
        raise UserError(f"{table.source} has no prediction for any row of {rows.source}.")
    reason = f"{name} has no prediction"
    return Method(values, {int(row): reason for row in np.flatnonzero(~is_known)})


def _fit_baselines(rows: _Rows, known: _Rows, *, task: EvaluationTask) -> dict[str, Method]:
    """Fit the baselines on other molecules, and predict the rows that are molecules."""
    labels, _ = known.read_labels(task)
    train = [
        row
        for row, it in enumerate(known.canonical)
        if it is not None and not np.isnan(labels[row]).all()
    ]
    own = [row for row, it in enumerate(rows.canonical) if it is not None]
    places = np.arange(len(train))
    test = len(train) + np.arange(len(own))
    molecules: list[Any] = [known.molecules[row] for row in train]
    molecules += [rows.molecules[row] for row in own]
    given = np.concatenate([labels[train], np.full((len(own), labels.shape[1]), np.nan)])
    reasons = {row: "no molecule" for row, it in enumerate(rows.canonical) if it is None}
    fitted = fit_several(
        SHOWN,
        molecules,
        labels=given,
        # those that are shown choose on folds of train
        split=SplitIndices(train=places, valid=places, test=test),
        problem_type=task.problem_type,
        label_names=task.label_names,
        seed=0,
    )
    found = {}
    for name, (outputs, _) in fitted.items():
        values = np.full((len(rows.smiles), task.num_outputs), np.nan)
        stacked = stack_outputs(outputs, problem_type=task.problem_type)
        values[own, : stacked.shape[1]] = stacked[test]
        found[name] = Method(values, reasons)
    return found


def _predict_constant(
    task: EvaluationTask, config: RMatConfig, *, labels: np.ndarray, known: _Rows | None
) -> tuple[str, np.ndarray]:
    """Return the outputs of who knows no molecule, and their name."""
    if known is None and config.label_mean is not None and task.problem_type == "regression":
        own = [config.label_columns.index(it) for it in task.model_labels]
        return MEAN_OF_TRAIN, np.array(config.label_mean, dtype=np.float64)[own]
    name = BEST_CONSTANT if known is None else MEAN_OF_TRAIN
    given = labels if known is None else known.read_labels(task)[0]
    return name, predict_mean(task.problem_type, given, num_outputs=task.num_outputs)


def _find_scales(
    task: EvaluationTask, config: RMatConfig, *, labels: np.ndarray, known: _Rows | None
) -> np.ndarray:
    """Return the deviations of labels in training, or else in these rows."""
    if config.label_std is None:
        return find_scales(None, labels if known is None else known.read_labels(task)[0])
    own = [config.label_columns.index(it) for it in task.model_labels]
    return find_scales(config.label_std, labels)[own]


# What is said of them


def _compare(
    rows: _Rows,
    folders: Mapping[str, str | Path],
    *,
    predicted: Mapping[str, tuple[Predictions, np.ndarray | None]],
    tools: Mapping[str, Method],
    known: _Rows | None,
    task: EvaluationTask,
    coverage: float,
) -> EvaluationResult:
    """Score the methods on the rows that all of them have, and say what follows."""
    labels, reasons = rows.read_labels(task)
    methods = {name: task.arrange(*it) for name, it in predicted.items()} | dict(tools)
    if known is not None:
        methods |= _fit_baselines(rows, known, task=task)
    first = next(iter(folders))
    name, mean = _predict_constant(task, predicted[first][0].config, labels=labels, known=known)
    methods[name] = Method(np.tile(mean, (len(labels), 1)))
    novelty = _find_novelty(rows, folders, methods=methods, known=known)
    for name, method in methods.items():
        own = {row: f"{it}, of {name}" for row, it in method.reasons.items() if it == NO_LOGARITHM}
        reasons = {**method.reasons, **own, **reasons}
    for method in methods.values():
        broken = np.flatnonzero(~np.isfinite(method.values).all(axis=1)).tolist()
        reasons = {**dict.fromkeys(broken, "no prediction"), **reasons}
    kept = np.array([row for row in range(len(labels)) if row not in reasons], dtype=np.int64)
    skipped = [DroppedRow(row, rows.smiles[row], reasons[row]) for row in sorted(reasons)]
    if not len(kept):
        raise UserError(
            f"{rows.source} has no row with a label and a prediction of all methods. Row "
            f"{skipped[0].row}: {skipped[0].reason}. Give it labeled molecules."
        )
    shared = {name: it.take(kept) for name, it in methods.items()}
    values = {name: it.values for name, it in shared.items()}
    unit, units = task.find_units()
    scales = None
    if units and len(units) > 1 and not unit:
        scales = _find_scales(task, predicted[first][0].config, labels=labels[kept], known=known)
    scores = score_methods(
        task.problem_type,
        values,
        labels=labels[kept],
        label_names=task.label_names,
        scales=scales,
    )
    verdict: list[str] = []
    learned = dict(zip(task.label_names, task.learned_names, strict=True))
    noun = f"{name_row('molecule', [str(rows.canonical[row]) for row in kept])}s"
    models = list(folders)
    others = [name for name in methods if name not in folders]
    for idx, name in enumerate(models):
        references = [*others, *models[idx + 1 :]]
        verdict += describe_verdict(
            scores,
            name,
            references=references,
            rivals=references,
            unit=unit,
            noun=noun,
            names=learned,
            units=units,
        )
        verdict += judge_coverage(
            name,
            shared[name].trust,
            labels=labels[kept],
            label_names=task.learned_names,
            class_names=task.class_names,
            coverage=coverage,
            noun=noun,
        )
    # once, behind the error of the model in question
    error = scores.metrics[first].get("rmse")
    verdict[1:1] = describe_factor(error, label_names=task.label_names, transforms=task.transforms)
    outputs = task.class_names or task.learned_names
    columns: dict[str, Any] = {"smiles": [rows.smiles[row] for row in kept]}
    columns |= dict(zip(task.learned_names, labels[kept].T, strict=True))
    columns |= {} if novelty is None else {"novelty": novelty[kept]}
    for name, found in values.items():
        columns |= {f"{name}:{it}": cells for it, cells in zip(outputs, found.T, strict=True)}
    unread = list_unread(
        rows.cells[task.label_names], labels, is_of_classes=task.problem_type in CLASSIFICATION
    )
    return EvaluationResult(
        scores=scores,
        verdict=list(dict.fromkeys(verdict)),
        rows=pd.DataFrame(columns, index=pd.Index(kept, name="row")),
        skipped=skipped,
        label_names=task.learned_names,
        class_names=task.class_names,
        notes=[*task.describe(), *unread],
        methods=shared,
        coverage=coverage,
    )


def _find_novelty(
    rows: _Rows,
    folders: Mapping[str, str | Path],
    *,
    methods: Mapping[str, Method],
    known: _Rows | None,
) -> np.ndarray | None:
    """Return how new the molecules are to the first model, or to the table of the baselines."""
    first = next(iter(folders))
    if "novelty" in methods[first].trust:
        return methods[first].trust["novelty"][:, 0]
    trained = list_trained(folders[first]) if known is None else known.molecules
    return compute_novelty(rows.molecules, trained) if trained else None
