#!/usr/bin/env bash
# Finetunes a model and random weights under the same budget on the benchmark sets of FOLDER (CSV files with smiles, y and
# split_0 ...): scripts/effect_of_pretraining.sh MODEL FOLDER OUTPUT. Runs that are there already are not repeated.
set -euo pipefail
MODEL=$1 FOLDER=$2 OUTPUT=$3 JOBS=${4:-2}
export OMP_NUM_THREADS=1

finetune() { # model set split seed
  local kind=regression run="$3/$(basename "$1")-$2-split_$4-seed_$5"
  case $2 in bbbp | estrogen-beta) kind=multi_label_classification ;; esac
  [ -f "$run/metrics.json" ] || rmat finetune --model "$1" --dataset "$FOLDER/$2.csv" --label-columns y \
    --problem-type $kind --split column --split-column "split_$4" --seed "$5" --geometry bounds \
    --conflict-tolerance 1e9 --overwrite --output-dir "$run" >"$run.log" 2>&1
}
export -f finetune
export FOLDER
mkdir -p "$OUTPUT"
{
  for set in freesolv esol; do for split in 0 1 2 3 4 5; do for model in "$MODEL" scratch; do
    echo "$model $set $OUTPUT $split 0"
  done; done; done
  for seed in 0 1 2; do for set in bbbp estrogen-beta; do for model in "$MODEL" scratch; do
    echo "$model $set $OUTPUT 0 $seed"
  done; done; done
} | xargs -P "$JOBS" -L 1 bash -c 'finetune "$@"' finetune
python "$(dirname "$0")/summarize_runs.py" "$OUTPUT"
