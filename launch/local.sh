#!/usr/bin/env bash
# Runs a command as N ranks on this machine:
#
#     launch/local.sh N COMMAND...
#     launch/local.sh 2 target/release/ctune-dist coarse --config configs/debian-tiny.toml
#
# The arithmetic of a run, for configs/debian-tiny.toml on 2 ranks:
#
#     tokens a step    pack_tokens x packs_per_step = 2,048 x 2 = 4,096, over all ranks
#     packs a rank     packs_per_step / N = 1; more than 2 ranks would leave some without work
#     weights          V h + (P + 2) h + L (4 h^2 + 2 h i) + heads (2 h^2 + V); h = 128, i = 512, L = 2,
#                      V = 8,000, P = 64: 1.02 M + 0.01 M + 0.39 M + 0.04 M = 1.5 M; as f32 with gradient
#                      and two moments 16 bytes each: 24 MB a rank, not counting activations
#     work a token     3 (L (8 h^2 + 4 h i) + 4 L s h + p (2 h^2 + 2 h V)), s = 64 attended, p = 0.15 masked:
#                      3 (0.79 M + 0.07 M + 0.31 M) = 3.5 MFLOP, so 14 GFLOP a step
#     all-reduce       4 bytes x 1.5 M = 6 MB a step and rank
#     threads a rank   cores / N, set by the program (RAYON_NUM_THREADS overrides)
#
# The global batch does not depend on N, nor do the losses (up to the order of summation). N only changes
# the speed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"

if (($# < 2)) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/local.sh N COMMAND..." >&2
    exit 2
fi
ranks=$1
shift
command -v mpirun >/dev/null || fail "there is no mpirun: apt-get install openmpi-bin"
open_mpi_variables

# --bind-to none: by default mpirun ties each of two ranks to one core, which all threads of the rank
#   would share.
# --oversubscribe: mpirun counts physical cores, and a machine with two hardware threads has one. More
#   ranks than cores are slow but correct.
# setsid: on Ctrl-C or SIGTERM, Open MPI kills the ranks two seconds later. setsid keeps both signals from
#   it, and it gets SIGUSR1 instead, which it forwards: the ranks save and end with code 75. A second
#   Ctrl-C ends the job at once.
setsid mpirun -n "$ranks" --bind-to none --oversubscribe "$@" </dev/null &
job=$!
asked=0
# shellcheck disable=SC2317  # called by the trap
ask() {
    asked=$((asked + 1))
    if ((asked == 1)); then kill -USR1 "$job"; else kill -TERM "$job"; fi
}
trap ask INT TERM USR1
status=0
wait "$job" || status=$?
# a signal interrupts the wait, not the job
while kill -0 "$job" 2>/dev/null; do
    status=0
    wait "$job" || status=$?
done
exit "$status"
