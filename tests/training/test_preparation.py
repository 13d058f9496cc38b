import hashlib
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from real_tables import write_encoded, write_sheets, write_text
from tiny_finetuning import TABLE_SMILES, TINY_ARCHITECTURE, write_json

from rmat_hf import finetune, predict
from rmat_hf.errors import UserError
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.preparation import prepare_arguments

NUMBERS = [round(1.5 * idx - 7.25, 2) for idx in range(len(TABLE_SMILES))]


def prepare(columns: dict[str, list[Any]], **options: Any) -> FinetuningArguments:
    rows = Dataset.from_pandas(pd.DataFrame({"Structure": TABLE_SMILES, **columns}))
    return prepare_arguments(FinetuningArguments(dataset="rows", output_dir="x", **options), rows)


def test_columns_are_found_and_what_was_found_is_told_with_the_flag_that_settles_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = [f"A{idx}" for idx in range(len(NUMBERS))]
    with caplog.at_level(logging.INFO):
        arguments = prepare({"ID": ids, "y": [*NUMBERS[:-1], None]})
    assert (arguments.smiles_column, arguments.label_columns) == ("Structure", ["y"])
    line, few = caplog.messages
    assert f"{len(NUMBERS)} rows" in line and "labels 'y'" in line
    assert "missing (1 row)" in line and "rmat check" in line
    assert f"{len(NUMBERS) - 1} molecules" in few and "--split kfold" in few
    caplog.clear()
    with caplog.at_level(logging.INFO):
        prepare({"y": NUMBERS}, split="kfold", num_folds=3, fold=0)
    assert len(caplog.messages) == 1


def test_signs_and_units_beside_a_label_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "rmat_hf")
    relations, units = [">", *["="] * (len(NUMBERS) - 1)], ["uM", *["nM"] * (len(NUMBERS) - 1)]
    prepare({"relation": relations, "y": NUMBERS, "units": units})
    for warning, column in zip(caplog.messages, ["'relation'", "'units'"], strict=True):
        assert column in warning and "--fix" in warning


WIDE = [10.0 ** (it / 3) for it in range(len(NUMBERS))]


def test_values_over_decades_are_warned_of_with_the_flag_unless_it_is_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "rmat_hf")
    arguments = prepare({"IC50 (nM)": WIDE, "logP": NUMBERS})
    # nothing is learned otherwise than as told
    assert arguments.label_transform == []
    (warning,) = caplog.messages
    assert "'IC50 (nM)' goes over 3.7 decades" in warning
    assert "--label-transform pIC50 none --label-units nM ''" in warning
    caplog.clear()
    prepare({"Ki (nM)": WIDE}, label_transform=["pIC50"])
    prepare({"Ki (nM)": WIDE}, label_transform=["none"])
    assert not caplog.messages
    prepare({"flux": WIDE})
    assert "--label-transform log10" in caplog.text


def test_a_label_with_nothing_to_learn_is_left_out_with_its_unit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    constant = [7.0] * len(NUMBERS)
    columns = {"a": NUMBERS, "series": constant, "b": NUMBERS[::-1]}
    arguments = prepare(columns, label_columns=["a", "series", "b"], label_units=["nM", "", "uM"])
    assert (arguments.label_columns, arguments.label_units) == (["a", "b"], ["nM", "uM"])
    assert "nothing to learn are left out: 'series'" in caplog.text
    assert prepare({"series": constant}, label_columns=["series"]).label_columns == ["series"]


def test_units_in_the_names_of_columns_are_those_of_labels_unless_others_are_given() -> None:
    columns = {"IC50 (µM)": NUMBERS, "logP": NUMBERS[::-1]}
    assert prepare(columns).label_units == ["uM", ""]
    assert prepare(columns, label_units=["nM", "1"]).label_units == ["nM", "1"]


@pytest.mark.parametrize(
    ("cells", "problem_type"),
    [
        (["yes", "no"], "multi_label_classification"),
        (["Non-toxic", "Toxic"], "multi_label_classification"),
        ([1, 0], "multi_label_classification"),
        (["low", "mid", "high"], "single_label_classification"),
        ([1, 2, 3], "single_label_classification"),
    ],
)
def test_what_classes_are_is_read_off_the_labels(cells: list[Any], problem_type: str) -> None:
    column = [cells[idx % len(cells)] for idx in range(len(NUMBERS))]
    found = prepare({"y": column}, label_columns=["y"], problem_type="classification")
    assert found.problem_type == problem_type


CALLS: dict[str, list[Any]] = {
    "words": ["yes", "no", "no"],
    "findings": ["non-toxic", "Toxic", None],
    "booleans": [True, False, False],
    "1 and 0": [1, 0, 0],
}


