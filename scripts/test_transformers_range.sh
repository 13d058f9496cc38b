#!/usr/bin/env bash
# The tests of remote code and of the README's scripts with several versions of transformers, by default the ends of the
# range in pyproject.toml and one between: `make test-transformers-range`, or with VERSIONS as arguments.
# Each gets an environment of its own over that of `python`, which lends it torch and everything else.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 5.20.0 5.22.0 5.24.0
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$PWD

for version in "$@"; do
  environment=.cache/transformers-$version
  if [ ! -e "$environment/ready" ]; then
    rm -rf "$environment"
    "$(python -c 'import sys; print(sys._base_executable)')" -m venv "$environment"
    # what an environment lacks is looked up behind what it has
    find_site='import sysconfig; print(sysconfig.get_path("purelib"))'
    python -c "$find_site" > "$("$environment/bin/python" -c "$find_site")/base.pth"
    "$environment/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
    touch "$environment/ready"
  fi
  "$environment/bin/python" -c 'import transformers, huggingface_hub, tokenizers, sys
assert transformers.__version__ == sys.argv[1], transformers.__version__
print("transformers", sys.argv[1], "huggingface_hub", huggingface_hub.__version__, "tokenizers", tokenizers.__version__)' \
    "$version"
  "$environment/bin/python" -m pytest -q -m "slow or not slow" -k "not error_of_types and not all_of_freesolv" \
    tests/test_remote_code.py tests/training/test_by_hand.py
done
