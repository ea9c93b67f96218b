"""Large objects on several nodes: read from others, copied, dropped, lost."""

import asyncio
import gc
import os
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest

import ray_rust
from conftest import kill_quietly, wait_until
from ray_rust.cluster_utils import Cluster
from ray_rust.exceptions import ObjectLostError, ObjectStoreFullError
from ray_rust.experimental import get_object_locations
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy

MB = 1_000_000


@pytest.fixture
def new_cluster(no_cluster, monkeypatch):
    """Makes a cluster of a head, which this process joins, and of other nodes."""
    # A node that is killed is missed soon.
    monkeypatch.setenv("RAY_RUST_GCS_HEARTBEAT_INTERVAL_MS", "200")
    monkeypatch.setenv("RAY_RUST_GCS_NODE_DEAD_AFTER_MS", "3000")
    made = []

    def make(*others, **head):
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **head}))
        nodes = [made[-1].add_node(num_cpus=1, **other) for other in others]
        ray_rust.init(made[-1].address, namespace="tests", log_to_driver=False)
        return made[-1].head_node, *nodes

    yield make
    ray_rust.shutdown()
    for cluster in made:
        cluster.shutdown()


def on(node):
    return NodeAffinitySchedulingStrategy(node.node_id, soft=False)


@ray_rust.remote(num_cpus=0)
class Worker:
    """Makes and reads objects where it is."""

    def __init__(self):
        self.kept = []

    def make(self, number, size=2 * MB):
        return np.full(size, number, dtype=np.uint8)

    def put(self, number, size=2 * MB):
        return [ray_rust.put(np.full(size, number, dtype=np.uint8))]

    def make_after(self, path, size):
        open(path + ".begun", "w").close()
        while not os.path.exists(path):
            time.sleep(0.01)
        return np.zeros(size, dtype=np.uint8)

    def items(self, count, size=2 * MB):
        for number in range(count):
            yield np.full(size, number, dtype=np.uint8)

    def read(self, value):
        return int(value[0]), int(value[-1]), len(value)

    def keep(self, value):
        self.kept.append(value)
        return len(value)

    def drop(self):
        self.kept.clear()

    def get(self, refs):
        return self.read(ray_rust.get(refs[0]))


@ray_rust.remote(num_cpus=0)
class AsyncWorker:
    async def read(self, refs):
        value = await refs[0]
        return int(value[0]), len(value)


@ray_rust.remote(num_cpus=0)
class Sleeper:
    def sleep(self):
        threading.Event().wait(600)


@ray_rust.remote(num_cpus=0)
class Caller:
    def call(self, method, *args):
        self.result = method.remote(*args)
        return os.getpid()

    def wait(self):
        return len(ray_rust.wait([self.result], fetch_local=False)[0])


def worker_on(node, cls=Worker):
    return cls.options(scheduling_strategy=on(node)).remote()


