"""Bounds, weights, transforms and labels of two kinds, from a table to predictions."""

import csv
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from processes import predict_without_package

from rmat_hf import evaluate, explain, finetune, predict
from rmat_hf.errors import UserError
from rmat_hf.inference.screening import PredictionArguments, run_prediction
from rmat_hf.training.finetuning import FinetuningResult

SMILES = ["C" * size + end for end in ("O", "N", "F", "C#N", "") for size in range(1, 9)]
SIZES = np.array([len(smiles.replace("#", "")) for smiles in SMILES], dtype=float)
LIMIT = 6.0
PARTS = np.where(np.arange(len(SMILES)) % 5 == 1, "valid", "train")
PARTS[np.arange(len(SMILES)) % 5 == 2] = "test"


Run = Callable[..., FinetuningResult]
slow_heads = [pytest.param(it, marks=pytest.mark.slow) for it in ("network", "stack")]
each_head = pytest.mark.parametrize("head", ["kernel", *slow_heads])


@pytest.fixture
def run(tiny_encoder: Path, tmp_path: Path) -> Run:
    """Finetune on a table: `run(columns, head=..., ...)`."""

    def finetune_table(columns: dict[str, Any], name: str = "run", **options: Any) -> Any:
        table = pd.DataFrame({"smiles": SMILES, "part": PARTS, **columns})
        labels = options.pop("label_columns", [it for it in columns if it.startswith("y")])
        fields: dict[str, Any] = {"head": "kernel", "kernel_features": ["ecfp4", "atom_pairs"]}
        fields |= {"num_workers": 0, "feature_cache": "none", "model": str(tiny_encoder)}
        fields |= {"split": "column", "split_column": "part", **options}
        if fields["head"] == "network":
            del fields["kernel_features"]
            fields = {"learning_rate": 3e-3, "num_train_epochs": 30, **fields}
        return finetune(table, label_columns=labels, output_dir=tmp_path / name, **fields)

    return finetune_table


def censor(values: np.ndarray) -> list[str]:
    return [f">{LIMIT}" if it > LIMIT else str(it) for it in values]


def read_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@each_head
def test_bounds_teach_what_their_numbers_hide(run: Run, head: str) -> None:
    """Beyond the bound predictions go on growing; taken for numbers it holds them back."""
    large = ["C" * size + "O" for size in (7, 8)]
    bounded = run({"y": censor(SIZES)}, "bounded", head=head)
    as_numbers = run({"y": np.minimum(SIZES, LIMIT)}, "as_numbers", head=head)
    means = [predict(it.output_dir, large).values.mean() for it in (bounded, as_numbers)]
    assert means[0] > means[1] + 0.1
    config = json.loads((bounded.output_dir / "config.json").read_text())
    assert config["loss"] == "bounded"
    # metrics are of what was measured
    rows = read_rows(bounded.output_dir)
    test = [it for it in rows if it["split"] == "test" and it["relation_y"] == "="]
    errors = [float(it["y"]) - float(it["prediction_y"]) for it in test]
    assert bounded.metrics["test"]["rmse"] == pytest.approx(
        np.sqrt(np.mean(np.square(errors))), rel=1e-4
    )
    assert {it["relation_y"] for it in rows} == {"=", ">"}
    assert any("labels are bounds" in note for note in bounded.notes)
    lines = bounded.summary.splitlines()
    assert any("labels are bounds" in line for line in lines)
    # and so are their numbers of rows
    known = [it for it in rows if it["split"] != "test"]
    num_bounds = sum(it["relation_y"] == ">" for it in known)
    if head != "network":
        assert f"all {len(known) - num_bounds} rows of train and valid" in bounded.summary
        assert f"({num_bounds} bounds beside)" in bounded.summary
    card = (bounded.output_dir / "README.md").read_text()
    num_bounds = sum(it["relation_y"] == ">" for it in rows)
    assert f"y: {len(rows) - num_bounds} values and {num_bounds} bounds, mean" in card


@each_head
def test_rows_that_weigh_next_to_nothing_are_as_if_they_were_not_there(run: Run, head: str) -> None:
    is_wrong = (np.arange(len(SMILES)) % 5 == 3) & (PARTS == "train")
    labels = np.where(is_wrong, 50.0, SIZES)
    weights = np.where(is_wrong, 1e-9, 1.0)
    weighed = run({"y": labels, "w": weights}, "weighed", head=head, weight_column="w")
    plain = run({"y": labels}, "plain", head=head)
    assert weighed.metrics["test"]["rmse"] < 3.0 < plain.metrics["test"]["rmse"]


