"""Weights in 8 and 4 bits: every library finds layers to quantize and leaves the others alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from low_precision import WAYS, load_quantized, save_and_reload
from tiny import TINY_SMILES

from rmat_hf.inference.prediction import predict
from rmat_hf.loading import checkpoint_path
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

# rms of the error over the spread of the outputs of an untrained head on `rmat-small`.
MAX_ERROR = {"bitsandbytes 4 bit, nf4": 0.4, "torch dynamic int8": 0.2}
NUM_LABELS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = RMatForSequenceClassification.from_pretrained(
        checkpoint_path("rmat-small"),
        num_labels=NUM_LABELS,
        problem_type="regression",
        label_mean=[1.0] * NUM_LABELS,
        label_std=[2.0] * NUM_LABELS,
    )
    folder = tmp_path_factory.mktemp("small")
    model.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("way", WAYS)
def test_quantized_weights_give_nearly_the_same_outputs_also_read_again(
    way: str, folder: Path, processor: RMatProcessor, tmp_path: Path
) -> None:
    pytest.importorskip(WAYS[way][0])

    def compute(model: Any) -> torch.Tensor:
        return torch.from_numpy(predict(model, TINY_SMILES, processor=processor).values)

    exact = compute(RMatForSequenceClassification.from_pretrained(folder))
    model = load_quantized(way, folder)
    reloaded = save_and_reload(way, model, original=folder, folder=tmp_path / "saved")
    values = compute(model)
    errors = (values - exact) / exact.std(0)
    assert 0 < errors.square().mean().sqrt() < MAX_ERROR.get(way, 0.05)
    for layer in model.rmat.layers:
        up_proj = layer.feed_forward.up_proj
        assert (type(up_proj), type(up_proj.weight)) != (torch.nn.Linear, torch.nn.Parameter)
        assert layer.self_attention.key_pairs.radial_proj.weight.dtype == torch.float32
    torch.testing.assert_close(compute(reloaded), values, rtol=0, atol=1e-6)
