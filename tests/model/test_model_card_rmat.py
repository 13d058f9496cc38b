import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tiny import TINY_ARCHITECTURE
from transformers import pipeline

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.model.model_card_rmat import CARD_FILE, build_model_card, save_missing_card
from rmat_hf.model.modeling_rmat import (
    RMatForPreTraining,
    RMatForSequenceClassification,
    RMatModel,
    RMatPreTrainedModel,
)
from rmat_hf.model.processing_rmat import RMatProcessor

HEADS = [RMatModel, RMatForPreTraining, RMatForSequenceClassification]


def build_config(**options: Any) -> RMatConfig:
    labels = {"id2label": {0: "logS"}, "label_units": ["log(mol/l)"]}
    return RMatConfig(**TINY_ARCHITECTURE, **{"problem_type": "regression", **labels, **options})


@pytest.mark.usefixtures("remote_code_cache")
@pytest.mark.parametrize("model_class", HEADS)
def test_every_saved_model_has_a_card_whose_two_lines_run(
    tmp_path: Path, model_class: type[RMatPreTrainedModel]
) -> None:
    folder = tmp_path / "model"
    model_class(build_config()).save_pretrained(folder)
    RMatProcessor(geometry="bounds").save_pretrained(folder)
    card = ModelCard.load(folder / CARD_FILE)
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "graph-ml"
    assert card.data.license == "unknown"
    assert {"rmat", "chemistry", "molecules"} <= set(card.data.tags)
    for limit in ("no stereo feature", "Heavy atoms only", "max_atoms"):
        assert limit in card.text
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, re.S)
    assert len(snippet.strip().splitlines()) == 2
    snippet = snippet.replace("path/to/this/folder", str(folder))
    names: dict[str, Any] = {}
    exec(snippet.replace("\npipeline(", "\nresults = pipeline("), names)
    expected = pipeline(model=str(folder), trust_remote_code=True)(["CCO", "c1ccccc1"])
    assert names["results"] == expected
    assert [result["error"] for result in expected] == [None, None]


def test_card_names_labels_and_units_of_a_predictor_only() -> None:
    config = build_config()
    cards = [
        build_model_card(config, model_class=head.__name__, model_id="user/name").text
        for head in HEADS
    ]
    assert ["logS (log(mol/l)) (regression)" in card for card in cards] == [False, False, True]
    assert all('pipeline(model="user/name"' in card for card in cards)


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / CARD_FILE).write_text("mine")
    save_missing_card(tmp_path, build_config(), model_class="RMatModel")
    RMatModel(build_config()).save_pretrained(tmp_path)
    assert (tmp_path / CARD_FILE).read_text() == "mine"
