"""save_evaluation(...): an evaluation → `report.md`, pictures, metrics and predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rdkit import Chem

from rmat_hf.data.labels import describe_recoding, is_empty, list_words
from rmat_hf.data.table_writer import count_by_example
from rmat_hf.data.training_table import DroppedRow
from rmat_hf.errors import say_count
from rmat_hf.model.features_rmat import Molecule, MoleculeError, parse_molecule
from rmat_hf.output_folder import save_json
from rmat_hf.training.baselines import MAX_ATOMS
from rmat_hf.training.estimates import (
    Estimate,
    Scores,
    average_known,
    build_table,
    compute_errors,
    describe_each,
    describe_scores,
    find_inside,
)
from rmat_hf.training.metrics import list_metrics
from rmat_hf.training.plots import (
    LINE_COLOR,
    MOST_SHOWN,
    draw_calibration,
    draw_coverage,
    draw_parity,
    draw_roc,
    save_figure,
)
from rmat_hf.training.report import (
    ABOUT_INTERVALS,
    REPORT_FILE,
    WIDTHS,
    ErrorsOfLabel,
    describe_novelty,
    describe_worst,
)

CLASSES_FOLDER = "classes"
MOST_SKIPPED = 20
# Coverages that intervals are tried at, where the model has trust.
COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Method:
    """What a model or a tool says of every row, NaN where nothing.

    `trust` has the blocks of `RMatTrust`, of models that have it; `quantiles` are those of
    `COVERAGES` in units of the intervals' half width, by label.
    """

    values: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    trust: dict[str, np.ndarray] = field(default_factory=dict)
    quantiles: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Method":
        """Return the same of some rows."""
        trust = {name: it[rows] for name, it in self.trust.items()}
        return replace(self, reasons={}, values=self.values[rows], trust=trust)


@dataclass(frozen=True)
class EvaluationResult:
    """What `evaluate` found out.

    Args:
        scores (`Scores`): Metrics with intervals of every method, on the rows that all have.
        verdict (`list[str]`): What follows, in sentences.
        rows (`pandas.DataFrame`):
            Those rows: number in the table as index, `smiles`, the labels, `novelty` if it is
            known, and the predictions of every method, `METHOD:LABEL`.
        skipped (`list[DroppedRow]`): The other rows, with reasons.
        label_names, class_names (`list[str]`): The labels, and classes of a single one.
        notes (`list[str]`): What to know when reading, as molecules that a model was trained on.
        methods (`dict[str, Method]`): What every method says of these rows.
        coverage (`float`): Asked of the intervals.
        classes (`EvaluationResult`, *optional*): The same of classes, of models with numbers too.
    """

    scores: Scores
    verdict: list[str]
    rows: pd.DataFrame
    skipped: list[DroppedRow]
    label_names: list[str]
    class_names: list[str] | None
    notes: list[str]
    methods: dict[str, Method]
    coverage: float
    classes: "EvaluationResult | None" = None

    @property
    def labels(self) -> np.ndarray:
        """`(num_rows, num_labels)`, NaN where missing; a class as its index."""
        return self.rows[self.label_names].to_numpy(dtype=np.float64)

    def __repr__(self) -> str:
        """Return what `rmat evaluate` prints."""
        return self.describe()

    def describe(self) -> str:
        """Return table, verdict and notes, as `rmat evaluate` prints them."""
        reasons = count_by_example(it.reason for it in self.skipped)
        lines = [
            f"{say_count(number, 'row')} left out: {reason}"
            for reason, number in reasons.most_common(5)
        ]
        if len(reasons) > len(lines):
            lines.append(f"and {len(reasons) - len(lines)} other reasons")
        table = describe_scores({"given": self.scores}, num_intervals=1)
        own = [table, "", *self.verdict, *self.notes, *lines]
        return "\n".join([*own, *(["", self.classes.describe()] if self.classes else [])])


def list_unread(cells: pd.DataFrame, labels: np.ndarray, *, is_of_classes: bool) -> list[str]:
    """Say of several labels which cells are not scored, and which labels have no value at all."""
    notes = []
    for name, column in zip(cells, labels.T, strict=True):
        missing = map(str, cells[name][np.isnan(column)].dropna())
        unread = [text for text in missing if not is_empty(text)]
        words = list_words([*dict.fromkeys(unread)])
        if len(cells.columns) == 1:
            continue
        if np.isnan(column).all():
            advice = describe_recoding(str(name), unread) if is_of_classes else ""
            what = f"none of its {say_count(len(unread), 'cell')} is a label, as {words}"
            notes.append(f"{name!r} is not scored: {what if unread else 'it is empty'}. {advice}")
        elif unread:
            number = say_count(len(unread), "cell")
            notes.append(f"{number} of {name!r} cannot be scored, as {words}.")
    return [note.rstrip() for note in notes]


def find_canonical(molecule: Molecule) -> str | None:
    """Return the canonical SMILES of a molecule; none of what is no molecule."""
    try:
        return str(Chem.MolToSmiles(parse_molecule(molecule, max_atoms=MAX_ATOMS)))
    except MoleculeError:
        return None


def list_trained(folder: str | Path) -> list[Molecule]:
    """Return the molecules that a model has learned from, if its folder knows them."""
    path = Path(folder) / "split.csv"
    if not path.is_file():
        return []
    split = pd.read_csv(path, dtype=str, keep_default_na=False)
    return list(split["smiles"][split["split"] != "test"])


def list_overlaps(canonical: Sequence[str | None], folders: Mapping[str, str | Path]) -> list[str]:
    """Say how many molecules models have learned from."""
    notes = []
    given = {*filter(None, canonical)}
    for name, folder in folders.items():
        trained = {*filter(None, map(find_canonical, list_trained(folder)))}
        # stereoisomers have at most other distances: their errors are those of molecules it knows
        flat = {*map(_remove_stereo, trained)}
        known = {it for it in given if _remove_stereo(it) in flat}
        others = len(known - trained)
        if known:
            stereo = f" ({others} as another stereoisomer)" if others else ""
            notes.append(
                f"{len(known)} of {len(given)} molecules are of train or valid of {name}{stereo}: "
                "its numbers are better than those of new molecules."
            )
    return notes


def _remove_stereo(smiles: str) -> str:
    return str(Chem.MolToSmiles(Chem.MolFromSmiles(smiles), isomericSmiles=False))


def save_evaluation(
    folder: Path, result: EvaluationResult, *, models: Sequence[str], source: str
) -> None:
    """Write report, pictures, metrics and predictions of an evaluation into a folder."""
    scores = result.scores
    differences = _list_differences(result, models)
    metric = list_metrics(scores.problem_type)[0]
    is_scaled = scores.scales is not None and not metric.greater_is_better
    name_of_metric = f"standardized_{metric.name}" if is_scaled else metric.name
    save_json(
        folder / "metrics.json",
        {
            "source": Path(source).name,
            "num_rows": scores.num_rows,
            "num_known": scores.num_known,
            "num_skipped": len(result.skipped),
            "metrics": scores.to_json(),
            "differences": [
                {"method": pair[0], "reference": pair[1], "metric": name_of_metric, **it._asdict()}
                for pair, it in differences.items()
            ],
            "verdict": [*result.verdict, *result.notes],
        },
    )
    result.rows.to_csv(folder / "predictions.csv")
    sections = [
        f"# {', '.join(models)} on {Path(source).name}",
        f"{say_count(scores.num_rows, 'row')} with a label and a prediction of every method; "
        f"{say_count(len(result.skipped), 'row')} left out.",
        "## Verdict",
        "\n".join(f"- {line}" for line in [*result.verdict, *result.notes]),
        "## Metrics",
        ABOUT_INTERVALS,
        describe_scores({"given": scores}),
        # scores have the names of the columns, the report those of what is learned of them
        *describe_each(scores, names=dict(zip(scores.num_known, result.label_names, strict=True))),
        *_draw_predictions(folder, result),
        *_describe_trust(folder, result, models=models),
        *describe_novelty(folder, _list_errors(result, models), has_one_scale=True),
        *_describe_worst(folder, result, name=models[0]),
        *_describe_skipped(result),
    ]
    if result.classes is not None:
        (folder / CLASSES_FOLDER).mkdir()
        save_evaluation(folder / CLASSES_FOLDER, result.classes, models=models, source=source)
        sections.insert(
            2, f"Of the classes: [{CLASSES_FOLDER}/{REPORT_FILE}]({CLASSES_FOLDER}/{REPORT_FILE})."
        )
    (folder / REPORT_FILE).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _list_differences(
    result: EvaluationResult, models: Sequence[str]
) -> dict[tuple[str, str], Estimate]:
    metric = list_metrics(result.scores.problem_type)[0].name
    others = [name for name in result.methods if name not in models]
    return {
        (name, other): result.scores.compare(name, other, metric=metric)
        for idx, name in enumerate(models)
        for other in [*others, *models[idx + 1 :]]
    }


def _draw_predictions(folder: Path, result: EvaluationResult) -> list[str]:
    """Draw every method but constants: parity, or the curves of each class."""
    labels, shown = result.labels, _select_varied(result)
    if result.scores.problem_type == "regression":
        pairs = {
            f"{name}: {label}": (labels[:, idx], it.values[:, idx], {"color": LINE_COLOR})
            for idx, label in enumerate(result.label_names)
            for name, it in shown.items()
        }
        draw = {name: partial(draw_parity, series=[it]) for name, it in pairs.items()}
        return _save_panels(folder / "parity.png", draw)
    curves = _list_curves(result, {name: it.values for name, it in shown.items()})
    if not curves:
        return []
    calibrated = {
        f"{name}, calibrated": it.trust["probabilities"]
        for name, it in shown.items()
        if "probabilities" in it.trust
    }
    of_labels = {**curves, **_list_curves(result, calibrated)}
    panels = [partial(draw_roc, curves=curves), partial(draw_calibration, curves=of_labels)]
    return [save_figure(folder / "roc_and_calibration.png", panels)]


def _select_varied(result: EvaluationResult) -> dict[str, Method]:
    return {name: it for name, it in result.methods.items() if np.ptp(it.values, axis=0).max() > 0}


def _list_curves(
    result: EvaluationResult, methods: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return labels 0 and 1 and probabilities of each method, all labels or classes together."""
    labels = result.labels
    if result.class_names is not None:
        is_yes = labels == np.arange(len(result.class_names))
        labels = np.where(np.isnan(labels), np.nan, is_yes)
    known = ~np.isnan(labels)
    return {name: (labels[known] == 1, values[known]) for name, values in methods.items()}


