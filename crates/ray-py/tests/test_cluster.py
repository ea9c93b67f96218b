"""Clusters of several nodes on this machine."""

import os
import signal
import threading

import pytest

import ray_rust
from conftest import DEADLINE_S, is_running, processes_of, wait_until
from ray_rust._private import node as nodes
from ray_rust.cluster_utils import Cluster
from ray_rust.exceptions import (
    ActorDiedError,
    NodeDiedError,
    RayError,
    RuntimeEnvSetupError,
    TaskUnschedulableError,
)
from ray_rust.util import state
from ray_rust.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy


@pytest.fixture
def new_cluster(no_cluster):
    """Makes a cluster of a head with so many CPUs, which this process joins, and of other nodes."""
    made = []

    def make(head_cpus=1, *others, **head_args):
        made.append(Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, **head_args}))
        nodes = [made[-1].add_node(**other) for other in others]
        ray_rust.init(made[-1].address, namespace="tests", log_to_driver=False)
        return made[-1], *nodes

    yield make
    ray_rust.shutdown()
    for cluster in made:
        cluster.shutdown()


# Nodes that are killed say nothing: heartbeats are to be missed soon.
QUICK = {"_system_config": {"health_check_period_ms": 200, "health_check_failure_threshold": 10}}


def is_listed_alive(node):
    return next(row["Alive"] for row in ray_rust.nodes() if row["NodeID"] == node.node_id)


def on(node, *, soft=False):
    return NodeAffinitySchedulingStrategy(node.node_id, soft=soft)


def where():
    return ray_rust.get_runtime_context().get_node_id()


@ray_rust.remote(num_cpus=0)
class Counter:
    def __init__(self):
        self.count = 0

    def add(self, amount=1):
        self.count += amount
        return self.count

    def where(self):
        return where(), os.getpid()

    def relay(self, other, *args):
        return ray_rust.get(other.add.remote(*args))

    def keep(self, refs):
        self.ref = refs[0]

    def read(self):
        return ray_rust.get(self.ref)

    def make(self):
        return [ray_rust.put("small")]


# Making and ending clusters


def test_nodes_are_listed_and_end_with_the_cluster(own_folder):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=2, resources={"gizmo": 3}, labels={"region": "eu"})
    cluster.wait_for_nodes()
    assert cluster.list_all_nodes() == [cluster.head_node, other]
    assert cluster.worker_nodes == {other}
    ray_rust.init(cluster.address)
    nodes = {node["NodeID"]: node for node in ray_rust.nodes()}
    assert set(nodes) == {cluster.head_node.node_id, other.node_id}
    assert nodes[cluster.head_node.node_id]["IsHeadNode"] and not nodes[other.node_id]["IsHeadNode"]
    assert nodes[other.node_id]["Labels"]["region"] == "eu"
    assert ray_rust.get_runtime_context().get_node_id() == cluster.head_node.node_id
    assert ray_rust.cluster_resources()["CPU"] == 3
    assert ray_rust.cluster_resources()["gizmo"] == 3
    assert cluster.remaining_processes_alive()
    cluster.shutdown()
    assert not ray_rust.is_initialized()
    wait_until(lambda: not processes_of(own_folder), what="the end of all processes")


def test_a_node_that_is_not_waited_for_comes_while_others_go_on(new_cluster, monkeypatch):
    cluster, _ = new_cluster(1, {})
    start_node, go = nodes.start_node, threading.Event()

    def start_later(*args, **kwargs):
        assert go.wait(DEADLINE_S)
        return start_node(*args, **kwargs)

    monkeypatch.setattr(nodes, "start_node", start_later)
    later = cluster.add_node(wait=False, resources={"gizmo": 1})
    assert "gizmo" not in ray_rust.cluster_resources()
    where_gizmos_are = ray_rust.remote(resources={"gizmo": 1})(where).remote()
    go.set()
    assert ray_rust.get(where_gizmos_are, timeout=DEADLINE_S) == later.node_id
    cluster.wait_for_nodes()
    cluster.remove_node(later)
    assert len(cluster.list_all_nodes()) == 2


