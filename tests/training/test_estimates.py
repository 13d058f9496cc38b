from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rmat_hf.training.estimates import (
    MEAN_OF_TRAIN,
    Estimate,
    describe_scores,
    describe_verdict,
    draw_weights,
    find_scales,
    judge_coverage,
    predict_mean,
    score_methods,
)
from rmat_hf.training.metrics import METRICS, ScoredRows, compute_metrics, list_metrics

NUM_ROWS = 40
KINDS = ["regression", "multi_label_classification", "single_label_classification"]


def build_rows(problem_type: str, *, num_rows: int = NUM_ROWS, seed: int = 0) -> ScoredRows:
    """Rows with ties, of which the predictions know something."""
    rng = np.random.default_rng(seed)
    if problem_type == "regression":
        labels = rng.normal(size=num_rows).round(1)
        return ScoredRows(labels, (labels + rng.normal(size=num_rows)).round(1))
    num_classes = 2 if problem_type == "multi_label_classification" else 3
    classes = rng.integers(num_classes, size=num_rows)
    probabilities = rng.dirichlet([1] * num_classes, size=num_rows).round(1)
    probabilities[np.arange(num_rows), classes] += 0.3
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return ScoredRows(classes, probabilities.argmax(axis=1), probabilities)


@pytest.mark.parametrize("problem_type", KINDS)
@pytest.mark.parametrize("num_rows", [3, NUM_ROWS])
def test_a_resampled_metric_is_that_of_the_drawn_rows(problem_type: str, num_rows: int) -> None:
    rows = build_rows(problem_type, num_rows=num_rows)
    weights = draw_weights(num_rows, num_resamples=8, seed=1)
    assert (weights.sum(axis=1) == num_rows).all()
    for metric in list_metrics(problem_type):
        found = metric.resample(rows, weights)
        for value, counts in zip(found, weights.astype(int), strict=True):
            drawn = np.repeat(np.arange(num_rows), counts)
            probabilities = None if rows.probabilities is None else rows.probabilities[drawn]
            expected = metric.compute(
                ScoredRows(rows.labels[drawn], rows.predictions[drawn], probabilities)
            )
            expected = np.nan if expected is None else expected
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True), metric.name


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """200 samples of 60 rows with errors of standard deviation 1: an RMSE of 1, intervals of 95 %.

    Percentiles of a bootstrap are a little narrow at 60 rows.
    """
    rng = np.random.default_rng(0)
    weights = draw_weights(60, num_resamples=500, seed=0)
    num_held = 0
    for _ in range(200):
        labels = rng.normal(size=60)
        rows = ScoredRows(labels, labels + rng.normal(size=60))
        low, high = np.quantile(METRICS["rmse"].resample(rows, weights), [0.025, 0.975])
        num_held += low <= 1.0 <= high
    assert 0.88 <= num_held / 200 <= 0.98


def test_metrics_of_several_labels_are_means_over_the_known_cells() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(50, 2)).astype(float)
    labels[:10, 0] = labels[45:, 1] = np.nan
    values = rng.random((50, 2))
    kind, names = "multi_label_classification", ["a", "b"]
    scores = score_methods(kind, {"m": values}, labels=labels, label_names=names)
    assert (scores.num_rows, scores.num_known) == (50, {"a": 40, "b": 45})
    expected = [roc_auc_score(labels[10:, 0], values[10:, 0])]
    expected.append(roc_auc_score(labels[:45, 1], values[:45, 1]))
    value, low, high = scores.estimate("m", "roc_auc")
    assert value == pytest.approx(np.mean(expected))
    assert low is not None
    assert high is not None
    assert low < value < high
    assert scores.estimate("m", "roc_auc", label="b").value == pytest.approx(expected[1])
    assert scores.to_json()["m"]["roc_auc"] == [value, low, high]
    assert list(scores.to_json()["m"]) == [it.name for it in list_metrics(kind)] + names


