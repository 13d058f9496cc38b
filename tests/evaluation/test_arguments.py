from dataclasses import fields

import pytest

from rmat_hf.evaluation.arguments import EvaluationArguments


def test_every_flag_has_a_help_sentence_of_its_own() -> None:
    texts = [field.metadata["help"] for field in fields(EvaluationArguments)]
    assert all(text[:1] and text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(("name", "value"), [("num_proc", -1), ("num_resamples", 1)])
def test_number_that_is_too_small_is_an_error(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} {value} is too small"):
        EvaluationArguments(data="data", protocol="p.json", output_dir="out", **{name: value})
