"""score_methods(...): metrics with intervals of methods on the same rows, and what follows from it.

Intervals are percentiles of bootstrap resamples of the rows. Methods are resampled alike, so that
the difference between two has its own interval, which is narrower than their two intervals say.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest

from rmat_hf.errors import say_count
from rmat_hf.training.metrics import (
    METRICS,
    compute_metrics,
    draw_weights,
    format_metric,
    list_metrics,
    select_known,
)

# Share of the resamples between the ends of an interval.
COVERAGE = 0.95
MOST_RESAMPLES, LEAST_RESAMPLES = 1000, 100
# Of many rows fewer resamples will do: so many draws in all.
_NUM_DRAWS = 2_000_000
# Fewer rows are counted, but no verdict rests on them.
FEW_ROWS = 30
# Of more labels or classes the coverage of intervals or sets is told of all together.
_MOST_JUDGED = 8
# Of more labels the worst and the best are named, where there is nothing to compare with.
_MOST_NAMED = 3
# Of more labels it is counted on how many a method is better.
_MOST_COMPARED = 8
# Of fewer rows of the rarest class chance decides which method is better.
_LEAST_DECIDING = 10
UNDECIDED = "cannot be told apart from"
# Of more labels the card and the report do not list all.
MOST_LABELS = 50
# What fewer rows hold is told, and no verdict; with fewer than the second only a large shortfall is
# beyond chance.
_LEAST_JUDGED, _FEW_TO_JUDGE = 10, 100
# The least that a model has to beat: the mean of its labels, or the frequencies of its classes.
MEAN_OF_TRAIN = "mean_of_train_labels"


class Estimate(NamedTuple):
    """A metric, or the difference of two, with its interval; `None` where undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return `0.872 [0.610, 1.100]`."""
        interval = ""
        if self.low is not None:
            interval = f" [{format_metric(self.low)}, {format_metric(self.high)}]"
        return format_metric(self.value) + interval


@dataclass(frozen=True)
class Scores:
    """What methods are worth on the same rows, of several labels the mean over them.

    Args:
        problem_type (`str`): As in the config of a model.
        num_rows (`int`): Rows with any label.
        num_known (`dict[str, int]`): Rows that have each label.
        num_rarest (`dict[str, int]`): Of classes how many are of the rarest; 0 if all are of one.
        metrics (`dict`): Of each method, as from [`compute_metrics`].
        resamples (`dict`): Of each method and metric, `(num_labels, num_resamples)`.
        scales (`dict[str, float]`, *optional*):
            Of labels in units of their own: what their errors are divided by before the mean.
    """

    problem_type: str
    num_rows: int
    num_known: dict[str, int]
    num_rarest: dict[str, int]
    metrics: dict[str, dict[str, Any]]
    resamples: dict[str, dict[str, np.ndarray]]
    scales: dict[str, float] | None = None

    def estimate(self, method: str, metric: str, *, label: str | None = None) -> Estimate:
        """Return a metric of a method with its interval, of one label or the mean of all."""
        return _build_estimate(*self._find(method, metric, label=label))

    def _find(
        self, method: str, metric: str, *, label: str | None
    ) -> tuple[float | None, np.ndarray | None]:
        """Return a metric of a method, and of each resample, `(num_labels, num_resamples)`."""
        found, resamples = self.metrics[method], self.resamples[method].get(metric)
        if "per_label" not in found:
            return found.get(metric), resamples
        if label is not None:
            own = [[*self.num_known].index(label)]
            return found["per_label"][label][metric], None if resamples is None else resamples[own]
        if self.scales is None or METRICS[metric].greater_is_better:
            return found.get(metric), resamples
        if resamples is not None:
            resamples = resamples / np.array([self.scales[it] for it in self.num_known])[:, None]
        return average_scaled(found, metric, scales=self.scales), resamples

    def list_labels(self, method: str, metric: str) -> dict[str, float]:
        """Return a metric of each of several labels, where it is defined."""
        found = {it: of[metric] for it, of in self.metrics[method].get("per_label", {}).items()}
        return {name: value for name, value in found.items() if value is not None}

    def compare(
        self, method: str, reference: str, *, metric: str, label: str | None = None
    ) -> Estimate:
        """Return how much a metric of a method is above that of a reference."""
        (own, drawn), (other, others_drawn) = (
            self._find(name, metric, label=label) for name in (method, reference)
        )
        if own is None or other is None:
            return Estimate(None)
        if drawn is None or others_drawn is None:
            return Estimate(own - other)
        return _build_estimate(own - other, drawn - others_drawn)

    def judge(
        self, method: str, reference: str, *, label: str | None = None
    ) -> tuple[str, Estimate]:
        """Return where a method stands beside a reference by the first metric, in words."""
        metric = list_metrics(self.problem_type)[0]
        found = self.compare(method, reference, metric=metric.name, label=label)
        if found.value is None or found.low is None or found.high is None:
            return "", found
        if self.count_rarest(label) < _LEAST_DECIDING:
            # a bootstrap of so few rows knows of no others
            return UNDECIDED, Estimate(found.value)
        sign = 1 if metric.greater_is_better else -1
        ends = sorted((sign * found.low, sign * found.high))
        if ends[0] > 0:
            return "better than", found
        if ends[1] < 0:
            return "worse than", found
        return "no better than" if sign * found.value <= 0 else "not clearly better than", found

    def count_rarest(self, label: str | None = None) -> float:
        """Return how many rows of the rarest class a label has, or the middle one of the labels."""
        if self.problem_type == "regression":
            return math.inf
        if label is not None:
            return self.num_rarest[label]
        return median_low([it for it in self.num_rarest.values() if it] or [0])

    def find_best(self, methods: Iterable[str], *, label: str | None = None) -> str | None:
        """Return the method that is best by the first metric; none if it is defined of none."""
        metric = list_metrics(self.problem_type)[0]
        sign = 1 if metric.greater_is_better else -1
        values = {name: self._find(name, metric.name, label=label)[0] for name in methods}
        known = {name: sign * it for name, it in values.items() if it is not None}
        return max(known, key=lambda name: known[name]) if known else None

    def name_mean(self, text: str, metric: str) -> str:
        """Return the name of a metric; of what is divided by `scales` one that says so."""
        is_scaled = self.scales is not None and not METRICS[metric].greater_is_better
        return f"{text}/SD" if is_scaled else text

    def to_json(self) -> dict[str, Any]:
        """Return every method's metrics as `[value, low, high]`.

        With `scales` means of errors are `standardized_rmse` and the like too.
        """
        names = [it.name for it in list_metrics(self.problem_type)]
        errors = [it for it in names if not METRICS[it].greater_is_better and self.scales]
        labels = list(self.num_known) if len(self.num_known) > 1 else []
        plain = replace(self, scales=None)
        return {
            method: {
                **{name: list(plain.estimate(method, name)) for name in names},
                **{f"standardized_{name}": list(self.estimate(method, name)) for name in errors},
                **{
                    label: {name: list(self.estimate(method, name, label=label)) for name in names}
                    for label in labels
                },
            }
            for method in self.metrics
        }


def score_methods(
    problem_type: str,
    methods: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    label_names: Sequence[str],
    scales: np.ndarray | None = None,
    with_intervals: bool = True,
    seed: int = 0,
) -> Scores:
    """Score the predictions of methods for the same rows, with intervals.

    Args:
        methods (`Mapping[str, np.ndarray]`):
            Predictions of each, `(num_rows, num_outputs)`, as [`compute_metrics`] takes them.
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): Labels, NaN where missing.
        scales (`np.ndarray` of shape `(num_labels,)`, *optional*):
            Of labels in units of their own: what their errors are divided by before the mean.
    """
    labels = np.asarray(labels, dtype=np.float64).reshape(-1, len(label_names))
    known, number = ~np.isnan(labels), len(labels)
    options: dict[str, Any] = {"labels": labels, "label_names": label_names}
    drawn: dict[str, dict[str, np.ndarray]] = {name: {} for name in methods}
    if with_intervals and number:
        num_resamples = int(np.clip(_NUM_DRAWS // number, LEAST_RESAMPLES, MOST_RESAMPLES))
        weights = draw_weights(number, num_resamples=num_resamples, seed=seed)
        drawn = {
            name: _resample(problem_type, it, labels=labels, weights=weights)
            for name, it in methods.items()
        }
    return Scores(
        problem_type,
        int(known.any(axis=1).sum()),
        dict(zip(label_names, known.sum(axis=0).tolist(), strict=True)),
        {
            name: _count_rarest(column[~np.isnan(column)])
            for name, column in zip(label_names, labels.T, strict=True)
        },
        {
            name: compute_metrics(problem_type, it, is_quiet=True, **options)
            for name, it in methods.items()
        },
        drawn,
        None if scales is None else dict(zip(label_names, scales.tolist(), strict=True)),
    )


def _count_rarest(classes: np.ndarray) -> int:
    """Return how many are of the rarest class, 0 where there are no two."""
    counts = np.unique(classes, return_counts=True)[1]
    return int(counts.min()) if len(counts) > 1 else 0


def find_scales(deviations: Sequence[float] | None, labels: np.ndarray) -> np.ndarray:
    """Return the standard deviations of labels: those that are given, or of `labels`."""
    if deviations is not None:
        return np.array(deviations, dtype=np.float64)
    known = [column[~np.isnan(column)] for column in labels.T]
    return np.array([(it.std() if len(it) else 0.0) or 1.0 for it in known])


def average_scaled(
    metrics: Mapping[str, Any], metric: str, *, scales: Mapping[str, float]
) -> float | None:
    """Return the mean of errors of several labels, each divided by its scale."""
    per_label = metrics["per_label"]
    found = [per_label[name].get(metric) for name in scales]
    scaled = [it / of for it, of in zip(found, scales.values(), strict=True) if it is not None]
    return float(np.mean(scaled)) if scaled else None


def _resample(
    problem_type: str, predictions: np.ndarray, *, labels: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return every metric of every resample, `(num_labels, num_resamples)`, by name."""
    found = {}
    for metric in list_metrics(problem_type):
        found[metric.name] = np.full((labels.shape[1], len(weights)), np.nan)
        for idx, column in enumerate(labels.T):
            known = ~np.isnan(column)
            rows = select_known(problem_type, predictions, labels=column, label_idx=idx)
            if len(rows.labels):
                found[metric.name][idx] = metric.resample(rows, weights[:, known])
    return found