def test_a_node_that_is_not_waited_for_and_does_not_start_says_so_when_it_is_used(new_cluster, monkeypatch):
    cluster, _ = new_cluster(1, {})

    def fail(*args, **kwargs):
        raise RuntimeError("the node daemon said nothing")

    monkeypatch.setattr(nodes, "start_node", fail)
    never = cluster.add_node(wait=False)
    with pytest.raises(RuntimeError, match="was not started: the node daemon said nothing"):
        _ = never.node_id
    with pytest.raises(RuntimeError, match="was not started"):
        cluster.wait_for_nodes()
    cluster.shutdown()
    assert cluster.list_all_nodes() == []


def test_a_cluster_ends_with_the_process_that_made_it(script):
    started = script(
        "from ray_rust.cluster_utils import Cluster\n"
        "import time\n"
        "cluster = Cluster(initialize_head=True)\n"
        "cluster.add_node()\n"
        "print('ready')\n"
        "time.sleep(1000)\n"
    )
    started.read_until("ready")
    assert len(processes_of(started.folder)) >= 2
    started.process.kill()
    wait_until(lambda: not processes_of(started.folder), what="the end of all processes")


def test_a_cluster_is_found_without_its_address(own_folder):
    cluster = Cluster(initialize_head=True, connect=True)
    assert cluster.connected
    ray_rust.shutdown()
    cluster.add_node(num_cpus=3)
    ray_rust.init("auto")
    assert ray_rust.get_runtime_context().gcs_address == cluster.address
    assert ray_rust.cluster_resources()["CPU"] == 4
    cluster.shutdown()


def test_the_node_of_this_process_is_not_removed(new_cluster):
    cluster, other = new_cluster(1, {})
    with pytest.raises(ValueError, match=cluster.head_node.node_id):
        cluster.remove_node(cluster.head_node)
    assert not ray_rust.is_initialized()
    cluster.remove_node(other)
    assert cluster.list_all_nodes() == [cluster.head_node]
    assert not other.any_processes_alive()
    cluster.wait_for_nodes()


def test_nodes_that_die_are_missed(new_cluster):
    cluster, other = new_cluster(1, {}, **QUICK)
    os.kill(other.pid, signal.SIGKILL)
    wait_until(lambda: not other.any_processes_alive())
    assert not cluster.remaining_processes_alive()
    wait_until(lambda: not is_listed_alive(other), what="the news of its death")
    with pytest.raises(TimeoutError, match=other.node_id):
        cluster.wait_for_nodes(timeout=0.5)


def test_what_makes_no_cluster_is_refused(no_cluster):
    with pytest.raises(RuntimeError, match="initialize_head"):
        Cluster(connect=True)
    with pytest.raises(RuntimeError, match="head"):
        Cluster().connect()


# Actors on other nodes


def test_an_actor_on_another_node_is_called(new_cluster):
    cluster, other = new_cluster(1, {})
    actor = Counter.options(scheduling_strategy=on(other)).remote()
    assert ray_rust.get(actor.where.remote())[0] == other.node_id
    assert ray_rust.get([actor.add.remote() for _ in range(100)]) == list(range(1, 101))
    assert ray_rust.get(actor.where.remote())[0] != cluster.head_node.node_id


def test_actors_of_different_nodes_call_each_other(new_cluster):
    cluster, other = new_cluster(1, {})
    here = Counter.options(scheduling_strategy=on(cluster.head_node)).remote()
    there = Counter.options(scheduling_strategy=on(other)).remote()
    assert ray_rust.get(there.relay.remote(here, 2)) == 2
    assert ray_rust.get(here.relay.remote(there, 3)) == 3
    assert ray_rust.get(there.relay.remote(here)) == 3


