#!/usr/bin/env bash
# Pretrain six models for PROTOCOL=attention_ablation_pretrained: scripts/pretrain_attention_ablation.sh CORPUS
set -euo pipefail
small='"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_head_layers": 2'
while read -r name terms; do
  [ -d "runs/attention/$name" ] || rmat pretrain --corpus "$1" --model-config "{$small$terms}" \
    --learning-rate 2e-3 --max-steps 500 --num-evaluations 2 --output-dir "runs/attention/$name" </dev/null
done <<'END'
full
without_distance     , "pair_relations": ["bond", "neighborhood"]
without_bond         , "pair_relations": ["neighborhood", "distance"]
without_neighborhood , "pair_relations": ["bond", "distance"]
without_value_terms  , "pair_terms": ["keys"]
reference_form       , "attention_form": "reference"
END