def compute_errors(
    problem_type: str | None, predictions: np.ndarray, *, labels: np.ndarray
) -> np.ndarray:
    """Return how wrong every prediction is, `(num_rows, num_labels)`, NaN where no label is.

    The absolute error of a value; of classes 1 - the probability of the one that is right.
    """
    if problem_type != "single_label_classification":
        return np.asarray(np.abs(predictions - labels))
    known = ~np.isnan(labels[:, 0])
    errors = np.full(labels.shape, np.nan)
    classes = labels[known, 0].astype(np.int64)
    errors[known, 0] = 1 - predictions[known, classes]
    return errors


def average_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of what a row has of its labels, `(num_rows,)`, NaN of nothing."""
    number = np.sum(~np.isnan(values), axis=1)
    return np.where(number > 0, np.nansum(values, axis=1) / np.maximum(number, 1), np.nan)


def predict_mean(problem_type: str, labels: np.ndarray, *, num_outputs: int) -> np.ndarray:
    """Return the outputs `(num_outputs,)` of a model that has learned nothing but the labels."""
    if problem_type == "single_label_classification":
        classes = labels[~np.isnan(labels)].astype(np.int64)
        return np.bincount(classes, minlength=num_outputs) / max(len(classes), 1)
    num_known = np.sum(~np.isnan(labels), axis=0)
    return np.asarray(np.nansum(labels, axis=0) / np.maximum(num_known, 1))


def describe_scores(parts: Mapping[str, Scores], *, num_intervals: int | None = None) -> str:
    """Return a table, in Markdown: a row for each part and method, a column for each metric."""
    first = next(iter(parts.values()))
    names = [it.name for it in list_metrics(first.problem_type)]
    rows = [["model", "part", "n", *(first.name_mean(it, it) for it in names)]]
    for part, scores in parts.items():
        for method in scores.metrics:
            cells = [scores.estimate(method, name) for name in names]
            shown = [
                str(it if num_intervals is None or idx < num_intervals else Estimate(it.value))
                for idx, it in enumerate(cells)
            ]
            rows.append([method, part, str(scores.num_rows), *shown])
    return build_table(rows)


def build_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells, the first of them the header, as a table in Markdown."""
    rows = [[cell.replace("|", "/") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def describe_each(scores: Scores, *, names: Mapping[str, str] | None = None) -> list[str]:
    """Return a table, in Markdown, of every method's first metric of each of several labels."""
    if len(scores.num_known) == 1:
        return []
    metric = list_metrics(scores.problem_type)[0]
    rows = [[f"{metric.title} of", "n", *scores.metrics]]
    for label, number in [*scores.num_known.items()][:MOST_LABELS]:
        cells = [str(scores.estimate(it, metric.name, label=label)) for it in scores.metrics]
        rows.append([(names or {}).get(label, label), str(number), *cells])
    return [build_table(rows)]


def describe_verdict(
    scores: Scores,
    method: str,
    *,
    references: Iterable[str] = (),
    rivals: Sequence[str] = (),
    unit: str = "",
    noun: str = "rows",
    names: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
) -> list[str]:
    """Return what may be said of a method: its metric, and where it stands beside others.

    `names` are those of labels as they were learned, `units` of their errors. On each of several
    labels it is compared with the best of its `rivals`.
    """
    metric = list_metrics(scores.problem_type)[0]
    own = scores.estimate(method, metric.name)
    one = noun.removesuffix("s")
    these = f"this {one}" if scores.num_rows == 1 else f"these {say_count(scores.num_rows, one)}"
    if not scores.num_rows:
        return [f"{metric.title} of {method} is unknown: all labels of the {noun} are bounds."]
    if own.value is None:
        return [f"{metric.title} of {method} is undefined on {these}."]
    of_labels, title = "", scores.name_mean(metric.title, metric.name)
    if found := scores.list_labels(method, metric.name):
        number, known = len(scores.num_known), len(found)
        of_labels = f", mean of {known} of {number} labels" if known < number else ""
        of_labels = of_labels or f", mean of {number} labels"
    lines = [f"{method}: {title}{of_labels} {format_metric(own.value)}{_add(unit)}"]
    if own.low is not None:
        ends = " to ".join(map(format_metric, own[1:]))
        lines[0] += f" ({COVERAGE:.0%} interval {ends})"
    lines[0] += f" on {say_count(scores.num_rows, one)}."
    if title != metric.title:
        lines.append(
            f"{title} is the {metric.title} of each label divided by its standard deviation in "
            "training, as labels in units of their own have no other mean."
        )
    if len(found) > 1 and rivals:
        lines += _compare_labels(scores, method, rivals=rivals, names=names or {}, units=units)
    elif len(found) > 1:
        lines += describe_spread(scores, method, names=names or {})
    lines += [
        text
        for it in references
        if (text := _describe_difference(scores, (method, it), these=these, unit=unit))
    ]
    if reason := _find_doubt(scores, one=one):
        lines.append(reason)
    return lines


def _find_doubt(scores: Scores, *, one: str) -> str:
    """Say why the rows decide nothing, or not much."""
    few = scores.count_rarest()
    if few < _LEAST_DECIDING:
        of_labels = " in half of the labels" * (len(scores.num_rarest) > 1)
        return (
            f"Nothing is decided: of {say_count(scores.num_rows, one)} {few} "
            f"{'is' if few == 1 else 'are'} of the rarest class{of_labels}, and with fewer than "
            f"{_LEAST_DECIDING} of a class chance decides. Test more of it: --split kfold, or more "
            "rows."
        )
    is_few = scores.num_rows < FEW_ROWS
    return f"Only {say_count(scores.num_rows, one)}: others could reverse this." * is_few


def _compare_labels(
    scores: Scores,
    method: str,
    *,
    rivals: Sequence[str],
    names: Mapping[str, str],
    units: Mapping[str, str] | None,
) -> list[str]:
    """Return where a method stands on each label beside the best rival, of many how often."""
    metric, counts, lines = list_metrics(scores.problem_type)[0], dict[str, int](), []
    for label in scores.list_labels(method, metric.name):
        best = scores.find_best(rivals, label=label)
        if best is None:
            continue
        verdict, found = scores.judge(method, best, label=label)
        own, other = (scores.estimate(it, metric.name, label=label) for it in (method, best))
        unit, number = (units or {}).get(label, ""), say_count(scores.num_known[label], "row")
        number = f"only {number}" if scores.num_known[label] < FEW_ROWS else number
        if (few := scores.count_rarest(label)) < math.inf:
            number += f", {few} of the rarest class"
        text = f"{names.get(label, label)}: {metric.title} {format_metric(own.value)}{_add(unit)}"
        beside = f"{best} ({format_metric(other.value)})"
        if verdict == UNDECIDED:
            text += f" beside {beside}; {number}: too few to decide."
        else:
            text += f", {verdict or 'beside'} {beside}: difference {found}; {number}."
        lines.append(text)
        counts[verdict] = counts.get(verdict, 0) + 1
    if len(lines) <= _MOST_COMPARED:
        return lines
    better, worse = (counts.get(f"{it} than", 0) for it in ("better", "worse"))
    return [
        *describe_spread(scores, method, names=names),
        f"Beside the best other on each of {len(lines)} labels, {method} is better on {better}, "
        f"worse on {worse}; {len(lines) - better - worse} are not decided.",
    ]


def describe_spread(scores: Scores, method: str, *, names: Mapping[str, str]) -> list[str]:
    """Return how good each of a few labels is, of more the worst and the best."""
    metrics = list_metrics(scores.problem_type)
    # errors are in the units of each label: what is no error can be compared
    is_few = len(scores.num_known) <= _MOST_NAMED
    metric = metrics[0] if is_few else next(it for it in metrics if it.greater_is_better)
    listed = scores.list_labels(method, metric.name)
    found = {names.get(label, label): it for label, it in listed.items()}
    if len(found) < 2:
        return []
    shown = sorted(found.items(), key=lambda it: it[1])
    if is_few:
        each = ", ".join(f"{name} {format_metric(it)}" for name, it in found.items())
        return [f"{metric.title} of each label: {each}."]
    (worst, low), (best, high) = shown[0], shown[-1]
    return [
        f"{metric.title} of the labels: worst {worst} {format_metric(low)}, best {best} "
        f"{format_metric(high)}."
    ]


def find_inside(
    trust: Mapping[str, np.ndarray], labels: np.ndarray, *, class_names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return whether intervals or sets hold the labels, and how wide they are, if there are some.

    Args:
        labels (`np.ndarray` of shape `(num_rows, num_labels)`): Measured, NaN where missing.

    Returns:
        Two `np.ndarray` of shape `(num_rows, num_labels)`: 0 or 1, NaN where unknown; the width, of
        a set the number of its classes.
    """
    if "lower" in trust:
        width = trust["upper"] - trust["lower"]
        inside = (trust["lower"] <= labels) & (labels <= trust["upper"])
    elif "is_possible" in trust:
        possible, num_labels = trust["is_possible"], labels.shape[1]
        if class_names is not None:
            width = possible.sum(axis=1, keepdims=True)
            classes = np.nan_to_num(labels).astype(np.int64)
            inside = np.take_along_axis(possible, classes, axis=1)
        else:
            yes, no = possible[:, :num_labels], possible[:, num_labels:]
            inside, width = np.where(labels == 1, yes, no), yes + no
    else:
        return None
    return np.where(np.isnan(labels) | np.isnan(width), np.nan, inside), width


def judge_coverage(
    name: str,
    trust: Mapping[str, np.ndarray],
    *,
    labels: np.ndarray,
    label_names: Sequence[str],
    coverage: float,
    class_names: Sequence[str] | None = None,
    noun: str = "molecules",
) -> list[str]:
    """Return whether intervals of each label, or sets of each class, hold as many as asked."""
    found = find_inside(trust, labels, class_names=class_names)
    if found is None:
        return []
    groups, inside = {}, found[0]
    kind, too_few = "intervals", "too narrow for these molecules"
    if "lower" in trust:
        groups = {f"measured values of {it}": inside[:, idx] for idx, it in enumerate(label_names)}
    else:
        kind, too_few = "sets", "they do not hold for these molecules"
        names = class_names or ("0", "1")
        for idx, label in enumerate(label_names):
            for value, of_class in enumerate(names):
                own = inside[labels[:, idx] == value, idx]
                groups[f"{noun} of class {of_class} of {label}"] = own
    if len(groups) > _MOST_JUDGED:
        num_labels = int((~np.isnan(inside)).any(axis=0).sum())
        groups = {f"values of {say_count(num_labels, 'label')}": np.concatenate([*groups.values()])}
    lines = []
    for what, held in groups.items():
        known = held[~np.isnan(held)]
        if not len(known):
            continue
        result = binomtest(int(known.sum()), len(known))
        low, high = result.proportion_ci(method="wilson")
        verdict = _judge_share(result.statistic, (low, high), number=result.n, wanted=coverage)
        lines.append(
            f"{name}: {kind} of {coverage:.0%} hold {result.statistic:.0%} of {result.n} {what} "
            f"(95% interval {low:.0%} to {high:.0%}): {verdict or too_few}."
        )
    return lines


def _judge_share(
    share: float, interval: tuple[float, float], *, number: int, wanted: float
) -> str | None:
    """Return what a share of some rows says of the one that was asked for; nothing of too small."""
    if number < _LEAST_JUDGED:
        return "too few to judge"
    if not interval[0] <= wanted <= interval[1]:
        return None if interval[1] < wanted else "too wide"
    is_vague = share < wanted and number < _FEW_TO_JUDGE
    end = "; so few cannot show a small shortfall" if is_vague else ""
    return f"in line with the {wanted:.0%} asked for{end}"


def _describe_difference(scores: Scores, pair: tuple[str, str], *, these: str, unit: str) -> str:
    method, reference = pair
    metric = list_metrics(scores.problem_type)[0]
    verdict, found = scores.judge(method, reference)
    if not verdict:
        return ""
    other = format_metric(scores.estimate(reference, metric.name).value)
    title = scores.name_mean(metric.title, metric.name)
    return (
        f"{method} {'' if verdict == UNDECIDED else 'is '}{verdict} {reference} ({title} {other}) "
        f"on {these}: difference {found}{_add(unit)}."
    )


def _add(unit: str) -> str:
    return f" {unit}" if unit else ""


def _build_estimate(value: float | None, resamples: np.ndarray | None) -> Estimate:
    """Return a value with the percentiles of its resamples, if most of these are defined.

    Those of labels, `(num_labels, num_resamples)`, are averaged as [`compute_metrics`] has it.
    """
    averages = np.empty(0) if resamples is None else average_known(resamples.T)
    known = averages[~np.isnan(averages)]
    if value is None or len(known) * 2 <= len(averages):
        return Estimate(value)
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
