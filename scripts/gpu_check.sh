#!/bin/bash
# Everything that only a GPU can show, in one command on a machine that has one: conformance,
# agreement with the CPU, a model larger than the memory it may take, speed beside PyTorch, memory
# errors. Needs a bundle of scripts/gpu_bundle.sh and python3; no Rust.
#
# usage: scripts/gpu_check.sh BUNDLE
#
#   SMALL=1      tiny sizes, for the emulator: CUDA_LIB_PATH=... SMALL=1 scripts/gpu_check.sh BUNDLE
#   TOTAL=470    seconds after which no step begins, nor goes on
#   RESULTS=DIR  where <device>.json goes  [default: benches/results; with SMALL target/gpu-check]
#   LOG=FILE     everything that the steps printed               [default: target/gpu-check.log]
#
# CUDA's libraries are looked for in CUDA_LIB_PATH, CUDA_HOME, /usr/local/cuda and in nvidia/*/lib
# of the python3 on PATH, which is where PyTorch brings them.
#
# exit:  0 every step passed or was skipped   1 a step failed   2 usage
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
bundle=$(cd "${1-}" 2>/dev/null && pwd)
if [ $# -ne 1 ] || [ ! -f "$bundle/commit" ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
  exit 2
fi
cd "$root" || exit 2

small=${SMALL-}
total=${TOTAL:-470}
results=${RESULTS:-$([ -n "$small" ] && echo target/gpu-check || echo benches/results)}
log=${LOG:-target/gpu-check.log}
mkdir -p "$results" "$(dirname "$log")"
: >"$log"
work=$(mktemp -d)
placed=
trap 'rm -rf "$work"; [ -z "$placed" ] || rm -f "$placed"' EXIT
trap 'exit 1' HUP INT TERM

# The suites look for fixtures where they were built. Where this is another place, a link stands in.
built=$(cat "$bundle/root")
unreachable=
if [ ! -e "$built" ]; then
  if mkdir -p "$(dirname "$built")" && ln -s "$root" "$built"; then
    placed=$built
  else
    unreachable=1
  fi
fi

calib=tests/fixtures/pycode.calib.txt
test=tests/fixtures/pycode.test.txt
export bundle small work calib test

# ---- steps: a function each, which exits 0 (passed), 77 (skipped) or otherwise (failed); its last
# line says why

unpack() {
  cp -r "$bundle" "$work/bundle" && cd "$work/bundle" || return
  # xz is not everywhere; Python's lzma is.
  python3 - *.xz <<'END' || return
import lzma, pathlib, sys
for packed in map(pathlib.Path, sys.argv[1:]):
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
END
  chmod +x bantam cuda linalg gpu
}

bantam() { "$work/bundle/bantam" "$@"; }

# The first of two numbers for the emulator, the second for a GPU.
few() { if [ -n "$small" ]; then echo "$1"; else echo "$2"; fi; }

system() {
  bantam inspect --system --json >"$work/system.json" || return
  python3 - "$work/system.json" <<'END'
import json, sys
found = json.load(open(sys.argv[1]))
print(json.dumps(found, indent=2))
names = ", ".join(gpu["name"] for gpu in found["devices"])
print(names or sys.exit(f"no GPU: {found.get('problem')}"))
END
}

suite() { # NAME FILTER...
  local name=$1
  shift
  "$work/bundle/$name" "$@"
}

# A value of a JSON file.
value() { # FILE KEY
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"
}

# Whether a number on the GPU is that on the CPU, but for a tolerance in absolute terms or (with %)
# in relative ones.
close() { # WHAT CPU GPU TOLERANCE
  python3 - "$@" <<'END'
import sys
what, cpu, gpu, tolerance = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
allowed = float(tolerance[:-1]) / 100 * abs(cpu) if tolerance.endswith("%") else float(tolerance)
print(f"{what} {cpu:.10g}, on the GPU {100 * (gpu - cpu) / cpu:+.4f} % (allowed {tolerance})")
sys.exit(not abs(gpu - cpu) <= allowed)
END
}

# Bytes that the largest step of a rank changes: eight rows and columns of the widest linear, bf16.
rank_step() { # MODEL
  python3 - "$1" <<'END'
import json, pathlib, sys
sides = 0
for file in pathlib.Path(sys.argv[1]).glob("*.safetensors"):
    with file.open("rb") as data:
        header = json.loads(data.read(int.from_bytes(data.read(8), "little")))
    shapes = [t["shape"] for name, t in header.items() if ".layers." in name]
    sides = max([sides] + [sum(shape) for shape in shapes if len(shape) == 2])
print(8 * 2 * sides)
END
}

perplexity() { # MODEL DEVICE OPTION...
  local model=$1 on=$2
  shift 2
  bantam eval "$model" --text "$test" --window 256 --windows "$(few 2 16)" --compute "$on" --json "$@" \
    >"$work/eval.json" || return
  value "$work/eval.json" perplexity
}

agreement() { # FIXTURE KEEP
  local model=tests/fixtures/$1 keep=$2 on failed=0
  declare -A before after bytes
  for on in cpu cuda; do
    before[$on]=$(perplexity "$model" $on) || return
    bantam compress "$model" --keep "$keep" --text "$calib" --window 256 --compute $on --json \
      --windows "$(few 2 32)" -o "$work/$1-$on" >"$work/$1-$on.json" || return
    bytes[$on]=$(value "$work/$1-$on.json" weight_bytes_out) || return
    after[$on]=$(perplexity "$work/$1-$on" $on) || return
  done
  {
    close "perplexity" "${before[cpu]}" "${before[cuda]}" 0.5% || failed=1
    close "compressed bytes" "${bytes[cpu]}" "${bytes[cuda]}" "$(rank_step "$model")" || failed=1
    close "compressed perplexity" "${after[cpu]}" "${after[cuda]}" 0.5% || failed=1
  } >"$work/compared"
  paste -s -d ';' "$work/compared"
  return $failed
}

generation() { # FIXTURE
  local text
  # Of its factors, and token by token.
  text=$(bantam generate "$work/$1-cuda" --prompt 'def main():' --max-tokens "$(few 4 48)" \
    --compute cuda) || return
  echo "$text"
  text=${text#'def main():'}
  [ -n "${text//[[:space:]]/}" ] || { echo "nothing but the prompt"; return 1; }
  echo "${#text} characters"
}

# A stack that either made, read by the other at 0.6 of its size, and a few tokens from it.
stacks() { # FIXTURE
  local model=tests/fixtures/$1 on other failed=0 budget text
  declare -A whole part
  for on in cpu cuda; do
    bantam compress "$model" --method bitstack --levels 4 --rank 16 --text "$calib" --window 256 \
      --windows "$(few 2 32)" --compute $on --json -o "$work/$1-stack-$on" >"$work/stack.json" || return
    budget=$(($(value "$work/stack.json" weight_bytes_out) * 6 / 10))
    other=$([ $on = cpu ] && echo cuda || echo cpu)
    whole[$on]=$(perplexity "$work/$1-stack-$on" $on) || return
    part[$on]=$(perplexity "$work/$1-stack-$on" $other --budget $budget) || return
  done
  text=$(bantam generate "$work/$1-stack-cuda" --budget $budget --prompt 'def main():' \
    --max-tokens "$(few 2 48)" --compute cuda) || return
  echo "$text"
  {
    close "perplexity of a stack" "${whole[cpu]}" "${whole[cuda]}" 0.5% || failed=1
    close "of 0.6 of it, read by the other" "${part[cuda]}" "${part[cpu]}" 1% || failed=1
  } >"$work/compared"
  paste -s -d ';' "$work/compared"
  return $failed
}

have_torch() {
  python3 -c 'import torch, tokenizers, safetensors' 2>/dev/null ||
    { echo "PyTorch, tokenizers or safetensors is missing"; return 77; }
}

make_block() {
  [ -z "$small" ] || { ln -s "$root/tests/fixtures/pycode-llama" "$work/block" && return; }
  have_torch || return
  python3 scripts/random_checkpoint.py "$work/block" --hidden 4096 --intermediate 14336 --layers 1 \
    --heads 32 --kv-heads 8 --vocab 4096
}

bench() {
  local block=()
  [ -e "$work/block" ] && block=(--block "$work/block")
  "$work/bundle/gpu" --bench ${small:+--small} "${block[@]}" >"$work/bench.json"
}

peers() {
  local block=()
  [ -e "$work/block" ] && block=(--block "$work/block")
  python3 scripts/gpu_peers.py ${small:+--small} "${block[@]}" >"$work/peers.json"
  case $? in
    0) ;;
    3) return 77 ;;
    *) return 1 ;;
  esac
}

