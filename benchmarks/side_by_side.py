"""Times this implementation and Ray in turn, and prints how many times faster one is.

    python benchmarks/side_by_side.py --peer PYTHON_WITH_RAY --rounds 3
    python benchmarks/side_by_side.py --peer PYTHON_WITH_RAY --only "tasks sync /s,tasks async /s"

`PYTHON_WITH_RAY` is an interpreter with Ray installed (`pip install ray==2.60.0` in a virtual environment of its
own); left out, this implementation alone is timed. They run in turn, so that a machine that slows down slows
both; the figure to quote is the ratio of medians. The last column compares with what separate Python processes
can do on the machine at all, where that has been written.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

WORKLOADS = pathlib.Path(__file__).resolve().parent / "workloads.py"


def main() -> int:
    """Times and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--ours", default=sys.executable, help="interpreter with ray_rust (default: this one)")
    parser.add_argument("--peer", help="interpreter with Ray")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each workload and round")
    parser.add_argument("--only", default="", help="names of workloads, with commas between them")
    parser.add_argument("--json", help="write the table there too")
    options = parser.parse_args()
    kinds = {"ray_rust": options.ours, "ray": options.peer, "limit": options.ours}
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, python in kinds.items():
            if python is not None:
                runs[kind].append(run(python, kind, options.seconds, options.only))
    ours, peer, limit = (medians(runs[kind]) for kind in kinds)
    print(f"{'workload':45} {'ours':>12} {'ray':>12} {'ours/ray':>9} {'ours/limit':>10}")
    for name in sorted({*ours, *peer}):
        mine, other, most = ours.get(name), peer.get(name), limit.get(name)
        cells = [number(mine, 12, 1), number(other, 12, 1), ratio(mine, other, 9, 1), ratio(mine, most, 10, 2)]
        print(f"{name:45} {' '.join(cells)}")
    if options.json:
        table = {name: [ours.get(name), peer.get(name), limit.get(name)] for name in sorted({*ours, *peer})}
        pathlib.Path(options.json).write_text(json.dumps(table, indent=1), encoding="utf-8")
    return 0


def run(python: str, kind: str, seconds: float, only: str) -> dict[str, float]:
    """One round of one kind, in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as figures:
        command = [python, str(WORKLOADS), "--impl", kind, "--out", figures.name, "--seconds", str(seconds)]
        if only:
            command += ["--only", only]
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if "FAILED" in line:
                print(f"{kind}: {line}", file=sys.stderr)
        if done.returncode != 0:
            print(f"{kind} ended with exit status {done.returncode}:\n{done.stderr[-2000:]}", file=sys.stderr)
            return {}
        read: dict[str, float] = json.loads(pathlib.Path(figures.name).read_text(encoding="utf-8"))
        return read


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Of each workload over the rounds."""
    names = {name for figures in runs for name in figures}
    return {name: statistics.median(figures[name] for figures in runs if name in figures) for name in names}


def number(value: float | None, width: int, digits: int) -> str:
    """Set to the right; a dash if there is none."""
    return f"{value:{width}.{digits}f}" if value is not None else f"{'-':>{width}}"


def ratio(value: float | None, base: float | None, width: int, digits: int) -> str:
    """How many times `base` it is."""
    return number(value / base if value and base else None, width, digits)


if __name__ == "__main__":
    sys.exit(main())