def _describe_trust(folder: Path, result: EvaluationResult, *, models: Sequence[str]) -> list[str]:
    """Draw how many measured values intervals of every coverage hold."""
    draw = {}
    for name in models:
        method = result.methods[name]
        for idx, label in enumerate(result.label_names if method.quantiles is not None else []):
            half = (method.trust["upper"] - method.trust["lower"])[:, idx] / 2
            ratio = abs(method.values - result.labels)[:, idx] / np.maximum(half, 1e-12)
            ratio = ratio[~np.isnan(ratio)]
            if len(ratio) and method.quantiles is not None:
                found = [float(np.mean(ratio <= it)) for it in method.quantiles[:, idx]]
                draw[f"{name}: {label}"] = partial(draw_coverage, wanted=COVERAGES, found=found)
    return ["## Intervals", *_save_panels(folder / "coverage.png", draw)] if draw else []


def _save_panels(path: Path, draw: Mapping[str, Any]) -> list[str]:
    shown = dict(list(draw.items())[:MOST_SHOWN])
    return [save_figure(path, list(shown.values()), titles=list(shown))] if shown else []


def _list_errors(result: EvaluationResult, models: Sequence[str]) -> dict[str, ErrorsOfLabel]:
    """Return the errors of every model by label, of many labels all together."""
    found = {}
    for name in models:
        method = result.methods[name]
        novelty = method.trust.get("novelty")
        if novelty is None and "novelty" in result.rows:
            novelty = result.rows[["novelty"]].to_numpy()
        if novelty is None:
            continue
        held = find_inside(method.trust, result.labels, class_names=result.class_names)
        blocks, names = [_compute_errors(result, name), *(held or ())], result.label_names
        if len(names) > 1:
            blocks, names = [average_known(it)[:, None] for it in blocks], ["mean of the labels"]
        for label, *columns in zip(names, *(it.T for it in blocks), strict=True):
            width_name = WIDTHS[result.scores.problem_type == "regression"]
            of_label = ErrorsOfLabel(novelty[:, 0], *columns)
            found[f"{name}, {label}"] = of_label._replace(width_name=width_name)
    return found


