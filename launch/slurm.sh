#!/usr/bin/env bash
# One job for a whole graph: `sbatch launch/slurm.sh`, or `sbatch --nodes=1 launch/slurm.sh evaluate`.
# The stages run on the job's first machine, one after the other; those that can share their work
# start a process for every GPU of every machine. See docs/cluster.md.
#SBATCH --job-name=plumbline
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
set -euo pipefail

config=${CONFIG:-launch/ddp.yaml}
machines=$SLURM_JOB_NUM_NODES
processes=$((machines * ${PROCESSES_PER_MACHINE:-$SLURM_GPUS_ON_NODE}))
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a machine

export PLUMBLINE_LAUNCH="srun --nodes=$machines --ntasks-per-node=1 --kill-on-bad-exit=1 \
accelerate launch --config_file $config --num_machines $machines --num_processes $processes \
--main_process_ip $first --main_process_port $port"
export PATH="$PWD/.venv/bin:$PATH"
dvc repro "$@"
