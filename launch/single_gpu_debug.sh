#!/usr/bin/env bash
# One GPU, one process, no mpirun, all checks on: looks at the machine, compares every kernel with the CPU
# engine, then trains 50 steps in f32 and 50 in bf16, comparing them with the reference model on the way.
# Needs the shards that launch/demo.sh makes.
#
#     launch/single_gpu_debug.sh                        configs/single-gpu-debug.toml
#     launch/single_gpu_debug.sh CONFIG [--set K=V ...]  another config
#     CTUNE_DEVICE=cpu launch/single_gpu_debug.sh        the same on the CPU
#
# The arithmetic of the default: 2 x 512 tokens a step, weights 1.5 M. In f32 with gradient and two
# moments that is 24 MB, in bf16 with a master copy 27 MB; activations under 20 MB. A step takes
# milliseconds, a checked one seconds: the reference runs on the CPU.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
cd "$root"

config=${1:-configs/single-gpu-debug.toml}
if (($#)); then shift; fi
device=${CTUNE_DEVICE:-cuda}
install_missing
cargo build --release --quiet

target/release/ctune-dist doctor --device "$device"
for precision in f32 bf16; do
    echo "== 50 checked steps in $precision"
    target/release/ctune-dist coarse --config "$config" --device "$device" \
        --set "train.precision=$precision" --out "runs/single-gpu-debug-$precision" "$@"
done
echo "all checks passed"
