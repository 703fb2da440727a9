#!/usr/bin/env bash
# What checkpoints cost: the demo's model (2 x 128, V 8000) trained with and without a checkpoint every
# ten steps, in turn. The extra time of a checkpoint (the copy, and what the writing thread takes from
# training) as a share of five minutes is the cost of `checkpoint.every_minutes = 5`.
#
#     benches/checkpoint.sh [REPEATS]       default 3; needs a release build
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
repeats=${1:-3}
program=${CTUNE_PROGRAM:-$(target_directory)/release/ctune-dist}
[[ -x $program ]] || fail "no $program: cargo build --release"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
awk 'BEGIN {
    srand(1)
    for (i = 0; i < 2000; i++) {
        printf "D%d\t\tname%d\t", i, i > "documents.tsv"
        for (k = 0; k < 60; k++) printf "word%d ", int(4000 * rand() * rand()) > "documents.tsv"
        printf "\n" > "documents.tsv"
        printf "%d\tword%d word%d\tD%d\t\n", i, int(4000 * rand()), int(4000 * rand()), i > "clicks.tsv"
    }
}'
"$program" prepare --clicks clicks.tsv --documents documents.tsv --out shards --vocab 8000 --max-tokens 64 >prepare.log
steps=100
# One run, with a checkpoint every so many steps.
train() {
    rm -rf run
    "$program" coarse --out run --set data.shards=shards --set data.max_tokens=64 --set model.layers=2 \
        --set model.hidden=128 --set model.heads=4 --set train.steps=$steps --set train.pack_tokens=2048 \
        --set train.packs_per_step=2 --set train.lr=1e-3 --set checkpoint.every_minutes=0 --set run.device=cpu \
        --set checkpoint.every_steps="$1" >run.log
}
# Its milliseconds, start and end included.
wall() {
    local begin end
    begin=$(date +%s%N)
    train "$1"
    end=$(date +%s%N)
    echo $(((end - begin) / 1000000))
}
for ((i = 0; i < repeats; i++)); do
    without=$(wall 0)
    with=$(wall 10)
    copies=$(sed -n 's/.*copied in \([0-9]*\) ms.*/\1/p' run/logs/rank-000.log | sort -n | tail -1)
    writes=$(sed -n 's/.*written in \([0-9]*\) ms.*/\1/p' run/logs/rank-000.log | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')
    size=$(du -sk run/checkpoints/step-0000100 | cut -f1)
    awk -v a="$without" -v b="$with" -v n=$((steps / 10)) -v c="$copies" -v w="$writes" -v kb="$size" 'BEGIN {
        extra = (b - a) / n
        printf "%d ms without, %d ms with %d checkpoints of %.1f MB (copy at most %d ms, write median %d ms): ", a, b, n, kb / 1024, c, w
        printf "%.0f ms each, %.3f %% of five minutes\n", extra, extra / 3000
    }'
done
