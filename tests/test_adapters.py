"""Adapters: what was saved comes back on its base, alone, beside others or merged."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from transformers import AutoModelForSequenceClassification, pipeline
from transformers.integrations.peft import MIN_PEFT_VERSION

from rmat_hf.adapters import add_adapter, save_model
from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import embed, predict
from rmat_hf.inference.sharing import push_folder
from rmat_hf.loading import checkpoint_path, load_predictor, read_checkpoint
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.model.processing_rmat import RMatProcessor
from rmat_hf.output_folder import load_json
from rmat_hf.training.recipe import load_for_finetuning

peft = pytest.importorskip("peft")

PROCESSOR = RMatProcessor(geometry="bounds")
LABELS = {"one": ["dG"], "two": ["logS", "pKa"]}
ROWS = {
    "one": Dataset.from_dict({"labels": [[-5.0], [-1.0], [3.0]]}),
    "two": Dataset.from_dict({"labels": [[100.0, 7.0], [300.0, 8.0]]}),
}


def build_base(folder: Path, *, seed: int = 0) -> Path:
    """Save an encoder without a head."""
    torch.manual_seed(seed)
    RMatModel(RMatConfig(**TINY_ARCHITECTURE)).save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return folder


def build_adapter(folder: Path, base: Path, *, name: str = "one", **options: Any) -> Any:
    """Save an adapter with random weights; return the model it was saved from."""
    model: Any = load_for_finetuning(base, ROWS[name], label_columns=LABELS[name], seed=len(name))
    fields: dict[str, Any] = {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": False}
    adapted = add_adapter(model, peft.LoraConfig(**{**fields, **options})).eval()
    folder.mkdir()
    save_model(adapted, folder)
    PROCESSOR.save_pretrained(folder)
    return adapted


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return build_base(tmp_path / "base")


def compute_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(**PROCESSOR(TINY_SMILES, return_tensors="pt")).logits
    return logits


def assert_same(model: Any, expected: torch.Tensor) -> None:
    """Its logits are equal but for the rounding of kernels, which depends on where weights lie."""
    torch.testing.assert_close(compute_logits(model), expected, rtol=1e-5, atol=1e-6)


def change_fields(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(load_json(path) | changes))


def read_error(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        predict(folder, ["CCO"], device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What was saved comes back


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param(
            {"use_rslora": True, "rank_pattern": {"q_proj": 2}}, marks=pytest.mark.slow, id="ranks"
        ),
    ],
)
def test_an_adapter_predicts_as_the_model_it_was_saved_from(
    options: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    saved = build_adapter(tmp_path / "adapter", base, name="two", **options)
    expected = compute_logits(saved)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    predictions = predict(tmp_path / "adapter", TINY_SMILES, device="cpu")
    np.testing.assert_allclose(predictions.values, expected.numpy(), rtol=1e-4, atol=1e-3)
    assert predictions.config.output_names == ["logS", "pKa"]
    vectors = embed(saved.get_base_model(), TINY_SMILES, processor=PROCESSOR).values
    found = embed(tmp_path / "adapter", TINY_SMILES, device="cpu").values
    np.testing.assert_allclose(found, vectors, rtol=1e-4, atol=1e-5)
    plain = embed(base, TINY_SMILES, device="cpu").values
    assert np.abs(found - plain).max() > 0.1


def test_transformers_itself_reads_an_adapter(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    saved = build_adapter(tmp_path / "adapter", base, name="two")
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    assert_same(reloaded.eval(), compute_logits(saved))


@pytest.mark.slow
def test_pipelines_take_the_folder_of_an_adapter(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    expected = compute_logits(build_adapter(tmp_path / "adapter", base))
    name = str(tmp_path / "adapter")
    for pipe in (pipeline("molecule-property-prediction", model=name), pipeline(model=name)):
        found = [pipe(smiles)["predictions"][0] for smiles in TINY_SMILES]
        assert [it["label"] for it in found] == ["dG"] * len(TINY_SMILES)
        assert [it["value"] for it in found] == pytest.approx(expected[:, 0].tolist(), rel=1e-4)
    # the head is there, and nobody is told that it is new
    assert "classifier" not in caplog.text
    vector = pipeline("molecule-feature-extraction", model=name)("CCO")["embedding"]
    assert vector == pytest.approx(embed(name, ["CCO"], device="cpu").values[0].tolist(), abs=1e-5)


def test_two_adapters_on_one_base_predict_as_each_alone(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    expected = {
        name: compute_logits(build_adapter(tmp_path / name, base, name=name)) for name in LABELS
    }
    model = RMatForSequenceClassification.from_pretrained(base).eval()
    caplog.clear()
    for name in LABELS:
        model.load_adapter(str(tmp_path / name), adapter_name=name)
    # neither lacks what the other has
    assert "missing" not in caplog.text.lower()
    change_fields(tmp_path / "two", target_modules=["q_proj", "k_proj", "up_proj"])
    model.load_adapter(str(tmp_path / "two"), adapter_name="more")
    assert "k_proj.lora_A.more.weight, are missing" in caplog.text
    model.delete_adapter("more")
    model.set_adapter("two")
    assert_same(model, expected["two"])
    for name in ("one", "two", "one", "two"):
        model.set_adapter(name)
        assert_same(model, expected[name])
        assert model.config.output_names == LABELS[name]
    # labels of the adapter in use, for predictions and the loss
    result = predict(model, ["CCO"], processor=PROCESSOR)
    assert list(result.to_columns())[:2] == ["prediction_logS", "prediction_pKa"]


def test_an_adapter_whose_trust_has_the_same_shapes_reads_its_own_rows() -> None:
    trust = {"kind": "centers", "num_references": 1, "threshold": 0.5}
    options = {**TINY_ARCHITECTURE, "num_labels": 2, "problem_type": "regression"}
    first, second = (
        RMatConfig(**options, trust={**trust, "num_rows": it}) for it in ([20, 9], [9, 20])
    )
    model = RMatForSequenceClassification(first)
    model._fit_head(second)
    # of another label's number the quantile would be one of the zeros behind the scores
    assert model.trust_head.num_rows == [9, 20]


@pytest.mark.slow
def test_a_merged_adapter_is_a_model_as_any_other(base: Path, tmp_path: Path) -> None:
    saved = build_adapter(tmp_path / "adapter", base)
    expected = compute_logits(saved)
    saved.merge_and_unload().save_pretrained(tmp_path / "merged")
    PROCESSOR.save_pretrained(tmp_path / "merged")
    shutil.rmtree(base)
    found = predict(tmp_path / "merged", TINY_SMILES, device="cpu").values
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_adapter_learns_other_labels(base: Path, tmp_path: Path) -> None:
    build_adapter(tmp_path / "adapter", base)
    model = load_for_finetuning(tmp_path / "adapter", ROWS["two"], label_columns=LABELS["two"])
    assert compute_logits(model).shape == (len(TINY_SMILES), 2)
    vectors = embed(model, TINY_SMILES, processor=PROCESSOR).values
    found = embed(tmp_path / "adapter", TINY_SMILES, device="cpu").values
    np.testing.assert_allclose(vectors, found, rtol=1e-4, atol=1e-5)


# The base model


@pytest.mark.slow
def test_a_base_is_found_beside_its_adapter_wherever_both_are(base: Path, tmp_path: Path) -> None:
    expected = compute_logits(build_adapter(tmp_path / "adapter", base))
    assert load_json(tmp_path / "adapter" / "adapter_config.json")["base_model_name_or_path"] == (
        "../base"
    )
    (tmp_path / "moved").mkdir()
    for name in ("base", "adapter"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    model, _ = load_predictor(tmp_path / "moved" / "adapter", device="cpu")
    torch.testing.assert_close(compute_logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_base_of_the_package_is_called_by_its_name(tmp_path: Path) -> None:
    build_adapter(tmp_path / "adapter", checkpoint_path("rmat-small"))
    fields = load_json(tmp_path / "adapter" / "adapter_config.json")
    assert fields["base_model_name_or_path"] == "rmat-small"
    assert predict(tmp_path / "adapter", ["CCO"], device="cpu").errors == [None]


def test_a_base_that_is_missing_or_another_is_one_line(base: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    build_adapter(adapter, base)
    base.rename(tmp_path / "away")
    assert "'../base' is not there. Set base_model_name_or_path" in read_error(adapter)
    build_base(tmp_path / "base", seed=1)
    assert "trained on other weights" in read_error(adapter)
    shutil.rmtree(tmp_path / "base")
    RMatModel(RMatConfig(**{**TINY_ARCHITECTURE, "hidden_size": 16})).save_pretrained(base)
    assert "do not fit" in read_error(adapter)
    change_fields(adapter, base_model_name_or_path=str(adapter))
    assert "it is an adapter itself" in read_error(adapter)
    change_fields(adapter, base_model_name_or_path=None)
    assert "base_model_name_or_path" in read_error(adapter)


# A stranger's files


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "XLORA", "adapters": {"0": "somewhere"}},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"target_modules": "(a+)+$"},
        {"modules_to_save": ["(a+)+$"]},
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
        # transformers would leave its magnitudes as they are in the base
        {"use_dora": True},
        {"eva_config": {"rho": 2.0}},
    ],
    ids=lambda it: next(iter(it)),
)
def test_what_peft_would_do_with_a_field_is_refused(
    changes: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    build_adapter(tmp_path / "adapter", base)
    change_fields(tmp_path / "adapter", **changes)
    assert "merge_and_unload" in read_error(tmp_path / "adapter")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "changes",
    [{"r": 10**12}, {"rank_pattern": {"q_proj": 10**12}}, {"rank_pattern": ["q_proj"]}, {"r": "8"}],
    ids=["rank", "ranks", "list", "text"],
)
def test_numbers_that_the_weights_do_not_have_are_refused(
    changes: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    build_adapter(tmp_path / "adapter", base)
    change_fields(tmp_path / "adapter", **changes)
    assert "cannot be read" in read_error(tmp_path / "adapter")


def test_weights_that_are_missing_or_left_over_are_refused(base: Path, tmp_path: Path) -> None:
    build_adapter(tmp_path / "adapter", base)
    change_fields(tmp_path / "adapter", target_modules=["q_proj", "up_proj", "k_proj"])
    assert "k_proj" in read_error(tmp_path / "adapter")
    change_fields(tmp_path / "adapter", target_modules=["q_proj"])
    assert "up_proj" in read_error(tmp_path / "adapter")


def test_what_peft_alone_has_saved_needs_the_configuration_beside_it(
    base: Path, tmp_path: Path
) -> None:
    model: Any = load_for_finetuning(base, ROWS["one"], label_columns=LABELS["one"])
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"])
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    PROCESSOR.save_pretrained(tmp_path / "adapter")
    assert "model.config.save_pretrained(folder)" in read_error(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    found = predict(tmp_path / "adapter", TINY_SMILES, device="cpu")
    expected = predict(model.eval(), TINY_SMILES, processor=PROCESSOR)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-5)


def test_without_names_of_modules_every_projection_is_adapted(base: Path) -> None:
    model: Any = read_checkpoint(base).load_model(RMatForSequenceClassification)
    adapted = add_adapter(model, peft.LoraConfig(r=2))
    names = {name.split(".lora_")[0].split(".")[-1] for name in adapted.state_dict()}
    assert {"q_proj", "v_proj", "up_proj", "down_proj"} <= names


def test_without_peft_the_way_to_install_it_is_told(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_adapter(tmp_path / "adapter", base)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'rmat-hf[peft]'" in read_error(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "Pass a peft.LoraConf"),
        (peft.LoraConfig(target_modules=["nothing"]), "does not fit.*q_proj"),
        (peft.LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"), "base model"),
    ],
    ids=["ia3", "nothing", "pissa"],
)
def test_a_configuration_that_no_folder_can_have_is_refused(
    config: Any, message: str, base: Path
) -> None:
    model: Any = read_checkpoint(base).load_model(RMatForSequenceClassification)
    with pytest.raises(UserError, match=message):
        add_adapter(model, config)


@pytest.mark.slow
def test_an_adapter_is_shared_if_others_have_its_base(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_adapter(tmp_path / "adapter", base)
    with pytest.raises(
        UserError, match=r"'\.\./base' is a folder of this machine. Push that first"
    ):
        push_folder(tmp_path / "adapter", "me/adapter", dry_run=True)
    change_fields(tmp_path / "adapter", base_model_name_or_path="me/base")
    push = push_folder(tmp_path / "adapter", "me/adapter", dry_run=True)
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json"} <= {*push.files}
    assert "handler.py" not in push.files
    assert "For these push the base too" not in caplog.text
    change_fields(tmp_path / "adapter", base_model_name_or_path="rmat-small")
    push_folder(tmp_path / "adapter", "me/adapter", dry_run=True)
    assert "rmat-small comes with rmat-hf" in caplog.text
    assert "For these push the base too" in caplog.text
