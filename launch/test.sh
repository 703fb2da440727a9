#!/usr/bin/env bash
# Installs what is missing and runs every check: format, lints, tests, documentation.
#
# Everything is built in the release profile: tests train small models, which take too long without
# optimisation, and the demo's program is built on the way.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/install.sh
source "$root/launch/install.sh"
cd "$root"
start=$SECONDS
# Tests that leave something out, for want of data, of a package or of a tool, say so in this file.
if [[ -z ${CTUNE_SKIPPED:-} ]]; then
    CTUNE_SKIPPED=$(mktemp)
    trap 'rm -f "$CTUNE_SKIPPED"' EXIT
fi
export CTUNE_SKIPPED

check() {
    local title=$1 begun=$SECONDS
    shift
    printf '\n== %s: %s\n' "$title" "$*"
    "$@" || fail "$title failed; the checks after it were not run."
    echo "== $title passed in $(duration $((SECONDS - begun)))"
}

echo "== what is needed"
install_missing
install_test_compiler
install_rust_tools
open_mpi_variables

check "format" cargo fmt --check
check "lints" cargo clippy --release --all-targets -- -D warnings
check "tests" cargo test --release
check "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

printf '\nall checks passed in %s' "$(duration $((SECONDS - start)))"
skipped=$(sort -u "$CTUNE_SKIPPED")
if [[ -n $skipped ]]; then
    printf ', %d SKIPPED, not checked:\n%s' "$(wc -l <<<"$skipped")" "$skipped"
fi
echo
