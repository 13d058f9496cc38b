"""For the site: docstrings in the form of transformers' builder, as Google's parser reads them."""

import re

import griffe

# name (`type`, *optional*, defaults to `value`):
_ARGUMENT = re.compile(r"^(\s+[\w, *]+)\((`.+)\):", re.M)


class DocstringLinks(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Leave out the brackets of [`name`], and the marks in the type of an argument."""
        if obj.docstring is not None:
            text = re.sub(r"\[(`[^`\]]+`)\](?![\[(])", r"\1", obj.docstring.value)
            obj.docstring.value = _ARGUMENT.sub(_plain, text)


def _plain(argument: re.Match[str]) -> str:
    kind = re.sub(r", \*optional\*.*", "", argument[2]).replace("`", "")
    if not re.search(r"[(\[]| of ", kind):
        kind = re.sub(r", | or ", " | ", kind)
    return f"{argument[1]}({kind}):"
