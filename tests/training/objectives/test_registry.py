"""The registry of objectives, and the file that keeps what they mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from rmat_hf.errors import UserError
from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.objectives import (
    OBJECTIVES,
    load_objectives,
    parse_objective,
    save_objectives,
)

STATES: dict[str, Any] = {
    "contexts": ["C: 2 single C", "O"],
    "descriptors": {"MolWt": [0.0, 1.5], "TPSA": [0, 0]},
    "counts": {"ecfp4": [[7], [0.5], [0.25]], "torsions": [[0, 1], [1.0, 1.0], [2.0, 2.0]]},
    "assays": {"classes": ["hERG"], "values": {"A": [6.0, 1.5], "hERG": [5.0, 1.0]}},
    "atoms": {"tpsa": [4.0, 8.0], "estate": [1.5, 2.0]},
}


@pytest.mark.parametrize("names", [["contexts"], ["contexts", "descriptors"], [*STATES]])
def test_saved_objectives_come_back_from_plain_words(tmp_path: Path, names: list[str]) -> None:
    save_objectives(tmp_path, {name: OBJECTIVES[name](STATES[name]) for name in names})
    content = json.loads((tmp_path / "pretraining_targets.json").read_text())
    keys = {"contexts": "atom_contexts", "descriptors": "descriptor_quantiles"}
    keys |= {"counts": "fingerprint_counts", "assays": "assays", "atoms": "atom_properties"}
    assert content == {keys[name]: STATES[name] for name in names}
    loaded = load_objectives(tmp_path)
    assert {name: objective.state for name, objective in loaded.items()} == {
        name: STATES[name] for name in names
    }


@pytest.mark.parametrize(
    "content",
    [
        *[None, "{", "[]", '{"atom_contexts": 3}'],
        '{"descriptor_quantiles": {"MolWt": [1, 0]}}',
        '{"descriptor_quantiles": [1]}',
        '{"assays": {"classes": []}}',
    ],
)
def test_missing_or_damaged_files_are_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pretraining_targets.json").write_text(content)
    with pytest.raises(ValueError, match=r"pretraining_targets\.json"):
        load_objectives(tmp_path)


def test_objectives_have_names_of_their_own_and_heads_that_the_configuration_knows() -> None:
    for attribute in ("head", "state_key"):
        names = {getattr(objective, attribute) for objective in OBJECTIVES.values()}
        assert len(names) == len(OBJECTIVES)
    objectives = [OBJECTIVES[name](state) for name, state in STATES.items()]
    heads = {objective.head: objective.describe_head() for objective in objectives}
    assert RMatConfig(pretraining_heads=heads).pretraining_heads == heads
    assert [head["size"] for head in heads.values()] == [3, 2, 3, 3, 2]


def test_a_mix_has_names_and_weights() -> None:
    mix = "contexts, descriptors=0.5"
    assert parse_objective(mix) == {mix: {"contexts": 1.0, "descriptors": 0.5}}
    assert parse_objective("joint") == {"joint": {"contexts": 1.0, "descriptors": 1.0}}
    assert list(parse_objective("sequential")) == ["contexts", "descriptors"]
    faults = {"contexts,motifs": "'motifs' is unknown", "contexts,contexts": "twice"}
    faults |= dict.fromkeys(["counts=x", "counts=0", "counts=-1", "counts=inf"], "no weight")
    for text, fault in faults.items():
        with pytest.raises(UserError, match=fault):
            parse_objective(text)
