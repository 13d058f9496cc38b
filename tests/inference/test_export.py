"""Programs without this package: torch.export and ONNX, for any number of molecules and atoms."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_python
from tiny import TINY_ARCHITECTURE, TINY_SMILES

from rmat_hf.errors import UserError
from rmat_hf.inference.export import MAX_DIFFERENCE, ExportArguments, export_onnx, run_export
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.ensemble_rmat import RMatEnsembleForSequenceClassification
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification, RMatForTokenClassification
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
    {"pair_relations": ["distance"], "pair_terms": ["keys"]},
    {"pair_relations": ["bond"], "pair_terms": ["values"]},
]
NUM_NODES = {"node_features": (1,), "attention_mask": (1,)}


def build_model(seed: int = 0, **options: Any) -> RMatForSequenceClassification:
    torch.manual_seed(seed)
    labels = {"num_labels": 2, "problem_type": "regression"}
    scaling = {"label_mean": [1.0, -3.0], "label_std": [2.0, 0.5]}
    config = RMatConfig(**(TINY_ARCHITECTURE | labels | scaling | options))
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


@pytest.mark.slow
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


def run(path: Path, batch: dict[str, Any]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in batch.items()})


@pytest.mark.slow
@pytest.mark.parametrize("options", [*FORMS[:2], *FORMS[3:]])
def test_an_onnx_program_predicts_in_units_for_other_sizes(
    processor: RMatProcessor, tmp_path: Path, options: dict[str, Any]
) -> None:
    pytest.importorskip("onnxscript")
    model = build_model(**options)
    export = export_onnx(model, tmp_path / "model.onnx", processor=processor)
    assert export.max_difference < MAX_DIFFERENCE
    for smiles in [TINY_SMILES, *OTHER_BATCHES]:
        batch = dict(processor(smiles, return_tensors="pt"))
        (predictions,) = run(export.path, batch)
        expected = compute_logits(model, batch).numpy()
        np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_an_ensemble_of_classifiers_gives_probabilities_and_their_spread(
    processor: RMatProcessor, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    changes = {"problem_type": "multi_label_classification", "label_mean": None, "label_std": None}
    members = [build_model(**changes, seed=seed) for seed in (0, 1)]
    model = RMatEnsembleForSequenceClassification.from_members(members).eval()
    export = export_onnx(model, tmp_path / "model.onnx", processor=processor)
    batch = dict(processor(OTHER_BATCHES[-1], return_tensors="pt"))
    expected = np.stack([compute_logits(member, batch).sigmoid().numpy() for member in members])
    predictions, spread = run(export.path, batch)
    np.testing.assert_allclose(predictions, expected.mean(0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(spread, expected.std(0), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_program_of_atoms_predicts_at_every_node(
    processor: RMatProcessor, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model = RMatForTokenClassification(build_model().config).eval()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    arguments = ExportArguments(
        model=str(tmp_path / "model"), output_dir=str(tmp_path / "exported")
    )
    path = run_export(arguments).path
    batch = dict(processor(OTHER_BATCHES[-1], return_tensors="pt"))
    (predictions,) = run(path, batch)
    expected = compute_logits(model, batch).numpy()
    assert predictions.shape == (*batch["attention_mask"].shape, len(model.config.output_names))
    np.testing.assert_allclose(predictions, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_program_that_differs_is_not_kept(processor: RMatProcessor, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match=r"model\.onnx: the program differs"):
        export_onnx(
            build_model(), tmp_path / "model.onnx", processor=processor, max_difference=1e-12
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_script_of_the_documentation_predicts_without_torch(
    processor: RMatProcessor, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    model = build_model()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    arguments = ExportArguments(
        model=str(tmp_path / "model"), output_dir=str(tmp_path / "exported")
    )
    assert run_export(arguments).path == tmp_path / "exported" / "model.onnx"
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    done = run_python(["script.py"], folder=tmp_path, blocked=["torch", "rmat_hf"])
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    batch = dict(processor(["CCO", "c1ccccc1O"], return_tensors="pt"))
    expected = compute_logits(model, batch).numpy()
    assert list(found) == model.config.output_names
    np.testing.assert_allclose(np.array([*found.values()]).T, expected, rtol=0, atol=1e-4)
