"""The fields of the argument classes, which become flags of the command line."""

import difflib
import operator
import os
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rmat_hf.errors import UserError

# bound of a field → what holds of a value within it, and what is said of any other
_BOUNDS = {
    "least": (operator.ge, "is too small. The least is {}."),
    "above": (operator.gt, "is too small. It has to be above {}."),
    "below": (operator.lt, "is too large. It has to be below {}."),
}
Built = TypeVar("Built")

# Values of --feature-cache beside a folder.
DEFAULT_CACHE = "default"
NO_CACHE = "none"


def declare_flag(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Iterable[str] | None = None,
) -> Any:
    """Return a dataclass field with a default, a help text, and what [`validate_flags`] checks.

    Args:
        choices (`Iterable[str]`, *optional*):
            Names to choose from, for example the keys of a registry. A `Literal` as the type of
            the field says the same.
    """
    checks = {"least": least, "above": above, "below": below, "choices": choices}
    metadata = {"help": text, **{name: it for name, it in checks.items() if it is not None}}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def declare_required(text: str) -> Any:
    """Return a dataclass field that has to be given."""
    return field(metadata={"help": text})


def declare_positional(text: str) -> Any:
    """Return a dataclass field that has to be given, without the name of a flag before it."""
    return field(metadata={"help": text, "is_positional": True})


def name_flag(name: str) -> str:
    """Return the flag of a field: `--batch-size` of `batch_size`."""
    return f"--{name.replace('_', '-')}"


def list_choices(flag: "Field[Any]", hint: Any) -> list[str]:
    """Return the names that a field with a type can be; none if it is free."""
    if "choices" in flag.metadata:
        return list(flag.metadata["choices"])
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [name for part in get_args(hint) for name in list_choices(flag, part)]


def build_arguments(kind: type[Built], options: Mapping[str, Any]) -> Built:
    """Return the arguments of a function, or raise a `TypeError` that tells a misspelled one."""
    known = [*get_type_hints(kind)]
    for name in (it for it in options if it not in known):
        words = {*name.split("_")}
        alike = difflib.get_close_matches(name, known, n=1)
        alike = alike or [it for it in known if words & {*it.split("_")}]
        meant = f" Did you mean {' or '.join(alike[:3])}?" if alike else ""
        raise TypeError(f"There is no option {name!r}.{meant}")
    return kind(**options)


def normalize_flags(arguments: Any) -> None:
    """Write what Python has for a name as the command line does, in place.

    A path is its text, an integer the name of a column, and one name or any sequence of them a
    list. Raise a [`UserError`] for another object, as a model where the folder of one belongs.
    """
    hints = get_type_hints(type(arguments))
    for flag in fields(arguments):
        given, hint = getattr(arguments, flag.name), hints[flag.name]
        if hint == list[str] and given is not None:
            is_one = isinstance(given, str | os.PathLike) or not isinstance(given, Iterable)
            texts = [_as_text(it, name=flag.name) for it in ([given] if is_one else given)]
            setattr(arguments, flag.name, texts)
        elif hint in (str, str | None):
            setattr(arguments, flag.name, _as_text(given, name=flag.name))


def _as_text(value: Any, *, name: str) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(value)
    way_out = "Pass a name or a path."
    if hasattr(value, "save_pretrained"):
        way_out = "Save it and its processor by save_pretrained(FOLDER), and pass that folder."
    raise UserError(f"{name_flag(name)} is a {type(value).__name__}. {way_out}")


def validate_flags(arguments: Any) -> None:
    """Raise a [`UserError`] for the first field whose value is none of its choices or bounds."""
    hints = get_type_hints(type(arguments))
    for flag in fields(arguments):
        given, name = getattr(arguments, flag.name), name_flag(flag.name)
        choices = list_choices(flag, hints[flag.name])
        bounds = _BOUNDS.keys() & flag.metadata.keys()
        for value in given if isinstance(given, list) else [given]:
            if value is None:
                continue
            if choices and value not in choices:
                raise UserError(f"{name} {value!r} is unknown. Known: {choices}.")
            if bounds and not isinstance(value, Real):
                raise UserError(f"{name} {value!r} is no number.")
            for (is_within, text), bound in ((_BOUNDS[it], flag.metadata[it]) for it in bounds):
                if not is_within(value, bound):
                    raise UserError(f"{name} {value} {text.format(bound)}")