def test_an_undefined_metric_has_no_interval() -> None:
    labels = np.ones((8, 1))
    values = np.full((8, 1), 0.5)
    kind = "multi_label_classification"
    scores = score_methods(kind, {"m": values}, labels=labels, label_names=["y"])
    assert scores.estimate("m", "roc_auc") == Estimate(None, None, None)
    assert "undefined" in describe_verdict(scores, "m")[0]
    empty = score_methods(kind, {"m": values[:0]}, labels=labels[:0], label_names=["y"])
    assert empty.estimate("m", "accuracy").value is None
    told = describe_verdict(empty, "m", noun="test molecules")
    assert told == ["ROC AUC of m is unknown: all labels of the test molecules are bounds."]
    one = score_methods("regression", {"m": values[:1]}, labels=labels[:1], label_names=["y"])
    one.metrics["m"]["rmse"] = None
    told = describe_verdict(one, "m", noun="test molecules")
    assert told == ["RMSE of m is undefined on this test molecule."]


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ((0.5, 1.0), "better than"),
        ((1.0, 1.02), "not clearly better than"),
        ((1.0, 0.5), "worse than"),
    ],
)
def test_a_verdict_rests_on_paired_differences(factors: tuple[float, float], verdict: str) -> None:
    """Two methods with nearly the same errors are told apart although their intervals overlap."""
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(65, 1))
    errors = rng.standard_t(2, size=(65, 1))
    noise = rng.normal(scale=0.3, size=(65, 1))
    methods = {"m": labels + factors[0] * errors, "svm": labels + factors[1] * errors + noise}
    scores = score_methods("regression", methods, labels=labels, label_names=["y"])
    own, text = describe_verdict(scores, "m", references=["svm"], unit="kcal/mol", noun="molecules")
    assert "on 65 molecules" in own
    assert f"m is {verdict} svm" in text
    found = scores.compare("m", "svm", metric="rmse")
    assert found.value == pytest.approx(
        scores.metrics["m"]["rmse"] - scores.metrics["svm"]["rmse"], abs=1e-12
    )
    assert f"difference {found.value:.3f} [{found.low:.3f}, " in text
    assert text.endswith("kcal/mol.")


def test_more_is_better_for_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(80, 1)).astype(float)
    methods = {"m": 0.9 * labels + 0.1 * rng.random((80, 1)), "chance": rng.random((80, 1))}
    kind = "multi_label_classification"
    scores = score_methods(kind, methods, labels=labels, label_names=["y"])
    assert "m is better than chance" in describe_verdict(scores, "m", references=["chance"])[1]
    assert "chance is worse than m" in describe_verdict(scores, "chance", references=["m"])[1]


def test_a_mean_counts_the_labels_that_are_scored_and_the_extremes_are_named() -> None:
    rng = np.random.default_rng(0)
    names = [f"y{idx}" for idx in range(5)]
    labels = rng.normal(size=(60, 5)) * [1, 100, 1, 1, 1]
    methods = {"m": labels + rng.normal(size=(60, 5)) * [0.1, 50, 0.8, 0.2, 0.2]}
    labels[:, 4] = np.nan
    lines = {}
    for number in (2, 5):
        given = {"labels": labels[:, -number:], "label_names": names[-number:]}
        predicted = {"m": methods["m"][:, -number:]}
        lines[number] = describe_verdict(score_methods("regression", predicted, **given), "m")
    assert "RMSE, mean of 4 of 5 labels " in lines[5][0]
    # errors of other units are not compared
    assert lines[5][1].startswith("R² of the labels: worst y2 ")
    assert " best y0 " in lines[5][1]
    assert "mean of 1 of 2 labels" in lines[2][0] and "each label" not in "".join(lines[2])
    scores = score_methods(
        "regression",
        {"m": methods["m"][:, :2]},
        labels=labels[:, :2],
        label_names=names[:2],
    )
    assert describe_verdict(scores, "m")[1].startswith("RMSE of each label: y0 0.")
    learned = describe_verdict(scores, "m", names={"y0": "pKi of y0"})[1]
    assert learned.startswith("RMSE of each label: pKi of y0 0.") and ", y1 " in learned


def build_labels_of_two_scales() -> dict[str, Any]:
    """Of 60 rows a pIC50 that is predicted well and a solubility that is not."""
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(60, 2)) * [1.0, 40.0]
    methods = {
        "m": labels + rng.normal(size=(60, 2)) * [0.1, 60.0],
        "forest": labels + rng.normal(size=(60, 2)) * [0.6, 10.0],
        MEAN_OF_TRAIN: np.zeros((60, 2)),
    }
    return {"methods": methods, "labels": labels, "label_names": ["pIC50", "solubility"]}


