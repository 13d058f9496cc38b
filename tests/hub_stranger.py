"""What a user with this package gets from a stranger's repositories. Run as a script.

python hub_stranger.py REPORT REPOSITORY ...
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from rmat_hf import embed, predict


def main(report_file: str, repo_ids: list[str]) -> None:
    """Open every repository in every way; report the errors and what was unpickled."""
    opened: list[str] = []
    load = torch.load

    def record(file: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(file))
        return load(file, *args, **kwargs)

    torch.load = record
    errors: dict[str, dict[str, str]] = {}
    for repo_id in repo_ids:
        errors[repo_id] = {}
        for name, read in {"predict": predict, "embed": embed}.items():
            try:
                read(repo_id, ["CCO"], device="cpu")
            except (OSError, ValueError) as error:
                errors[repo_id][name] = str(error)
    Path(report_file).write_text(json.dumps({"errors": errors, "opened": opened}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
