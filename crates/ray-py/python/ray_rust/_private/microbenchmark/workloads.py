"""The workloads of `ray-rust microbenchmark`.

Names, sizes and what is counted are those of `ray microbenchmark`, so that figures of both can stand side
by side. A function prepares each, on a cluster of its own; what is not supported yet is asked for only
by the workload that needs it.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import ray_rust as ray


class Run(NamedTuple):
    """What is called again and again, and for how much a call counts."""

    call: Callable[[], object]
    amount: float = 1


WORKLOADS: dict[str, Callable[[], Run]] = {}


def _workload(name: str) -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    def note(prepare: Callable[[], Run]) -> Callable[[], Run]:
        WORKLOADS[name] = prepare
        return prepare

    return note


def _zeros(mebibytes: int) -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise RuntimeError("this workload needs numpy, which is not installed: pip install numpy") from error
    return np.zeros(mebibytes << 17, dtype=np.int64)


@ray.remote
def _small() -> bytes:
    return b"ok"


@ray.remote
def _put_small(times: int) -> None:
    for _ in range(times):
        ray.put(0)


@ray.remote
def _put_large(times: int, mebibytes: int) -> None:
    for _ in range(times):
        ray.put(_zeros(mebibytes))


@ray.remote
def _make_references(count: int) -> list[ray.ObjectRef]:
    return [ray.put(1) for _ in range(count)]


@ray.remote
def _call_in_turn(servers: list[Any], calls: int) -> None:
    ray.get([servers[i % len(servers)].small.remote() for i in range(calls)])


class Server:
    """Is called."""

    def small(self) -> bytes:
        return b"ok"

    def small_with_arg(self, value: object) -> bytes:
        return b"ok"

    def submit(self, tasks: int) -> None:
        ray.get([_small.remote() for _ in range(tasks)])


class AsyncServer:
    """Is called, and could wait in a call."""

    async def small(self) -> bytes:
        return b"ok"

    async def small_with_arg(self, value: object) -> bytes:
        return b"ok"


class Client:
    """Calls others."""

    def __init__(self, servers: list[Any]) -> None:
        self._servers = servers

    def call(self, times: int) -> None:
        ray.get([server.small.remote() for server in self._servers for _ in range(times)])

    def call_with_arg(self, times: int) -> None:
        ref = ray.put(0)
        ray.get([server.small_with_arg.remote(ref) for server in self._servers for _ in range(times)])


def _actor(cls: type, *args: Any, **options: Any) -> Any:
    return ray.remote(num_cpus=0, **options)(cls).remote(*args)


def _several(cls: type) -> list[Any]:
    """Half as many actors as there are processors: the other half is for those who call them."""
    return [_actor(cls) for _ in range(max(1, int(ray.cluster_resources().get("CPU", 0)) // 2))]


@_workload("single client get calls (Plasma Store)")
def _get_calls() -> Run:
    ref = ray.put(0)
    return Run(lambda: ray.get(ref))


@_workload("single client put calls (Plasma Store)")
def _put_calls() -> Run:
    return Run(lambda: ray.put(0))


@_workload("multi client put calls (Plasma Store)")
def _multi_put_calls() -> Run:
    return Run(lambda: ray.get([_put_small.remote(100) for _ in range(10)]), 1000)


# Ray counts 100 MiB, here and below, as a tenth of a gigabyte.
@_workload("single client put gigabytes")
def _put_gigabytes() -> Run:
    array = _zeros(800)
    return Run(lambda: ray.put(array), 0.8)


@_workload("single client tasks and get batch")
def _batches() -> Run:
    return Run(lambda: ray.get([_small.remote() for _ in range(1000)]))


@_workload("multi client put gigabytes")
def _multi_put_gigabytes() -> Run:
    _zeros(0)  # says here, and not in the tasks, that numpy is missing
    return Run(lambda: ray.get([_put_large.remote(10, 80) for _ in range(10)]), 8.0)


@_workload("single client get object containing 10k refs")
def _get_references() -> Run:
    ref = _make_references.remote(10_000)
    return Run(lambda: ray.get(ref))


@_workload("single client wait 1k refs")
def _wait_for_each() -> Run:
    def wait() -> None:
        pending = [_small.remote() for _ in range(1000)]
        while pending:
            _, pending = ray.wait(pending)

    return Run(wait)


@_workload("single client tasks sync")
def _tasks_sync() -> Run:
    return Run(lambda: ray.get(_small.remote()))


@_workload("single client tasks async")
def _tasks_async() -> Run:
    return Run(lambda: ray.get([_small.remote() for _ in range(1000)]), 1000)


@_workload("multi client tasks async")
def _multi_tasks_async() -> Run:
    clients = [_actor(Server) for _ in range(4)]
    return Run(lambda: ray.get([client.submit.remote(10_000) for client in clients]), 40_000)


def _calls_sync(server: Any) -> Run:
    return Run(lambda: ray.get(server.small.remote()))


def _calls_async(server: Any) -> Run:
    return Run(lambda: ray.get([server.small.remote() for _ in range(1000)]), 1000)


def _calls_1_to_n(servers: list[Any]) -> Run:
    client = _actor(Client, servers)
    return Run(lambda: ray.get(client.call.remote(5000)), 5000 * len(servers))


def _calls_n_to_n(servers: list[Any]) -> Run:
    return Run(lambda: ray.get([_call_in_turn.remote(servers, 5000) for _ in range(4)]), 20_000)


@_workload("1:1 actor calls sync")
def _actor_sync() -> Run:
    return _calls_sync(_actor(Server))


@_workload("1:1 actor calls async")
def _actor_async() -> Run:
    return _calls_async(_actor(Server))


@_workload("1:1 actor calls concurrent")
def _actor_concurrent() -> Run:
    return _calls_async(_actor(Server, max_concurrency=16))


@_workload("1:n actor calls async")
def _actors_1_to_n() -> Run:
    return _calls_1_to_n(_several(Server))


@_workload("n:n actor calls async")
def _actors_n_to_n() -> Run:
    return _calls_n_to_n(_several(Server))


@_workload("n:n actor calls with arg async")
def _actors_with_arg() -> Run:
    clients = [_actor(Client, [server]) for server in _several(Server)]
    return Run(lambda: ray.get([client.call_with_arg.remote(1000) for client in clients]), 1000 * len(clients))


@_workload("1:1 async-actor calls sync")
def _async_actor_sync() -> Run:
    return _calls_sync(_actor(AsyncServer))


@_workload("1:1 async-actor calls async")
def _async_actor_async() -> Run:
    return _calls_async(_actor(AsyncServer))


@_workload("1:1 async-actor calls with args async")
def _async_actor_with_args() -> Run:
    server = _actor(AsyncServer)
    return Run(lambda: ray.get([server.small_with_arg.remote(i) for i in range(1000)]), 1000)


@_workload("1:n async-actor calls async")
def _async_actors_1_to_n() -> Run:
    return _calls_1_to_n(_several(AsyncServer))


@_workload("n:n async-actor calls async")
def _async_actors_n_to_n() -> Run:
    return _calls_n_to_n(_several(AsyncServer))


@_workload("placement group create/removal")
def _placement_groups() -> Run:
    from ray_rust.util import placement_group, remove_placement_group

    def create_and_remove() -> None:
        groups = [placement_group(bundles=[{"custom": 0.001}]) for _ in range(100)]
        for group in groups:
            group.wait(timeout_seconds=30)
        for group in groups:
            remove_placement_group(group)

    return Run(create_and_remove, 100)


def _from_outside() -> Run:
    raise NotImplementedError("no driver can use a cluster from outside, as Ray Client does by ray://")


for _name in (
    "client: get calls",
    "client: put calls",
    "client: put gigabytes",
    "client: tasks and put batch",
    "client: tasks and get batch",
    "client: 1:1 actor calls sync",
    "client: 1:1 actor calls async",
    "client: 1:1 actor calls concurrent",
):
    _workload(_name)(_from_outside)
