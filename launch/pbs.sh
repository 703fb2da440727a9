#!/usr/bin/env bash
# A PBS job that continues after its time limit:
#
#     qsub -v ARGUMENTS="coarse --config configs/orcas-bert-base.toml --set train.packs_per_step=32" launch/pbs.sh
#
# It has not been run on a real PBS.
#
# The arithmetic of the run (configs/orcas-bert-base.toml on N = 4 nodes x 8 GPUs = 32 ranks):
#
#     packs a step     at least one a rank: packs_per_step = 32 with pack_tokens = 16,384
#     tokens a step    32 x 16,384 = 524,288 over all ranks; the batch, and so the learning rate, is not
#                      that of the config's 32,768: change both together
#     samples          18.8 M clicks, one negative each, about 256 tokens a pair: 9.6 G tokens, 18,400 steps an epoch
#     work             0.588 GFLOP a token: 308 TFLOP a step, 9.6 TFLOP a rank
#     memory a rank    110 M weights x (2 bf16 + 4 master + 4 gradient + 8 moments) = 2.0 GB, not counting
#                      activations; train.sharding = "optimizer" divides the 12 bytes of master and moments by 32
#     all-reduce       4 bytes x 110 M = 440 MB a step and rank
#     checkpoint       110 M x 14 bytes = 1.5 GB; kept: 2 and the best, 4.6 GB, and one more while it is written
#     the signal       180 s before the limit: a step, a copy to the host, and 1.5 GB to the file system
#
# PBS warns too late (SIGTERM, then SIGKILL ten seconds later), so a timer in this script sends SIGUSR1
# to mpirun, which forwards it to every rank. They save and end with 75, and the script submits itself
# again. Logs: logs/rank-000.log, ... of the run directory, and PBS's own output file.
#PBS -N ctune-dist
#PBS -l select=4:ncpus=64:mpiprocs=8:ngpus=8
#PBS -l walltime=08:00:00
#PBS -j oe
set -euo pipefail
seconds=$((8 * 3600)) # as walltime above
before=180
cd "${PBS_O_WORKDIR:?started by qsub}"
program=${CTUNE_PROGRAM:-target/release/ctune-dist}
read -r -a arguments <<<"${ARGUMENTS:?qsub -v ARGUMENTS=...}"
ranks=$(wc -l <"$PBS_NODEFILE")

mpirun -n "$ranks" --hostfile "$PBS_NODEFILE" --bind-to none "$program" "${arguments[@]}" &
job=$!
(sleep $((seconds - before)) && kill -USR1 "$job") &
clock=$!
trap 'kill -USR1 "$job"' TERM USR1

status=0
wait "$job" || status=$?
while kill -0 "$job" 2>/dev/null; do # a signal interrupts the wait and not the job
    status=0
    wait "$job" || status=$?
done
kill "$clock" 2>/dev/null || true
if ((status == 75)); then
    echo "saved; a new job continues from the last checkpoint"
    qsub -v ARGUMENTS="$ARGUMENTS" launch/pbs.sh
    exit 0
fi
exit "$status"
