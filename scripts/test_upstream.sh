#!/usr/bin/env bash
# transformers' own common tests, of the installed version, on our classes: `make test-upstream`.
# Only the source distribution has them; what they import and it lacks is stubbed here.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(python -c 'from importlib.metadata import version; print(version("transformers"))')
suite=.cache/upstream-tests/$version

if [ ! -d "$suite" ]; then
  part=$suite.part
  rm -rf "$part"
  mkdir -p "$part"
  python -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --no-binary transformers --dest "$part" "transformers==$version"
  sdist=transformers-$version
  tar xzf "$part/$sdist.tar.gz" -C "$part" --strip-components=1 "$sdist/tests"
  rm "$part/$sdist.tar.gz"
  mv "$part/tests" "$part/hf_tests"
  mkdir -p "$part"/hf_tests/{exporters,generation,utils}
  touch "$part"/hf_tests/{,exporters/,generation/,utils/}__init__.py
  echo 'class ExportTesterMixin: pass' > "$part/hf_tests/exporters/test_export.py"
  echo 'class GenerationTesterMixin: pass' > "$part/hf_tests/generation/test_utils.py"
  cat > "$part/hf_tests/utils/test_configuration_utils.py" <<'PYTHON'
config_common_kwargs = {
    "return_dict": False, "output_hidden_states": True, "dtype": "float16",
    "chunk_size_feed_forward": 5, "architectures": ["BertModel"], "problem_type": "regression",
    "id2label": {0: "label"}, "label2id": {"label": "0"},
}
PYTHON
  mv "$part" "$suite"
fi

# Their markers and warnings are not ours, so our strict options are left out; -rfEs lists every
# failure and skip, -q those of subtests too.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=$suite${PYTHONPATH:+:$PYTHONPATH}
exec python -m pytest -q -o addopts=--import-mode=importlib -W ignore -rfEs --no-fold-skipped \
  tests/upstream/test_rmat_upstream.py "$@"
