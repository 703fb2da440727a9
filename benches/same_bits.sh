#!/usr/bin/env bash
# Compares two builds of the program for equal digits: what a change promises that is to change no result.
#
#     benches/same_bits.sh OLD NEW [PATTERN]     two programs; PATTERN (an extended regular expression)
#                                                runs only the combinations whose names match
#
# Each combination is one command that both programs run, at the same time and each in its own folder, on
# the same small log that each of them has prepared. Compared are every digit of every line of `metrics.jsonl` but the
# fields that tell times, the bytes of the final weights, and the runs that `fine` writes. Prints a
# line a combination and ends with status 1 when any differs.
#
# The CUDA engine runs on the software device of the tests; both programs load the same libraries:
# those of CTUNE_SOFTGPU, else the newest that the tests have built (they are built when there are none).
# CTUNE_PLANT holds arguments that only NEW gets, as "--set seed=8": a difference that must be found.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
(($# == 2 || $# == 3)) || fail "usage: benches/same_bits.sh OLD NEW [PATTERN]"
declare -A program=([old]=$(realpath "$1") [new]=$(realpath "$2"))
pattern=${3:-}
read -r -a plant <<<"${CTUNE_PLANT:-}"
open_mpi_variables
export SOFTGPU_STRICT=1
export SOFTGPU_NCCL_TIMEOUT=600 # for machines with other work
# Times are not compared, so nobody needs the processor to himself: ranks give it up while they wait.
export OMPI_MCA_mpi_yield_when_idle=1
work=$(mktemp -d)
: >"$work/jobs"
# A job that is under way when this script is ended ends with it.
trap 'xargs -r kill <"$work/jobs" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 143' INT TERM
begun=$SECONDS
equal=0
different=0

# ---- the software device -------------------------------------------------------------------------
libraries() {
    local built
    built=$(ls -td "$1"/*/libcuda.so 2>/dev/null | head -n 1 || true)
    dirname "${built:-.}"
}
# Finds them when the first command needs them.
find_software_device() {
    local built
    if [[ -n ${softgpu:-} ]]; then return; fi
    built=$(target_directory)/softgpu
    softgpu=${CTUNE_SOFTGPU:-$(libraries "$built")}
    if [[ ! -e $softgpu/libcuda.so ]]; then
        (cd "$root" && cargo test --release --test tests -- --exact softgpu::device::kernels_compile_and_run >&2)
        softgpu=$(libraries "$built")
    fi
}
export XDG_CACHE_HOME=$work/cache

# ---- running both --------------------------------------------------------------------------------
# start SIDE DEVICE RANKS OUT ARGUMENTS...: one command of the program in the side's folder.
start() {
    local side=$1 device=$2 ranks=$3 out=$4 command=()
    shift 4
    cd "$work/$side"
    if ((ranks > 1)); then command=(mpirun --oversubscribe -n "$ranks"); fi
    command+=("${program[$side]}" "$@" --out "$out")
    if [[ $device != none ]]; then command+=(--device "$device"); fi
    if [[ $device == cuda ]]; then export LD_LIBRARY_PATH=$softgpu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}; fi
    if [[ $side == new && $device != none ]]; then command+=("${plant[@]}"); fi
    echo "$BASHPID" >>"$work/jobs"
    exec "${command[@]}" >"$out.log" 2>&1 </dev/null
}

# Why a command failed: the program's line or the software device's, else the last one.
reason() { grep -m 1 -E '^(ctune-dist|softgpu): ' "$1" || tail -n 1 "$1"; }

# both DEVICE RANKS OUT ARGUMENTS...: both programs; the first line of what went wrong.
both() {
    local side status=0 pids=()
    : >"$work/jobs"
    for side in old new; do
        (start "$side" "$@") &
        pids+=($!)
    done
    for side in old new; do
        if ! wait "${pids[0]}"; then
            status=1
            echo "$side fails: $(reason "$work/$side/$3.log")"
        fi
        pids=("${pids[@]:1}")
    done
    : >"$work/jobs"
    return "$status"
}

# The first line of two metrics files that differs, and in which field.
first_difference() {
    awk '
        function fields(line, values,    parts, n, i, at) {
            delete values
            gsub(/^\{|\}$/, "", line)
            n = split(line, parts, /,"/)
            for (i = 1; i <= n; i++) {
                at = index(parts[i], "\":")
                key = substr(parts[i], 1, at - 1)
                gsub(/"/, "", key)
                if (key !~ /^(step_ms|loader_ms|exchange_ms|tokens_per_s|mfu|peak_share)$/)
                    values[key] = substr(parts[i], at + 2)
            }
        }
        FNR == NR { old[FNR] = $0; lines = FNR; next }
        {
            seen = FNR
            fields(old[FNR], a)
            fields($0, b)
            for (key in b) if (!(key in a)) a[key] = "absent"
            where = ""
            for (key in a) {
                if (!(key in b)) b[key] = "absent"
                if (a[key] != b[key] && (where == "" || key < where)) where = key
            }
            if (where != "") {
                print "step " a["step"] ", " where ": " a[where] " and " b[where]
                exit
            }
        }
        END { if (where == "" && seen != lines) print lines " and " seen + 0 " lines" }
    ' "$1" "$2"
}

# differences OUT: what differs between the two folders of this name, one a line.
differences() {
    local file found
    while read -r file; do
        if [[ ! -e $work/old/$file || ! -e $work/new/$file ]]; then
            echo "$file: written by one of them only"
        elif [[ $file == *.jsonl ]]; then
            found=$(first_difference "$work/old/$file" "$work/new/$file")
            if [[ -n $found ]]; then echo "$file: $found"; fi
        elif ! cmp -s "$work/old/$file" "$work/new/$file"; then
            echo "$file: $(cmp "$work/old/$file" "$work/new/$file" 2>&1 | sed 's/.* differ: //')"
        fi
    done < <(cd "$work" && find old/"$1" new/"$1" -path '*/checkpoints' -prune -o -type f \( -name metrics.jsonl \
        -o -name model.safetensors -o -name '*.run' -o -name run.txt -o -name folds.json -o -name '*.tok' \
        -o -name 'clicks*.bin' -o -name tokenizer.json \) -print | sed 's/^[a-z]*\///' | sort -u)
}

count() { (cd "$work" && find old/"$1" -name metrics.jsonl -exec cat {} + | wc -l); }

# compare NAME DEVICE RANKS OUT ARGUMENTS...
compare() {
    local name=$1 found
    shift
    # a log that both need, and a model that others start from, are made whatever is asked for
    if [[ -n $pattern && ! $name =~ $pattern && ! $3 =~ ^(shards|bm25\.run|cpu-f32-1)$ ]]; then return; fi
    if [[ $1 == cuda ]]; then find_software_device; fi
    if found=$(both "$@"); then
        found=$(differences "$3")
    else
        found=${found:-was ended from outside}
    fi
    if [[ -z $found && $1 != none && $(count "$3") == 0 ]]; then found="neither writes metrics.jsonl"; fi
    if [[ -z $found ]]; then
        equal=$((equal + 1))
        printf 'equal    %-44s %4d lines\n' "$name" "$(count "$3")"
    else
        different=$((different + 1))
        printf 'DIFFERS  %-44s %s\n' "$name" "$(head -n 1 <<<"$found")"
    fi
}

# ---- the log, its shards, a first stage -----------------------------------------------------------
mkdir -p "$work/old" "$work/new"
"${program[old]}" sample synthetic --out "$work/old/log" --pairs 600 --queries 300 --documents 200 --words 50 \
    --seed 3 >/dev/null
# Twelve topics of the log's own queries; what they clicked is relevant.
(
    cd "$work/old/log"
    awk -F '\t' '!($1 in topic) && n < 12 { topic[$1]; n++; print $1 "\t" $2 > "topics.tsv" }
        $1 in topic { print $1 " 0 " $3 " 1" > "qrels.txt" }' clicks.tsv
)
cp -r "$work/old/log" "$work/new/log"
compare "prepare" none 1 shards prepare --clicks log/clicks.tsv --documents log/documents.tsv --vocab 600 \
    --max-tokens 48
compare "retrieve" none 1 bm25.run retrieve --documents log/documents.tsv --topics log/topics.tsv --depth 30

# ---- coarse --------------------------------------------------------------------------------------
# sets KEY=VALUE...: as `--set` arguments, into `set_arguments`.
sets() {
    local pair
    set_arguments=()
    for pair in "$@"; do set_arguments+=(--set "$pair"); done
}
model=(model.layers=2 model.hidden=64 model.heads=2 model.intermediate=128)
plan=(seed=7 data.shards=shards data.max_tokens=48 train.steps=20 train.pack_tokens=128 train.packs_per_step=4
    train.lr=2e-3 train.dropout=0.1 run.log_every=20)

# coarse NAME DEVICE PRECISION RANKS KEY=VALUE...
coarse() {
    local name=$1 device=$2 precision=$3 ranks=$4
    shift 4
    sets "${plan[@]}" "${model[@]}" train.precision="$precision" "$@"
    compare "coarse${name:+ $name}, $device $precision, $ranks" "$device" "$ranks" "${name:+${name// /-}-}$device-$precision-$ranks" \
        coarse "${set_arguments[@]}"
}

for device in cpu cuda; do
    for precision in f32 bf16; do
        for ranks in 1 2 4; do coarse "" "$device" "$precision" "$ranks"; done
    done
done
# variant NAME KEY=VALUE...: on the CPU in f32 and on the software device in bf16, on two ranks.
variant() {
    coarse "$1" cpu f32 2 "${@:2}"
    coarse "$1" cuda bf16 2 "${@:2}"
}
variant "without dropout" train.dropout=0
variant "recompute gelu-norm" train.recompute=gelu-norm
variant "recompute layer" train.recompute=layer
variant "sharding" train.sharding=optimizer
variant "lamb" train.optimizer=lamb
variant "lamb sharding" train.optimizer=lamb train.sharding=optimizer
variant "MLM alone" objective.qdpp=0
variant "QDPP alone" objective.mlm=0
variant "whole words" objective.whole_word=true
variant "frozen" 'train.freeze=["embeddings","layer.0"]' train.layer_decay=0.9
variant "validated" data.validation_pairs=60 train.validate_every=7
variant "in-batch negatives" objective.negatives=in-batch
variant "heads of 16" model.heads=4
coarse "sharding" cuda f32 4 train.sharding=optimizer
coarse "recompute layer" cuda f32 1 train.recompute=layer
coarse "recompute layer" cpu bf16 4 train.recompute=layer
coarse "sums in bf16" cuda bf16 2 train.reduce=bf16
coarse "without graphs" cuda bf16 1 run.graph=false
coarse "heads of 64" cuda bf16 1 model.heads=1

# ---- pretrain and fine ---------------------------------------------------------------------------
sets "${plan[@]}" "${model[@]}"
compare "pretrain, cpu" cpu 2 pretrain-cpu pretrain "${set_arguments[@]}"

# fine NAME DEVICE PRECISION RANKS KEY=VALUE...
fine() {
    local name=$1 device=$2 precision=$3 ranks=$4
    shift 4
    sets "${plan[@]}" model.path=cpu-f32-1/model data.documents=log/documents.tsv data.topics=log/topics.tsv \
        data.qrels=log/qrels.txt data.run=bm25.run train.pack_tokens=1024 train.packs_per_step=2 fine.folds=3 \
        fine.depth=20 fine.negatives=2 train.precision="$precision" "$@"
    compare "fine $name, $device $precision, $ranks" "$device" "$ranks" "fine-${name// /-}-$device-$precision-$ranks" \
        fine "${set_arguments[@]}"
}
# These settings draw no passage: FirstP takes the first, and `train_passages = "all"` takes all. Settings
# that draw one (MaxP with `train_passages = "one"`) may differ from builds up to 20f62c2, whose draw of
# passages shared its random numbers' purpose (6) with the choice of held-out pairs.
passages=(fine.passage_words=12 fine.passage_stride=8 fine.passages=3)
lora='fine.lora={rank=8,alpha=16,targets=["query","value","output"]}'
for on in "cpu f32 1" "cuda bf16 2"; do
    read -r device precision ranks <<<"$on"
    fine "whole documents" "$device" "$precision" "$ranks" fine.start=qdpp-head
    fine "first passages" "$device" "$precision" "$ranks" "${passages[@]}"
    fine "all passages" "$device" "$precision" "$ranks" "${passages[@]}" fine.aggregate=max-p \
        fine.train_passages=all
    fine "lora" "$device" "$precision" "$ranks" "$lora"
    fine "early stopping" "$device" "$precision" "$ranks" fine.validate_every=4 fine.patience=2
done
fine "lora" cuda f32 1 "$lora" train.recompute=layer
fine "all passages" cuda f32 1 "${passages[@]}" fine.aggregate=avg-p fine.train_passages=all fine.loss=listnet
fine "all passages" cpu bf16 2 "${passages[@]}" fine.aggregate=sum-p fine.train_passages=all fine.loss=hinge

echo "$equal equal, $different DIFFER, $(duration $((SECONDS - begun)))"
exit $((different > 0))
