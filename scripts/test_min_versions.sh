#!/usr/bin/env bash
# The default tests with the lowest versions that pyproject.toml declares: `make test-min-versions`. They get an environment
# of their own, .cache/min-versions or ENVIRONMENT, of PYTHON. Arguments are for pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${ENVIRONMENT:-.cache/min-versions}
if [ ! -e "$environment/ready" ]; then
  rm -rf "$environment"
  "${PYTHON:-python3}" -m venv "$environment"
  "$environment/bin/pip" install --quiet uv
  # pip would try thousands of combinations
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --resolution lowest-direct \
    --requirement pyproject.toml --extra distributed --extra excel --extra hpo --extra onnx --extra peft --extra tracking --extra viz
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" --no-deps --editable .
  "$environment/bin/uv" pip install --quiet --python "$environment/bin/python" \
    'hypothesis>=6.100' 'parameterized>=0.9' 'pytest>=8.3' 'pytest-xdist>=3.6' 'setuptools>=77'
  touch "$environment/ready"
fi
"$environment/bin/uv" pip freeze --python "$environment/bin/python" | grep -E \
  '^(accelerate|datasets|datatrove|huggingface|matplotlib|numpy|onnx|openpyxl|optuna|pandas|peft|psutil|rdkit|safetensors|scikit-learn|tensorboard|torch|trackio|transformers)'
OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest -q "$@"
