"""Take out of stored outputs what differs from run to run: bars, times, folders."""

import json
import re
import sys
from pathlib import Path
from typing import Any

TEMPORARY = re.compile(r"/tmp/tmp\w+")  # noqa: S108 - what a notebook printed


def tidy(notebook: dict[str, Any]) -> None:
    """Change a notebook in place."""
    notebook["metadata"]["language_info"] = {"name": "python"}
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            shown = (it for it in cell["outputs"] if it.get("name") != "stderr")
            outputs = [it for it in shown if it.get("data", {}).get("text/html") not in ("", [])]
            text = TEMPORARY.sub("work", json.dumps(outputs, ensure_ascii=False))
            cell["outputs"] = json.loads(text)


for path in map(Path, sys.argv[1:]):
    content = json.loads(path.read_text(encoding="utf-8"))
    tidy(content)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
