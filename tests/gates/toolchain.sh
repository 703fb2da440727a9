#!/usr/bin/env bash
# NVIDIA's compilers without a card, a driver or root: the pinned wheels in a virtual environment, for the
# gates on the kernels (tests/gates/kernels.py). 470 MB on disk; 6 s with a warm package cache.
#
#   tests/gates/toolchain.sh [FOLDER]     default target/toolchain; prints the folder of its python
#
# Exit status: 0 there (a second call does nothing), 69 no package index can be reached, 1 anything else.
# The metapackage pins the compilers together: single wheels drift apart and then disagree on headers.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${1:-${CARGO_TARGET_DIR:-$root/target}/toolchain}
wheels=(
    'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl,nvrtc,cuobjdump,nvdisasm]==13.2.1' # nvcc, NVRTC, ptxas, cuobjdump
    'cuxray==0.6.0'                                                          # bank conflicts from a cubin
)
unreachable='Temporary failure in name resolution|Name or service not known|NewConnectionError|ConnectTimeout|'
unreachable+='ReadTimeout|Network is unreachable|Connection refused|Connection reset|ProxyError|RemoteDisconnected'

mkdir -p "$folder"
exec 9>"$folder.lock" # two gates at once make it once
flock 9
if [[ $(cat "$folder/wheels" 2>/dev/null) != "${wheels[*]}" ]]; then
    python3 -m venv --clear "$folder"
    log=$folder/pip.log
    if ! "$folder/bin/pip" install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
        "${wheels[@]}" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        if grep -q -E "$unreachable" "$log"; then
            echo "toolchain.sh: no package index can be reached" >&2
            exit 69
        fi
        echo "toolchain.sh: the wheels cannot be installed; pip's words are in $log" >&2
        exit 1
    fi
    echo "${wheels[*]}" >"$folder/wheels"
fi
echo "$folder/bin"
