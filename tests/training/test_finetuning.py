"""The main job end to end, on tiny models: table in, folder that predicts out."""

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from rdkit import Chem
from rdkit.Chem import Crippen, Descriptors, rdPartialCharges
from safetensors.torch import load_file
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments
from transformers import AutoModelForSequenceClassification, AutoProcessor, TrainerCallback
from transformers.trainer import Trainer

import rmat_hf
from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.baselines import SHOWN
from rmat_hf.training.finetuning import finetune, run_finetuning
from rmat_hf.training.pretraining import pretrain

FREESOLV = Path(rmat_hf.__file__).parent / "data" / "freesolv" / "freesolv.csv"

SMILES = [
    *["C", "CC", "CCC", "CCCC", "CCCCC", "CCO", "CCCO", "CCCCO", "OCCO", "CC(C)O", "CC(C)C"],
    *["c1ccccc1", "Cc1ccccc1", "Oc1ccccc1", "Nc1ccccc1", "CN", "CCN", "CCCN", "CNC", "CC#N"],
    *["CC=O", "CCC=O", "CC(C)=O", "CC(=O)O", "CCC(=O)O", "COC", "CCOC", "C1CCCCC1", "C1CCOC1"],
    *["CCl", "CCCl", "ClCCl", "CBr", "CCBr", "CF", "CS", "CCS", "CSC", "C=C", "CC=C"],
]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a table of 40 molecules, their logP and weight, and a tiny architecture."""
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_ARCHITECTURE | {"pooling": "mean"}))
    mols = [Chem.MolFromSmiles(smiles) for smiles in SMILES]
    logp = [Crippen.MolLogP(mol) for mol in mols]
    write_table(
        tmp_path / "table.csv",
        smiles=SMILES,
        logp=[f"{value:.3f}" for value in logp],
        weight=[
            "" if row % 4 == 1 else f"{Descriptors.MolWt(mol):.2f}" for row, mol in enumerate(mols)
        ],
        is_polar=[int(value < 0.5) for value in logp],
        has_ring=["" if row % 7 == 2 else int("1" in smiles) for row, smiles in enumerate(SMILES)],
        verdict=["good" if value < 0.5 else "bad" for value in logp],
        bin=[str(int(min(max(value, 0.0), 2.0))) for value in logp],
        part=[("train", "train", "train", "valid", "test")[row % 5] for row in range(len(SMILES))],
    )
    return tmp_path


def write_table(path: Path, **columns: list[Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def build_arguments(work: Path, **changes: Any) -> FinetuningArguments:
    fields = {
        "dataset": str(work / "table.csv"),
        "label_columns": ["logp"],
        "split": "column",
        "split_column": "part",
        "output_dir": str(work / "run"),
        "model": "scratch",
        "geometry": "bounds",
        "model_config": str(work / "tiny.json"),
        "feature_cache": "none",
        "num_train_epochs": 3,
        "batch_size": 8,
        "learning_rate": 3e-3,
    }
    return FinetuningArguments(**(fields | changes))


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_authors_recipe_keeps_the_last_epoch_and_says_so(work: Path) -> None:
    table = pd.read_csv(work / "table.csv")
    # the more is learned, the worse is valid
    table["logp"] = table["logp"].where(table["part"] != "valid", -table["logp"])
    table.to_csv(work / "table.csv", index=False)
    result = run_finetuning(build_arguments(work, recipe="authors", num_train_epochs=4))
    log = json.loads((work / "run" / "training_log.json").read_text())
    errors = [entry["eval_rmse"] for entry in log if "eval_rmse" in entry]
    assert result.metrics["valid"]["rmse"] == pytest.approx(errors[-1], rel=1e-6)
    assert errors[-1] > min(errors)
    assert "the last epoch" in (work / "run" / "README.md").read_text()


def test_a_run_leaves_one_complete_folder_that_predicts_what_it_reported(work: Path) -> None:
    result = run_finetuning(build_arguments(work, label_units=["log units"], with_baselines=True))
    folder = work / "run"
    assert {path.name for path in folder.iterdir()} >= {
        *["model.safetensors", "config.json", "preprocessor_config.json", "README.md"],
        *["metrics.json", "baselines.json", "split.csv", "predictions.csv", "dropped_rows.csv"],
        *["finetuning_arguments.json", "training_log.json", "parity.png"],
    }
    assert sorted(path.name for path in work.iterdir()) == ["run", "table.csv", "tiny.json"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == result.metrics
    assert list(metrics) == ["train", "valid", "test"]
    assert set(metrics["test"]) == {"rmse", "mae", "r2", "spearman"}

    rows = [row for row in read_csv(folder / "predictions.csv") if row["split"] == "test"]
    values = predict(folder, [row["smiles"] for row in rows]).values[:, 0]
    saved = [float(row["prediction_logp"]) for row in rows]
    labels = np.array([float(row["logp"]) for row in rows])
    np.testing.assert_allclose(values, saved, atol=1e-5)
    assert np.sqrt(np.mean((values - labels) ** 2)) == pytest.approx(
        metrics["test"]["rmse"], abs=1e-5
    )
    assert set(result.baselines) == {*SHOWN}
    report = (folder / "report.md").read_text(encoding="utf-8")
    for name in ("R-MAT", "mean_of_train_labels", *SHOWN):
        assert f"| {name} " in report
    errors = np.abs(values - labels)
    worst = int(errors.argmax())
    first = next(line for line in report.splitlines() if f"`{rows[worst]['smiles']}`" in line)
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells[0] == rows[worst]["row"]
    assert float(cells[5]) == pytest.approx(errors[worst], abs=1e-3)
    assert "<svg" in (folder / "worst_molecules.svg").read_text()
    assert result.summary.splitlines()[2].startswith("| R-MAT ")
    assert "on these" in result.summary


def test_training_learns(work: Path) -> None:
    train = run_finetuning(build_arguments(work, num_train_epochs=40)).metrics["train"]
    assert train["r2"] > 0.75  # half the error of a model that has learned the mean alone
    assert train["spearman"] > 0.8


def test_the_saved_model_is_the_one_with_the_best_validation_metric(work: Path) -> None:
    result = run_finetuning(build_arguments(work, num_train_epochs=8, learning_rate=3e-2))
    log = json.loads((work / "run" / "training_log.json").read_text())
    history = [entry["eval_rmse"] for entry in log if "eval_rmse" in entry]
    assert len(set(history)) > 4
    assert history[-1] > min(history)
    assert result.metrics["valid"]["rmse"] == pytest.approx(min(history), abs=1e-6)


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_gets_no_better(work: Path) -> None:
    run_finetuning(
        build_arguments(work, num_train_epochs=60, learning_rate=0.1, early_stopping_patience=3)
    )
    log = json.loads((work / "run" / "training_log.json").read_text())
    history = [entry["eval_rmse"] for entry in log if "eval_rmse" in entry]
    assert len(history) == history.index(min(history)) + 1 + 3 < 60


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(work: Path) -> None:
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        run_finetuning(build_arguments(work, seed=seed, output_dir=str(work / name)))
    first, again, other = (load_file(work / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.out_proj.weight"], other["classifier.out_proj.weight"])


def test_multi_label_classification_predicts_one_probability_per_label(work: Path) -> None:
    result = run_finetuning(
        build_arguments(
            work,
            label_columns=["is_polar", "has_ring"],
            problem_type="multi_label_classification",
            class_weighting="balanced",
        )
    )
    assert set(result.metrics["test"]) == {"roc_auc", "pr_auc", "accuracy", "mcc", "per_label"}
    prediction = predict(work / "run", ["CCO", "C1CC"], trust=False)
    assert ((prediction.values[0] > 0) & (prediction.values[0] < 1)).all()
    assert set(prediction.to_columns()) == {"prediction_is_polar", "prediction_has_ring", "error"}
    assert "parity.png" not in {path.name for path in (work / "run").iterdir()}


@pytest.mark.parametrize(
    ("label", "classes"), [("verdict", ["bad", "good"]), ("bin", ["0", "1", "2"])]
)
def test_single_label_classification_predicts_the_classes_of_the_table(
    work: Path, label: str, classes: list[str]
) -> None:
    result = run_finetuning(
        build_arguments(work, label_columns=[label], problem_type="single_label_classification")
    )
    assert set(result.metrics["train"]) == {"roc_auc", "pr_auc", "accuracy", "mcc"}
    prediction = predict(work / "run", ["CCO", "CCCC"])
    assert prediction.output_names == classes
    np.testing.assert_allclose(prediction.values.sum(1), 1.0)
    saved = read_csv(work / "run" / "predictions.csv")
    assert {row[label] for row in saved} == set(classes)
    assert f"prediction_{label}" in saved[0]


class Interruption(TrainerCallback):
    """Stands for a crash: raises after some steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 8:
            raise KeyboardInterrupt


