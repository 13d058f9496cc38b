"""transformers' own linter on the files that travel with a checkpoint. `make check` runs it."""

import sys
from pathlib import Path

from mlinter import DEFAULT_ENABLED_TRF_RULES, analyze_file

# TRF028 wants the license in every file: ours is LICENSE. TRF057 wants docstrings completed from
# the library's templates: ours are written out, and outside the library the templates do not apply.
LEFT_OUT = {"TRF028", "TRF057"}
# The rules of a file go by its name; our other files hold parts of the model or of the processor.
KNOWN_KINDS = ("configuration_", "modeling_", "processing_")
CHEMISTRY = ("features_", "geometry_")


def main() -> None:
    """Print every finding; exit with 1 if there is one."""
    num_findings = 0
    for path in sorted(Path("rmat_hf/model").glob("*_rmat.py")):
        kind = "processing" if path.name.startswith(CHEMISTRY) else "modeling"
        name = path.name if path.name.startswith(KNOWN_KINDS) else f"{kind}_{path.name}"
        findings = analyze_file(
            path.with_name(name),
            path.read_text(),
            enabled_rules=DEFAULT_ENABLED_TRF_RULES - LEFT_OUT,
        )
        for finding in findings:
            print(f"{path}:{finding.line_number}: {finding.message}")
        num_findings += len(findings)
    sys.exit(min(num_findings, 1))


if __name__ == "__main__":
    main()
