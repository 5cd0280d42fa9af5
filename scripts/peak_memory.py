"""Run a command and say how much memory of its own it held at its peak: resident pages that map no file.

Linux only: /proc/PID/status is read every few milliseconds. With `--timeline FILE` every new maximum is written there
with the second it was seen at, which tells the phase of the run it belongs to.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

INTERVAL = 0.01


def anonymous_kib(pid: int) -> int:
    """RssAnon of a process, 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeline", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    peak, seen = 0, []
    started = time.perf_counter()
    process = subprocess.Popen(args.command)
    while process.poll() is None:
        found = anonymous_kib(process.pid)
        if found > peak:
            peak = found
            seen.append((round(time.perf_counter() - started, 2), found))
        time.sleep(INTERVAL)
    seconds = time.perf_counter() - started
    if args.timeline:
        args.timeline.write_text("\n".join(f"{at} s {kib} KiB" for at, kib in seen) + "\n")
    print(json.dumps({"peak_anonymous_bytes": peak * 1024, "seconds": round(seconds, 1)}), file=sys.stderr)
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
