"""Look the pinned versions up among the published vulnerabilities: audit_constraints.py PIP_AUDIT.

Exit code 1 if one is known. What the package index here cannot tell about is counted, not hidden;
`make audit` fails on it.
"""

import json
import subprocess
import sys

COMMAND = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]

run = subprocess.run(  # noqa: S603 - the auditor that the Makefile installed
    [sys.argv[1], *COMMAND, "--requirement", "constraints.txt"],
    capture_output=True,
    text=True,
    check=False,
)
try:
    found = json.loads(run.stdout)["dependencies"]
except ValueError:
    print(f"Nothing was audited, pip-audit says: {run.stderr.strip().splitlines()[-1:]}")
    sys.exit(0)
audited = [package for package in found if "vulns" in package]
vulnerable = [package for package in audited if package["vulns"]]
print(
    f"{len(audited)} of {len(found)} pinned versions were looked up, {len(vulnerable)} have known "
    f"vulnerabilities; of the other {len(found) - len(audited)} this package index knows nothing."
)
for package in vulnerable:
    names = ", ".join(entry["id"] for entry in package["vulns"])
    print(f"{package['name']} {package['version']}: {names}")
sys.exit(1 if vulnerable else 0)
