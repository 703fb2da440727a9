#!/usr/bin/env bash
# Downloads what coarse-tuning on ORCAS needs from its publisher: the click log, and the MS MARCO documents
# (version 1) that it names. Broken downloads resume where they stopped. A file counts as complete only if
# its md5 is the published one.
#
#     launch/fetch_orcas.sh DIR            the log and the documents, compressed: 8.8 GB
#     launch/fetch_orcas.sh DIR --log      the log alone:                         0.33 GB
#     launch/fetch_orcas.sh DIR --unpack   also unpacks the documents:            31 GB in all
#
# CTUNE_YES=1 asks no question. CTUNE_ORCAS_URL is the address of a mirror's folder. If a mirror compressed the
# files again, their sums differ; CTUNE_ORCAS_MD5 then names a file with md5sum's lines for them.
#
# `ctune-dist prepare` reads the compressed files. Unpacked documents are mapped and parsed on all cores, and
# with their lookup file only the clicked ones are read.
set -euo pipefail

base=${CTUNE_ORCAS_URL:-https://msmarco.z22.web.core.windows.net/msmarcoranking}
# name  md5  size; from https://microsoft.github.io/msmarco/ORCAS and .../TREC-Deep-Learning-2019
log="orcas.tsv.gz 4b9350bf997c5c0eaa562be81c796981 330MB"
documents=(
    "msmarco-docs.tsv.gz 103b19e21ad324d8a5f1ab562425c0b4 8.4GB"
    "msmarco-docs-lookup.tsv.gz abe791080058a3d3161b213cfea36a45 40MB"
)
# Attempts at one file before the script gives up.
attempts=10

fail() {
    echo "fetch_orcas.sh: $1" >&2
    exit 1
}

# The sum that a file must have.
sum_of() {
    local name=$1 published=$2
    if [[ -z ${CTUNE_ORCAS_MD5:-} ]]; then
        echo "$published"
    else
        awk -v name="$name" '$2 == name || $2 == "*" name { print $1 }' "$CTUNE_ORCAS_MD5"
    fi
}

has_sum() {
    [[ $(md5sum <"$1") == "$2 "* ]]
}

# One attempt, from where the last one stopped.
fetch() {
    if command -v curl >/dev/null; then
        curl --fail --location --continue-at - --output "$2" "${quiet[@]}" "$1"
    else
        wget --continue --tries=1 --output-document="$2" "${quiet[@]}" "$1"
    fi
}

dir=${1:-}
what=${2:-}
[[ -n $dir && $dir != -* ]] || fail "name a folder: launch/fetch_orcas.sh DIR [--log | --unpack]"
case $what in
    '' | --unpack) files=("$log" "${documents[@]}") ;;
    --log) files=("$log") ;;
    *) fail "$what: must be --log or --unpack" ;;
esac
command -v md5sum >/dev/null || fail "md5sum is missing (package coreutils)"
# Progress bars on a terminal only.
quiet=()
if command -v curl >/dev/null; then
    [[ -t 2 ]] || quiet=(--silent --show-error)
elif command -v wget >/dev/null; then
    [[ -t 2 ]] || quiet=(--no-verbose)
else
    fail "neither curl nor wget is installed; install one of them"
fi

cat <<'NOTICE'
ORCAS (Craswell et al. 2020) and MS MARCO are for NON-COMMERCIAL RESEARCH ONLY, provided by Microsoft "as is";
see https://microsoft.github.io/msmarco/ORCAS and https://microsoft.github.io/msmarco/Datasets before you use or
pass on anything made from them.
NOTICE
echo "to be fetched into $dir from $base:"
for file in "${files[@]}"; do
    read -r name _ size <<<"$file"
    echo "  $name  $size"
done
if [[ $what == --unpack ]]; then echo "  msmarco-docs.tsv, unpacked  22GB"; fi
if [[ ${CTUNE_YES:-} != 1 && -t 0 ]]; then
    read -r -p "go on? [y/N] " answer
    [[ $answer == [yY]* ]] || exit 0
fi

mkdir -p "$dir"
for file in "${files[@]}"; do
    read -r name md5 _ <<<"$file"
    md5=$(sum_of "$name" "$md5")
    [[ -n $md5 ]] || fail "$name: ${CTUNE_ORCAS_MD5:-} has no sum of it"
    part=$dir/$name.part
    if [[ -f $dir/$name ]]; then
        echo "$name: complete"
        continue
    fi
    echo "$name: fetching"
    for ((attempt = 1; ; attempt++)); do
        if fetch "$base/$name" "$part"; then break; else status=$?; fi
        # If a killed script had fetched the whole file, the server refuses to continue after its end.
        if [[ -s $part ]] && has_sum "$part" "$md5"; then break; fi
        # curl 22 and wget 8: the server answered with an error; curl 33: it cannot resume.
        [[ $status != 22 && $status != 8 && $status != 33 ]] ||
            fail "$name: the server refuses it (see above); if $part exists, remove it and start again"
        ((attempt < attempts)) ||
            fail "$name: the download broke off $attempts times; start this script again, it resumes where it stopped"
        sleep $((attempt - 1))
    done
    has_sum "$part" "$md5" || fail "$name: its md5 is not $md5; remove $part and start again"
    mv "$part" "$dir/$name"
done
if [[ $what == --unpack ]]; then
    for name in msmarco-docs msmarco-docs-lookup; do
        [[ -f $dir/$name.tsv ]] && continue
        echo "$name.tsv: unpacking"
        gzip -dc "$dir/$name.tsv.gz" >"$dir/$name.tsv.part"
        mv "$dir/$name.tsv.part" "$dir/$name.tsv"
    done
fi
echo "done; next: ctune-dist prepare --config configs/orcas-bert-base.toml"
