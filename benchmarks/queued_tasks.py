"""What a queued task costs its driver in time and memory, and whether that depends on how many there are.

A driver submits all tasks, which do nothing, and then gets all results. The columns for each task should be
alike in all rows.

    python benchmarks/queued_tasks.py
    python benchmarks/queued_tasks.py --tasks 1000,10000 --impl ray

Memory is by how much the driver's peak of resident memory grows from before the first submission to the
end, with the references and the results: for few tasks it is mostly what an allocator takes at once.
Each row is measured in a driver and a cluster of its own, as a peak does not go down again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import implementation

ALL = [1_000, 10_000, 100_000, 1_000_000]


def main() -> int:
    """Measures in one process for each number of tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    implementation.add_arguments(parser)
    parser.add_argument("--tasks", type=numbers, default=ALL, metavar="N,N", help="(default: 1000 to 1000000)")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        print(json.dumps(measure(options.impl, options.workers, options.tasks[0])))
        return 0

    print(f"{'':>8}  {'seconds':^17}  {'us for each task':^17}  {'bytes':>8}")
    print(f"{'tasks':>8}  {'submitted':>9}  {'all':>6}  {'submitted':>9}  {'all':>6}  {'for each':>8}")
    rows = []
    for count in options.tasks:
        row = measure_apart(options.impl, options.workers, count)
        rows.append(row)
        submitted, in_all, size = row["submit_seconds"], row["seconds"], row["peak_growth_bytes"] / count
        print(
            f"{count:>8}  {submitted:>9.3f}  {in_all:>6.2f}  {submitted * 1e6 / count:>9.2f}"
            f"  {in_all * 1e6 / count:>6.1f}  {size:>8.0f}",
            flush=True,
        )
    implementation.write(options.json, {"impl": options.impl, "workers": options.workers, "rows": rows})
    return 0


def numbers(text: str) -> list[int]:
    """The numbers of a comma list."""
    return [implementation.at_least_one(part) for part in text.split(",")]


def measure_apart(impl: str, workers: int, count: int) -> dict[str, Any]:
    """Measures in a new process."""
    arguments = ["--in-this-process", "--impl", impl, "--workers", str(workers), "--tasks", str(count)]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(impl: str, workers: int, count: int) -> dict[str, Any]:
    """Measures in this process, which is a new one."""
    ray = implementation.start(impl, workers)
    task = ray.remote(nothing)
    # Starts the workers, and has the driver take what memory it takes in any case.
    ray.get([task.remote() for _ in range(100)])
    before = peak_bytes()
    began = time.perf_counter()
    refs = [task.remote() for _ in range(count)]
    submitted = time.perf_counter()
    ray.get(refs)
    done = time.perf_counter()
    growth = peak_bytes() - before
    ray.shutdown()
    return {
        "tasks": count,
        "submit_seconds": submitted - began,
        "seconds": done - began,
        "peak_growth_bytes": growth,
        "version": ray.__version__,
    }


def nothing() -> None:
    """The task."""


def peak_bytes() -> int:
    """The most memory that this process had at a time."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main())
