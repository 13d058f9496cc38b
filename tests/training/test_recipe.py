import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments, write_json
from transformers.optimization import get_scheduler

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.features_rmat import list_molecule_descriptor_names
from rmat_hf.model.modeling_rmat import RMatForPreTraining, RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.training.arguments import REGRESSION_HEAD, FinetuningArguments
from rmat_hf.training.recipe import (
    PARTS,
    FinetuningTask,
    RMatTrainingArguments,
    build_finetuning_config,
    build_finetuning_model,
    build_finetuning_task,
    build_training_arguments,
    compute_balanced_weights,
    resolve_defaults,
)

OUTLIER = 1e6


def build_config(folder: Path, columns: Any = None, **options: Any) -> RMatConfig:
    columns = {"y": range(12), "part": TABLE_PARTS} if columns is None else columns
    arguments = build_tiny_arguments(folder, columns, **options)
    return build_finetuning_config(arguments, build_finetuning_task(arguments))


def build_model(folder: Path, columns: Any = None, **options: Any) -> RMatForSequenceClassification:
    arguments = build_tiny_arguments(folder, columns, **options)
    return build_finetuning_model(arguments, build_finetuning_task(arguments))


def assert_same_parameters(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    saved = theirs.state_dict()
    loaded = ours.state_dict()
    assert list(loaded) == list(saved)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_label_scaling_is_fitted_on_train_alone(tmp_path: Path) -> None:
    labels = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0, -OUTLIER, OUTLIER, OUTLIER, OUTLIER]
    config = build_config(tmp_path, {"y": labels, "part": TABLE_PARTS})
    assert config.label_mean == pytest.approx([31.5 / 8], rel=1e-12)
    assert config.label_std == pytest.approx([np.std(labels[:8])], rel=1e-12)


# the mean of eight times 0.1 is not 0.1, so that its standard deviation is not 0
@pytest.mark.parametrize("value", [7.0, 0.1, -1234.567])
def test_label_that_is_constant_on_train_keeps_its_scale(tmp_path: Path, value: float) -> None:
    labels = [value, None, value, value, *[value] * 4, 3, 4, 5, 6]
    config = build_config(tmp_path, {"y": labels, "part": TABLE_PARTS})
    assert config.label_mean == pytest.approx([value], rel=1e-12)
    assert config.label_std == [1.0]


def test_label_without_a_train_value_is_an_error_that_names_it(tmp_path: Path) -> None:
    lost = [None] * 8 + [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(ValueError, match=r"'lost' has no value in the train part.*another split"):
        build_config(tmp_path, {"y": range(12), "lost": lost, "part": TABLE_PARTS})


def test_classes_are_the_outputs_of_a_single_label(tmp_path: Path) -> None:
    columns = {"y": ["low", "high", "medium"] * 4, "part": TABLE_PARTS}
    config = build_config(tmp_path, columns, problem_type="single_label_classification")
    assert config.problem_type == "single_label_classification"
    assert config.output_names == ["high", "low", "medium"]
    assert config.label_name == "y"
    assert config.label_mean is config.label_std is config.label_units is None


@pytest.mark.parametrize("name", ["hidden_sise", "label_mean", "num_molecule_descriptors"])
def test_field_that_is_no_architecture_is_an_error_that_names_file_and_field(
    tmp_path: Path, name: str
) -> None:
    path = write_json(tmp_path / "fields.json", {name: 3, "hidden_size": 32})
    with pytest.raises(ValueError, match=rf"unknown fields \['{name}'\].*'hidden_size'") as error:
        build_config(tmp_path, model_config=path)
    assert path in str(error.value)


def test_multi_label_weights_are_negatives_per_positive() -> None:
    labels = np.array([[0, 1], [0, np.nan], [1, 1], [0, 0]])
    weights = compute_balanced_weights(
        labels, problem_type="multi_label_classification", num_outputs=2
    )
    assert weights == pytest.approx([3.0, 0.5], rel=1e-12)


def test_class_weights_make_every_class_cost_the_same() -> None:
    labels = np.array([[0], [1], [1], [2], [2], [2], [np.nan]], dtype=np.float64)
    weights = compute_balanced_weights(
        labels, problem_type="single_label_classification", num_outputs=3
    )
    # six rows in three classes of one, two and three
    assert weights == pytest.approx([2.0, 1.0, 2 / 3], rel=1e-12)


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("multi_label_classification", [[0, 1], [1, 1]]),
        ("multi_label_classification", [[0, 0], [1, 0]]),
        ("single_label_classification", [[0], [0]]),
        ("single_label_classification", [[1], [1]]),
    ],
)
def test_class_without_a_row_cannot_be_balanced(
    problem_type: str, labels: list[list[float]]
) -> None:
    with pytest.raises(ValueError, match="no row in the train part"):
        compute_balanced_weights(np.array(labels, float), problem_type=problem_type, num_outputs=2)


