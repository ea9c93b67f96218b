"""The workloads that `side_by_side.py` times, each on one implementation of the Ray API.

Run alone:  python workloads.py --impl ray|ray_rust|limit [--only NAME,NAME] [--seconds 2] --out FILE

Every workload returns a rate ("higher is better") in the unit that its name ends with.
The figures of one run mean little by themselves; `side_by_side.py` runs the implementations in turn and prints
ratios.
"""

import argparse
import importlib
import json
import os
import pickle
import statistics
import subprocess
import sys
import time

WORKLOADS = {}


def workload(name):
    def register(make):
        WORKLOADS[name] = make
        return make

    return register


def rate(fn, per_call, seconds, rounds=3):
    """Median calls per second of `fn`, each call counting for `per_call`; one warm-up call first."""
    fn()
    figures = []
    for _ in range(rounds):
        begin = time.perf_counter()
        calls = 0
        while time.perf_counter() - begin < seconds / rounds:
            fn()
            calls += 1
        figures.append(per_call * calls / (time.perf_counter() - begin))
    return statistics.median(figures)


# --- objects -----------------------------------------------------------------


@workload("get small /s")
def get_small(ray, seconds):
    ref = ray.put(0)
    return rate(lambda: [ray.get(ref) for _ in range(100)], 100, seconds)


@workload("put small /s")
def put_small(ray, seconds):
    return rate(lambda: [ray.put(0) for _ in range(100)], 100, seconds)


@workload("put 100 MB numpy GB/s")
def put_large(ray, seconds):
    import numpy as np

    array = np.ones(100_000_000, dtype=np.uint8)

    def once():
        ref = ray.put(array)
        del ref

    return rate(once, 0.1, seconds)


@workload("get 100 MB numpy /s")
def get_large(ray, seconds):
    import numpy as np

    ref = ray.put(np.ones(100_000_000, dtype=np.uint8))

    def once():
        for _ in range(20):
            assert ray.get(ref)[-1] == 1

    return rate(once, 20, seconds)


@workload("get object holding 10k refs /s")
def get_refs(ray, seconds):
    @ray.remote
    def make():
        return [ray.put(1) for _ in range(10_000)]

    ref = make.remote()
    return rate(lambda: ray.get(ref), 1, seconds)


@workload("wait one by one on 1k refs /s")
def wait_refs(ray, seconds):
    @ray.remote
    def small():
        return b"ok"

    def once():
        pending = [small.remote() for _ in range(1000)]
        while pending:
            _, pending = ray.wait(pending)

    return rate(once, 1, seconds)


@workload("pass 10 MB numpy to a task /s")
def pass_large(ray, seconds):
    import numpy as np

    @ray.remote
    def last(array):
        return array[-1]

    ref = ray.put(np.ones(10_000_000, dtype=np.uint8))
    return rate(lambda: ray.get([last.remote(ref) for _ in range(20)]), 20, seconds)


@workload("return 10 MB numpy from a task /s")
def return_large(ray, seconds):
    import numpy as np

    @ray.remote
    def make():
        return np.ones(10_000_000, dtype=np.uint8)

    return rate(lambda: ray.get(make.remote())[-1], 1, seconds)


# --- tasks -------------------------------------------------------------------


@workload("tasks sync /s")
def tasks_sync(ray, seconds):
    @ray.remote
    def small():
        return b"ok"

    return rate(lambda: [ray.get(small.remote()) for _ in range(20)], 20, seconds)


@workload("tasks async /s")
def tasks_async(ray, seconds):
    @ray.remote
    def small():
        return b"ok"

    return rate(lambda: ray.get([small.remote() for _ in range(1000)]), 1000, seconds)


@workload("tasks async, int and str args /s")
def tasks_args(ray, seconds):
    @ray.remote
    def add(a, b, *, tag):
        return a + b

    return rate(lambda: ray.get([add.remote(i, 1, tag="x") for i in range(1000)]), 1000, seconds)


@workload("tasks async from 4 actors /s")
def tasks_multi(ray, seconds):
    @ray.remote
    def small():
        return b"ok"

    @ray.remote(num_cpus=0)
    class Submitter:
        def go(self, n):
            ray.get([small.remote() for _ in range(n)])

    actors = [Submitter.remote() for _ in range(4)]
    return rate(lambda: ray.get([a.go.remote(500) for a in actors]), 2000, seconds)


