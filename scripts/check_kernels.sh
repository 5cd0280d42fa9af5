#!/bin/sh
# Compiles every kernels/*.cu for every GPU generation and shows what ptxas made of each kernel:
# registers per thread, static shared memory, bytes spilled to local memory.
#
# usage: scripts/check_kernels.sh [FILE.cu ...]        default: all of kernels/
# exit:  0 fine   1 a file does not compile, a kernel spills or asks for over 255 registers
#        2 no toolkit
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
nvcc=${CUDA_HOME:-$root/.cuda/nvidia/cu13}/bin/nvcc
if [ ! -x "$nvcc" ]; then
  echo "no nvcc at $nvcc" >&2
  echo "hint: scripts/cuda-toolkit.sh fetches it" >&2
  exit 2
fi

[ $# -gt 0 ] || set -- "$root"/kernels/*.cu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

failed=0
for file in "$@"; do
  name=$(basename "$file" .cu)
  if ! "$nvcc" -fatbin -std=c++17 -O3 -Xptxas -v -o "$work/$name.fatbin" \
    -gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_89,code=sm_89 \
    -gencode=arch=compute_90,code=sm_90 "$file" >"$work/$name.log" 2>&1; then
    cat "$work/$name.log" >&2
    failed=1
    continue
  fi
  # Warnings concern whoever reads this; the rest is in the table.
  grep -iE 'warning' "$work/$name.log" >&2 || true
  cat "$work/$name.log" >>"$work/all"
done

[ -f "$work/all" ] && awk '
  BEGIN { print_row("kernel", "arch", "registers", "shared", "spilled") }
  # A function that was not inlined is described after the kernel that calls it and counts too.
  /Compiling entry function/ {
    split($0, quoted, "\047")
    kernel = quoted[2]
    arch = quoted[4]
    spilled = 0
  }
  /bytes spill stores/ {
    for (i = 2; i < NF; i++) if ($i == "bytes" && $(i + 1) == "spill") spilled += $(i - 1)
  }
  /Used [0-9]+ registers/ {
    registers = shared = 0
    for (i = 1; i < NF; i++) {
      if ($i == "Used") registers = $(i + 1)
      if ($i ~ /^[0-9]+$/ && $(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
    }
    print_row(kernel, arch, registers, shared, spilled)
    built++
    if (!(kernel in seen)) { seen[kernel] = 1; kernels++ }
    if (spilled > 0 || registers > 255) bad++
  }
  function print_row(a, b, c, d, e) { printf "%-36s %-6s %9s %9s %9s\n", a, b, c, d, e }
  END {
    printf "%d kernels, %d builds: %d spill or exceed 255 registers\n", kernels, built, bad
    exit built == 0 || bad > 0
  }' "$work/all" || failed=1
exit $failed
