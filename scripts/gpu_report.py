"""Sums up a run of scripts/gpu_check.sh: prints the table, writes RESULTS/<device>.json (benches/results/README.md).

Exit code 1 where a step failed. A goal that is missed is said, and is no failure.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Goal:
    """What a figure is to reach: a share of the device's limit, how many times PyTorch's speed at the same, how many
    times that of other figures (ours where we have it, else PyTorch's), or several of these."""

    share: float | None = None
    times: float | None = None
    at_most: float | None = None
    rivals: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        if self.share is not None:
            parts.append(f"at least {100 * self.share:.0f} % of the limit")
        if self.times is not None:
            parts.append(f"at least {self.times:g} times PyTorch")
        parts += [f"at least {times:g} times {rival}" for rival, times in self.rivals.items()]
        if self.at_most is not None:
            parts.append(f"at most {100 * self.at_most:.0f} % of the forecast")
        return ", ".join(parts)


GOALS = {
    "lord_block": Goal(times=2),
    "forward": Goal(share=0.4),
    "low_rank_matvec_up": Goal(share=0.6, rivals={"two_products_up": 1}),
    "low_rank_matvec_down": Goal(share=0.6, rivals={"two_products_down": 1}),
    "cross_entropy": Goal(share=0.5),
    "cross_entropy_gradient": Goal(share=0.5),
    "stack_matvec": Goal(share=0.5),
    "stack_matvec_seconds": Goal(rivals={"dense_matvec_seconds": 1}),
    "take_level": Goal(share=0.7),
    "stack_decomposition": Goal(times=3, rivals={"stack_decomposition_by_svd": 100}),
    "memory_measuring": Goal(at_most=1.05),
    "memory_analysing": Goal(at_most=1.05),
}


def read(file: Path) -> dict:
    """A JSON object; nothing where its step left none."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}


def times_as_good(ours: dict | None, theirs: dict | None) -> float | None:
    """How many times as fast (or small) we are."""
    if not ours or not theirs or not ours.get("value") or not theirs.get("value"):
        return None
    ratio = ours["value"] / theirs["value"]
    return 1 / ratio if ours["unit"] in ("s", "B") else ratio


def figures(bench: dict, peers: dict) -> dict[str, dict]:
    """Every name that was measured on either side."""
    found = {}
    for name in [*bench, *(name for name in peers if name not in bench)]:
        ours, theirs, goal = bench.get(name), peers.get(name), GOALS.get(name)
        if ours and ours.get("value") is None:
            continue  # a group that failed: its step says so
        measured = ours or theirs
        ratio = times_as_good(ours, theirs)
        figure = {
            "unit": measured["unit"],
            "ours": ours and ours["value"],
            "peer": theirs and theirs["value"],
            "ratio": ratio,
            "limit": ours and ours.get("limit"),
            "share": ours and ours.get("ratio"),
            "note": measured.get("note", ""),
            "goal": goal and str(goal),
            "met": None,
        }
        if goal and ours:
            share, at_most = figure["share"], goal.at_most
            # Pairs of what was found and what it is to reach; what was not measured leaves the goal open.
            reached = [(share, goal.share), (ratio, goal.times), (share and -share, at_most and -at_most)]
            reached += [
                (times_as_good(ours, bench.get(rival) or peers.get(rival)), times) for rival, times in goal.rivals.items()
            ]
            reached = [pair for pair in reached if pair[1] is not None]
            if all(value is not None for value, _ in reached):
                figure["met"] = all(value >= least for value, least in reached)
        found[name] = figure
    return found


def driver() -> str | None:
    """The version of NVIDIA's driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def show(found: dict[str, dict]) -> None:
    print(f"{'figure':30} {'unit':8} {'ours':>10} {'PyTorch':>10} {'times':>8} {'of limit':>9}  goal")
    for name, f in found.items():
        share = "-" if f["share"] is None else f"{100 * f['share']:.1f} %"
        goal = f"{f['goal']}: {'open' if f['met'] is None else 'met' if f['met'] else 'MISSED'}" if f["goal"] else ""
        columns = f"{number(f['ours']):>10} {number(f['peer']):>10} {number(f['ratio']):>8} {share:>9}"
        print(f"{name:30} {f['unit']:8} {columns}  {goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("steps", "system", "bench", "peers", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--commit", required=True)
    args = parser.parse_args()

    steps = {}
    for line in args.steps.read_text().splitlines():
        name, verdict, seconds, detail = line.split("\t")
        steps[name] = {"verdict": verdict, "seconds": float(seconds), "detail": detail}
    system = read(args.system)
    gpu = next(iter(system.get("devices", [])), {})
    device = gpu.get("name", "no GPU")
    found = figures(read(args.bench), read(args.peers))
    report = {
        "device": device,
        "driver": driver(),
        "cuda": system.get("driver"),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": args.commit,
        "steps": steps,
        "figures": found,
    }
    file = args.out / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
    file.write_text(json.dumps(report, indent=2) + "\n")

    show(found)
    print()
    for name, step in steps.items():
        print(f"{name:30} {step['verdict']:8} {step['seconds']:>8.1f} s  {step['detail']}")
    counts = {verdict: sum(s["verdict"] == verdict for s in steps.values()) for verdict in ("PASS", "FAIL", "SKIP")}
    print(f"\n{device}: {counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped; {file}")
    sys.exit(1 if counts["FAIL"] else 0)


if __name__ == "__main__":
    main()
