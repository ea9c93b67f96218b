"""Clusters whose nodes are started when something waits for them."""

import logging
import os
import re

import pytest

import ray_rust
from conftest import DEADLINE_S, processes_of, wait_until
from ray_rust._private.node import living_nodes
from ray_rust.cluster_utils import AutoscalingCluster
from ray_rust.util import state
from ray_rust.util.placement_group import placement_group, remove_placement_group
from ray_rust.util.scheduling_strategies import NodeAffinitySchedulingStrategy

OFTEN = {"AUTOSCALER_UPDATE_INTERVAL_S": "0.1"}
# Longer than any test: nodes stay.
NEVER = 60.0
# Sooner than any test ends.
SOON = 0.01


@pytest.fixture
def grow(own_folder):
    """Starts a cluster of a head with one CPU and of nodes of these types, which this process joins."""
    made = []

    def start(types, *, idle=NEVER, join=True, **settings):
        made.append(AutoscalingCluster({"CPU": 1}, types, idle_timeout_minutes=idle, **settings))
        made[-1].start(override_env=OFTEN)
        if join:
            ray_rust.init("auto", namespace="tests", log_to_driver=False)
        return made[-1]

    yield start
    ray_rust.shutdown()
    for cluster in made:
        cluster.shutdown()
    assert processes_of(own_folder) == []


