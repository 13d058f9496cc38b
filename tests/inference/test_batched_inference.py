import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from processes import run_python
from rdkit import Chem
from tiny import TINY_SMILES
from tiny_trainer import build_model

import rmat_hf.inference.batched_inference as module
from rmat_hf.data import featurization
from rmat_hf.inference.batched_inference import BatchedInference, list_molecules
from rmat_hf.model.modeling_rmat import RMatForSequenceClassification
from rmat_hf.model.processing_rmat import RMatProcessor

# long and short ones take turns, with bad ones between them
SMILES = [
    smiles
    for size in range(1, 25)
    for smiles in ("C" * size, "C" * (30 - size) + "O", *(["C1CC"] if size % 6 == 0 else []))
]


def build_inference(processor: RMatProcessor, **options: Any) -> BatchedInference:
    fields: dict[str, Any] = {
        "model": build_model().eval(),
        "processor": processor,
        "read_output": lambda output: output.logits,
        "num_columns": 2,
        "batch_size": 4,
        "num_workers": 0,
        "cache_dir": None,
    }
    return BatchedInference(**{**fields, **options})


def record_batches(model: RMatForSequenceClassification) -> list[tuple[int, ...]]:
    """Return a list that gets the shape of every batch of pairs that the model sees."""
    shapes: list[tuple[int, ...]] = []

    def record(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(inputs["bond_types"].shape))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("batches_grouped", [1, 3, 32])
def test_every_row_gets_its_own_output_whatever_it_is_grouped_with(
    processor: RMatProcessor, monkeypatch: pytest.MonkeyPatch, batches_grouped: int
) -> None:
    monkeypatch.setattr(module, "BATCHES_GROUPED", batches_grouped)
    inference = build_inference(processor)
    shapes = record_batches(inference.model)
    values, errors = inference.run(SMILES)
    alone = [build_inference(processor).run([smiles]) for smiles in SMILES]
    np.testing.assert_allclose(values, np.concatenate([row for row, _ in alone]), atol=5e-6)
    assert errors == [error for _, (error,) in alone]
    assert [error is not None for error in errors] == [smiles == "C1CC" for smiles in SMILES]
    assert max(size for size, *_ in shapes) == 4


def test_molecules_of_similar_size_share_a_batch(processor: RMatProcessor) -> None:
    inference = build_inference(processor)
    shapes = record_batches(inference.model)
    inference.run(SMILES)
    real = sum((len(smiles) + 1) ** 2 for smiles in SMILES if smiles != "C1CC")
    padded = sum(size * num_nodes**2 for size, num_nodes, _ in shapes)
    assert padded < 1.15 * real
    in_order = [len(smiles) + 1 for smiles in SMILES if smiles != "C1CC"]
    chunks = [in_order[start : start + 4] for start in range(0, len(in_order), 4)]
    assert sum(len(chunk) * max(chunk) ** 2 for chunk in chunks) > 1.5 * real


def test_large_molecules_come_in_smaller_batches(
    processor: RMatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    group_in_small_batches = functools.partial(module.group_by_length, max_pairs=1500)
    monkeypatch.setattr(module, "group_by_length", group_in_small_batches)
    inference = build_inference(processor)
    shapes = record_batches(inference.model)
    values, _ = inference.run(["C" * 29, "C", "CC", "CCC", "C" * 28])
    assert np.isfinite(values).all()
    assert [size for size, *_ in shapes] == [1, 1, 3]


@pytest.mark.parametrize("kind", [tuple, np.array, pd.Series, iter])
def test_any_collection_of_molecules_is_taken(
    processor: RMatProcessor, kind: Callable[[list[str]], Iterable[str]]
) -> None:
    values, _ = build_inference(processor).run(kind(TINY_SMILES))
    expected, _ = build_inference(processor).run(TINY_SMILES)
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("one", ["CCO", Chem.MolFromSmiles("CCO"), {"smiles": ["CCO"]}, 3])
def test_what_is_no_collection_of_molecules_is_refused(one: Any) -> None:
    with pytest.raises(TypeError, match=r"Pass a list of molecules, for example \['CCO'\]"):
        list_molecules(one)


def test_a_second_model_featurizes_nothing(
    tmp_path: Path, processor: RMatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_inference(processor, cache_dir=tmp_path)
    values, errors = first.run(SMILES)
    monkeypatch.setattr(RMatProcessor, "featurize_compactly", None)
    second = dataclasses.replace(first, model=build_model(hidden_dropout_prob=0.5))
    again, errors_again = second.run(SMILES)
    assert np.array_equal(values, again, equal_nan=True)
    assert errors_again == errors


def test_a_broken_model_gives_errors_and_no_values(processor: RMatProcessor) -> None:
    inference = build_inference(processor)
    with torch.no_grad():
        inference.model.classifier.out_proj.bias[1] = torch.inf
    values, errors = inference.run(["CCO", "C1CC"])
    assert np.isnan(values).all()
    assert errors[0] == "the model's output is not a finite number"
    assert "unclosed ring" in str(errors[1])


# Memory and processes


def refuse_large_batches(model: RMatForSequenceClassification, *, max_pairs: int) -> None:
    """Let a model fail as PyTorch does on a CPU without memory."""

    def refuse(_: Any, __: Any, inputs: dict[str, torch.Tensor]) -> None:
        if inputs["bond_types"].numel() > max_pairs:
            torch.empty(2**46)

    model.register_forward_pre_hook(refuse, with_kwargs=True)


def test_a_batch_without_enough_memory_goes_one_by_one(processor: RMatProcessor) -> None:
    expected, _ = build_inference(processor).run(SMILES)
    inference = build_inference(processor)
    refuse_large_batches(inference.model, max_pairs=25**2)
    values, errors = inference.run(SMILES)
    too_large = [smiles != "C1CC" and len(smiles) >= 25 for smiles in SMILES]
    assert 0 < sum(too_large) < len(SMILES) / 2
    reasons = [str(error) for error, is_too_large in zip(errors, too_large, strict=True)]
    assert [reason.startswith(module.TOO_LARGE_FOR_MODEL) for reason in reasons] == too_large
    kept = ~np.array(too_large)
    np.testing.assert_allclose(values[kept], expected[kept], atol=5e-6)
    assert np.isnan(values[~kept]).all()
    assert "the model needs more memory for it than there is (29 atoms)" in reasons


def test_another_error_of_the_model_passes_through(processor: RMatProcessor) -> None:
    inference = build_inference(processor)

    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    inference.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        inference.run(SMILES)


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


def test_a_molecule_that_kills_a_worker_has_a_reason(
    processor: RMatProcessor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected, _ = build_inference(processor).run(SMILES)
    compute = featurization._featurize

    def die(job: Any, processor: RMatProcessor) -> Any:
        if job[0] == "C" * 7:
            os._exit(9)
        return compute(job, processor)

    monkeypatch.setattr(featurization, "_featurize", die)
    for cache_dir in (None, tmp_path):
        inference = build_inference(processor, num_workers=2, cache_dir=cache_dir)
        values, errors = inference.run(SMILES)
        killed = SMILES.index("C" * 7)
        assert "the process that featurizes it ended with exit code 9" in str(errors[killed])
        assert np.isnan(values[killed]).all()
        values[killed] = expected[killed]
        np.testing.assert_allclose(values, expected, atol=5e-6)