@each_head
def test_logarithms_are_learned_and_concentrations_predicted(
    run: Run, head: str, tmp_path: Path
) -> None:
    concentrations = 10 ** (9 - SIZES)
    options = {"label_transform": ["pIC50"], "label_units": ["nM"], "head": head}
    result = run({"y": concentrations}, **options)
    assert result.metrics["train"]["rmse"] < 2.0
    assert result.metrics["train"]["in_table_units"]["rmse"] > 1e3
    found = predict(result.output_dir, SMILES).values[:, 0]
    assert (found > 0).all() and np.corrcoef(np.log10(found), SIZES)[0, 1] < -0.5
    is_test = PARTS == "test"
    trusted = predict(result.output_dir, list(np.array(SMILES)[is_test]))
    row = read_rows(result.output_dir)[0]
    assert float(row["y"]) == pytest.approx(concentrations[int(row["row"])], rel=1e-6)
    # rows that contradict each other do so in the units that are learned
    twice = {"y": concentrations, "smiles": [SMILES[1], *SMILES[1:]]}
    pairs = run(twice, "pairs", **options | {"head": "kernel"})
    assert re.search(r"pIC50 of y is \d\.\d+ and \d\.\d+$", pairs.dropped[0].reason)
    # a spread has its name of the table, and is that of logarithms
    options = {"model": str(result.output_dir), "output": str(tmp_path / "predicted.csv")}
    screened = run_prediction(PredictionArguments(num_workers=0, smiles=SMILES[:2], **options))
    assert ("spread_y is in units of pIC50" in "".join(screened.notes)) == (head != "network")
    card = (result.output_dir / "README.md").read_text()
    assert "y (nM)" in card and "pIC50 of y (nM)" in card
    assert "log units" in result.summary and "times (10^" in result.summary
    if head == "network":
        return  # of eight rows of valid there are no intervals
    # those of the test part are judged as those of other labels are
    low, high, true = trusted.lower[:, 0], trusted.upper[:, 0], concentrations[is_test]
    inside = np.mean((low <= true) & (true <= high))
    assert f"hold {inside:.0%} of {is_test.sum()} measured values of y" in result.summary


MIXED = {"y": SIZES, "y_large": (SIZES > LIMIT).astype(int)}


@pytest.mark.parametrize("head", ["kernel", *slow_heads[:1]])
def test_numbers_and_classes_in_one_model(run: Run, head: str) -> None:
    result = run(MIXED, head=head, class_columns=["y_large"])
    metrics = result.metrics["test"]["per_label"]
    assert {*metrics["y"]} == {"rmse", "mae", "r2", "spearman"}
    assert metrics["y_large"]["roc_auc"] > 0.8
    found = predict(result.output_dir, SMILES)
    columns = found.to_columns()
    assert all(0 <= it <= 1 for it in columns["prediction_y_large"])
    for row in read_rows(result.output_dir):
        if head == "network" or row["split"] == "test":
            predicted = columns["prediction_y_large"][int(row["row"])]
            assert float(row["prediction_y_large"]) == pytest.approx(predicted, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["kernel", "network"])
def test_numbers_and_classes_are_predicted_without_the_package(
    run: Run, head: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"class_columns": ["y_large"], "label_units": ["nM", ""]}
    options |= {"label_transform": ["pIC50", "none"]}
    result = run({**MIXED, "y": 10 ** (9 - SIZES)}, head=head, **options)
    good, bad = predict_without_package(result.output_dir, ["CCO", "C1CC"], folder=tmp_path)
    expected = predict(result.output_dir, ["CCO"]).values[0]
    number, label = good["predictions"]
    assert number["value"] == pytest.approx(expected[0], rel=1e-4) and number["unit"] == "nM"
    assert label["score"] == pytest.approx(expected[1], abs=1e-5) and "unit" not in label
    assert bad["predictions"] is None


