# shellcheck shell=bash
# Shared by the other scripts: installing what is missing, Open MPI's variables, durations. Sourced, not run.
#
# Besides Rust a build needs Open MPI with its headers (the `mpi` crate), libclang with clang's own
# headers (bindgen reads mpi.h with them), a C compiler and libc's headers (the `mpi` crate's shim,
# linking). It needs no C++ compiler, no CMake and no Python. The tests also need g++, which compiles the
# kernels and the software CUDA device that runs them without a GPU.

# The oldest Rust that can build this, from Cargo.toml.
rust_needed() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "${root:?}/Cargo.toml"; }

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# `37 s`, `4 min 05 s`
duration() {
    if (($1 < 60)); then echo "$1 s"; else printf '%d min %02d s\n' $(($1 / 60)) $(($1 % 60)); fi
}

# Does any file match one of the patterns?
any_file() { compgen -G "$1" >/dev/null || { shift && (($#)) && any_file "$@"; }; }

# Another MPI's mpirun has other options.
has_open_mpi() { [[ $(mpirun --version 2>/dev/null) == *"Open MPI"* ]]; }

has_libc_headers() { echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1; }

# The library and its headers: without the headers bindgen finds no stddef.h.
has_libclang() {
    if [[ -n ${LIBCLANG_PATH:-} ]]; then return 0; fi
    any_file '/usr/lib/llvm-*/lib/libclang*.so*' '/usr/lib/*/libclang*.so*' '/usr/lib*/libclang*.so*' &&
        any_file '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' '/usr/lib*/clang/*/include/stddef.h'
}

# Debian's names of the packages that are missing, one a line.
missing_packages() {
    if ! has_open_mpi; then echo openmpi-bin; fi
    if ! command -v mpicc >/dev/null; then echo libopenmpi-dev; fi
    if ! has_libclang; then echo libclang-dev; fi
    if ! command -v cc >/dev/null; then
        echo gcc
        echo libc6-dev
    elif ! has_libc_headers; then
        echo libc6-dev
    fi
}

# apt_install PACKAGE...
apt_install() {
    local as_root=()
    command -v apt-get >/dev/null ||
        fail "there is no apt-get here. Install what Debian calls $* and start again."
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            fail "neither root nor sudo. As root, run: apt-get install -y $*    and start again."
        as_root=(sudo)
    fi
    echo "installing $*"
    # A fresh machine's package lists are empty or old. Nobody is there to answer questions.
    "${as_root[@]}" apt-get update -q ||
        fail "apt-get update failed: see its message above."
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" ||
        fail "apt-get could not install $*: see its message above."
}

check_rust() {
    local cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin needed found
    if ! command -v cargo >/dev/null && [[ -x $cargo_bin/cargo ]]; then PATH=$cargo_bin:$PATH; fi
    needed=$(rust_needed)
    command -v cargo >/dev/null ||
        fail "there is no cargo. Install Rust $needed or newer (https://rustup.rs) and start again."
    found=$(rustc --version | cut -d' ' -f2)
    if [[ $(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -n 1) != "$needed" ]]; then
        fail "Rust $found is too old: $needed or newer is needed (rustup update)."
    fi
    echo "Rust $found"
}

# Everything that a build and a run need.
install_missing() {
    local packages=()
    check_rust
    mapfile -t packages < <(missing_packages)
    if ((${#packages[@]} == 0)); then
        echo "Open MPI, libclang and a C compiler are there"
        return
    fi
    apt_install "${packages[@]}"
    mapfile -t packages < <(missing_packages)
    if ((${#packages[@]})); then
        fail "still missing after installation: ${packages[*]}"
    fi
}

# g++ with its sanitizers, for the software CUDA device of the tests.
install_test_compiler() {
    if command -v g++ >/dev/null; then return; fi
    apt_install g++
    command -v g++ >/dev/null || fail "still missing after installation: g++"
}

# rustfmt and clippy, which a minimal Rust comes without.
install_rust_tools() {
    if cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; then return; fi
    if command -v rustup >/dev/null; then
        echo "installing rustfmt and clippy"
        rustup component add rustfmt clippy
    else
        fail "rustfmt or clippy is missing: install them beside cargo (with rustup: rustup component add rustfmt clippy)."
    fi
}

# cargo's target directory, wherever its configuration puts it.
target_directory() {
    cargo metadata --manifest-path "${root:?}/Cargo.toml" --format-version 1 --no-deps |
        sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p'
}

open_mpi_variables() {
    # mpirun refuses to run as root unless told twice; containers often have no other user.
    if ((EUID == 0)); then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    # Open MPI 4 copies between ranks of one machine with a right to trace that containers withhold, and
    # then prints an error for every message. Shared memory always works.
    export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
}
