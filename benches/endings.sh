#!/usr/bin/env bash
# How soon a job ends when something goes wrong: seconds from the event to the end of mpirun, two ranks. The
# tests check that such a job ends and what it says; a busy machine may take its time there.
#
#     benches/endings.sh [REPEATS]      default 3; needs a release build
#
# A rank that is killed, a rank that is stopped (run.hang_limit_s = 2, which its time includes), shards that are not there
# (from the start of mpirun) and a second interrupt. One line an ending, its times in order.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
repeats=${1:-3}
program=${CTUNE_PROGRAM:-$(target_directory)/release/ctune-dist}
[[ -x $program ]] || fail "no $program: cargo build --release"
open_mpi_variables
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$program" sample synthetic --out log --pairs 400 --queries 200 --documents 200 --words 40 >/dev/null
"$program" prepare --clicks log/clicks.tsv --documents log/documents.tsv --out shards --vocab 400 --max-tokens 32 >/dev/null

plan=(--set data.shards=shards --set data.max_tokens=32 --set model.layers=2 --set model.hidden=32
    --set model.heads=2 --set train.steps=100000 --set train.pack_tokens=256 --set train.packs_per_step=4
    --set run.hang_limit_s=2 --device cpu)

# start RANKS: a job in `job`, whose ranks are in `processes`, that has made its fifth step.
start() {
    local command=("$program")
    rm -rf run
    if (($1 > 1)); then command=(mpirun --oversubscribe -n "$1" "$program"); fi
    "${command[@]}" coarse --out run "${plan[@]}" >job.log 2>&1 &
    job=$!
    until [[ -f run/metrics.jsonl ]] && (($(wc -l <run/metrics.jsonl) >= 5)); do
        kill -0 "$job" 2>/dev/null || fail "the job ended too soon: $(tail -n 1 job.log)"
        sleep 0.02
    done
    read -r -a processes < <(cat "/proc/$job/task/$job/children") || true
}

# seconds COMMAND...: from the command to the end of the job.
seconds() {
    local begun=$EPOCHREALTIME
    "$@"
    wait "$job" || true
    awk -v from="$begun" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f ", to - from }'
}

killed() { start 2 && seconds kill -KILL "${processes[1]}"; }
stopped() { start 2 && seconds kill -STOP "${processes[1]}"; }
interrupted() { start 1 && kill -INT "$job" && seconds kill -INT "$job"; }
without_shards() {
    mpirun --oversubscribe -n 2 "$program" coarse --out none "${plan[@]}" --set data.shards=nowhere >job.log 2>&1 &
    job=$!
    seconds true
}

for ending in killed stopped interrupted without_shards; do
    times=()
    for ((i = 0; i < repeats; i++)); do
        "$ending" >time
        times+=("$(cat time)")
    done
    printf '%-15s %s s\n' "${ending//_/ }" "$(printf '%s\n' "${times[@]}" | sort -n | tr -d '\n')"
done