def test_a_named_actor_of_another_node_is_found(new_cluster):
    _, other = new_cluster(1, {})
    Counter.options(scheduling_strategy=on(other), name="far", lifetime="detached").remote()
    actor = ray_rust.get_actor("far")
    assert ray_rust.get(actor.add.remote(5)) == 5


def test_references_cross_nodes(new_cluster):
    _, other = new_cluster(1, {})
    actor = Counter.options(scheduling_strategy=on(other)).remote()
    ref = ray_rust.put({"a": 1})
    ray_rust.get(actor.keep.remote([ref]))
    del ref
    assert ray_rust.get(actor.read.remote()) == {"a": 1}, "the borrower on the other node keeps it"
    inner = ray_rust.get(actor.make.remote())[0]
    assert ray_rust.get(inner) == "small", "its owner is on the other node"


def test_an_actor_process_on_another_node_that_dies_is_told_of(new_cluster):
    _, other = new_cluster(1, {})
    actor = Counter.options(scheduling_strategy=on(other)).remote()
    _, pid = ray_rust.get(actor.where.remote())
    ref = ray_rust.get(actor.make.remote())[0]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorDiedError, match="SIGKILL"):
        ray_rust.get(actor.add.remote(), timeout=20)
    with pytest.raises(ray_rust.exceptions.OwnerDiedError):
        ray_rust.get(ref, timeout=20)
    wait_until(lambda: not is_running(pid))


# What workers of other nodes print


def test_output_of_tasks_and_actors_on_other_nodes_reaches_the_driver(run_script):
    out = run_script(
        "import ray_rust as ray\n"
        "from ray_rust.cluster_utils import Cluster\n"
        "from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On\n"
        "cluster = Cluster(initialize_head=True, connect=True)\n"
        "@ray.remote\n"
        "class Printer:\n"
        "    def say(self, text):\n"
        "        print(text)\n"
        "@ray.remote(num_cpus=0)\n"
        "def say(text):\n"
        "    print(text)\n"
        "@ray.remote\n"
        "def nested(node):\n"
        "    ray.get(say.options(scheduling_strategy=node).remote('from node of a task'))\n"
        "nodes = [cluster.add_node(), cluster.add_node()]\n"
        "for number, node in enumerate(nodes):\n"
        "    printer = Printer.options(scheduling_strategy=On(node.node_id, soft=False)).remote()\n"
        "    ray.get(printer.say.remote(f'from node {number}'))\n"
        "first, second = (On(node.node_id, soft=False) for node in nodes)\n"
        "ray.get(nested.options(scheduling_strategy=first).remote(second))\n"
        "cluster.shutdown()\n"
    )
    assert sorted(line.split(") ")[1] for line in out.splitlines() if "from node" in line) == [
        "from node 0",
        "from node 1",
        "from node of a task",
    ]


# Tasks on other nodes


@ray_rust.remote
def place():
    return where()


class Gate:
    """Holds tasks up until it is opened, and knows which have begun."""

    def __init__(self, folder):
        self.folder = folder

    def begun(self):
        return {name: (self.folder / name).read_text() for name in os.listdir(self.folder) if name != "open"}

    def open(self):
        (self.folder / "open").touch()


@pytest.fixture
def gate(tmp_path):
    folder = tmp_path / "gate"
    folder.mkdir()
    return Gate(folder)


@ray_rust.remote
def hold(folder, name):
    """Says where it runs, and goes on when the gate is open."""
    draft = folder.parent / name
    draft.write_text(f"{where()} {os.getpid()}")
    draft.rename(folder / name)
    wait_until((folder / "open").exists)
    return where()


def held(gate, count):
    """The nodes of the first `count` tasks that wait."""
    wait_until(lambda: len(gate.begun()) >= count, what=f"the begin of {count} tasks")
    return sorted(text.split()[0] for text in gate.begun().values())


