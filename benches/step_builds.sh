#!/usr/bin/env bash
# The training step of two builds of the program on this machine's CPU, in turn, so that both see the same machine:
# a 6 x 384 BERT (12 heads, FFN 1536, V 30522) in packs of 2,048 tokens, in f32 and in bf16.
#
#     benches/step_builds.sh OLD NEW [TURNS]     two programs; 7 turns when not said
#
# A turn runs both, each first in every other turn. A run's time is the median of its steps after the first two. Prints
# the medians over turns, and the median of the turns' ratios: above 1, NEW is slower.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
(($# == 2 || $# == 3)) || {
    echo "usage: benches/step_builds.sh OLD NEW [TURNS]" >&2
    exit 2
}
declare -A program=([old]=$(realpath "$1") [new]=$(realpath "$2"))
turns=${3:-7}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 "$root/benches/peers/made_up_log.py"
"${program[new]}" prepare --clicks clicks.tsv --documents documents.tsv --out shards --vocab 30522 --max-tokens 256 >/dev/null

median() { sort -g | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

# step_ms SIDE PRECISION: milliseconds of a step.
step_ms() {
    rm -rf run # a finished run would not be repeated
    "${program[$1]}" coarse --out run --set data.shards=shards --set data.max_tokens=256 --set model.layers=6 \
        --set model.hidden=384 --set model.heads=12 --set train.pack_tokens=2048 --set train.packs_per_step=1 \
        --set train.steps=12 --set train.lr=1e-4 --set "train.precision=$2" --device cpu >/dev/null
    sed -n '3,$s/.*"step_ms":\([0-9.]*\).*/\1/p' run/metrics.jsonl | median
}

for precision in f32 bf16; do
    for ((turn = 0; turn < turns; turn++)); do
        order=(old new)
        if ((turn % 2)); then order=(new old); fi
        for side in "${order[@]}"; do
            declare "ms_$side=$(step_ms "$side" "$precision")"
        done
        awk -v old="$ms_old" -v new="$ms_new" 'BEGIN { print new / old }' >>"$precision.ratio"
        echo "$ms_old" >>"$precision.old"
        echo "$ms_new" >>"$precision.new"
    done
    printf '%-5s old %8.1f ms   new %8.1f ms   new / old, median of %d turns: %.4f   turns: %s\n' "$precision" \
        "$(median <"$precision.old")" "$(median <"$precision.new")" "$turns" "$(median <"$precision.ratio")" \
        "$(sort -g "$precision.ratio" | tr '\n' ' ')"
done