@pytest.fixture
def said():
    """What this process logs, whether `init` has set its logs up or not."""
    lines = []

    class Lines(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Lines()
    logging.getLogger("ray").addHandler(handler)
    yield lines
    logging.getLogger("ray").removeHandler(handler)


def cpus(count, **more):
    return {"resources": {"CPU": count}, **more}


def nodes():
    """The living nodes but for the head."""
    return [node for node in ray_rust.nodes() if node["Alive"] and not node["IsHeadNode"]]


def where():
    return ray_rust.get_runtime_context().get_node_id()


@ray_rust.remote
def whereabouts():
    return where()


@ray_rust.remote
def size_of(data):
    return len(data)


@ray_rust.remote
class Actor:
    def where(self):
        return where()


def rounds(cluster, count=5):
    """Waits until the autoscaler has looked so many times."""
    scaler = cluster._monitor._scaler
    looks = []

    class Counting:
        def look(self, *args):
            looks.append(1)
            return scaler.look(*args)

        def launch_failed(self, at):
            scaler.launch_failed(at)

    cluster._monitor._scaler = Counting()
    wait_until(lambda: len(looks) >= count)
    cluster._monitor._scaler = scaler


# Growing


def test_a_task_that_finds_no_room_has_a_node_started(grow):
    cluster = grow({"big": cpus(4, labels={"size": "big"})})
    assert ray_rust.get(whereabouts.remote()) == where()
    rounds(cluster)
    assert nodes() == []
    place = ray_rust.get(whereabouts.options(num_cpus=3).remote(), timeout=DEADLINE_S)
    (node,) = nodes()
    assert place == node["NodeID"] != where()
    assert node["Resources"]["CPU"] == 4
    assert node["Labels"]["size"] == "big"


def test_actors_have_nodes_started_of_the_type_that_they_need(grow):
    grow({"cpu": cpus(2), "gizmo": {"resources": {"CPU": 1, "gizmo": 2}}})
    first = Actor.options(num_cpus=2).remote()
    second = Actor.options(num_cpus=0, resources={"gizmo": 1}).remote()
    places = ray_rust.get([first.where.remote(), second.where.remote()], timeout=DEADLINE_S)
    has = {node["NodeID"]: node["Resources"] for node in nodes()}
    assert has[places[0]]["CPU"] == 2
    assert has[places[1]]["gizmo"] == 2
    assert len(has) == 2


def test_labels_choose_the_type(grow):
    grow({"here": cpus(1, labels={"region": "here"}), "there": cpus(1, labels={"region": "there"})})
    place = ray_rust.get(whereabouts.options(label_selector={"region": "there"}).remote(), timeout=DEADLINE_S)
    (node,) = nodes()
    assert node["NodeID"] == place
    assert node["Labels"]["region"] == "there"


def test_a_placement_group_has_all_its_nodes_started(grow):
    grow({"cpu": cpus(2)})
    group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
    assert group.wait(DEADLINE_S)
    assert len(nodes()) == 3


def test_a_group_that_cannot_be_whole_has_no_node_started(grow):
    cluster = grow({"cpu": cpus(2, max_workers=2)})
    group = placement_group([{"CPU": 2}] * 3, strategy="STRICT_SPREAD")
    rounds(cluster)
    assert nodes() == []
    remove_placement_group(group)


def test_no_more_nodes_are_started_than_allowed(grow):
    cluster = grow({"cpu": cpus(1, max_workers=2)})

    @ray_rust.remote
    class Holder:
        def where(self):
            return where()

    holders = [Holder.options(num_cpus=1).remote() for _ in range(5)]
    ready, _ = ray_rust.wait([holder.where.remote() for holder in holders], num_returns=3, timeout=DEADLINE_S)
    assert len(set(ray_rust.get(ready))) == 3
    rounds(cluster)
    assert len(nodes()) == 2


def test_the_limit_of_all_types_counts_for_each(grow):
    cluster = grow({"cpu": cpus(1), "gizmo": {"resources": {"gizmo": 1}}}, max_workers=1)
    gizmo = Actor.options(num_cpus=0, resources={"gizmo": 1}).remote()
    ray_rust.get(gizmo.where.remote(), timeout=DEADLINE_S)
    waiting = whereabouts.options(num_cpus=1, label_selector={"ray.io/node-id": f"!{where()}"}).remote()
    rounds(cluster)
    assert len(nodes()) == 1
    assert ray_rust.wait([waiting], timeout=0)[0] == []


def test_what_no_type_has_starts_nothing_and_says_why(grow):
    cluster = grow({"cpu": cpus(4)})
    ref = whereabouts.options(num_cpus=0, resources={"unobtainium": 1}).remote()
    rounds(cluster)
    assert nodes() == []
    assert 'no node has any "unobtainium"' in state.why(ref)


def test_what_belongs_on_one_node_starts_no_other(grow):
    cluster = grow({"cpu": cpus(4)})
    here = NodeAffinitySchedulingStrategy(where(), soft=False)
    ref = whereabouts.options(num_cpus=4, scheduling_strategy=here).remote()
    rounds(cluster)
    assert nodes() == []
    assert ray_rust.wait([ref], timeout=0)[0] == []


# Shrinking


def test_there_are_as_many_nodes_as_wished_from_the_start(grow):
    cluster = grow({"kept": cpus(1, min_workers=2), "other": cpus(4)}, idle=SOON)
    wait_until(lambda: len(nodes()) == 2)
    ray_rust.get(whereabouts.options(num_cpus=4).remote(), timeout=DEADLINE_S)
    # The one that was started for the task goes, the others stay.
    wait_until(lambda: len(nodes()) == 2)
    rounds(cluster, 10)
    assert [node["Resources"]["CPU"] for node in nodes()] == [1, 1]


def test_idle_nodes_end_and_are_started_again_when_they_are_wanted(grow, own_folder):
    grow({"cpu": cpus(4)}, idle=SOON)
    before = len(processes_of(own_folder))
    first = ray_rust.get(whereabouts.options(num_cpus=4).remote(), timeout=DEADLINE_S)
    wait_until(lambda: nodes() == [])
    dead = next(node for node in ray_rust.nodes() if node["NodeID"] == first)
    assert not dead["Alive"]
    assert ray_rust.cluster_resources()["CPU"] == 1
    wait_until(lambda: len(processes_of(own_folder)) <= before)
    second = ray_rust.get(whereabouts.options(num_cpus=4).remote(), timeout=DEADLINE_S)
    assert second != first


def test_a_node_with_an_actor_stays_even_if_that_takes_nothing(grow):
    cluster = grow({"cpu": cpus(4)}, idle=SOON)
    # Something has to have the node started.
    group = placement_group([{"CPU": 4}])
    assert group.wait(DEADLINE_S)
    (node,) = nodes()
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    actor = Actor.options(num_cpus=0, scheduling_strategy=there).remote()
    assert ray_rust.get(actor.where.remote(), timeout=DEADLINE_S) == node["NodeID"]
    remove_placement_group(group)
    rounds(cluster, 20)
    assert [one["NodeID"] for one in nodes()] == [node["NodeID"]]
    del actor
    wait_until(lambda: nodes() == [])


def test_a_node_with_an_object_stays_until_that_goes(grow):
    cluster = grow({"cpu": cpus(4)}, idle=SOON)
    ref = ray_rust.remote(lambda: bytes(1_000_000)).options(num_cpus=4).remote()
    ray_rust.wait([ref], timeout=DEADLINE_S, fetch_local=False)
    rounds(cluster, 20)
    assert len(nodes()) == 1
    assert len(ray_rust.get(ref)) == 1_000_000
    del ref
    wait_until(lambda: nodes() == [])


def test_a_copy_of_an_object_keeps_no_node(grow):
    grow({"cpu": cpus(4)}, idle=SOON)
    data = ray_rust.put(bytes(1_000_000))
    size = size_of.options(num_cpus=4).remote(data)
    assert ray_rust.get(size, timeout=DEADLINE_S) == 1_000_000
    wait_until(lambda: nodes() == [])
    assert len(ray_rust.get(data)) == 1_000_000


def test_a_node_that_dies_by_itself_is_replaced_if_it_is_kept(grow):
    grow({"kept": cpus(1, min_workers=1)})
    wait_until(nodes)
    (node,) = nodes()

    def pid():
        # It says so itself a moment after the control plane knows it.
        living = living_nodes(os.environ["RAY_RUST_TMPDIR"])
        return next((one.pid for one in living if one.node_id == node["NodeID"]), None)

    os.kill(wait_until(pid), 9)
    wait_until(lambda: any(one["NodeID"] != node["NodeID"] for one in nodes()))


# Making and ending


def test_it_is_started_once_and_ends_with_all_nodes(grow, own_folder):
    cluster = grow({"cpu": cpus(1, min_workers=1)})
    with pytest.raises(RuntimeError, match="was started already"):
        cluster.start()
    address = cluster.address
    assert ray_rust.get_runtime_context().gcs_address == address
    cluster.shutdown()
    assert cluster.address is None
    assert not ray_rust.is_initialized()
    wait_until(lambda: processes_of(own_folder) == [])
    cluster.start(override_env=OFTEN)
    assert cluster.address not in (None, address)


def test_it_ends_with_the_process_that_made_it(script):
    started = script(
        "import time\n"
        "from ray_rust.cluster_utils import AutoscalingCluster\n"
        "import ray_rust as ray\n"
        "cluster = AutoscalingCluster({'CPU': 1}, {'cpu': {'resources': {'CPU': 1}, 'min_workers': 1}})\n"
        "cluster.start()\n"
        "ray.init('auto')\n"
        "while len(ray.nodes()) < 2: time.sleep(0.05)\n"
        "print('ready')\n"
        "time.sleep(1000)\n"
    )
    started.read_until("ready")
    started.process.kill()
    wait_until(lambda: not processes_of(started.folder), what="the end of all processes")


def test_its_nodes_have_the_environment_that_they_are_given(grow):
    cluster = AutoscalingCluster({"CPU": 1}, {"cpu": cpus(2)})
    cluster.start(override_env={**OFTEN, "COLOUR": "blue"})
    try:
        ray_rust.init("auto")
        colour = ray_rust.remote(lambda: os.environ.get("COLOUR"))
        refs = [colour.remote(), colour.options(num_cpus=2).remote()]
        assert ray_rust.get(refs, timeout=DEADLINE_S) == ["blue", "blue"]
        assert "COLOUR" not in os.environ
    finally:
        cluster.shutdown()


def test_a_node_that_cannot_be_started_is_told_and_tried_again(grow, monkeypatch, said):
    cluster = grow({"cpu": cpus(2)}, join=False)
    add_node = cluster._cluster.add_node
    failures = []

    def fail_once(**args):
        if not failures:
            failures.append(args)
            raise RuntimeError("the node daemon said nothing")
        return add_node(**args)

    monkeypatch.setattr(cluster._cluster, "add_node", fail_once)
    ray_rust.init("auto", log_to_driver=False)
    place = ray_rust.get(whereabouts.options(num_cpus=2).remote(), timeout=DEADLINE_S)
    assert place != where()
    assert "no node of type 'cpu' could be started: the node daemon said nothing" in said


def test_the_autoscaler_says_that_the_head_has_ended(grow, said):
    cluster = grow({"cpu": cpus(1)}, join=False)
    cluster._cluster.head_node.kill_raylet()
    wait_until(lambda: not cluster._monitor._thread.is_alive())
    assert "the autoscaler ends, for the head of its cluster has" in said


@pytest.mark.parametrize(
    ("types", "settings", "message"),
    [
        ({}, {"provider": {}}, "no setting 'provider'"),
        ({}, {"max_workers": -1}, "max_workers has to be a whole number that is not negative, got -1"),
        ({}, {"idle_timeout_minutes": 0}, "idle_timeout_minutes has to be more than 0"),
        ({"ray.head.default": {}}, {}, "is the head, which head_resources describe"),
        ({"x": {"image": "y"}}, {}, "node type 'x' has no setting 'image'"),
        ({"x": {"node_config": {"InstanceType": "m5"}}}, {}, "node type 'x' has a node_config"),
        ({"x": {"resources": {"CPU": "many"}}}, {}, "CPU of node type 'x' has to be a number"),
        ({"x": {"min_workers": 3, "max_workers": 2}}, {}, "min_workers of node type 'x' is 3"),
        ({"x": {"labels": {"/": "y"}}}, {}, "node type 'x': "),
    ],
)
def test_what_it_cannot_have_is_refused(types, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AutoscalingCluster({"CPU": 1}, types, **settings)


def test_what_is_not_said_is_as_in_ray():
    cluster = AutoscalingCluster({"CPU": 1}, {"cpu": {"resources": {"CPU": 1}, "node_config": {}}}, autoscaler_v2=True)
    settings = cluster._settings
    assert settings.max_workers == 8
    (node_type,) = settings.types
    assert (node_type.min_workers, node_type.max_workers, node_type.idle_timeout_s) == (0, 8, 6.0)
