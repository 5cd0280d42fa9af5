#!/bin/sh
# Packs what scripts/gpu_check.sh needs on a machine that has a GPU and no Rust: the program, the
# suites `cuda` and `linalg` and the bench `gpu`, built here, stripped and compressed.
#
# usage: scripts/gpu_bundle.sh [--emulated] [FOLDER]        default: target/gpu-bundle
#
# --emulated packs a build without candle's kernels too: good for the emulator, which has its own,
# and useless on a GPU.
#
# exit:  0 packed   1 the build failed or is too large   2 the kernels could not be compiled
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

emulated=
if [ "${1-}" = --emulated ]; then
  emulated=1
  shift
fi
folder=${1:-target/gpu-bundle}
limit_mib=60

refuse() {
  echo "$1" >&2
  echo "hint: $2" >&2
  exit 2
}

# candle-kernels is not built again when an nvcc appears: without one its kernels are empty files.
expect_kernels() { # FOLDER-OF-PTX
  [ -z "$emulated" ] || return 0
  for kernels in "$1"/*.ptx; do
    case "${kernels##*/}" in
      quantized.ptx) ;; # scripts/nvcc always leaves it out
      *) [ -s "$kernels" ] || refuse "candle's kernels were built without nvcc: $kernels is empty" \
        "cargo clean --release -p candle-kernels" ;;
    esac
  done
}

if [ -z "$emulated" ]; then
  nvcc=${CUDA_HOME:-$root/.cuda/nvidia/cu13}/bin/nvcc
  [ -x "$nvcc" ] || refuse "no nvcc at $nvcc" "scripts/cuda-toolkit.sh fetches it"
  # What the last build left is looked at before minutes are spent on the next.
  last=$(ls -td target/release/build/candle-kernels-*/out 2>/dev/null | head -n 1)
  [ -z "$last" ] || expect_kernels "$last"
fi

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
trap 'exit 1' HUP INT TERM
build="--release --features cuda --message-format=json-render-diagnostics"
# shellcheck disable=SC2086 # options are words
cargo build $build >"$messages"
# shellcheck disable=SC2086
cargo test --no-run $build --test cuda --test linalg --bench gpu >>"$messages"

# Prints `NAME PATH` of each program, and `kernels FOLDER` of what candle-kernels made.
built=$(python3 - "$messages" <<'END'
import json
import sys

found = {}
for line in open(sys.argv[1], encoding="utf-8"):
    message = json.loads(line)
    if message["reason"] == "build-script-executed" and "candle-kernels" in message["package_id"]:
        found["kernels"] = message["out_dir"]
    if message["reason"] == "compiler-artifact" and message["executable"]:
        found[message["target"]["name"]] = message["executable"]
for name in ("bantam", "cuda", "linalg", "gpu", "kernels"):
    print(name, found[name])
END
)
expect_kernels "$(echo "$built" | sed -n 's/^kernels //p')"

rm -rf "$folder"
mkdir -p "$folder"
echo "$built" | grep -v '^kernels ' | while read -r name path; do
  strip -o "$folder/$name" "$path"
  xz -6 "$folder/$name"
done
commit=$(git rev-parse HEAD)
[ -z "$(git status --porcelain)" ] || commit=$commit-dirty
echo "$commit" >"$folder/commit"
# Where the suites will look for their fixtures.
echo "$root" >"$folder/root"

(cd "$folder" && wc -c -- *)
size=$(cat "$folder"/* | wc -c)
if [ "$size" -gt $((limit_mib << 20)) ]; then
  echo "$folder is larger than $limit_mib MiB" >&2
  exit 1
fi
