#!/usr/bin/env bash
# Preparing a corpus at scale: time, memory and share of the bare tokeniser's speed at one, two and four times a
# size, then what opening, reading and sharing the shards costs and what the loader takes of a training step. All
# text is synthetic (`sample synthetic`).
#
#     benches/corpus.sh FOLDER [PAIRS] [DOCUMENTS] [TOKENIZER]
#
# PAIRS and DOCUMENTS (default 2000000 and 300000) are the largest size; queries are half of the pairs and
# documents have 1,000 words on average, so the default writes 3.3 GB of text and 0.5 GB of shards below FOLDER.
# TOKENIZER: a folder with tokenizer.json or vocab.txt; without one, a vocabulary of 30,522 pieces is trained on
# the smallest size (not timed). One line a measurement; keep them in benches/results/.
#
# PIECES="make 4 2 1 access steps" are the pieces, each of a few minutes at most: what was made is not made again,
# so they may be run one by one. `orcas`, which is not among them, prepares a log of ORCAS' true counts (18.8 M pairs,
# 10.4 M queries, 3.2 M documents, these of 8 words): what memory the ids and pairs of all of ORCAS take.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?name a folder to work in}
pairs=${2:-2000000}
documents=${3:-300000}
tokenizer=${4:-}
pieces=${PIECES:-make 4 2 1 access steps}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

(cd "$root" && cargo build --release --quiet)
# As a test it shares the build of the library, which `cargo bench` would make anew; cargo prints its path.
bench=$(cd "$root" && cargo test --release --bench corpus --no-run 2>&1 | sed -n 's/.*(\(.*corpus-[0-9a-f]*\)).*/\1/p')
[[ -n $bench ]] || {
    echo "corpus.sh: the bench could not be built" >&2
    exit 1
}
bench=$(cd "$root" && realpath "$bench")
program=$(cd "$root" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/ctune-dist

make_all() {
    for part in 4 2 1; do
        "$program" sample synthetic --out "$folder/size-$part" --pairs $((pairs / part)) \
            --documents $((documents / part)) --seed 1 >&2
    done
    if [[ ! -d $folder/tokenizer ]]; then
        if [[ -z $tokenizer ]]; then
            "$program" prepare --clicks "$folder/size-4/clicks.tsv" --documents "$folder/size-4/documents.tsv" \
                --out "$folder/vocabulary" >&2
            tokenizer=$folder/vocabulary
        fi
        mkdir "$folder/tokenizer"
        cp "$tokenizer/tokenizer.json" "$folder/tokenizer"
        rm -rf "$folder/vocabulary"
    fi
}

# `prepare` and then the bare tokeniser on a folder's text.
prepare() {
    rm -rf "$1/tokenizer"
    cp -r "$folder/tokenizer" "$1/tokenizer"
    "$bench" prepare "$1" | grep RESULT
}

# The loader's share of the milliseconds of a real step, the first left out, for a small and for a larger model.
steps() {
    local layers hidden heads
    while read -r layers hidden heads; do
        local run=$folder/run-$layers
        rm -rf "$run"
        "$program" coarse --out "$run" --set data.shards="$folder/size-1/shards" --set data.max_tokens=256 \
            --set model.layers="$layers" --set model.hidden="$hidden" --set model.heads="$heads" \
            --set train.pack_tokens=4096 --set train.packs_per_step=2 --set train.steps=12 --set run.log_every=4 \
            --set checkpoint.every_minutes=0 --device cpu >&2
        awk -v shape="$layers x $hidden" '
            function field(name) {
                match($0, "\"" name "\":[0-9.e-]+")
                return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3)
            }
            NR > 1 { wait += field("loader_ms"); all += field("step_ms"); steps++ }
            END { printf "RESULT %s: loader %.3f ms of %.0f ms a step, %.4f %%\n", shape, wait / steps, all / steps, 100 * wait / all }
        ' "$run/metrics.jsonl"
    done <<<"2 128 2
6 384 12"
}

echo "machine: $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(uname -r)"
for piece in $pieces; do
    case $piece in
        make) make_all ;;
        4 | 2 | 1) prepare "$folder/size-$piece" ;;
        access)
            "$bench" access "$folder/size-1/shards" | grep RESULT
            "$bench" share "$folder/size-1/shards" 1 | grep RESULT
            "$bench" share "$folder/size-1/shards" 8 | grep RESULT
            ;;
        steps) steps ;;
        orcas)
            "$program" sample synthetic --out "$folder/orcas" --pairs 18823602 --queries 10405342 --documents 3213835 \
                --words 8 --seed 1 >&2
            prepare "$folder/orcas"
            "$bench" access "$folder/orcas/shards" | grep RESULT
            ;;
        *)
            echo "corpus.sh: no piece $piece: make 4 2 1 access steps orcas" >&2
            exit 2
            ;;
    esac
done
