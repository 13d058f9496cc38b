#!/usr/bin/env bash
# Makes rmat_hf/checkpoints/rmat-small anew, from tables of SMILES: scripts/pretrain_rmat_small.sh diverse.parquet
# Interrupted, it continues where it was when it is called again.
set -euo pipefail
TABLE=$(realpath "$1")
PROCESSES=${2:-2}
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

rmat featurize --input "$TABLE" --output-dir runs/rmat-small-corpus \
  --geometry bounds --molecule-descriptors rdkit_2d --num-proc "$PROCESSES"

RESUME=$([ -d runs/rmat-small.in_progress ] && echo --resume || true)
torchrun --standalone --nproc-per-node "$PROCESSES" --no-python \
  rmat pretrain --corpus runs/rmat-small-corpus --model-config scripts/rmat_small.json \
  --objective joint --learning-rate 2e-3 --max-steps 10000 \
  --license apache-2.0 --output-dir runs/rmat-small $RESUME

python scripts/bundle_checkpoint.py runs/rmat-small rmat_hf/checkpoints/rmat-small
