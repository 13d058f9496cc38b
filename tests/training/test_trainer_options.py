import json
from pathlib import Path
from typing import Any

import pytest
from tiny_finetuning import write_json
from transformers.training_args import TrainingArguments

from rmat_hf.training.arguments import (
    FinetuningArguments,
)
from rmat_hf.training.trainer_options import (
    build_training_arguments,
    load_architecture_fields,
    load_json_fields,
    resolve_num_train_epochs,
)


def build(**options: Any) -> FinetuningArguments:
    required = {"dataset": "table.csv", "label_columns": ["a", "b"], "output_dir": "run"}
    return FinetuningArguments(**{**required, **options})


def build_for_trainer(tmp_path: Path, **options: Any) -> TrainingArguments:
    return build_training_arguments(build(**options), tmp_path / "checkpoints")


def test_no_json_file_means_no_fields() -> None:
    assert load_json_fields(None) == {}


def test_json_fields_are_the_object_in_the_file(tmp_path: Path) -> None:
    content = {"bf16": True, "max_steps": 3, "name": "é"}
    assert load_json_fields(write_json(tmp_path / "fields.json", content)) == content


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "Cannot read"), ("{a: 1}", "Cannot read"), ("[1, 2]", "no JSON object")],
)
def test_unusable_json_file_is_named_in_the_error(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "fields.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=reason) as error:
        load_json_fields(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("problem_type", "metric", "is_greater_better"),
    [
        ("regression", "rmse", False),
        ("multi_label_classification", "roc_auc", True),
        ("single_label_classification", "roc_auc", True),
    ],
)
def test_best_model_is_chosen_by_the_metric_of_the_problem(
    tmp_path: Path, problem_type: str, metric: str, is_greater_better: bool
) -> None:
    trainer = build_for_trainer(tmp_path, problem_type=problem_type)
    assert trainer.metric_for_best_model == metric
    assert trainer.greater_is_better is is_greater_better
    assert trainer.load_best_model_at_end


@pytest.mark.parametrize(
    ("problem_type", "metric", "is_greater_better"),
    [
        ("regression", "r2", True),
        ("regression", "eval_mae", False),
        ("multi_label_classification", "loss", False),
        ("multi_label_classification", "eval_pr_auc", True),
    ],
)
def test_direction_follows_an_overridden_metric(
    tmp_path: Path, problem_type: str, metric: str, is_greater_better: bool
) -> None:
    path = write_json(tmp_path / "trainer.json", {"metric_for_best_model": metric})
    trainer = build_for_trainer(tmp_path, problem_type=problem_type, training_arguments=path)
    assert trainer.metric_for_best_model == metric
    assert trainer.greater_is_better is is_greater_better


def test_flags_reach_the_trainer(tmp_path: Path) -> None:
    trainer = build_for_trainer(
        tmp_path,
        batch_size=7,
        learning_rate=0.25,
        num_train_epochs=3.0,
        weight_decay=0.125,
        warmup_ratio=0.2,
        seed=11,
    )
    assert trainer.output_dir == str(tmp_path / "checkpoints")
    assert trainer.per_device_train_batch_size == 7
    assert trainer.per_device_eval_batch_size == 14
    assert trainer.learning_rate == 0.25
    assert trainer.num_train_epochs == 3.0
    assert trainer.weight_decay == 0.125
    assert trainer.get_warmup_steps(100) == 20
    assert trainer.seed == 11
    assert trainer.report_to == []
    assert not trainer.remove_unused_columns


def test_run_keeps_one_checkpoint_and_scores_once_an_epoch(tmp_path: Path) -> None:
    trainer = build_for_trainer(tmp_path)
    assert trainer.save_total_limit == 1
    assert trainer.eval_strategy == trainer.save_strategy == trainer.logging_strategy == "epoch"
    assert trainer.lr_scheduler_type == "cosine"
    assert trainer.label_names == ["labels"]


def test_direction_can_be_overridden_as_well(tmp_path: Path) -> None:
    path = write_json(tmp_path / "trainer.json", {"greater_is_better": True})
    assert build_for_trainer(tmp_path, training_arguments=path).greater_is_better is True


@pytest.mark.parametrize(("model", "learning_rate"), [("scratch", 5e-4), ("folder", 3e-4)])
def test_default_learning_rate_depends_on_where_training_starts(
    tmp_path: Path, model: str, learning_rate: float
) -> None:
    assert build_for_trainer(tmp_path, model=model).learning_rate == learning_rate
    assert build_for_trainer(tmp_path, model=model, learning_rate=0.0).learning_rate == 0.0


def test_json_file_overrides_flags_and_defaults(tmp_path: Path) -> None:
    overrides = {"learning_rate": 0.5, "lr_scheduler_type": "linear", "max_steps": 3}
    path = write_json(tmp_path / "trainer.json", overrides)
    trainer = build_for_trainer(tmp_path, learning_rate=0.25, training_arguments=path)
    assert trainer.learning_rate == 0.5
    assert trainer.lr_scheduler_type == "linear"
    assert trainer.max_steps == 3
    assert trainer.weight_decay == build().weight_decay


@pytest.mark.parametrize("name", ["learning_rte", "output_dir"])
def test_json_key_that_cannot_be_overridden_is_an_error_that_names_file_and_key(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "trainer.json"
    path.write_text(json.dumps({name: "x"}))
    with pytest.raises(ValueError, match=name) as error:
        build_for_trainer(tmp_path, training_arguments=str(path))
    assert str(path) in str(error.value)


def test_only_fields_of_the_architecture_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text('{"hidden_size": 64}')
    assert load_architecture_fields(str(path)) == {"hidden_size": 64}
    assert load_architecture_fields(None) == {}
    path.write_text('{"hidden_sizes": 64}')
    with pytest.raises(ValueError, match=r"unknown fields \['hidden_sizes'\]"):
        load_architecture_fields(str(path))


@pytest.mark.parametrize(
    ("options", "num_train_rows", "expected"),
    [
        ({"model": "scratch"}, 1600, 60),
        ({"model": "scratch", "problem_type": "multi_label_classification"}, 1600, 60),
        ({}, 1600, 40),
        ({"model": "rmat-small"}, 320, 50),
        ({"model": "rmat-small"}, 3, 60),
        ({"model": "rmat-small", "problem_type": "multi_label_classification"}, 1600, 10),
        ({"model": "rmat-small", "problem_type": "single_label_classification"}, 320, 50),
        ({"model": "rmat-small", "problem_type": "single_label_classification"}, 3, 60),
        (
            {
                "model": "rmat-small",
                "problem_type": "multi_label_classification",
                "num_train_epochs": 7,
            },
            320,
            7,
        ),
    ],
)
def test_a_trained_model_takes_fewer_epochs_but_not_too_few_steps(
    options: dict[str, Any], num_train_rows: int, expected: float
) -> None:
    arguments = resolve_num_train_epochs(build(**options), num_train_rows=num_train_rows)
    assert arguments.num_train_epochs == expected