# 1.7 GB of weights in 1.4 GB of memory.
larger() {
  local model=$work/large limit=$((1400 * 1000 * 1000)) watcher status
  if [ -n "$small" ]; then
    # Not larger than the limit, but held to it.
    model=tests/fixtures/pycode-llama limit=$((700 * 1000 * 1000))
  else
    have_torch || return
    python3 scripts/random_checkpoint.py "$model" --layers 16 \
      --tokenizer tests/fixtures/pycode-llama || return
  fi
  echo "$limit" >"$work/limit"
  if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0 >"$work/used-before"
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -i 0 -lms 50 >"$work/used" &
    watcher=$!
  fi
  bantam compress "$model" --keep 0.8 --text "$calib" --windows "$(few 2 16)" \
    --window "$(few 64 512)" --compute cuda --device-memory "$limit" -v -o "$work/large-smaller"
  status=$?
  [ -z "${watcher-}" ] || kill "$watcher"
  return $status
}

larger_memory() {
  [ -s "$work/used" ] || { echo "no nvidia-smi to watch the memory"; return 77; }
  python3 - "$work/used" "$work/used-before" "$work/limit" <<'END'
import sys
numbers = lambda file: [int(line) for line in open(file) if line.strip().isdigit()]
used, before, limit = numbers(sys.argv[1]), numbers(sys.argv[2])[0], numbers(sys.argv[3])[0]
peak = (max(used) - before) * 2**20
share = f"{100 * peak / limit:.1f} % of the {limit} allowed"
print(f"{peak} bytes at the peak of {len(used)} looks, {share}")
sys.exit(peak > 1.05 * limit)
END
}