PH = np.tile([5.0, 7.4, 9.0, 6.1], len(SMILES) // 4)
ASSAYS = np.tile(["a", "b", "a", "b", "b"], len(SMILES) // 5)


@each_head
def test_a_covariate_that_decides_the_label_is_learned(run: Run, head: str, tmp_path: Path) -> None:
    shift = np.where(ASSAYS == "a", 3.0, 0.0)
    columns = {"y": 2 * PH + shift, "pH": PH, "assay": ASSAYS}
    fields = {"num_train_epochs": 60, "learning_rate": 1e-2} if head == "network" else {}
    options: dict[str, Any] = {"head": head, "feature_columns": ["pH", "assay"], **fields}
    result = run(columns, **options)
    assert result.metrics["test"]["r2"] > 0.95
    # as a table, as a file and as columns beside molecules
    table = pd.DataFrame({"smiles": SMILES, "pH": PH, "assay": ASSAYS})
    found = predict(result.output_dir, table)["prediction_y"].to_numpy()
    assert np.corrcoef(found, columns["y"])[0, 1] ** 2 > 0.95
    beside = predict(result.output_dir, SMILES, covariates={"pH": PH, "assay": ASSAYS})
    np.testing.assert_allclose(beside.values[:, 0], found, rtol=1e-4, atol=1e-4)
    table.to_csv(tmp_path / "library.csv", index=False)
    files = {"input": str(tmp_path / "library.csv"), "output": str(tmp_path / "predicted.csv")}
    run_prediction(PredictionArguments(model=str(result.output_dir), num_workers=0, **files))
    written = pd.read_csv(tmp_path / "predicted.csv")["prediction_y"]
    np.testing.assert_allclose(written, found, rtol=1e-4, atol=1e-4)
    # under another name for the molecules, with labels and rows that cannot be read
    measured = table.rename(columns={"smiles": "Structure"}).assign(y=columns["y"])
    measured.loc[len(measured)] = ["C1CC", 7.0, "a", 1.0]
    scored = evaluate(result.output_dir, measured)
    assert scored.skipped[0].smiles == "C1CC"
    assert next(iter(scored.scores.metrics.values()))["r2"] > 0.95
    # what is missing is the mean of training
    known = PH[PARTS == "train" if head == "network" else PARTS != "test"].mean()
    means = {"pH": [None, known], "assay": ["new", None]}
    first, second = predict(result.output_dir, ["CCO", "CCO"], covariates=means).values[:, 0]
    assert first == pytest.approx(second, abs=1e-2)


def test_covariates_of_a_prediction_are_read_as_training_read_them(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "rmat_hf")
    cells = [str(it).replace(".", ",") for it in PH]
    result = run({"y": 2 * PH, "pH": cells, "assay": ASSAYS}, feature_columns=["pH", "assay"])
    assert result.metrics["test"]["r2"] > 0.95
    table = pd.DataFrame({"smiles": SMILES, "pH": cells, "assay": ASSAYS})
    numbers = predict(result.output_dir, table.assign(pH=PH))["prediction_y"]
    # cells that are none of what was learned
    table.loc[0, "pH"], table.loc[1, "assay"] = "12 mg", "new"
    table.to_csv(tmp_path / "library.csv", index=False, sep=";")
    files = {"input": str(tmp_path / "library.csv"), "output": str(tmp_path / "predicted.csv")}
    options: Any = {"model": str(result.output_dir), "num_workers": 0, "overwrite": True, **files}
    screened = run_prediction(PredictionArguments(**options, chunk_size=7))
    written, found = pd.read_csv(tmp_path / "predicted.csv"), predict(result.output_dir, table)
    assert written["pH"].tolist() == table["pH"].tolist()
    for predicted in (written, found):
        np.testing.assert_allclose(predicted["prediction_y"][2:], numbers[2:], rtol=1e-4, atol=1e-4)
        assert "'12 mg'" in predicted["warning"][0] and "'new'" in predicted["warning"][1]
    assert sum(number for text, number in screened.warnings.items() if "'12 mg'" in text) == 1
    assert caplog.messages == []
    evaluate(result.output_dir, table.assign(y=2 * PH))
    assert "2 rows" in caplog.text and "'12 mg'" in caplog.text
    caplog.clear()
    table.drop(columns="pH").to_csv(tmp_path / "library.csv", index=False)
    run_prediction(PredictionArguments(**options, chunk_size=7))
    assert caplog.text.count("pH") == 1 and "has no column pH" in caplog.text
    caplog.clear()
    evaluate(result.output_dir, table.drop(columns="pH").assign(y=2 * PH))
    assert caplog.text.count("has no column pH") == 1 and "covariates=" not in caplog.text


def test_a_comma_before_three_digits_is_read_as_training_read_it_or_not_at_all(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "rmat_hf")
    cells = [str(it).replace(".", ",") for it in PH]
    folder = run({"y": 2 * PH, "pH": cells}, feature_columns=["pH"]).output_dir
    number, mean = predict(folder, ["CCO"] * 2, covariates={"pH": [7.412, None]}).values[:, 0]

    def screen(cells: list[str], *, separator: str = ",", chunk_size: int = 2) -> pd.DataFrame:
        table = pd.DataFrame({"smiles": ["CCO"] * len(cells), "pH": cells})
        table.to_csv(tmp_path / "library.csv", index=False, sep=separator)
        files = {"input": str(tmp_path / "library.csv"), "output": str(tmp_path / "predicted.csv")}
        options: Any = {"num_workers": 0, "overwrite": True, "chunk_size": chunk_size, **files}
        run_prediction(PredictionArguments(model=str(folder), **options))
        return pd.read_csv(tmp_path / "predicted.csv")

    def read(cells: list[str]) -> Any:
        return predict(folder, pd.DataFrame({"smiles": ["CCO"] * len(cells), "pH": cells}))

    for found in (screen(["7,412"]), read(["7,412"])):
        assert found["prediction_y"].tolist() == pytest.approx([number], abs=1e-4)
        assert found["warning"].isna().all()
    # of a model whose training had no commas other cells tell, or how the table is written
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["covariates"][0].pop("commas") == "decimal"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    told = ["7,412", "7,412", "7,412", "7,4"]
    for found in (screen(told), screen(["7,412"] * 3, separator=";"), read(told)):
        assert found["prediction_y"][:3].tolist() == pytest.approx([number] * 3, abs=1e-4)
        assert found["warning"].isna().all()
    explain(folder, ["CCO"], covariates={"pH": [5.0]})
    assert caplog.messages == []
    # nobody tells, whatever stands in other chunks
    for found in (screen(["7,412"] * 3), screen(["7,412", "1,250.5", "7,4"], chunk_size=1)):
        assert found["prediction_y"][0] == pytest.approx(mean, abs=1e-4)
        assert "'7,412' may be 7.412 or 7412" in found["warning"][0]
    assert "may be 7.412 or 7412" in read(["7,412"])["warning"][0]
    assert caplog.messages == []
    table = pd.DataFrame({"smiles": SMILES, "pH": "7,412", "y": 2 * PH})
    evaluate(folder, table)
    assert "40 rows" in caplog.text and "may be 7.412 or 7412" in caplog.text
    caplog.clear()
    explain(folder, table[["smiles", "pH"]].iloc[:1])
    assert caplog.text.count("may be 7.412 or 7412") == 1


@pytest.mark.slow
def test_covariates_are_read_without_the_package(run: Run, tmp_path: Path) -> None:
    result = run({"y": 2 * PH, "pH": PH}, feature_columns=["pH"])
    rows = [{"smiles": "CCO", "pH": 5.0}, {"smiles": "CCO", "pH": 9.0}, "CCO"]
    found = predict_without_package(result.output_dir, rows, folder=tmp_path)
    low, high, middle = (it["predictions"][0]["value"] for it in found)
    expected = predict(result.output_dir, ["CCO"] * 2, covariates={"pH": [5.0, 9.0]}).values[:, 0]
    np.testing.assert_allclose([low, high], expected, rtol=1e-4)
    assert low < middle < high


def test_rows_with_other_covariates_are_no_replicates(run: Run) -> None:
    # one molecule at two values of pH, with labels that contradict each other
    smiles = np.repeat(SMILES[::2], 2)
    columns = {"y": 2 * PH, "pH": PH, "smiles": smiles, "part": np.repeat(PARTS[::2], 2)}
    assert run(columns, feature_columns=["pH"]).dropped == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_columns": ["y"]}, "these are labels"),
        ({"label_transform": ["log2"]}, "log2.*none.*log10.*pIC50"),
        ({"label_transform": ["pIC50"]}, "--label-units"),
        ({"label_transform": ["log10", "log10", "none"]}, "3 entries for 2 label columns"),
        ({"class_columns": ["active"]}, "--class-columns active"),
        ({"class_columns": ["y", "y_large"]}, "multi_label_classification"),
        ({"weight_column": "w", "problem_type": "single_label_classification"}, "Leave it out"),
        ({"head": "stack", "class_columns": ["y_large"]}, "y_large.*--head kernel and network"),
        ({"weight_column": "w"}, "no column 'w'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_way_out(
    run: Run, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(MIXED, **options)