def test_errors_of_labels_in_other_units_are_averaged_in_standard_deviations() -> None:
    rows = build_labels_of_two_scales()
    scales = find_scales(None, rows["labels"])
    scores = score_methods("regression", **rows, scales=scales)
    per_label = scores.metrics["m"]["per_label"]
    own = [per_label[name]["rmse"] for name in rows["label_names"]]
    value, low, high = scores.estimate("m", "rmse")
    assert value == pytest.approx(np.mean(own / scales))
    assert low is not None and high is not None and low < value < high < 2
    assert scores.estimate("m", "r2").value == scores.metrics["m"]["r2"]
    found = scores.compare("m", "forest", metric="rmse")
    assert found.value == pytest.approx(value - scores.estimate("forest", "rmse")[0])
    # what files have had stays
    stored = scores.to_json()["m"]
    assert stored["rmse"][0] == pytest.approx(np.mean(own))
    assert stored["standardized_rmse"] == [value, low, high]
    assert "rmse/SD" in describe_scores({"test": scores})
    first, about, *_ = describe_verdict(scores, "m", references=["forest"])
    assert f"RMSE/SD, mean of 2 labels {value:.3f}" in first
    assert "standard deviation" in about


def test_each_label_has_a_verdict_beside_the_best_of_the_others() -> None:
    rows = build_labels_of_two_scales()
    scores = score_methods("regression", **rows)
    names, units = {"pIC50": "pIC50 of IC50"}, {"solubility": "ug/mL"}
    options: dict[str, Any] = {"rivals": ["forest", MEAN_OF_TRAIN], "names": names, "units": units}
    _, first, second = describe_verdict(scores, "m", **options)
    assert first.startswith("pIC50 of IC50: RMSE 0.") and "better than forest (0." in first
    assert second.startswith("solubility: RMSE ") and " ug/mL, worse than forest (" in second
    # of many it is counted
    many = {name: np.tile(it, (1, 5)) for name, it in rows["methods"].items()}
    labels, label_names = np.tile(rows["labels"], (1, 5)), [f"y{idx}" for idx in range(10)]
    scores = score_methods("regression", many, labels=labels, label_names=label_names)
    lines = describe_verdict(scores, "m", **options)
    assert "each of 10 labels, m is better on 5, worse on 5; 0 are not decided" in lines[-1]


@pytest.mark.parametrize(("num_yes", "is_decided"), [(1, False), (9, False), (20, True)])
def test_few_rows_of_a_class_decide_nothing(num_yes: int, is_decided: bool) -> None:
    labels = (np.arange(100) < num_yes).astype(float)[:, None]
    rng = np.random.default_rng(0)
    methods = {"m": 0.1 * labels + 0.01 * rng.random((100, 1)), "forest": rng.random((100, 1))}
    kind = "multi_label_classification"
    scores = score_methods(kind, methods, labels=labels, label_names=["y"])
    text = " ".join(describe_verdict(scores, "m", references=["forest"]))
    assert ("m is better than forest" in text) == is_decided
    assert (f"of 100 rows {num_yes} " in text and "fewer than 10 of a class" in text) != is_decided
    # a label without rows, or of one class, is none of those that decide
    three = np.concatenate([labels, np.full((100, 1), np.nan), np.ones((100, 1))], axis=1)
    values = {name: np.tile(it, (1, 3)) for name, it in methods.items()}
    given: dict[str, Any] = {"labels": three, "label_names": ["y", "none", "one"]}
    text = " ".join(describe_verdict(score_methods(kind, values, **given), "m"))
    assert ("Nothing is decided" in text) != is_decided
    # of several labels the one with too few
    two, columns = {"a": labels[:, 0], "b": np.arange(100) % 2.0}, ["a", "b"]
    scores = score_methods(
        kind,
        {name: np.tile(it, (1, 2)) for name, it in methods.items()},
        labels=np.stack([*two.values()], axis=1),
        label_names=columns,
    )
    of_a, of_b = describe_verdict(scores, "m", rivals=["forest"])[1:3]
    assert ("too few to decide" in of_a) != is_decided
    assert "too few" not in of_b and "50 of the rarest class" in of_b


def test_few_rows_are_said_to_be_few() -> None:
    labels = np.arange(6.0)[:, None]
    scores = score_methods("regression", {"m": labels + 1}, labels=labels, label_names=["y"])
    assert "Only 6 rows: " in describe_verdict(scores, "m")[-1]


