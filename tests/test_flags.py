from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

import pytest

from rmat_hf.errors import UserError
from rmat_hf.flags import (
    declare_flag,
    declare_required,
    list_choices,
    name_flag,
    validate_flags,
)


@dataclass(kw_only=True)
class ExampleArguments:
    name: str = declare_required("A name.")
    colors: list[Literal["red", "green"]] = declare_flag(["red"], "Colors.")
    shape: Literal["round", "square"] | None = declare_flag(None, "Shape.")
    metric: str = declare_flag("rmse", "Of a registry.", choices={"rmse": 1, "mae": 2})
    batch_size: int = declare_flag(8, "Rows.", least=1)
    max_steps: int | None = declare_flag(None, "Steps.", least=1)
    share: float = declare_flag(0.1, "Share.", above=0, below=1)


def test_help_texts_are_kept_and_a_required_field_has_to_be_given() -> None:
    texts = {field.name: field.metadata["help"] for field in fields(ExampleArguments)}
    assert texts["name"] == "A name."
    assert texts["batch_size"] == "Rows."
    assert name_flag("batch_size") == "--batch-size"
    with pytest.raises(TypeError, match="name"):
        ExampleArguments()


def test_a_default_list_is_not_shared() -> None:
    first, second = ExampleArguments(name="a"), ExampleArguments(name="b")
    first.colors.append("green")
    assert second.colors == ["red"]


def test_choices_come_from_the_type_or_from_a_registry() -> None:
    hints = get_type_hints(ExampleArguments)
    choices = {flag.name: list_choices(flag, hints[flag.name]) for flag in fields(ExampleArguments)}
    assert choices["colors"] == ["red", "green"]
    assert choices["shape"] == ["round", "square"]
    assert choices["metric"] == ["rmse", "mae"]
    assert choices["name"] == choices["max_steps"] == []


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"colors": ["red", "blue"]}, r"--colors 'blue' .*\['red', 'green'\]"),
        ({"shape": "flat"}, r"--shape 'flat' .*'square'"),
        ({"metric": "r2"}, r"--metric 'r2' .*'mae'"),
        ({"batch_size": 0}, r"--batch-size 0 .* 1\."),
        ({"batch_size": "8"}, r"--batch-size '8' is no number"),
        ({"max_steps": 0}, r"--max-steps 0 "),
        ({"share": float("nan")}, r"--share nan "),
        ({"share": 0}, r"--share 0 .* above 0"),
        ({"share": 1}, r"--share 1 .* below 1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_can(
    options: dict[str, Any], facts: str
) -> None:
    with pytest.raises(UserError, match=facts):
        validate_flags(ExampleArguments(name="a", **options))


def test_the_least_value_choices_and_none_are_accepted() -> None:
    validate_flags(ExampleArguments(name="a", batch_size=1, shape="round", share=1e-9))
    validate_flags(ExampleArguments(name="a", max_steps=None, shape=None, colors=[]))
