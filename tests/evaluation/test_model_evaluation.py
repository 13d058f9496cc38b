"""Models and other tools on labeled molecules: what is scored, what is left out, what is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tiny import TINY_ARCHITECTURE

from rmat_hf.cli import main
from rmat_hf.data.table_writer import Predictions
from rmat_hf.errors import UserError
from rmat_hf.evaluation.evaluation_task import list_tasks
from rmat_hf.evaluation.model_evaluation import evaluate
from rmat_hf.inference.prediction import predict
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.baselines import SHOWN
from rmat_hf.training.estimates import MEAN_OF_TRAIN
from rmat_hf.training.metrics import compute_metrics

SMILES = ["C" * size + end for size in range(1, 9) for end in ("O", "N", "Cl")]
NUM_ROWS = len(SMILES)


def save_model(folder: Path, names: list[str], *, seed: int = 0, **fields: Any) -> Path:
    """A tiny model that nobody trained, as `rmat finetune` saves one."""
    torch.manual_seed(seed)
    config = RMatConfig(**TINY_ARCHITECTURE, id2label=dict(enumerate(names)), **fields)
    model = RMatForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(4.0)
    model.save_pretrained(folder)
    RMatProcessor(geometry="bounds").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    scaling = {"label_mean": [2.0], "label_std": [3.0], "label_units": ["nM"]}
    return {
        "a": save_model(folder / "a", ["y"], problem_type="regression", **scaling),
        "b": save_model(folder / "b", ["z"], problem_type="regression", seed=1, **scaling),
        "yes": save_model(folder / "yes", ["y"], problem_type="multi_label_classification"),
        "classes": save_model(
            folder / "classes",
            ["high", "low", "middle"],
            problem_type="single_label_classification",
            label_name="y",
        ),
    }


@pytest.fixture(scope="module")
def labels(models: dict[str, Path]) -> np.ndarray:
    """What model a predicts, and noise: it is right, others are not."""
    noise = np.random.default_rng(0).normal(scale=0.1, size=NUM_ROWS)
    return np.asarray(predict(models["a"], SMILES).values[:, 0] + noise)


def test_rows_in_memory_are_taken_in_every_form(
    models: dict[str, Path], labels: np.ndarray
) -> None:
    rows = Dataset.from_dict({"smiles": SMILES, "y": labels})
    options: dict[str, Any] = {"smiles_column": 0, "label_columns": [2020]}
    found = [
        evaluate(models["a"], rows, train=rows),
        evaluate(models["a"], pd.DataFrame({0: SMILES, 2020: labels}), **options),
    ]
    assert {it.scores.num_rows for it in found} == {NUM_ROWS}
    with pytest.raises(UserError, match="is a list"):
        evaluate(models["a"], [("CCO", 1.0)])  # type: ignore[arg-type]  # what is refused
    with pytest.raises(UserError, match="no rows"):
        evaluate(models["a"], pd.DataFrame({"smiles": [], "y": []}))


def test_models_and_tools_are_compared_on_the_rows_that_all_have(
    models: dict[str, Path], labels: np.ndarray, tmp_path: Path
) -> None:
    cells = [f"{it:.6f}" for it in labels]
    cells[3], cells[4] = "", ">100"
    smiles = [*SMILES, "C1CC"]
    frame = pd.DataFrame({"smiles": smiles, "y": [*cells, "1.0"]})
    # in another order, without the last two rows
    tool = pd.DataFrame({"smiles": SMILES, "prediction": labels + 0.3})[::-1][2:]
    found = evaluate(
        [models["a"], models["b"]], frame, predictions={"tool": tool}, output_dir=tmp_path / "out"
    )
    skipped = {it.row: it.reason for it in found.skipped}
    assert sorted(skipped) == [3, 4, NUM_ROWS - 2, NUM_ROWS - 1, NUM_ROWS]
    assert skipped[3] == "no label"
    assert ">100" in skipped[4]
    assert "tool" in skipped[NUM_ROWS - 1]
    assert "C1CC" in skipped[NUM_ROWS]
    kept = [row for row in range(NUM_ROWS) if row not in skipped]
    assert found.rows.index.tolist() == kept
    assert found.scores.num_rows == len(kept)
    for name, expected in {
        "a": predict(models["a"], SMILES).values[kept],
        "b": predict(models["b"], SMILES).values[kept],
        "tool": labels[kept, None] + 0.3,
        MEAN_OF_TRAIN: np.full((len(kept), 1), 2.0),
    }.items():
        metrics = compute_metrics(
            "regression", expected, labels=labels[kept], label_names=["y"], is_quiet=True
        )
        own = {key: pytest.approx(it, abs=1e-4) for key, it in metrics.items() if it is not None}
        assert {key: found.scores.metrics[name][key] for key in own} == own, name
    assert any("a is better than tool" in it for it in found.verdict)
    assert any("b is worse than tool" in it and "nM" in it for it in found.verdict)
    assert "rows left out" in found.describe() == repr(found)
    written = {it.name for it in (tmp_path / "out").iterdir()}
    assert {"report.md", "metrics.json", "predictions.csv", "parity.png"} <= written
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["metrics"]["a"]["rmse"] == list(found.scores.estimate("a", "rmse"))
    assert stored["num_skipped"] == 5
    report = (tmp_path / "out" / "report.md").read_text()
    assert "`C1CC`" in report
    for line in found.verdict:
        assert line in report


@pytest.mark.slow
def test_a_table_without_smiles_has_a_row_for_each_row(
    models: dict[str, Path], labels: np.ndarray
) -> None:
    frame = pd.DataFrame({"smiles": SMILES, "y": labels})
    tool = pd.DataFrame({"pIC50": labels})
    options: dict[str, Any] = {"prediction_columns": ["pIC50"]}
    found = evaluate(models["a"], frame, predictions={"tool": tool}, **options)
    assert found.scores.metrics["tool"]["rmse"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(UserError, match="a row for each row"):
        evaluate(models["a"], frame, predictions={"tool": tool[:5]}, **options)
    with pytest.raises(UserError, match="pIC50"):
        evaluate(models["a"], frame, predictions={"tool": tool})


@pytest.mark.slow
def test_probabilities_of_a_yes_are_compared_with_the_frequency(
    models: dict[str, Path], tmp_path: Path
) -> None:
    values = predict(models["yes"], SMILES).values[:, 0]
    frame = pd.DataFrame({"smiles": SMILES, "active": (values > np.median(values)).astype(int)})
    found = evaluate(models["yes"], frame, label_columns=["active"], output_dir=tmp_path / "out")
    assert found.scores.metrics["yes"]["roc_auc"] == 1.0
    assert found.verdict[1].startswith("yes is better than frequencies_of_these_rows")
    assert (tmp_path / "out" / "roc_and_calibration.png").is_file()


@pytest.mark.slow
def test_classes_keep_their_names(models: dict[str, Path], tmp_path: Path) -> None:
    values = predict(models["classes"], SMILES).values
    names = np.array(["high", "low", "middle"])
    given = names[values.argmax(axis=1)]
    tool = pd.DataFrame({f"probability_y_{name}": given == name for name in names}).astype(float)
    frame = pd.DataFrame({"smiles": SMILES, "y": [*given[:-1], "unheard of"]})
    found = evaluate(
        models["classes"], frame, predictions={"tool": tool}, output_dir=tmp_path / "out"
    )
    assert found.scores.metrics["classes"]["accuracy"] == 1.0
    assert found.scores.metrics["tool"]["accuracy"] == 1.0
    assert [it.row for it in found.skipped] == [NUM_ROWS - 1]
    assert "unheard of" in found.skipped[0].reason


@pytest.mark.slow
def test_baselines_are_fitted_on_a_table_and_novelty_is_measured_to_it(
    models: dict[str, Path], labels: np.ndarray
) -> None:
    frame = pd.DataFrame({"smiles": SMILES, "y": labels})
    found = evaluate(models["a"], frame[16:], train=frame[:16])
    assert {*SHOWN} < {*found.scores.metrics}
    novelty = found.rows["novelty"]
    assert ((novelty >= 0) & (novelty <= 1)).all()
    mean = found.methods[MEAN_OF_TRAIN].values
    np.testing.assert_allclose(mean, labels[:16].mean())


@pytest.mark.slow
def test_molecules_that_a_model_was_trained_on_are_counted(
    models: dict[str, Path], labels: np.ndarray, tmp_path: Path
) -> None:
    trained = save_model(tmp_path / "trained", ["y"], problem_type="regression")
    split = pd.DataFrame({"row": [0, 1, 2], "smiles": ["OC", "NC", "OCC"]})
    split.assign(split=["train", "valid", "test"]).to_csv(trained / "split.csv", index=False)
    found = evaluate([trained, models["a"]], pd.DataFrame({"smiles": SMILES, "y": labels}))
    assert len(found.notes) == 1
    assert "stereoisomer" not in found.notes[0]
    assert found.notes[0].startswith(f"2 of {NUM_ROWS} molecules are of train or valid of trained")
    assert found.rows["novelty"].iloc[0] == 0


def test_a_stereoisomer_of_what_a_model_was_trained_on_is_no_new_molecule(
    tmp_path: Path,
) -> None:
    trained = save_model(tmp_path / "trained", ["y"], problem_type="regression")
    split = pd.DataFrame({"row": [0, 1], "smiles": ["C[C@H](N)O", "CCO"]})
    split.assign(split="train").to_csv(trained / "split.csv", index=False)
    table = pd.DataFrame({"smiles": ["C[C@@H](N)O", "CCO", "CCCN"], "y": [1.0, 2.0, 3.0]})
    (note,) = evaluate(trained, table).notes
    assert note.startswith("2 of 3 molecules are of train or valid of trained (1 as another stereo")


def test_a_label_that_cannot_be_read_is_not_counted_and_is_told(tmp_path: Path) -> None:
    names = {"problem_type": "multi_label_classification"}
    model = save_model(tmp_path / "m", ["binding", "tox", "dose"], **names)
    words = {"binding": ["active", "inactive", "unclear"], "tox": ["Toxic", "nontoxic", ""]}
    table = {name: it * (NUM_ROWS // 3) for name, it in words.items()}
    frame = pd.DataFrame({"smiles": SMILES, **table, "dose": ["high", "low"] * (NUM_ROWS // 2)})
    found = evaluate(model, frame)
    assert found.scores.num_known == {"binding": 16, "tox": 16, "dose": 0}
    assert "mean of 2 of 3 labels" in found.verdict[0]
    cells, lost = found.notes
    assert cells == "8 cells of 'binding' cannot be scored, as 'unclear'."
    assert lost.startswith("'dose' is not scored") and "'high' by 1 and 'low' by 0" in lost
    reasons = {it.reason for it in evaluate(model, frame.assign(tox="")).skipped}
    assert reasons == {"label 'binding' is 'unclear', neither 0 nor 1"}


def test_labels_in_other_units_have_a_verdict_each_and_a_mean_in_deviations(tmp_path: Path) -> None:
    names = ["logD", "solubility"]
    fields = {"label_units": ["", "ug/mL"], "label_mean": [0.0, 50.0], "label_std": [2.0, 100.0]}
    model = save_model(tmp_path / "m", names, problem_type="regression", **fields)
    values = predict(model, SMILES).values
    table = pd.DataFrame({"smiles": SMILES, "logD": values[:, 0] + 1, "solubility": 200.0})
    found = evaluate(model, table, output_dir=tmp_path / "out")
    errors = np.sqrt(np.mean((values - table[names].to_numpy()) ** 2, axis=0))
    expected = np.mean(errors / [2.0, 100.0])
    assert f"RMSE/SD, mean of 2 labels {expected:.3f}" in found.verdict[0]
    text = " ".join(found.verdict)
    assert f"logD: RMSE {errors[0]:.3f}, " in text
    assert f"solubility: RMSE {errors[1]:.3f} ug/mL, " in text
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["metrics"]["m"]["rmse"][0] == pytest.approx(errors.mean())
    assert stored["metrics"]["m"]["standardized_rmse"][0] == pytest.approx(expected)
    assert stored["differences"][0]["metric"] == "standardized_rmse"


def test_labels_are_scored_as_they_were_learned(tmp_path: Path) -> None:
    fields = {"label_units": ["nM"], "label_transforms": ["pIC50"]}
    model = save_model(tmp_path / "m", ["ic50"], problem_type="regression", **fields)
    values = predict(model, SMILES).values[:, 0]
    labels = [*(values[:-2] * 10), 0.0, -1.0]
    tool = pd.DataFrame({"prediction": [1000.0] * NUM_ROWS})
    frame = pd.DataFrame({"smiles": SMILES, "ic50": labels})
    found = evaluate(model, frame, predictions={"tool": tool})
    # ten times as much is one unit of pIC50
    assert found.scores.metrics["m"]["mae"] == pytest.approx(1, abs=1e-5)
    expected = np.abs(6 - (9 - np.log10(labels[:-2]))).mean()
    assert found.scores.metrics["tool"]["mae"] == pytest.approx(expected, abs=1e-5)
    assert [it.row for it in found.skipped] == [NUM_ROWS - 2, NUM_ROWS - 1]
    assert "pIC50" in found.describe()
    assert "RMSE 1.000 log units" in found.verdict[0]
    assert "10 times (10^1.000) in ic50" in found.verdict[1]
    exported = tmp_path / "exported.csv"
    frame.to_csv(exported, sep=";", decimal=",", index=False)
    again = evaluate(model, exported, predictions={"tool": tool}).scores.metrics["m"]["mae"]
    assert again == pytest.approx(1, abs=1e-5)


def test_models_of_other_labels_are_refused(models: dict[str, Path], labels: np.ndarray) -> None:
    frame = pd.DataFrame({"smiles": SMILES, "y": labels})
    with pytest.raises(UserError, match=r"yes.*Evaluate it alone"):
        evaluate([models["a"], models["yes"]], frame)
    with pytest.raises(UserError, match="no column 'y'"):
        evaluate(models["a"], frame.rename(columns={"y": "other"}))
    with pytest.raises(UserError, match="no row with a label"):
        evaluate(models["a"], frame.assign(y=None))


@pytest.mark.slow
def test_the_command_prints_and_writes_what_python_returns(
    models: dict[str, Path],
    labels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    frame = pd.DataFrame({"smiles": SMILES, "y": labels})
    frame.to_csv(tmp_path / "labelled.csv", index=False)
    frame.rename(columns={"y": "prediction_y"}).to_csv(tmp_path / "svm.csv", index=False)
    words = ["--model", str(models["a"]), str(models["b"]), "--input", tmp_path / "labelled.csv"]
    words += ["--predictions", f"chemprop={tmp_path / 'svm.csv'}", "--output", tmp_path / "out"]
    words += ["--num-workers", "0"]
    monkeypatch.setattr("sys.argv", ["rmat", "evaluate", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    screen = capsys.readouterr().out
    tool = {"chemprop": tmp_path / "svm.csv"}
    expected = evaluate([models["a"], models["b"]], tmp_path / "labelled.csv", predictions=tool)
    for line in expected.verdict:
        assert line in screen
    assert "report.md" in screen
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    np.testing.assert_allclose(table["chemprop:y"], labels, atol=1e-6)


@pytest.mark.slow
def test_numbers_and_classes_of_one_model_are_both_judged(tmp_path: Path) -> None:
    types = ["regression", "multi_label_classification"]
    scaling = {"label_mean": [2.0, 0.0], "label_std": [3.0, 1.0], "label_types": types}
    model = save_model(tmp_path / "m", ["y", "is_z"], problem_type="regression", **scaling)
    values = predict(model, SMILES).values
    is_yes = (values[:, 1] > np.median(values[:, 1])).astype(int)
    frame = pd.DataFrame({"smiles": SMILES, "y": values[:, 0], "is_z": is_yes})
    found = evaluate(model, frame, output_dir=tmp_path / "out")
    assert found.scores.metrics["m"]["rmse"] == pytest.approx(0, abs=1e-6)
    assert found.classes is not None
    assert found.classes.scores.metrics["m"]["roc_auc"] == 1.0
    assert "ROC AUC 1.000" in found.describe()
    assert "classes/report.md" in (tmp_path / "out" / "report.md").read_text()
    assert "ROC AUC" in (tmp_path / "out" / "classes" / "report.md").read_text()
    # without the column of the classes the numbers alone, without that of numbers the classes
    assert evaluate(model, frame.drop(columns="is_z")).classes is None
    assert evaluate(model, frame.drop(columns="y")).scores.metrics["m"]["roc_auc"] == 1.0


def test_a_table_with_some_of_the_labels_is_scored_by_these(tmp_path: Path) -> None:
    fields = {"label_units": ["nM", "%", ""], "label_transforms": ["pIC50", "none", "log10"]}
    scaling = {"label_mean": [6.0, 50.0, 1.0], "label_std": [1.0] * 3, "problem_type": "regression"}
    first = save_model(tmp_path / "first", ["IC50", "% left", "dose"], **scaling, **fields)
    scaling = {"label_mean": [50.0, 0.0], "label_std": [1.0] * 2, "problem_type": "regression"}
    second = save_model(tmp_path / "second", ["dose", "other"], seed=1, **scaling)
    frame = pd.DataFrame({"smiles": SMILES, "dose": predict(first, SMILES).values[:, 2] * 10})
    found = evaluate([first, second], frame, output_dir=tmp_path / "out")
    assert found.scores.metrics["first"]["mae"] == pytest.approx(1, abs=1e-5)
    assert {"first", "second"} < {*found.methods}
    lost = "has no column 'IC50', '% left': not scored."
    assert any(note.endswith(lost) for note in found.notes)
    # of a table with more labels those that are asked for
    whole = frame.assign(IC50=1.0)
    named = evaluate(first, whole, label_columns=["dose"], train=whole)
    assert named.scores.metrics["first"] == pytest.approx(found.scores.metrics["first"])
    assert "no column" not in named.describe()
    with pytest.raises(UserError, match=r"names tox\. Name some of these labels"):
        evaluate(first, whole, label_columns=["tox"])
    with pytest.raises(UserError, match=r"--label-columns"):
        evaluate([first, second], whole)


def test_several_labels_of_which_one_is_transformed_have_a_report(tmp_path: Path) -> None:
    fields = {"label_units": ["nM", ""], "label_transforms": ["pIC50", "none"]}
    scaling = {"label_mean": [6.0, 0.0], "label_std": [1.0, 1.0], "problem_type": "regression"}
    model = save_model(tmp_path / "model", ["Ki", "y"], **scaling, **fields)
    table = pd.DataFrame({"smiles": SMILES, "Ki": range(1, NUM_ROWS + 1), "y": range(NUM_ROWS)})
    evaluate(model, table, output_dir=tmp_path / "out")
    assert "| pKi of Ki | 24 |" in (tmp_path / "out" / "report.md").read_text()
    assert "Ki" in json.loads((tmp_path / "out" / "metrics.json").read_text())["num_known"]


def test_intervals_below_zero_are_judged_on_a_logarithmic_scale_too() -> None:
    fields = {"problem_type": "regression", "id2label": {0: "y"}, "label_units": ["nM"]}
    raw = RMatConfig(**TINY_ARCHITECTURE, **fields)
    first = RMatConfig(**TINY_ARCHITECTURE, **fields, label_transforms=["pIC50"])
    values = np.array([[10.0], [1000.0], [-5.0]])
    found = Predictions(
        values=values, errors=[None] * 3, config=raw, lower=values - 100, upper=values + 100
    )
    (task,) = list_tasks({"first": first, "raw": raw}, [], columns=["y"])
    method = task.arrange(found, np.ones((6, 1)))
    np.testing.assert_allclose(method.trust["lower"][:2, 0], 9 - np.log10([110, 1100]))
    assert method.trust["upper"][0, 0] == np.inf
    assert method.trust["upper"][1, 0] == pytest.approx(9 - np.log10(900))
    # what other coverages hold cannot be told of intervals of another scale
    assert method.quantiles is None
    assert list(method.reasons) == [2] and "not positive" in method.reasons[2]


def test_a_model_with_novelty_alone_has_no_intervals_to_judge() -> None:
    config = RMatConfig(**TINY_ARCHITECTURE, id2label={0: "y"}, problem_type="regression")
    block = np.zeros((2, 1))
    found = Predictions(values=block, errors=[None] * 2, config=config, novelty=block[:, 0])
    (task,) = list_tasks({"model": config}, [], columns=["y"])
    method = task.arrange(found, np.full((6, 1), np.nan))
    assert method.quantiles is None
    assert [*method.trust] == ["novelty"]
