"""LoRA on the attention projections."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import PROCESSOR, build_model, build_rows, build_trainer

from rmat_hf.model.modeling_rmat import RMatForSequenceClassification

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
