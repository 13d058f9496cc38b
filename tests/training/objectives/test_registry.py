"""The registry of objectives, and the file that keeps what they mean."""

import json
from pathlib import Path

import numpy as np
import pytest

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.objectives import OBJECTIVES, load_objectives, save_objectives
from rmat_hf.training.objectives.contexts import AtomContextVocabulary, ContextObjective
from rmat_hf.training.objectives.descriptors import DescriptorObjective, DescriptorQuantiles

CONTEXTS = ["C: 2 single C", "O"]


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_saved_objectives_come_back(tmp_path: Path, has_descriptors: bool) -> None:
    values = np.random.default_rng(0).lognormal(size=(50, 2)).astype(np.float32)
    quantiles = DescriptorQuantiles.fit(values, names=["MolWt", "TPSA"], seed=0)
    objectives = {"contexts": ContextObjective(AtomContextVocabulary(CONTEXTS))}
    if has_descriptors:
        objectives["descriptors"] = DescriptorObjective(quantiles)
    save_objectives(tmp_path, objectives)
    loaded = load_objectives(tmp_path)
    assert list(loaded) == list(objectives)
    assert loaded["contexts"].get_state() == CONTEXTS
    if has_descriptors:
        again = loaded["descriptors"].quantiles
        assert again.names == ["MolWt", "TPSA"]
        np.testing.assert_array_equal(again.transform(values), quantiles.transform(values))


def test_saved_contexts_are_plain_words(tmp_path: Path) -> None:
    save_objectives(tmp_path, {"contexts": ContextObjective(AtomContextVocabulary(CONTEXTS))})
    text = (tmp_path / "pretraining_targets.json").read_text()
    assert json.loads(text) == {"atom_contexts": CONTEXTS}


@pytest.mark.parametrize(
    "content",
    [
        *[None, "{", "[]", '{"atom_contexts": ["Q"]}', '{"atom_contexts": 3}'],
        '{"descriptor_quantiles": {"MolWt": [1, 0]}}',
        '{"descriptor_quantiles": [1]}',
    ],
)
def test_missing_or_damaged_files_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pretraining_targets.json").write_text(content)
    with pytest.raises(ValueError, match=r"pretraining_targets\.json"):
        load_objectives(tmp_path)


def test_heads_labels_and_states_of_objectives_have_names_of_their_own() -> None:
    for attribute in ("head", "title", "state_key"):
        names = {getattr(objective, attribute) for objective in OBJECTIVES.values()}
        assert len(names) == len(OBJECTIVES)


def test_the_head_of_an_objective_is_one_that_the_configuration_knows() -> None:
    objectives = [
        ContextObjective(AtomContextVocabulary(CONTEXTS)),
        DescriptorObjective(DescriptorQuantiles(["MolWt"], np.array([[0.0], [1.0]]))),
    ]
    heads = {objective.head: objective.describe_head() for objective in objectives}
    assert RMatConfig(pretraining_heads=heads).pretraining_heads == heads
    assert [head["size"] for head in heads.values()] == [3, 1]