def test_a_task_runs_on_the_node_that_it_asks_for(new_cluster):
    cluster, first, second = new_cluster(1, {}, {})
    for node in [first, cluster.head_node, second, first]:
        assert ray_rust.get(place.options(scheduling_strategy=on(node)).remote(), timeout=20) == node.node_id


def test_a_task_that_asks_for_resources_of_another_node_goes_there(new_cluster):
    _, other = new_cluster(1, {"resources": {"gizmo": 2}})
    refs = [place.options(resources={"gizmo": 1}).remote() for _ in range(5)]
    assert set(ray_rust.get(refs, timeout=20)) == {other.node_id}
    wait_until(lambda: ray_rust.available_resources().get("gizmo") == 2, what="the return of what was taken")


def test_a_task_goes_where_its_labels_are(new_cluster):
    _, other, third = new_cluster(1, {"labels": {"region": "eu"}}, {"labels": {"region": "us"}})
    assert ray_rust.get(place.options(label_selector={"region": "us"}).remote(), timeout=20) == third.node_id
    assert ray_rust.get(place.options(label_selector={"region": "eu"}).remote(), timeout=20) == other.node_id


def test_what_finds_no_room_at_home_goes_to_another_node(new_cluster, gate):
    cluster, other = new_cluster(1, {"num_cpus": 1})
    refs = [hold.remote(gate.folder, str(number)) for number in range(3)]
    assert held(gate, 2) == sorted([cluster.head_node.node_id, other.node_id])
    gate.open()
    assert set(ray_rust.get(refs, timeout=20)) <= {cluster.head_node.node_id, other.node_id}
    wait_until(lambda: ray_rust.available_resources().get("CPU") == 2, what="the return of all leases")


def test_a_head_without_processors_has_others_work(new_cluster):
    _, first, second = new_cluster(0, {}, {})
    nodes = ray_rust.get([place.remote() for _ in range(200)], timeout=30)
    assert set(nodes) <= {first.node_id, second.node_id}


def test_spread_tasks_run_on_different_nodes(new_cluster, gate):
    cluster, first, second = new_cluster(2, {"num_cpus": 2}, {"num_cpus": 2})
    task = hold.options(scheduling_strategy="SPREAD")
    refs = [task.remote(gate.folder, str(number)) for number in range(3)]
    assert held(gate, 3) == sorted(node.node_id for node in cluster.list_all_nodes())
    refs += [task.remote(gate.folder, str(number)) for number in range(3, 6)]
    assert held(gate, 6) == sorted(2 * [node.node_id for node in (cluster.head_node, first, second)])
    gate.open()
    ray_rust.get(refs, timeout=20)


def test_tasks_of_tasks_run_on_other_nodes(new_cluster):
    cluster, other = new_cluster(1, {"num_cpus": 1})

    @ray_rust.remote
    def parent(node):
        return ray_rust.get(place.options(scheduling_strategy=node).remote())

    far = parent.options(scheduling_strategy=on(other)).remote(on(cluster.head_node))
    near = parent.options(scheduling_strategy=on(cluster.head_node)).remote(on(other))
    assert ray_rust.get([far, near], timeout=20) == [cluster.head_node.node_id, other.node_id]


def test_a_strict_node_that_is_not_there_is_refused(new_cluster):
    _, other = new_cluster(1, {}, **QUICK)
    ref = place.options(scheduling_strategy=on(other)).remote()
    assert ray_rust.get(ref, timeout=20) == other.node_id
    other.kill_raylet()
    wait_until(lambda: not is_listed_alive(other), what="the news of its death")
    ref = place.options(scheduling_strategy=on(other)).remote()
    with pytest.raises(TaskUnschedulableError, match=f"{other.node_id}.*not alive"):
        ray_rust.get(ref, timeout=20)
    assert ray_rust.get(place.options(scheduling_strategy=on(other, soft=True)).remote(), timeout=20) == where()


