#!/usr/bin/env bash
# The default tests with the lowest versions that pyproject.toml declares: `make test-min-versions`. They get an environment
# of their own, .cache/min-versions or ENVIRONMENT, of PYTHON. Arguments are for pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${ENVIRONMENT:-.cache/min-versions}
lowest='
import re, tomllib
declared = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = [*declared["dependencies"], *declared["optional-dependencies"]["viz"]]
print("\n".join(re.sub(r">=([\d.]+).*", r"==\1", it) for it in wanted))
'
if [ ! -e "$environment/ready" ]; then
  rm -rf "$environment"
  "${PYTHON:-python3}" -m venv "$environment"
  "$environment/bin/python" -c "$lowest" > "$environment/lowest.txt"
  "$environment/bin/pip" install --quiet --requirement "$environment/lowest.txt" \
    'hypothesis>=6.100' 'parameterized>=0.9' 'pytest>=8.3' 'pytest-xdist>=3.6' 'setuptools>=77'
  touch "$environment/ready"
fi
"$environment/bin/pip" list --format freeze | grep -f <(sed 's/==.*/==/' "$environment/lowest.txt")
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest -q "$@"
