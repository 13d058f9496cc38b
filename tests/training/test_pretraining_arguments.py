from dataclasses import fields
from typing import Any

import pytest

from rmat_hf.model.configuration_rmat import RMatConfig
from rmat_hf.training.pretraining_arguments import (
    PRETRAINING_ARCHITECTURE,
    PretrainingArguments,
)


def build(**options: Any) -> PretrainingArguments:
    return PretrainingArguments(**{"corpus": "corpus", "output_dir": "run", **options})


def test_every_flag_has_a_help_sentence_of_its_own() -> None:
    texts = [field.metadata["help"] for field in fields(PretrainingArguments)]
    assert all(text[:1] and text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "motifs"}, r"--objective 'motifs'.*'contexts', 'descriptors', 'joint'"),
        ({"precision": "float16"}, r"--precision 'float16'.*'float32', 'bfloat16'"),
        ({"mask_ratio": 0.0}, r"--mask-ratio 0\.0 "),
        ({"valid_fraction": 1.0}, r"--valid-fraction 1\.0 "),
        ({"valid_fraction": float("nan")}, r"--valid-fraction nan"),
        ({"streaming": True}, r"--streaming needs --max-steps"),
        ({"overwrite": True, "resume": True}, r"choose one"),
        ({"batch_size": 0}, r"--batch-size 0"),
        ({"max_pairs": 0}, r"--max-pairs 0"),
        ({"max_steps": 0}, r"--max-steps 0"),
        ({"gradient_accumulation_steps": 0}, r"--gradient-accumulation-steps 0"),
        ({"num_evaluations": 0}, r"--num-evaluations 0"),
        ({"min_context_count": 0}, r"--min-context-count 0"),
        ({"num_workers": -1}, r"--num-workers -1"),
        ({"seed": -1}, r"--seed -1"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_flag(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("objective", "stages"),
    [
        ("contexts", ["contexts"]),
        ("descriptors", ["descriptors"]),
        ("joint", ["joint"]),
        ("sequential", ["contexts", "descriptors"]),
    ],
)
def test_an_objective_has_its_stages(objective: Any, stages: list[str]) -> None:
    assert build(objective=objective).stages == stages


def test_the_default_architecture_consists_of_known_fields() -> None:
    assert set(PRETRAINING_ARCHITECTURE) <= set(RMatConfig.list_architecture_fields())
    config = RMatConfig(**PRETRAINING_ARCHITECTURE)
    assert {name: getattr(config, name) for name in PRETRAINING_ARCHITECTURE} == (
        PRETRAINING_ARCHITECTURE
    )
