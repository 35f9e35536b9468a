#!/bin/sh
#SBATCH --job-name=refsae
# shard.sh N COMMAND OPTIONS...: one task of a job array, shard $SLURM_ARRAY_TASK_ID of N. A task that failed is started
# again by itself: sbatch --array=3 shard.sh 8 COMMAND OPTIONS... --out OUT
n=$1
shift
exec "${REFSAE:-refsae}" "$@" --shard "$SLURM_ARRAY_TASK_ID/$n"
