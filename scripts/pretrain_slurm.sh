#!/usr/bin/env bash
#SBATCH --job-name=rmat-pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Pretrains on several machines: sbatch scripts/pretrain_slurm.sh OUTPUT_DIR --corpus CORPUS ...
# What follows OUTPUT_DIR are flags of rmat pretrain. Corpus and output are on a file system that all
# machines share, and so is the environment that has rmat. Two minutes before the time limit the job
# queues up again, and continues from its last checkpoint.
set -euo pipefail
OUTPUT_DIR=$1
shift
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

RESUME=()
if [ -d "$OUTPUT_DIR.in_progress" ]; then RESUME=(--resume); fi
FIRST_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$FIRST_HOST:${PORT:-29500}" \
  --no-python rmat pretrain --output-dir "$OUTPUT_DIR" "$@" "${RESUME[@]}" &
# a shell answers a signal only while it waits
wait $!