def metric(node, name, **tags):
    """One number of a node."""
    with urllib.request.urlopen(f"http://127.0.0.1:{node.metrics_export_port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = [f'{tag}="{value}"' for tag, value in tags.items()]
    found = [line for line in lines if line.startswith(f"ray_{name}{{") and all(tag in line for tag in wanted)]
    assert len(found) == 1, f"{name} of {tags} is among {lines}"
    return float(found[0].rpartition(" ")[2])


def used(node):
    """Bytes of the node's shared memory that objects take up."""
    return metric(node, "object_store_memory", Location="MMAP_SHM")


def spilled(node):
    return metric(node, "object_store_memory", Location="SPILLED")


def received(node):
    """Bytes that other nodes have sent."""
    return metric(node, "object_manager_bytes", Type="Received")


def usage_falls_to(expected, *nodes):
    """Waits until the nodes use no more than that, in the order given."""
    gc.collect()
    for node, limit in zip(nodes, expected):
        wait_until(lambda n=node, m=limit: used(n) <= m, what=f"that node {node.node_id} uses {limit} bytes")


def test_large_values_cross_nodes_both_ways(new_cluster):
    _, north, south = new_cluster({}, {})
    at_north, at_south = worker_on(north), worker_on(south)
    made = at_north.make.remote(3)
    assert (ray_rust.get(made) == 3).all()
    assert ray_rust.get(at_south.read.remote(made)) == (3, 3, 2 * MB)
    own = ray_rust.put(np.full(3 * MB, 7, dtype=np.uint8))
    assert ray_rust.get([at_north.read.remote(own), at_south.read.remote(own)]) == [(7, 7, 3 * MB)] * 2
    [borrowed] = ray_rust.get(at_south.put.remote(9))
    assert ray_rust.get(borrowed)[0] == 9
    assert ray_rust.get(at_north.get.remote([borrowed])) == (9, 9, 2 * MB)
    # What was passed by value, and is large.
    assert ray_rust.get(at_south.read.remote(np.full(2 * MB, 4, dtype=np.uint8))) == (4, 4, 2 * MB)


def test_many_readers_of_a_node_share_one_copy(new_cluster):
    _, north = new_cluster({})
    readers = [worker_on(north) for _ in range(4)]
    ray_rust.get([reader.drop.remote() for reader in readers])
    before = used(north), received(north)
    big = ray_rust.put(np.full(20 * MB, 1, dtype=np.uint8))
    assert ray_rust.get([reader.keep.remote(big) for reader in readers]) == [20 * MB] * 4
    assert received(north) - before[1] < 25 * MB
    assert used(north) - before[0] < 25 * MB
    assert ray_rust.get([reader.keep.remote(big) for reader in readers]) == [20 * MB] * 4
    assert received(north) - before[1] < 25 * MB


def test_copies_go_with_the_last_reference(new_cluster):
    head, north, south = new_cluster({}, {})
    at_north, at_south = worker_on(north), worker_on(south)
    ray_rust.get([at_north.drop.remote(), at_south.drop.remote()])
    before = used(head), used(north), used(south)
    made = at_north.make.remote(1, 10 * MB)
    assert ray_rust.get(made)[0] == 1
    assert ray_rust.get(at_south.read.remote(made))[0] == 1
    own = ray_rust.put(np.full(10 * MB, 2, dtype=np.uint8))
    assert ray_rust.get(at_north.read.remote(own))[0] == 2
    assert used(head) - before[0] > 19 * MB
    assert used(north) - before[1] > 19 * MB
    assert used(south) - before[2] > 9 * MB
    del made, own
    usage_falls_to(before, head, north, south)


def test_a_reader_keeps_its_copy_after_the_last_reference(new_cluster):
    head, north = new_cluster({})
    reader = worker_on(north)
    ray_rust.get(reader.drop.remote())
    before = used(head), used(north)
    value = ray_rust.get(worker_on(north).make.remote(5, 5 * MB))
    gc.collect()
    usage_falls_to(before[1:], north)
    assert (value == 5).all() and used(head) - before[0] > 4 * MB
    del value
    usage_falls_to(before, head, north)


def test_a_result_that_nobody_waits_for_goes(new_cluster):
    head, north = new_cluster({})
    maker = worker_on(north)
    ray_rust.get(maker.drop.remote())
    before = used(head), used(north)
    for _ in range(3):
        maker.make.remote(1, 5 * MB)
    ray_rust.get(maker.drop.remote())
    usage_falls_to(before, head, north)


def test_a_value_of_another_node_is_awaited(new_cluster):
    _, north, south = new_cluster({}, {})
    maker = worker_on(north)

    async def read():
        return (await maker.make.remote(6))[0]

    assert asyncio.run(read()) == 6
    assert maker.make.remote(8).future().result(timeout=30)[0] == 8
    reader = worker_on(south, AsyncWorker)
    assert ray_rust.get(reader.read.remote([maker.make.remote(7)])) == (7, 2 * MB)


def test_items_of_a_generator_come_from_another_node(new_cluster):
    head, north = new_cluster({})
    maker = worker_on(north)
    ray_rust.get(maker.drop.remote())
    before = used(head), used(north)
    items = maker.items.options(num_returns="streaming").remote(5)
    assert [int(ray_rust.get(item)[0]) for item in items] == [0, 1, 2, 3, 4]
    del items
    usage_falls_to(before, head, north)


def test_wait_brings_values_here_unless_told_not_to(new_cluster):
    head, north = new_cluster({})
    maker = worker_on(north)
    made = [maker.make.remote(number, 5 * MB) for number in range(3)]
    ready, rest = ray_rust.wait(made, num_returns=3, timeout=30, fetch_local=False)
    assert (ready, rest) == (made, [])
    assert received(head) == 0
    ready, rest = ray_rust.wait(made, num_returns=3, timeout=30)
    assert (ready, rest) == (made, [])
    assert received(head) > 15 * MB
    assert ray_rust.wait(made, num_returns=3, timeout=0) == (made, [])
    assert [int(value[0]) for value in ray_rust.get(made)] == [0, 1, 2]
    assert received(head) < 16 * MB


def test_who_looks_again_and_again_without_waiting_gets_it_in_the_end(new_cluster):
    _, north = new_cluster({})
    made = worker_on(north).make.remote(1, 5 * MB)
    wait_until(lambda: ray_rust.wait([made], timeout=0)[0])
    assert ray_rust.get(made)[0] == 1


def test_wait_mixes_what_is_here_and_elsewhere(new_cluster):
    _, north = new_cluster({})
    maker = worker_on(north)
    own = ray_rust.put(np.zeros(2 * MB))
    small, large = maker.read.remote(b"ab"), maker.make.remote(1)
    refs = [large, own, small]
    assert ray_rust.wait(refs, num_returns=3, timeout=30) == (refs, [])


def test_wait_counts_what_is_here_when_its_time_is_over(new_cluster):
    _, north = new_cluster({})
    maker = worker_on(north)
    made = [maker.make.remote(number) for number in range(3)]
    never = worker_on(north, Sleeper).sleep.remote()
    ready, rest = ray_rust.wait([never, *made], num_returns=4, timeout=3)
    assert (ready, rest) == (made, [never])


def test_locations_name_the_node_that_has_it(new_cluster):
    head, north = new_cluster({})
    made, own = worker_on(north).make.remote(1), ray_rust.put(np.zeros(MB))
    ray_rust.wait([made], fetch_local=False)
    where = get_object_locations([made, own])
    assert where[made]["node_ids"] == [north.node_id] and where[made]["object_size"] > 2 * MB
    assert where[own]["node_ids"] == [head.node_id]
    value = ray_rust.get(made)
    assert set(get_object_locations([made])[made]["node_ids"]) == {head.node_id, north.node_id}
    assert value[0] == 1


def test_a_store_that_is_too_small_for_a_copy_says_so(new_cluster):
    head, north = new_cluster({}, object_store_memory=20 * MB)
    maker = worker_on(north)
    made = maker.make.remote(1, 40 * MB)
    with pytest.raises(ObjectStoreFullError, match="40"):
        ray_rust.get(made)
    assert used(head) == 0
    assert ray_rust.get(maker.make.remote(2, 5 * MB))[0] == 2
    assert ray_rust.get(worker_on(north).read.remote(made)) == (1, 1, 40 * MB)


def test_more_than_the_stores_hold_is_read_one_by_one(new_cluster):
    """Copies are dropped and pulled again; originals are spilled."""
    head, north = new_cluster({"object_store_memory": 8 * MB}, object_store_memory=8 * MB)
    maker = worker_on(north)
    made = [maker.make.remote(number, MB) for number in range(100)]
    for number, ref in enumerate(made):
        value = ray_rust.get(ref)
        assert (value[0], value[-1], len(value)) == (number, number, MB)
        del value
    assert spilled(head) == 0
    assert spilled(north) > 80 * MB
    assert ray_rust.get(made[0])[0] == 0
    assert received(head) > 100 * MB
    own = [ray_rust.put(np.full(MB, number, dtype=np.uint8)) for number in range(20)]
    assert [ray_rust.get(maker.read.remote(ref))[0] for ref in own] == list(range(20))
    assert spilled(head) > 8 * MB
    del made, own, ref
    usage_falls_to((0, 0), head, north)
    wait_until(lambda: spilled(head) == 0 and spilled(north) == 0, what="that nothing is left on disk")


def test_what_a_dead_node_had_is_lost_and_says_where_it_was(new_cluster):
    head, north = new_cluster({})
    maker = worker_on(north)
    made, copied = maker.make.remote(1, 5 * MB), maker.make.remote(2, 5 * MB)
    ray_rust.get([maker.drop.remote(), copied])
    ray_rust.wait([made], fetch_local=False)
    north.kill_raylet()
    with pytest.raises(ObjectLostError, match=north.node_id):
        ray_rust.get(made, timeout=60)
    with pytest.raises(ObjectLostError, match=north.node_id):
        ray_rust.get(worker_on(head).read.remote(made), timeout=60)
    # The copy has gone with the original.
    usage_falls_to((0,), head)


def test_a_node_that_is_killed_amid_a_pull_is_named(new_cluster):
    head, north = new_cluster({})
    made = worker_on(north).make.remote(1, 50 * MB)
    ray_rust.wait([made], fetch_local=False)
    os.kill(north.pid, signal.SIGSTOP)
    outcomes = []

    def read():
        try:
            outcomes.append(ray_rust.get(made, timeout=60))
        except ObjectLostError as error:
            outcomes.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    wait_until(lambda: used(head) >= 50 * MB, what="that the pull has begun")
    kill_quietly(north.pid)
    for reader in readers:
        reader.join(60)
    assert len(outcomes) == 2
    for outcome in outcomes:
        assert isinstance(outcome, ObjectLostError) and north.node_id in str(outcome)
    wait_until(lambda: used(head) == 0, what="that the room of the copy is free")


def test_a_get_that_gives_up_stops_the_pull(new_cluster):
    head, north = new_cluster({})
    made = worker_on(north).make.remote(1, 50 * MB)
    ray_rust.wait([made], fetch_local=False)
    os.kill(north.pid, signal.SIGSTOP)
    with pytest.raises(ray_rust.exceptions.GetTimeoutError):
        ray_rust.get(made, timeout=0.5)
    wait_until(lambda: used(head) == 0, what="that the room of the copy is free")
    os.kill(north.pid, signal.SIGCONT)
    assert ray_rust.get(made, timeout=60)[0] == 1


def test_what_an_owner_that_is_killed_had_elsewhere_is_freed(new_cluster, script):
    head, north = new_cluster({})
    keeper = worker_on(north)
    ray_rust.get(keeper.drop.remote())
    before = used(head), used(north)
    source = f"""
import time, numpy as np, ray_rust
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy
ray_rust.init({ray_rust.get_runtime_context().gcs_address!r}, _temp_dir={os.environ["RAY_RUST_TMPDIR"]!r})

@ray_rust.remote(num_cpus=0)
class Maker:
    def make(self):
        return np.zeros({10 * MB}, dtype=np.uint8)

maker = Maker.options(scheduling_strategy=NodeAffinitySchedulingStrategy({north.node_id!r}, soft=False)).remote()
refs = [maker.make.remote() for _ in range(2)]
ray_rust.wait(refs, num_returns=2, fetch_local=False)
value = ray_rust.get(refs[0])
print("ready", flush=True)
time.sleep(1000)
"""
    started = script(source)
    started.read_until("ready")
    assert used(north) - before[1] > 19 * MB and used(head) - before[0] > 9 * MB
    started.process.kill()
    usage_falls_to(before, head, north)


@pytest.mark.parametrize("heard_of_it", [True, False])
def test_what_a_worker_that_is_killed_owned_elsewhere_is_freed(new_cluster, tmp_path, heard_of_it):
    head, north = new_cluster({})
    maker, caller = worker_on(north), worker_on(head, Caller)
    ray_rust.get(maker.drop.remote())
    before = used(north)
    gate = tmp_path / "gate"
    pid = ray_rust.get(caller.call.remote(maker.make_after, str(gate), 10 * MB))
    if heard_of_it:
        gate.touch()
        assert ray_rust.get(caller.wait.remote()) == 1
    else:
        # Its call may not be under way yet when it answers.
        wait_until(lambda: os.path.exists(f"{gate}.begun"), what="the begin of the call")
        os.kill(pid, signal.SIGSTOP)
        gate.touch()
    wait_until(lambda: used(north) - before > 9 * MB)
    kill_quietly(pid)
    usage_falls_to((before,), north)


def test_where_a_borrowed_object_is_can_be_asked_without_reading_it(new_cluster):
    head, north = new_cluster({})
    # Kept: the object goes with its owner, and an actor with its last handle.
    owner = worker_on(north)
    [borrowed] = ray_rust.get(owner.put.remote(1, 5 * MB))
    assert get_object_locations([borrowed])[borrowed]["node_ids"] == [north.node_id]
    assert received(head) == 0


@ray_rust.remote
def make_task(number, size=2 * MB):
    return np.full(size, number, dtype=np.uint8), ray_rust.get_runtime_context().get_node_id()


@ray_rust.remote
def read_task(value, refs):
    inner = ray_rust.get(refs[0])
    return int(value[0][0]), int(inner[0][0]), ray_rust.get_runtime_context().get_node_id()


def test_results_and_arguments_of_tasks_on_other_nodes(new_cluster):
    head, north, south = new_cluster({}, {})
    before = used(head), used(north), used(south)
    at_north = make_task.options(scheduling_strategy=on(north))
    one, two = at_north.remote(1), at_north.remote(2)
    assert ray_rust.get(read_task.options(scheduling_strategy=on(south)).remote(one, [two])) == (1, 2, south.node_id)
    assert ray_rust.get(read_task.options(scheduling_strategy=on(head)).remote(one, [two])) == (1, 2, head.node_id)
    assert ray_rust.get(one)[1] == north.node_id
    del one, two
    usage_falls_to(before, head, north, south)


def test_readers_of_one_node_are_not_held_up_by_the_death_of_another(new_cluster):
    head, north, south = new_cluster({}, {})
    at_north, at_south = worker_on(north), worker_on(south)
    lost = [at_north.make.remote(number, 5 * MB) for number in range(10)]
    kept = [at_south.make.remote(number, 5 * MB) for number in range(10)]
    ray_rust.wait(lost + kept, num_returns=20, fetch_local=False)
    os.kill(north.pid, signal.SIGSTOP)
    readers = [threading.Thread(target=ray_rust.wait, args=(lost,), kwargs={"num_returns": 10}) for _ in range(2)]
    for reader in readers:
        reader.start()
    assert [int(value[0]) for value in ray_rust.get(kept, timeout=30)] == list(range(10))
    kill_quietly(north.pid)
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()
    for ref in lost:
        with pytest.raises(ObjectLostError, match=north.node_id):
            ray_rust.get(ref, timeout=60)
    del kept
    usage_falls_to((0,), head)
