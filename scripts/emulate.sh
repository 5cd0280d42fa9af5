#!/bin/sh
# Runs a program that uses CUDA on a machine that has none: builds the emulated driver and libraries
# (crates/kernels-emu) and points the program at them.
#
#   scripts/emulate.sh target/release/bantam compress model out --compute cuda
#   scripts/emulate.sh cargo test --features cuda
#   scripts/emulate.sh --asan cargo test --release -p kernels-emu
#
# --asan builds the libraries with AddressSanitizer, which then sees every access of a kernel
# outside an allocation. The program itself is not built anew.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)

asan=
if [ "${1-}" = --asan ]; then
  asan=1
  shift
fi
if [ $# -eq 0 ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
fi

# Builds the emulation and prints the folder of its libraries. Of cargo only errors are shown.
build() {
  cargo build --quiet --release --manifest-path "$root/Cargo.toml" -p kernels-emu >&2
  "${CARGO_TARGET_DIR:-$root/target}/release/kernels-emu"
}

if [ -z "$asan" ]; then
  CUDA_LIB_PATH=$(build)
else
  CUDA_LIB_PATH=$(
    CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}/asan
    CXXFLAGS="-fsanitize=address,bounds -fno-sanitize-recover=bounds -fno-omit-frame-pointer"
    export CARGO_TARGET_DIR CXXFLAGS
    build
  )
  # Memory that a process holds at its end is no concern here; the rest of the process is not built
  # for the sanitizer, which has to be loaded before everything else.
  export ASAN_OPTIONS="detect_leaks=0${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
  preload="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
fi
export CUDA_LIB_PATH

[ -z "$asan" ] && exec "$@"
case "${1##*/}" in
  # Only what cargo runs is to load the sanitizer, not cargo and the compiler.
  cargo)
    runner=$(mktemp)
    trap 'rm -f "$runner"' EXIT
    printf '#!/bin/sh\nLD_PRELOAD="%s" exec "$@"\n' "$preload" >"$runner"
    chmod +x "$runner"
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    env "CARGO_TARGET_${host}_RUNNER=$runner" "$@"
    ;;
  *) LD_PRELOAD=$preload exec "$@" ;;
esac
