"""Programs without Python: torch.export and ONNX, for any number of molecules and atoms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

# other numbers of molecules and atoms than in the example batch of the export
OTHER_BATCHES = [
    ["CCO"],
    ["C"],
    ["CCCCCCCCCCCCCCCC", "c1ccccc1"],
    ["CC(=O)Oc1ccccc1C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "CO", "[Na+].[Cl-]", "C" * 40],
]
FORMS = [
    {"pooling": "attention", "attention_form": "paper"},
    {"pooling": "mean", "attention_form": "reference"},
    {"pooling": "dummy_node", "attention_form": "paper", "num_head_layers": 2},
]
NUM_NODES = {"node_features": (1,), "attention_mask": (1,)}


def build_model(**options: Any) -> RMatForSequenceClassification:
    torch.manual_seed(0)
    labels = {"num_labels": 2, "problem_type": "regression"}
    scaling = {"label_mean": [1.0, -3.0], "label_std": [2.0, 0.5]}
    config = RMatConfig(**TINY_ARCHITECTURE, **labels, **scaling, **options)
    return RMatForSequenceClassification(config).eval()


def name_dynamic_axes(batch: dict[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    """Return the axes that count molecules and nodes."""
    molecules = torch.export.Dim("num_molecules", min=1, max=4096)
    nodes = torch.export.Dim("num_nodes", min=2, max=4096)
    return {
        name: {0: molecules, **dict.fromkeys(NUM_NODES.get(name, (1, 2)), nodes)} for name in batch
    }


def compute_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("options", FORMS)
def test_an_exported_program_equals_the_model_for_other_sizes(
    processor: RMatProcessor, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = build_model(**options)
    example = dict(processor(TINY_SMILES, return_tensors="pt"))
    program = torch.export.export(
        model, (), kwargs=example, dynamic_shapes=name_dynamic_axes(example)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for smiles in [TINY_SMILES, *OTHER_BATCHES]:
        batch = dict(processor(smiles, return_tensors="pt"))
        expected = compute_logits(model, batch)
        torch.testing.assert_close(compute_logits(exported, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [FORMS[0], pytest.param(FORMS[1], marks=pytest.mark.slow)])
def test_onnx_runtime_agrees_with_the_model_for_other_sizes(
    processor: RMatProcessor, tmp_path: Path, options: dict[str, Any]
) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = build_model(**options)
    example = dict(processor(TINY_SMILES, return_tensors="pt"))
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (),
        path,
        kwargs=example,
        dynamic_shapes=name_dynamic_axes(example),
        input_names=list(example),
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {put.name for put in session.get_inputs()} == set(example)
    for smiles in [TINY_SMILES, *OTHER_BATCHES]:
        batch = dict(processor(smiles, return_tensors="pt"))
        (logits,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        np.testing.assert_allclose(logits, compute_logits(model, batch).numpy(), rtol=0, atol=1e-4)