def test_small_values_are_read_by_tasks_on_other_nodes(new_cluster):
    _, other = new_cluster(1, {})

    @ray_rust.remote
    def add(one, two):
        return one + two

    there = add.options(scheduling_strategy=on(other))
    chain = there.remote(ray_rust.put(1), 1)
    for _ in range(5):
        chain = there.remote(chain, 1)
    assert ray_rust.get(chain, timeout=20) == 7


# Placement groups over several nodes


@pytest.mark.parametrize("strategy", ["STRICT_SPREAD", "SPREAD"])
def test_tasks_run_in_bundles_on_different_nodes(new_cluster, strategy):
    cluster, *_ = new_cluster(1, {}, {})
    group = placement_group([{"CPU": 1}] * 3, strategy=strategy)
    assert group.wait(20)

    def task(index):
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        return place.options(scheduling_strategy=strategy).remote()

    nodes = ray_rust.get([task(index) for index in range(3)], timeout=20)
    assert sorted(nodes) == sorted(node.node_id for node in cluster.list_all_nodes())
    table = placement_group_table(group)["bundles_to_node_id"]
    assert nodes == [table[index] for index in range(3)]
    remove_placement_group(group)


def test_any_bundle_of_a_group_takes_a_task(new_cluster, gate):
    cluster, other = new_cluster(1, {"num_cpus": 1})
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD")
    assert group.wait(20)
    task = hold.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    refs = [task.remote(gate.folder, str(number)) for number in range(2)]
    assert held(gate, 2) == sorted([cluster.head_node.node_id, other.node_id])
    gate.open()
    ray_rust.get(refs, timeout=20)


def test_a_removed_group_ends_its_tasks_on_other_nodes(new_cluster, gate):
    _, other = new_cluster(0, {"num_cpus": 1})
    group = placement_group([{"CPU": 1}])
    assert group.wait(20)
    strategy = PlacementGroupSchedulingStrategy(group)
    running = hold.options(scheduling_strategy=strategy, max_retries=0).remote(gate.folder, "1")
    waiting = place.options(scheduling_strategy=strategy).remote()
    assert held(gate, 1) == [other.node_id]
    remove_placement_group(group)
    with pytest.raises(RayError, match="removed"):
        ray_rust.get(running, timeout=20)
    with pytest.raises(RayError, match="removed"):
        ray_rust.get(waiting, timeout=20)


def test_a_strict_pack_that_no_node_holds_waits_and_says_so(new_cluster):
    new_cluster(1, {"num_cpus": 1})
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_PACK")
    assert not group.wait(0.5)
    assert placement_group_table(group)["state"] == "PENDING"


# What becomes of what dies


def test_tasks_of_a_killed_node_run_elsewhere(new_cluster, gate):
    cluster, doomed = new_cluster(1, {"resources": {"gizmo": 1}})
    task = hold.options(resources={"gizmo": 1})
    ref = task.remote(gate.folder, "1")
    assert held(gate, 1) == [doomed.node_id]
    third = cluster.add_node(resources={"gizmo": 1})
    doomed.kill_raylet()
    wait_until(lambda: held(gate, 1) == [third.node_id], what="the second attempt")
    gate.open()
    assert ray_rust.get(ref, timeout=20) == third.node_id


def test_a_task_without_retries_says_which_node_was_killed(new_cluster, gate):
    _, doomed = new_cluster(1, {"resources": {"gizmo": 1}})
    ref = hold.options(resources={"gizmo": 1}, max_retries=0).remote(gate.folder, "1")
    assert held(gate, 1) == [doomed.node_id]
    doomed.kill_raylet()
    with pytest.raises(NodeDiedError, match=f"hold.*{doomed.node_id}"):
        ray_rust.get(ref, timeout=20)


