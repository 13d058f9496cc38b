"""Inference: a row for every molecule, in order, whatever stands beside it."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_python
from rdkit import Chem
from tiny import TINY_ARCHITECTURE, TINY_SMILES
from tiny_trainer import build_model as build_small_model

from rmat_hf.data.table_writer import Predictions
from rmat_hf.errors import UserError
from rmat_hf.inference.prediction import TOO_LARGE_FOR_MODEL, Embeddings, embed, predict
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatForTokenClassification,
    RMatModel,
)
from rmat_hf.model.processing_rmat import RMatProcessor

BAD_MOLECULES = ["", "not a molecule", "C1CC", "CN(C)(C)(C)C", None]
MIXED = ["CCO", "C1CC", None, *TINY_SMILES[1:], "", "c1ccccc1C(=O)O"]
MIXED_IS_BAD = [False, True, True, *[False] * 5, True, False]

RELATIVE_TOLERANCE = 1e-6
# float32 sums differ in their last bits with the shape of the batch, up to 8e-7 here
FLOAT32_TOLERANCE = 5e-6


def build_model(
    problem_type: str, names: list[str], **fields: Any
) -> RMatForSequenceClassification:
    """A tiny model whose outputs differ clearly between molecules and between labels."""
    torch.manual_seed(0)
    config = RMatConfig(
        **TINY_ARCHITECTURE,
        id2label=dict(enumerate(names)),
        problem_type=problem_type,
        **fields,
    )
    model = RMatForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.out_proj.weight.mul_(4.0)
        model.classifier.out_proj.bias.copy_(torch.linspace(-0.5, 0.5, len(names)))
    return model


def build_regression_model() -> RMatForSequenceClassification:
    options = {"label_mean": [-3.0, 250.0], "label_std": [2.0, 40.0], "hidden_dropout_prob": 0.5}
    return build_model("regression", ["logS", "melting_point"], **options)


def assert_close(ours: np.ndarray, theirs: np.ndarray, *, relative: float) -> None:
    """Equal but for `relative` times the largest value of the column; NaN in the same places."""
    assert ours.shape == theirs.shape
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    scale = np.nanmax(np.abs(theirs), axis=0)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=0, atol=relative)


# Rows


class AlonePredictor:
    """One model in float64, and the prediction of each molecule by itself."""

    def __init__(self) -> None:
        self.processor = RMatProcessor(geometry="bounds")
        self.model = build_regression_model().double()
        self.expected = {
            smiles: predict(self.model, [smiles], processor=self.processor).values[0]
            for smiles in TINY_SMILES
        }
        # far apart, so that a swapped row is seen
        values = np.array(list(self.expected.values())) / [2.0, 40.0]
        gaps = np.abs(values[:, None] - values[None])[np.triu_indices(len(values), 1)]
        assert gaps.max(1).min() > 1e-2


@pytest.fixture(scope="module")
def alone_predictor() -> AlonePredictor:
    return AlonePredictor()


@given(
    molecules=st.lists(st.sampled_from([*TINY_SMILES, *BAD_MOLECULES]), max_size=12),
    batch_size=st.integers(1, 5),
)
@settings(max_examples=30)
def test_every_row_is_its_molecules_own_prediction_or_its_own_error(
    molecules: list[str | None], batch_size: int, alone_predictor: AlonePredictor
) -> None:
    predictions = predict(
        alone_predictor.model,
        molecules,
        processor=alone_predictor.processor,
        batch_size=batch_size,
    )
    is_bad = [molecule in BAD_MOLECULES for molecule in molecules]
    assert [error is not None for error in predictions.errors] == is_bad
    assert predictions.values.shape == (len(molecules), 2)
    missing = np.full(2, np.nan)
    alone = [alone_predictor.expected.get(molecule or "", missing) for molecule in molecules]
    expected = np.array(alone).reshape(-1, 2)
    label_std = np.array([2.0, 40.0])
    for ours, theirs in zip(predictions.values / label_std, expected / label_std, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=RELATIVE_TOLERANCE)


@pytest.mark.parametrize("run", [predict, embed])
def test_batch_size_and_workers_do_not_matter(run: Any, processor: RMatProcessor) -> None:
    model = build_regression_model()
    reference = run(model, MIXED, processor=processor, batch_size=len(MIXED))
    assert [error is not None for error in reference.errors] == MIXED_IS_BAD
    for options in ({"batch_size": 1}, {"batch_size": 3}, {"batch_size": 2, "num_workers": 2}):
        result = run(model, MIXED, processor=processor, **options)
        assert_close(result.values, reference.values, relative=FLOAT32_TOLERANCE)
        assert result.errors == reference.errors


@pytest.mark.parametrize("run", [predict, embed])
def test_smiles_and_molecules_give_the_same(run: Any, processor: RMatProcessor) -> None:
    model = build_regression_model()
    mols = [Chem.MolFromSmiles(smiles) for smiles in TINY_SMILES]
    from_smiles = run(model, TINY_SMILES, processor=processor)
    from_mols = run(model, mols, processor=processor)
    assert_close(from_mols.values, from_smiles.values, relative=RELATIVE_TOLERANCE)
    assert from_mols.errors == [None] * len(mols)


@pytest.mark.parametrize(("run", "num_columns"), [(predict, 2), (embed, 4 * 32)])
def test_an_empty_list_gives_no_rows(run: Any, num_columns: int, processor: RMatProcessor) -> None:
    result = run(build_regression_model(), [], processor=processor)
    assert result.values.shape == (0, num_columns)
    assert result.errors == []
    assert all(column == [] for column in result.to_columns().values())


# Arguments


@pytest.mark.parametrize("run", [predict, embed])
def test_arguments_that_cannot_be_are_refused(run: Any, processor: RMatProcessor) -> None:
    model = build_regression_model()
    for molecules in ("CCO", Chem.MolFromSmiles("CCO")):
        with pytest.raises(TypeError, match=r"Pass a list of molecules, for example \['CCO'\]"):
            run(model, molecules, processor=processor)
    with pytest.raises(ValueError, match="needs its processor, processor=") as caught:
        run(model, ["CCO"])
    assert "revision" not in str(caught.value)
    with pytest.raises(ValueError, match="takes no revision, but revision is 'v1'"):
        run(model, ["CCO"], processor=processor, revision="v1")


TABLE = pd.DataFrame({"id": range(4), "smiles": ["CCO", "C1", None, "CCN"]}, index=list("abcd"))


@pytest.mark.parametrize("run", [predict, embed])
@pytest.mark.parametrize(
    ("molecules", "options", "error", "message"),
    [
        (
            TABLE.rename(columns={"smiles": "SMILES"}),
            {"smiles_column": "Smiles"},
            UserError,
            "Did you mean 'SMILES'.*smiles_column=NAME",
        ),
        (TABLE[["id"]], {}, UserError, "no column 'smiles'.*smiles_column=NAME"),
        (
            TABLE.rename(columns={"smiles": "Drug"}).assign(reagent_smiles="C").drop(index="b"),
            {},
            UserError,
            "several columns of SMILES: 'Drug', 'reagent_smiles'.*smiles_column=NAME",
        ),
        (TABLE.assign(error="mine"), {}, UserError, "already has a column 'error'"),
        (TABLE.to_dict("list"), {}, TypeError, r"not as a dict.*table\['smiles'\]"),
        (pa.Table.from_pandas(TABLE), {}, TypeError, r"not as a Table.*table\['smiles'\]"),
        (TABLE["smiles"], {"smiles_column": "smiles"}, TypeError, "that of a pandas.DataFrame"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_a_way_out(
    run: Any, molecules: Any, options: Any, error: type, message: str, processor: RMatProcessor
) -> None:
    with pytest.raises(error, match=message):
        run(build_regression_model(), molecules, processor=processor, **options)


def test_a_table_of_pandas_keeps_its_index_and_columns(
    processor: RMatProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rmat_hf.data.frames")
    model = build_regression_model()
    as_exported = predict(model, TABLE.rename(columns={"smiles": "Smiles"}), processor=processor)
    predicted = predict(model, TABLE, processor=processor)
    pd.testing.assert_frame_equal(predicted, as_exported.rename(columns={"Smiles": "smiles"}))
    pd.testing.assert_frame_equal(predicted[["id", "smiles"]], TABLE)
    numbered = predict(
        model, TABLE.set_axis([1, 0], axis=1), processor=processor, smiles_column=cast(Any, 0)
    )
    assert numbered["prediction_logS"].equals(predicted["prediction_logS"])
    # under any name, and of other cells than text where none is SMILES
    as_stored = TABLE.rename(columns={"smiles": "Structure"}).astype({"Structure": "string"})
    assert caplog.messages == []
    stored = predict(model, as_stored, processor=processor)
    assert caplog.messages == ["SMILES in 'Structure'."]
    assert stored["prediction_logS"].tolist()[0] == predicted["prediction_logS"].tolist()[0]
    assert predicted["error"].notna().tolist() == [False, True, True, False]
    # where others have an error as where none has
    alone = predict(model, TABLE[:1], processor=processor)
    assert [it["error"].iloc[0] for it in (predicted, alone)] == [None, None]
    assert predicted["prediction_logS"].notna().tolist() == [True, False, False, True]
    embedded = embed(model, TABLE, processor=processor)
    vectors = embed(model, ["CCO", "CCN"], processor=processor).values
    numbers = embedded.filter(like="embedding_").loc[["a", "d"]].to_numpy(dtype=np.float64)
    np.testing.assert_allclose(numbers, vectors, rtol=1e-5)
    atoms = embed(model, TABLE, level="atom", processor=processor)
    assert np.shape(atoms["embedding"]["a"]) == (3, model.config.hidden_size)


def test_predictions_are_shown_as_a_short_table(processor: RMatProcessor) -> None:
    shown = str(predict(build_regression_model(), TINY_SMILES * 20, processor=processor))
    assert "prediction_melting_point" in shown and "120 molecules" in shown
    assert len(shown.splitlines()) < 20


@pytest.mark.parametrize("run", [predict, embed])
def test_a_folder_gives_the_same_as_the_loaded_model(
    run: Any,
    tiny_model: RMatForSequenceClassification,
    tiny_model_folder: Path,
    processor: RMatProcessor,
) -> None:
    expected = run(tiny_model, MIXED, processor=processor)
    for folder in (tiny_model_folder, str(tiny_model_folder)):
        result = run(folder, MIXED, device="cpu")
        assert_close(result.values, expected.values, relative=RELATIVE_TOLERANCE)
        assert result.errors == expected.errors


def test_descriptors_reach_a_model_that_was_trained_with_them() -> None:
    processor = RMatProcessor(geometry="bounds", molecule_descriptors=["MolWt", "TPSA"])
    model = build_model("regression", ["y"], num_molecule_descriptors=2)
    with torch.no_grad():
        model.classifier.out_proj.weight.zero_()
        model.classifier.out_proj.bias.zero_()
        model.classifier.out_proj.weight[0, -2:] = torch.tensor([1.0, 10.0])
        model.descriptor_scaler.mean.copy_(torch.tensor([40.0, 20.0]))
    predicted = predict(model, ["CCO"], processor=processor).values
    np.testing.assert_allclose(predicted, [[46.069 - 40 + 10 * (20.23 - 20)]], rtol=1e-4)
    assert embed(model, ["CCO"], processor=processor).values.shape == (1, 4 * 32)


# Values


def test_regression_values_are_the_logits_in_units_of_the_labels_without_dropout(
    tiny_batch: dict[str, torch.Tensor], processor: RMatProcessor
) -> None:
    model = build_regression_model()
    values = predict(model.train(), TINY_SMILES, processor=processor).values
    with torch.no_grad():
        pooled = model.rmat(**tiny_batch).pooler_output
        raw = model.classifier(pooled).double().numpy()
    assert_close(values, raw * [2.0, 40.0] + [-3.0, 250.0], relative=RELATIVE_TOLERANCE)
    assert values.dtype == np.float64


def test_embeddings_are_the_pooler_output_of_each_molecule_alone(processor: RMatProcessor) -> None:
    model = build_regression_model()
    values = embed(model, MIXED, processor=processor).values
    assert values.dtype == np.float32
    for smiles, is_bad, row in zip(MIXED, MIXED_IS_BAD, values, strict=True):
        if is_bad:
            assert np.isnan(row).all()
            continue
        # alone, a molecule has no padding
        with torch.no_grad():
            alone = model.rmat(**processor([smiles], return_tensors="pt")).pooler_output[0].numpy()
        np.testing.assert_allclose(row, alone, rtol=0, atol=FLOAT32_TOLERANCE * np.abs(alone).max())
    assert np.abs(values[0] - values[3]).max() > 1e-2


def test_every_model_class_gives_the_embeddings_of_its_encoder(processor: RMatProcessor) -> None:
    model = build_regression_model()
    pretraining = RMatForPreTraining(model.config)
    pretraining.rmat.load_state_dict(model.rmat.state_dict())
    encoder: RMatModel = model.rmat
    expected = embed(model, TINY_SMILES, processor=processor).values
    for other in (encoder, pretraining):
        values = embed(other, TINY_SMILES, processor=processor).values
        assert_close(values, expected, relative=RELATIVE_TOLERANCE)


# Table columns


def build_predictions(
    values: list[list[float]], names: list[str], label_name: str | None = None
) -> Predictions:
    """Predictions whose rows of NaN have the error `"no molecule"`."""
    config = RMatConfig(id2label=dict(enumerate(names)), label_name=label_name)
    errors = ["no molecule" if np.isnan(row[0]) else None for row in values]
    return Predictions(np.array(values), errors, config)


NAN = float("nan")


def test_a_regression_has_one_column_per_label_with_the_digits_of_float32() -> None:
    tenth = float(np.float32(0.1))
    predictions = build_predictions([[tenth, -20.0], [NAN, NAN]], ["logS", "mp"])
    assert tenth != 0.1
    columns = predictions.to_columns()
    assert columns == {
        "prediction_logS": [0.1, None],
        "prediction_mp": [-20.0, None],
        "error": [None, "no molecule"],
    }
    assert list(columns) == ["prediction_logS", "prediction_mp", "error"]


def test_a_multi_label_classification_has_one_probability_per_label(
    processor: RMatProcessor,
) -> None:
    model = build_model("multi_label_classification", ["a", "b", "c"])
    columns = predict(model, TINY_SMILES, processor=processor).to_columns()
    assert list(columns) == ["prediction_a", "prediction_b", "prediction_c", "error"]
    with torch.no_grad():
        logits = model(**processor(TINY_SMILES, return_tensors="pt")).logits
    expected = torch.sigmoid(logits.double()).numpy()
    for idx, name in enumerate("abc"):
        column = columns[f"prediction_{name}"]
        np.testing.assert_allclose(column, expected[:, idx], rtol=0, atol=1e-6)


def test_classes_0_and_1_have_the_probability_of_1(processor: RMatProcessor) -> None:
    model = build_model("single_label_classification", ["0", "1"], label_name="hit")
    columns = predict(model, TINY_SMILES, processor=processor).to_columns()
    assert list(columns) == ["prediction_hit", "error"]
    with torch.no_grad():
        logits = model(**processor(TINY_SMILES, return_tensors="pt")).logits.double()
    expected = torch.softmax(logits, dim=1)[:, 1].numpy()
    np.testing.assert_allclose(columns["prediction_hit"], expected, rtol=0, atol=1e-6)


def test_more_classes_have_the_best_one_by_name_and_every_probability() -> None:
    values = [[0.125, 0.625, 0.25], [NAN, NAN, NAN], [0.5, 0.25, 0.25], [0.0, 0.25, 0.75]]
    columns = build_predictions(values, ["low", "mid", "high"], "tox").to_columns()
    assert columns == {
        "prediction_tox": ["mid", None, "low", "high"],
        "probability_tox_low": [0.125, None, 0.5, 0.0],
        "probability_tox_mid": [0.625, None, 0.25, 0.25],
        "probability_tox_high": [0.25, None, 0.25, 0.75],
        "error": [None, "no molecule", None, None],
    }
    assert next(iter(columns)) == "prediction_tox"


def test_embedding_columns_have_a_list_or_none() -> None:
    values = np.array([[1.0, 2.0], [NAN, NAN]], dtype=np.float32)
    assert Embeddings(values, [None, "no molecule"]).to_columns() == {
        "embedding": [[1.0, 2.0], None],
        "error": [None, "no molecule"],
    }


# Processes


def test_an_output_that_is_not_finite_is_an_error_and_no_value(
    tiny_model: RMatForSequenceClassification, processor: RMatProcessor
) -> None:
    with torch.no_grad():
        tiny_model.classifier.out_proj.bias.fill_(torch.nan)
    prediction = predict(tiny_model, ["CCO"], processor=processor)
    assert prediction.errors == ["the model's output is not a finite number"]
    assert prediction.to_columns()["prediction_LABEL_0"] == [None]


# Batches

# long and short ones take turns, with bad ones between them
SMILES = [
    smiles
    for size in range(1, 25)
    for smiles in ("C" * size, "C" * (30 - size) + "O", *(["C1CC"] if size % 6 == 0 else []))
]


def run_small(
    model: RMatForSequenceClassification,
    processor: RMatProcessor,
    molecules: Iterable[str] = SMILES,
    **options: Any,
) -> tuple[np.ndarray, list[str | None]]:
    options = {"batch_size": 4} | options
    predictions = predict(model, molecules, processor=processor, **options)
    return predictions.values, predictions.errors


def record_batches(model: RMatForSequenceClassification) -> list[tuple[int, ...]]:
    """Return a list that gets the shape of every batch of pairs that the model sees."""
    shapes: list[tuple[int, ...]] = []

    def record(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(inputs["bond_types"].shape))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


def test_molecules_of_similar_size_share_a_batch(processor: RMatProcessor) -> None:
    model = build_small_model().eval()
    shapes = record_batches(model)
    run_small(model, processor)
    real = sum((len(smiles) + 1) ** 2 for smiles in SMILES if smiles != "C1CC")
    padded = sum(size * num_nodes**2 for size, num_nodes, _ in shapes)
    assert padded < 1.15 * real
    in_order = [len(smiles) + 1 for smiles in SMILES if smiles != "C1CC"]
    chunks = [in_order[start : start + 4] for start in range(0, len(in_order), 4)]
    assert sum(len(chunk) * max(chunk) ** 2 for chunk in chunks) > 1.5 * real


@pytest.mark.parametrize("kind", [tuple, np.array, pd.Series, iter])
def test_any_collection_of_molecules_is_taken(
    processor: RMatProcessor, kind: Callable[[list[str]], Iterable[str]]
) -> None:
    values, _ = run_small(build_small_model(), processor, kind(TINY_SMILES))
    expected, _ = run_small(build_small_model(), processor, TINY_SMILES)
    assert np.array_equal(values, expected)


# Memory and processes


def refuse_large_batches(model: RMatForSequenceClassification, *, max_pairs: int) -> None:
    """Let a model fail as PyTorch does on a CPU without memory."""

    def refuse(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        if inputs["bond_types"].numel() > max_pairs:
            torch.empty(2**46)

    model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_a_batch_without_enough_memory_goes_one_by_one(processor: RMatProcessor) -> None:
    expected, _ = run_small(build_small_model(), processor)
    model = build_small_model()
    refuse_large_batches(model, max_pairs=25**2)
    values, errors = run_small(model, processor)
    too_large = [smiles != "C1CC" and len(smiles) >= 25 for smiles in SMILES]
    assert 0 < sum(too_large) < len(SMILES) / 2
    reasons = [str(error) for error, is_too_large in zip(errors, too_large, strict=True)]
    assert [reason.startswith(TOO_LARGE_FOR_MODEL) for reason in reasons] == too_large
    kept = ~np.array(too_large)
    np.testing.assert_allclose(values[kept], expected[kept], atol=5e-6)
    assert np.isnan(values[~kept]).all()
    assert "the model needs more memory for it than there is (29 atoms)" in reasons


def test_another_error_of_the_model_passes_through(processor: RMatProcessor) -> None:
    model = build_small_model()
    model.register_forward_pre_hook(lambda *_: torch.ones(1, 2) @ torch.ones(3, 1))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_small(model, processor)


SCREEN_WITH_LITTLE_MEMORY = """
import json, resource, sys
import psutil, torch
from tiny_trainer import build_model
from rmat_hf.inference.prediction import predict
from rmat_hf.model.processing_rmat import RMatProcessor