def _compute_errors(result: EvaluationResult, name: str) -> np.ndarray:
    values = result.methods[name].values
    return compute_errors(result.scores.problem_type, values, labels=result.labels)


def _describe_worst(folder: Path, result: EvaluationResult, *, name: str) -> list[str]:
    """Draw the molecules that the first model is most wrong about."""
    method = result.methods[name]
    known = {"novelty": result.rows[["novelty"]].to_numpy()} if "novelty" in result.rows else {}
    return describe_worst(
        folder,
        title=f"## The molecules that {name} is most wrong about",
        molecules={"row": [*map(str, result.rows.index)], "smiles": result.rows["smiles"].tolist()},
        values=method.values,
        labels=result.labels,
        errors=_compute_errors(result, name),
        names=(result.label_names, result.class_names),
        trust={**method.trust, **known},
    )


def _describe_skipped(result: EvaluationResult) -> list[str]:
    if not result.skipped:
        return []
    counts = count_by_example(it.reason for it in result.skipped)
    rows = [["row", "molecule", "reason"]]
    rows += [[str(it.row), f"`{it.smiles}`", it.reason] for it in result.skipped[:MOST_SKIPPED]]
    lines = [f"- {number}: {reason}" for reason, number in counts.most_common()]
    return ["## Rows that are left out", "\n".join(lines), build_table(rows)]
