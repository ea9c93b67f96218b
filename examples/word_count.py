"""Counts the identifiers in the Python files of the standard library, on all processors.

The files are put as objects, in batches; a task counts each batch; a tree of tasks adds the counts up; and
an actor keeps track of how far it is. In the end the result is compared with a count in one process.

    python examples/word_count.py
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import sysconfig
import time
from collections import Counter

import ray_rust as ray

IDENTIFIER = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
BATCH_BYTES = 1 << 20
FAN_IN = 4
BAR_WIDTH = 40


@ray.remote
class Progress:
    """Knows how many steps are done."""

    def __init__(self, total: int) -> None:
        """Begins with none of `total`."""
        self._done = 0
        self._total = total

    def step(self) -> None:
        """One more is done."""
        self._done += 1

    def read(self) -> tuple[int, int]:
        """Steps done, and steps in all."""
        return self._done, self._total


def count(texts: list[bytes]) -> Counter[bytes]:
    """How often each identifier occurs in the texts."""
    counts: Counter[bytes] = Counter()
    for text in texts:
        counts.update(IDENTIFIER.findall(text))
    return counts


@ray.remote
def count_batch(texts: list[bytes], progress: ray.actor.ActorHandle) -> Counter[bytes]:
    """Counts one batch and says so."""
    counts = count(texts)
    progress.step.options(num_returns=0).remote()
    return counts


@ray.remote
def add_up(progress: ray.actor.ActorHandle, *parts: Counter[bytes]) -> Counter[bytes]:
    """Adds several counts and says so."""
    total: Counter[bytes] = Counter()
    for part in parts:
        total.update(part)
    progress.step.options(num_returns=0).remote()
    return total


def find_files(folder: str) -> list[str]:
    """All Python files below the folder, but for packages that were installed later."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in {"site-packages", "dist-packages", "__pycache__"})
        found += [os.path.join(parent, name) for name in sorted(names) if name.endswith(".py")]
    return found


def read_batches(paths: list[str]) -> list[list[bytes]]:
    """The contents of the files, about `BATCH_BYTES` in each batch."""
    batches: list[list[bytes]] = [[]]
    size = 0
    for path in paths:
        with open(path, "rb") as file:
            text = file.read()
        if size and size + len(text) > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    return batches


def tree_steps(leaves: int) -> int:
    """How many tasks `reduce_tree` makes of so many parts."""
    steps = 0
    while leaves > 1:
        leaves = -(-leaves // FAN_IN)
        steps += leaves
    return steps


def reduce_tree(parts: list[ray.ObjectRef], progress: ray.actor.ActorHandle) -> ray.ObjectRef:
    """Adds the parts up, a few at a time, level by level."""
    while len(parts) > 1:
        parts = [add_up.remote(progress, *parts[i : i + FAN_IN]) for i in range(0, len(parts), FAN_IN)]
    return parts[0]


def show(done: int, total: int) -> None:
    """Draws the bar; on a terminal in place, elsewhere only when all is done."""
    on_terminal = sys.stderr.isatty()
    if not on_terminal and done < total:
        return
    filled = BAR_WIDTH * done // total
    bar = "#" * filled + "." * (BAR_WIDTH - filled)
    end = "\r" if on_terminal and done < total else "\n"
    print(f"[{bar}] {done}/{total} tasks", end=end, file=sys.stderr, flush=True)


def count_on_cluster(batches: list[list[bytes]]) -> Counter[bytes]:
    """The counts of all batches, by tasks."""
    total = len(batches) + tree_steps(len(batches))
    progress = Progress.remote(total)
    refs = [ray.put(batch) for batch in batches]
    result = reduce_tree([count_batch.remote(ref, progress) for ref in refs], progress)
    done = 0
    while done < total:
        # A failed task makes no step, but it makes the result ready: `get` then says what failed.
        ready, _ = ray.wait([result], timeout=0.05)
        if ready:
            ray.get(result)
        done, _ = ray.get(progress.read.remote())
        show(done, total)
    counts: Counter[bytes] = ray.get(result)
    return counts


def main() -> int:
    """Counts twice; fails if the results differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", default=sysconfig.get_path("stdlib"), help="where the files are")
    folder = parser.parse_args().folder

    paths = find_files(folder)
    batches = read_batches(paths)
    size = sum(len(text) for batch in batches for text in batch)
    print(f"{len(paths)} files of {folder}: {size / 1e6:.1f} MB in {len(batches)} batches")

    began = time.perf_counter()
    with ray.init():
        started = time.perf_counter()
        processors = ray.cluster_resources()["CPU"]
        counts = count_on_cluster(batches)
        cluster_s = time.perf_counter() - started

    single = time.perf_counter()
    expected = count([text for batch in batches for text in batch])
    single_s = time.perf_counter() - single

    print("most frequent:", ", ".join(f"{word.decode()} {times}" for word, times in counts.most_common(8)))
    print(f"cluster of {processors:g} processors: {cluster_s:.2f} s (and {started - began:.2f} s to start it)")
    print(f"one process: {single_s:.2f} s")
    if counts != expected:
        print("the results differ", file=sys.stderr)
        return 1
    print(f"the results are equal: {len(counts)} identifiers, {sum(counts.values())} occurrences")
    return 0


if __name__ == "__main__":
    sys.exit(main())
