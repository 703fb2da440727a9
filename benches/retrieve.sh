#!/usr/bin/env bash
# BM25 at the size of a TREC collection: time and memory of `retrieve` for 250 topics, 1,000 documents each, over
# 500,000 documents of random syllables (`sample synthetic`), indexing included.
#
#     benches/retrieve.sh FOLDER [DOCUMENTS] [WORDS]
#
# WORDS is the mean length of a document (default 300; the default writes about 1 GB of text). The line goes to the
# terminal; keep it in benches/results/.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?name a folder to work in}
documents=${2:-500000}
words=${3:-300}
program=${CTUNE_PROGRAM:-$root/target/release/ctune-dist}
[[ -x $program ]] || (cd "$root" && cargo build --release --quiet)

data=$folder/synthetic-$documents-$words
if [[ ! -f $data/documents.tsv ]]; then
    "$program" sample synthetic --out "$data" --pairs 1000 --documents "$documents" --words "$words" --seed 1 >&2
fi
cut -f 1,2 "$data/clicks.tsv" | awk -F '\t' '!seen[$1]++' | head -250 >"$data/topics.tsv"
echo "machine: $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)"
echo "$documents documents, $(du -m "$data/documents.tsv" | cut -f 1) MB; $(wc -l <"$data/topics.tsv") topics"
python3 - "$program" "$data" <<'PYTHON'
import resource, subprocess, sys, time
program, data = sys.argv[1:]
start = time.perf_counter()
subprocess.run([program, "retrieve", "--documents", f"{data}/documents.tsv", "--topics", f"{data}/topics.tsv",
                "--out", f"{data}/bm25.run", "--depth", "1000"], check=True)
wall = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"retrieve: {wall:.1f} s wall, {used.ru_utime + used.ru_stime:.1f} s CPU, {used.ru_maxrss / 1024:.0f} MB at most")
PYTHON
awk '{ count[$1]++ } END { for (t in count) { n++; sum += count[t] } print n " topics in the run, " sum / n " documents each" }' \
    "$data/bm25.run"
