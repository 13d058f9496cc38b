#!/usr/bin/env bash
# The main job on a small real data set: finetune, compare with baselines, predict. Run it with `make quickstart`.
set -euo pipefail
cd "$(dirname "$0")/.."
# Molecules this small gain little from a second thread, and on a busy machine it stalls the first.
export OMP_NUM_THREADS=1

rmat finetune --model rmat-small \
  --dataset freesolv --smiles-column smiles \
  --label-columns hydration_free_energy --label-units kcal/mol --problem-type regression \
  --split column --split-column split_0 --seed 0 \
  --with-baselines --overwrite --output-dir runs/quickstart

rmat predict --model runs/quickstart \
  --smiles CCO c1ccccc1 "CC(=O)Oc1ccccc1C(=O)O" --output runs/quickstart_predictions.csv --overwrite

echo
cat runs/quickstart_predictions.csv
