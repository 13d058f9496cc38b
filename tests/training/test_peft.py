"""LoRA: what learns, and what a run leaves."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY_ARCHITECTURE
from tiny_finetuning import TABLE_PARTS, TABLE_SMILES, build_tiny_arguments
from tiny_trainer import PROCESSOR, build_model, build_rows, build_trainer
from transformers.integrations.peft import MIN_PEFT_VERSION

from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import predict
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatModel
from rmat_hf.output_folder import load_json
from rmat_hf.training.arguments import FinetuningArguments
from rmat_hf.training.finetuning import run_finetuning

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def add_lora(model: RMatForSequenceClassification, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=PROJECTIONS, modules_to_save=["classifier"], r=8, **options
    )
    torch.manual_seed(1)
    return peft.get_peft_model(model, config)


def test_lora_trains_only_the_adapter_and_reloads_to_the_same_logits(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = add_lora(build_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = build_trainer(
        tmp_path / "work",
        model=model,
        train_dataset=build_rows(16),
        max_steps=8,
        learning_rate=1e-2,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[4:]) < sum(losses[:4])
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert {name.split(".lora_")[0].split(".")[-1] for name in changed if ".lora_" in name} == set(
        PROJECTIONS
    )
    assert all(".lora_" in name or "classifier.modules_to_save" in name for name in changed)

    trainer.save_model(str(tmp_path / "adapter"))
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    reloaded = peft.PeftModel.from_pretrained(build_model(), tmp_path / "adapter").eval()
    batch = dict(PROCESSOR(["CCO", "c1ccccc1C(=O)O"], return_tensors="pt"))
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        assert torch.equal(reloaded(**batch).logits, expected)
        merged = reloaded.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(build_model().eval()(**batch).logits, expected, atol=1e-3)


# rmat finetune --peft lora


def run_on_base(folder: Path, **options: Any) -> FinetuningArguments:
    """Finetune an adapter of a tiny base model, and return the arguments."""
    if not (folder / "base").exists():
        torch.manual_seed(0)
        RMatModel(RMatConfig(**TINY_ARCHITECTURE)).save_pretrained(folder / "base")
        PROCESSOR.save_pretrained(folder / "base")
    fields: dict[str, Any] = {"model": str(folder / "base"), "num_train_epochs": 2}
    columns = {"y": [10.0 * it for it in range(12)], "part": TABLE_PARTS}
    if "peft_config" not in options:
        fields["peft"] = "lora"
    peft_config = options.pop("peft_config", None)
    arguments = build_tiny_arguments(folder, columns, **{**fields, **options})
    run_finetuning(arguments, peft_config=peft_config)
    return arguments


def assert_knows_its_molecules(found: Any) -> None:
    assert found.novelty is not None and found.novelty[:8] == pytest.approx(0)
    assert found.novelty[8:].max() > 0


def read_predictions(folder: Path) -> list[float]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        return [float(row["prediction_y"]) for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("lora")
    run_on_base(folder, peft_rank=3)
    return folder / "run"


def test_a_run_leaves_an_adapter_that_predicts_as_its_table_says(run: Path) -> None:
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "README.md"} <= {
        path.name for path in run.iterdir()
    }
    assert not (run / "model.safetensors").exists()
    fields = load_json(run / "adapter_config.json")
    assert (fields["r"], fields["base_model_name_or_path"]) == (3, "../base")
    found = predict(run, TABLE_SMILES, device="cpu")
    assert found.values[:, 0] == pytest.approx(read_predictions(run), rel=1e-4, abs=1e-3)
    assert_knows_its_molecules(found)
    with pytest.raises(UserError, match="is no base model of an adapter"):
        run_on_base(run.parent, model=str(run), output_dir=str(run.parent / "second"))
    # in the units of the labels
    assert found.config.label_mean == pytest.approx([35.0])
    assert str(run.parent) not in "".join(
        path.read_text(errors="ignore") for path in run.iterdir() if path.is_file()
    )


def test_what_an_adapter_keeps_of_its_molecules_is_there_in_transformers_too(run: Path) -> None:
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    model = RMatForSequenceClassification.from_pretrained(run)
    assert_knows_its_molecules(predict(model, TABLE_SMILES, processor=PROCESSOR))


@pytest.mark.slow
def test_a_configuration_of_peft_trains_what_it_names(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="SEQ_CLS")
    run_on_base(tmp_path, peft_config=config)
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    names = {name.split(".lora_")[0].split(".")[-1] for name in weights if ".lora_" in name}
    assert names == {"v_proj"}
    assert config.modules_to_save is None
    with pytest.raises(UserError, match="Pass one of them"):
        run_on_base(tmp_path, peft_config=config, peft="lora", output_dir=str(tmp_path / "other"))


@pytest.mark.slow
def test_members_with_adapters_become_one_merged_ensemble(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    run_on_base(tmp_path, num_members=2)
    found = predict(tmp_path / "run", TABLE_SMILES, device="cpu")
    assert found.spread is not None
    assert found.values[:, 0] == pytest.approx(read_predictions(tmp_path / "run"), rel=1e-4)
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_that_stopped_before_publishing_still_leaves_its_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    run_on_base(tmp_path, output_dir=str(tmp_path / "expected"))
    with monkeypatch.context() as patch:
        patch.setattr("rmat_hf.training.finetuning.build_finetuning_report", stop)
        with pytest.raises(KeyboardInterrupt):
            run_on_base(tmp_path)
    run_on_base(tmp_path, resume=True)
    expected, found = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("expected", "run")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert read_predictions(tmp_path / "run") == read_predictions(tmp_path / "expected")


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_random_weights_and_a_rank_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--model scratch is random"):
        run_on_base(tmp_path, model="scratch")
    with pytest.raises(UserError, match="--peft-rank"):
        run_on_base(tmp_path, peft=None, peft_rank=3)
