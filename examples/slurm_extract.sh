#!/bin/bash
# Extraction as a Slurm array job: each task takes a shard of the videos, all write to one store.
#
#   sbatch examples/slurm_extract.sh /shared/videos /shared/features
#
# Submitted again it does what is missing: after a failure, a time limit, or with another number of
# tasks. 90 s before its limit a task is told to commit what is complete and ends with code 130.
#SBATCH --job-name=liteeval-extract
#SBATCH --array=0-15
#SBATCH --gpus-per-task=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --output=extract-%A_%a.log
set -euo pipefail

exec srun liteeval-extract run "${1:?folder of videos}" --out "${2:?folder of the stores}" \
    --backbone mobilenet_v2@112 --backbone resnet101@224 \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