def test_descriptor_scaler_is_fitted_on_train_alone(tmp_path: Path) -> None:
    smiles = [*TABLE_SMILES[:11], "C" * 60]
    columns = {"smiles": smiles, "y": range(12), "part": TABLE_PARTS}
    model = build_model(tmp_path, columns, molecule_descriptors="rdkit_2d")
    names = list_molecule_descriptor_names()
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=names)
    descriptors = processor(smiles, return_tensors="pt")["molecule_descriptors"].double()
    train = descriptors[:8]
    known = descriptors.isfinite().all(0) & (train.std(0) > 1e-3)
    scaler, close = model.descriptor_scaler, {"rtol": 1e-5, "atol": 1e-6}
    deviation = train.std(0, correction=0)
    torch.testing.assert_close(scaler.mean[known].double(), train.mean(0)[known], **close)
    torch.testing.assert_close(scaler.std[known].double(), deviation[known], **close)
    weight = names.index("MolWt")
    assert scaler.mean[weight] < 0.8 * descriptors[:, weight].mean()
    assert model.config.num_molecule_descriptors == len(names)


def test_other_number_of_labels_gives_a_new_head_on_the_same_encoder(
    tmp_path: Path, tiny_model_folder: Path, tiny_model: RMatForSequenceClassification
) -> None:
    columns = {"a": range(12), "b": range(12), "c": range(12)}
    model = build_model(tmp_path, columns, model=str(tiny_model_folder))
    assert_same_parameters(model.rmat, tiny_model.rmat)
    batch = dict(RMatProcessor(geometry="bounds")(["CCO", "CCN"], return_tensors="pt"))
    logits = model.eval()(**batch).logits
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    assert len(set(logits[0].tolist())) == 3


