#!/usr/bin/env bash
# What checkpoints cost at a real size: MiniLM's 6 layers x 384 with V 30522 in f32 (weights and two moments are some 270 MB),
# trained with and without a checkpoint every ten steps, in turn. The extra time of a checkpoint (the copy, for which
# training waits, and what the writing thread takes from it) as a share of five minutes is the cost of
# `checkpoint.every_minutes = 5`.
#
#     benches/checkpoint.sh [PAIRS]       default 4 pairs of runs; needs a release build and a machine at rest
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
pairs=${1:-4}
program=${CTUNE_PROGRAM:-$(target_directory)/release/ctune-dist}
[[ -x $program ]] || fail "no $program: cargo build --release"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
mkdir tokenizer
awk 'BEGIN {
    n = split("[PAD] [UNK] [CLS] [SEP] [MASK] a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9", first, " ")
    for (i = 1; i <= n; i++) print first[i] > "tokenizer/vocab.txt"
    for (i = n; i < 30522; i++) printf "word%d\n", i > "tokenizer/vocab.txt"
    srand(1)
    for (i = 0; i < 1000; i++) {
        printf "D%d\t\tword%d\t", i, 100 + i > "documents.tsv"
        for (k = 0; k < 250; k++) printf "word%d ", 100 + int(30000 * rand() * rand()) > "documents.tsv"
        printf "\n" > "documents.tsv"
        printf "%d\tword%d word%d\tD%d\t\n", i, 100 + int(30000 * rand()), 100 + int(30000 * rand()), i > "clicks.tsv"
    }
}'
"$program" prepare --clicks clicks.tsv --documents documents.tsv --out shards --tokenizer tokenizer --max-tokens 250 \
    >prepare.log
steps=35 every=10 checkpoints=3 never=1000
# Milliseconds of one run, start and end included, with a checkpoint every so many steps. Both sides save once at the end.
wall() {
    local begin end
    rm -rf run
    begin=$(date +%s%N)
    "$program" coarse --out run --set data.shards=shards --set data.max_tokens=256 --set model.layers=6 \
        --set model.hidden=384 --set model.heads=12 --set train.steps=$steps --set train.pack_tokens=2048 \
        --set train.lr=1e-4 --set checkpoint.every_minutes=0 --set checkpoint.every_steps="$1" --set run.device=cpu >run.log
    end=$(date +%s%N)
    echo $(((end - begin) / 1000000))
}
wall $never >/dev/null # files and pages are warm for both sides
for ((i = 0; i < pairs; i++)); do
    # which side goes first alternates, so that a drift of the machine falls on both
    if ((i % 2)); then with=$(wall $every) without=$(wall $never); else without=$(wall $never) with=$(wall $every); fi
    echo "$without ms without, $with ms with $checkpoints checkpoints: $(((with - without) / checkpoints)) ms each" | tee -a pairs
done
wall $every >/dev/null
sed -n 's/.*\(copied in [0-9]* ms, written in [0-9]* ms\).*/\1/p' run/logs/rank-000.log
echo "$(du -sb run/checkpoints/step-0000030 | cut -f1) bytes a checkpoint, $(sed -n 's/^\([0-9]*\) parameters.*/\1/p' run.log) parameters"
sed 's/.*: \([-0-9]*\) ms each/\1/' pairs | sort -n | awk '{ v[NR] = $1 } END {
    median = NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2
    printf "median %.0f ms a checkpoint, %.3f %% of five minutes\n", median, median / 3000
}'
