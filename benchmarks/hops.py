"""Where the time of a small task goes: each part of its way alone, then the whole, then who was busy meanwhile.

    python benchmarks/hops.py
    python benchmarks/hops.py --seconds 3 --json hops.json

Every figure is the median of several windows, in microseconds for each call. "Busy" is processor time,
by the kernel's count of each thread's running time, which includes system calls.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from typing import Any, Callable

import implementation

WINDOWS = 5
BATCH = 1000


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    figures: dict[str, float] = {}

    def show(name: str, microseconds: float) -> None:
        figures[name] = microseconds
        print(f"{name:<72} {microseconds:>8.2f}", flush=True)

    print(f"{'':<72} {'us':>8}")
    show("a round trip of 64 bytes between two processes, by a Unix socket", socket_round_trip(options.seconds))
    parts(options.seconds, show)
    whole(options.seconds, show)
    implementation.write(options.json, figures)
    return 0


def parts(seconds: float, show: Callable[[str, float], None]) -> None:
    """What the caller does, while its only worker is busy with something else."""
    ray = implementation.start("ray_rust", 1)
    nothing = ray.remote(do_nothing)
    pair = ray.remote(take)
    sleeper = ray.remote(time.sleep)

    def submissions(call: Callable[[], Any]) -> float:
        # A fresh reference each time, dropped in one go outside of the window.
        def once() -> float:
            began = time.perf_counter()
            refs = [call() for _ in range(BATCH)]
            spent = time.perf_counter() - began
            for ref in refs:
                ray.cancel(ref)
            return spent

        return windows(once, seconds)

    blocked = sleeper.remote(3600)
    time.sleep(0.1)  # by then the task runs, and what comes behind it is queued
    show("f.remote(), queued", submissions(nothing.remote))
    show("f.remote(1, tag='x'), queued", submissions(lambda: pair.remote(1, tag="x")))
    ray.cancel(blocked, force=True)

    values = [ray.put(number) for number in range(BATCH)]
    show("put of a small value", windows(lambda: timed(lambda: [ray.put(1) for _ in range(BATCH)]), seconds))
    show("get of a small value that is there", windows(lambda: timed(lambda: [ray.get(v) for v in values]), seconds))
    show("get of a list of small values that are there", windows(lambda: timed(lambda: ray.get(values)), seconds))
    ray.shutdown()


def whole(seconds: float, show: Callable[[str, float], None]) -> None:
    """Round trips and streams of tasks and calls, and the processor time of all processes meanwhile."""
    ray = implementation.start("ray_rust", 2)
    nothing = ray.remote(do_nothing)
    actor = ray.remote(num_cpus=0)(Actor).remote()
    ray.get([nothing.remote() for _ in range(BATCH)])
    ray.get(actor.call.remote())
    kinds: list[tuple[str, Callable[[], Any]]] = [
        ("a task, one by one", lambda: [ray.get(nothing.remote()) for _ in range(BATCH)]),
        ("a task of a thousand", lambda: ray.get([nothing.remote() for _ in range(BATCH)])),
        ("a call of an actor, one by one", lambda: [ray.get(actor.call.remote()) for _ in range(BATCH)]),
        ("a call of an actor of a thousand", lambda: ray.get([actor.call.remote() for _ in range(BATCH)])),
    ]
    for name, call in kinds:
        before, calls = busy_by_role(), 0

        def once(call: Callable[[], Any] = call) -> float:
            nonlocal calls
            calls += BATCH
            return timed(call)

        show(name, windows(once, seconds))
        for role, busy in busy_by_role().items():
            show(f"    {role} busy", (busy - before.get(role, 0.0)) * 1e6 / calls)
    ray.shutdown()


def windows(once: Callable[[], float], seconds: float) -> float:
    """The median over windows of the microseconds that one of a batch takes; `once` returns a batch's seconds."""
    once()
    figures = []
    for _ in range(WINDOWS):
        spent, batches, began = 0.0, 0, time.perf_counter()
        while batches == 0 or time.perf_counter() - began < seconds / WINDOWS:
            spent += once()
            batches += 1
        figures.append(spent / batches / BATCH * 1e6)
    return statistics.median(figures)


def timed(call: Callable[[], Any]) -> float:
    """Its seconds."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def busy_by_role() -> dict[str, float]:
    """Seconds for which threads of the driver, of workers and of the daemon have run so far."""
    busy = {"the caller": 0.0, "workers": 0.0, "the daemon": 0.0}
    daemon = child_of(os.getpid())
    server = child_of(daemon)
    for pid, role in [(os.getpid(), "the caller"), (daemon, "the daemon"), (server, "the daemon")]:
        busy[role] += running_seconds(pid)
    for pid in children_of(server):
        busy["workers"] += running_seconds(pid)
    return busy


def running_seconds(pid: int) -> float:
    """Of all its threads."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total / 1e9


def children_of(pid: int) -> list[int]:
    """Process ids."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
            found += [int(child) for child in file.read().split()]
    return found


def child_of(pid: int) -> int:
    """Its only child that has children, or else the newest: the daemon, and the server that forks workers."""
    children = children_of(pid)
    return next((child for child in children if children_of(child)), children[-1])


def socket_round_trip(seconds: float) -> float:
    """Between two processes, each in Python with the least that it can do."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        here.close()
        while received := there.recv(64):
            there.send(received)
        os._exit(0)
    there.close()

    def round_trips() -> None:
        for _ in range(BATCH):
            here.send(b"x" * 64)
            here.recv(64)

    figure = windows(lambda: timed(round_trips), seconds)
    here.close()
    os.wait()
    return figure


def do_nothing() -> None:
    """The task."""


def take(value: int, *, tag: str) -> None:
    """A task with arguments."""


class Actor:
    """An actor."""

    def call(self) -> None:
        """Its method."""


if __name__ == "__main__":
    sys.exit(main())