processor = RMatProcessor(geometry="2d", max_atoms=4000)
smiles = ["CCO", "C" * int(sys.argv[1]), "c1ccccc1", "C1CC"]
predict(build_model(), smiles[:1], processor=processor)  # loads what is loaded at first use
limit = psutil.Process().memory_info().vms + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
predictions = predict(build_model(), smiles, processor=processor, num_workers=int(sys.argv[2]))
print(json.dumps([[bool(value == value) for value in predictions.values[:, 0]],
    predictions.errors]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_atoms", "num_workers", "reason"),
    [
        (1300, 0, "the model needs more memory for it than there is (1300 atoms)"),
        (3900, 0, "there is not enough memory to featurize it"),
        (3900, 2, "there is not enough memory to featurize it"),
    ],
)
def test_a_molecule_too_large_for_the_memory_is_set_aside_and_the_others_go_on(
    tmp_path: Path, num_atoms: int, num_workers: int, reason: str
) -> None:
    arguments = ["-c", SCREEN_WITH_LITTLE_MEMORY, str(num_atoms), str(num_workers)]
    done = run_python(arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    has_value, errors = json.loads(done.stdout)
    assert has_value == [True, False, True, False]
    assert (errors[0], errors[2]) == (None, None)
    assert errors[1].startswith(reason)
    assert "unclosed ring" in errors[3]


# Atoms


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"batch_size": 3, "num_workers": 2}])
def test_vectors_of_atoms_come_in_the_order_of_the_molecule_that_was_given(
    options: dict[str, int], processor: RMatProcessor
) -> None:
    model = build_regression_model()
    mol = Chem.MolFromSmiles("OC(=O)c1ccccc1")
    molecules = ["OC(=O)c1ccccc1", "C1CC", "c1ccccc1C(O)=O", Chem.AddHs(mol), "CCO", None]
    atoms = embed(model, molecules, level="atom", processor=processor, **options)
    assert [error is not None for error in atoms.errors] == [False, True, False, False, False, True]
    assert "unclosed ring" in str(atoms.errors[1])
    for molecule, values in zip(molecules, atoms.values, strict=True):
        if molecule in ("C1CC", None):
            assert values is None
            continue
        # the processor keeps the order of the atoms
        with torch.no_grad():
            states = model.rmat(**processor([molecule], return_tensors="pt")).last_hidden_state
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, states[0, 1:], rtol=0, atol=5e-5)
    assert np.abs(atoms.values[0] - atoms.values[2]).max() > 0.1
    assert atoms.to_columns()["embedding"][1] is None
    assert atoms.to_columns()["embedding"][4] == atoms.values[4].tolist()