@workload("chain of dependent tasks /s")
def tasks_chain(ray, seconds):
    @ray.remote
    def step(x):
        return x + 1

    def once():
        x = 0
        for _ in range(200):
            x = step.remote(x)
        assert ray.get(x) == 200

    return rate(once, 200, seconds)


@workload("one task of 10k ref args /s")
def many_args(ray, seconds):
    @ray.remote
    def count(*args):
        return len(args)

    refs = [ray.put(i) for i in range(10_000)]

    def once():
        assert ray.get(count.remote(*refs)) == 10_000

    return rate(once, 1, seconds)


@workload("one task of 3k returns /s")
def many_returns(ray, seconds):
    @ray.remote(num_returns=3000)
    def make():
        return list(range(3000))

    def once():
        assert ray.get(make.remote())[-1] == 2999

    return rate(once, 1, seconds)


@workload("streaming generator items /s")
def generator(ray, seconds):
    @ray.remote(num_returns="streaming")
    def items(n):
        for i in range(n):
            yield i

    def once():
        assert sum(1 for ref in items.remote(500) if ray.get(ref) >= 0) == 500

    return rate(once, 500, seconds)


# --- actors ------------------------------------------------------------------


def actor_class(ray):
    @ray.remote(num_cpus=0)
    class Actor:
        def small(self):
            return b"ok"

        def small_arg(self, x):
            return b"ok"

    return Actor


def async_actor_class(ray):
    @ray.remote(num_cpus=0)
    class AsyncActor:
        async def small(self):
            return b"ok"

    return AsyncActor


@workload("1:1 actor calls sync /s")
def actor_sync(ray, seconds):
    a = actor_class(ray).remote()
    return rate(lambda: [ray.get(a.small.remote()) for _ in range(20)], 20, seconds)


@workload("1:1 actor calls async /s")
def actor_async(ray, seconds):
    a = actor_class(ray).remote()
    return rate(lambda: ray.get([a.small.remote() for _ in range(1000)]), 1000, seconds)


@workload("1:1 threaded actor calls async /s")
def actor_threaded(ray, seconds):
    a = actor_class(ray).options(max_concurrency=16).remote()
    return rate(lambda: ray.get([a.small.remote() for _ in range(1000)]), 1000, seconds)


@workload("1:1 async-actor calls sync /s")
def async_actor_sync(ray, seconds):
    a = async_actor_class(ray).remote()
    return rate(lambda: [ray.get(a.small.remote()) for _ in range(20)], 20, seconds)


@workload("1:1 async-actor calls async /s")
def async_actor_async(ray, seconds):
    a = async_actor_class(ray).remote()
    return rate(lambda: ray.get([a.small.remote() for _ in range(1000)]), 1000, seconds)


@workload("4:4 actor calls async /s")
def actor_many(ray, seconds):
    targets = [actor_class(ray).remote() for _ in range(4)]

    @ray.remote(num_cpus=0)
    class Caller:
        def go(self, targets, n):
            ray.get([targets[i % len(targets)].small.remote() for i in range(n)])

    callers = [Caller.remote() for _ in range(4)]
    return rate(lambda: ray.get([c.go.remote(targets, 500) for c in callers]), 2000, seconds)


@workload("4:4 actor calls with a ref arg /s")
def actor_many_arg(ray, seconds):
    targets = [actor_class(ray).remote() for _ in range(4)]

    @ray.remote(num_cpus=0)
    class Caller:
        def go(self, targets, n):
            x = ray.put(0)
            ray.get([targets[i % len(targets)].small_arg.remote(x) for i in range(n)])

    callers = [Caller.remote() for _ in range(4)]
    return rate(lambda: ray.get([c.go.remote(targets, 250) for c in callers]), 1000, seconds)


@workload("actors created and called /s")
def actor_creation(ray, seconds):
    Actor = actor_class(ray)
    n = 10

    def once():
        actors = [Actor.remote() for _ in range(n)]
        ray.get([a.small.remote() for a in actors])
        for a in actors:
            ray.kill(a)

    return rate(once, n, seconds)


