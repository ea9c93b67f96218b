"""Where tasks and actors run: nodes, labels, accelerators and amounts, through real processes."""

import os
import time

import pytest

import ray_rust as ray
from conftest import wait_until
from ray_rust import exceptions
from ray_rust._private import label_utils
from ray_rust.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)

UNKNOWN = "ab" * 16


@pytest.fixture(scope="module")
def _labelled_cluster(sessions_folder):
    ray.shutdown()
    ray.init(
        "local",
        num_cpus=2,
        resources={"gizmo": 1, "accelerator_type:T4": 1},
        labels={"region": "eu", "tier": "gold"},
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def labelled(_labelled_cluster):
    yield
    wait_until(lambda: ray.available_resources().get("CPU") == 2, what="all CPUs to be free")


def own_id():
    return ray.get_runtime_context().get_node_id()


@ray.remote
def node():
    return ray.get_runtime_context().get_node_id()


@ray.remote
class Holder:
    def node(self):
        return ray.get_runtime_context().get_node_id()


@ray.remote
def hold(path):
    with open(path + ".started", "w"):
        pass
    while os.path.exists(path):
        time.sleep(0.01)


def runs(**options):
    """Whether a task and an actor with these options run."""
    holder = Holder.options(**options).remote()
    results = [node.options(**options).remote(), holder.node.remote()]
    return ray.get(results, timeout=30) == [own_id()] * 2


def waits(**options):
    """Whether a task and an actor with these options are there, but do not run."""
    holder = Holder.options(**options).remote()
    task, call = node.options(**options).remote(), holder.node.remote()
    ready = ray.wait([task, call], num_returns=2, timeout=0.3)[0]
    ray.cancel(task)
    ray.kill(holder)
    return ready == []


# One node


@pytest.mark.parametrize("soft", [True, False])
def test_what_is_bound_to_this_node_runs_here(soft):
    assert runs(scheduling_strategy=NodeAffinitySchedulingStrategy(own_id(), soft=soft))
    assert runs(scheduling_strategy="SPREAD")
    assert runs(scheduling_strategy="DEFAULT")


def test_an_unknown_node_is_an_error_that_names_it_unless_another_will_do():
    hard = NodeAffinitySchedulingStrategy(UNKNOWN, soft=False)
    with pytest.raises(exceptions.TaskUnschedulableError, match=UNKNOWN):
        ray.get(node.options(scheduling_strategy=hard).remote(), timeout=30)
    holder = Holder.options(scheduling_strategy=hard).remote()
    with pytest.raises(exceptions.ActorUnschedulableError, match=UNKNOWN):
        ray.get(holder.node.remote(), timeout=30)
    assert runs(scheduling_strategy=NodeAffinitySchedulingStrategy(UNKNOWN, soft=True))


def test_many_tasks_for_an_unknown_node_all_fail():
    hard = node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(UNKNOWN, soft=False))
    for _ in range(2):
        tasks = [hard.remote() for _ in range(20)]
        for task in tasks:
            with pytest.raises(exceptions.TaskUnschedulableError):
                ray.get(task, timeout=30)


def test_a_busy_node_is_waited_for_or_given_up(tmp_path):
    path = tmp_path / "go"
    path.touch()
    busy = hold.options(num_cpus=2).remote(str(path))
    wait_until(lambda: os.path.exists(f"{path}.started"))
    waiting = node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(own_id(), soft=False)).remote()
    given_up = NodeAffinitySchedulingStrategy(own_id(), soft=False, _fail_on_unavailable=True)
    with pytest.raises(exceptions.TaskUnschedulableError, match="no room now"):
        ray.get(node.options(scheduling_strategy=given_up).remote(), timeout=30)
    spilling = NodeAffinitySchedulingStrategy(own_id(), soft=True, _spill_on_unavailable=True)
    spilled = node.options(scheduling_strategy=spilling).remote()
    assert ray.wait([waiting, spilled], num_returns=2, timeout=0.2)[0] == []
    path.unlink()
    assert ray.get([waiting, spilled], timeout=30) == [own_id()] * 2
    ray.get(busy, timeout=30)
    # Leases are kept for a moment after a task.
    wait_until(lambda: ray.available_resources().get("CPU") == 2)
    assert ray.get(node.options(scheduling_strategy=given_up).remote(), timeout=30) == own_id()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("xyz", True), "xyz"),
        (("ff" * 16, True), "Invalid node_id"),
        ((UNKNOWN, False, True), "_spill_on_unavailable"),
        ((UNKNOWN, True, False, True), "_fail_on_unavailable"),
    ],
)
def test_affinity_that_makes_no_sense_is_refused(arguments, named):
    with pytest.raises(ValueError) as caught:
        NodeAffinitySchedulingStrategy(*arguments)
    assert named in str(caught.value)


def test_affinity_takes_an_id_as_well():
    assert NodeAffinitySchedulingStrategy(ray.NodeID.from_hex(UNKNOWN), soft=True).node_id == UNKNOWN


# Labels