sanitizer() { # TOOL FILTER...
  local tool=$1 found
  shift
  found=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) ||
    { echo "no compute-sanitizer"; return 77; }
  "$found" --tool "$tool" --error-exitcode 9 "$work/bundle/cuda" --test-threads 1 "$@"
}

# ---- running them

export -f unpack bantam few system suite value close rank_step perplexity agreement generation \
  stacks have_torch make_block bench peers larger larger_memory sanitizer
export root

# Runs a step for at most LIMIT seconds, and no longer than there is time in all.
step() { # NAME LIMIT FUNCTION ARGUMENT...
  local name=$1 limit=$2 left=$((total - SECONDS)) started=$EPOCHREALTIME short=
  local output=$work/output-$1 status seconds verdict why
  shift 2
  [ -n "$small" ] && limit=$((limit * 10))
  [ "$left" -lt "$limit" ] && limit=$left short=1
  echo "==== $name" >>"$log"
  if [ "$limit" -lt 1 ]; then
    status=77
    echo "no time left" >"$output"
  else
    timeout -k 5 "$limit" bash -c '"$@"' - "$@" >"$output" 2>&1 </dev/null
    status=$?
  fi
  cat "$output" >>"$log"
  seconds=$(python3 -c "print(f'{$EPOCHREALTIME - $started:.1f}')")
  # The last line, or of a program that failed the one before its hint.
  why=$(grep -a '^error: ' "$output" | tail -n 1)
  [ -n "$why" ] || why=$(grep -av '^[[:space:]]*$' "$output" | tail -n 1)
  case $status in
    0) verdict=PASS ;;
    77) verdict=SKIP ;;
    124 | 137)
      verdict=${short:+SKIP}
      verdict=${verdict:-FAIL}
      why="stopped after $limit s${short:+, for want of time in all}: $why"
      ;;
    *) verdict=FAIL ;;
  esac
  why=$(echo "$why" | tr '\t' ' ' | cut -c 1-240)
  printf '%s\t%s\t%s\t%s\n' "$name" "$verdict" "$seconds" "$why" >>"$work/steps"
  printf '%-26s %s %7s s   %s\n' "$name" "$verdict" "$seconds" "$why"
  # The reason of a failure is seldom one line.
  if [ "$verdict" = FAIL ]; then
    grep -av '^[[:space:]]*$' "$output" | tail -n 25 | cut -c 1-200 | sed 's/^/    /'
  fi
}

SECONDS=0
# What a step of the emulator can afford: the shortest tests, a few of them.
quick="rms_norm_is silu_mul add_ rope_"
step unpack 60 unpack
step system 20 system
if [ -n "$small" ]; then
  # shellcheck disable=SC2086 # filters are words
  step ops 90 suite cuda $quick
  step linalg 60 suite linalg on_a_gpu::qr on_a_gpu::cholesky
else
  # shellcheck disable=SC2086
  step ops 90 suite cuda ${unreachable:+--skip families}
  step linalg 60 suite linalg
fi
# Of the second only attention is compressed.
for fixture in pycode-llama:0.7 pycode-qwen3moe:0.95; do
  step "agreement-${fixture%:*}" 75 agreement "${fixture%:*}" "${fixture#*:}"
  step "generation-${fixture%:*}" 20 generation "${fixture%:*}"
done
step stacks 75 stacks pycode-llama
step make-block 40 make_block
step bench 130 bench
step peers 140 peers
step larger 100 larger
step larger-memory 10 larger_memory
# shellcheck disable=SC2086
step memcheck 90 sanitizer memcheck $quick low_rank gram cross_entropy causal_attention_is row_dots \
  sign_pack_packs take_level_takes stack_matvec_is
# shellcheck disable=SC2086
step racecheck 60 sanitizer racecheck $quick low_rank stack_matvec_is

echo
python3 scripts/gpu_report.py --steps "$work/steps" --system "$work/system.json" \
  --bench "$work/bench.json" --peers "$work/peers.json" --commit "$(cat "$bundle/commit")" \
  --out "$results"
