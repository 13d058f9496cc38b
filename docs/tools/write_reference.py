"""Write the pages of the reference: of exported names, of verbs, of configuration fields.

`python docs/tools/write_reference.py FOLDER` writes FOLDER/reference; `make docs` calls it.
"""

import inspect
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import rmat_hf
from rmat_hf.cli import VERBS, build_parser

SKILL = Path(__file__).resolve().parents[2] / "SKILL.md"
CONFIGURATIONS = ("RMatConfig", "RMatEnsembleConfig", "RMatKernelConfig", "RMatTrainingArguments")


def write_reference(folder: Path) -> list[Path]:
    """Write the folder `reference` anew and return the pages."""
    reference = folder / "reference"
    shutil.rmtree(reference, ignore_errors=True)
    pages = {"configuration.md": describe_configurations()}
    summaries = {name: summarize(getattr(rmat_hf, name)) for name in rmat_hf.__all__}
    pages["python/index.md"] = list_pages("Python", summaries)
    pages |= {f"python/{name}.md": describe_name(name) for name in rmat_hf.__all__}
    verbs = {verb: function.__doc__ or "" for verb, (_, _, function) in VERBS.items()}
    pages["commands/index.md"] = list_pages("Commands", verbs)
    pages |= {f"commands/{verb}.md": describe_verb(verb) for verb in VERBS}
    for name, text in pages.items():
        path = reference / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [reference / name for name in pages]


def summarize(public: object) -> str:
    """Return the first sentence of a docstring."""
    return (inspect.getdoc(public) or "").split("\n\n")[0].replace("\n", " ")


def list_pages(title: str, summaries: dict[str, str]) -> str:
    """Return the page that lists others."""
    rows = [(f"[`{name}`]({name}.md)", text) for name, text in summaries.items()]
    return f"# {title}\n\n{build_table(('', ''), rows)}"


def describe_name(name: str) -> str:
    """Return the page of an exported name, which mkdocstrings fills."""
    public = getattr(rmat_hf, name)
    place = f"{public.__module__}.{public.__qualname__}"
    return f"# {name}\n\n`from rmat_hf import {name}`\n\n::: {place}\n"


def describe_verb(verb: str) -> str:
    """Return the page of a verb: its flags, those that have to be given first."""
    parser = build_parser(verb)
    actions = [action for action in parser._actions if action.dest != "help"]
    rows = []
    for action in sorted(actions, key=lambda action: not action.required):
        value = f" {action.metavar}" if action.metavar and action.option_strings else ""
        flag = ", ".join(action.option_strings) or str(action.metavar)
        rows.append((f"`{flag}{value}`", action.help % vars(action)))
    text = f"# rmat {verb}\n\n{parser.description}\n\n"
    keys = ", ".join(["`verb`", "`version`", "`exit_code`", read_json_keys(verb)])
    text += f"With `--json` the outcome has {keys}; after a mistake `error` instead.\n\n"
    return text + build_table(("flag", ""), rows)


def read_json_keys(verb: str) -> str:
    """Return the keys of a verb's own in `--json`, of the table in SKILL.md."""
    (keys,) = re.findall(
        rf"^\|.*`{verb}`.*\| (`\w+`.*) \|$", SKILL.read_text(encoding="utf-8"), re.M
    )
    return str(keys)


def describe_configurations() -> str:
    """Return the page of every field of the configurations, with its default."""
    text = "# Configuration\n\nWhat each field means stands on the page of its class.\n"
    for name in CONFIGURATIONS:
        public = getattr(rmat_hf, name)
        text += f"\n## [`{name}`](python/{name}.md)\n\n"
        text += build_table(("field", "default"), list_fields(public))
    return text


def list_fields(public: Any) -> Iterable[tuple[str, str]]:
    """Yield each field of a configuration that its class declares itself, and its default."""
    own = inspect.get_annotations(public)
    for field in fields(public):
        if field.name in own:
            value = getattr(public, field.name, None)
            yield f"`{field.name}`", f"`{value!r}`"


def build_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


if __name__ == "__main__":
    print(f"{len(write_reference(Path(sys.argv[1])))} pages of reference")
