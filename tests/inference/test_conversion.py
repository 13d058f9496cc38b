"""Converter: golden parity with the 2021 implementation, missing parts, bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disks import small_files
from malicious import Payload
from rdkit import Chem
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor

from rmat_hf.errors import UserError
from rmat_hf.inference.conversion import convert_checkpoint
from rmat_hf.inference.prediction import embed
from rmat_hf.loading import load_predictor
from rmat_hf.model.configuration_rmat import UNREACHABLE_DISTANCE
from rmat_hf.model.processing_rmat import RMatProcessor

GOLDEN = Path(__file__).parents[1] / "golden" / "reference"
CASES = ["grover_pool", "mean_pool"]


def convert_golden(case: str) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """Return the converted model and the golden arrays."""
    folder = GOLDEN / case
    conversion = convert_checkpoint(
        folder / "reference_state_dict.safetensors", folder / "reference_config.json"
    )
    assert conversion.notes == []
    with np.load(folder / "reference_arrays.npz") as arrays:
        return conversion.model, dict(arrays)


def encode_golden_pairs(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the golden one-hot features as the integer codes of the model."""
    bonds = arrays["bond_features"].astype(int)
    is_bonded = bonds[:, 1:5].sum(1) > 0
    codes = 1 + 8 * bonds[:, 1:5].argmax(1) + 4 * bonds[:, 5] + 2 * bonds[:, 6] + bonds[:, 7]
    orders = arrays["neighbourhood"].argmax(1)
    return {
        "bond_types": torch.from_numpy(np.where(is_bonded, codes, 0)),
        "topological_distances": torch.from_numpy(
            np.where(orders == 5, UNREACHABLE_DISTANCE, orders)
        ),
    }