@pytest.mark.parametrize("form", CALLS)
def test_yes_and_no_beside_numbers_is_learned_as_a_class_and_told(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    column = [CALLS[form][idx % 3] for idx in range(len(NUMBERS))]
    columns = {"y": NUMBERS, "a call": column}
    with caplog.at_level(logging.INFO):
        arguments = prepare(columns)
    assert (arguments.label_columns, arguments.class_columns) == (["y", "a call"], ["a call"])
    assert caplog.text.count("--class-columns 'a call'") == 1
    # named, 1 and 0 are numbers, of which the check tells
    caplog.clear()
    with caplog.at_level(logging.INFO):
        arguments = prepare(columns, label_columns=["y", "a call"])
    assert arguments.class_columns == ([] if form == "1 and 0" else ["a call"])
    assert caplog.text.count("--class-columns 'a call'") == 1
    # one transform for all is one of the numbers
    positive = {**columns, "y": [it + 10 for it in NUMBERS]}
    of_labels = prepare(positive, label_transform=["log10"]).label_options
    assert of_labels.label_transforms == ["log10", "none"]
    # what cannot learn both says so
    with pytest.raises(UserError, match=r"a call: .*--head kernel and network.*--label-columns"):
        prepare(columns, head="stack")
    assert prepare(columns, head="stack", label_columns=["y"]).class_columns == []
    assert prepare({"y": column}, problem_type="classification").class_columns == []


def test_numbers_that_are_no_classes_are_told_to_be_learned_as_numbers() -> None:
    # some of them whole
    numbers = [it if idx % 3 else round(it) for idx, it in enumerate(NUMBERS)]
    with pytest.raises(UserError, match=r"'y' has numbers, as -5\.75.*without --problem-type"):
        prepare({"y": numbers}, problem_type="classification")
    classes = [*[1, 2, 3] * 3, 1.5, 2, None]
    found = prepare({"y": classes}, problem_type="classification")
    assert found.problem_type == "single_label_classification"


def test_covariates_are_not_taken_for_labels_and_both_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    beside = {"assay pH": [7.4] * len(NUMBERS), "MW": [round(2.5 * it, 1) for it in NUMBERS]}
    with caplog.at_level(logging.INFO):
        assert prepare({**beside, "logD": NUMBERS}).label_columns == ["logD"]
    assert "labels 'logD' (not 'assay pH', 'MW')" in caplog.text
    assert prepare({"MW": beside["MW"]}).label_columns == ["MW"]  # the only number
    assert prepare({"y": NUMBERS, "z": NUMBERS}, feature_columns=["z"]).label_columns == ["y"]
    with pytest.raises(UserError, match=r"label for certain.*--label-columns.*assay pH, MW"):
        prepare(beside)


def test_a_table_without_numbers_is_refused_with_its_columns() -> None:
    with pytest.raises(
        UserError, match=r"no column of numbers.*--label-columns.*: Structure, note"
    ):
        prepare({"note": ["high"] * len(NUMBERS)})
    counted = {"y": [float(it) for it in range(len(NUMBERS))], "note": ["a"] * len(NUMBERS)}
    with pytest.raises(UserError, match=r"but 'y', .* count or name.*--label-columns y\."):
        prepare(counted)
    assert prepare(counted, label_columns=["y"]).label_columns == ["y"]
    words = ["a", "b"] * (len(NUMBERS) // 2)
    with pytest.raises(UserError, match=r"several labels needs yes and no.*'a' by 1 and 'b' by 0"):
        prepare(
            {"y": words, "z": words},
            label_columns=["y", "z"],
            problem_type="classification",
        )
    calls = ["active", "inactive"] * (len(NUMBERS) // 2)
    with pytest.raises(UserError, match=r"other values: z\. Numbers.*--class-columns y") as found:
        prepare(
            {"y": calls, "z": NUMBERS},
            label_columns=["y", "z"],
            problem_type="classification",
        )
    assert "replace" not in str(found.value)


ROWS: list[list[Any]] = [list(it) for it in zip(TABLE_SMILES, NUMBERS, strict=True)]
COMMAS = [[smiles, str(number).replace(".", ",")] for smiles, number in ROWS]
HEADER = ["smiles", "y"]
FORMS: dict[str, tuple[str, Any]] = {
    "semicolons and decimal commas in Latin-1": (
        "a.csv",
        write_encoded("latin-1", COMMAS, ("Strüktur", "y"), delimiter=";"),
    ),
    "tabs": ("a.tsv", write_text(ROWS, delimiter="\t")),
    "UTF-16": ("a.txt", write_encoded("utf-16", ROWS)),
    "Excel": ("a.xlsx", write_sheets({"Data": [["A title"], HEADER, *ROWS]})),
    "two sheets": ("a.xlsx", write_sheets({"1": [HEADER, *ROWS[:5]], "2": [HEADER, *ROWS[5:]]})),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_table_in_another_form_gives_the_same_model_digit_by_digit(
    form: str, tmp_path: Path
) -> None:
    name, write = FORMS[form]
    if name.endswith(".xlsx"):
        pytest.importorskip("openpyxl")
    write_text(ROWS)(tmp_path / "clean.csv")
    write(tmp_path / name)
    models = []
    for source in ("clean.csv", name):
        result = finetune(
            tmp_path / source,
            label_columns=["y"],
            output_dir=tmp_path / f"run of {source}",
            model="scratch",
            model_config=write_json(tmp_path / "tiny.json", TINY_ARCHITECTURE),
            geometry="bounds",
            feature_cache="none",
            num_workers=0,
            num_train_epochs=2,
        )
        weights = (result.output_dir / "model.safetensors").read_bytes()
        predicted = predict(result.output_dir, ["CCO", "c1ccccc1O"]).values.tolist()
        table = (result.output_dir / "predictions.csv").read_text()
        models.append((hashlib.sha256(weights).hexdigest(), predicted, result.metrics, table))
    assert models[0] == models[1]


def test_a_transform_without_the_unit_it_needs_is_refused_for_tables_that_are_not_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rmat_hf.training.preparation.MOST_CHECKED_ROWS", 1)
    with pytest.raises(UserError, match="--label-units"):
        prepare({"y": NUMBERS}, label_columns=["y"], label_transform=["pIC50"])
