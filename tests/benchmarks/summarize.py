"""Write the tables of benchmark runs as a dated Markdown file.

python tests/benchmarks/summarize.py RUN.json [RUN.json ...]
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from measuring import format_tables

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    date = f"{datetime.now(UTC):%Y-%m-%d}"
    lines = [f"# Benchmarks, {date}", "", "Written by `make bench`; see CONTRIBUTING.md."]
    for path in sys.argv[1:]:
        run = json.loads(Path(path).read_text(encoding="utf-8"))
        machine = run["machine_info"]
        lines += ["", f"## Allocator: {machine['allocator']}", ""]
        lines += [
            f"{machine['cpu']}, {machine['cores']} cores, one thread; torch {machine['torch']}"
        ]
        entries = [entry["extra_info"] for entry in run["benchmarks"]]
        lines += format_tables([entry for entry in entries if "rows" in entry])
    lines += ["", "![Cost of the number of nodes](cost_of_size.png)"]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{date}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
