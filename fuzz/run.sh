#!/usr/bin/env bash
# Builds the fuzz targets, writes their seeds and runs each target for a while, one after the other.
#
#     fuzz/run.sh [SECONDS [TARGET...]]       default: all targets, 60 seconds each
#
# Needs `cargo install cargo-fuzz`, a nightly toolchain and a C++ compiler. Prints a line per target: executions, edges reached,
# inputs kept. Inputs that crash, hang for 20 s or take more than 2 GB stay in artifacts/TARGET/, and the script
# ends with 1. CARGO_TARGET_DIR moves the build, 2 GB, elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
seconds=${1:-60}
shift || true
target=${CARGO_TARGET_DIR:-target}

# All crates in the project's versions.
[[ -f Cargo.lock ]] || cp ../Cargo.lock .
mapfile -t all < <(sed -n 's/^name = "\([a-z0-9_]*\)"$/\1/p' Cargo.toml)
(($# > 0)) || set -- "${all[@]}"
(cd .. && CTUNE_FUZZ_SEEDS=$PWD/fuzz/corpus CARGO_TARGET_DIR='' \
    cargo test --release --quiet --test tests -- readers::every_reader >/dev/null)
cargo +nightly fuzz build --target-dir "$target" 2>&1 | grep -v '^warning' | tail -1

# Files are small, so they go to memory if possible: a disk would be the slowest part.
if [[ -w /dev/shm ]]; then export TMPDIR=/dev/shm; fi
failed=0
for name in "$@"; do
    mkdir -p "corpus/$name" "artifacts/$name"
    log=artifacts/$name/log
    "$target/x86_64-unknown-linux-gnu/release/$name" "corpus/$name" -artifact_prefix="artifacts/$name/" \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1 >"$log" 2>&1 ||
        { failed=1 && echo "$name FAILED, see fuzz/$log"; }
    awk -v name="$name" '
        / cov: / { for (i = 1; i < NF; i++) { if ($i == "cov:") edges = $(i + 1); if ($i == "corp:") kept = $(i + 1) } }
        /number_of_executed_units/ { runs = $2 }
        /peak_rss_mb/ { rss = $2 }
        END { printf "%-12s %9d executions %6d edges  %12s kept  %5d MB\n", name, runs, edges, kept, rss }' "$log"
done
exit $failed
