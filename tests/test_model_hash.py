from pathlib import Path

import torch

from rmat_hf.loading import load_predictor
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model_hash import compute_model_hash


def test_hash_survives_saving_and_loading(
    tiny_model: RMatForSequenceClassification, tiny_model_folder: Path, tmp_path: Path
) -> None:
    tiny_model_folder.rename(tmp_path / "elsewhere")
    loaded, _ = load_predictor(tmp_path / "elsewhere", device="cpu")
    assert compute_model_hash(loaded) == compute_model_hash(tiny_model)


def test_hash_depends_on_weights_and_configuration(
    tiny_model: RMatForSequenceClassification,
) -> None:
    before = compute_model_hash(tiny_model)
    with torch.no_grad():
        tiny_model.classifier.out_proj.bias += 1e-3
    changed = compute_model_hash(tiny_model)
    assert changed != before
    tiny_model.config.label_mean = [1.0]
    assert compute_model_hash(tiny_model) != changed