def test_a_model_of_atoms_gives_vectors_of_atoms_and_none_of_molecules(
    processor: RMatProcessor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = RMatForTokenClassification(RMatConfig(**TINY_ARCHITECTURE, num_labels=1))
    with pytest.raises(ValueError, match="level='atom'"):
        embed(model, ["CCO"], processor=processor)
    with pytest.raises(ValueError, match=r"'nodes'.*molecule, atom"):
        embed(model, ["CCO"], processor=processor, level="nodes")
    expected = embed(model, TINY_SMILES, processor=processor, level="atom")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    found = embed(tmp_path, TINY_SMILES, device="cpu", level="atom")
    for ours, theirs in zip(found.values, expected.values, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="no trained"):
        embed(tmp_path, ["CCO"])


@pytest.mark.parametrize("problem_type", ["regression", "single_label_classification"])
def test_properties_of_atoms_come_in_the_order_of_the_molecule_that_was_given(
    problem_type: str, processor: RMatProcessor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    is_class = problem_type == "single_label_classification"
    fields: dict[str, Any] = {"label_name": "site"} if is_class else {"label_units": ["e"] * 3}
    names = {0: "none", 1: "donor", 2: "acceptor"}
    config = RMatConfig(**TINY_ARCHITECTURE, id2label=names, problem_type=problem_type, **fields)
    model = RMatForTokenClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    hydrated = Chem.AddHs(Chem.MolFromSmiles("OC(=O)c1ccccc1"))
    molecules = ["OC(=O)c1ccccc1", "C1CC", "c1ccccc1C(O)=O", hydrated, "C"]
    result = predict(tmp_path, molecules, device="cpu", batch_size=2)
    assert [error is not None for error in result.errors] == [False, True, False, False, False]
    columns = result.to_columns()
    for idx, molecule in enumerate(molecules):
        if idx == 1:
            assert result.values[1] is None
            assert {
                name: it[1] for name, it in columns.items() if name != "error"
            } == dict.fromkeys(columns.keys() - {"error"})
            continue
        # the processor keeps the order of the atoms
        with torch.no_grad():
            logits = model(**processor([molecule], return_tensors="pt")).logits[0, 1:].double()
        expected = logits.softmax(-1) if is_class else logits
        np.testing.assert_allclose(result.values[idx], expected, rtol=0, atol=5e-5)
        for label, name in names.items():
            column = columns[f"probability_site_{name}" if is_class else f"prediction_{name}"]
            np.testing.assert_allclose(column[idx], expected[:, label], rtol=0, atol=5e-5)
        if is_class:
            best = [names[int(it)] for it in result.values[idx].argmax(1)]
            assert columns["prediction_site"][idx] == best
    assert predict(tmp_path, ["C1"], device="cpu").values.tolist() == [None]
