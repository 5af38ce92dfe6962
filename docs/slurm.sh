#!/bin/bash
# refine-pl on SLURM: a process for each GPU, and again from where it stopped when time is up.
#
#   sbatch slurm.sh --config dn1.3b_mid --config hardware/ddp
#
#SBATCH --job-name=refine
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
# To every process, so many seconds before the limit: an iteration and a checkpoint have to fit.
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=refine-%j.txt

set -euo pipefail
srun --kill-on-bad-exit=1 refine-pl fit "$@"
