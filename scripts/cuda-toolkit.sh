#!/bin/sh
# Puts the CUDA toolkit that the kernels are compiled with into .cuda at the root of the repository:
# NVIDIA's own wheels from PyPI (104 MB, 271 MB unpacked), no driver and no root needed. Where it is
# already there, nothing happens. .cargo/config.toml and scripts/nvcc find it there.
#
# usage: scripts/cuda-toolkit.sh
set -eu

# The metapackage pins its parts. Named one by one they would not be: pip takes the newest nvvm for
# an older nvcc. 13.0 is the newest whose PTX a driver of the 580 series reads.
wheels='cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2'
release='release 13.0'

root=$(cd "$(dirname "$0")/.." && pwd)
toolkit=$root/.cuda
nvcc=$toolkit/nvidia/cu13/bin/nvcc

if [ -x "$nvcc" ] && "$nvcc" --version 2>/dev/null | grep -q "$release"; then
  echo "already there: $nvcc ($release)"
  exit 0
fi

if ! python3 -m pip --version >/dev/null 2>&1; then
  echo "python3 -m pip does not run; it is what fetches the toolkit's wheels" >&2
  echo "hint: install python3-pip, or export CUDA_HOME=<a CUDA 13.0 toolkit> instead" >&2
  exit 1
fi

# Unpacked beside its place and moved there whole: an interrupted run leaves no half toolkit.
partial=$toolkit/partial
trap 'rm -rf "$partial"' EXIT
trap 'exit 1' HUP INT TERM
rm -rf "$partial"
echo "fetching $wheels"
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
  --no-compile --target "$partial" "$wheels"
"$partial/nvidia/cu13/bin/nvcc" --version | grep -q "$release"
rm -rf "$toolkit/nvidia"
mv "$partial/nvidia" "$toolkit/nvidia"
echo "installed: $nvcc ($release)"

# Cargo does not see that nvcc has appeared under an unchanged CUDA_HOME, and would keep candle's
# kernels that were left out without it. Each call cleans one profile.
if command -v cargo >/dev/null && cd "$root" && cargo clean --quiet -p candle-kernels -p bantam &&
  cargo clean --quiet --release -p candle-kernels -p bantam; then
  echo "cleaned: candle-kernels and bantam, to be built anew with this nvcc"
else
  echo "now run: cargo clean -p candle-kernels -p bantam, and the same with --release" >&2
fi
