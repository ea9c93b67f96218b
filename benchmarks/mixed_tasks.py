"""How close tasks of very different lengths come to the best possible time on two workers.

Most take 1 ms and some 50 ms, in random order: a worker that was given many tasks ahead, because they were
short so far, holds them back when the next one is long. The tasks sleep, so that no processor limits them.

    python benchmarks/mixed_tasks.py
    python benchmarks/mixed_tasks.py --impl ray

For each round it prints how long all tasks took, from the first submission to the last result, and two
times to compare with: the best that any order could give, which is all work shared out evenly, and what
comes of this order if whichever worker is free takes the next task at no cost. The aim is to stay within
15 % of the first.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import sys
import time
from typing import Any

import implementation


def main() -> int:
    """Runs all rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    implementation.add_arguments(parser)
    parser.add_argument(
        "--short", type=implementation.at_least_one, default=360, metavar="N", help="tasks of 1 ms (default: 360)"
    )
    parser.add_argument(
        "--long", type=implementation.at_least_one, default=40, metavar="N", help="tasks of 50 ms (default: 40)"
    )
    parser.add_argument(
        "--rounds", type=implementation.at_least_one, default=3, metavar="N", help="each in another order (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the orders (default: 1)")
    options = parser.parse_args()

    ray = implementation.start(options.impl, options.workers)
    task = ray.remote(pause)
    durations = [0.001] * options.short + [0.05] * options.long
    longest = max(durations)
    order = random.Random(options.seed)  # noqa: S311 - it has to be the same in each run
    # The workers are started by a first few, which count for nothing.
    run(ray, task, [0.02] * (4 * options.workers))

    print(f"{len(durations)} tasks on {options.workers} workers, {options.impl} {ray.__version__}")
    print(f"{'round':>5}  {'s':>7}  {'best s':>7}  {'in order s':>10}  {'over best':>9}")
    rounds = []
    for number in range(1, options.rounds + 1):
        order.shuffle(durations)
        took = run(ray, task, durations)
        best = max(sum(durations) / options.workers, longest)
        in_order = greedy(durations, options.workers)
        over = took / best - 1
        rounds.append({"seconds": took, "best_seconds": best, "in_order_seconds": in_order, "over_best": over})
        print(f"{number:>5}  {took:>7.3f}  {best:>7.3f}  {in_order:>10.3f}  {over:>9.1%}", flush=True)
    ray.shutdown()

    mean = statistics.fmean(figures["over_best"] for figures in rounds)
    print(f"mean over best: {mean:.1%}")
    implementation.write(
        options.json,
        {**vars(options), "version": ray.__version__, "rounds": rounds, "mean_over_best": mean},
    )
    return 0


def pause(seconds: float) -> None:
    """The task."""
    time.sleep(seconds)


def run(ray: Any, task: Any, durations: list[float]) -> float:
    """Submits all tasks and waits for all; returns how long that took."""
    began = time.perf_counter()
    ray.get([task.remote(seconds) for seconds in durations])
    return time.perf_counter() - began


def greedy(durations: list[float], workers: int) -> float:
    """When the last task ends if each goes to the worker that is free first."""
    free_at = [0.0] * workers
    for seconds in durations:
        heapq.heapreplace(free_at, free_at[0] + seconds)
    return max(free_at)


if __name__ == "__main__":
    sys.exit(main())
