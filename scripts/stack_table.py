"""The tables of stacks in BENCHMARKS.md, on tests/fixtures/pycode-llama.

usage: python3 scripts/stack_table.py BANTAM [RANK ...] [--no-gradients]

For every rank: perplexity with so many levels of every linear beside what a second implementation
measured; for the first rank also the two orders of blocks at sixteen equal budgets, and randomised
beside exact decompositions. With --no-gradients only the two orders, of stacks made so.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/fixtures"
LEVELS = 6
# Perplexity of an independent PyTorch implementation with exact decompositions, by rank and level.
REFERENCE = {
    1: {1: 85.79, 2: 19.84, 3: 16.72, 4: 15.85, 6: 15.42},
    4: {1: 68.16, 2: 18.45, 3: 15.90, 4: 15.37, 6: 15.15},
    16: {1: 37.73, 2: 16.71, 3: 15.41, 4: 15.16, 6: 15.08},
}
BYTES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}


def run(bantam, *arguments):
    done = subprocess.run([bantam, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(done.args)}\n{done.stderr}")
    return done.stdout


def stack(bantam, out, rank, *options):
    run(bantam, "compress", FIXTURES / "pycode-llama", "--method", "bitstack", "--levels", LEVELS,
        "--rank", rank, "--text", FIXTURES / "pycode.calib.txt", "--window", 256, "--windows", 128,
        "--compute", "cpu", "-q", "-o", out, *options)
    return out


def perplexity(bantam, model, budget):
    found = run(bantam, "eval", model, "--budget", budget, "--text", FIXTURES / "pycode.test.txt",
                "--window", 256, "--compute", "cpu", "--json")
    return json.loads(found)["perplexity"]


def level_budgets(model):
    """Bytes of the model with one level of every linear, with two, and so on."""
    tensors = json.loads((model / "bantam.json").read_text())["plan"]["tensors"]

    def size(tensor):
        bytes_ = BYTES[tensor["dtype"]]
        for side in tensor["shape"]:
            bytes_ *= side
        return bytes_

    def level(tensor):
        parts = tensor["name"].rsplit(".", 2)
        return int(parts[1]) if parts[2] in ("sign", "u", "v") and parts[1].isdigit() else -1

    budget = sum(size(t) for t in tensors if level(t) < 0)
    budgets = []
    for wanted in range(LEVELS):
        budget += sum(size(t) for t in tensors if level(t) == wanted)
        budgets.append(budget)
    return budgets


def main():
    options = [argument for argument in sys.argv[2:] if argument.startswith("--")]
    bantam = sys.argv[1]
    ranks = [int(argument) for argument in sys.argv[2:] if argument not in options] or [16]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        if options:
            orders(bantam, folder, ranks[0], *options)
            return
        print("| rank | levels | bytes | reference | bantam | difference |\n|---|---|---|---|---|---|")
        for rank in ranks:
            average = stack(bantam, folder / f"levels{rank}", rank, "--order", "average")
            budgets = level_budgets(average)
            for levels, expected in REFERENCE[rank].items():
                found = perplexity(bantam, average, budgets[levels - 1])
                off = 100 * (found / expected - 1)
                print(f"| {rank} | {levels} | {budgets[levels - 1]} | {expected:.2f} | {found:.3f} | {off:+.2f} % |",
                      flush=True)
        average, budgets = orders(bantam, folder, ranks[0])
        exact = stack(bantam, folder / "exact", ranks[0], "--order", "average", "--exact-svd")
        print("\n| levels | randomised | exact | difference |\n|---|---|---|---|")
        for levels in (1, 2, 4, 6):
            pair = [perplexity(bantam, model, budgets[levels - 1]) for model in (average, exact)]
            off = 100 * (pair[0] / pair[1] - 1)
            print(f"| {levels} | {pair[0]:.3f} | {pair[1]:.3f} | {off:+.2f} % |", flush=True)


def orders(bantam, folder, rank, *options):
    """The two orders at sixteen equal budgets; the published one's stack, and its bytes level by level."""
    average = stack(bantam, folder / "average", rank, "--order", "average", *options)
    priority = stack(bantam, folder / "priority", rank, "--order", "priority", *options)
    budgets = level_budgets(average)
    print("\n| bytes | level by level | by priority |\n|---|---|---|")
    for step in range(16):
        budget = budgets[0] + (budgets[-1] - budgets[0]) * step // 15
        pair = [perplexity(bantam, model, budget) for model in (average, priority)]
        print(f"| {budget} | {pair[0]:.3f} | {pair[1]:.3f} |", flush=True)
    return average, budgets


if __name__ == "__main__":
    main()
