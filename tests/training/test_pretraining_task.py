import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tiny_pretraining import (
    CORPUS_SMILES,
    DESCRIPTORS,
    build_pretraining_arguments,
    write_pretraining_corpus,
)

from rmat_hf.data.stored_features import read_molecule_descriptors
from rmat_hf.training import pretraining
from rmat_hf.training.objectives import save_objectives
from rmat_hf.training.objectives.objective import Objective
from rmat_hf.training.pretraining import (
    PretrainingTask,
    build_pretraining_task,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copies that datasets makes go to the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def build_task(folder: Path, *, streaming: bool = False, **options: Any) -> PretrainingTask:
    if streaming:
        options |= {"streaming": True, "max_steps": 1}
    return build_pretraining_task(build_pretraining_arguments(folder, **options))


def get_states(task: PretrainingTask) -> dict[str, Any]:
    return {name: objective.state for name, objective in task.objectives.items()}


def list_molecules(dataset: Any) -> list[bytes]:
    return [row["features"] for row in dataset]


def test_table_and_stream_hold_out_the_same_molecules(tmp_path: Path) -> None:
    table, stream = build_task(tmp_path), build_task(tmp_path, streaming=True)
    assert isinstance(stream.train, datasets.IterableDataset)
    valid = list_molecules(table.valid)
    train = list_molecules(table.train)
    assert list_molecules(stream.valid) == valid
    assert list_molecules(stream.train) == train
    assert len(train) + len(valid) == len(CORPUS_SMILES)
    assert 0.05 < len(valid) / len(CORPUS_SMILES) < 0.35
    assert not set(train) & set(valid)
    assert table.valid["num_nodes"][:] == stream.valid["num_nodes"][:]
    assert get_states(stream) == get_states(table)


def test_a_molecule_is_held_out_whatever_stands_beside_it(tmp_path: Path) -> None:
    valid = set(list_molecules(build_task(tmp_path).valid))
    corpus = write_pretraining_corpus(tmp_path / "other", CORPUS_SMILES[::-2], shard_size=7)
    other = build_task(tmp_path, corpus=str(corpus))
    assert set(list_molecules(other.valid)) <= valid
    assert not set(list_molecules(other.train)) & valid
    # twice in a corpus: both copies are on the same side
    corpus = write_pretraining_corpus(tmp_path / "twice", [*CORPUS_SMILES, *CORPUS_SMILES])
    twice = build_task(tmp_path, corpus=str(corpus))
    assert sorted(list_molecules(twice.valid)) == sorted([*valid, *valid])


def test_a_stream_holds_out_molecules_of_its_beginning_and_never_trains_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = build_task(tmp_path)
    monkeypatch.setattr(pretraining, "MAX_STREAMED_VALID", 8)
    stream = build_task(tmp_path, streaming=True)
    valid = list_molecules(stream.valid)
    assert 0 < len(valid) < len(table.valid)
    assert valid == list_molecules(table.valid)[: len(valid)]
    assert list_molecules(stream.train) == list_molecules(table.train)


@pytest.mark.parametrize("streaming", [False, True])
def test_targets_come_from_train_and_name_the_descriptors_of_the_corpus(
    tmp_path: Path, streaming: bool
) -> None:
    task = build_task(tmp_path, streaming=streaming)
    quantiles = get_states(task)["descriptors"]
    assert list(quantiles) == DESCRIPTORS
    train = read_molecule_descriptors(list_molecules(task.train))
    ends = np.array([[values[0], values[-1]] for values in quantiles.values()])
    np.testing.assert_allclose(ends, np.stack([train.min(0), train.max(0)], axis=1), rtol=1e-7)
    assert task.processor.geometry == "bounds"


def write_objectives(folder: Path, *names: str) -> dict[str, Any]:
    """A folder with nothing but the targets of another corpus; their states."""
    smiles = ["CCCl", "CCCCCl", "OCCCl", "CCBr", "CCCBr", "OCBr"]
    corpus = write_pretraining_corpus(folder / "corpus", smiles, shard_size=6)
    task = build_task(folder, corpus=str(corpus), valid_fraction=0.3)
    kept: dict[str, Objective] = {name: task.objectives[name] for name in names}
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    save_objectives(folder / "model", kept)
    return {name: objective.state for name, objective in kept.items()}


@pytest.mark.parametrize("objective", ["joint", "contexts"])
def test_targets_of_the_model_to_continue_from_are_kept(tmp_path: Path, objective: str) -> None:
    states = write_objectives(tmp_path / "first", "contexts", "descriptors")
    task = build_task(tmp_path, model=str(tmp_path / "first" / "model"), objective=objective)
    assert get_states(task) == states


def test_what_the_model_has_not_learned_comes_from_the_corpus(tmp_path: Path) -> None:
    states = write_objectives(tmp_path / "first", "contexts")
    task = build_task(tmp_path, model=str(tmp_path / "first" / "model"))
    assert list(get_states(task)) == ["contexts", "descriptors"]
    assert get_states(task)["contexts"] == states["contexts"]
    assert list(get_states(task)["descriptors"]) == DESCRIPTORS


def test_a_model_without_targets_starts_with_those_of_the_corpus_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        task = build_task(tmp_path, model=str(model))
    assert "its heads start untrained" in caplog.text
    assert get_states(task) == get_states(build_task(tmp_path))


@pytest.mark.parametrize("objective", ["joint", "descriptors", "sequential"])
def test_a_corpus_without_descriptors_is_refused_where_they_are_to_be_learned(
    tmp_path: Path, objective: Any
) -> None:
    write_pretraining_corpus(tmp_path / "corpus", descriptors=None)
    with pytest.raises(ValueError, match=r"--molecule-descriptors rdkit_2d.*--objective contexts"):
        build_task(tmp_path, objective=objective)
    # a run has only what it learns
    assert list(build_task(tmp_path, objective="contexts").objectives) == ["contexts"]


def test_a_corpus_without_the_descriptors_of_the_model_is_refused(tmp_path: Path) -> None:
    write_objectives(tmp_path / "first", "contexts", "descriptors")
    corpus = write_pretraining_corpus(tmp_path / "other", descriptors=["MolWt"])
    options = {"corpus": str(corpus), "model": str(tmp_path / "first" / "model")}
    with pytest.raises(ValueError, match=r"MolLogP.*--molecule-descriptors rdkit_2d"):
        build_task(tmp_path, **options)
    assert list(build_task(tmp_path, objective="contexts", **options).objectives)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"valid_fraction": 1e-6}, r"corpus.*valid part.*--valid-fraction 1e-06.*Choose"),
        ({"valid_fraction": 1 - 1e-6}, r"corpus.*train part.*--valid-fraction.*Choose"),
        ({"valid_fraction": 1e-6, "streaming": True}, r"valid part.*--valid-fraction"),
        ({"valid_fraction": 1 - 1e-6, "streaming": True}, r"train part.*--valid-fraction"),
        ({"min_context_count": 10_000}, r"No atom context occurs 10000 times"),
    ],
)
def test_a_part_without_molecules_or_contexts_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_task(tmp_path, **options)