def test_a_node_that_is_removed_has_its_tasks_run_elsewhere(new_cluster, gate):
    cluster, other = new_cluster(1, {})
    running = hold.options(scheduling_strategy=on(other, soft=True)).remote(gate.folder, "1")
    refused = hold.options(scheduling_strategy=on(other), max_retries=0).remote(gate.folder, "2")
    assert held(gate, 1) == [other.node_id]
    cluster.remove_node(other)
    wait_until(lambda: held(gate, 1) == [cluster.head_node.node_id], what="the second attempt")
    gate.open()
    assert ray_rust.get(running, timeout=20) == cluster.head_node.node_id
    with pytest.raises(RayError, match=other.node_id):
        ray_rust.get(refused, timeout=20)
    cluster.wait_for_nodes()


def test_what_has_to_be_on_a_killed_node_is_refused(new_cluster, gate):
    _, doomed = new_cluster(1, {}, **QUICK)
    ref = hold.options(scheduling_strategy=on(doomed)).remote(gate.folder, "1")
    assert held(gate, 1) == [doomed.node_id]
    doomed.kill_raylet()
    with pytest.raises(TaskUnschedulableError, match=f"{doomed.node_id}.*not alive"):
        ray_rust.get(ref, timeout=30)


def test_a_killed_node_that_cannot_be_asked_is_named(new_cluster):
    _, doomed = new_cluster(1, {})
    doomed.kill_raylet()
    with pytest.raises(state.exception.RayStateApiException) as raised:
        state.list_workers()
    assert f"node {doomed.node_id} at " in str(raised.value)
    assert ": it cannot be reached: " in str(raised.value) and "refused" in str(raised.value)
    assert state.list_workers(raise_on_missing_output=False)


def test_an_actor_of_a_killed_node_lives_on_another(new_cluster):
    cluster, doomed = new_cluster(1, {"resources": {"gizmo": 1}}, **QUICK)
    options = {"resources": {"gizmo": 1}, "max_restarts": 1, "max_task_retries": -1}
    actor = Counter.options(**options).remote()
    assert ray_rust.get(actor.where.remote())[0] == doomed.node_id
    third = cluster.add_node(resources={"gizmo": 1})
    doomed.kill_raylet()
    assert ray_rust.get(actor.where.remote(), timeout=30)[0] == third.node_id


def test_an_actor_that_dies_with_its_node_says_so(new_cluster):
    _, doomed = new_cluster(1, {}, **QUICK)
    actor = Counter.options(scheduling_strategy=on(doomed)).remote()
    ray_rust.get(actor.add.remote())
    doomed.kill_raylet()
    with pytest.raises(ActorDiedError, match=doomed.node_id):
        ray_rust.get(actor.add.remote(), timeout=30)


def test_a_killed_driver_leaves_nothing_taken_on_any_node(new_cluster, script, gate):
    cluster, other = new_cluster(1, {})
    directory = cluster.head_node.get_temp_dir_path()
    started = script(
        "import pathlib, sys, time\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import ray_rust\n"
        "from test_cluster import hold\n"
        f"ray_rust.init({cluster.address!r}, _temp_dir={directory!r})\n"
        f"refs = [hold.remote(pathlib.Path({str(gate.folder)!r}), str(number)) for number in range(2)]\n"
        "print('submitted')\n"
        "time.sleep(1000)\n"
    )
    assert held(gate, 2) == sorted([cluster.head_node.node_id, other.node_id])
    pids = [int(text.split()[1]) for text in gate.begun().values()]
    started.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in pids), what="the end of its workers")
    wait_until(lambda: ray_rust.available_resources().get("CPU") == 2, what="the return of its leases")
    assert ray_rust.get([place.options(scheduling_strategy=on(node)).remote() for node in cluster.list_all_nodes()])


# What is told of the cluster