def run_interrupted(monkeypatch: pytest.MonkeyPatch, arguments: FinetuningArguments) -> None:
    build = Trainer.__init__

    def build_interrupted(self: Trainer, *args: Any, callbacks: list[Any], **kwargs: Any) -> None:
        build(self, *args, callbacks=[*callbacks, Interruption()], **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "__init__", build_interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_finetuning(arguments)


@pytest.mark.slow
def test_an_interrupted_run_resumes_to_the_weights_of_an_undisturbed_one(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"num_train_epochs": 4, "training_arguments": str(work / "dropout.json")}
    (work / "dropout.json").write_text(json.dumps({"logging_nan_inf_filter": False}))
    run_finetuning(build_arguments(work, output_dir=str(work / "undisturbed"), **arguments))
    run_interrupted(monkeypatch, build_arguments(work, **arguments))
    assert not (work / "run").exists()
    with pytest.raises(UserError, match="Pass --resume to continue it, or --overwrite"):
        run_finetuning(build_arguments(work, **arguments))
    with pytest.raises(UserError, match="cannot be resumed: learning_rate differ"):
        run_finetuning(build_arguments(work, resume=True, **arguments, learning_rate=1.0))
    assert (work / "run.in_progress" / "stage-0" / "checkpoint-6").is_dir()
    steps = []
    train_step = Trainer.training_step
    monkeypatch.setattr(
        Trainer, "training_step", lambda *args: steps.append(1) or train_step(*args)
    )
    result = run_finetuning(build_arguments(work, resume=True, **arguments))
    assert len(steps) == 12 - 6
    undisturbed, resumed = (
        load_file(work / name / "model.safetensors") for name in ("undisturbed", "run")
    )
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert not (work / "run.in_progress").exists()
    assert result.metrics == json.loads((work / "undisturbed" / "metrics.json").read_text())


def test_a_valid_part_with_one_class_is_refused_because_nothing_can_be_chosen_on_it(
    work: Path,
) -> None:
    rows = read_csv(work / "table.csv")
    for row in rows:
        row["verdict"] = "good" if row["part"] == "valid" else row["verdict"]
    write_table(work / "table.csv", **{name: [row[name] for row in rows] for name in rows[0]})
    with pytest.raises(ValueError, match="roc_auc is undefined on the valid part"):
        run_finetuning(
            build_arguments(
                work, label_columns=["verdict"], problem_type="single_label_classification"
            )
        )
    assert not (work / "run").exists()


def test_a_test_part_with_one_class_is_reported_as_undefined_and_keeps_the_run(work: Path) -> None:
    rows = read_csv(work / "table.csv")
    for row in rows:
        row["is_polar"] = "0" if row["part"] == "test" else row["is_polar"]
    write_table(work / "table.csv", **{name: [row[name] for row in rows] for name in rows[0]})
    result = run_finetuning(
        build_arguments(work, label_columns=["is_polar"], problem_type="multi_label_classification")
    )
    assert result.metrics["test"]["roc_auc"] is None
    assert json.loads((work / "run" / "metrics.json").read_text()) == result.metrics


def test_a_baseline_that_cannot_be_fitted_is_refused_before_training(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_csv(work / "table.csv")
    for row in rows:
        row["weight"] = "" if row["part"] == "valid" else row["weight"]
    write_table(work / "table.csv", **{name: [row[name] for row in rows] for name in rows[0]})
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=r"'weight' is not known .* valid"):
        run_finetuning(build_arguments(work, label_columns=["logp", "weight"], with_baselines=True))


@pytest.mark.slow
def test_descriptors_of_a_model_can_be_left_out(work: Path) -> None:
    def finetune(name: str, **changes: Any) -> Path:
        changes |= {"num_train_epochs": 1, "output_dir": str(work / name)}
        return run_finetuning(build_arguments(work, **changes)).output_dir

    start = finetune("start", molecule_descriptors="rdkit_2d")
    changes = {"model": str(start), "model_config": None}
    kept, out = finetune("kept", **changes), finetune("out", **changes, molecule_descriptors="none")
    sizes = [
        AutoModelForSequenceClassification.from_pretrained(folder).config.num_molecule_descriptors
        for folder in (kept, out)
    ]
    assert sizes[0] > 200 and sizes[1] == 0
    assert len(AutoProcessor.from_pretrained(kept).molecule_descriptors) == sizes[0]
    assert load_file(kept / "model.safetensors")["descriptor_scaler.std"].min() > 0
    assert np.isfinite(predict(kept, ["CCO"]).values).all()
    # the encoder alone needs none
    assert np.isfinite(embed(kept, ["CCO"]).values).all()


# Labels of atoms


def build_charged_molecules() -> list[Chem.Mol]:
    """Molecules with their hydrogens and Gasteiger charges, as RDKit writes them to SDF files."""
    mols = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in TABLE_SMILES]
    for mol in mols:
        rdPartialCharges.ComputeGasteigerCharges(mol)
        for atom in mol.GetAtoms():
            atom.SetDoubleProp("charge", round(atom.GetDoubleProp("_GasteigerCharge"), 4))
        Chem.CreateAtomDoublePropertyList(mol, "charge")
    return mols


