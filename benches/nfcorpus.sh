#!/usr/bin/env bash
# The study on a real collection with a real pre-trained model: NFCorpus' dev topics are the small set to fine-tune
# on, its test topics are measured, and the query log for coarse-tuning is its training topics with their links
# beside MedQuAD's consumer-health questions with their answers. `configs/nfcorpus.toml` says what is trained.
#
#     benches/nfcorpus.sh NFCORPUS MEDQUAD MODEL FOLDER [RANKS]
#
# NFCORPUS: folder with train|dev|test.titles.queries, *.2-1-0.qrel and *.docs (Boteva et al. 2016). MEDQUAD: pairs.tsv,
# `id, focus, type, question, answer` separated by tabs (Ben Abacha and Demner-Fushman 2019). MODEL: a BERT as a
# Hugging Face folder. All that is made is below FOLDER; started again, it goes on where it stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
nfcorpus=$(cd "${1:?name the folder of NFCorpus}" && pwd)
medquad=$(realpath "${2:?name the file of MedQuAD pairs}")
model=$(cd "${3:?name the folder of a model}" && pwd)
folder=${4:?name a folder to work in}
ranks=${5:-2}
mkdir -p "$folder/data"
cd "$folder"
program=${CTUNE_PROGRAM:-$(cd "$root" && cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/ctune-dist}
PATH=$(dirname "$program"):$PATH
ln -sfn "$nfcorpus" data/nfcorpus
ln -sfn "$medquad" data/medquad.tsv
ln -sfn "$model" data/model
config=$root/configs/nfcorpus.toml

# A topic or document of several splits counts once.
cat data/nfcorpus/{dev,test}.titles.queries | awk -F '\t' '!seen[$1]++' >data/topics.tsv
cat data/nfcorpus/{dev,test}.2-1-0.qrel >data/qrels.txt
cat data/nfcorpus/*.docs | awk -F '\t' '!seen[$1]++' >data/documents.tsv

# One fold: train on the dev topics but every fifth, which validate; test on the test topics.
ids() { cut -f1 "$1" | awk -v keep="$2" '(NR % 5 == 0) == (keep == "fifth") || keep == "all"' | sed 's/.*/"&"/' | paste -sd, -; }
dev=data/nfcorpus/dev.titles.queries
printf '{"s1": {"train_qids": [%s], "predict": {"dev": [%s], "test": [%s]}}}\n' \
    "$(ids $dev others)" "$(ids $dev fifth)" "$(ids data/nfcorpus/test.titles.queries all)" >data/folds.json

# once FILE COMMAND...: runs what has not made FILE yet.
once() {
    local made=$1
    shift
    if [[ -e $made ]]; then echo "skipped: $made is there"; else "$@"; fi
}
once data/shards/manifest.json ctune-dist prepare --config "$config" --out data/shards
# Its text has no endings to take off: stop words are gone and stemming costs .003 nDCG@5.
once data/bm25.run ctune-dist retrieve --documents data/documents.tsv --format tsv --topics data/topics.tsv \
    --out data/bm25.run --depth 30 --no-stem
train() { "$root/launch/local.sh" "$ranks" ctune-dist "$@" --config "$config"; }
train coarse
train coarse --set objective.qdpp=0 --out runs/coarse-mlm
train coarse --set objective.mlm=0 --out runs/coarse-qdpp
train experiment
