"""The perplexity table of BENCHMARKS.md: bantam on pycode-llama against reference figures.

Compresses the fixture by the published rules (lord at a uniform kept fraction, welore by rank
reduction) and by the default method at the same bytes, evaluates each result, and prints a
Markdown table beside the figures of an independent PyTorch implementation.

    python3 scripts/reference_table.py target/release/bantam
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

# Perplexities measured by the independent implementation.
LORD = {0.9: 15.252, 0.8: 15.355, 0.6: 15.896, 0.4: 18.577}
WELORE = {0.1: 15.091, 0.3: 15.100, 0.5: 15.254}


def run(bantam: str, *arguments: object) -> dict:
    """Runs a verb with --json and returns its report."""
    command = [bantam, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def compressed(bantam: str, folder: Path, *arguments: object) -> tuple[int, float]:
    """Bytes and perplexity of the fixture compressed with these arguments."""
    report = run(bantam, "compress", MODEL, "-o", folder, "--overwrite", *arguments)
    return report["weight_bytes_out"], run(bantam, "eval", folder, *TEST)["perplexity"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bantam", help="the binary")
    bantam = parser.parse_args().bantam

    print("| rule | bytes | reference | bantam | difference | default, same bytes |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out"
        for kept, reference in LORD.items():
            rule = ["--uniform", kept, "--rank-multiple", 1, *CALIBRATION]
            size, found = compressed(bantam, out, *rule)
            job = ["--job", Path(temporary) / "job"]
            spent, default = compressed(bantam, out, "--budget", size, *job, *CALIBRATION)
            assert spent <= size
            difference = 100 * (found / reference - 1)
            print(f"| lord --uniform {kept} | {size} | {reference:.3f} | {found:.3f} | {difference:+.2f} % "
                  f"| {default:.3f} ({spent} bytes) |", flush=True)
        for reduce, reference in WELORE.items():
            rule = ["--method", "welore", "--reduce", reduce, "--rank-multiple", 1]
            size, found = compressed(bantam, out, *rule)
            difference = 100 * (found / reference - 1)
            print(f"| welore --reduce {reduce} | {size} | {reference:.3f} | {found:.3f} | {difference:+.2f} % | |",
                  flush=True)


if __name__ == "__main__":
    main()
