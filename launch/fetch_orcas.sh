#!/usr/bin/env bash
# Downloads what coarse-tuning on ORCAS needs from its publisher's addresses: the click log and the MS MARCO
# documents (version 1) that its ids name. Broken downloads go on where they stopped; a file is only
# called complete when its md5 is the published one.
#
#     launch/fetch_orcas.sh DIR            the log and the documents, packed:    8.8 GB
#     launch/fetch_orcas.sh DIR --log      the log alone:                         0.33 GB
#     launch/fetch_orcas.sh DIR --unpack   also unpacks the documents:           31 GB in all
#
# `ctune-dist prepare` reads the packed files; unpacked documents are mapped and parsed on all cores, and with
# their lookup file only the clicked ones are read.
set -euo pipefail

base=https://msmarco.z22.web.core.windows.net/msmarcoranking
# name  md5 (- where none is published)  size
log="orcas.tsv.gz 4b9350bf997c5c0eaa562be81c796981 330MB"
documents=(
    "msmarco-docs.tsv.gz 103b19e21ad324d8a5f1ab562425c0b4 8.5GB"
    "msmarco-docs-lookup.tsv.gz - 100MB"
)

fail() {
    echo "fetch_orcas.sh: $1" >&2
    exit 1
}

dir=${1:-}
what=${2:-}
[[ -n $dir && $dir != -* ]] || fail "name a folder: launch/fetch_orcas.sh DIR [--log | --unpack]"
case $what in
    '' | --unpack) files=("$log" "${documents[@]}") ;;
    --log) files=("$log") ;;
    *) fail "$what: must be --log or --unpack" ;;
esac
command -v curl >/dev/null || fail "curl is missing"
command -v md5sum >/dev/null || fail "md5sum is missing"

cat <<'NOTICE'
ORCAS (Craswell et al. 2020) and MS MARCO are for NON-COMMERCIAL RESEARCH ONLY, provided by Microsoft "as is";
see https://microsoft.github.io/msmarco/ORCAS and https://microsoft.github.io/msmarco/Datasets before you use or
pass on anything made from them.
NOTICE
echo "to be fetched into $dir:"
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
cd "$dir"
for file in "${files[@]}"; do
    read -r name md5 _ <<<"$file"
    if [[ -f $name ]]; then
        echo "$name: complete"
        continue
    fi
    echo "$name: fetching"
    # -C - goes on behind what is there; a server that refuses a range of a complete file says 416.
    curl --fail --location --retry 10 --retry-delay 5 --retry-all-errors -C - -o "$name.part" "$base/$name" ||
        fail "$name: the download broke off; start this script again, it goes on where it stopped"
    if [[ $md5 == - ]]; then
        gzip -t "$name.part" || fail "$name: damaged; remove $dir/$name.part and start again"
    else
        echo "$md5  $name.part" | md5sum --check --quiet ||
            fail "$name: its md5 is not $md5; remove $dir/$name.part and start again"
    fi
    mv "$name.part" "$name"
done
if [[ $what == --unpack && ! -f msmarco-docs.tsv ]]; then
    echo "msmarco-docs.tsv: unpacking"
    gzip -dc msmarco-docs.tsv.gz >msmarco-docs.tsv.part
    mv msmarco-docs.tsv.part msmarco-docs.tsv
    gzip -dc msmarco-docs-lookup.tsv.gz >msmarco-docs-lookup.tsv
fi
echo "done; next: ctune-dist prepare --config configs/orcas-bert-base.toml"
