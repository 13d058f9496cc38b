"""Converter: golden parity with the 2021 implementation, missing parts, bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from full_disks import small_files
from malicious import Payload
from rdkit import Chem
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor

from rmat_hf.cli import main
from rmat_hf.errors import UserError
from rmat_hf.inference.conversion import (
    convert_checkpoint,
    convert_config,
    load_authors_config,
    load_authors_weights,
)
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
        ({"d_model": 64}, "do not belong together"),
        ({"encoder_n_layers": 3}, "do not belong together"),
        ({"encoder_n_layers": 1}, "do not belong together"),
        ({"d_edge": 47}, "d_edge is not 46"),
        ({"ffn_activation": "GELU"}, r"config\.json.*'ffn_activation'"),
        ({"generator_aggregation": "sum"}, r"config\.json.*'generator_aggregation'"),
        ({"scale_norm": True}, r"config\.json.*\['scale_norm'\] are not known"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = GOLDEN / "grover_pool"
    fields = json.loads((folder / "reference_config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(folder / "reference_state_dict.safetensors", tmp_path / "config.json")


# Disks


def list_content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_conversion(output_dir: Path) -> int:
    source = GOLDEN / "grover_pool"
    arguments = ["--weights", source / "reference_state_dict.safetensors"]
    arguments += ["--config", source / "reference_config.json", "--output-dir", output_dir]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rmat", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("size", [200, 20_000])
def test_folder_that_cannot_be_written_is_one_line_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    """Where the weights do not fit, and where not even the configuration does."""
    (tmp_path / "notes").write_text("mine")
    for output_dir in (tmp_path / "new", tmp_path / "empty"):
        if output_dir.name == "empty":
            output_dir.mkdir()
        with small_files(size):
            assert run_conversion(output_dir) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1, errors
        assert errors[0].startswith(f"rmat: error: {output_dir} cannot be written: ")
        assert errors[0].endswith(" Make room on the disk, or choose another folder.")
        assert list_content(tmp_path) == {"notes": b"mine"}
        assert {path.name for path in tmp_path.iterdir()} <= {"notes", "empty"}


AUTHORS_CONFIG = json.loads((GOLDEN / "grover_pool" / "reference_config.json").read_text())
WEIGHTS = {
    "src_embed.lut.weight": torch.arange(6.0).view(2, 3),
    "encoder.norm.bias": torch.tensor([0.5, -1.0]),
}


def assert_same_weights(loaded: dict[str, torch.Tensor]) -> None:
    assert loaded.keys() == WEIGHTS.keys()
    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)


# Weight files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_every_file_format_gives_the_same_tensors(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path)
    assert_same_weights(load_authors_weights(path))
    assert_same_weights(load_authors_weights(str(path)))


def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": WEIGHTS}, tmp_path / "weights.pt")
    assert_same_weights(load_authors_weights(tmp_path / "weights.pt"))


def test_the_prefix_of_a_wrapping_module_is_removed_once_and_at_the_start_only(
    tmp_path: Path,
) -> None:
    wrapped = {f"model.{name}": tensor for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "weights.pt")
    assert_same_weights(load_authors_weights(tmp_path / "weights.pt"))
    torch.save({"a.model.b": torch.ones(1)}, tmp_path / "inner.pt")
    assert list(load_authors_weights(tmp_path / "inner.pt")) == ["a.model.b"]


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({**WEIGHTS, "extra": Payload(tmp_path / "hacked")}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"Cannot read .*weights\.pt.*could run code"):
        load_authors_weights(tmp_path / "weights.pt")
    assert not (tmp_path / "hacked").exists()
    # the payload works: only the way of reading kept it from running
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "hacked").is_dir()


@pytest.mark.parametrize(
    "content",
    [b"", b"hello world", b"<!DOCTYPE html>", b"PK\x03\x04" + b"0" * 99, b"J\x00", b"\x80\x02t."],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    suffix: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Cannot read .*weights.*download it again") as caught:
        load_authors_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], torch.ones(1), {"lr": 0.1}, {1: torch.ones(1)}, {"a": None}]
)
def test_a_pt_file_of_something_else_than_named_tensors_is_refused(
    content: object, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"Cannot read .*more than named tensors"):
        load_authors_weights(tmp_path / "weights.pt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(UserError, match=r"Cannot read .*Check the path"):
            load_authors_weights(path)


# Configuration files


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"\xff\xfe", b"[1, 2]", b'"text"', b'{"generator_aggregation": "max"}'),
        *(b'{"generator_aggregation": null}', b'{"ffn_activation": "ReLU"}'),
    ],
)
def test_a_configuration_file_that_cannot_be_used_is_refused(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_authors_config(tmp_path / "config.json")
    with pytest.raises(UserError, match=r"missing\.json is not there"):
        load_authors_config(tmp_path / "missing.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": "24"}, "hidden_size.*got str"),
        ({"d_model": None}, "hidden_size.*got NoneType"),
        ({"encoder_n_attn_heads": 5}, "not a multiple of num_attention_heads=5"),
        ({"dropout": 2}, "hidden_dropout_prob"),
        ({"generator_n_layers": 3}, "num_head_layers"),
        ({"generator_d_outputs": "1"}, "does not describe an R-MAT"),
        ({"envelope_exponent": None}, "does not describe an R-MAT"),
        ({"d_edge": 25}, "d_edge is not 46"),
    ],
)
def test_a_field_that_cannot_be_is_refused_in_one_line(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        convert_config(AUTHORS_CONFIG | changes, pooling="mean")
    assert "\n" not in str(caught.value)


# Names and shapes of the tensors
