from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Literal

import pytest

from rmat_hf.flags import (
    SMALLEST_VALUES,
    SPLIT_FIELDS,
    declare_flag,
    declare_required,
    validate_choice,
    validate_smallest_values,
    validate_split_flags,
)


@dataclass(kw_only=True)
class ExampleArguments:
    name: str = declare_required("A name.")
    colors: list[str] = declare_flag(["red"], "Colors.")  # noqa: RUF009 - as in the package
    batch_size: int = declare_flag(8, "Rows.")
    max_steps: int | None = declare_flag(None, "Steps.")
    learning_rate: float = declare_flag(0.1, "Rate.")


def test_help_texts_are_kept_and_a_required_field_has_to_be_given() -> None:
    texts = {field.name: field.metadata["help"] for field in fields(ExampleArguments)}
    assert texts["name"] == "A name."
    assert texts["batch_size"] == "Rows."
    with pytest.raises(TypeError, match="name"):
        ExampleArguments()


def test_a_default_list_is_not_shared() -> None:
    first, second = ExampleArguments(name="a"), ExampleArguments(name="b")
    first.colors.append("green")
    assert second.colors == ["red"]


def test_an_unknown_choice_is_refused_with_those_there_are() -> None:
    choice = Literal["red", "green"]
    validate_choice("color", "red", choice=choice)
    validate_choice("color", None, choice=choice)
    with pytest.raises(ValueError, match=r"color='blue' is unknown\. Known: \['red', 'green'\]"):
        validate_choice("color", "blue", choice=choice)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"--batch-size 0 is too small\. The least is 1\."),
        ({"max_steps": 0}, r"--max-steps 0 is too small"),
        ({"learning_rate": float("nan")}, r"--learning-rate nan is too small"),
        ({"learning_rate": -1e-9}, r"--learning-rate"),
    ],
)
def test_a_value_below_the_least_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate_smallest_values(ExampleArguments(name="a", **options))


def test_the_least_value_and_none_are_accepted() -> None:
    least = {name: SMALLEST_VALUES[name] for name in ("batch_size", "max_steps", "learning_rate")}
    validate_smallest_values(ExampleArguments(name="a", **least))
    validate_smallest_values(ExampleArguments(name="a", max_steps=None))


@pytest.mark.parametrize("name", SPLIT_FIELDS)
def test_a_flag_of_another_split_is_refused_and_a_missing_one_named(name: str) -> None:
    split, _, is_needed = SPLIT_FIELDS[name]
    flag = f"--{name.replace('_', '-')}"
    options = {**dict.fromkeys(SPLIT_FIELDS), "member_folds": False}
    validate_split_flags(SimpleNamespace(split="random", **options))
    with pytest.raises(ValueError, match=f"{flag} 0.5 needs --split {split}, not random"):
        validate_split_flags(SimpleNamespace(split="random", **{**options, name: 0.5}))
    given = {key: 0.5 for key, field in SPLIT_FIELDS.items() if field[0] == split and key != name}
    if is_needed:
        with pytest.raises(ValueError, match=f"--split {split} needs {flag} "):
            validate_split_flags(SimpleNamespace(split=split, **{**options, **given}))
    else:
        validate_split_flags(SimpleNamespace(split=split, **{**options, **given}))