def test_override_of_a_size_that_weights_have_says_how_to_train_without_them(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    path = write_json(tmp_path / "fields.json", {"hidden_size": 64})
    with pytest.raises(ValueError, match=r"hidden_size=64 do not fit.*--model scratch"):
        build_model(tmp_path, model=str(tiny_model_folder), model_config=path)
    build_model(tmp_path, model="scratch", model_config=path)


def read_head(config: RMatConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in REGRESSION_HEAD}


@pytest.fixture
def pretrained(tmp_path: Path, processor: RMatProcessor) -> str:
    folder = tmp_path / "pretrained"
    RMatForPreTraining(RMatConfig(**TINY_ARCHITECTURE)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_regression_gives_a_pretrained_encoder_a_head_of_its_own(
    pretrained: str, tmp_path: Path
) -> None:
    arguments = build_tiny_arguments(tmp_path, model=pretrained)
    task = build_finetuning_task(arguments)
    config = build_finetuning_config(arguments, task)
    assert read_head(config) == REGRESSION_HEAD
    assert resolve_defaults(arguments, config, num_train_rows=8).head_learning_rate == 3e-3
    arguments.head_learning_rate = 1e-5
    assert resolve_defaults(arguments, config, num_train_rows=8).head_learning_rate == 1e-5


@pytest.mark.parametrize("start", ["scratch", "finetuned", "classification"])
def test_every_other_start_keeps_the_head_of_the_model(
    start: str, pretrained: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = {"scratch": "scratch", "finetuned": str(tiny_model_folder)}.get(start, pretrained)
    labels = {"y": [0, 1] * 6}
    problem = "multi_label_classification" if start == "classification" else "regression"
    arguments = build_tiny_arguments(tmp_path, labels, model=model, problem_type=problem)
    task = build_finetuning_task(arguments)
    config = build_finetuning_config(arguments, task)
    assert config.head_norm and config.classifier_dropout is None
    assert config.head_hidden_size == RMatConfig(**TINY_ARCHITECTURE).head_hidden_size
    assert resolve_defaults(arguments, config, num_train_rows=8).head_learning_rate is None


def build(**options: Any) -> FinetuningArguments:
    required = {"dataset": "table.csv", "label_columns": ["a", "b"], "output_dir": "run"}
    return FinetuningArguments(**{**required, **options})


def build_for_trainer(tmp_path: Path, **options: Any) -> RMatTrainingArguments:
    return build_training_arguments(build(**options), tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("problem_type", "metric", "is_greater_better"),
    [
        ("regression", None, False),
        ("single_label_classification", None, True),
        ("regression", "r2", True),
        ("regression", "eval_mae", False),
        ("multi_label_classification", "loss", False),
        ("multi_label_classification", "eval_pr_auc", True),
    ],
)
def test_best_model_is_chosen_by_the_metric_of_the_problem_or_of_the_user(
    tmp_path: Path, problem_type: str, metric: str | None, is_greater_better: bool
) -> None:
    path = write_json(
        tmp_path / "trainer.json", {"metric_for_best_model": metric} if metric else {}
    )
    trainer = build_for_trainer(tmp_path, problem_type=problem_type, training_arguments=path)
    default = "rmse" if problem_type == "regression" else "roc_auc"
    assert trainer.metric_for_best_model == (metric or default)
    assert trainer.greater_is_better is is_greater_better
    assert trainer.load_best_model_at_end


def test_json_file_overrides_flags_and_defaults(tmp_path: Path) -> None:
    overrides = {"learning_rate": 0.5, "lr_scheduler_type": "linear", "max_steps": 3}
    path = write_json(tmp_path / "trainer.json", overrides)
    trainer = build_for_trainer(tmp_path, learning_rate=0.25, training_arguments=path)
    assert trainer.learning_rate == 0.5
    assert trainer.lr_scheduler_type == "linear"
    assert trainer.max_steps == 3
    assert trainer.weight_decay == 0.01


@pytest.mark.parametrize("step", [1, 50, 99, 100, 101, 250, 499])
def test_the_authors_recipe_has_the_rates_of_their_code(tmp_path: Path, step: int) -> None:
    # 400 rows in batches of 16 for 20 epochs: 500 steps, of which 100 warm up
    arguments = build(recipe="authors", num_train_epochs=20)
    config, nominal = RMatConfig(hidden_size=768), 5e-5
    chosen = build_training_arguments(
        resolve_defaults(arguments, config, num_train_rows=400), tmp_path
    )
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=chosen.learning_rate)
    num_warmup_steps = chosen.get_warmup_steps(500)
    schedule: Any = get_scheduler(
        chosen.lr_scheduler_type, optimizer, num_warmup_steps=num_warmup_steps
    )
    rate = schedule.base_lrs[0] * schedule.lr_lambdas[0](step)
    # `NoamLRScheduler` of gmum/huggingmolecules
    expected = nominal * 100 * 768**-0.5 * min(step**-0.5, step * 100**-1.5)
    assert rate == pytest.approx(expected, rel=1e-6)


def test_a_recipe_is_a_set_of_defaults_over_which_what_is_given_wins(tmp_path: Path) -> None:
    config = RMatConfig(architectures=["RMatForPreTraining"], problem_type="regression")
    by_flag = resolve_defaults(build(recipe="authors"), config, num_train_rows=513)
    assert (by_flag.num_train_epochs, by_flag.batch_size, by_flag.warmup_ratio) == (100, 16, 0.2)
    assert (by_flag.ema_decay, by_flag.weight_decay, by_flag.head_learning_rate) == (0, 0, None)
    # 7e-6, as measured on FreeSolv in their code
    assert by_flag.learning_rate == pytest.approx(7.0e-6, rel=0.01)
    in_python = RMatTrainingArguments(str(tmp_path), recipe="authors")
    in_python.choose_defaults(config, num_train_rows=513)
    assert in_python.learning_rate == by_flag.learning_rate
    assert not in_python.load_best_model_at_end
    given = {"batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.5, "warmup_ratio": 0.3}
    given |= {"weight_decay": 0.1, "head_learning_rate": 2e-3, "num_train_epochs": 7}
    chosen = resolve_defaults(build(recipe="authors", **given), config, num_train_rows=513)
    assert {name: getattr(chosen, name) for name in given} == given
    ours = resolve_defaults(build(), config, num_train_rows=513)
    assert (ours.batch_size, ours.warmup_ratio, ours.weight_decay) == (32, 0.1, 0.01)
    assert (ours.ema_decay, ours.learning_rate, ours.head_learning_rate) == (0.99, 3e-4, 3e-3)
    with pytest.raises(ValueError, match=r"'mine' is unknown.*authors"):
        RMatTrainingArguments(str(tmp_path), recipe="mine")


def test_json_key_that_cannot_be_overridden_is_an_error_that_names_file_and_key(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trainer.json"
    path.write_text(json.dumps({"learning_rte": "x"}))
    with pytest.raises(ValueError, match="learning_rte") as error:
        build_for_trainer(tmp_path, training_arguments=str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("options", "num_train_rows", "expected"),
    [
        ({"model": "scratch"}, 1600, 60),
        ({"model": "scratch", "problem_type": "multi_label_classification"}, 1600, 60),
        ({}, 1600, 40),
        ({}, 320, 50),
        ({}, 3, 60),
        ({"problem_type": "multi_label_classification"}, 1600, 10),
        ({"problem_type": "single_label_classification"}, 320, 50),
        ({"problem_type": "single_label_classification"}, 3, 60),
        ({"problem_type": "multi_label_classification", "num_train_epochs": 7}, 320, 7),
    ],
)
def test_a_trained_model_takes_fewer_epochs_but_not_too_few_steps(
    options: dict[str, Any], num_train_rows: int, expected: float
) -> None:
    arguments = build(**options)
    start = None if arguments.model == "scratch" else ["RMatForPreTraining"]
    config = RMatConfig(problem_type=arguments.problem_type, architectures=start)
    chosen = resolve_defaults(arguments, config, num_train_rows=num_train_rows)
    assert chosen.num_train_epochs == expected


# The data


def build_task(tmp_path: Path, columns: Any = None, **options: Any) -> FinetuningTask:
    return build_finetuning_task(build_tiny_arguments(tmp_path, columns, **options))


def list_rows(task: FinetuningTask) -> dict[str, list[int]]:
    """The positions in the table of every part's rows."""
    return {part: task.select(part)["row"][:] for part in PARTS}


def list_all_rows(task: FinetuningTask) -> list[int]:
    return sorted(row for rows in list_rows(task).values() for row in rows)


@pytest.mark.parametrize("split", ["random", "scaffold", "scaffold_balanced", "cluster"])
def test_every_row_stands_in_exactly_one_part(tmp_path: Path, split: str) -> None:
    task = build_task(tmp_path, split=split)
    assert list_all_rows(task) == list(range(12))
    assert [len(rows) for rows in list_rows(task).values()] == [10, 1, 1]
    assert task.dropped == []


def test_dropped_rows_have_reasons_and_stand_in_no_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    smiles = list(TABLE_SMILES)
    smiles[1] = "OCC"  # the molecule of row 0 with another label
    smiles[3] = "C1CC"
    labels: list[float | None] = [0.0, 50.0, *range(2, 12)]
    labels[6] = None
    with caplog.at_level(logging.WARNING):
        task = build_task(tmp_path, {"smiles": smiles, "y": labels}, split="random")
    assert [row.row for row in task.dropped] == [0, 1, 3, 6]
    assert [row.smiles for row in task.dropped] == [smiles[row] for row in (0, 1, 3, 6)]
    assert "contradictory labels: y is 0.0 and 50.0" in task.dropped[0].reason
    assert task.dropped[1].reason == task.dropped[0].reason
    assert "ring" in task.dropped[2].reason
    assert task.dropped[3].reason == "no label"
    assert list_all_rows(task) == [2, 4, 5, 7, 8, 9, 10, 11]
    assert "Dropped 4 of 12 rows" in caplog.text


def test_valid_is_taken_of_train_where_a_column_has_none(tmp_path: Path) -> None:
    parts = ["Training"] * 10 + ["TEST"] * 2
    split = build_task(tmp_path, {"y": range(12), "part": parts}).split
    assert (len(split.train), len(split.valid), split.test.tolist()) == (9, 1, [10, 11])


def test_labels_keep_missing_values_as_nan_in_the_order_of_the_flags(tmp_path: Path) -> None:
    a: list[float | None] = [float(row) for row in range(12)]
    b: list[float | None] = [10.0 * row for row in range(12)]
    a[2], b[8] = None, None
    task = build_task(tmp_path, {"a": a, "b": b, "part": TABLE_PARTS}, label_columns=["b", "a"])
    train = [[10.0 * row, float(row)] for row in range(8)]
    train[2][1] = np.nan
    np.testing.assert_array_equal(task.labels("train"), train)
    np.testing.assert_array_equal(task.labels("valid"), [[np.nan, 8.0], [90.0, 9.0]])
    np.testing.assert_array_equal(task.labels("test"), [[100.0, 10.0], [110.0, 11.0]])


def test_yes_no_labels_in_a_regression_are_pointed_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_task(tmp_path, {"y": [0, 1] * 6})
    assert "pass --problem-type multi_label_classification" in caplog.text


def test_scratch_takes_geometry_and_descriptors_from_the_flags(tmp_path: Path) -> None:
    task = build_task(
        tmp_path, geometry="2d", on_conformer_failure="bounds", molecule_descriptors="rdkit_2d"
    )
    assert task.processor.geometry == "2d"
    assert task.processor.on_conformer_failure == "bounds"
    assert task.processor.molecule_descriptors == list_molecule_descriptor_names()
    assert set(task.dataset["geometry_source"]) == {"2d"}
