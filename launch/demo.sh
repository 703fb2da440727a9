#!/usr/bin/env bash
# From nothing to a measured comparison: installs what is missing, builds the program, makes a query log
# and a test collection from Debian's package index, pre-trains a small BERT, coarse-tunes it in three
# ways, fine-tunes and ranks with each, and ends with a table and a report.
#
#     launch/demo.sh                     the study of configs/debian-tiny.toml
#     CTUNE_DEMO=short launch/demo.sh    the same with few steps, to see that everything runs
#     CTUNE_DEMO_DIR=DIR launch/demo.sh  works in DIR/data and DIR/runs (default: this repository)
#     RANKS=4 launch/demo.sh             ranks (default: 2, or 1 on one core)
#
# Needs a network and apt (Debian, Ubuntu or a relative), and root or sudo if something is missing.
# Started again, it skips what is complete: a step is complete if its output is there and was made by
# the same command from the same config and data.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"

work=${CTUNE_DEMO_DIR:-$root}
cores=$(nproc)
ranks=${RANKS:-$((cores < 2 ? 1 : 2))}
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "RANKS=$ranks: must be a number of at least 1"
case ${CTUNE_DEMO:-full} in
    full)
        runs=runs/debian
        train=()
        study=()
        ;;
    short)
        runs=runs/debian-short
        train=(--set train.steps=100 --set run.log_every=20)
        study=(--set train.steps=20 --set fine.folds=3 --set fine.depth=20
            --set 'experiment.train_topics=[0, 16]')
        ;;
    *) fail "CTUNE_DEMO=$CTUNE_DEMO: must be full or short" ;;
esac
data=data/debian
start=$SECONDS
step_number=0

say() { printf '\n== %d/10 %s\n' $((++step_number)) "$1"; }

# A checksum of everything so far that the next steps depend on; each command is added to it.
history=0
remember() { history=$(printf '%s\n' "$history" "$@" | cksum | tr ' ' '-'); }

# step TITLE OUTPUT ARGUMENTS...: runs `$launcher ctune-dist ARGUMENTS`, unless a complete OUTPUT with
# the same history is there.
launcher=()
step() {
    local title=$1 output=$2 begun=$SECONDS
    local stamp=${output%/*}/.done/${output##*/}
    shift 2
    say "$title"
    remember "$@"
    if [[ -e $output && -f $stamp && $(<"$stamp") == "$history" ]]; then
        echo "skipped: $output is there, made by the same command from the same config and data"
        return
    fi
    rm -f "$stamp"
    echo "\$ ${launcher[*]} ctune-dist $*"
    "${launcher[@]}" "$program" "$@"
    [[ -e $output ]] || fail "the step \"$title\" succeeded, but there is no $output"
    mkdir -p "${stamp%/*}"
    echo "$history" >"$stamp"
    echo "-- $title: $(duration $((SECONDS - begun)))"
}

# Fetches Debian 12's index into the data folder and leaves the machine's own apt alone. Older releases of
# Ubuntu lack Debian's current keys, so https is trusted for the index. It is text; no package is installed.
fetch_debian_index() {
    local at=$PWD/$data
    echo "this is not Debian: fetching the index of Debian 12 into $data/lists"
    if [[ ! -s /etc/ssl/certs/ca-certificates.crt ]]; then apt_install ca-certificates; fi
    mkdir -p "$at/lists/partial" "$at/cache/archives/partial"
    echo "deb [trusted=yes] ${CTUNE_DEBIAN_MIRROR:-https://mirrors.kernel.org/debian} bookworm main" >"$at/debian.list"
    apt-get -q update -o Dir::Etc::SourceList="$at/debian.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$at/lists" -o Dir::Cache="$at/cache" -o Acquire::Languages=en \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
    # apt-get succeeds even if it fetched nothing.
    any_file "$at/lists/*_Packages*" || fail "the index of Debian could not be fetched: see apt's message above."
}

say "what is needed to build and run"
begun=$SECONDS
install_missing
echo "-- $(duration $((SECONDS - begun)))"

say "build (the first time takes some minutes)"
begun=$SECONDS
(cd "$root" && cargo build --release)
program=$(target_directory)/release/ctune-dist
echo "-- build: $(duration $((SECONDS - begun)))"

mkdir -p "$work"
cd "$work"
mkdir -p "$data" "$runs"
echo "working in $work: $data, $runs"
# The config's paths start here. The short run is the same study in another folder.
config=$runs/debian-tiny.toml
sed "s#runs/debian/#$runs/#" "$root/configs/debian-tiny.toml" >"$config"

sample=(sample debian --out "$data")
# Topics are made from debtags, which other distributions' indices do not have.
if [[ $(sed -n 's/^ID=//p' /etc/os-release) != debian ]]; then
    sample+=(--lists "$data/lists")
    if [[ ! -e $data/source.json ]]; then fetch_debian_index; fi
fi
step "a query log and a test collection from Debian's package index" "$data/source.json" \
    "${sample[@]}"
remember "$(cat "$data"/{clicks,documents,topics}.tsv "$data"/{qrels,candidates}.txt | cksum)"

step "vocabulary and tokenised shards, without the test queries" "$data/shards" \
    prepare --clicks "$data/clicks.tsv" --documents "$data/documents.tsv" --out "$data/shards" \
    --vocab 8000 --max-tokens 64 --exclude-topics "$data/topics.tsv"

step "first stage: BM25" "$data/bm25.run" \
    retrieve --documents "$data/documents.tsv" --only "$data/candidates.txt" --topics "$data/topics.tsv" \
    --out "$data/bm25.run" --depth 50

remember "$(cksum <"$config")"
launcher=("$root/launch/local.sh" "$ranks")

step "pre-training: MLM on the documents alone" "$runs/pretrain/model" \
    pretrain --config "$config" "${train[@]}"

step "coarse-tuning: MLM + QDPP on the query log" "$runs/coarse/model" \
    coarse --config "$config" "${train[@]}"

step "coarse-tuning with MLM only" "$runs/coarse-mlm/model" \
    coarse --config "$config" --set objective.qdpp=0 --out "$runs/coarse-mlm" "${train[@]}"

step "coarse-tuning with QDPP only" "$runs/coarse-qdpp/model" \
    coarse --config "$config" --set objective.mlm=0 --out "$runs/coarse-qdpp" "${train[@]}"

# Always started: it keeps finished tasks itself, and the demo ends with its table.
say "the study: arms x folds x numbers of training topics"
begun=$SECONDS
echo "\$ ${launcher[*]} ctune-dist experiment --config $config ${study[*]}"
"${launcher[@]}" "$program" experiment --config "$config" "${study[@]}"
echo "-- the study: $(duration $((SECONDS - begun)))"

printf '\ndone in %s on %s rank(s), %s core(s)\n' "$(duration $((SECONDS - start)))" "$ranks" "$cores"
echo "report: $PWD/$runs/experiment/report.html"
