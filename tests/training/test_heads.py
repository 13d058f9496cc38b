"""Which head learns by default, and a network that is trained on valid too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_PARTS, build_tiny_arguments

from rmat_hf import RMatModel, RMatProcessor, featurize_dataset, predict
from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.training import preparation
from rmat_hf.training.arguments import NETWORK_FLAGS, FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning
from rmat_hf.training.preparation import choose_head

COLUMNS = {"y": list(range(12)), "part": TABLE_PARTS}


def choose(folder: Path, model: Path | str, **options: Any) -> tuple[str, str]:
    arguments = build_tiny_arguments(folder, model=str(model), head="auto", **options)
    chosen, reason = choose_head(arguments, None)
    return chosen.head, reason


def test_few_rows_and_a_pretrained_model_have_a_stack(
    tiny_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, reason = choose(tmp_path, tiny_encoder)
    assert head == "stack" and "docs/heads.md" in reason
    monkeypatch.setattr(preparation, "MAX_STACK_ROWS", 11)
    assert choose(tmp_path, tiny_encoder) == ("network", "there are more than 11 rows")
    monkeypatch.setattr(preparation, "MAX_STACK_ROWS", 12)
    assert choose(tmp_path, tiny_encoder)[0] == "stack"
    many = {f"y{idx}": range(12) for idx in range(preparation.MAX_STACK_LABELS + 1)}
    head, reason = choose(tmp_path, tiny_encoder, columns=many)
    assert head == "network" and "each of the 13 labels alone" in reason
    # what was asked for is left as it is
    arguments = build_tiny_arguments(tmp_path, model=str(tiny_encoder), head="kernel")
    assert choose_head(arguments, None) == (arguments, "asked for")


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"num_train_epochs": 3.0}, "--num-train-epochs"),
        ({"recipe": "authors", "dropout": 0.1}, "--recipe, --dropout"),
        ({"training_arguments": '{"bf16": false}'}, "--training-arguments"),
        ({"num_members": 3, "member_folds": True}, "--num-members, --member-folds"),
    ],
)
def test_a_flag_that_only_a_network_reads_decides_for_it(
    tiny_encoder: Path, tmp_path: Path, options: dict[str, Any], flags: str
) -> None:
    assert choose(tmp_path, tiny_encoder, **options) == ("network", f"only it reads {flags}")
    if "training_arguments" not in options:
        with pytest.raises(UserError, match=f"head stack does not read {flags}"):
            build_tiny_arguments(tmp_path, model=str(tiny_encoder), head="stack", **options)


def test_a_stack_with_networks_reads_how_these_are_trained(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": str(tiny_encoder), "head": "stack+network"}
    assert build_tiny_arguments(tmp_path, num_train_epochs=3.0, **options).num_train_epochs == 3
    with pytest.raises(UserError, match="does not read --num-members"):
        build_tiny_arguments(tmp_path, num_members=3, **options)


def test_flags_of_a_network_are_flags() -> None:
    assert {*NETWORK_FLAGS} <= {*FinetuningArguments.__dataclass_fields__}


def test_models_without_vectors_of_their_own_stay_networks(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    assert choose(tmp_path, "scratch")[0] == "network"
    finetuned = tmp_path / "finetuned"
    config = RMatConfig(**TINY_ARCHITECTURE, num_labels=1, problem_type="regression")
    RMatForSequenceClassification(config).save_pretrained(finetuned)
    RMatProcessor(geometry="bounds").save_pretrained(finetuned)
    head, reason = choose(tmp_path, finetuned)
    assert head == "network" and "was finetuned" in reason
    unpooled = tmp_path / "unpooled"
    RMatModel(RMatConfig(**TINY_ARCHITECTURE), add_pooling_layer=False).save_pretrained(unpooled)
    RMatProcessor(geometry="bounds").save_pretrained(unpooled)
    head, reason = choose(tmp_path, unpooled)
    assert head == "network" and "pooling" in reason


def test_rows_that_have_features_are_not_featurized_anew(
    tiny_encoder: Path, tmp_path: Path
) -> None:
    table = Dataset.from_dict({"smiles": ["CCO", "CCC"], "y": [1.0, 2.0]})
    arguments = build_tiny_arguments(tmp_path, model=str(tiny_encoder), head="auto")
    assert choose_head(arguments, table)[0].head == "stack"
    rows = featurize_dataset(table, RMatProcessor(geometry="bounds"), label_columns=["y"])
    assert choose_head(arguments, rows)[0].head == "network"
    assert choose_head(arguments, rows.to_iterable_dataset())[0].head == "network"
    assert choose_head(arguments, table.to_iterable_dataset())[0].head == "stack"


@pytest.mark.slow
def test_refit_trains_on_valid_too_to_the_epoch_that_valid_chose(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_train_epochs": 6.0, "learning_rate": 0.01, "ema_decay": 0.0}
    once, again = tmp_path / "once", tmp_path / "again"
    for folder in (once, again):
        folder.mkdir()
    before = run_finetuning(build_tiny_arguments(once, COLUMNS, **options))
    after = run_finetuning(build_tiny_arguments(again, COLUMNS, refit=True, **options))
    # valid is that of the model before
    assert after.metrics["valid"] == before.metrics["valid"]
    log = json.loads((after.output_dir / "training_log.json").read_text())
    evaluated = [it for it in log if "eval_rmse" in it]
    kept = min(evaluated, key=lambda entry: entry["eval_rmse"])["epoch"]
    assert max(it["epoch"] for it in log if it.get("refit")) == kept
    config = json.loads((after.output_dir / "config.json").read_text())
    assert config["label_mean"] == [np.mean(range(10))]
    smiles = ["CCO", "c1ccccc1"]
    values = [predict(it.output_dir, smiles).values for it in (before, after)]
    assert np.abs(values[0] - values[1]).max() > 1e-3
    table = np.genfromtxt(
        after.output_dir / "predictions.csv", delimiter=",", names=True, dtype=None, encoding=None
    )
    is_test = table["split"] == "test"
    found = predict(after.output_dir, table["smiles"][is_test].tolist()).values[:, 0]
    np.testing.assert_allclose(found, table["prediction_y"][is_test], atol=1e-5)
    card = (after.output_dir / "README.md").read_text(encoding="utf-8")
    assert "trained anew on train and valid" in card


def test_refit_of_members_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--refit is for one model"):
        build_tiny_arguments(tmp_path, refit=True, num_members=2)