def test_charges_of_atoms_come_from_an_sdf_file_and_go_to_the_table(work: Path) -> None:
    mols = build_charged_molecules()
    with Chem.SDWriter(str(work / "charges.sdf")) as writer:
        for mol, part in zip(mols, TABLE_PARTS, strict=True):
            mol.SetProp("part", part)
            writer.write(mol)
    arguments = build_tiny_arguments(
        work,
        dataset=str(work / "charges.sdf"),
        label_columns=["atom.dprop.charge"],
        label_units=["e"],
        level="atom",
        split="column",
        split_column="part",
        num_train_epochs=1,
        num_workers=0,
    )
    result = run_finetuning(arguments)
    written = read_csv(result.output_dir / "predictions.csv")
    assert [row["split"] for row in written] == TABLE_PARTS
    predictions = predict(result.output_dir, mols, device="cpu")
    errors = []
    for row, mol, values in zip(written, mols, predictions.values, strict=True):
        heavy = [it.GetDoubleProp("charge") for it in mol.GetAtoms() if it.GetAtomicNum() > 1]
        predicted = json.loads(row["prediction_atom.dprop.charge"])
        assert json.loads(row["atom.dprop.charge"]) == heavy
        assert predicted == pytest.approx(values[:, 0].tolist(), abs=1e-5)
        if row["split"] == "train":
            errors += (np.array(predicted) - heavy).tolist()
    assert result.metrics["train"]["rmse"] == pytest.approx(np.square(errors).mean() ** 0.5)
    card = (result.output_dir / "README.md").read_text(encoding="utf-8")
    assert "- predicts for every atom: atom.dprop.charge (e) (regression)" in card
    num_atoms = sum(mol.GetNumHeavyAtoms() for mol in mols[:8])
    assert f"atoms: {num_atoms} train" in card and "atom-property-prediction" in card


