#!/usr/bin/env bash
# The long drill: one job is killed with SIGKILL again and again at random moments, started again each
# time, and must end with the weights, to the bit, of a job that was left alone.
#
#     benches/drill.sh [KILLS] [RANKS]      default 200 kills, 2 ranks; needs a release build
#
# A checkpoint is due at every other step, so that many kills fall into the writing of one. What is
# killed is by turns: a random rank, or mpirun itself with all ranks. Prints one line at the end;
# results of dated runs are in benches/results/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
kills=${1:-200}
ranks=${2:-2}
program=${CTUNE_PROGRAM:-$(target_directory)/release/ctune-dist}
[[ -x $program ]] || fail "no $program: cargo build --release"
command -v mpirun >/dev/null || fail "there is no mpirun: apt-get install openmpi-bin"
open_mpi_variables
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
start=$SECONDS

# A small log: 72 documents of six themes.
awk 'BEGIN {
    n = split("editor text buffer syntax cursor;network packet socket router proxy;image pixel camera colour photo;" \
        "audio sound music player codec;game puzzle level score arcade;database table query index record", theme, ";")
    for (d = 0; d < 72; d++) {
        split(theme[d % n + 1], w, " ")
        k = int(d / n)
        printf "D%d\t\tpackage%d\t%s %s with %s tool number %d\n", d, d, w[k % 5 + 1], w[(k + 1) % 5 + 1],
            w[(k + 2) % 5 + 1], d > "documents.tsv"
        printf "%d\t%s %s tool\tD%d\t\n", d, w[(k + 1) % 5 + 1], w[(k + 3) % 5 + 1], d > "clicks.tsv"
    }
}'
"$program" prepare --clicks clicks.tsv --documents documents.tsv --out shards --vocab 200 --max-tokens 32 >prepare.log

# Ten steps a kill: the run must outlast them all.
steps=$((10 * kills))
train() {
    mpirun --oversubscribe -n "$ranks" "$program" coarse --out "$1" --set data.shards=shards \
        --set data.max_tokens=32 --set model.layers=2 --set model.hidden=32 --set model.heads=2 \
        --set seed=7 --set train.steps="$steps" --set train.pack_tokens=256 --set train.packs_per_step=4 \
        --set train.lr=2e-3 --set train.dropout=0.1 --set checkpoint.every_steps=2 --set run.device=cpu \
        >"$1.log" 2>&1
}

steps_of() { if [[ -f $1/metrics.jsonl ]]; then wc -l <"$1/metrics.jsonl"; else echo 0; fi; }

train whole || fail "the run that is left alone failed: $(tail -1 whole.log)"
done_kills=0
in_writing=0
while ((done_kills < kills)) && [[ ! -e broken/DONE ]]; do
    before=$(steps_of broken)
    train broken &
    shell=$!
    # until it has gone on, then a random moment within some 80 ms
    while kill -0 "$shell" 2>/dev/null && (($(steps_of broken) == before)); do sleep 0.02; done
    sleep "0.0$((RANDOM % 80 + 10))"
    job=$(cat "/proc/$shell/task/$shell/children" 2>/dev/null || true)
    job=${job%% *}
    [[ -n $job ]] || { wait "$shell" || true; continue; }
    ls -d broken/checkpoints/.step-*.partial >/dev/null 2>&1 && in_writing=$((in_writing + 1))
    read -r -a processes < <(cat "/proc/$job/task/$job/children" 2>/dev/null || true) || true
    if ((${#processes[@]} == 0)); then
        wait "$shell" || true
        continue
    fi
    if ((RANDOM % 4 == 0)); then
        kill -KILL "${processes[@]}" "$job" 2>/dev/null || true
    else
        kill -KILL "${processes[RANDOM % ${#processes[@]}]}" 2>/dev/null || true
    fi
    wait "$shell" || true
    done_kills=$((done_kills + 1))
done
train broken || fail "the run did not end: $(tail -1 broken.log)"
cmp whole/model/model.safetensors broken/model/model.safetensors || fail "other weights after $done_kills kills"
losses() { sed 's/.*"loss":\([^,]*\),.*"step":\([0-9]*\).*/\2 \1/' "$1/metrics.jsonl"; }
cmp <(losses whole) <(losses broken) || fail "other losses after $done_kills kills"
echo "$done_kills kills ($in_writing while a checkpoint was being written) on $ranks ranks, $steps steps, $(duration $((SECONDS - start))):" \
    "weights and losses are those of the unbroken run, bit for bit"