@pytest.mark.parametrize("case", CASES)
def test_float64_outputs_equal_the_golden_ones_when_fed_the_golden_distances(case: str) -> None:
    model, arrays = convert_golden(case)
    nodes = arrays["atom_mask"].astype(bool)
    inputs = {
        "node_features": torch.from_numpy(arrays["node_features"]),
        "interatomic_distances": torch.from_numpy(arrays["distance_matrix"]).double(),
        "attention_mask": torch.from_numpy(nodes.astype(np.int64)),
        **encode_golden_pairs(arrays),
    }
    with torch.no_grad():
        encoded = model.double().rmat(**inputs).last_hidden_state.numpy()
        output = model(**inputs).logits.numpy()
    np.testing.assert_allclose(encoded[nodes], arrays["encoded"][nodes], rtol=0, atol=1e-8)
    np.testing.assert_allclose(output, arrays["output"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_float32_outputs_from_the_sdf_equal_the_golden_ones(case: str) -> None:
    model, arrays = convert_golden(case)
    mols = list(Chem.SDMolSupplier(str(GOLDEN / case / "molecules.sdf")))
    batch = RMatProcessor(geometry="given")(mols, return_tensors="pt")
    nodes = arrays["atom_mask"].astype(bool)
    assert np.array_equal(batch["attention_mask"].bool().numpy(), nodes)
    with torch.no_grad():
        encoded = model.rmat(**batch).last_hidden_state.numpy()
        output = model(**batch).logits.numpy()
    np.testing.assert_allclose(encoded[nodes], arrays["encoded"][nodes], rtol=0, atol=1e-4)
    np.testing.assert_allclose(output, arrays["output"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_converted_folder_predicts_as_the_converted_model(case: str, tmp_path: Path) -> None:
    folder = GOLDEN / case
    conversion = convert_checkpoint(
        folder / "reference_state_dict.safetensors", folder / "reference_config.json"
    )
    conversion.save(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert (processor.force_field, processor.conformer_hydrogens) == ("uff", True)
    batch = processor(["CCO", "c1ccccc1N"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(**batch).logits, conversion.model(**batch).logits, rtol=0, atol=1e-6
        )


def save_headless(folder: Path, *, suffix: str) -> Path:
    """Write the golden weights without pooling and head, as the authors published theirs."""
    state_dict = load_file(GOLDEN / "grover_pool" / "reference_state_dict.safetensors")
    encoder = {name: t for name, t in state_dict.items() if not name.startswith("generator.")}
    path = folder / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(encoder, path)
    else:
        save_file(encoder, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_without_pooling_and_head_become_an_encoder_with_mean_pooling(
    suffix: str, tmp_path: Path
) -> None:
    weights = save_headless(tmp_path, suffix=suffix)
    conversion = convert_checkpoint(weights, GOLDEN / "grover_pool" / "reference_config.json")
    assert [note.split(":")[0] for note in conversion.notes] == [
        "The weights contain no pooling",
        "The weights contain no prediction head",
    ]
    conversion.save(tmp_path / "model")
    encoder = AutoModel.from_pretrained(tmp_path / "model")
    assert encoder.config.pooling == "mean"
    assert embed(tmp_path / "model", ["CCO"]).values.shape == (1, 48)
    with pytest.raises(UserError, match="no trained classifier"):
        load_predictor(tmp_path / "model")


def test_attention_pooling_that_was_asked_for_but_is_missing_is_not_used_for_embeddings(
    tmp_path: Path,
) -> None:
    weights = save_headless(tmp_path, suffix=".safetensors")
    config = GOLDEN / "grover_pool" / "reference_config.json"
    conversion = convert_checkpoint(weights, config, pooling="attention")
    assert "starts untrained" in conversion.notes[0]
    conversion.save(tmp_path / "model")
    with pytest.raises(UserError, match=r"no trained rmat\.pooler\."):
        embed(tmp_path / "model", ["CCO"])


def test_another_pooling_than_the_trained_one_leaves_the_head_out() -> None:
    folder = GOLDEN / "grover_pool"
    conversion = convert_checkpoint(
        folder / "reference_state_dict.safetensors",
        folder / "reference_config.json",
        pooling="dummy_node",
    )
    assert type(conversion.model).__name__ == "RMatModel"
    assert conversion.notes[0].startswith("The head was trained on another pooling")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 64, "ffn_d_output": 64}, "does not belong to"),
        ({"d_model": 64}, "ffn_d_output is not 64"),
        ({"encoder_n_layers": 3}, "does not belong to"),
        ({"encoder_n_layers": 1}, "does not belong to"),
        ({"d_edge": 47}, "d_edge is not 46"),
        ({"ffn_activation": "GELU"}, "'ffn_activation'"),
        ({"generator_aggregation": "sum"}, r"config\.json cannot be read: KeyError 'sum'"),
        ({"scale_norm": True}, r"config\.json.*\['scale_norm'\] are not known"),
        ({"d_model": "24"}, "hidden_size.*got str"),
        ({"encoder_n_attn_heads": 5}, "not a multiple of num_attention_heads=5"),
        ({"dropout": 2}, "hidden_dropout_prob"),
        ({"generator_n_layers": 3}, "does not belong to"),
        ({"generator_n_layers": 0}, "num_head_layers"),
        ({"generator_d_outputs": "1"}, r"config\.json"),
        ({"envelope_exponent": None}, r"config\.json"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = GOLDEN / "grover_pool"
    fields = json.loads((folder / "reference_config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message) as caught:
        convert_checkpoint(folder / "reference_state_dict.safetensors", tmp_path / "config.json")
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_is_one_error_and_nothing_is_left(tmp_path: Path) -> None:
    folder = GOLDEN / "grover_pool"
    conversion = convert_checkpoint(
        folder / "reference_state_dict.safetensors", folder / "reference_config.json"
    )
    with small_files(20_000), pytest.raises(UserError, match=r"model cannot be written.*Make room"):
        conversion.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Weight files


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"epoch": 3, "state_dict": it}])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_training_checkpoint_and_a_wrapping_module_make_no_difference(
    tmp_path: Path, wrap: Callable[[Any], Any], prefix: str
) -> None:
    folder = GOLDEN / "grover_pool"
    source, config = folder / "reference_state_dict.safetensors", folder / "reference_config.json"
    weights = {f"{prefix}{name}": tensor for name, tensor in load_file(source).items()}
    torch.save(wrap(weights), tmp_path / "weights.pth")
    first = convert_checkpoint(source, config).model.state_dict()
    second = convert_checkpoint(tmp_path / "weights.pth", config).model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Payload(tmp_path / "hacked")}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"weights\.pt cannot be read.*could run code"):
        convert_checkpoint(tmp_path / "weights.pt", "config.json")
    assert not (tmp_path / "hacked").exists()
    # the payload works: only the way of reading kept it from running
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "hacked").is_dir()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"PK\x03\x04" + b"0" * 99, b"J\x00", b"\x80\x02t.", None],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    suffix: str, content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.\w+ cannot be read.*Check the path") as caught:
        convert_checkpoint(path, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], torch.ones(1), {"lr": 0.1}, {1: torch.ones(1)}, {"a": None}]
)
def test_a_pt_file_of_something_else_than_named_tensors_is_refused(
    content: object, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="more than named tensors"):
        convert_checkpoint(tmp_path / "weights.pt", "config.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2]", b"{}"])
def test_a_configuration_file_that_cannot_be_used_is_refused(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        convert_checkpoint(
            GOLDEN / "grover_pool" / "reference_state_dict.safetensors", tmp_path / "config.json"
        )