@pytest.mark.slow
def test_classes_of_atoms_come_from_lists_in_a_table(work: Path) -> None:
    elements = [[atom.GetSymbol() for atom in parse(smiles)] for smiles in TABLE_SMILES]
    lists: list[str] = [str(labels) for labels in elements]
    # unknown: one atom, and all of a molecule
    lists[0] = lists[0].replace("'O'", "None")
    lists[1] = ""
    columns = {"element": lists, "part": TABLE_PARTS}
    options = {"problem_type": "single_label_classification", "level": "atom", "num_workers": 0}
    result = run_finetuning(build_tiny_arguments(work, columns, num_train_epochs=2, **options))
    assert [row.reason for row in result.dropped] == ["no label"]
    assert result.metrics["train"].keys() == {"roc_auc", "pr_auc", "accuracy", "mcc"}
    first = read_csv(result.output_dir / "predictions.csv")[0]
    assert json.loads(first["element"]) == ["C", "C", None]
    assert len(json.loads(first["prediction_element"])) == 3
    assert len(json.loads(first["probability_element_C"])) == 3


@pytest.mark.slow
def test_charges_of_atoms_are_learned_by_the_pretrained_model(work: Path) -> None:
    with FREESOLV.open(newline="", encoding="utf-8") as stream:
        smiles = [row["smiles"] for row in csv.DictReader(stream)][:120]
    write_table(work / "charges.csv", smiles=smiles, charge=[compute_charges(it) for it in smiles])
    options = {"level": "atom", "num_train_epochs": 10, "num_workers": 0, "feature_cache": "none"}
    result = finetune(
        str(work / "charges.csv"), label_columns=["charge"], output_dir=work / "run", **options
    )
    # the mean of each element gives .61 on all of FreeSolv
    assert result.metrics["test"]["r2"] > 0.7