# --- scheduling --------------------------------------------------------------


@workload("placement groups created and removed /s")
def placement_groups(ray, seconds):
    util = importlib.import_module(ray.__name__ + ".util")

    def once():
        groups = [util.placement_group([{"CPU": 0.001}]) for _ in range(50)]
        for group in groups:
            assert group.wait(timeout_seconds=30)
        for group in groups:
            util.remove_placement_group(group)

    return rate(once, 50, seconds)


# --- what the machine itself allows --------------------------------------------


def limit(seconds):
    """Rates that no runtime of separate Python processes can pass on this machine by much."""
    import multiprocessing as mp
    from concurrent.futures import ProcessPoolExecutor

    def serve(pipe):
        while True:
            call = pickle.loads(pipe.recv_bytes())
            if call is None:
                return
            pipe.send_bytes(pickle.dumps(b"ok"))

    figures = {}
    here, there = mp.Pipe()
    process = mp.get_context("fork").Process(target=serve, args=(there,))
    process.start()

    def round_trip():
        for _ in range(100):
            here.send_bytes(pickle.dumps((1,)))
            pickle.loads(here.recv_bytes())

    figures["tasks sync /s"] = figures["1:1 actor calls sync /s"] = rate(round_trip, 100, seconds)
    here.send_bytes(pickle.dumps(None))
    process.join()
    with ProcessPoolExecutor(2) as pool:
        figures["tasks async /s"] = rate(
            lambda: [f.result() for f in [pool.submit(int, "1") for _ in range(1000)]], 1000, seconds
        )
    try:
        import numpy as np

        source = np.ones(100_000_000, dtype=np.uint8)
        target = np.zeros_like(source)
        figures["put 100 MB numpy GB/s"] = rate(lambda: np.copyto(target, source), 0.1, seconds)
    except ImportError:
        pass
    return figures


def start_up(ray, **options):
    begin = time.perf_counter()
    ray.init(num_cpus=2, **options)
    ready = time.perf_counter()

    @ray.remote
    def first():
        return 1

    ray.get(first.remote())
    return ready - begin, time.perf_counter() - ready


def descendants_pss_mb():
    """Proportional memory (MB) of every process in this one's session, this one aside, and their count."""
    total, count = 0, 0
    listing = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True).stdout
    for line in listing.splitlines():
        pid, _, args = line.strip().partition(" ")
        if int(pid) == os.getpid() or not any(word in args for word in ("ray", "gcs_server")):
            continue
        if "side_by_side.py" in args or "workloads.py" in args or args.startswith(("ps", "sh ", "/bin/sh", "bash")):
            continue
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += next(int(row.split()[1]) for row in rollup if row.startswith("Pss:"))
                count += 1
        except (OSError, StopIteration):
            pass
    return total / 1024, count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impl", required=True, choices=["ray", "ray_rust", "limit"])
    parser.add_argument("--only", default="")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    figures = {}
    if args.impl == "limit":
        figures = limit(args.seconds)
    else:
        ray = importlib.import_module(args.impl)
        options = {}
        if args.impl == "ray":
            options = {"log_to_driver": False, "logging_level": "ERROR", "ignore_reinit_error": True}
        init_s, first_s = start_up(ray, **options)
        figures["init /s"] = 1 / init_s
        figures["first task /s"] = 1 / first_s
        memory, processes = descendants_pss_mb()
        figures["idle memory 1/MB"] = 1 / max(memory, 0.001)
        print(f"init {init_s:.3f} s, first task {first_s:.3f} s, idle {memory:.0f} MB in {processes} processes")
        wanted = [name for name in args.only.split(",") if name] or list(WORKLOADS)
        for name in wanted:
            if name not in WORKLOADS:
                continue
            try:
                figures[name] = WORKLOADS[name](ray, args.seconds)
                print(f"{name:45} {figures[name]:14.1f}", flush=True)
            except Exception as problem:  # a missing feature is a result, not a crash of the comparison
                print(f"{name:45} FAILED {type(problem).__name__}: {str(problem)[:160]}", flush=True)
        ray.shutdown()
    with open(args.out, "w") as out:
        json.dump(figures, out)


if __name__ == "__main__":
    sys.exit(main())