def test_the_mean_of_train_is_what_a_model_has_to_beat() -> None:
    labels = np.array([[1.0, 0.0], [3.0, np.nan], [np.nan, 1.0]])
    np.testing.assert_allclose(predict_mean("regression", labels, num_outputs=2), [2.0, 0.5])
    classes = np.array([[0.0], [2.0], [2.0], [np.nan]])
    kind = "single_label_classification"
    np.testing.assert_allclose(predict_mean(kind, classes, num_outputs=3), [1 / 3, 0, 2 / 3])


def test_table_has_a_row_for_each_part_and_method_with_its_number_of_rows() -> None:
    labels = np.arange(9.0)[:, None]
    labels[0] = np.nan
    methods = {"m": np.arange(9.0)[:, None] + 0.5, MEAN_OF_TRAIN: np.full((9, 1), 4.5)}
    scores = score_methods("regression", methods, labels=labels, label_names=["y"])
    lines = describe_scores({"valid": scores, "test": scores}, num_intervals=1).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["model", "part", "n", "rmse", "mae", "r2", "spearman"]
    assert [row[:3] for row in rows[2:4]] == [["m", "valid", "8"], [MEAN_OF_TRAIN, "valid", "8"]]
    assert rows[4][3] == "0.500 [0.500, 0.500]"
    assert rows[4][4] == "0.500"
    assert rows[5][6] == "–"
    metrics = compute_metrics("regression", methods["m"], labels=labels, label_names=["y"])
    assert scores.metrics["m"] == metrics


@pytest.mark.parametrize(
    ("num_inside", "verdict"), [(90, "90% asked for"), (70, "too narrow"), (100, "too wide")]
)
def test_intervals_are_judged_by_what_they_hold(num_inside: int, verdict: str) -> None:
    values = np.zeros((101, 1))
    labels = np.where(np.arange(101) < num_inside, 0.5, 2.0)[:, None]
    labels[100] = np.nan
    ends = {"lower": values - 1, "upper": values + 1}
    (text,) = judge_coverage("m", ends, labels=labels, label_names=["y"], coverage=0.9)
    assert verdict in text
    assert f"{num_inside}%" in text
    assert "100 measured" in text


def test_few_rows_are_said_to_show_no_small_shortfall() -> None:
    labels = np.where(np.arange(14) < 11, 0.5, 2.0)[:, None]
    ends = {"lower": np.full_like(labels, -1.0), "upper": np.ones_like(labels)}
    options: dict[str, Any] = {"label_names": ["y"], "coverage": 0.9}
    (few,) = judge_coverage("m", ends, labels=labels, **options)
    assert "79% of 14" in few and "shortfall" in few
    many = {name: np.tile(it, (10, 1))[:, :1] for name, it in ends.items()}
    labels = np.where(np.arange(140) < 126, 0.5, 2.0)[:, None]
    assert "shortfall" not in judge_coverage("m", many, labels=labels, **options)[0]


@pytest.mark.parametrize(("num_rows", "verdict"), [(4, "too few to judge"), (40, "too narrow")])
def test_few_rows_give_no_verdict(num_rows: int, verdict: str) -> None:
    labels = np.tile([0.5, 2.0], num_rows // 2)[:, None]
    ends = {"lower": np.full_like(labels, -1.0), "upper": np.ones_like(labels)}
    (text,) = judge_coverage("m", ends, labels=labels, label_names=["y"], coverage=0.9)
    assert f"50% of {num_rows} measured" in text
    assert verdict in text


def test_sets_are_judged_for_each_class() -> None:
    labels = np.repeat([0.0, 1.0], 100)[:, None]
    # every 1 is held, of the 0 a half
    possible = np.stack([np.ones(200), np.r_[np.tile([1.0, 0.0], 50), np.zeros(100)]], axis=1)
    options = {"labels": labels, "label_names": ["y"], "coverage": 0.9}
    first, second = judge_coverage("m", {"is_possible": possible}, **options)
    assert "hold 50% of 100 molecules of class 0 of y" in first
    assert "do not hold" in first
    assert "100% of 100 molecules of class 1" in second
    # of a single label with classes the columns are those of the classes
    names = ["low", "high"]
    low, _ = judge_coverage("m", {"is_possible": possible[:, ::-1]}, **options, class_names=names)
    assert "50% of 100 molecules of class low" in low