def test_the_state_api_knows_all_nodes(new_cluster, gate):
    cluster, other = new_cluster(1, {})
    actor = Counter.options(scheduling_strategy=on(other)).remote()
    ray_rust.get(actor.add.remote())
    refs = [
        hold.options(name=f"hold {number}", scheduling_strategy=on(node)).remote(gate.folder, str(number))
        for number, node in enumerate(cluster.list_all_nodes())
    ]
    held(gate, 2)
    both = sorted([cluster.head_node.node_id, other.node_id])
    assert sorted(node.node_id for node in state.list_nodes()) == both
    tasks = {task.name: task for task in state.list_tasks() if task.name.startswith("hold")}
    assert {name: task.state for name, task in tasks.items()} == {"hold 0": "RUNNING", "hold 1": "RUNNING"}
    assert sorted(task.node_id for task in tasks.values()) == both
    assert [row.node_id for row in state.list_actors()] == [other.node_id]
    workers = state.list_workers(limit=1000)
    assert len({worker.worker_id for worker in workers}) == len(workers)
    drivers = [worker for worker in workers if worker.worker_type == "DRIVER"]
    assert len(drivers) == 1
    wait_until(lambda: ray_rust.available_resources().get("CPU", 0) == 0)
    assert ray_rust.cluster_resources()["CPU"] == 2
    gate.open()
    ray_rust.get(refs, timeout=20)


def test_why_a_task_waits_for_another_node_is_told(new_cluster, gate):
    _, other = new_cluster(1, {})
    blocker = hold.options(scheduling_strategy=on(other)).remote(gate.folder, "1")
    held(gate, 1)
    ref = place.options(scheduling_strategy=on(other)).remote()
    wait_until(lambda: other.node_id in state.why(ref), what="a reason that names the node")
    gate.open()
    assert ray_rust.get([blocker, ref], timeout=20) == [other.node_id] * 2


def test_a_runtime_environment_is_made_on_the_node_that_needs_it(new_cluster, tmp_path):
    _, other = new_cluster(1, {})
    (tmp_path / "module_of_this_test.py").write_text("value = 42\n")
    environment = {"env_vars": {"GREETING": "hello"}, "py_modules": [str(tmp_path / "module_of_this_test.py")]}

    @ray_rust.remote(runtime_env=environment, scheduling_strategy=on(other))
    def look():
        import module_of_this_test

        return os.environ["GREETING"], module_of_this_test.value, where()

    assert ray_rust.get(look.remote(), timeout=30) == ("hello", 42, other.node_id)


def test_an_environment_that_cannot_be_made_there_fails_its_tasks(new_cluster):
    _, other = new_cluster(1, {})
    environment = {"working_dir": "https://127.0.0.1:1/nothing.zip"}
    ref = place.options(runtime_env=environment, scheduling_strategy=on(other)).remote()
    with pytest.raises(RuntimeEnvSetupError):
        ray_rust.get(ref, timeout=30)
    assert ray_rust.get(place.options(scheduling_strategy=on(other)).remote(), timeout=20) == other.node_id


def test_a_node_that_is_out_of_reach_for_a_moment_is_tried_again(new_cluster):
    cluster, other, third = new_cluster(0, {}, {"num_cpus": 1})
    # A driver has links to all nodes from its beginning on.
    ray_rust.shutdown()
    hidden = other.raylet_socket_name + ".hidden"
    os.rename(other.raylet_socket_name, hidden)
    ray_rust.init(cluster.address, log_to_driver=False)
    run = ray_rust.remote(num_cpus=1)(where)
    pinned = run.options(scheduling_strategy=on(other)).remote()
    assert ray_rust.get(run.remote(), timeout=60) == third.node_id, "it goes where it can"
    wait_until(lambda: "cannot be reached" in (state.why(pinned) or ""), what="the reason")
    assert other.node_id in state.why(pinned)
    assert ray_rust.wait([pinned], timeout=0)[0] == []
    os.rename(hidden, other.raylet_socket_name)
    assert ray_rust.get(pinned, timeout=60) == other.node_id