def compute_charges(smiles: str) -> list[float]:
    mol = Chem.MolFromSmiles(smiles)
    rdPartialCharges.ComputeGasteigerCharges(mol)
    return [atom.GetDoubleProp("_GasteigerCharge") for atom in mol.GetAtoms()]


def parse(smiles: str) -> list[Chem.Atom]:
    return list(Chem.MolFromSmiles(smiles).GetAtoms())


@pytest.mark.parametrize(
    ("cell", "options", "message"),
    [
        ("[0.1, 0.2]", {}, r"Row 3 .*label 'y' does not fit 'CC\(=O\)O'.*for 4 heavy atoms"),
        ("0.1 0.2 0.3 n/a", {"num_members": 2}, "labels of molecules.*--level atom"),
    ],
)
def test_labels_of_atoms_that_cannot_be_used_are_refused(
    cell: str, options: dict[str, Any], message: str, work: Path
) -> None:
    lists = [str([0.1 * it for it, _ in enumerate(parse(smiles))]) for smiles in TABLE_SMILES]
    if "level" in options:
        lists = ["0.5"] * len(lists)
    lists[3] = cell
    fields = {"level": "atom", "num_workers": 0, **options}
    with pytest.raises(UserError, match=message):
        run_finetuning(build_tiny_arguments(work, {"y": lists, "part": TABLE_PARTS}, **fields))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DatasetDict(train=Dataset.from_dict({"smiles": ["C"]})), r"Pass one of them, as data\["),
        (pd.DataFrame({"smiles": ["C"]}), r"is a DataFrame. .* as Dataset.from_pandas"),
    ],
    ids=["splits", "pandas"],
)
def test_what_is_no_data_set_is_refused_with_a_way_out(dataset: Any, message: str) -> None:
    runs: list[Any] = [partial(finetune, label_columns=["y"]), pretrain]
    # finetuning takes tables of pandas
    for run in runs[isinstance(dataset, pd.DataFrame) :]:
        with pytest.raises(UserError, match=message):
            run(dataset, output_dir="never")


@pytest.mark.parametrize("names", [["smiles", "y", "y"], ["smiles", 1, "1"]])
def test_a_table_of_pandas_with_two_columns_of_one_name_is_refused(names: list[Any]) -> None:
    table = pd.DataFrame([["CCO", 1.0, 2.0]], columns=names)
    with pytest.raises(UserError, match=r"several columns '(y|1)'.*Rename or drop"):
        finetune(table, output_dir="never")


def test_a_table_of_pandas_goes_in_and_comes_out_with_its_index_and_columns(work: Path) -> None:
    arguments = build_tiny_arguments(work)
    table = pd.read_csv(arguments.dataset).set_index(pd.Index([f"id-{it}" for it in range(12)]))
    fields = {**vars(arguments), "smiles_column": "structure", "num_train_epochs": 1}
    del fields["dataset"]
    table = table.rename(columns={"smiles": "structure"})
    result = finetune(table.astype({"y": object}), **fields)
    found = predict(result.output_dir, table, smiles_column="structure")
    pd.testing.assert_frame_equal(found[["structure", "y"]], table)
    columns = predict(result.output_dir, table["structure"]).to_columns()
    assert found["prediction_y"].tolist() == columns["prediction_y"]
