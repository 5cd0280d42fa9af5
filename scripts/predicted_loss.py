"""Predicted against measured loss: six budgets by two methods on pycode-llama, as a Markdown table and a rank correlation.

Predicted is the sum of the expected losses of the plan, in nats per token of the calibration text; measured is the rise
of the loss in nats per token on the test text, which no step of the compression saw.

    python3 scripts/predicted_loss.py target/release/bantam
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
MODEL = FIXTURES / "pycode-llama"
CALIBRATION = ["--text", FIXTURES / "pycode.calib.txt", "--windows", "128", "--window", "256"]
TEST = ["--text", FIXTURES / "pycode.test.txt", "--window", "256"]
KEPT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
METHODS = ("lord", "welore")


def run(bantam: str, *arguments: object) -> dict:
    """Runs a verb with --json and returns its report."""
    command = [bantam, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def ranks(values: list[float]) -> list[int]:
    """The place of each value in ascending order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    places = [0] * len(values)
    for place, index in enumerate(order):
        places[index] = place
    return places


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's coefficient of values without ties."""
    n = len(one)
    squares = sum((a - b) ** 2 for a, b in zip(ranks(one), ranks(other), strict=True))
    return 1 - 6 * squares / (n * (n * n - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bantam", help="the binary")
    bantam = parser.parse_args().bantam
    dense = run(bantam, "eval", MODEL, *TEST)["nll"]
    predicted, measured = [], []
    print("| method | keep | predicted | measured |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        job, out = Path(temporary) / "job", Path(temporary) / "out"
        for method in METHODS:
            for kept in KEPT:
                how = ["--method", method, "--keep", kept, "--job", job, "--overwrite", "-o", out]
                report = run(bantam, "compress", MODEL, *how, *CALIBRATION)
                predicted.append(report["expected_loss"])
                measured.append(run(bantam, "eval", out, *TEST)["nll"] - dense)
                print(f"| {method} | {kept} | {predicted[-1]:.5f} | {measured[-1]:.5f} |", flush=True)
    count = len(KEPT)
    for index, method in enumerate(METHODS):
        part = slice(index * count, (index + 1) * count)
        print(f"\n{method}: rank correlation {rank_correlation(predicted[part], measured[part]):.3f}")
    print(f"all {len(predicted)} points: rank correlation {rank_correlation(predicted, measured):.3f}")


if __name__ == "__main__":
    main()