def test_every_node_carries_its_id_and_what_it_was_given():
    [described] = ray.nodes()
    labels = described["Labels"]
    assert labels == {"ray.io/node-id": described["NodeID"], "region": "eu", "tier": "gold"}


@pytest.mark.parametrize(
    "selector",
    [
        {"region": "eu"},
        {"region": "in(us, eu)"},
        {"region": "!us"},
        {"region": "!in(us,asia)", "tier": "gold"},
        {"absent": "!anything"},
        {},
    ],
)
def test_a_selector_that_the_node_fulfils(selector):
    assert runs(label_selector=selector)


@pytest.mark.parametrize(
    "selector",
    [{"region": "us"}, {"region": "!eu"}, {"region": "!in(eu, us)"}, {"absent": "x"}, {"region": "eu", "tier": "x"}],
)
def test_a_selector_that_no_node_fulfils_waits(selector):
    assert waits(label_selector=selector)


def test_a_fallback_counts_where_the_first_choice_is_nowhere():
    assert runs(label_selector={"region": "us"}, fallback_strategy=[{"label_selector": {"region": "eu"}}])
    assert waits(label_selector={"region": "us"}, fallback_strategy=[{"label_selector": {"region": "asia"}}])


def test_a_pin_to_a_node_is_hard():
    assert runs(label_selector={"ray.io/node-id": own_id()})
    gone = {"ray.io/node-id": UNKNOWN}
    with pytest.raises(exceptions.TaskUnschedulableError, match=UNKNOWN):
        ray.get(node.options(label_selector=gone).remote(), timeout=30)
    with pytest.raises(exceptions.ActorUnschedulableError, match=UNKNOWN):
        ray.get(Holder.options(label_selector=gone).remote().node.remote(), timeout=30)


@pytest.mark.parametrize(
    "hard",
    [{"region": In("eu", "us")}, {"region": NotIn("us")}, {"region": Exists()}, {"absent": DoesNotExist()}],
)
def test_a_label_strategy_that_the_node_fulfils(hard):
    assert runs(scheduling_strategy=NodeLabelSchedulingStrategy(hard))
    # What is soft is a wish.
    assert runs(scheduling_strategy=NodeLabelSchedulingStrategy(hard, soft={"tier": In("silver")}))


def test_a_label_strategy_that_no_node_fulfils_waits():
    assert waits(scheduling_strategy=NodeLabelSchedulingStrategy({"region": DoesNotExist()}))
    assert runs(scheduling_strategy=NodeLabelSchedulingStrategy({}, soft={"region": In("us")}))
    both = {"scheduling_strategy": NodeLabelSchedulingStrategy({"region": Exists()})}
    assert waits(label_selector={"tier": "x"}, **both)
    assert runs(label_selector={"tier": "gold"}, **both)


def test_label_strategies_that_make_no_sense_are_refused():
    for wrong in [In, lambda: NotIn(1), lambda: NodeLabelSchedulingStrategy({}, soft={})]:
        with pytest.raises(ValueError):
            wrong()
    with pytest.raises(ValueError, match="region"):
        NodeLabelSchedulingStrategy({"region": "eu"})
    with pytest.raises(ValueError, match="dict"):
        NodeLabelSchedulingStrategy(["region"])


@pytest.mark.parametrize(
    ("selector", "parsed"),
    [
        ({"a": "b"}, [("a", "in", ["b"])]),
        ({"a": "!b"}, [("a", "not in", ["b"])]),
        ({"x.y/a": "in(b,c, d)"}, [("x.y/a", "in", ["b", "c", "d"])]),
        ({"a": "!in(b)"}, [("a", "not in", ["b"])]),
        ({"a": ""}, [("a", "in", [""])]),
    ],
)
def test_selectors_are_read(selector, parsed):
    assert label_utils.validate_label_selector(selector) is None
    assert label_utils.parse(selector) == parsed


@pytest.mark.parametrize(
    "selector", [{"a": "in()"}, {"a": "!!b"}, {"a": "-b"}, {"-": "b"}, {"a" * 64: "b"}, {"/a": "b"}]
)
def test_selectors_that_make_no_sense_are_found(selector):
    assert label_utils.validate_label_selector(selector)


# Amounts


def test_an_accelerator_is_asked_for_by_its_type():
    assert runs(accelerator_type="T4")
    assert waits(accelerator_type="H100")


def test_what_every_node_has_can_be_asked_for():
    address = ray.nodes()[0]["NodeManagerAddress"]
    total = ray.cluster_resources()
    assert total[f"node:{address}"] == total["node:__internal_head__"] == 1
    assert runs(resources={f"node:{address}": 0.001, "node:__internal_head__": 0.001})


def test_shares_of_resources_add_up(tmp_path):
    path = tmp_path / "go"
    path.touch()
    share = hold.options(num_cpus=0, resources={"gizmo": 0.3})
    tasks = [share.remote(f"{path}") for _ in range(4)]
    wait_until(lambda: abs(ray.available_resources().get("gizmo", 0) - 0.1) < 1e-9)
    path.unlink()
    ray.get(tasks, timeout=30)
    wait_until(lambda: ray.available_resources().get("gizmo") == 1)
