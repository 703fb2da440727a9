#!/usr/bin/env bash
# The training step of a 6 x 384 BERT (12 heads, FFN 1536, V 30522) on this machine's CPU, in f32 and in bf16:
# ours and PyTorch's (bf16: autocast) in turn, so that both see the same machine. Packs of 2,048 tokens: 8 sequences of 256.
#
#     benches/step.sh [PYTHON] [REPEATS]     PYTHON has torch and transformers (default: python3; 3 repeats)
#
# The log is made up (Zipf words, every pair at its full 256 tokens), so that both sides compute on the
# same shapes. Prints tokens/s of each run and the medians. Needs a release build.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${1:-python3}
repeats=${2:-3}
program=${CARGO_TARGET_DIR:-$root/target}/release/ctune-dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"$python" "$root/benches/peers/made_up_log.py"
"$program" prepare --clicks clicks.tsv --documents documents.tsv --out shards --vocab 30522 --max-tokens 256 >/dev/null
ours() {
    rm -rf run # a finished run would not be repeated
    "$program" coarse --out run --set data.shards=shards --set data.max_tokens=256 --set model.layers=6 \
        --set model.hidden=384 --set model.heads=12 --set train.pack_tokens=2048 --set train.packs_per_step=1 \
        --set train.steps=12 --set train.lr=1e-4 --set "train.precision=$1" --device cpu | sed -n 's/.* \([0-9]*\) tokens\/s.*/\1/p'
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
peer() { "$python" "$root/benches/peers/bert_step.py" --steps 8 "$@" | sed -n 's/.*"tokens_per_s": *\([0-9]*\).*/\1/p'; }
for ((i = 0; i < repeats; i++)); do
    ours f32 | tee -a ours
    ours bf16 | tee -a ours_bf16
    peer | tee -a hugging_face
    peer --bf16 | tee -a hugging_face_bf16
    peer --masked-head | tee -a masked_head
    peer --masked-head --bf16 | tee -a masked_head_bf16
done >/dev/null
for side in ours ours_bf16 hugging_face hugging_face_bf16 masked_head masked_head_bf16; do
    printf '%-18s median %6s tokens/s   runs: %s\n' "$side" "$(median <"$side")" "$(tr '\n' ' ' <"$side")"
done
