#!/usr/bin/env bash
# Preparing a corpus at scale: time, memory and share of the bare tokeniser's speed at one, two and four times a
# size, then what opening, reading and sharing the shards costs. All text is synthetic (`sample synthetic`).
#
#     benches/corpus.sh FOLDER [PAIRS] [DOCUMENTS] [TOKENIZER]
#
# PAIRS and DOCUMENTS (default 2000000 and 300000) are the largest size; queries are half of the pairs and
# documents have 1,000 words on average, so the default writes 1.8 GB of text and 0.3 GB of shards below FOLDER.
# TOKENIZER: a folder with tokenizer.json or vocab.txt; without one, a vocabulary of 30,522 pieces is trained on
# the smallest size (not timed). The table goes to the terminal; keep it in benches/results/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?name a folder to work in}
pairs=${2:-2000000}
documents=${3:-300000}
tokenizer=${4:-}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

(cd "$root" && cargo build --release --quiet)
# The path of the bench's binary is in the one line that cargo prints about it.
bench=$(cd "$root" && cargo bench --bench corpus --no-run 2>&1 | sed -n 's/.*(\(.*corpus-[0-9a-f]*\)).*/\1/p')
[[ -n $bench ]] || {
    echo "corpus.sh: the bench could not be built" >&2
    exit 1
}
bench=$(cd "$root" && realpath "$bench")
program=$(cd "$root" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/ctune-dist

echo "machine: $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(uname -r)"
for part in 4 2 1; do
    at=$folder/size-$part
    "$program" sample synthetic --out "$at" --pairs $((pairs / part)) --documents $((documents / part)) --seed 1 >&2
    if [[ -z $tokenizer ]]; then
        "$program" prepare --clicks "$at/clicks.tsv" --documents "$at/documents.tsv" --out "$at/vocabulary" >&2
        tokenizer=$folder/tokenizer
        rm -rf "$tokenizer"
        mkdir "$tokenizer"
        cp "$at/vocabulary/tokenizer.json" "$at/vocabulary/vocab.txt" "$at/vocabulary/tokenizer_config.json" "$tokenizer"
        rm -rf "$at/vocabulary"
    fi
    rm -rf "$at/tokenizer"
    cp -r "$tokenizer" "$at/tokenizer"
    "$bench" prepare "$at" | grep RESULT
    if [[ $part != 1 ]]; then rm -rf "$at"; fi
done
"$bench" access "$folder/size-1/shards" | grep RESULT
"$bench" share "$folder/size-1/shards" 1 | grep RESULT
"$bench" share "$folder/size-1/shards" 8 | grep RESULT
