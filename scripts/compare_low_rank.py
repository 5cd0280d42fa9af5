"""Gram, decomposition and factors of a 2048x5632 and a 5632x2048 layer: bantam against plain PyTorch.

The PyTorch side is the method as it is usually written: the outputs of the calibration tokens, their second moment
accumulated in f64, `torch.linalg.eigh` in f64, `u` the leading eigenvectors and `v = u^T W`. Both sides run in one go
on the same data and threads; both report how far the energy their factors really lose is from what their spectrum
foretold. Inputs have a decaying spectrum and one channel much larger than the rest, as activations do.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS = {"down": (2048, 5632), "up": (5632, 2048)}
CHUNK = 1024


def decaying(rows: int, columns: int, power: float) -> torch.Tensor:
    """A random matrix whose columns, seen through a random rotation, fall off like i^-power."""
    scale = torch.arange(1, columns + 1, dtype=torch.float32) ** -power
    rotation, _ = torch.linalg.qr(torch.randn(columns, columns))
    return (torch.randn(rows, columns) * scale) @ rotation * columns**0.5


def straightforward(weight: torch.Tensor, x: torch.Tensor, rank: int) -> tuple[dict[str, float], float]:
    """Seconds of each step, and how far the loss is from the one foretold."""
    y = x @ weight.T
    start = time.perf_counter()
    moment = torch.zeros(weight.shape[0], weight.shape[0], dtype=torch.float64)
    for rows in y.split(CHUNK):
        rows = rows.double()
        moment += rows.T @ rows
    gram = time.perf_counter()
    values, vectors = torch.linalg.eigh(moment)
    decomposed = time.perf_counter()
    u = vectors[:, -rank:].contiguous()
    v = u.T @ weight.double()
    u, v = u.float(), v.float()
    done = time.perf_counter()
    lost = (y.double() - x.double() @ v.double().T @ u.double().T).square().sum() / y.double().square().sum()
    foretold = values[:-rank].clamp(min=0).sum() / values.sum()
    seconds = {"gram": gram - start, "decomposition": decomposed - gram, "factors": done - decomposed}
    return seconds, float((lost - foretold).abs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="the built bench, target/release/deps/low_rank-*")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rank", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    tensors = {}
    for name, (m, n) in LAYERS.items():
        x = decaying(args.tokens, n, 0.6)
        x[:, 7] *= 30
        tensors |= {f"{name}.weight": decaying(m, n, 0.3) / n**0.5, f"{name}.x": x.contiguous()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text("{}")
        theirs: dict[str, dict[str, float]] = {}
        ours: dict[str, dict[str, float]] = {}
        for _ in range(args.rounds):
            command = [args.bench, folder, str(args.rank), "1"]
            for line in subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines():
                found = json.loads(line)
                keep_least(ours.setdefault(found.pop("layer"), {}), found)
            for name in LAYERS:
                seconds, gap = straightforward(tensors[f"{name}.weight"], tensors[f"{name}.x"], args.rank)
                keep_least(theirs.setdefault(name, {}), seconds | {"identity_gap": gap})
    for name, (m, n) in LAYERS.items():
        steps = ("gram", "decomposition", "factors")
        total = [sum(side[name][step] for step in steps) for side in (ours, theirs)]
        print(f"{m}x{n}, {args.tokens} tokens, rank {args.rank}")
        for step in steps:
            print(f"  {step:14} bantam {ours[name][step]:7.2f} s   PyTorch {theirs[name][step]:7.2f} s")
        print(f"  {'all':14} bantam {total[0]:7.2f} s   PyTorch {total[1]:7.2f} s   ratio {total[1] / total[0]:.2f}")
        print(f"  identity gap   bantam {ours[name]['identity_gap']:.1e}     PyTorch {theirs[name]['identity_gap']:.1e}")


def keep_least(best: dict[str, float], found: dict[str, float]) -> None:
    """Keeps the smallest of every figure, the largest of the gaps."""
    for key, value in found.items():
        if isinstance(value, float):
            pick = max if key == "identity_gap" else min
            best[key] = pick(best.get(key, value), value)


if __name__ == "__main__":
    main()
