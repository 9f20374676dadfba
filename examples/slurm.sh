#!/bin/bash
# Any convary command on the GPUs of a Slurm job, one process for each:
#
#   sbatch --nodes 2 --gpus-per-node 4 examples/slurm.sh reproduce odconv-resnet --rows resnet18 resnet18-1x \
#     --data folder:/imagenet --workers 8 --precision bf16 --channels-last --out runs/odconv-resnet18
#
# --out and the images must be on a disk that all nodes see. Killed, at the end of its time for example, it loses less
# than a minute: send the same line again, and it resumes. A job that its node's failure ends comes back by itself.
#SBATCH --job-name=convary
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export OMP_NUM_THREADS=1
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d --rdzv-endpoint "${hosts%%$'\n'*}:${PORT:-29500}" -m convary "$@"
