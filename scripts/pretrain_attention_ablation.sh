#!/usr/bin/env bash
# Pretrain six small models, each with the terms of attention that it is finetuned with later, into
# runs/attention, where scripts/protocols/attention_ablation_pretrained.json looks for them.
#
#   bash scripts/pretrain_attention_ablation.sh CORPUS [STEPS]
#
# CORPUS is from `rmat featurize --molecule-descriptors all_2d`. What is there is not made again.
set -euo pipefail
corpus=$1 steps=${2:-500}
small='"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_head_layers": 2'

pretrain() {
  [ -d "runs/attention/$1" ] || rmat pretrain --corpus "$corpus" --model-config "{$small$2}" \
    --learning-rate 2e-3 --max-steps "$steps" --num-evaluations 2 --output-dir "runs/attention/$1"
}

pretrain full ''
pretrain without_distance ', "pair_relations": ["bond", "neighborhood"]'
pretrain without_bond ', "pair_relations": ["neighborhood", "distance"]'
pretrain without_neighborhood ', "pair_relations": ["bond", "distance"]'
pretrain without_value_terms ', "pair_terms": ["keys"]'
pretrain reference_form ', "attention_form": "reference"'
